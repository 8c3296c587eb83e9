"""Table 6 of the Neurocoder paper: parameter counts of the models that may stand behind its figures.

Table 6 prints one figure per model. Each :class:`Entry` below names a model that could stand behind a figure;
:func:`table6` builds it (on the meta device: no memory, no random numbers) and counts. The paper gives few sizes;
those that are inferred are said to be. Source: H. Le and S. Venkatesh, arXiv 2009.11443, Tables 5 and 6; "the
release" is github.com/thaihungle/Neurocoder.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from neurocoder.policies.heads import ReleasedNeurocoderLinear
from neurocoder.policies.parameter_counts import ParameterCount, count_parameters
from neurocoder.runs.reproduce.table6_models import (
    ReleasedNSM,
    a3c,
    densenet,
    lenet,
    minimal_neurocoder,
    mixture_of_experts,
    mlp,
    recurrent,
    resnet18,
    without_component_map,
)

Column = Literal["original", "moe", "nsm", "hypernet", "neurocoder"]
Verdict = Literal["exact", "truncated", "not matched"]


class Entry(NamedTuple):
    """A figure of Table 6 and a model that it may be the size of (None: no model can be told)."""

    row: str
    column: Column
    printed: str
    model: str
    build: Callable[[], nn.Module] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Table6Row:
    """An entry, counted.

    ======= ==================================================================================================
    row     the main network, as the table names it
    column  original, moe, nsm, hypernet or neurocoder
    printed the paper's figure
    model   what was built, in words
    count   its parameters; None where no model can be told
    verdict exact: the count rounds to the figure; truncated: it does when digits are cut off; or not matched
    reason  what the match rests on, or why there is none
    ======= ==================================================================================================
    """

    row: str
    column: Column
    printed: str
    model: str
    count: ParameterCount | None
    verdict: Verdict
    reason: str

    @property
    def computed(self) -> int | None:
        """The count's total."""
        return None if self.count is None else self.count.total


# ------------------------------------------------------------------------------------------- Table 5

CIFAR: dict[str, Any] = {
    "slots": 30,
    "attention_steps": 5,
    "attention_heads": 3,
    "key_size": 5,
    "least_used": 5,
    "residual": True,
}
MNIST: dict[str, Any] = {
    "slots": 5,
    "attention_steps": 5,
    "attention_heads": 1,
    "key_size": 2,
    "least_used": 2,
}
POLYNOMIAL_SINGLE: dict[str, Any] = {"slots": 10, "attention_heads": 15, "key_size": 3}
POLYNOMIAL_MULTI: dict[str, Any] = {
    "slots": 20,
    "attention_steps": 5,
    "attention_heads": 1,
    "key_size": 3,
    "least_used": 2,
}
ATARI: dict[str, Any] = {"slots": 80, "attention_heads": 15, "key_size": 3}
SPLIT_MNIST: dict[str, Any] = {"slots": 50, "attention_heads": 10, "key_size": 5}
SPLIT_CIFAR: dict[str, Any] = {"slots": 100, "attention_heads": 10, "key_size": 5}

# ------------------------------------------------------------------------------------------- Table 6

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "MNIST linear",
        "original",
        "7.8K",
        "784-10 without bias",
        lambda: mlp(784, 10),
        "The paper's 768 inputs (7,680 parameters) are a misprint: MNIST has 784 pixels.",
    ),
    Entry(
        "MNIST linear",
        "neurocoder",
        "7.3K",
        "200-10, LSTM of 7 units, key nets for all three memories, no gates",
        lambda: minimal_neurocoder(200, 10, slots=5, key_size=2, units=7),
        "Needs P = 5 (Table 5) and an LSTM of 3HK + 1 = 7 units: one of 8, as the text says, has 6,720 alone.",
    ),
    Entry(
        "MNIST linear",
        "neurocoder",
        "7.3K",
        "200-10, released layer without slot gates and component map",
        lambda: without_component_map(ReleasedNeurocoderLinear(200, 10, **MNIST | {"least_used": 0})),
        "The released layer fits only without its usage-based attention, which Table 5 lists with l_I = 2.",
    ),
    Entry(
        "MNIST linear",
        "neurocoder",
        "7.3K",
        "200-10, released layer",
        lambda: ReleasedNeurocoderLinear(200, 10, **MNIST),
        "The whole released layer is too large: its slot gates and component map have 4,615 parameters.",
    ),
    Entry(
        "CIFAR MLP",
        "original",
        "1.7M",
        "3072-512-256-10 with biases",
        lambda: mlp(3072, 512, 256, 10, bias=True),
        "The widths are inferred; the paper says three layers.",
    ),
    Entry(
        "CIFAR MLP",
        "moe",
        "15.4M",
        "ten experts for each layer of 3072-512-256-10, linear and noise gates",
        lambda: mlp(3072, 512, 256, 10, layer=mixture_of_experts),
        "Which layers have experts is not stated, and ten (Table 5) of each layer are more.",
    ),
    Entry(
        "CIFAR MLP",
        "nsm",
        "21.2M",
        "3072-512-256-10, released NSM layers with ten programs",
        lambda: mlp(3072, 512, 256, 10, layer=lambda i, o: ReleasedNSM(i, o, programs=10)),
        "The key size and the widths of the nets that the release never uses are not stated.",
    ),
    Entry(
        "CIFAR MLP",
        "neurocoder",
        "1.9M",
        "3072-512-256-10, released layers with residual",
        lambda: mlp(3072, 512, 256, 10, layer=lambda i, o: ReleasedNeurocoderLinear(i, o, **CIFAR)),
        "Not recoverable: residual programs of the main network's size leave 0.2M, and the first layer's LSTM "
        "alone takes 0.6M.",
    ),
    Entry(
        "CIFAR LeNet",
        "original",
        "2.1M",
        "two convolutions, 3200-500-500-500-10",
        lambda: lenet(nn.Linear(500, 10)),
        "Inferred from the release's LeNet, whose convolutions are commented out and whose hidden layers have no "
        "bias; the paper says five layers, these are six.",
    ),
    Entry(
        "CIFAR LeNet",
        "moe",
        "12.3M",
        "none",
        None,
        "Neither the experts' layers nor their widths are stated.",
    ),
    Entry(
        "CIFAR LeNet",
        "nsm",
        "27.1M",
        "none",
        None,
        "Neither the layers with programs nor their key size are stated.",
    ),
    Entry(
        "CIFAR LeNet",
        "neurocoder",
        "2.3M",
        "the same, last layer released, with residual",
        lambda: lenet(ReleasedNeurocoderLinear(500, 10, **CIFAR)),
        "The released layer adds 187,854 to a head 500-10: the printed 0.2M.",
    ),
    Entry(
        "CIFAR DenseNet",
        "original",
        "7.0M",
        "DenseNet of 100 layers, growth 12, no bottleneck, 1168-10",
        lambda: densenet(lambda width: nn.Linear(width, 10)),
        "The variant is inferred: the paper says 100 layers.",
    ),
    Entry(
        "CIFAR DenseNet",
        "moe",
        "20.5M",
        "none",
        None,
        "Neither the experts' layers nor their widths are stated.",
    ),
    Entry(
        "CIFAR DenseNet",
        "nsm",
        "16.7M",
        "none",
        None,
        "Neither the layers with programs nor their key size are stated.",
    ),
    Entry(
        "CIFAR DenseNet",
        "neurocoder",
        "7.3M",
        "the same, last layer released, with residual",
        lambda: densenet(lambda width: ReleasedNeurocoderLinear(width, 10, **CIFAR)),
        "The released layer adds 425,662 where the table adds 0.3M.",
    ),
    Entry(
        "polynomial GRU",
        "original",
        "3.4K",
        "GRU(2-32), 32-1",
        lambda: recurrent(32, nn.Linear(32, 1)),
        "All sizes are stated; the figure was cut off, not rounded.",
    ),
    Entry(
        "polynomial GRU",
        "hypernet",
        "3.5K",
        "GRU(2-28), scales 28-28, 28-1",
        lambda: recurrent(28, nn.Linear(28, 1), scales=nn.Linear(28, 28)),
        "Fits if the HyperNet scales the output layer's inputs by a linear function of the state.",
    ),
    Entry(
        "polynomial GRU",
        "neurocoder",
        "3.6K",
        "GRU(2-16), released layer 16-1, single-step",
        lambda: recurrent(16, ReleasedNeurocoderLinear(16, 1, **POLYNOMIAL_SINGLE)),
        "Fits with the release's read without LSTM, not with the paper's LSTM for J = 1.",
    ),
    Entry(
        "polynomial GRU",
        "neurocoder",
        "2.1K",
        "GRU(2-8), released layer 8-1, multi-step, key nets",
        lambda: recurrent(8, ReleasedNeurocoderLinear(8, 1, **POLYNOMIAL_MULTI)),
        "Fits with the release's slot gates and its unused component map.",
    ),
    Entry(
        "polynomial GRU",
        "neurocoder",
        "2.1K",
        "GRU(2-8), released layer 8-1, multi-step, learned key columns",
        lambda: recurrent(8, ReleasedNeurocoderLinear(8, 1, content_keys=False, **POLYNOMIAL_MULTI)),
        "Fits as well as key nets do: the figure does not tell the two apart.",
    ),
    Entry(
        "Atari LSTM",
        "original",
        "3.2M",
        "four convolutions, LSTM(1024-512), actor and critic, 6 actions",
        lambda: a3c(6),
        "The convolutions are inferred; the paper states the LSTM's 512 units.",
    ),
    Entry(
        "Atari LSTM",
        "original",
        "3.2M",
        "four convolutions, LSTM(1024-512), actor and critic, 18 actions",
        lambda: a3c(18),
        "The same with the 18 actions of Seaquest, Frostbite and Montezuma's Revenge: cut off, not rounded.",
    ),
    Entry(
        "Atari LSTM",
        "hypernet",
        "3.6M",
        "the same, 18 actions, actor's inputs scaled by 512-512",
        lambda: a3c(18, actor=nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 18))),
        "The polynomial task's HyperNet on the actor is too small, on both heads too large (3.8M).",
    ),
    Entry(
        "Atari LSTM",
        "neurocoder",
        "3.3M",
        "the same, 18 actions, actor released",
        lambda: a3c(18, actor=ReleasedNeurocoderLinear(512, 18, **ATARI)),
        "Fits with one head only, cut off; the text names the outputs of actor and critic.",
    ),
    Entry(
        "Atari LSTM",
        "neurocoder",
        "3.3M",
        "the same, 18 actions, actor and critic released",
        lambda: a3c(
            18,
            actor=ReleasedNeurocoderLinear(512, 18, **ATARI),
            critic=ReleasedNeurocoderLinear(512, 1, **ATARI),
        ),
        "With both heads, as the text says, the model is larger than the figure.",
    ),
    Entry(
        "Split MNIST MLP",
        "original",
        "328K",
        "1024-256-256-2, bias in the last layer only",
        lambda: mlp(1024, 256, 256, 2, last=nn.Linear),
        "Fits the release's default of 256 hidden units, not the 400 that its script names.",
    ),
    Entry(
        "Split MNIST MLP",
        "nsm",
        "2.3M",
        "1024-256-256-2, released NSM layers with five programs",
        lambda: mlp(1024, 256, 256, 2, layer=lambda i, o: ReleasedNSM(i, o, programs=5)),
        "Fits with the release's five programs (Table 5 says ten) and with the nets that it never uses.",
    ),
    Entry(
        "Split MNIST MLP",
        "neurocoder",
        "348K",
        "1024-256-256-2, released layers, one output layer",
        lambda: mlp(1024, 256, 256, 2, layer=lambda i, o: ReleasedNeurocoderLinear(i, o, **SPLIT_MNIST)),
        "Fits with one output layer for all tasks (Table 4); task-incremental runs have five (Table 3).",
    ),
    Entry(
        "Split CIFAR ResNet",
        "original",
        "12.6M",
        "ResNet-18 with its 1000 outputs, 1000-500-500-500-2",
        lambda: resnet18(mlp(1000, 500, 500, 500, 2, last=nn.Linear)),
        "Sizes are the release's; frozen weights are counted, and the figure was cut off, not rounded.",
    ),
    Entry(
        "Split CIFAR ResNet",
        "neurocoder",
        "12.6M",
        "the same, all four layers after ResNet-18 released, keys of 10 in the last",
        lambda: resnet18(
            mlp(
                *(1000, 500, 500, 500, 2),
                layer=lambda i, o: ReleasedNeurocoderLinear(i, o, **SPLIT_CIFAR),
                last=lambda i, o: ReleasedNeurocoderLinear(i, o, **SPLIT_CIFAR | {"key_size": 10}),
            )
        ),
        "Sizes are the release's, with P = 100 (Table 5) where the release has 50.",
    ),
)


def table6() -> list[Table6Row]:
    """Return every entry, built and counted."""
    return [count_entry(entry) for entry in ENTRIES]


def markdown(rows: Iterable[Table6Row]) -> str:
    """Return `rows` as a table for documents."""
    lines = ["| row | column | printed | counted | of these never used | verdict | model | why |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        counts = ("", "") if row.count is None else (f"{row.count.total:,}", f"{row.count.unused:,}")
        cells = (row.row, row.column, row.printed, *counts, row.verdict, row.model, row.reason)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(rows: Iterable[Table6Row]) -> str:
    """Return `rows` as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["row", "column", "printed", "counted", "never used", "verdict", "model", "why"])
    for row in rows:
        counts = ("", "") if row.count is None else (row.count.total, row.count.unused)
        writer.writerow([row.row, row.column, row.printed, *counts, row.verdict, row.model, row.reason])
    return out.getvalue()


def count_entry(entry: Entry) -> Table6Row:
    """Return `entry` with its model's count and the verdict on it."""
    count = None
    if entry.build is not None:
        with torch.device("meta"):
            count = count_parameters(entry.build())
    judged: Verdict = "not matched" if count is None else verdict(entry.printed, count.total)
    return Table6Row(entry.row, entry.column, entry.printed, entry.model, count, judged, entry.reason)


def verdict(printed: str, count: int) -> Verdict:
    """Return how `count` gives a figure such as "3.4K": rounded (half up), with digits cut off, or not."""
    figure, unit = Decimal(printed[:-1]), {"K": 1_000, "M": 1_000_000}[printed[-1]]
    exact = Decimal(count) / unit
    if exact.quantize(figure, ROUND_HALF_UP) == figure:
        return "exact"
    if exact.quantize(figure, ROUND_DOWN) == figure:
        return "truncated"
    return "not matched"
