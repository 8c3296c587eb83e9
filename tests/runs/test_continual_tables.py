"""Tables 3 and 4: the networks have the sizes that the paper counts, and their sentences say what the rows say."""

import numpy as np
import pytest

from neurocoder.envs.datasets import load_dataset
from neurocoder.policies.parameter_counts import count_parameters
from neurocoder.runs.preparation import prepare
from neurocoder.runs.reproduce import continual_cifar, trainings
from neurocoder.runs.reproduce import continual_tables as ct
from neurocoder.runs.reproduce import experiment as ex
from neurocoder.runs.reproduce.command_lines import config_of
from neurocoder.runs.reproduce.report import report


def rows(label: str, values) -> list[dict]:
    return [
        {"label": label, "seed": seed, "steps": [10, 20], "scores": [0.0, v], "losses": []}
        for seed, v in enumerate(values)
    ]


SIZES = {
    # outputs of one task; with task numbers, of five
    "MLP 400": (571_202, 571_202 + 4 * 802),
    "MLP": (328_194, 330_250),
    "neurocoder-released": (348_083, 563_319),
    "lowrank r1": (2_050, 2_050 + 4 * 258),
}


@pytest.mark.parametrize(("place", "scenario"), [(0, "domain"), (1, "task")])
def test_networks_have_the_sizes_of_the_paper_and_of_the_protocol(place, scenario, few_images):
    by_label = {setting.label: setting for setting in ct.settings(scenario)}
    for model, sizes in SIZES.items():
        config, policy = prepare(config_of(by_label[f"Adam, {model}"], 0))
        assert count_parameters(policy).total == sizes[place], model
        assert config.policy.task_heads == (5 if scenario == "task" else 0)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_the_nearest_mean_by_hand(scenario, few_images, tmp_path):
    train, test = load_dataset("mnist", "train"), load_dataset("mnist", "test")
    pixels, seen = (data.images.reshape(len(data.labels), -1).astype(float) for data in (train, test))
    means = [pixels[train.labels == digit].mean(axis=0) for digit in range(10)]
    right = np.zeros(5)
    for image, label in zip(seen, test.labels, strict=True):
        own = (label // 2 * 2, label // 2 * 2 + 1)
        competing = own if scenario == "task" else range(10)
        nearest = min(competing, key=lambda digit: np.square(image - means[digit]).sum())
        right[label // 2] += 100 * (nearest % 2 == label % 2) / 20
    np.testing.assert_allclose(ct.nearest_means(scenario), right)
    ct.references(scenario, [], tmp_path)
    text = ct.verdict(scenario, [], tmp_path)
    assert f"- Nearest mean of a class's pixels, nothing else learned: {right.mean():.2f}." in text


def test_what_is_beaten_is_counted():
    found = [*rows("SI, neurocoder", [70.0, 72.0]), *rows("EWC, neurocoder", [60.0, 60.0])]
    found += [*rows("SI, lowrank r1", [65.0]), *rows("EWC, lowrank r1", [65.0])]
    assert ct.beaten("domain", found, "neurocoder") == [
        "- Mean of neurocoder above the paper's Neurocoder in 1 of 2, lowrank r1 in 1 of 2 methods."
    ]
    assert ct.beaten("domain", found, "MLP") == ct.beaten("domain", [], "neurocoder") == []


def test_every_method_meets_every_network():
    for scenario in ("task", "domain"):
        labels = [setting.label for setting in ct.settings(scenario)]
        assert len(labels) == 6 * 8 + 3 * 5 == len(set(labels))
        printed = {s.label: s.published for s in ct.settings(scenario) if s.published}
        assert len(printed) == 24
    assert printed["online EWC, neurocoder-released"] == "73.97 ± 1.50"
    by_label = {setting.label: setting.overrides for setting in ct.settings("task")}
    assert by_label["Adagrad, MLP"]["continual.learning_rate"] == 0.01
    assert by_label["SI, neurocoder, a = 0"]["policy.head_config.orthogonality"] == 0


def test_the_gate_is_two_published_deviations():
    inside, outside = (rows(f"SI, {ct.HSU}", [64.76 + d, 64.76 + d]) for d in (6.0, -6.3))
    assert ct.gate("domain", inside) == [
        "- Gate, SI: 70.76 ± 0.00 of 2 seeds, published 64.76 ± 3.09: +1.9 of its deviations: met."
    ]
    assert ct.gate("domain", outside)[0].endswith("-2.0 of its deviations: missed.")


@pytest.mark.parametrize(
    ("gain", "noise", "word"),
    [(2.0, 0.1, "better"), (-2.0, 0.1, "worse"), (0.05, 3.0, "no clear difference")],
)
def test_differences_are_tested_in_pairs(gain, noise, word):
    base = np.linspace(50, 60, 10)
    ours = base + gain + noise * np.array([1, -1] * 5)
    found = ct.compared([*rows("SI, a", ours), *rows("SI, b", base)], "SI", "a", "b")
    assert found.startswith(f"- SI: a against b: {gain:+.2f} ± ") and found.endswith(f": {word}.")
    assert ct.compared(rows("SI, a", ours), "SI", "a", "b") == ""


@pytest.mark.data
def test_a_row_of_the_table_is_trained_and_shown(tmp_path):
    found = next(setting for setting in ct.settings("domain") if setting.label == f"SI, {ct.MLP}")
    small = found.with_overrides(continual__passes=1, env_options__samples=400)
    table = ex.Experiment(
        "small", "Small", [small], {}, 1, ex.ACCURACY,
        lambda rows, folder: ct.verdict("domain", rows, folder), lambda *_: None,
    )  # fmt: skip
    trainings.check(table)
    trainings.run_missing(table, tmp_path, seeds=1, jobs=1)
    (row,) = ex.read_rows(tmp_path)
    assert row["parameters"] == 328_194 and len(row["scores"]) == 5 and row["losses"] == []
    assert row["measures"]["acc"] == pytest.approx(row["scores"][-1], abs=1e-3)
    assert {"bwt", "fwt", "forgetting_max", "forgetting_first"} <= row["measures"].keys()
    assert np.shape(row["matrix"]) == (6, 5) and np.mean(row["matrix"][5]) == pytest.approx(
        row["measures"]["acc"], abs=1e-3
    )
    text = report(table, tmp_path)
    assert f"| SI | {row['scores'][-1]:.2f} ± 0.00 (64.41 ± 3.36) |" in text
    assert f"| SI, {ct.MLP} | {row['measures']['bwt']:.2f} |" in text
    assert (tmp_path / "rows.csv").read_text().count("\n") == 6


def test_figure_8_says_who_forgets(tmp_path):
    found = []
    for seed in range(5):
        for label, start in (("SI, neurocoder", 80.0), ("SI, MLP", 70.0)):
            scores = [95.0, 90.0, 85.0, 82.0, start + seed]
            measures = {"bwt": -10.0 - seed, "forgetting_max": 12.0}
            row = {"label": label, "seed": seed, "scores": scores, "losses": [], "data": "CIFAR-10"}
            row["steps"] = list(range(1, len(scores) + 1))
            found.append({**row, "measures": measures})
    text = continual_cifar.verdict(found, tmp_path)
    assert "- SI: neurocoder against MLP: +10.00 ± 0.00 points over 5 seeds" in text and "better." in text
    assert "- SI, MLP: BWT -12.0, forgetting (max) 12.0 points, 5 seeds." in text
    assert "too few seeds to tell." in continual_cifar.verdict(found[:8], tmp_path)
    continual_cifar.figures(found, tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_figure_8_recodes_every_layer_and_shows_features():
    by_label = {setting.label: setting.overrides for setting in continual_cifar.FIG8.settings}
    assert len(by_label) == 8
    for label, overrides in by_label.items():
        assert overrides["env_options.features"] == "efficientnet_lite0-96"
        recoded = overrides.get("policy.encoder_config.layers_head", "linear")
        assert recoded == overrides["policy.head"], label
        assert overrides["continual.method"] == ("si" if label.startswith("SI") else "none")
