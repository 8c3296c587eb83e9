"""What a head costs: time and memory against ``nn.Linear``, and against building W for every input.

What is timed, for a hidden layer of float32 (its input requires a gradient):

================ ==================================================================================
forward          ``y = layer(x)`` without autograd, as when acting
forward_backward the gradients of the last call set to None, ``y = layer(x)``, ``y.backward(dy)``
================ ==================================================================================

Auxiliary losses and optimisers are no part of it. All layers of one shape are timed in turn: a round gives each
of them one block of calls, in an order drawn anew, so that what the machine does meanwhile meets all alike and
no layer always follows the one that empties the caches. One block is one sample: the mean time of its calls.
"""

import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from neurocoder import __version__
from neurocoder.policies import HEADS, make_head
from neurocoder.policies.heads import Head

LINEAR = "nn.Linear"
MATERIALISED = "neurocoder-materialised"
COMPILED = "-compiled"
NAMES = (LINEAR, *HEADS, MATERIALISED)
"""What can be measured; ``nn.Linear`` always is, for the ratio."""

BLOCK_MS = 10.0
"""A block has as many calls as fit into this time, at least one and at most ``MAX_CALLS``."""
MAX_CALLS = 200
WARM_UP_MS = 50.0
SEED = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer's sizes, and the options of a Neurocoder layer there."""

    in_features: int
    out_features: int
    batch: int
    slots: int
    attention_heads: int
    attention_steps: int
    key_size: int
    residual: bool = True

    @property
    def spec(self) -> str:
        return f"{self.in_features}x{self.out_features}x{self.batch}"

    def __str__(self) -> str:
        return f"{self.in_features} → {self.out_features}, batch {self.batch}"


SHAPES: dict[str, Shape] = {
    shape.spec: shape
    for shape in (
        *(
            Shape(512, 6, batch, slots=80, attention_heads=15, attention_steps=1, key_size=3)
            for batch in (1, 16, 320)
        ),
        Shape(784, 400, 128, slots=50, attention_heads=10, attention_steps=1, key_size=5, residual=False),
        Shape(512, 512, 128, slots=30, attention_heads=3, attention_steps=5, key_size=5),
    )
}
"""The paper's settings: an actor of the Atari agents, a layer of Split MNIST's MLP, one of CIFAR's."""


def options(name: str, shape: Shape) -> dict[str, Any]:
    """Return the options with which head `name` is measured; defaults are left out."""
    steps = shape.attention_steps
    memory = {
        "slots": shape.slots,
        "attention_heads": shape.attention_heads,
        "key_size": shape.key_size,
        "residual": shape.residual,
    }
    match name:
        case "neurocoder" | "neurocoder-materialised":
            return {**memory, "attention_steps": steps}
        case "neurocoder-released":  # its single step is the one without a controller, which it calls 0
            return {**memory, "attention_steps": 0 if steps == 1 else steps}
        case "lowrank":  # the largest rank that the Neurocoder layer's programs have
            return {"rank": min(steps * shape.attention_heads, shape.in_features, shape.out_features)}
    return {}


class Materialised(nn.Module):
    """y = x W(x) with every input's W built: what the factored form is measured against."""

    def __init__(self, layer: Head) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BI: Tensor) -> Tensor:
        return torch.bmm(x_BI.unsqueeze(1), self.layer.program(x_BI)).squeeze(1)


def build(name: str, shape: Shape) -> nn.Module:
    """Return the layer `name`, its weights drawn from ``SEED``."""
    torch.manual_seed(SEED)
    if name.endswith(COMPILED):
        layer = build(name.removesuffix(COMPILED), shape)
        layer.compile(dynamic=False)
        return layer
    if name == LINEAR:
        return nn.Linear(shape.in_features, shape.out_features)
    if name == MATERIALISED:
        return Materialised(
            make_head("neurocoder", shape.in_features, shape.out_features, **options(name, shape))
        )
    return make_head(name, shape.in_features, shape.out_features, **options(name, shape))


class Work(NamedTuple):
    """What is timed, and whether autograd is on."""

    call: Callable[[], object]
    grad: bool


class Contender:
    """A layer with its input and output gradient."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.layer = build(name, shape)
        draw = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(shape.batch, shape.in_features, generator=draw).requires_grad_()
        self.dy = torch.randn(shape.batch, shape.out_features, generator=draw)
        self.leaves = (self.x, *self.layer.parameters())

    def forward(self) -> None:
        self.layer(self.x)

    def forward_backward(self) -> None:
        self.clear()
        self.layer(self.x).backward(self.dy)

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def measure(shape: Shape, names: list[str], repeats: int, *, compiled: bool = False) -> list[dict[str, Any]]:
    """Return one row for ``nn.Linear`` and for each of `names`, in this order.

    Times are medians over `repeats` rounds, ``…_low`` and ``…_high`` their quartiles.
    """
    if compiled:
        names = [*names, LINEAR + COMPILED, "neurocoder" + COMPILED]
        torch.compiler.reset()  # or it would compile for any shape from the second on
    contenders = [Contender(name, shape) for name in dict.fromkeys((LINEAR, *names))]
    works = []
    for contender in contenders:
        works += [Work(contender.forward, grad=False), Work(contender.forward_backward, grad=True)]
    samples = interleaved(works, repeats)
    rows = []
    linear_ms = float(np.median(samples[1]))
    for contender, forward, forward_backward in zip(contenders, samples[::2], samples[1::2], strict=True):
        contender.clear()
        rows.append(
            {
                "head": contender.name,
                "in": shape.in_features,
                "out": shape.out_features,
                "batch": shape.batch,
                **_quartiles("forward_ms", forward),
                **_quartiles("forward_backward_ms", forward_backward),
                "ratio_to_linear": float(np.median(forward_backward)) / linear_ms,
                "peak_mib": peak_bytes(contender.forward_backward) / 2**20,
                "parameters": sum(leaf.numel() for leaf in contender.leaves[1:]),
                "options": options(contender.name.removesuffix(COMPILED), shape),
            }
        )
        contender.clear()
    return rows


def interleaved(works: list[Work], repeats: int) -> list[list[float]]:
    """Return the milliseconds of one call of each work, in each of `repeats` rounds."""
    sizes = [warm_up(work) for work in works]
    samples: list[list[float]] = [[] for _ in works]
    turns = list(range(len(works)))
    order = random.Random(SEED)
    for _ in range(repeats):
        order.shuffle(turns)
        for turn in turns:
            samples[turn].append(block(works[turn], sizes[turn]))
    return samples


def block(work: Work, calls: int) -> float:
    """Return the mean milliseconds of `calls` calls in a row."""
    with torch.set_grad_enabled(work.grad):
        started = time.perf_counter()
        for _ in range(calls):
            work.call()
        return (time.perf_counter() - started) * 1e3 / calls


def warm_up(work: Work) -> int:
    """Call `work` until it is warm; return how many calls make a block."""
    block(work, 1)  # compiles, allocates
    fastest = spent = block(work, 1)
    while spent < WARM_UP_MS:
        once = block(work, 1)
        fastest, spent = min(fastest, once), spent + once
    return max(1, min(MAX_CALLS, round(BLOCK_MS / fastest)))


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how many bytes torch held at most during `call`, above what it held before.

    Exact, and the same in any process: torch's own record of what it allocates and frees is replayed. `call` is
    made in a fresh thread, so that scratch memory that a head keeps for its thread is counted, too. Not
    counted is what libraries below torch allocate by themselves.
    """

    def recorded() -> profile:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            call()
        return record

    with profile(activities=[ProfilerActivity.CPU]):
        pass  # the profiler complains if a process first uses it in another thread
    with ThreadPoolExecutor(1) as thread, tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"  # the only public record that keeps every single event
        thread.submit(recorded).result().export_chrome_trace(str(trace))
        events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    return _replay(
        (event["args"]["Addr"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    )


def _replay(events: Iterator[tuple[int, int]]) -> int:
    """Return the most bytes that lay there at once; frees have negative sizes, those of older blocks are skipped."""
    held: dict[int, int] = {}
    now = peak = 0
    for address, size in events:
        if size > 0:
            held[address] = size
            now += size
        else:
            now -= held.pop(address, 0)
        peak = max(peak, now)
    return peak


def _quartiles(field: str, samples: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(samples, (25, 50, 75))
    return {field: float(median), f"{field}_low": float(low), f"{field}_high": float(high)}


def load() -> float | None:
    """Return the load average of the last minute, None where the system keeps none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def protocol(threads: int, repeats: int) -> dict[str, Any]:
    """Return what the numbers mean, to be kept beside them; to be called before measuring."""
    return {
        "threads": threads,
        "repeats": repeats,
        "block_ms": BLOCK_MS,
        "dtype": "float32",
        "seed": SEED,
        "forward": "layer(x) without autograd",
        "forward_backward": "gradients set to None, layer(x), backward with a fixed output gradient; x has one",
        "load": load(),
        "spread": "median over rounds of a block's mean, low and high are the quartiles",
        "peak": "bytes allocated by torch during the first forward and backward of a thread, gradients included",
    }


def versions() -> dict[str, str]:
    """Return the versions on which the numbers depend."""
    return {"neurocoder": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
