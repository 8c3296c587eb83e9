"""What every head promises, whatever is inside: shapes, copies, precision, spoilt rows, compilers."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch

from neurocoder.policies import HEADS, make_head
from neurocoder.policies.heads import Head, HeadError

CASES = [
    ("linear", {}),
    ("lowrank", {"rank": 2}),
    ("lowrank", {"bias": False}),
    ("neurocoder", {}),
    ("neurocoder", {"sharpness": "learnable", "residual": False}),
    ("neurocoder", {"attention_steps": 3, "attention_heads": 2}),
    ("neurocoder", {"attention_steps": 2, "attention_heads": 2, "convex": True, "openness": True}),
    ("neurocoder", {"fixed_routing": True, "sharpness": 20.0}),
    ("neurocoder-released", {}),
    ("neurocoder-released", {"attention_steps": 3, "slots": 9, "residual": True, "content_keys": False}),
    ("nsm", {}),
    ("moe", {}),
    *(("hypernet", {"variant": variant}) for variant in ("static", "dynamic", "scale", "input-scale")),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=[f"{name}-{options}" for name, options in CASES])


def made(case: tuple[str, dict], **more) -> Head:
    """Return the head in double precision and evaluation mode, away from its start."""
    name, options = case
    head = make_head(name, 5, 4, **options, **more).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def test_every_head_is_among_the_cases():
    assert {name for name, _ in CASES} == HEADS.keys()


@EVERY
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0), (2, 1, 3)])
def test_any_leading_dimensions(case, leading):
    head = made(case)
    x = torch.randn(*leading, 5, dtype=torch.float64)
    y, _ = head.forward_with_trace(x)
    assert y.shape == (*leading, 4) and head.program(x).shape == (*leading, 5, 4)
    torch.testing.assert_close(y, head(x))
    torch.testing.assert_close(head.forward_with_aux(x)[0], y)
    rows = [head(row) for row in x.reshape(-1, 5)]
    if rows:
        torch.testing.assert_close(y, torch.stack(rows).view_as(y))


@EVERY
def test_an_explained_output_is_the_output_to_the_bit_and_its_trace_the_trace(case):
    head = made(case).float()
    x = torch.randn(2, 9, 5)
    y, trace = head.forward_explained(x)
    torch.testing.assert_close(y, head(x), rtol=0, atol=0)
    expected = head.forward_with_trace(x)[1]
    if expected is None:
        assert trace is None
    else:
        torch.testing.assert_close(tuple(trace), tuple(expected), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_spoilt_row_spoils_no_other(case, poison):
    head = made(case)
    x = torch.randn(4, 5, dtype=torch.float64)
    clean = head(x)
    x[2, 1] = poison
    spoilt = head(x)
    assert not spoilt[2].isfinite().any()
    others = [0, 1, 3]
    torch.testing.assert_close(spoilt[others], clean[others])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_double(case, dtype):
    head = made(case)
    x = torch.randn(6, 5, dtype=torch.float64).to(dtype)
    low = copy.deepcopy(head).to(dtype)
    y, loss = low.forward_with_aux(x)
    assert y.dtype == loss.dtype == low.program(x).dtype == dtype
    expected = head(x.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert (y.double() - expected).norm() < tolerance * expected.norm()
    (y.sum() + loss).backward()
    assert all(p.grad.dtype == dtype for p in low.parameters() if p.grad is not None)


@EVERY
def test_copies_pickles_and_state_dicts_compute_the_same(case):
    head, fresh = made(case), made(case)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert (fresh(x) - head(x)).abs().max() > 1e-3
    fresh.load_state_dict(head.state_dict())
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), fresh):
        torch.testing.assert_close(other(x), head(x), rtol=0, atol=0)


@EVERY
def test_a_wrong_feature_size_is_named(case):
    for call in (made(case), made(case).program, made(case).forward_with_aux):
        with pytest.raises(HeadError, match=r"in_features=5, .* is 6"):
            call(torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("options", [{"output_scale": 0.0}, {"output_scale": float("nan")}, {"n": 3}])
def test_options_that_no_head_has_are_named(name, options):
    with pytest.raises(HeadError, match=next(iter(options))):
        make_head(name, 5, 4, **options)


# --------------------------------------------------------------------------------------- compilers

# In a process of its own: the checks of shapes that run in every other test are not made to be traced.
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
    learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    both = (torch.autograd.grad(f(x).square().sum(), (x, *learned), allow_unused=True) for f in (compiled, head))
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


@pytest.fixture(scope="module")
def outcomes() -> list[str]:
    """What became of each case, all of them captured in one process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@EVERY
def test_torch_compile_and_export_see_one_graph(case, outcomes):
    assert outcomes[CASES.index(case)] == "captured"
