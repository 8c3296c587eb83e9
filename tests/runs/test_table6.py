"""Table 6: every count, two of them by formula, and the judgement of a printed figure."""

from pathlib import Path

import pytest
import torch
from torch import nn

from neurocoder.policies.heads.released import ReleasedNeurocoderLinear
from neurocoder.policies.parameter_counts import UNUSED, count_parameters
from neurocoder.runs.reproduce import table6 as t6
from neurocoder.runs.reproduce.table6 import markdown, table6, verdict

EXPECTED = [
    ("MNIST linear", "original", "7.8K", 7_840, "exact"),
    ("MNIST linear", "neurocoder", "7.3K", 7_335, "exact"),
    ("MNIST linear", "neurocoder", "7.3K", 7_385, "truncated"),
    ("MNIST linear", "neurocoder", "7.3K", 12_000, "not matched"),
    ("CIFAR MLP", "original", "1.7M", 1_707_274, "exact"),
    ("CIFAR MLP", "moe", "15.4M", 17_149_540, "not matched"),
    ("CIFAR MLP", "nsm", "21.2M", 19_851_542, "not matched"),
    ("CIFAR MLP", "neurocoder", "1.9M", 3_130_056, "not matched"),
    ("CIFAR LeNet", "original", "2.1M", 2_131_580, "exact"),
    ("CIFAR LeNet", "moe", "12.3M", None, "not matched"),
    ("CIFAR LeNet", "nsm", "27.1M", None, "not matched"),
    ("CIFAR LeNet", "neurocoder", "2.3M", 2_131_580 + 187_854, "exact"),
    ("CIFAR DenseNet", "original", "7.0M", 6_979_642, "exact"),
    ("CIFAR DenseNet", "moe", "20.5M", None, "not matched"),
    ("CIFAR DenseNet", "nsm", "16.7M", None, "not matched"),
    ("CIFAR DenseNet", "neurocoder", "7.3M", 6_979_642 + 425_662, "not matched"),
    ("polynomial GRU", "original", "3.4K", 3_489, "truncated"),
    ("polynomial GRU", "hypernet", "3.5K", 3_529, "exact"),
    ("polynomial GRU", "neurocoder", "3.6K", 3_600, "exact"),
    ("polynomial GRU", "neurocoder", "2.1K", 2_150, "truncated"),
    ("polynomial GRU", "neurocoder", "2.1K", 2_117, "exact"),
    ("Atari LSTM", "original", "3.2M", 3_249_639, "exact"),
    ("Atari LSTM", "original", "3.2M", 3_255_795, "truncated"),
    ("Atari LSTM", "hypernet", "3.6M", 3_518_451, "not matched"),
    ("Atari LSTM", "neurocoder", "3.3M", 3_361_143, "truncated"),
    ("Atari LSTM", "neurocoder", "3.3M", 3_473_784, "not matched"),
    ("Split MNIST MLP", "original", "328K", 328_194, "exact"),
    ("Split MNIST MLP", "nsm", "2.3M", 2_295_920, "exact"),
    ("Split MNIST MLP", "neurocoder", "348K", 348_083, "exact"),
    ("Split CIFAR ResNet", "original", "12.6M", 12_690_514, "truncated"),
    ("Split CIFAR ResNet", "neurocoder", "12.6M", 12_574_938, "exact"),
]


@pytest.fixture(scope="module")
def rows():
    return table6()


def test_every_count_and_verdict(rows):
    assert [(row.row, row.column, row.printed, row.computed, row.verdict) for row in rows] == EXPECTED


def test_parts_sum_to_the_total_and_every_row_has_a_reason(rows):
    for row in rows:
        assert row.model and row.reason.endswith(".")
        if row.count is not None:
            assert sum(row.count.parts.values()) == row.count.total == row.count.used + row.count.unused
            assert row.count.parts.get(UNUSED, 0) == row.count.unused
            assert all(row.count.parts.values())


def test_numbers_in_the_reasons_are_those_of_the_models(rows):
    reasons = {row.computed: row.reason for row in rows}
    lstm_of_8 = 4 * 8 * (200 + 8 + 2)
    assert f"{lstm_of_8:,} alone" in reasons[7_335]
    gates_and_map = 3 * 5 * (200 + 1) + 200 * (7 + 1)
    assert f"{gates_and_map:,} parameters" in reasons[12_000]
    assert "187,854" in reasons[2_319_434] and "425,662" in reasons[7_405_304]


# ---------------------------------------------------------------------------------------- by hand


def test_split_mnist_neurocoder_by_formula(rows):
    P, K, H = 50, 5, 10

    def released(i, o):
        memories = P * (K + i) + P * (K + o) + P * (K + 1)
        queries = 3 * H * K * (i + 1)
        key_nets = K * (i + 1) + K * (o + 1)
        gate, bias = i + 1, o
        return memories + queries + key_nets + gate + bias

    sizes = (1024, 256), (256, 256), (256, 2)
    count = next(row.count for row in rows if row.computed == 348_083)
    assert count.total == sum(released(i, o) for i, o in sizes)
    assert count.unused == sum((i + 1) + o for i, o in sizes)  # residual gates and biases
    assert list(count.parts) == ["layer1", "layer2", "layer3", UNUSED]


def test_polynomial_multi_step_by_formula(rows):
    P, K, H, i, o = 20, 3, 1, 8, 1
    gru = 3 * i * (2 + i + 2)
    units = 3 * H * K + 1
    memories = P * (K + i) + P * (K + o) + P * (K + 1)
    lstm_and_start = 4 * units * (i + units + 2) + 2 * units
    component_map, slot_gates, bias = i * (units + 1), 3 * P * (i + 1), o
    key_columns = gru + memories + lstm_and_start + component_map + slot_gates + bias
    counts = {row.computed: row.count for row in rows}
    assert counts[2_117].total == key_columns
    assert counts[2_150].total == key_columns + K * (i + 1) + K * (o + 1)
    assert counts[2_150].unused == counts[2_117].unused == component_map + bias
    assert counts[2_150].parts["gru"] == gru


def test_split_mnist_nsm_by_formula(rows):
    P, K, N = 5, 5, 15

    def released(i, o):
        used = P * (K + i * o) + K * (i + 1) + (i + 1)
        descriptors = K * (3 * (N * min(i, o) // 2) + 1) + K * (2 * o + 1 + 1)
        unused = (i + 1) * (P + P * N + P + K * (N + 1) + o) + descriptors
        return used, unused

    count = next(row.count for row in rows if row.computed == 2_295_920)
    used, unused = (sum(part) for part in zip(*map(released, (1024, 256, 256), (256, 256, 2)), strict=True))
    assert (count.used, count.unused) == (used, unused)


# ----------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    ("printed", "count", "expected"),
    [
        ("3.4K", 3_489, "truncated"),
        ("3.5K", 3_489, "exact"),
        ("3.6K", 3_600, "exact"),
        ("3.6K", 3_550, "exact"),
        ("3.6K", 3_549, "not matched"),
        ("3.6K", 3_649, "exact"),
        ("3.6K", 3_650, "truncated"),
        ("3.6K", 3_699, "truncated"),
        ("3.6K", 3_700, "not matched"),
        ("328K", 328_194, "exact"),
        ("328K", 328_999, "truncated"),
        ("328K", 327_499, "not matched"),
        ("7.0M", 6_979_642, "exact"),
        ("7.0M", 7_049_999, "exact"),
        ("2.3M", 2_295_920, "exact"),
        ("2.3M", 2_295, "not matched"),
    ],
)
def test_verdict(printed, count, expected):
    assert verdict(printed, count) == expected


# --------------------------------------------------------------------------------------- any module


def test_any_module_is_counted_by_child():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    assert count_parameters(module) == (24, 24, 0, {"0": 16, "2": 8})
    assert count_parameters(nn.ReLU()) == (0, 0, 0, {})


def test_shared_parameters_count_once_and_frozen_ones_too():
    linear = nn.Linear(3, 3).requires_grad_(False)
    assert count_parameters(nn.Sequential(linear, linear)).total == 12


def test_a_released_layer_is_found_at_any_depth():
    head = ReleasedNeurocoderLinear(6, 3, slots=8, attention_steps=2, attention_heads=1, key_size=2)
    alone = count_parameters(head)
    assert alone.unused == (7 + 1) * 6 + 3
    assert alone.unused == sum(head.get_parameter(name).numel() for name in head.unused_parameters)
    nested = count_parameters(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh(), head)))
    assert nested == (
        alone.total + 42,
        alone.used + 42,
        alone.unused,
        {"0": 42, "1": alone.used, UNUSED: alone.unused},
    )
    assert list(nested.parts)[-1] == UNUSED


def test_models_are_built_without_memory():
    with torch.device("meta"):
        model = t6.a3c(6)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_committed_table_is_the_counted_one(rows):
    document = Path(t6.__file__).parent / "results" / "table6" / "README.md"
    assert document.read_text("utf-8").endswith(markdown(rows))
