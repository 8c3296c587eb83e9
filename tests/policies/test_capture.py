"""torch.compile and torch.export see every head as one graph.

In a process of its own: the checks of shapes that run in every other test are not made to be traced.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from neurocoder.policies import make_head

name, options = sys.argv[1], eval(sys.argv[2])
torch.manual_seed(0)
head = make_head(name, 5, 4, **options).double().eval()
with torch.no_grad():
    for parameter in head.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(x), head(x))
for one, two in zip(
    torch.autograd.grad(compiled(x).square().sum(), (x, *head.parameters()), allow_unused=True),
    torch.autograd.grad(head(x).square().sum(), (x, *head.parameters()), allow_unused=True),
    strict=True,
):
    torch.testing.assert_close(one, two)

batch = torch.export.Dim("batch", min=1, max=64)
exported = torch.export.export(head, (x.detach(),), dynamic_shapes={"x": {0: batch}})
for size in (1, 9):
    other = torch.randn(size, 5, dtype=torch.float64)
    torch.testing.assert_close(exported.module()(other), head(other))
print("captured")
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


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_a_head_is_one_graph(name, options):
    command = [sys.executable, "-c", SCRIPT, name, repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "captured", done.stderr
