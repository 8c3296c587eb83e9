"""LSTM and GRU over sequences: the backward pass by hand against gradcheck, PyTorch's own, and the plain loop."""

import pytest
import torch
from torch import nn

from neurocoder.errors import ConfigError
from neurocoder.policies.cores import Core, make_core, reset_state

NAMES = pytest.mark.parametrize("name", ["lstm", "gru"])


def made(name: str, in_features: int = 3, size: int = 4) -> Core:
    core = make_core(name, in_features, size).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return core


def sequence(core: Core, n_steps: int, batch: int, starts: float = 0.3):
    features = torch.randn(n_steps, batch, core.cell.input_size, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn_like(part).requires_grad_() for part in core.initial_state(batch))
    return features, state, torch.rand(n_steps, batch) < starts


@NAMES
def test_gradients_of_everything_are_numerically_right(name):
    """Of features, initial state and weights, through outputs and last state, across episode starts."""
    core = made(name)
    features, state, start = sequence(core, 5, 3)
    assert start.any() and not start.all()
    names, parameters = zip(*core.named_parameters(), strict=True)

    def run(features, *rest):
        state, weights = rest[: len(core.initial_state(1))], rest[len(core.initial_state(1)) :]
        inputs = (features, state, start)
        output, last = torch.func.functional_call(core, dict(zip(names, weights, strict=True)), inputs)
        return output, *last

    inputs = (features, *state, *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(run, inputs)


@NAMES
@pytest.mark.parametrize(("n_steps", "batch"), [(1, 1), (1, 3), (7, 1), (7, 3)])
def test_by_hand_equals_the_plain_loop(name, n_steps, batch):
    core = made(name)
    inputs = sequence(core, n_steps, batch)
    wanted = (inputs[0], *inputs[1], *core.parameters())
    results = []
    for forward in (core.forward, lambda *inputs: Core.forward(core, *inputs)):
        output, last = forward(*inputs)
        loss = output.sin().sum() + sum((part * (k + 2)).square().sum() for k, part in enumerate(last))
        results.append((output, last, torch.autograd.grad(loss, wanted)))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@NAMES
def test_without_resets_it_is_pytorchs_own(name):
    core = made(name, 5, 6)
    reference = {"lstm": nn.LSTM, "gru": nn.GRU}[name](5, 6).double()
    reference.load_state_dict({f"{key}_l0": value for key, value in core.cell.state_dict().items()})
    features, state, start = sequence(core, 9, 2, starts=0.0)
    output, last = core(features, state, start)
    begin = tuple(part.unsqueeze(0) for part in state)
    expected, expected_last = reference(features, begin if name == "lstm" else begin[0])
    torch.testing.assert_close(output, expected)
    expected_last = expected_last if name == "lstm" else (expected_last,)
    torch.testing.assert_close(last, tuple(part.squeeze(0) for part in expected_last))
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), (features, *core.parameters()))
    theirs = torch.autograd.grad((expected * weight).sum(), (features, *reference.parameters()))
    torch.testing.assert_close(ours, theirs)


@NAMES
def test_no_gradient_crosses_an_episode_start(name):
    core = made(name)
    features, state, _ = sequence(core, 6, 2)
    start = torch.zeros(6, 2, dtype=torch.bool)
    start[3, 0] = True
    output, _ = core(features, state, start)
    grad_features, *grad_state = torch.autograd.grad(output[4:].square().sum(), (features, *state))
    before = grad_features[:3].abs().amax((0, 2))
    assert before[0] == 0 and before[1] > 0
    assert all(part[0].abs().max() == 0 and part[1].abs().max() > 0 for part in grad_state)


@NAMES
def test_a_spoilt_state_does_not_outlive_its_episode(name):
    core = made(name)
    state = sequence(core, 1, 2)[1]
    spoilt = tuple(torch.full_like(part, float("nan")) for part in state)
    kept, fresh = (reset_state(s, torch.ones(2, dtype=torch.bool)) for s in (spoilt, core.initial_state(2)))
    torch.testing.assert_close(kept, fresh, rtol=0, atol=0)


@NAMES
def test_autocast_takes_the_plain_loop(name):
    core = make_core(name, 8, 16)
    features, start = torch.randn(4, 3, 8), torch.zeros(4, 3, dtype=torch.bool)
    start[2, 1] = True
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = core(features, core.initial_state(3), start)
        state, outputs = core.initial_state(3), []
        for t in range(4):
            step, state = core(features[t], state, start[t])
            outputs.append(step)
    torch.testing.assert_close(output, torch.stack(outputs), rtol=0, atol=0)
    exact, _ = core(features, core.initial_state(3), start)
    assert 0 < (output - exact).abs().max() < 0.05  # half precision was used, and is near


@NAMES
def test_compilers_see_one_graph(name):
    core = made(name)
    features, state, start = sequence(core, 3, 2)
    wanted = (features, *state, *core.parameters())
    results = []
    for forward in (torch.compile(core, backend="aot_eager", fullgraph=True), core):
        output, last = forward(features, state, start)
        results.append((output, last, torch.autograd.grad(output.square().sum(), wanted)))
    torch.compiler.reset()
    torch.testing.assert_close(*results)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"features": {1: batch}, "state": tuple({0: batch} for _ in state), "episode_start": {1: batch}}
    exported = torch.export.export(core, sequence(core, 3, 2), dynamic_shapes=shapes).module()
    for size in (1, 9):
        inputs = sequence(core, 3, size)
        torch.testing.assert_close(exported(*inputs), core(*inputs))


@NAMES
def test_layers_are_pytorchs_own(name):
    core = make_core(name, 5, 6, layers=3).double()
    reference = {"lstm": nn.LSTM, "gru": nn.GRU}[name](5, 6, num_layers=3).double()
    with torch.no_grad():
        for ours, theirs in zip(core.parameters(), reference.parameters(), strict=True):
            theirs.copy_(ours.add_(0.3 * torch.randn_like(ours)))
    features = torch.randn(9, 2, 5, dtype=torch.float64, requires_grad=True)
    output, last = core(features, core.initial_state(2), torch.zeros(9, 2, dtype=torch.bool))
    expected, expected_last = reference(features)
    torch.testing.assert_close(output, expected)
    expected_last = expected_last if name == "lstm" else (expected_last,)
    # PyTorch has all hidden states first, then all cells
    ours = [torch.stack(last[k :: len(expected_last)]) for k in range(len(expected_last))]
    torch.testing.assert_close(ours, list(expected_last))
    one = torch.autograd.grad(output.square().sum(), (features, *core.parameters()))
    two = torch.autograd.grad(expected.square().sum(), (features, *reference.parameters()))
    torch.testing.assert_close(one, two)


@NAMES
def test_layers_step_by_step_and_recorded(name):
    """What `record` kept gives autograd's gradients, and single steps with resets give the sequence."""
    core = make_core(name, 3, 4, layers=2).double()
    features = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    start = torch.rand(6, 3) < 0.3
    state = tuple(torch.randn_like(part) for part in core.initial_state(3))
    output, last = core(features, state, start)
    weight = torch.randn_like(output)
    expected = torch.autograd.grad((output * weight).sum(), (features, *core.parameters()))
    outputs, steps, following = [], [], state
    with torch.no_grad():
        for t in range(6):
            step, following, kept = core.record(features[t], following, start[t])
            outputs.append(step)
            steps.append(kept)
    torch.testing.assert_close((torch.stack(outputs), following), (output, last))
    with torch.no_grad():
        grad_features, gradients = core.backward_from(
            tuple(torch.stack(column) for column in zip(*steps, strict=True)), weight
        )
    torch.testing.assert_close((grad_features, *gradients), expected)
    plain, following = Core.forward(core, features, state, start)
    torch.testing.assert_close((plain, following), (output, last))


def test_layers_are_refused_in_words():
    with pytest.raises(ConfigError, match="layers"):
        make_core("lstm", 3, 4, layers=0)
