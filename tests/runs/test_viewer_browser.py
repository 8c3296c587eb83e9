"""The viewer's page in a real Chromium: pictures byte for byte, keys, addresses, chapters, two episodes, files on disk."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from recorded import make_run, record

from neurocoder.runs.cli import main
from neurocoder.runs.replay import programs
from neurocoder.runs.replay.emulation import emulate
from neurocoder.runs.replay.episode import EpisodeInfo, RecordedEpisode, Source, read_info, write_info
from neurocoder.runs.replay.recorder import EpisodeWriter
from neurocoder.runs.viewer.server import create_app

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")

STEPS, SLOTS = 300, 6
CHANGES = [(0, 90, 2), (90, 200, 4), (200, 300, 1)]
"""Chapters of the hand-made episode: from, to, slot."""


def attention() -> np.ndarray:
    """Slots are read alike, but for the leading one, a fifth more; each leads as often as the others are told apart."""
    rows = np.full((STEPS, SLOTS), 1 / SLOTS, np.float32)
    for start, stop, slot in CHANGES:
        rows[start:stop, slot] *= 1.2
    return rows


def picture(step: int, shift: int = 0) -> np.ndarray:
    rng = np.random.default_rng(step + 1000 * shift)
    return rng.integers(0, 256, (21, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)


def write_episode(folder: Path, *, other_from: int | None = None) -> Path:
    """Write an episode by hand: rewards at 50 and 250, actions that differ from `other_from` on."""
    shift = int(other_from is not None)
    with EpisodeWriter(folder) as writer:
        for step in range(STEPS):
            writer.add_frame(picture(step, shift if other_from is not None and step > other_from else 0))
            action = step % 3 if other_from is None or step < other_from else (step + 1) % 3
            rows = {
                "action": np.array([action]),
                "reward": np.array([{50: 1.0, 250: -2.0}.get(step, 0.0)], np.float32),
                "value": np.array([np.sin(step / 20)], np.float32),
                "logits": np.log(np.array([[0.2, 0.3, 0.5]], np.float32)),
                "boundary": np.array([step == 120], np.uint8),
                "sigma/actor": np.array([[2.0, 1.0]], np.float32),
                "gate/actor": np.array([0.5], np.float32),
            }
            rows["attention/actor/U"] = attention()[step : step + 1]
            rows["attention/actor/V"] = np.full((1, SLOTS), 1 / SLOTS, np.float32)
            writer.add(rows, 0)
        writer.add_frame(picture(STEPS))
        info = EpisodeInfo(
            env="hand/Made-v0",
            seed=5,
            source=Source("run", 100, "0" * 64),
            deterministic=False,
            ended="terminated",
            action_names=["LEFT", "STAY", "RIGHT"],
            discount=0.99,
            recorded="2026-01-01T00:00:00Z",
        )
        writer.finish(info)
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("browser") / "logs"
    write_episode(logs / "a")
    write_episode(logs / "b", other_from=231)
    return logs


class Server(uvicorn.Server):
    """In a thread: signals are the test runner's."""

    def __init__(self, root: Path) -> None:
        super().__init__(uvicorn.Config(create_app(root), log_level="warning", timeout_graceful_shutdown=1))
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.started:
            time.sleep(0.01)
        return self.url

    def __exit__(self, *_: object) -> None:
        self.should_exit = True
        self.thread.join(20)
        self.socket.close()


@pytest.fixture(scope="module")
def url(logs: Path) -> Iterator[str]:
    with Server(logs) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        found = running.chromium.launch(executable_path=executable, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page that may ask nobody but this machine, and says nothing on its console."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    said: list[str] = []
    elsewhere: list[str] = []

    def route(call) -> None:
        local = call.request.url.startswith(("http://127.0.0.1", "file:", "data:", "blob:"))
        if not local:
            elsewhere.append(call.request.url)
        call.continue_() if local else call.abort()

    context.route("**/*", route)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.said = said
    yield page
    context.close()
    assert not elsewhere
    assert not said


def go(page, address: str, state: str = "ready") -> None:
    page.goto(address)
    page.wait_for_selector(f"html[data-state={state}]", state="attached")


def shown(page, canvas: str = "game") -> np.ndarray:
    """Return the pixels on a canvas, [height, width, 3]."""
    size = page.evaluate(
        f"[document.getElementById('{canvas}').height, document.getElementById('{canvas}').width]"
    )
    script = """(name) => {
        const c = document.getElementById(name);
        return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data];
    }"""
    return np.array(page.evaluate(script, canvas), np.uint8).reshape(*size, 4)[..., :3]


def seek(page, step: int) -> None:
    page.evaluate("(t) => window.viewer.seek(t)", step)


def step_of(page) -> int:
    return page.evaluate("window.viewer.view.t")


def press(page, *keys: str) -> int:
    for key in keys:
        page.keyboard.press(key)
    page.evaluate("window.viewer.view.drawn")
    return step_of(page)


def test_pictures_are_the_recorded_ones_byte_for_byte(page, url: str) -> None:
    go(page, f"{url}?ep=a")
    for step in (0, 1, 63, 64, 127, 199, 298, 299, 300):
        seek(page, step)
        np.testing.assert_array_equal(shown(page), picture(step))
        assert page.get_attribute("html", "data-t") == str(step)


def test_a_real_games_pictures_are_the_emulators_byte_for_byte(page, tmp_path: Path) -> None:
    episode = RecordedEpisode.open(record(make_run(tmp_path / "logs"), seed=3))
    emulated = [moment.picture for moment in emulate(episode.info, episode.trace["action"])]
    last = episode.info.length
    with Server(episode.folder) as url:
        go(page, f"{url}?ep={episode.folder.name}")
        for step in (0, 1, 63, 64, 65, last // 2, last - 1, last):
            seek(page, step)
            np.testing.assert_array_equal(shown(page), emulated[step])
        page.goto("about:blank")


def test_random_scrubbing_ends_on_the_right_picture(page, url: str) -> None:
    go(page, f"{url}?ep=a")
    rng = np.random.default_rng(0)
    for _ in range(5):
        steps = rng.integers(0, 301, size=12).tolist()
        page.evaluate(
            "(steps) => { for (const t of steps) window.viewer.seek(t); return window.viewer.view.drawn; }",
            steps,
        )
        np.testing.assert_array_equal(shown(page), picture(steps[-1]))
    page.fill("#scrub", "37")
    page.evaluate("window.viewer.view.drawn")
    np.testing.assert_array_equal(shown(page), picture(37))


def test_the_keyboard(page, url: str) -> None:
    go(page, f"{url}?ep=a&t=100")
    assert press(page, "ArrowRight") == 101
    assert press(page, "ArrowLeft", "ArrowLeft") == 99
    assert press(page, "Shift+ArrowRight") == 115
    assert press(page, "Shift+ArrowLeft") == 99
    assert press(page, "]") == 200 and press(page, "[") == 90 and press(page, "[") == 0
    assert press(page, "End") == 300 and press(page, "ArrowRight") == 300
    assert press(page, "Home") == 0 and press(page, "ArrowLeft") == 0
    assert press(page, "d") == 0  # nothing to compare with
    page.keyboard.press("3")
    assert page.inner_text("[aria-label=Speed]") == "3×"
    page.keyboard.press(" ")
    page.wait_for_function("() => window.viewer.view.t >= 20", polling=50)
    assert page.inner_text("#play") == "Pause"
    stopped = press(page, " ")
    assert page.inner_text("#play") == "Play"
    page.wait_for_timeout(300)
    assert step_of(page) == stopped
    page.keyboard.press("?")
    assert page.is_visible("#help") and "chapter" in page.inner_text("#help")
    press(page, "ArrowRight")
    assert step_of(page) == stopped  # a dialog is open
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_selector("html[data-state=browse]", state="attached")


def test_the_episode_plays_to_its_end_and_stops(page, url: str) -> None:
    go(page, f"{url}?ep=a&t=290")
    page.keyboard.press("9")
    page.keyboard.press(" ")
    page.wait_for_function("() => !window.viewer.view.playing", polling=50)
    assert step_of(page) == 300 and page.inner_text("#play") == "Play"


def test_the_address_brings_back_the_step_and_the_map(page, url: str) -> None:
    go(page, f"{url}?ep=a")
    page.select_option("#program", label="actor V")
    seek(page, 123)
    page.wait_for_timeout(300)
    address = page.url
    assert "t=123" in address and "memory=V" in address and "ep=a" in address
    page.goto("about:blank")
    go(page, address)
    assert step_of(page) == 123
    assert page.evaluate("document.getElementById('program').selectedOptions[0].textContent") == "actor V"
    page.reload()
    page.wait_for_selector("html[data-state=ready]", state="attached")
    assert step_of(page) == 123


def test_chapters_stand_at_the_known_changes(page, url: str) -> None:
    go(page, f"{url}?ep=a")
    cards = page.query_selector_all("#chapters button")
    found = [(int(card.get_attribute("data-start")), int(card.get_attribute("data-slot"))) for card in cards]
    assert found == [(start, slot) for start, _, slot in CHANGES]
    texts = [card.inner_text() for card in cards]
    assert "90 steps, +1" in texts[0] and "110 steps" in texts[1] and "100 steps, −2" in texts[2]
    cards[1].click()
    assert step_of(page) == 90 and cards[1].get_attribute("aria-current") == "true"
    seek(page, 250)
    assert cards[2].get_attribute("aria-current") == "true" and cards[1].get_attribute("aria-current") is None


def test_the_map_has_the_colour_of_its_lift(page, url: str, logs: Path) -> None:
    go(page, f"{url}?ep=a")
    pixels = shown(page, "map")
    assert pixels.shape == (SLOTS, STEPS, 3)
    restored = RecordedEpisode.open(logs / "a").trace["attention/actor/U"]
    order = programs.row_order(programs.chapters(restored), restored).tolist()
    assert order[:3] == [4, 1, 2]  # 110, 100 and 90 steps
    lifts = programs.lift(restored)
    size = page.evaluate("window.viewer.range('actor', 'U')")
    assert 1.05 < size < 1.25
    for slot, step in ((4, 150), (4, 10), (2, 20), (0, 5), (1, 299)):
        colour = page.evaluate(
            "([lift, range]) => window.viewer.colour(lift, range)", [float(lifts[step, slot]), size]
        )
        got = pixels[order.index(slot), step].astype(int)
        assert np.abs(got - colour).max() <= 1, (slot, step)
    bright = pixels.astype(int).sum(axis=2)
    assert bright[0, 150] > bright[0, 10] + 100  # read without hue


def test_flat_attention_is_warned_of(page, url: str) -> None:
    go(page, f"{url}?ep=a")
    assert page.inner_text("#warnings") == ""
    page.select_option("#program", label="actor V")
    assert "within 2% of uniform" in page.inner_text("#warnings")


def test_numbers_of_a_step(page, url: str) -> None:
    go(page, f"{url}?ep=a&t=51")
    text = page.inner_text("#numbers")
    assert "return so far 1" in text and f"value {np.sin(51 / 20):.3f}" in text
    actions = page.inner_text("#probabilities")
    assert "▸ LEFT" in actions and "0.500" in actions and "entropy 1.030" in actions
    seek(page, 300)
    assert "end terminated" in page.inner_text("#numbers") and "over" in page.inner_text("#probabilities")


def test_two_episodes_go_in_lock_step_and_part_where_they_do(page, url: str) -> None:
    go(page, f"{url}?ep=a&with=b&t=100")
    assert "first difference at step 231: LEFT / STAY" in page.inner_text("#difference")
    assert press(page, "d") == 231
    assert press(page, "d") == 232
    for step in (10, 260):
        seek(page, step)
        np.testing.assert_array_equal(shown(page, "game"), picture(step))
        np.testing.assert_array_equal(shown(page, "game-2"), picture(step, int(step > 231)))
    page.wait_for_timeout(300)
    assert "with=b" in page.url


def test_the_list_sorts_filters_and_compares(page, url: str) -> None:
    go(page, url, "browse")
    assert page.locator("tbody tr").count() == 2
    page.click("th button:has-text('Seed')")
    assert page.get_attribute("th:has(button:text('Seed'))", "aria-sort") == "descending"
    page.click("th button:has-text('Seed')")
    assert page.get_attribute("th:has(button:text('Seed'))", "aria-sort") == "ascending"
    page.fill("[type=search]", "nothing like this")
    assert page.locator("tbody tr").count() == 0
    page.fill("[type=search]", "made")
    assert page.is_disabled("button:has-text('Compare two')")
    for box in page.query_selector_all("tbody input"):
        box.check()
    page.click("button:has-text('Compare two')")
    page.wait_for_selector("html[data-state=ready]", state="attached")
    assert page.is_visible("#game-2")


def test_a_new_episode_appears_in_the_list(page, tmp_path: Path, logs: Path) -> None:
    root = tmp_path / "logs"
    shutil.copytree(logs / "a", root / "a")
    with Server(root) as url:
        go(page, url, "browse")
        page.wait_for_timeout(1500)
        shutil.copytree(logs / "b", root / "b")
        page.wait_for_selector("tbody tr:nth-child(2)")
        assert len(page.query_selector_all("tbody tr")) == 2
        page.goto("about:blank")


def test_an_empty_folder_says_what_to_do(page, tmp_path: Path) -> None:
    with Server(tmp_path) as url:
        go(page, url, "browse")
        assert "neurocoder record RUN" in page.inner_text("main")
        page.goto("about:blank")


def test_a_script_for_a_name_is_text(page, tmp_path: Path, logs: Path) -> None:
    name = "<img src=x onerror=document.title='gotcha'>"
    folder = tmp_path / "logs" / name
    shutil.copytree(logs / "a", folder)
    write_info(folder, replace(read_info(folder), env=name, masked=[name], source=Source(name, 1, name)))
    with Server(tmp_path / "logs") as url:
        go(page, url, "browse")
        page.click("tbody a")
        page.wait_for_selector("html[data-state=ready]", state="attached")
        assert name in page.inner_text("h1") and page.title() != "gotcha"
        page.goto("about:blank")


def test_damage_is_told_in_place(page, tmp_path: Path, logs: Path) -> None:
    root = tmp_path / "logs"
    shutil.copytree(logs / "a", root / "a")
    (root / "a" / "frames" / "001.webp").write_bytes(b"no picture")
    shutil.copytree(logs / "b", root / "b")
    (root / "b" / "trace.npz").write_bytes(b"PK")
    with Server(root) as url:
        go(page, f"{url}?ep=a&t=70")
        page.wait_for_selector("text=missing or damaged")
        assert (shown(page) == 128).all()
        seek(page, 10)
        np.testing.assert_array_equal(shown(page), picture(10))
        assert not page.is_visible("text=missing or damaged")
        go(page, f"{url}?ep=b", "error")
        assert "trace.npz: damaged" in page.inner_text("#error")
        go(page, f"{url}?ep=nothing", "error")
        assert "there is no episode 'nothing'" in page.inner_text("#error")
    page.said[:] = [text for text in page.said if "404" not in text]  # the browser's own words for an error


def test_the_exported_file_opens_from_disk(page, tmp_path: Path, logs: Path) -> None:
    out = tmp_path / "two.html"
    assert main(["replay", "export", str(logs / "a"), str(out), "--second", str(logs / "b")]) == 0
    go(page, f"{out.as_uri()}#t=232&head=actor&memory=V")
    assert step_of(page) == 232
    np.testing.assert_array_equal(shown(page), picture(232))
    np.testing.assert_array_equal(shown(page, "game-2"), picture(232, 1))
    assert press(page, "End") == 300
    np.testing.assert_array_equal(shown(page), picture(300))
    page.wait_for_timeout(300)
    assert "#" in page.url and "t=300" in page.url
    assert page.locator("#chapters button").count() == 1  # V is flat


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)])
def test_the_page_fits(browser, url: str, width: int, dark: bool) -> None:
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    go(page, f"{url}?ep=a&with=b&t=40")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    game, value = page.locator("#game").bounding_box(), page.locator(".plot").first.bounding_box()
    assert game["width"] > 100
    beside = value["x"] >= game["x"] + game["width"]
    assert beside == (width > 1000)
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    ink, paper = (sum(int(part) for part in text[4:-1].split(",")) for text in colours)
    assert (ink > paper) == dark
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter((e) => !e.textContent.trim() && !e.ariaLabel).length"
    )
    assert unlabelled == 0
    context.close()
