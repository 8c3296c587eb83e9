"""`neurocoder compare`: statistics against oracles, groups, refusals, and what is printed, drawn and written."""

import csv
import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from neurocoder.envs import env_ids
from neurocoder.runs import statistics
from neurocoder.runs.anchors import anchors, human_normalised
from neurocoder.runs.cli import main
from neurocoder.runs.compare import POINTS, aggregate, common_grid, improvements, summarise
from neurocoder.runs.config import resolve
from neurocoder.runs.curves import CompareError, Curve, Group, find, group, label, read
from neurocoder.runs.figures import Panel, curves, png, terminal_chart
from neurocoder.runs.run import Run
from neurocoder.runs.statistics import CONFIDENCE, estimate_iqm, iqm, probability_of_improvement

PONG, BREAKOUT, CARTPOLE = "ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"
STEPS = (1_000, 2_000, 3_000)
Capture = pytest.CaptureFixture[str]


def make_run(
    logs: Path,
    scores: Sequence[float] | None = (1, 2, 3),
    seed: int = 0,
    env: str = PONG,
    at: Sequence[int] = STEPS,
    **overrides: Any,
) -> Run:
    """Return a run whose progress.csv holds `scores`."""
    run = Run.create(logs, resolve(env, None, {"seed": seed, **overrides}, "test"))
    if scores is not None:
        rows = [f"{step},7,{score},0.5\n" for step, score in zip(at, scores, strict=True)]
        run.progress_file.write_text("agent_steps,updates,mean_return,entropy\n" + "".join(rows), "utf-8")
    return run


def evaluation(
    run: Run, checkpoint: int, mean: float, source: str | None = "training", **changes: Any
) -> None:
    """Append an evaluation to evaluations.jsonl."""
    line = {
        "checkpoint": checkpoint,
        "protocol_hash": run.config().protocol_hash,
        "deterministic": False,
        "mean": mean,
        "returns": [mean],
        **({"source": source} if source else {}),
        **changes,
    }
    with (run.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def groups_of(logs: Path) -> list[Group]:
    return group(read(find([str(logs)], logs))[1])


# -------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_is_the_trimmed_mean_of_rliable(n):
    scores = np.random.default_rng(n).normal(size=(n, 3))
    np.testing.assert_allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=0))
    np.testing.assert_allclose(iqm(scores.T, axis=1), iqm(scores))


def test_iqm_by_hand():
    assert iqm(np.array([100.0, 1, 2, -50])) == 1.5
    assert iqm(np.array([0.0, 3, 9])) == 4  # three runs: nothing is cut
    assert iqm(np.array([-99.0, 1, 2, 6, 99])) == 3


def exact_interval(scores: np.ndarray) -> np.ndarray:
    """Return the percentile interval of the IQM over all nⁿ equally likely resamples, none of them drawn."""
    resampled = [iqm(np.array(each)) for each in itertools.product(scores, repeat=len(scores))]
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(resampled, (tail, 100 - tail), method="inverted_cdf")


@pytest.mark.parametrize("scores", [(0, 3, 9), (1, 2, 4, 8, 30), (5, 5, 5, 6)])
def test_the_interval_is_that_of_all_resamples(scores):
    found = estimate_iqm([np.array(scores, dtype=float)[:, None]])
    assert found.value.item() == iqm(np.array(scores))
    span = max(scores) - min(scores)
    np.testing.assert_allclose(
        [found.low.item(), found.high.item()], exact_interval(scores), atol=0.06 * span
    )


def test_runs_are_resampled_within_their_game():
    flat = [np.full((4, 1), 3.0), np.full((4, 1), 100.0)]
    found = estimate_iqm(flat)
    assert found.value == found.low == found.high == np.mean([3, 3, 100, 100])
    mixed = estimate_iqm([np.concatenate(flat)])  # one game: resampling may change the shares
    assert mixed.low < mixed.value < mixed.high


def test_whole_runs_are_resampled():
    """Two curves that mirror each other: their mean is 0 at every point, that of one of them twice is not."""
    up = np.linspace(0, 1, 5)
    found = estimate_iqm([np.array([up, -up])])
    np.testing.assert_allclose(found.value, 0)
    np.testing.assert_allclose(found.high, up)
    np.testing.assert_allclose(found.low, -up)


def test_one_run_has_no_interval():
    found = estimate_iqm([np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])])
    assert found.low is None and found.high is None
    np.testing.assert_allclose(found.value, [3, 4])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    scores = np.random.default_rng(1).normal(loc=7, size=(24, 300))  # 300 experiments of 24 runs
    found = estimate_iqm([scores])
    covered = np.mean((found.low <= 7) & (found.high >= 7))
    assert 0.90 < covered < 0.98


def test_the_same_scores_give_the_same_interval():
    scores = np.random.default_rng(0).normal(size=(5, 2))
    first, second = estimate_iqm([scores]), estimate_iqm([scores])
    np.testing.assert_array_equal(first.low, second.low)
    np.testing.assert_array_equal(first.high, second.high)
    x, y = scores.T
    assert probability_of_improvement([x], [y]) == probability_of_improvement([x], [y])


@pytest.mark.parametrize("seed", range(5))
def test_probability_of_improvement_is_mann_whitney(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, size=4), rng.integers(0, 5, size=6)  # with ties
    found = probability_of_improvement([x], [y])
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / 24)
    assert found.low <= found.value <= found.high
    assert probability_of_improvement([y], [x]).value == pytest.approx(1 - found.value)


def test_probability_of_improvement_is_a_mean_over_games():
    low, high = np.array([1, 2, 3]), np.array([4, 5])
    assert probability_of_improvement([high], [low]) == statistics.Estimate(1.0, 1.0, 1.0)
    found = probability_of_improvement([high, low, low], [low, low, high])
    assert found.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert 0 < found.low < found.value < found.high < 1


def test_the_interval_of_an_improvement_is_that_of_all_resamples():
    x, y = np.array([1, 4, 6]), np.array([0, 4, 5])
    wins = [
        np.mean([(a > b) + (a == b) / 2 for a in xs for b in ys])
        for xs in itertools.product(x, repeat=3)
        for ys in itertools.product(y, repeat=3)
    ]
    found = probability_of_improvement([x], [y])
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(wins, (2.5, 97.5), method="inverted_cdf")
    )


# ----------------------------------------------------------------------------------------- anchors


def test_anchors_are_of_installed_games_and_rank_humans_higher():
    assert len(anchors()) == 57
    assert set(anchors()) <= set(env_ids())
    assert all(anchor.human > anchor.random for anchor in anchors().values())


@pytest.mark.parametrize(
    ("env", "random", "human"),
    [
        (BREAKOUT, 1.7, 30.5),
        (PONG, -20.7, 14.6),
        ("ALE/Seaquest-v5", 68.4, 42054.7),
        ("ALE/MsPacman-v5", 307.3, 6951.6),
        ("ALE/Frostbite-v5", 65.2, 4334.7),
        ("ALE/MontezumaRevenge-v5", 0, 4753.3),
        ("ALE/Qbert-v5", 163.9, 13455),
        ("ALE/SpaceInvaders-v5", 148, 1668.7),
        ("ALE/BeamRider-v5", 363.9, 16926.5),
    ],
)
def test_human_normalised_scores(env, random, human):
    assert anchors()[env] == (random, human)
    scores = np.array([random, human, (random + human) / 2])
    np.testing.assert_allclose(human_normalised(env, scores), [0, 100, 50], atol=1e-9)


def test_published_human_normalised_scores():
    """PFRL's A3C: Breakout 581.0 is 20.1 times, Pong 20.9 is 1.18 times the human score."""
    assert human_normalised(BREAKOUT, np.array(581.0)) == pytest.approx(2010, abs=5)
    assert human_normalised(PONG, np.array(20.9)) == pytest.approx(118, abs=0.5)


# ------------------------------------------------------------------------------------------ curves


def test_runs_that_differ_in_seed_and_bookkeeping_are_replications(tmp_path):
    bookkeeping = {"log_every": 50, "keep_checkpoints": 9, "worker_timeout": 99.0, "evaluation.every": 0}
    make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1, **bookkeeping)
    make_run(tmp_path, seed=2, **{"a3c.gamma": 0.5})
    one, other = groups_of(tmp_path)
    assert (one.seeds, one.label) == ([0, 1], "gamma=0.99")
    assert (other.seeds, other.label) == ([2], "gamma=0.5")


@pytest.mark.parametrize(
    "change",
    [{"device": "cuda"}, {"precision": "bf16"}, {"steps": 9}, {"a3c.workers": 3}, {"policy.core": "gru"}],
)
def test_runs_that_may_learn_differently_are_no_replications(tmp_path, change):
    make_run(tmp_path, precision="fp32")
    make_run(tmp_path, **{"precision": "fp32", "seed": 1, **change})
    assert [len(each.runs) for each in groups_of(tmp_path)] == [1, 1]


def test_a_group_is_named_by_what_sets_it_apart(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, **{"policy.head": "linear"})
    make_run(tmp_path, **{"policy.head": "linear", "steps": 500})
    assert {g.label for g in groups_of(tmp_path)} == {
        "steps=10000000, head=neurocoder",
        "steps=10000000, head=linear",
        "steps=500, head=linear",
    }


def test_options_that_only_some_have_are_named_where_nothing_else_tells():
    plain = {"policy.head": "linear"}
    slots = {"policy.head": "neurocoder", "policy.head_config.slots": 40}
    assert label([plain, slots]) == ["head=linear", "head=neurocoder"]
    assert label([slots | {"policy.head": "linear"}, plain]) == ["slots=40", "slots=default"]
    assert label([plain | {"a.size": 1, "b.size": 3}, plain | {"a.size": 2, "b.size": 4}]) == [
        "a.size=1, b.size=3",
        "a.size=2, b.size=4",
    ]
    assert label([slots]) == ["head=neurocoder"]


def test_the_curve_of_training_is_the_mean_return_from_the_first_episode_on(tmp_path):
    run = make_run(tmp_path, scores=("", -20.5, -19))
    metric, (scored,) = read([run])
    assert metric == "training" and scored.curve.deterministic is None
    assert scored.curve.agent_steps.tolist() == [2_000, 3_000]
    assert scored.curve.scores.tolist() == [-20.5, -19]


def test_evaluations_while_training_are_the_curve_where_all_runs_have_them(tmp_path):
    run, other = make_run(tmp_path), make_run(tmp_path, seed=1)
    for checkpoint, mean in ((2_000, 5.0), (1_000, 4.0), (2_000, 6.0)):
        evaluation(run, checkpoint, mean)
    evaluation(run, 3_000, 99.0, source="eval")
    assert read([run, other])[0] == "training"
    with pytest.raises(CompareError, match="no evaluation in it; use --metric training"):
        read([run, other], "evaluation")
    evaluation(other, 1_000, 7.0)
    metric, (scored, _) = read([run, other])
    assert metric == "evaluation" and scored.curve.deterministic is False
    assert scored.curve.agent_steps.tolist() == [1_000, 2_000]
    assert scored.curve.scores.tolist() == [4, 6]  # the newest of a checkpoint; none by hand
    assert read([run, other], "training")[1][0].curve.scores.tolist() == [1, 2, 3]


def test_evaluations_by_hand_are_taken_when_asked_for_and_sampled_ones_first(tmp_path):
    run = make_run(tmp_path)
    evaluation(run, 1_000, 3.0, source=None, deterministic=True)
    assert read([run])[0] == "training"
    _, (scored,) = read([run], "evaluation")
    assert scored.curve.deterministic is True and scored.curve.scores.tolist() == [3]
    evaluation(run, 1_000, 2.0, source="eval")
    evaluation(run, 1_000, 4.0, source="eval", deterministic=True)
    _, (scored,) = read([run], "evaluation")
    assert scored.curve.deterministic is False and scored.curve.scores.tolist() == [2]


def test_folders_of_runs_mean_all_of_them_once(tmp_path):
    logs = tmp_path / "logs"
    one, two = make_run(logs), make_run(logs, env=BREAKOUT)
    assert [run.path for run in find([str(logs)], tmp_path)] == [two.path, one.path]
    assert [run.path for run in find(["ALE-Pong-v5"], logs)] == [one.path]
    both = find([str(one.path), str(logs), "ALE-Pong-v5"], logs)
    assert [run.path for run in both] == [one.path, two.path]


# ------------------------------------------------------------------------------------ side by side


def curve(steps: Sequence[int], scores: Sequence[float]) -> Curve:
    return Curve(np.array(steps), np.array(scores, dtype=float))


def test_the_grid_is_what_all_curves_cover():
    grid = common_grid([curve([100, 900], [0, 0]), curve([200, 500, 1000], [0, 0, 0])])
    assert grid[0] == 200 and grid[-1] == 900 and len(grid) == POINTS and np.all(np.diff(grid) > 0)
    assert common_grid([curve([5], [0]), curve([5], [1])]).tolist() == [5]
    assert common_grid([curve([5], [0]), curve([6], [1])]).tolist() == []
    assert common_grid([curve([5, 7], [0, 0])]).tolist() == [5, 6, 7]


def test_a_summary_of_known_curves(tmp_path):
    """Four runs that rise in straight lines to 10, 20, 30, 100, after a peak of one of them at the first step."""
    for seed, end in enumerate((10, 20, 30, 100)):
        make_run(tmp_path, (50 if seed == 0 else 0, end / 2, end), seed=seed)
    summary = summarise(groups_of(tmp_path))
    assert summary.final.value.item() == 25
    assert 10 <= summary.final.low.item() < 25 < summary.final.high.item() <= 100
    assert summary.best.value.item() == 40  # of 50, 20, 30, 100
    assert summary.ends == (3_000, 3_000)
    at = dict(zip(summary.agent_steps.tolist(), summary.curve.value, strict=True))
    assert at[1_000] == 0 and at[3_000] == 25
    middle = summary.agent_steps[POINTS // 2 + 10]
    assert at[middle] == pytest.approx(25 * (middle - 1_000) / 2_000)


def test_no_interval_over_one_seed_however_often_it_was_run(tmp_path):
    for end in (3, 4, 5):
        make_run(tmp_path, (1, 2, end))
    summary = summarise(groups_of(tmp_path))
    assert summary.final.value.item() == 4 and summary.final.low is None and summary.curve.low is None


def test_games_are_put_together_human_normalised(tmp_path):
    for seed, (pong, breakout) in enumerate(((-20.7, 1.7), (14.6, 30.5), (-3.05, 16.1))):
        make_run(tmp_path, (0, 0, pong), seed=seed)
        make_run(tmp_path, (0, 0, breakout), seed=seed, env=BREAKOUT)
        make_run(tmp_path, (0, 0, pong), seed=seed, **{"policy.head": "linear"})
    assert aggregate(groups_of(tmp_path)) == []  # linear heads have played one game only
    for seed in range(3):
        make_run(tmp_path, (0, 0, 30.5), seed=seed, env=BREAKOUT, **{"policy.head": "linear"})
    ours, theirs = aggregate(groups_of(tmp_path))
    assert ours.envs == theirs.envs == (BREAKOUT, PONG)
    assert ours.label == "head=neurocoder" and ours.final.value.item() == pytest.approx(50)
    assert theirs.final.value.item() == pytest.approx(iqm(np.array([0, 50, 100, 100, 100, 100])))
    (better,) = improvements(groups_of(tmp_path))
    assert better.x == "head=neurocoder" and set(better.envs) == {PONG, BREAKOUT}
    assert better.probability.value == pytest.approx((0.5 + (0 + 0.5 + 0) / 3) / 2)


# ----------------------------------------------------------------------------------------- figures


def dots(chart: str, height: int) -> np.ndarray:
    """Return the dots of a chart, [4 · height, 2 · width], read back from its braille characters."""
    rows = [
        [ord(c) - 0x2800 for c in line if 0x2800 <= ord(c) < 0x2900] for line in chart.split("\n")[:height]
    ]
    codes = np.array(rows)
    bits = [[0, 3], [1, 4], [2, 5], [6, 7]]
    read_back = np.zeros((4 * height, 2 * codes.shape[1]), dtype=bool)
    for row, column in itertools.product(range(4), range(2)):
        read_back[row::4, column::2] = codes >> bits[row][column] & 1
    return read_back


def test_a_terminal_shows_curves_where_they_are():
    """In 24 × 24 dots: a diagonal, and a line at the top of its left half."""
    lines = {
        "up": (np.array([0, 23]), np.array([0.0, 23.0])),
        "flat": (np.array([0, 11]), np.array([23.0, 23.0])),
    }
    chart = terminal_chart(lines, width=12, height=6)
    expected = np.eye(24, dtype=bool)[::-1].copy()
    expected[0, :12] = True
    np.testing.assert_array_equal(dots(chart.plain, 6), expected)
    text = chart.plain.split("\n")
    assert text[0].endswith("  up  flat") and text[0].startswith("23 ┤") and text[5].startswith(" 0 ┤")
    assert text[-1].split() == ["0", "23"]
    colors = {span.style for span in chart.spans}
    assert colors == {"blue", "red"}


def test_a_steep_line_has_no_gap():
    shown = dots(terminal_chart({"jump": (np.array([0, 18, 19]), np.array([0.0, 0, 1]))}, 10, 4).plain, 4)
    assert shown[15, :19].all() and shown[:15, 19].all() and shown.sum() == 34
    fall = dots(terminal_chart({"fall": (np.array([0, 1, 19]), np.array([1.0, 0, 0]))}, 10, 4).plain, 4)
    assert fall[0, 0] and fall[1:, 1].all() and fall[15, 2:].all() and fall.sum() == 34


def test_a_terminal_shows_a_single_point_and_a_constant():
    shown = dots(terminal_chart({"dot": (np.array([7]), np.array([3.0]))}, 10, 4).plain, 4)
    assert shown.sum() == 1
    shown = dots(terminal_chart({"flat": (np.array([0, 9]), np.array([3.0, 3.0]))}, 10, 4).plain, 4)
    assert shown.sum() == 20 and (shown.sum(axis=1) > 0).sum() == 1


def pixels_like(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Return which pixels [height, width] have about that color."""
    return (np.abs(np.asarray(picture.convert("RGB")).astype(int) - color) < 12).all(axis=-1)


def test_the_picture_has_curves_bands_and_a_panel_for_each_game(tmp_path):
    for seed in range(3):
        make_run(tmp_path, (0, 10 + seed, 20 + 5 * seed), seed=seed)
        make_run(tmp_path, (0, 5, 10), seed=seed, **{"policy.head": "linear"})
    summaries = [summarise([each]) for each in groups_of(tmp_path)]
    one = Image.open(io.BytesIO(png([Panel("Pong", "raw return", summaries)], "agent steps")))
    assert one.size == (600, 400) and one.format == "PNG" and one.info["Software"] == "neurocoder compare"
    blue, band = pixels_like(one, (31, 119, 180)), pixels_like(one, (210, 228, 240))
    orange = pixels_like(one, (255, 127, 14))
    assert blue.sum() > 400 and orange.sum() > 400 and band.sum() > 1_000
    right = slice(540, 580)
    assert np.nonzero(blue[:, right])[0].mean() < np.nonzero(orange[:, right])[0].mean()  # higher up
    three = Image.open(io.BytesIO(png([Panel(str(k), "y", summaries) for k in range(3)], "x")))
    assert three.size == (1200, 800)
    assert (np.asarray(three.convert("RGB"))[420:, 620:] == 255).all()  # no fourth panel


@pytest.mark.parametrize(("step", "told"), [(20, "100"), (500_000, "1M"), (20_000_000, "100M")])
def test_steps_below_a_picture_can_be_read(tmp_path, step, told):
    make_run(tmp_path, range(10), at=[k * step for k in range(1, 11)])
    figure = curves([Panel("Pong", "raw return", [summarise(groups_of(tmp_path))])], "agent steps")
    figure.draw_without_rendering()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert told in [label.get_text() for label in labels]
    boxes = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert len(boxes) > 3
    assert all(left[1] + 3 < right[0] for left, right in itertools.pairwise(boxes))  # dots between them


# ------------------------------------------------------------------------------------- end to end


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def picture_size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        picture.load()
        return picture.size


def refused(capsys: Capture, *arguments: str) -> str:
    """Return the one line with which `compare` is refused; nothing was printed or written."""
    code = main(["compare", *arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("neurocoder: ") and captured.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []
    return captured.err


def test_two_groups_of_one_game(here, logs, capsys):
    for seed in range(3):
        make_run(logs, (-20, -10, 10 + seed), seed=seed)
        make_run(logs, (-20, -15, 0 + seed), seed=seed, **{"policy.head": "linear"})
    assert main(["compare", "ALE-Pong-v5", "--logs", str(logs), "--json", "numbers.json"]) == 0
    out = capsys.readouterr().out
    protocol = make_run(logs / "other").config().protocol
    assert f"protocol {protocol.describe()}" in out and "sticky 0.25" in out
    assert "raw full-game returns over agent steps (4 frames each)" in out
    row = next(line for line in out.splitlines() if line.startswith(f"{PONG}  head=neurocoder"))
    assert "0, 1, 2" in row and " 3,000 " in row and " 11.00 [10.00, 12.00] " in row
    assert f"{100 * (11 + 20.7) / 35.3:.2f} [" in row
    assert "P(head=neurocoder ends higher than head=linear) = 1.00 [1.00, 1.00]" in out
    assert out.count("  head=neurocoder\n") == 1 and out.count("  head=linear\n") == 1  # beside their curves
    assert "careful" not in out
    assert f"curves are in {Path('compare.png')}" in out
    assert picture_size(here / "compare.png") == (600, 400)
    numbers = json.loads((here / "numbers.json").read_text("utf-8"))
    ours = numbers["groups"][0]
    assert numbers["metric"] == "training" and ours["protocol"]["hash"] == protocol.hash
    assert ours["final"] == {"value": 11, "low": 10, "high": 12}
    assert [run["scores"][-1] for run in ours["runs"]] == [10, 11, 12]
    assert ours["curve"]["value"][-1] == 11 and len(ours["curve"]["low"]) == POINTS
    assert ours["human_normalised"]["value"] == pytest.approx(100 * (11 + 20.7) / 35.3)
    assert numbers["probability_of_improvement"][0]["probability"]["value"] == 1


def test_few_runs_support_no_claim(here, logs, capsys):
    make_run(logs)
    for seed in range(3):
        make_run(logs, seed=seed, **{"policy.head": "linear"})
    assert main(["compare", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "3.00 (one run, no interval)" in out
    assert "no claim about head=neurocoder against head=linear: fewer than 3 runs (head=neurocoder: 1)" in out
    assert "P(" not in out


def test_several_games_are_compared_by_human_normalised_scores(here, logs, capsys):
    for env, seed in itertools.product((PONG, BREAKOUT), range(3)):
        make_run(logs, seed=seed, env=env)
    assert main(["compare", str(logs), "--json", "numbers.json"]) == 0
    out = capsys.readouterr().out
    both = iqm(np.repeat([100 * (3 + 20.7) / 35.3, 100 * (3 - 1.7) / 28.8], 3))
    assert next(line for line in out.splitlines() if line.startswith("2 games  ")).count(f"{both:,.2f}") == 3
    assert "2 games: human-normalised score, % (IQM) over agent steps" in out
    assert picture_size(here / "compare.png") == (1200, 800)
    (over_games,) = json.loads((here / "numbers.json").read_text("utf-8"))["human_normalised_over_games"]
    assert over_games["final"]["value"] == pytest.approx(both) and over_games["envs"] == [BREAKOUT, PONG]


def test_protocols_are_not_mixed(here, logs, capsys):
    for seed in range(3):
        one = make_run(logs, seed=seed)
        other = make_run(logs, (4, 5, 6), seed=seed, preset="dqn2015")
    hashes = [run.config().protocol.hash for run in (one, other)]
    line = refused(capsys, str(logs))
    assert all(text in line for text in (*hashes, str(one.path.parent), "--mixed-protocols", "and 2 more"))
    assert main(["compare", str(logs), "--mixed-protocols"]) == 0
    out = capsys.readouterr().out
    assert f"protocol={hashes[0]}" in out and f"protocol={hashes[1]}" in out
    assert "different protocols" in out and "P(" not in out
    assert " 3.00 [" in out and " 6.00 [" in out


def test_scores_of_different_engines_are_not_mixed(here, logs, capsys):
    hashes = [make_run(logs, vectorization=engine).config().protocol_hash for engine in ("native", "sync")]
    line = refused(capsys, str(logs))
    assert all(text in line for text in hashes)


def test_sampled_and_most_probable_actions_are_not_mixed(here, logs, capsys):
    evaluation(make_run(logs), 1_000, 5.0)
    evaluation(make_run(logs, seed=1), 1_000, 6.0, deterministic=True)
    line = refused(capsys, str(logs))
    assert "sampled actions" in line and "most probable actions" in line
    assert main(["compare", str(logs), "--mixed-protocols"]) == 0
    assert "deterministic=True" in capsys.readouterr().out


def test_raw_scores_of_different_environments_are_not_mixed(here, logs, capsys):
    make_run(logs)
    make_run(logs, env="ALE/Tetris-v5")
    line = refused(capsys, str(logs))
    assert "ALE/Pong-v5, ALE/Tetris-v5" in line and "ALE/Tetris-v5 has no human score" in line
    assert main(["compare", str(logs), "--mixed-protocols"]) == 0
    assert "nothing is put together over games" in capsys.readouterr().out


def test_an_unfair_comparison_is_said_to_be_one(here, logs, capsys):
    make_run(logs)
    make_run(logs, at=(10, 20, 30))
    make_run(logs, at=(10, 20, 30), **{"policy.head": "linear"})
    assert main(["compare", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "a seed occurs twice" in out and "no agent steps in common, no curve" in out
    assert "final scores are of 30 to 3,000 agent steps" in out


GOOD = '{"checkpoint": 1, "mean": 1.0, "deterministic": false, "protocol_hash": "HASH"}\n'
DAMAGES: dict[str, tuple[str, str, str]] = {
    "empty progress": ("progress.csv", "", "progress.csv: no episode has ended in this run"),
    "no episode": ("progress.csv", "agent_steps,mean_return\n10,\n", "progress.csv: no episode has ended"),
    "torn row": ("progress.csv", "agent_steps,x,mean_return\n10,1,2\n20,1\n", "progress.csv:3: damaged"),
    "no number": ("progress.csv", "agent_steps,mean_return\n10,high\n", "progress.csv:2: damaged"),
    "not finite": ("progress.csv", "agent_steps,mean_return\n10,inf\n", "progress.csv:2: damaged"),
    "other columns": ("progress.csv", "time,score\n10,1\n", "progress.csv:2: damaged"),
    "steps go back": ("progress.csv", "agent_steps,mean_return\n10,1\n10,2\n", "progress.csv:3: damaged"),
    "huge step": ("progress.csv", f"agent_steps,mean_return\n{10**30},1\n", "progress.csv:2: damaged"),
    "cell too many": ("progress.csv", "agent_steps,mean_return\n10,1,5\n", "progress.csv:2: damaged"),
    "no JSON": ("evaluations.jsonl", GOOD + '{"checkpoint": 2, "me\n', "evaluations.jsonl:2: damaged"),
    "no table": ("evaluations.jsonl", "[1]\n", "evaluations.jsonl:1: damaged"),
    "mean is NaN": ("evaluations.jsonl", GOOD.replace("1.0", "NaN"), "evaluations.jsonl:1: damaged"),
    "mean is huge": ("evaluations.jsonl", GOOD.replace("1.0", "1" * 400), "evaluations.jsonl:1: damaged"),
    "negative step": ("evaluations.jsonl", GOOD.replace('": 1,', '": -1,'), "evaluations.jsonl:1: damaged"),
    "deep": ("evaluations.jsonl", "[" * 200_000 + "\n", "evaluations.jsonl:1: damaged"),
    "other protocol": (
        "evaluations.jsonl",
        GOOD.replace("HASH", "0" * 12),
        "evaluations.jsonl:1: scored under protocol 000000000000, but the run has",
    ),
    "protocol no JSON": ("protocol.json", "{", "protocol.json: not readable as JSON"),
    "protocol no table": ("protocol.json", "[]", "protocol.json: expected a table"),
    "protocol changed": (
        "protocol.json",
        '{"env": "ALE/Pong-v5", "hash": "000000000000"}',
        "protocol 000000000000, but config.toml has ALE/Pong-v5 and",
    ),
    "config no TOML": ("config.toml", "env = ", "config.toml: not readable as TOML"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_line(here, logs, capsys, damage):
    name, text, message = DAMAGES[damage]
    run = make_run(logs)
    text = text.replace("HASH", run.config().protocol.hash)
    (run.path / name).write_text(text, "utf-8")
    assert message in refused(capsys, str(run.path))


@pytest.mark.parametrize("name", ["progress.csv", "evaluations.jsonl", "protocol.json"])
def test_bytes_that_are_no_text_are_refused(here, logs, capsys, name):
    run = make_run(logs)
    (run.path / name).write_bytes(b"\xff\xfe\x00")
    assert f"{name}: not readable" in refused(capsys, str(run.path))


@pytest.mark.parametrize("name", ["progress.csv", "protocol.json"])
def test_a_missing_file_is_named(here, logs, capsys, name):
    run = make_run(logs)
    (run.path / name).unlink()
    assert f"{name}: no such file" in refused(capsys, str(run.path))


def test_wrong_arguments_are_refused(here, logs, capsys):
    run = make_run(logs)
    assert "nothing: not a run" in refused(capsys, "nothing", "--logs", str(logs))
    assert "no evaluation in it" in refused(capsys, str(run.path), "--metric", "evaluation")
    assert "--out='curve.svg' must be a .png file" in refused(capsys, str(run.path), "--out", "curve.svg")
    assert "in a folder that exists" in refused(capsys, str(run.path), "--out", "gone/curve.png")
    assert "in a folder that exists" in refused(capsys, str(run.path), "--json", "gone/numbers.json")
    assert "evaluation" in refused(capsys, str(run.path), "--metric", "score")
    assert main(["compare"]) == 2


def test_only_own_files_are_replaced(here, logs, capsys):
    run = make_run(logs)
    arguments = ["compare", str(run.path), "--json", "numbers.json"]
    assert main(arguments) == 0
    first = (here / "compare.png").read_bytes()
    make_run(logs, (9, 9, 1), seed=1)
    arguments[1] = str(logs)
    assert main(arguments) == 0
    assert (here / "compare.png").read_bytes() != first
    assert len(json.loads((here / "numbers.json").read_text("utf-8"))["groups"][0]["runs"]) == 2
    (here / "numbers.json").write_text("{}", "utf-8")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and "'numbers.json' is there already and not from neurocoder compare" in captured.err
    )
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    os.mkdir("folder.png")
    assert main(["compare", str(logs), "--out", "folder.png"]) == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs with a real run that was trained and scored."""
    logs = tmp_path_factory.mktemp("trained")
    small = {
        "steps": 256,
        "log_every": 64,
        "a3c.workers": 1,
        "a3c.envs_per_worker": 2,
        "a3c.n_steps": 16,
        "policy.core": "none",
    }
    flags = [f"--set={key}={value}" for key, value in small.items()]
    assert main(["train", CARTPOLE, "--logs", str(logs), *flags]) == 0
    (path,) = logs.glob("*/*/")
    assert main(["eval", str(path), "--episodes", "2"]) == 0
    return logs


def test_a_real_run_is_compared(trained, here, capsys):
    (folder,) = trained.glob("*/*/")
    with (folder / "progress.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    score = json.loads((folder / "evaluations.jsonl").read_text("utf-8").splitlines()[-1])
    expected = {
        "training": (float(last["mean_return"]), int(last["agent_steps"]), "running mean of the last 100"),
        "evaluation": (
            score["mean"],
            score["checkpoint"],
            "whole evaluation games of checkpoints, actions sampled",
        ),
    }
    for metric, (final, steps, source) in expected.items():
        assert main(["compare", str(trained), "--metric", metric, "--json", "numbers.json"]) == 0
        out = capsys.readouterr().out
        row = next(line for line in out.splitlines() if line.startswith(f"{CARTPOLE}  "))
        assert f" {final:,.2f} (one run, no interval)" in row and f" {steps:,} " in row and source in out
        assert "head=neurocoder" in row and row.rstrip().endswith("–") and "frames each" not in out
        (group_,) = json.loads((here / "numbers.json").read_text("utf-8"))["groups"]
        assert group_["env"] == CARTPOLE and group_["final"] == {"value": final, "low": None, "high": None}
        assert group_["runs"][0]["agent_steps"][-1] == steps
