"""The released layer against a float64 oracle that loops, and the departures from the paper one by one."""

import math

import numpy as np
import pytest
import torch
from oracle import affine, sigmoid
from torch.nn import functional as F

from neurocoder.policies.heads import HeadError
from neurocoder.policies.heads import released as rl
from neurocoder.policies.heads.released import ReleasedNeurocoderLinear

STEPS = pytest.mark.parametrize("steps", [0, 1, 3])
RESIDUAL = pytest.mark.parametrize("residual", [True, False])
KEYS = pytest.mark.parametrize("content_keys", [True, False])
LEAST_USED = pytest.mark.parametrize("least_used", [0, 2])


def layer(steps=0, heads=2, **options) -> ReleasedNeurocoderLinear:
    settings = dict(slots=7, key_size=3, least_used=2) | options
    made = ReleasedNeurocoderLinear(5, 4, attention_steps=steps, attention_heads=heads, **settings).double()
    with torch.no_grad():  # the released start is so even that many terms hardly show
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def numpy(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()


# ------------------------------------------------------------------------------------------ oracle


def oracle_keys(made: ReleasedNeurocoderLinear) -> list[list[np.ndarray]]:
    keys = [list(numpy(key)) for key in (made.key_u, made.key_v, made.key_s)]
    if made.content_keys:
        keys[0] = [affine(made.key_net_u, row) for row in numpy(made.memory_u)]
        keys[1] = [affine(made.key_net_v, row) for row in numpy(made.memory_v)]
    return keys


def oracle_cosine(query: np.ndarray, key: np.ndarray) -> float:
    """Norms written out once per key dimension, and the inner product of these."""
    query_norm, key_norm = (math.sqrt(sum(entry**2 for entry in vector)) + 1e-6 for vector in (query, key))
    product = sum(a * b for a, b in zip(query, key, strict=True))
    return product / (sum(query_norm * key_norm for _ in query) + 1e-6)


def oracle_content(query: np.ndarray, keys: list[np.ndarray], factor: float) -> np.ndarray:
    scores = [math.exp(factor * oracle_cosine(query, key)) for key in keys]
    return np.array(scores) / sum(scores)


def oracle_lstm(made: ReleasedNeurocoderLinear, x: np.ndarray) -> list[np.ndarray]:
    """Hidden states of all steps; gates are ordered input, forget, candidate, output."""
    cell_net = made.controller
    w_x, w_h = numpy(cell_net.weight_ih), numpy(cell_net.weight_hh)
    bias = numpy(cell_net.bias_ih) + numpy(cell_net.bias_hh)
    hidden, cell = numpy(made.initial_state).copy()
    size = len(hidden)
    states = []
    for _ in range(made.attention_steps):
        pre = w_x @ x + w_h @ hidden + bias
        new_hidden, new_cell = np.zeros(size), np.zeros(size)
        for unit in range(size):
            write, keep, candidate, out = (pre[part * size + unit] for part in range(4))
            new_cell[unit] = sigmoid(keep) * cell[unit] + sigmoid(write) * math.tanh(candidate)
            new_hidden[unit] = sigmoid(out) * math.tanh(new_cell[unit])
        hidden, cell = new_hidden, new_cell
        states.append(hidden)
    return states


def oracle_attention(made: ReleasedNeurocoderLinear, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [3, R, P] for one input, and the logit of the residual's gate."""
    n_heads, n_key, n_slots = made.attention_heads, made.key_size, made.slots
    keys = oracle_keys(made)
    weights = [[], [], []]
    if made.attention_steps == 0:
        for memory in range(3):
            queries = affine(made.queries[memory], x)
            for head in range(n_heads):
                query = queries[head * n_key : (head + 1) * n_key]
                weights[memory].append(oracle_content(query, keys[memory], 1.0))
        return np.array(weights), affine(made.residual_gate, x)[0]
    states = oracle_lstm(made, x)
    for memory in range(3):
        least_used = [1.0 if slot < made.least_used else 0.0 for slot in range(n_slots)]
        for state in states:
            for head in range(n_heads):
                start = (memory * n_heads + head) * n_key
                row = oracle_content(state[start : start + n_key], keys[memory], 10.0)
                if made.least_used:
                    gates = affine(made.slot_gate, x)
                    row = row / max(row)
                    for slot in range(n_slots):
                        share = sigmoid(gates[memory * n_slots + slot])
                        row[slot] = row[slot] * (1 - share) + least_used[slot] * share
                weights[memory].append(row)
            unused = [1 - max(row[slot] for row in weights[memory]) for slot in range(n_slots)]
            threshold = sorted(unused, reverse=True)[made.least_used]
            least_used = [value if value > threshold else 0.0 for value in unused]
    return np.array(weights), states[-1][-1]


def oracle_program(made: ReleasedNeurocoderLinear, x: np.ndarray) -> np.ndarray:
    """W [in, out] for one input, component by component."""
    (w_u, w_v, w_s), gate = oracle_attention(made, x)
    memory_u, memory_v, memory_s = (numpy(m) for m in (made.memory_u, made.memory_v, made.memory_s))
    sigma, running = [], 0.0
    for row in w_s:
        running += math.log1p(math.exp(sum(w * value[0] for w, value in zip(row, memory_s, strict=True))))
        sigma.append(running)
    smallest = sigma[0]
    if made.attention_steps:
        sigma.reverse()
    program = np.zeros((made.in_features, made.out_features))
    for n, value in enumerate(sigma):
        u = sum(w_u[n, slot] * memory_u[slot] for slot in range(made.slots))
        v = sum(w_v[n, slot] * memory_v[slot] for slot in range(made.slots))
        program += value * np.outer(u, v)
    if made.residual is not None:
        program += sigmoid(gate) * smallest * numpy(made.residual)
    return program


@STEPS
@RESIDUAL
@KEYS
@LEAST_USED
@pytest.mark.parametrize("heads", [1, 2])
def test_forward_program_and_trace_agree_with_the_oracle(steps, heads, residual, content_keys, least_used):
    made = layer(steps, heads, residual=residual, content_keys=content_keys, least_used=least_used)
    x = torch.randn(2, made.in_features, dtype=torch.float64)
    (y, trace), program = made.forward_with_trace(x), made.program(x)
    for row, sample in enumerate(x.numpy()):
        expected = oracle_program(made, sample)
        np.testing.assert_allclose(numpy(program[row]), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(numpy(y[row]), sample @ expected, rtol=0, atol=1e-10)
        weights, gate = oracle_attention(made, sample)
        np.testing.assert_allclose(numpy(made.attention(x)[:, row]), weights, rtol=0, atol=1e-10)
        for part, reference in zip(trace[:3], weights, strict=True):
            np.testing.assert_allclose(numpy(part[row]), reference, rtol=0, atol=1e-10)
        assert trace.residual_gate[row].item() == pytest.approx(sigmoid(gate) if residual else 0.0)


@pytest.mark.parametrize("content_keys", [True, False])
def test_the_orthogonal_loss_agrees_with_the_entrywise_sum(content_keys):
    made = layer(orthogonality=0.3, content_keys=content_keys)
    expected = 0.0
    for key, memory in ((made.key_u, made.memory_u), (made.key_v, made.memory_v)):
        rows = [[*k, *m] for k, m in zip(key.tolist(), memory.tolist(), strict=True)]
        squares = 0.0
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                squares += (sum(p * q for p, q in zip(a, b, strict=True)) - (i == j)) ** 2
        expected += math.sqrt(squares)
    assert made.aux_loss().item() == pytest.approx(0.3 * expected, rel=1e-12)


# --------------------------------------------------------------------------------------- gradients


@STEPS
@RESIDUAL
def test_gradcheck(steps, residual):
    made = layer(steps, 1, residual=residual, slots=4, key_size=2, least_used=1)
    x = torch.randn(2, made.in_features, dtype=torch.float64, requires_grad=True)
    unused = made.unused_parameters
    names, values = zip(*(item for item in made.named_parameters() if item[0] not in unused), strict=True)

    def call(x, *parameters):
        used = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(made, used, x)

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


@STEPS
@RESIDUAL
@KEYS
@LEAST_USED
@pytest.mark.parametrize("orthogonality", [0.0, 1.0])
def test_all_parameters_but_those_listed_get_a_gradient(
    steps, residual, content_keys, least_used, orthogonality
):
    made = ReleasedNeurocoderLinear(
        *(6, 4),
        slots=9,
        attention_heads=2,
        attention_steps=steps,
        key_size=3,
        least_used=least_used,
        content_keys=content_keys,
        residual=residual,
        orthogonality=orthogonality,
    )
    (made(torch.randn(8, 6)).square().sum() + made.aux_loss()).backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == made.unused_parameters


def test_the_parameters_that_nothing_reads_are_those_of_the_release():
    assert layer(0).unused_parameters == ["bias", "residual_gate.weight", "residual_gate.bias"]
    assert layer(0, residual=True).unused_parameters == ["bias"]
    recurrent = ["bias", "component_map.weight", "component_map.bias"]
    assert layer(2).unused_parameters == recurrent
    assert layer(2, orthogonality=0.0).unused_parameters == ["key_u", "key_v", *recurrent]
    assert layer(2, orthogonality=0.0, content_keys=False).unused_parameters == recurrent


def test_parts_that_an_option_leaves_out_do_not_exist():
    once, steps = dict(layer(0).named_parameters()), dict(layer(2).named_parameters())
    assert not any(
        name.startswith(("controller", "initial_state", "slot_gate", "component")) for name in once
    )
    assert not any(name.startswith(("queries", "residual_gate")) for name in steps)
    assert steps["controller.weight_hh"].shape == (4 * 19, 19)  # 3HK + 1 units
    assert "slot_gate.weight" not in dict(layer(2, least_used=0).named_parameters())
    assert "key_net_u.weight" not in dict(layer(0, content_keys=False).named_parameters())


# -------------------------------------------------------------------------------------- departures


def test_the_cosine_is_divided_by_the_key_size():
    query, key = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    true = F.cosine_similarity(query[:, :, None], key, dim=-1)
    torch.testing.assert_close(
        rl.scaled_cosine(query, key) / true, torch.full_like(true, 0.2), rtol=1e-4, atol=0
    )
    unit = torch.eye(5, dtype=torch.float64)[:1]
    exact = 1 / (5 * (1 + 1e-6) ** 2 + 1e-6)
    assert rl.scaled_cosine(unit[None], unit).item() == pytest.approx(exact, rel=1e-14)
    assert rl.scaled_cosine(0 * unit[None], unit).item() == 0


def test_every_row_is_divided_by_its_largest_weight():
    weights = torch.tensor([[[0.1, 0.5, 0.4], [0.25, 0.25, 0.5]]])
    expected = torch.tensor([[[0.2, 1.0, 0.8], [0.5, 0.5, 1.0]]])
    torch.testing.assert_close(rl.peak_normalised(weights), expected)


def test_the_gate_is_of_the_slot_and_weighs_the_usage():
    gate = torch.tensor([[math.log(3.0), -math.log(3.0)]])
    content, least_used = torch.tensor([[[1.0, 0.4], [0.8, 1.0]]]), torch.tensor([[0.2, 0.6]])
    expected = torch.tensor([[[0.25 + 0.15, 0.3 + 0.15], [0.2 + 0.15, 0.75 + 0.15]]])
    torch.testing.assert_close(rl.slot_gated_attention(gate, content, least_used), expected)


def test_ties_at_the_threshold_leave_no_slot():
    usage = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.9, 0.1, 0.1, 0.1], [0.9, 0.0, 0.1, 0.1]])
    expected = torch.tensor([[0.0, 0.9, 0.0, 0.8], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(rl.unused_share(usage, 2), expected)


def test_singular_values_rise_in_one_read_and_fall_in_steps():
    log2 = math.log(2.0)
    torch.testing.assert_close(
        rl.rising_values(torch.zeros(1, 3)), torch.tensor([[log2, 2 * log2, 3 * log2]])
    )
    x = torch.randn(6, 5, dtype=torch.float64)
    for steps, sign in ((0, 1), (3, -1)):
        made = layer(steps)
        trace = made.trace(x)
        assert (sign * trace.sigma.diff(dim=-1) > 0).all()
        torch.testing.assert_close(made.smallest_sigma(trace), trace.sigma.amin(dim=-1))


def test_the_orthogonal_loss_is_not_squared():
    key, memory = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert rl.joint_orthogonal_loss(key, memory).item() == pytest.approx(math.hypot(4 - 1, 9 - 1))


def test_one_read_has_convex_rows_and_steps_have_not():
    x = torch.randn(3, 5, dtype=torch.float64)
    for made in (layer(0), layer(2, least_used=0)):
        totals = made.attention(x).sum(dim=-1)
        torch.testing.assert_close(totals, torch.ones_like(totals))
    assert (layer(2).attention(x).sum(dim=-1) - 1).abs().min() > 1e-3


def permute(made: ReleasedNeurocoderLinear, order: torch.Tensor) -> None:
    """Reorder the slots, together with everything that is stored for a slot."""
    with torch.no_grad():
        for rows in (made.memory_u, made.memory_v, made.memory_s, made.key_u, made.key_v, made.key_s):
            rows.copy_(rows[order])
        if made.slot_gate is not None:
            for gate in (made.slot_gate.weight, made.slot_gate.bias):
                for block in gate.split(made.slots):
                    block.copy_(block[order])


@KEYS
def test_permuting_the_slots_changes_nothing_in_one_read(content_keys):
    made = layer(0, content_keys=content_keys)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = made(x)
    permute(made, torch.randperm(made.slots))
    torch.testing.assert_close(made(x), before)


@KEYS
def test_the_first_steps_usage_singles_out_the_first_slots(content_keys):
    made = layer(3, content_keys=content_keys)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = made(x)
    permute(made, torch.tensor([1, 0, 6, 2, 5, 3, 4]))  # the first l_I = 2 slots stay the first two
    torch.testing.assert_close(made(x), before)
    permute(made, torch.tensor([2, 1, 0, 3, 4, 5, 6]))
    assert (made(x) - before).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("steps", [0, 2])
def test_the_start_is_the_releases(steps):
    made = ReleasedNeurocoderLinear(30, 20, attention_steps=steps, residual=True)
    for key, memory, width in (
        (made.key_u, made.memory_u, 30),
        (made.key_v, made.memory_v, 20),
        (made.key_s, made.memory_s, 1),
    ):
        bound = math.sqrt(6 / (50 + 5 + width))  # Xavier's, of the rows [key | value]
        for part in (key, memory):
            assert 0.85 * bound < part.abs().max() <= bound
    assert 0.9 * math.sqrt(6 / 50) < made.residual.abs().max() <= math.sqrt(6 / 50)
    if steps:
        bound = 5 / math.sqrt(30 + 151)
        for weight in (made.controller.weight_ih, made.controller.weight_hh):
            assert 0.99 * bound < weight.abs().max() <= bound
        assert not made.controller.bias_ih.any() and not made.controller.bias_hh.any()
        assert made.initial_state.std().item() == pytest.approx(0.05, rel=0.2)
    else:
        for query in made.queries:
            assert 0.95 * math.sqrt(6 / 80) < query.weight.abs().max() <= math.sqrt(6 / 80)
            assert query.bias.std().item() == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize("steps", [0, 2])
def test_output_scale_multiplies_the_output_once_at_the_start(steps):
    torch.manual_seed(3)
    plain = ReleasedNeurocoderLinear(6, 4, attention_steps=steps, residual=True, content_keys=False)
    torch.manual_seed(3)
    small = ReleasedNeurocoderLinear(
        6, 4, attention_steps=steps, residual=True, content_keys=False, output_scale=0.02
    )
    torch.testing.assert_close(small.memory_v, 0.02 * plain.memory_v)
    torch.testing.assert_close(small.residual, 0.02 * plain.residual)
    for name in ("memory_u", "memory_s", "key_u", "key_v", "key_s"):
        torch.testing.assert_close(getattr(small, name), getattr(plain, name), rtol=0, atol=0)
    x = torch.randn(3, 6)
    torch.testing.assert_close(small(x), 0.02 * plain(x))


# ------------------------------------------------------------------------------------ as any module


@pytest.mark.parametrize("steps", [0, 2])
def test_diagnostics_are_finite(steps):
    numbers = layer(steps).diagnostics(torch.randn(3, 5, dtype=torch.float64))
    assert set(numbers) == {"attention_entropy", "slot_usage", "input_variance", "effective_rank"}
    assert all(math.isfinite(number) for number in numbers.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(slots=0), "slots=0 must be"),
        (dict(slots=2.5), "slots=2.5 must be"),
        (dict(attention_heads=0), "attention_heads=0 must be"),
        (dict(attention_steps=-1), "attention_steps=-1 must be"),
        (dict(key_size=0), "key_size=0 must be"),
        (dict(least_used=-1), "least_used=-1 must be"),
        (dict(attention_steps=1, slots=5, least_used=5), "slots=5 must be > least_used=5"),
        (dict(content_keys="lk"), "content_keys='lk' must be True or False"),
        (dict(residual="n"), "residual='n' must be True or False"),
        (dict(orthogonality=-1.0), "orthogonality=-1.0 must be"),
        (dict(output_scale=0.0), "output_scale=0.0 must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message):
        ReleasedNeurocoderLinear(4, 3, **options)


def test_least_used_slots_do_not_matter_in_one_read():
    assert ReleasedNeurocoderLinear(4, 3, slots=2, least_used=5)(torch.zeros(4)).shape == (3,)
