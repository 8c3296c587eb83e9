"""The Neural Turing Machine: its equations against float64 loops, its backward pass by hand, its state."""

import math
from types import SimpleNamespace

import gymnasium as gym
import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from neurocoder.envs.sequences import Copy
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.cores import core_options, make_core
from neurocoder.policies.heads import HeadError
from neurocoder.policies.ntm import NTMCore, addressing, by_hand
from neurocoder.policies.ntm.addressing import HeadSizes
from neurocoder.policies.ntm.beginnings import MEMORY_INITS
from neurocoder.policies.ntm.core import plain_access
from neurocoder.policies.tape import Tape

CONTROLLERS = pytest.mark.parametrize("controller", ["lstm", "feedforward"])
MACHINES = pytest.mark.parametrize(
    "options",
    [
        {},
        {"controller": "feedforward", "read_heads": 2, "write_heads": 3, "shift_range": 2},
        {"write_heads": 2, "shift_range": 0, "memory_init": "learned"},
        {"controller": "feedforward", "memory_init": "random"},
        {"memory_init": "positions"},
        {"head": "nsm", "head_config": {"programs": 2, "key_size": 2}, "memory_init": "learned"},
    ],
    ids=["one head", "many heads", "no shifts", "random memory", "positions", "nsm"],
)


def machine(**options) -> NTMCore:
    core = make_core("ntm", 3, 4, **({"rows": 7, "width": 3} | options)).double()
    assert isinstance(core, NTMCore)
    with torch.no_grad():  # away from the start, where biases vanish
        for parameter in core.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return core


def some_state(core: NTMCore, batch: int) -> tuple[Tensor, ...]:
    memory, weighting, *rest = core.initial_state(batch)
    state = (torch.randn_like(memory), torch.softmax(torch.randn_like(weighting), -1))
    return *state, *(torch.randn_like(part) for part in rest)


def sequence(core: NTMCore, n_steps: int, batch: int, starts: float = 0.3):
    """Return features, a state in the middle of an episode, and where episodes start; all may be differentiated."""
    features = torch.randn(n_steps, batch, core.controller.input.in_features, dtype=torch.float64)
    state = tuple(part.requires_grad_() for part in some_state(core, batch))
    return features.requires_grad_(), state, torch.rand(n_steps, batch) < starts


# ----------------------------------------------------------------------------------- the equations


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def told(raw: np.ndarray, sizes: HeadSizes):
    """What the controller's numbers of one sample mean, number by number."""
    numbers = iter(raw.tolist())
    n_reads, n_writes, width, furthest = sizes
    heads = range(n_reads + n_writes)
    key = [[math.tanh(next(numbers)) for _ in range(width)] for _ in heads]
    add = [[math.tanh(next(numbers)) for _ in range(width)] for _ in range(n_writes)]
    erase = [[sigmoid(next(numbers)) for _ in range(width)] for _ in range(n_writes)]
    gate = [sigmoid(next(numbers)) for _ in heads]
    strength = [softplus(next(numbers)) for _ in heads]
    sharpening = [1 + softplus(next(numbers)) for _ in heads]
    offsets = [*range(furthest, -furthest - 1, -1)]
    shift = [dict(zip(offsets, softmax([next(numbers) for _ in offsets]), strict=True)) for _ in heads]
    assert next(numbers, None) is None
    return SimpleNamespace(
        key=key, add=add, erase=erase, gate=gate, strength=strength, sharpening=sharpening, shift=shift
    )


def paper_step(raw: np.ndarray, memory: np.ndarray, previous: np.ndarray, sizes: HeadSizes):
    """Eqs. 2-9 for one sample: reads, memory and weightings."""
    n_reads, n_writes, width, _ = sizes
    n_rows, says = len(memory), told(raw, sizes)
    weightings = []
    for h in range(n_reads + n_writes):
        key = says.key[h]
        scores = []
        for row in memory.tolist():
            likeness = sum(k * m for k, m in zip(key, row, strict=True))
            likeness /= math.hypot(*key) * math.hypot(*row)
            scores.append(says.strength[h] * likeness)
        content = softmax(scores)
        gate = says.gate[h]
        gated = [gate * c + (1 - gate) * w for c, w in zip(content, previous[h], strict=True)]
        shifted = [0.0] * n_rows
        for i in range(n_rows):
            for offset, share in says.shift[h].items():
                shifted[i] += gated[(i - offset) % n_rows] * share
        sharp = [w ** says.sharpening[h] for w in shifted]
        weightings.append([w / sum(sharp) for w in sharp])
    reads = [
        [sum(w[i] * memory[i, m] for i in range(n_rows)) for m in range(width)] for w in weightings[:n_reads]
    ]
    after = memory.copy()
    for w, erase in zip(weightings[n_reads:], says.erase, strict=True):
        for i in range(n_rows):
            for m in range(width):
                after[i, m] *= 1 - w[i] * erase[m]
    for w, add in zip(weightings[n_reads:], says.add, strict=True):
        for i in range(n_rows):
            for m in range(width):
                after[i, m] += w[i] * add[m]
    return np.array(reads), after, np.array(weightings)


SIZES = [HeadSizes(1, 1, 3, 1), HeadSizes(2, 3, 2, 2), HeadSizes(1, 2, 1, 0)]


def some_access(sizes: HeadSizes, batch: int = 3, rows: int = 6):
    """Raw numbers, memory [B, M, N], weightings."""
    raw = 2 * torch.randn(batch, sum(sizes.parts), dtype=torch.float64)
    memory = torch.randn(batch, sizes.width, rows, dtype=torch.float64)
    previous = torch.softmax(2 * torch.randn(batch, sizes.heads, rows, dtype=torch.float64), -1)
    return raw, memory, previous


def accessed_by_hand(raw, memory, previous, sizes):
    return by_hand.access(raw, memory, previous, sizes)[0]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("access", [plain_access, accessed_by_hand], ids=["plain", "by hand"])
def test_a_step_agrees_with_the_paper_read_slowly(access, sizes):
    raw, memory, previous = some_access(sizes)
    reads, after, weighting = access(raw, memory, previous, sizes)
    for b in range(3):
        expected = paper_step(raw[b].numpy(), memory[b].T.numpy(), previous[b].numpy(), sizes)
        for got, wanted in zip((reads[b], after[b].T, weighting[b]), expected, strict=True):
            torch.testing.assert_close(got, torch.from_numpy(wanted))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weightings_are_distributions(sizes):
    weighting = plain_access(*some_access(sizes), sizes).weighting
    torch.testing.assert_close(weighting.sum(-1), torch.ones(3, sizes.heads, dtype=torch.float64))
    assert weighting.min() >= 0


def one_hot(*rows: int, n: int = 8) -> Tensor:
    """[1, H, N]."""
    return torch.eye(n, dtype=torch.float64)[list(rows)][None]


def test_reading_and_writing_with_one_hot_weightings_are_array_operations():
    memory = torch.randn(1, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(addressing.read(one_hot(2, 5), memory), memory[:, [2, 5]])
    new = torch.randn(1, 2, 3, dtype=torch.float64)
    written = addressing.write(memory, one_hot(6, 1), torch.ones_like(new), new)
    expected = memory.clone()
    expected[0, [6, 1]] = new[0]
    torch.testing.assert_close(written, expected, rtol=0, atol=0)


def test_shifts_by_one_add_up_and_go_round():
    weighting = torch.softmax(torch.randn(2, 3, 8, dtype=torch.float64), -1)
    forward = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(2, 3, 3)
    moved = weighting
    for k in range(1, 17):
        moved = addressing.shift(moved, forward)
        torch.testing.assert_close(moved, torch.roll(weighting, k, -1), rtol=0, atol=0)
    torch.testing.assert_close(moved, weighting)
    assert addressing.shift(one_hot(7), forward[:1, :1]).argmax() == 0  # from the last row to the first
    backward = forward.flip(-1)
    torch.testing.assert_close(addressing.shift(addressing.shift(weighting, forward), backward), weighting)


def test_without_strength_content_is_uniform_and_with_much_it_is_the_nearest_row():
    key, memory = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 8, 4, dtype=torch.float64)
    nothing = addressing.content_weighting(key, torch.zeros(2, 3, dtype=torch.float64), memory)
    torch.testing.assert_close(nothing, torch.full_like(nothing, 1 / 8))
    much = addressing.content_weighting(key, torch.full((2, 3), 1e4, dtype=torch.float64), memory)
    nearest = torch.nn.functional.cosine_similarity(key[:, :, None], memory[:, None], dim=-1).argmax(-1)
    torch.testing.assert_close(much.argmax(-1), nearest)


def test_the_gate_chooses_between_content_and_location():
    content, previous = one_hot(1), one_hot(4)
    for gate, expected in ((1.0, content), (0.0, previous), (0.25, 0.25 * content + 0.75 * previous)):
        g = torch.tensor([[gate]], dtype=torch.float64)
        torch.testing.assert_close(addressing.interpolate(content, previous, g), expected)


def test_sharpening_is_a_power_and_survives_any():
    weighting = torch.softmax(torch.randn(1, 2, 8, dtype=torch.float64), -1)
    for gamma in (1.0, 2.5):
        powers = weighting**gamma
        g = torch.full((1, 2), gamma, dtype=torch.float64)
        torch.testing.assert_close(addressing.sharpen(weighting, g), powers / powers.sum(-1, keepdim=True))
    hardest = addressing.sharpen(weighting, torch.full((1, 2), 1e6, dtype=torch.float64))
    torch.testing.assert_close(hardest, torch.eye(8, dtype=torch.float64)[weighting.argmax(-1)])


def test_the_order_of_write_heads_does_not_matter():
    memory, weighting = torch.randn(2, 8, 3).double(), torch.softmax(torch.randn(2, 4, 8), -1).double()
    erase, new = torch.rand(2, 4, 3).double(), torch.randn(2, 4, 3).double()
    order = [2, 0, 3, 1]
    one, other = (
        addressing.write(memory, weighting[:, k], erase[:, k], new[:, k]) for k in ([0, 1, 2, 3], order)
    )
    torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)
    one_by_one = memory
    for k in range(4):  # is another machine: a later head would erase what an earlier one has added
        one_by_one = addressing.write(one_by_one, weighting[:, k, None], erase[:, k, None], new[:, k, None])
    assert (one - one_by_one).abs().max() > 0.01


# --------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_of_a_step_are_numerically_right(sizes):
    inputs = tuple(part.requires_grad_() for part in some_access(sizes, 2, 5))
    assert torch.autograd.gradcheck(lambda *x: by_hand.AccessFunction.apply(*x, sizes), inputs)
    assert torch.autograd.gradcheck(lambda *x: plain_access(*x, sizes), inputs)


def test_no_gradient_flows_where_a_weight_was_clamped():
    sizes = HeadSizes(1, 1, 3, 1)
    raw, memory, _ = some_access(sizes)
    _, _, _, gate, _, sharpening, shift = pieces(sizes)
    raw[:, gate], raw[:, sharpening] = -60, -60  # stay where the head was; γ = 1
    raw[:, shift] = torch.tensor([60.0, -60, -60] * 2)
    inputs = tuple(
        part.requires_grad_() for part in (raw, memory, one_hot(1, 4, n=6).expand(3, 2, 6).clone())
    )
    results = []
    for access in (plain_access, lambda *x: by_hand.AccessFunction.apply(*x)):
        reads, after, weighting = access(*inputs, sizes)
        loss = reads.sin().sum() + after.cos().sum() + (weighting * torch.arange(6)).sum()
        results.append(torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(*results)
    assert (
        results[0][2].abs() > 1e-30
    ).sum() == 6  # the one weight that was not zero, of 2 heads in 3 samples


@MACHINES
def test_gradients_of_everything_are_numerically_right(options):
    """Of features, state and parameters, through outputs and last state, across episode starts."""
    core = machine(**options, rows=5)
    features, state, start = sequence(core, 3, 2)
    start[1, 0] = True
    names, parameters = zip(*core.named_parameters(), strict=True)

    def run(features, *rest):
        state, weights = rest[: len(core.initial_state(1))], rest[len(core.initial_state(1)) :]
        inputs = (features, state, start)
        output, last = torch.func.functional_call(core, dict(zip(names, weights, strict=True)), inputs)
        return output, *last

    inputs = (features, *state, *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@MACHINES
@pytest.mark.parametrize(("n_steps", "batch"), [(1, 1), (1, 3), (7, 1), (7, 3)])
def test_by_hand_equals_the_plain_formula(options, n_steps, batch):
    core = machine(**options)
    inputs = sequence(core, n_steps, batch)
    inputs[2][n_steps // 2, 0] = True
    wanted = (inputs[0], *inputs[1], *core.parameters())
    results = []
    for core.by_hand in (True, False):
        output, last = core(*inputs)
        loss = output.sin().sum() + sum((part * (k + 2)).square().sum() for k, part in enumerate(last))
        results.append((output, last, torch.autograd.grad(loss, wanted)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@MACHINES
def test_gradients_reach_every_parameter(options):
    core = machine(**options)
    features, state, start = sequence(core, 4, 2, starts=0.0)
    start[0] = True
    core(features, state, start)[0].square().sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@MACHINES
def test_the_tapes_way_equals_the_sequence(options):
    """``record`` for each step and one ``backward_from``, against autograd of the whole."""
    core = machine(**options)
    features, state, start = sequence(core, 5, 2)
    start[2, 1] = True
    output, last = core(features, state, start)
    wanted = torch.autograd.grad(output.sin().sum(), (features, *core.parameters()))
    steps, outputs, now = [], [], state
    with torch.no_grad():
        for features_t, start_t in zip(features, start, strict=True):
            step, now, kept = core.record(features_t, now, start_t)
            steps.append(kept)
            outputs.append(step)
    torch.testing.assert_close((torch.stack(outputs), now), (output, last))
    kept = tuple(torch.stack(column).detach() for column in zip(*steps, strict=True))
    grad_features, gradients = core.backward_from(kept, output.detach().cos())
    torch.testing.assert_close((grad_features, *gradients), wanted)


def test_the_plain_formula_has_second_derivatives():
    core = machine(rows=3, width=2)
    core.by_hand = False
    features, state, start = sequence(core, 2, 1)

    def run(features):
        return core(features, state, start)[0]

    assert torch.autograd.gradgradcheck(run, (features,), fast_mode=True)


def test_ten_thousand_adversarial_states_give_finite_numbers_and_gradients():
    sizes, batch = HeadSizes(1, 2, 4, 1), 10_000
    size = 10 ** (torch.rand(batch, 1) * 8 - 2)
    raw = size * torch.randn(batch, sum(sizes.parts))
    raw[::7] = raw[::7].sign() * 1e4
    raw[1::7] = 0
    memory = 10 ** (torch.rand(batch, 1, 1) * 12 - 8) * torch.randn(batch, 4, 9)
    memory[::3] *= torch.randint(0, 2, (len(memory[::3]), 1, 9))  # rows of nothing
    memory[::11] = 0
    memory[1::11] = memory[1::11, :, :1]  # all rows alike
    previous = torch.softmax(1e3 * torch.randn(batch, sizes.heads, 9), -1)
    previous[::5] = torch.eye(9)[torch.randint(0, 9, (len(previous[::5]), sizes.heads))]
    for access in (plain_access, lambda *x: by_hand.AccessFunction.apply(*x)):
        inputs = [part.clone().requires_grad_() for part in (raw, memory, previous)]
        results = access(*inputs, sizes)
        assert all(part.isfinite().all() for part in results)
        gradients = torch.autograd.grad([part.sum() for part in results], inputs)
        assert all(part.isfinite().all() for part in gradients)


# ------------------------------------------------------------------------------------ sequences and state


@MACHINES
def test_a_sequence_equals_its_steps(options):
    core = machine(**options)
    features, state, start = sequence(core, 6, 3)
    output, last = core(features, state, start)
    now, outputs = state, []
    for features_t, start_t in zip(features, start, strict=True):
        step, now = core(features_t, now, start_t)
        outputs.append(step)
    torch.testing.assert_close((output, last), (torch.stack(outputs), now))
    assert output.shape == (6, 3, core.out_features)
    assert [part.shape for part in last] == [part.shape for part in core.initial_state(3)]


@MACHINES
def test_an_episode_start_within_a_sequence_begins_another(options):
    core = machine(**options)
    features, state, start = sequence(core, 7, 1, starts=0.0)
    start[4, 0] = True
    whole, last = core(features, state, start)
    first, _ = core(features[:4], state, start[:4])
    second, end = core(features[4:], core.initial_state(1), torch.zeros(3, 1, dtype=torch.bool))
    torch.testing.assert_close((whole, last), (torch.cat((first, second)), end))
    grad_features, *grad_state = torch.autograd.grad(whole[4:].square().sum(), (features, *state))
    assert not grad_features[:4].any() and grad_features[4:].any()
    assert not any(part.any() for part in grad_state)


@MACHINES
def test_a_spoilt_state_does_not_outlive_its_episode(options):
    core = machine(**options)
    features, state, _ = sequence(core, 2, 3)
    spoilt = tuple(torch.full_like(part, float("nan")) for part in state)
    start = torch.tensor([[True] * 3, [False] * 3])
    fresh = core(features, core.initial_state(3), start)
    torch.testing.assert_close(core(features, spoilt, start), fresh, rtol=0, atol=0)
    torch.testing.assert_close(core.reset(spoilt, start[0]), core.initial_state(3), rtol=0, atol=0)
    one = core.reset(state, torch.tensor([False, True, False]))
    for part, before, initial in zip(one, state, core.initial_state(3), strict=True):
        torch.testing.assert_close(part[[0, 2]], before[[0, 2]])
        torch.testing.assert_close(part[1], initial[1])


def test_rows_of_a_batch_do_not_see_each_other():
    core = machine()
    features, state, start = sequence(core, 5, 4)
    output, last = core(features, state, start)
    alone, alone_last = core(features[:, 2:3], tuple(part[2:3] for part in state), start[:, 2:3])
    torch.testing.assert_close(output[:, 2:3], alone)
    torch.testing.assert_close(tuple(part[2:3] for part in last), alone_last)


@CONTROLLERS
def test_the_initial_state_is_what_is_said(controller):
    for init, expected in (
        ("constant", 1e-6),
        ("learned", 1e-6),
        ("binary", None),
        ("positions", None),
        ("random", None),
    ):
        core = make_core("ntm", 3, 4, rows=9, width=5, controller=controller, memory_init=init, write_heads=2)
        memory, weighting, reads, *own = core.initial_state(2)
        assert memory.shape == (2, 9, 5) and weighting.shape == (2, 3, 9) and reads.shape == (2, 1, 5)
        assert [tuple(part.shape) for part in own] == ([(2, 4), (2, 4)] if controller == "lstm" else [])
        if expected is None:
            assert abs(memory.std() - 0.5) < 0.2
            core.resize(20)  # begins with the rows of the smaller one
            torch.testing.assert_close(core.initial_state(2)[0][:, :9], memory, rtol=0, atol=0)
        else:
            torch.testing.assert_close(memory, torch.full_like(memory, expected), rtol=0, atol=0)
        torch.testing.assert_close(weighting, torch.eye(9)[0].expand(2, 3, 9), rtol=0, atol=0)
        constant = {name for name, _ in core.named_parameters() if "memory" in name}
        assert constant == ({"start_memory"} if init == "learned" else set())
        assert not any(part.requires_grad for part in core.initial_state(2))


def test_states_can_be_saved_and_go_on(tmp_path):
    core = machine(read_heads=2)
    features, state, start = sequence(core, 6, 2)
    whole, _ = core(features, state, start)
    _, halfway = core(features[:3], state, start[:3])
    torch.save([part.detach() for part in halfway], tmp_path / "state.pt")
    restored = tuple(part.contiguous().clone() for part in torch.load(tmp_path / "state.pt"))
    torch.testing.assert_close(core(features[3:], restored, start[3:])[0], whole[3:])


@CONTROLLERS
def test_no_parameter_depends_on_the_number_of_rows(controller):
    for init in MEMORY_INITS:
        options = {"controller": controller, "memory_init": init}
        small, large = (make_core("ntm", 9, 10, rows=rows, **options) for rows in (3, 300))
        shapes = [{name: p.shape for name, p in core.state_dict().items()} for core in (small, large)]
        assert shapes[0] == shapes[1]
        large.load_state_dict(small.state_dict())


def test_trace_tells_what_happened():
    core = machine(read_heads=2, write_heads=1, shift_range=2)
    features, state, start = sequence(core, 4, 3, starts=0.0)
    output, last = core(features, state, start)
    traced, traced_last, trace = core.forward_with_trace(features, state, start)
    torch.testing.assert_close((traced, traced_last), (output, last))
    assert trace.read_weighting.shape == (4, 3, 2, 7) and trace.write_weighting.shape == (4, 3, 1, 7)
    torch.testing.assert_close(trace.memory[-1], last[0])
    torch.testing.assert_close(torch.cat((trace.read_weighting, trace.write_weighting), -2)[-1], last[1])
    torch.testing.assert_close(trace.reads.flatten(-2), output[..., 4:])
    torch.testing.assert_close(trace.read_weighting[1:] @ trace.memory[:-1], trace.reads[1:])
    heads = trace.heads
    assert heads.key.shape == (4, 3, 3, 3) and heads.shift.shape == (4, 3, 3, 5)
    assert heads.erase.shape == heads.add.shape == (4, 3, 1, 3) and heads.gate.shape == (4, 3, 3)
    assert heads.sharpening.min() >= 1 and heads.strength.min() >= 0
    single, _, one = core.forward_with_trace(features[0], state, start[0])
    torch.testing.assert_close(single, output[0])
    torch.testing.assert_close(one.memory, trace.memory[0])
    torch.testing.assert_close(one.heads.shift, heads.shift[0])


# -------------------------------------------------------------------------------- a machine set by hand


BITS, BIG = 8, 40.0


def copier(rows: int = 128) -> NTMCore:
    """A feed-forward machine that copies, by reasoning and not by training.

    A row holds the bits as ±1 and a mark: -1 in the first row written, +1 in all others. The write head moves on by
    a row in every step. So does the read head, but as the delimiter is seen it jumps to the mark and one row back.
    What is fed back says which step is the first: what is "read" before it has the mark.
    """
    width, bits, mark, first, delimiter = BITS + 1, range(BITS), BITS, BITS, BITS + 1
    core = make_core("ntm", BITS + 1, BITS + 2, rows=rows, width=width, controller="feedforward").double()
    assert isinstance(core, NTMCore)
    for parameter in core.parameters():
        parameter.detach().zero_()
    read, write = 0, 1
    core.start_reads.detach()[mark] = -BIG
    seen, fed_back = core.controller.input, core.controller.feedback.weight.detach()
    weight, bias = seen.weight.detach(), seen.bias.detach()
    for unit, column in (*((bit, bit) for bit in bits), (delimiter, BITS)):
        weight[unit, column] = 2 * BIG
    bias.fill_(-BIG)
    fed_back[first, mark] = -2 * BIG
    said = core.head.layer
    keys, add, erase, gate, strength, sharpening, shift = (
        list(zip(said.weight.detach()[part], said.bias.detach()[part], strict=True))
        for part in pieces(core.sizes)
    )
    keys[read * width + mark][1].fill_(-BIG)
    for bit in bits:
        add[bit][0][bit] = BIG
    add[mark][0][first] = -BIG
    for _, bias in (*erase, *sharpening):
        bias.fill_(BIG)
    gate[read][0][delimiter] = BIG
    gate[write][1].fill_(-BIG)
    strength[read][1].fill_(10 * BIG)
    forward, stay, backward = shift[3 * read : 3 * read + 3]
    forward[0][delimiter], backward[0][delimiter] = -BIG, BIG
    stay[1].fill_(-3 * BIG)
    shift[3 * write][1].fill_(2 * BIG)
    return core


def pieces(sizes: HeadSizes) -> list[slice]:
    """Where in the controller's numbers keys, add and erase vectors, gates, strengths, sharpenings, shifts lie."""
    written = sizes.write_heads * sizes.width
    n_heads = sizes.heads
    ends = np.cumsum(
        [n_heads * sizes.width, written, written, n_heads, n_heads, n_heads, n_heads * sizes.shifts]
    )
    return [slice(int(a), int(b)) for a, b in zip((0, *ends), ends, strict=False)]


def said_by(core: NTMCore, length: int, batch: int = 4):
    drawn = Copy(bits=BITS, min_length=length, max_length=length).draw(np.random.default_rng(length), batch)
    inputs = torch.from_numpy(drawn.inputs).double()
    start = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    start[0] = True
    with torch.no_grad():
        output, _, trace = core.forward_with_trace(inputs, core.initial_state(batch), start)
        torch.testing.assert_close(core(inputs, core.initial_state(batch), start)[0], output)
    reads = output[length + 1 :, :, core.size : core.size + BITS]
    return reads, 2 * torch.from_numpy(drawn.targets[length + 1 :]).double() - 1, trace


@pytest.mark.parametrize("length", [1, 2, 20, 120])
def test_a_machine_set_by_hand_copies_exactly(length):
    reads, expected, trace = said_by(copier(), length)
    torch.testing.assert_close(reads, expected, rtol=0, atol=1e-9)
    written = trace.write_weighting.argmax(-1).squeeze(-1)
    assert written.tolist() == [[(t + 1) % 128] * 4 for t in range(2 * length + 1)]


def test_a_memory_of_another_size_is_used_alike():
    core = copier(rows=64)
    reads, expected, trace = said_by(core, 20)
    core.resize(1000)
    more_reads, _, more = said_by(core, 20)
    torch.testing.assert_close(more_reads, reads, rtol=0, atol=1e-9)
    torch.testing.assert_close(more.memory[:, :, :64], trace.memory, rtol=0, atol=1e-9)
    assert more.memory.shape[2] == 1000
    core.resize(16)  # too few: the end is written over the beginning
    assert (said_by(core, 20)[0] - expected).abs().max() > 1


# ------------------------------------------------------------------------------------------- the rest


def test_heads_from_the_package_are_the_layer_in_front():
    sizes = HeadSizes(1, 1, 3, 1)
    core = machine(head="neurocoder", head_config={"slots": 6, "attention_heads": 2})
    assert core.head.out_features == sum(sizes.parts) == (3 + 6) + (3 * 3 + 6)  # M + 6 and 3 M + 6
    features, state, start = sequence(core, 3, 2)
    output, _ = core(features, state, start)
    torch.testing.assert_close(core.aux_loss(output), core.head.aux_loss())
    assert core.aux_loss(output) > 0
    balanced = machine(head="moe").eval()  # its gate is noisy in training
    output, _ = balanced(features, some_state(balanced, 2), start)
    expected = balanced.head.forward_with_aux(output[..., :4])[1]
    torch.testing.assert_close(balanced.aux_loss(output), expected)
    assert make_core("lstm", 3, 4).aux_loss(output) is None
    assert machine().aux_loss(output) == 0


def test_autocast_does_not_reach_the_memory():
    core = make_core("ntm", 3, 4)
    features, start = torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)
    exact = core(features, core.initial_state(2), start)
    traced = core.forward_with_trace(features, core.initial_state(2), start)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(core(features, core.initial_state(2), start), exact, rtol=0, atol=0)
        again = core.forward_with_trace(features, core.initial_state(2), start)
        torch.testing.assert_close(again, traced, rtol=0, atol=0)
        coarse = [
            call(features.bfloat16(), core.initial_state(2), start)[0]
            for call in (core, core.forward_with_trace)
        ]
    assert all(output.dtype == torch.float32 for output in coarse)


@pytest.fixture
def _unchecked(monkeypatch):
    """The checks of shapes that run in every other test are not made to be traced."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@CONTROLLERS
@pytest.mark.usefixtures("_unchecked")
def test_compilers_see_one_graph(controller):
    core = machine(controller=controller, write_heads=2)
    features, state, start = sequence(core, 3, 2)
    start[1, 0] = True
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


def test_it_learns_to_remember_a_bit():
    """A feed-forward controller has nothing but the memory to carry a bit over three steps."""
    core = make_core("ntm", 2, 16, rows=8, width=4, controller="feedforward")
    readout = torch.nn.Linear(core.out_features, 1)
    optimizer = torch.optim.Adam([*core.parameters(), *readout.parameters()], 1e-2)
    start = torch.zeros(5, 32, dtype=torch.bool)
    start[0] = True
    for _ in range(200):
        bits = torch.randint(0, 2, (32,)).float()
        features = torch.zeros(5, 32, 2)
        features[0, :, 0], features[4, :, 1] = 2 * bits - 1, 1
        output, _ = core(features, core.initial_state(32), start)
        logits = readout(output[-1]).squeeze(-1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, bits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_a_policy_acts_with_it_and_learns_from_its_tape():
    """What actors do: step by step with a tape, across an episode's end, then the gradient of the whole."""
    spaces = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32), gym.spaces.Discrete(3)
    policy = Policy(*spaces, PolicyConfig(core="ntm", core_size=8, head="linear")).double()
    observation = torch.randn(4, 2, 5, dtype=torch.float64)
    start = torch.tensor([[True, True], [False, False], [False, True], [False, False]])
    state, tape, logits = policy.initial_state(2), Tape(4), []
    with torch.no_grad():
        for observation_t, start_t in zip(observation, start, strict=True):
            logits_t, state = policy.act(observation_t, state, start_t, tape)
            logits.append(logits_t)
    results = []
    for given in (tape, None):
        output, _, _ = policy.evaluate(observation, policy.initial_state(2), start, given)
        loss = (100 * output.logits).sin().sum() + output.value.square().sum()
        results.append((output, torch.autograd.grad(loss, list(policy.parameters()))))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0][0].logits, torch.stack(logits))


def test_options_of_cores_are_known():
    options = core_options("ntm")
    assert options["rows"] == 128 and options["width"] == 20 and options["head"] == "linear"
    assert core_options("lstm") == core_options("gru") == {"layers": 1} and core_options("none") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 2}, "rows=2 must be >= 3, the shifts of shift_range=1"),
        ({"rows": 8, "shift_range": 4}, "rows=8 must be >= 9"),
        ({"read_heads": 0}, "read_heads=0 must be an integer >= 1"),
        ({"write_heads": 0}, "write_heads=0 must be an integer >= 1"),
        ({"width": 2.5}, "width=2.5 must be an integer >= 1"),
        ({"shift_range": -1}, "shift_range=-1 must be an integer >= 0"),
        ({"controller": "lstn"}, "unknown controller 'lstn'; did you mean 'lstm'?"),
        ({"memory_init": "constamt"}, "did you mean 'constant'?"),
        ({"row": 12}, "core 'ntm' has no option 'row'; did you mean 'rows'?"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ConfigError) as caught:
        make_core("ntm", 3, 4, **options)
    assert message in str(caught.value)


def test_other_cores_have_no_options_and_heads_speak_for_themselves():
    with pytest.raises(ConfigError, match="core 'lstm' has no option 'rows'"):
        make_core("lstm", 3, 4, rows=8)
    with pytest.raises(HeadError, match="head 'nsm' has no option 'program'; did you mean 'programs'"):
        make_core("ntm", 3, 4, head="nsm", head_config={"program": 2})
    core = make_core("ntm", 3, 4)
    with pytest.raises(ConfigError, match="rows=2 must be >= 3"):
        core.resize(2)
