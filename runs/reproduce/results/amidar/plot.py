"""Draw curve.png from the files beside this script. Needs matplotlib."""

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COLORS = {"neurocoder": "tab:blue", "linear": "tab:orange"}


def main() -> None:
    """Write curve.png."""
    random = json.loads((HERE / "results.json").read_text("utf-8"))["random"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for head, color in COLORS.items():
        for file in sorted(HERE.glob(f"{head}-seed*.csv")):
            with file.open(newline="", encoding="utf-8") as text:
                rows = [row for row in csv.DictReader(text) if row["mean_return"]]
            axes.plot(
                [int(row["agent_steps"]) / 1000 for row in rows],
                [float(row["mean_return"]) for row in rows],
                color=color,
                label=f"{head} heads" if file.stem.endswith("0") else None,
            )
    axes.axhline(random["mean"], color="grey", label="random")
    axes.axhline(random["mean"] + 3 * random["std"], color="grey", linestyle="--", label="random + 3 std")
    axes.set_xlabel("thousand agent steps (4 frames each)")
    axes.set_ylabel("raw return, mean of 100 games")
    axes.set_title("Amidar, sticky 0.25, three seeds a head")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "curve.png", dpi=110)


if __name__ == "__main__":
    main()
