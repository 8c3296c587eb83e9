"""torch.compile and torch.export see every head as one graph.

In a process of its own: the checks of shapes that run in every other test are not made to be traced.
"""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json
import sys
import traceback

import torch
from neurocoder.policies import make_head


def capture(name, options):
    torch.manual_seed(0)
    head = make_head(name, 5, 4, **options).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    both = (torch.autograd.grad(f(x).square().sum(), (x, *head.parameters()), allow_unused=True) for f in (compiled, head))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(head, (x.detach(),), dynamic_shapes={"x": {0: batch}})
    for size in (1, 9):
        other = torch.randn(size, 5, dtype=torch.float64)
        torch.testing.assert_close(exported.module()(other), head(other))


for name, options in json.loads(sys.argv[1]):
    torch.compiler.reset()
    try:
        capture(name, options)
        print(json.dumps("captured"))
    except Exception:
        print(json.dumps(traceback.format_exc()))
"""

CASES = [
    ("linear", {}),
    ("lowrank", {"rank": 2}),
    ("neurocoder-released", {}),
    ("neurocoder-released", {"attention_steps": 3, "slots": 9, "residual": True, "content_keys": False}),
    ("nsm", {}),
    ("moe", {}),
    *(("hypernet", {"variant": variant}) for variant in ("static", "dynamic", "scale", "input-scale")),
    ("neurocoder", {}),
    ("neurocoder", {"sharpness": "learnable", "residual": False}),
    ("neurocoder", {"attention_steps": 3, "attention_heads": 2}),
    ("neurocoder", {"attention_steps": 2, "attention_heads": 2, "convex": True, "openness": True}),
]


@pytest.fixture(scope="module")
def outcomes() -> list[str]:
    """What became of each case, all of them captured in one process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{options}" for name, options in CASES])
def test_a_head_is_one_graph(case, outcomes):
    assert outcomes[case] == "captured"
