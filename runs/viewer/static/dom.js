// Elements made of names, attributes and children; numbers as text. What comes from data is text and never markup.

export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "dataset") Object.assign(element.dataset, value);
    else if (key in element && typeof value === "boolean") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Set text only where it changed: most of a page stays as it is from one step to the next.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A number with a true minus; integers with thousands apart, others with `digits` decimals.
export function number(value, digits = 2) {
  if (typeof value !== "number") return String(value ?? "");
  const text = Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);
  return text.replace(/^-/, "−");
}

export function signed(value, digits = 2) {
  return (value > 0 ? "+" : "") + number(value, digits);
}
