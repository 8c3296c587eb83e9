"""The tape: acting's forward passes with the backward pass by hand, against autograd of a second forward pass."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig, image_encoder
from neurocoder.policies.cores import Core, RecurrentCore, State, make_core
from neurocoder.policies.encoders import make_encoder
from neurocoder.policies.tape import Tape, TapeError

SPACES = {
    "a3c": gym.spaces.Box(0, 255, (2, 36, 36), np.uint8),
    "nature": gym.spaces.Box(0, 255, (3, 48, 40), np.uint8),
    "a3g": gym.spaces.Box(-np.inf, np.inf, (1, 48, 42), np.float32),  # odd sizes before two of its poolings
    "a3c, standardised": gym.spaces.Box(0, 255, (2, 36, 36), np.uint8),
    "a3g, standardised": gym.spaces.Box(0, 255, (1, 48, 42), np.uint8),
    "mlp": gym.spaces.Box(-np.inf, np.inf, (6,), np.float32),
}
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
SIX = gym.spaces.Discrete(6)
HEAD_OPTIONS = {"linear": {"output_scale": 1.0}, "neurocoder": {"output_scale": 1.0, "slots": 7}}


@pytest.fixture(autouse=True)
def _autograd_is_the_oracle(monkeypatch) -> None:
    """Sequences without a tape take the plain loop: otherwise both sides would run backward by the same hand."""
    monkeypatch.setattr(RecurrentCore, "forward", Core.forward)


def made(encoder: str, core: str, head: str = "linear", dtype=torch.float64, space=None) -> Policy:
    """Return a policy; an `encoder` that is "standardised" has seen noise of various strength."""
    name = encoder.removesuffix(", standardised")
    config = PolicyConfig(
        encoder=name,
        core=core,
        core_size=10,
        head=head,
        head_config=HEAD_OPTIONS[head],
        encoder_config={} if name == encoder else {"standardize": True},
    )
    policy = Policy(space or SPACES[encoder], SIX, config).to(dtype)
    if name != encoder:
        shape = policy.observation_space.shape
        policy.encoder.fit((torch.rand(50, *shape) * torch.rand(shape) * 256).byte())
    return policy


def observations(policy: Policy, *leading: int) -> Tensor:
    space = policy.observation_space
    if space.dtype == np.uint8:
        seen = torch.randint(0, 256, (*leading, *space.shape), dtype=torch.uint8)
        if seen.shape[:-3].numel() > 1:
            seen.flatten(0, -4)[0, 0] = 0  # as before a game's first picture
        return seen
    return torch.randn(*leading, *space.shape, dtype=next(policy.parameters()).dtype)


def some_state(policy: Policy, batch: int) -> State:
    return tuple(torch.randn_like(part) for part in policy.initial_state(batch))


def acted(policy: Policy, tape: Tape, observation: Tensor, state: State, start: Tensor) -> State:
    """Act on every step as an actor does; return the last state."""
    with torch.no_grad():
        for observation_t, start_t in zip(observation, start, strict=True):
            _, state = policy.act(observation_t, state, start_t, tape)
    return state


def learned(policy: Policy, observation: Tensor, state: State, start: Tensor, tape: Tape | None) -> Tensor:
    """Add the gradients of some loss that depends on every output; return the features."""
    output, features, auxiliary = policy.evaluate(observation, state, start, tape)
    weight = torch.linspace(-1, 2, output.logits.numel(), dtype=output.logits.dtype)
    loss = (output.logits.flatten() * weight).sin().sum() + (output.value - 1).square().sum() + auxiliary
    loss.backward()
    return features.detach()


def of_learning(policy: Policy) -> dict[str, Tensor]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def gradients(policy: Policy, *arguments) -> tuple[Tensor, list[Tensor]]:
    policy.zero_grad()
    features = learned(policy, *arguments)
    return features, [parameter.grad.clone() for parameter in of_learning(policy).values()]


def assert_same(policy: Policy, rollout: tuple, tape: Tape, tolerance: float) -> None:
    features, by_tape = gradients(policy, *rollout, tape)
    expected_features, by_autograd = gradients(policy, *rollout, None)
    torch.testing.assert_close(features, expected_features, rtol=tolerance, atol=tolerance)
    for name, one, two in zip(of_learning(policy), by_tape, by_autograd, strict=True):
        assert two.abs().max() > 0, name
        assert (one - two).abs().max() <= tolerance * two.abs().max() + 1e-14, name


STARTS = {
    "1 step of 1, none": torch.tensor([[0]]),
    "1 step of 3, first": torch.tensor([[1, 0, 1]]),
    "7 steps of 1, none": torch.zeros(7, 1),
    "7 steps of 1, twice": torch.tensor([[0, 0, 0, 1, 1, 0, 0]]).t(),
    "7 steps of 3, first and later": torch.tensor(
        [[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    ),
}


@pytest.mark.parametrize("head", HEAD_OPTIONS)
@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
@pytest.mark.parametrize("encoder", SPACES)
def test_gradients_are_those_of_a_second_forward_pass(encoder, core, head, monkeypatch):
    policy = made(encoder, core, head)
    if encoder != "mlp":  # 21 images in chunks of 4 and 3
        monkeypatch.setattr(image_encoder, "CHUNK_VALUES", 4 * policy.encoder._largest)
    for start in list(STARTS.values())[0 if head == "linear" else -1 :]:
        start = start.bool()
        n_steps, batch = start.shape
        rollout = observations(policy, n_steps, batch), some_state(policy, batch), start
        tape = Tape(n_steps)
        acted(policy, tape, *rollout)
        assert_same(policy, rollout, tape, 1e-10)


@pytest.mark.parametrize(
    ("encoder", "core", "space"),
    [
        ("a3c", "lstm", FRAMES),
        ("a3c, standardised", "none", FRAMES),
        ("nature", "gru", FRAMES),
        ("a3g", "lstm", None),
    ],
)
def test_single_precision_on_large_batches(encoder, core, space):
    """33 games: channels-last from the first convolution on; 99 images: more than one chunk of real size."""
    policy = made(encoder, core, "neurocoder", torch.float32, space)
    rollout = observations(policy, 3, 33), some_state(policy, 33), torch.rand(3, 33) < 0.3
    tape = Tape(3)
    acted(policy, tape, *rollout)
    assert_same(policy, rollout, tape, 1e-4)


def test_an_image_larger_than_a_chunk_is_a_chunk(monkeypatch):
    policy = made("a3c", "none")
    monkeypatch.setattr(image_encoder, "CHUNK_VALUES", 1)
    rollout = observations(policy, 2, 2), (), torch.zeros(2, 2, dtype=torch.bool)
    tape = Tape(2)
    acted(policy, tape, *rollout)
    assert_same(policy, rollout, tape, 1e-10)


def test_rollout_after_rollout_in_the_same_memory():
    """State goes on, parameters change between rollouts, gradients accumulate where they are."""
    policy = made("a3c", "lstm", "neurocoder")
    vector = torch.zeros(sum(p.numel() for p in policy.parameters()), dtype=torch.float64)
    for parameter, part in zip(
        policy.parameters(), vector.split([p.numel() for p in policy.parameters()]), strict=True
    ):
        parameter.grad = part.view_as(parameter)
    tape, state = Tape(4), some_state(policy, 2)
    memory = None
    for _ in range(3):
        rollout = observations(policy, 4, 2), state, torch.rand(4, 2) < 0.3
        state = acted(policy, tape, *rollout)
        before = vector.clone()
        learned(policy, *rollout, tape)
        by_tape = vector - before
        vector.copy_(before)
        learned(policy, *rollout, None)
        torch.testing.assert_close(by_tape, vector - before, rtol=1e-10, atol=1e-10)
        _, follows, _ = policy(*rollout)
        torch.testing.assert_close(state, follows)
        addresses = [part.data_ptr() for part in tape._kept]
        assert memory in (None, addresses)
        assert not any(part.requires_grad for part in tape._kept)
        memory = addresses
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert all(
        p.grad.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
        for p in policy.parameters()
    )


def test_gradients_that_nothing_was_preset_for_share_no_memory():
    policy = made("mlp", "lstm")
    rollout = observations(policy, 2, 3), some_state(policy, 3), torch.zeros(2, 3, dtype=torch.bool)
    tape = Tape(2)
    acted(policy, tape, *rollout)
    learned(policy, *rollout, tape)
    addresses = [parameter.grad.data_ptr() for parameter in policy.parameters()]
    assert len(set(addresses)) == len(addresses)


def test_the_head_that_acts_is_prepared_once_a_rollout(monkeypatch):
    policy, tape, prepared = made("mlp", "none", "neurocoder"), Tape(3), []
    original = policy.actor.prepared
    monkeypatch.setattr(policy.actor, "prepared", lambda: prepared.append(len(tape)) or original())
    start = torch.zeros(2, dtype=torch.bool)
    for steps in (3, 2, 3):  # the second rollout is given up
        tape.clear()
        for _ in range(steps):
            observation = observations(policy, 2)
            with torch.no_grad():
                logits, _ = policy.act(observation, (), start, tape)
                expected, _ = policy.act(observation, (), start)
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert prepared == [1, 1, 1]


@pytest.mark.parametrize("encoder", ["a3c", "mlp"])
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(encoder):
    policy = made(encoder, "lstm")
    frozen = [*policy.encoder.parameters()][:2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    rollout = observations(policy, 3, 2), some_state(policy, 2), torch.zeros(3, 2, dtype=torch.bool)
    tape = Tape(3)
    acted(policy, tape, *rollout)
    results = []
    for each in (tape, None):
        policy.zero_grad()
        learned(policy, *rollout, each)
        results.append([p.grad.clone() for p in policy.parameters() if p.requires_grad])
        assert all(p.grad is None for p in frozen)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


class Averaging(Core):
    """A core of a stranger: it has a step and nothing by hand."""

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__(in_features)
        self.out_features = size
        self.layer = nn.Linear(in_features, size)

    def initial_state(self, batch_size: int) -> State:
        return (self.layer.weight.new_zeros(batch_size, self.out_features),)

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        average = (0.7 * state[0] + self.layer(features)).tanh()
        return average, (average,)


def test_a_core_with_nothing_but_a_step_can_be_taped():
    policy = made("mlp", "lstm")
    policy.core = Averaging(64, 10).double()
    for start in STARTS.values():
        start = start.bool()
        rollout = observations(policy, *start.shape), some_state(policy, start.shape[1]), start
        tape = Tape(len(start))
        acted(policy, tape, *rollout)
        assert_same(policy, rollout, tape, 1e-10)


def test_features_and_states_of_the_tape_are_not_its_memory():
    policy = made("mlp", "lstm")
    tape, observation = Tape(1), observations(policy, 2)
    start = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        _, state = policy.act(observation, some_state(policy, 2), start, tape)
    copies = [part.clone() for part in state]
    with torch.no_grad():
        policy.act(observation + 1, some_state(policy, 2), start, tape)
    torch.testing.assert_close(list(state), copies, rtol=0, atol=0)


# ----------------------------------------------------------------------------------------- bfloat16


def rounded(policy: Policy) -> Policy:
    """Return `policy` in float64 with its trunk's weights as bfloat16 has them."""
    exact = deepcopy(policy)
    with torch.no_grad():
        for module in (exact.encoder, exact.core):
            for parameter in module.parameters():
                parameter.copy_(parameter.bfloat16())
    return exact.double()


@pytest.mark.parametrize("core", ["none", "lstm", "gru", "two lstms"])
@pytest.mark.parametrize("encoder", ["a3c", "a3c, standardised", "nature", "a3g"])
def test_lowered_gradients_are_at_least_as_good_as_autocast_s(encoder, core, monkeypatch):
    """Both are compared with those of the rounded weights in float64."""
    policy = made(encoder, core.removeprefix("two ").removesuffix("s"), dtype=torch.float32)
    if core == "two lstms":
        policy.core = make_core("lstm", policy.encoder.out_features, 10, layers=2)
    monkeypatch.setattr(image_encoder, "BLOCKS_FROM", 1)
    monkeypatch.setattr(image_encoder, "CHUNK_VALUES", 4 * policy.encoder._largest)
    start = STARTS["7 steps of 3, first and later"].bool()
    rollout = observations(policy, *start.shape), some_state(policy, 3), start
    tape = Tape(7, lowered=True)
    with torch.autocast("cpu", torch.bfloat16):
        last = acted(policy, tape, *rollout)
        of_tape = gradients(policy, *rollout, tape)
        of_autocast = gradients(policy, *rollout, None)
    exact, (observation, state, _) = rounded(policy), rollout
    wide = observation if observation.dtype == torch.uint8 else observation.double()
    oracle = wide, tuple(part.double() for part in state), start
    of_exact = gradients(exact, *oracle, None)
    names = ["features", *of_learning(policy)]
    for name, one, two, true in zip(
        names, *([a, *b] for a, b in (of_tape, of_autocast, of_exact)), strict=True
    ):
        assert one.dtype == torch.float32
        error, usual, size = ((part - true).norm() for part in (one, two, torch.zeros_like(true)))
        assert error <= 1.25 * usual + 0.01 * size, name
        assert error <= 0.25 * size, name
    for one, true in zip(last, exact(*oracle)[1], strict=True):
        assert one.dtype == torch.float32
        assert (one - true).norm() <= 0.01 * true.norm()
    dtypes = [part.dtype for part in tape._kept[tape._n_encoder :]]
    assert dtypes.count(torch.bfloat16) == 1  # what the encoder gave the core


@pytest.mark.parametrize("encoder", ["a3c", "a3c, standardised"])
def test_what_is_acted_in_bfloat16_is_what_autocast_acts(encoder):
    policy = made(encoder, "none", dtype=torch.float32, space=FRAMES)
    observation, start = observations(policy, 5), torch.zeros(5, dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        by_tape, _ = policy.act(observation, (), start, Tape(1, lowered=True))
        by_autocast, _ = policy.act(observation, (), start)
    torch.testing.assert_close(by_tape, by_autocast, rtol=0, atol=0)


@torch.no_grad()
def test_a_small_share_is_not_lost_in_a_large_sum(monkeypatch):
    """In bfloat16 256 + 1 is 256: gradients of later chunks would vanish beside that of the first."""
    encoder = make_encoder("a3c", (4, 84, 84), scaled=True).bfloat16()
    observation = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    features, kept = encoder.record(observation)
    grad = torch.ones_like(features)
    images = [(observation[i : i + 1], tuple(part[i : i + 1] for part in kept)) for i in (0, 1)]
    grad[1] /= 1024
    parts = [encoder.backward_from(*image, grad[i : i + 1]) for i, image in enumerate(images)]
    monkeypatch.setattr(image_encoder, "CHUNK_VALUES", 1)  # every image is a chunk
    whole = encoder.backward_from(observation, kept, grad)
    for sum_of_both, one, other in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum_of_both - one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


def test_the_lowered_copy_follows_from_rollout_to_rollout():
    policy = made("a3c", "lstm", dtype=torch.float32)
    rollout = observations(policy, 2, 2), some_state(policy, 2), torch.zeros(2, 2, dtype=torch.bool)
    tape = Tape(2, lowered=True)
    for _ in range(2):
        acted(policy, tape, *rollout)
        features, _ = gradients(policy, *rollout, tape)
        fresh = Tape(2, lowered=True)
        acted(policy, fresh, *rollout)
        torch.testing.assert_close(features, gradients(policy, *rollout, fresh)[0], rtol=0, atol=0)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(-1.5)


def test_a_trunk_that_cannot_be_lowered_is_refused():
    for policy in (made("mlp", "lstm", dtype=torch.float32), made("a3c", "lstm", dtype=torch.float32)):
        if policy.encoder.lowerable:
            policy.core = Averaging(policy.encoder.out_features, 10)
        assert Tape.can_record(policy.encoder, policy.core)
        assert not Tape.can_record(policy.encoder, policy.core, lowered=True)
        observation, state, start = rollout_of(policy, 1, 2)
        with pytest.raises(TapeError, match="cannot be recorded in bfloat16"):
            policy.act(observation[0], state, start[0], Tape(1, lowered=True))


# ------------------------------------------------------------------------------------------- misuse


@pytest.fixture
def policy() -> Policy:
    return made("mlp", "lstm", dtype=torch.float32)


def rollout_of(policy: Policy, n_steps: int, batch: int) -> tuple[Tensor, State, Tensor]:
    start = torch.zeros(n_steps, batch, dtype=torch.bool)
    return observations(policy, n_steps, batch), policy.initial_state(batch), start


# ------------------------------------------------------------------------------------- looking back


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("core", ["none", "lstm"])
@pytest.mark.parametrize("encoder", ["a3c", "a3c, standardised"])
def test_features_alone_are_those_of_the_whole_tape(encoder, core, lowered):
    policy = made(encoder, core, "neurocoder", torch.float32)
    rollout = (
        observations(policy, 3, 2),
        some_state(policy, 2),
        STARTS["1 step of 3, first"].bool().t().repeat(1, 2),
    )
    whole, features = Tape(3, lowered=lowered), Tape(3, lowered=lowered, differentiable=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        last = [acted(policy, tape, *rollout) for tape in (whole, features)]
        with torch.no_grad():
            (one, seen, _), (two, seen_again, _) = (policy.evaluate(*rollout, t) for t in (whole, features))
    for ours, theirs in zip((*two, seen_again, *last[1]), (*one, seen, *last[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [len(part[0]) for part in features._kept] == [2]  # of two games, and nothing beside


def test_features_alone_have_no_gradients(policy):
    tape, rollout = Tape(2, differentiable=False), rollout_of(policy, 2, 3)
    acted(policy, tape, *rollout)
    with pytest.raises(TapeError, match="keeps features only"):
        policy.evaluate(*rollout, tape)


def test_a_tape_needs_a_step():
    with pytest.raises(ConfigError, match="n_steps=0 must be >= 1"):
        Tape(0)


def test_an_incomplete_rollout_is_refused(policy):
    tape, rollout = Tape(3), rollout_of(policy, 3, 2)
    with pytest.raises(TapeError, match="holds 0 of 3 steps"):
        policy.evaluate(*rollout, tape)
    acted(policy, tape, rollout[0][:2], rollout[1], rollout[2][:2])
    with pytest.raises(TapeError, match="holds 2 of 3 steps"):
        policy.evaluate(*rollout, tape)
    acted(policy, tape, *rollout)  # the third step, and two of the next rollout
    assert len(tape) == 2
    tape.clear()
    assert len(tape) == 0
    acted(policy, tape, *rollout)
    assert_same(policy, rollout, tape, 1e-4)


def test_another_batch_is_refused(policy):
    tape = Tape(2)
    acted(policy, tape, *rollout_of(policy, 2, 3))
    with pytest.raises(TapeError, match=r"a batch of 3 .* got a batch of 1"):  # and is not broadcast
        acted(policy, tape, *rollout_of(policy, 1, 1))
    for shape in ((2, 2), (3, 3)):
        with pytest.raises(TapeError, match=r"holds \[steps, batch\] = \[2, 3\]"):
            policy.evaluate(*rollout_of(policy, *shape), tape)


def test_another_network_is_refused(policy):
    tape = Tape(2)
    acted(policy, tape, *rollout_of(policy, 1, 3))
    with pytest.raises(TapeError, match="another network"):
        other = made("mlp", "gru", dtype=torch.float32)
        acted(other, tape, *rollout_of(other, 1, 3))


def test_autocast_is_refused(policy):
    observation, state, start = rollout_of(policy, 1, 2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TapeError, match="autocast is on"):
        policy.act(observation[0], state, start[0], Tape(1))


def test_a_backward_pass_over_a_rollout_that_was_recorded_over_is_refused(policy):
    tape, rollout = Tape(2), rollout_of(policy, 2, 3)
    acted(policy, tape, *rollout)
    _, features, _ = policy.evaluate(*rollout, tape)
    acted(policy, tape, *rollout_of(policy, 1, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        features.sum().backward()
