"""The composed policy: sizes, harmless start, explicit state, time dimension."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.envs import get_protocol, make_vec
from neurocoder.errors import ConfigError
from neurocoder.policies import CORES, ENCODERS, HEADS, Policy, PolicyConfig, spelled_out

FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
SMALL_FRAMES = gym.spaces.Box(-np.inf, np.inf, (1, 80, 80), np.float32)
VECTOR = gym.spaces.Box(-np.inf, np.inf, (6,), np.float32)
SIX = gym.spaces.Discrete(6)
LARGE = ("lenet", "densenet100", "resnet18", "efficientnet_lite0")
"""Encoders of colour images."""


def test_the_network_that_fits_the_papers_table_6_has_its_size():
    config = PolicyConfig(encoder="a3g", core="lstm", core_size=512, head="linear")
    policy = Policy(SMALL_FRAMES, SIX, config)
    assert sum(p.numel() for p in policy.parameters()) == 3_249_639


@pytest.mark.parametrize(
    ("encoder", "space", "features"),
    [("a3c", FRAMES, 256), ("nature", FRAMES, 512), ("a3g", SMALL_FRAMES, 1024), ("mlp", VECTOR, 64)],
)
def test_encoders_have_their_stated_widths(encoder, space, features):
    policy = Policy(space, SIX, PolicyConfig(encoder=encoder))
    observation = torch.as_tensor(np.stack([space.sample() for _ in range(2)]))
    assert policy.encoder(observation).shape == (2, features)


def pong(protocol: str) -> torch.Tensor:
    """Every other step of forty in eight games of Pong under random actions, [20, 8, channels, height, width]."""
    envs = make_vec("ALE/Pong-v5", 8, protocol=get_protocol(protocol))
    observation, _ = envs.reset(seed=1)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        seen.append(observation)
        observation, *_ = envs.step(rng.integers(0, 6, 8))
    envs.close()
    return torch.as_tensor(np.stack(seen))[::2]


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return pong("machado2018")


@pytest.fixture(scope="module")
def normalised_frames() -> torch.Tensor:
    return pong("neurocoder2020")


def assert_harmless(policy: Policy, observation: torch.Tensor) -> None:
    start = torch.zeros(observation.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        output, _, _ = policy(observation, policy.initial_state(observation.shape[1]), start)
    log_probs = output.logits.log_softmax(-1)
    kl_to_uniform = (log_probs.exp() * (log_probs + np.log(6))).sum(-1)
    assert kl_to_uniform.max() < 1e-3
    assert output.value.abs().max() < 0.05


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("encoder", ["a3c", "nature", "mlp"])
def test_a_fresh_policy_is_harmless_on_real_frames(head, core, encoder, frames):
    for seed in range(2):
        torch.manual_seed(seed)
        assert_harmless(Policy(FRAMES, SIX, PolicyConfig(encoder=encoder, core=core, head=head)), frames)


@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_policy_of_the_papers_size_is_harmless_on_its_frames(head, normalised_frames):
    config = PolicyConfig(encoder="a3g", core="lstm", core_size=512, head=head)
    for seed in range(2):
        torch.manual_seed(seed)
        assert_harmless(Policy(SMALL_FRAMES, SIX, config), normalised_frames)


def test_the_orthogonal_loss_under_adam_does_not_undo_the_harmless_start(frames):
    observation = frames
    policy = Policy(FRAMES, SIX)
    optimizer = torch.optim.Adam(policy.parameters(), lr=4e-4, eps=1e-5)
    for _ in range(300):
        optimizer.zero_grad()
        policy.aux_loss().backward()
        optimizer.step()
    start = torch.zeros(observation.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        output, _, _ = policy(observation, policy.initial_state(8), start)
    log_probs = output.logits.log_softmax(-1)
    assert (log_probs.exp() * (log_probs + np.log(6))).sum(-1).max() < 1e-2
    assert output.value.abs().max() < 0.2


@pytest.mark.parametrize("head", HEADS)
def test_a_small_initial_scale_does_not_slow_learning_down(head):
    """Ten Adam steps towards one action move the policy far: a gain in forward would hold it back."""
    torch.manual_seed(0)
    policy = Policy(VECTOR, SIX, PolicyConfig(core="none", head=head))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    x, start = torch.randn(64, 6), torch.zeros(64, dtype=torch.bool)
    for _ in range(20):
        optimizer.zero_grad()
        output, _, _ = policy(x, (), start)
        (-output.logits.log_softmax(-1)[:, 2].mean()).backward()
        optimizer.step()
    assert output.logits.softmax(-1)[:, 2].mean() > 0.8


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_a_sequence_equals_its_steps_and_episode_starts_forget(core):
    policy = Policy(VECTOR, SIX, PolicyConfig(core=core, core_size=16)).double()
    observation = torch.randn(5, 3, 6, dtype=torch.float64)
    start = torch.zeros(5, 3, dtype=torch.bool)
    start[2, 1] = True
    begin = tuple(torch.randn_like(part) for part in policy.initial_state(3))
    whole, last, trace = policy(observation, begin, start)
    state, logits = begin, []
    for t in range(5):
        output, state, _ = policy(observation[t], state, start[t])
        logits.append(output.logits)
    torch.testing.assert_close(whole.logits, torch.stack(logits))
    for part, other in zip(last, state, strict=True):
        torch.testing.assert_close(part, other)
    assert trace.actor.attention_u.shape == (5, 3, 4, 80)
    assert trace.critic.attention_u.shape == (5, 3, 4, 80)
    fresh, _, _ = policy(observation[2:, 1:2], policy.initial_state(1), start[2:, 1:2])
    torch.testing.assert_close(whole.logits[2:, 1:2], fresh.logits)


@pytest.mark.parametrize(
    ("head", "core"), [*((head, "lstm") for head in HEADS), *(("neurocoder", core) for core in CORES)]
)
def test_acting_and_the_value_alone_are_parts_of_forward_to_the_bit(head, core):
    policy = Policy(VECTOR, SIX, PolicyConfig(core=core, core_size=16, head=head)).eval()
    x, start = torch.randn(3, 6), torch.tensor([False, True, False])
    before = policy.initial_state(3)
    if core in ("lstm", "gru"):
        before = tuple(torch.randn_like(part) for part in before)
    output, state, _ = policy(x, before, start)
    logits, acted = policy.act(x, before, start)
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=0)
    torch.testing.assert_close(acted, state, rtol=0, atol=0)
    value = policy.value(x, before, start)
    assert value.shape == (3,) and value.abs().min() > 0
    torch.testing.assert_close(value, output.value, rtol=0, atol=0)


def test_a_predictor_has_the_value_0():
    policy = Policy(VECTOR, SIX, PolicyConfig(core="none", critic=False))
    start = torch.zeros(4, 3, dtype=torch.bool)
    assert policy.value(torch.randn(4, 3, 6), (), start).tolist() == [[0.0] * 3] * 4


def test_state_goes_in_and_comes_out_and_nothing_stays():
    policy = Policy(VECTOR, SIX, PolicyConfig(core="lstm"))
    x, start = torch.randn(2, 6), torch.zeros(2, dtype=torch.bool)
    state = policy.initial_state(2)
    first, _, _ = policy(x, state, start)
    second, _, _ = policy(x, state, start)
    torch.testing.assert_close(first.value, second.value, rtol=0, atol=0)
    assert not list(policy.buffers())


@pytest.mark.parametrize("encoder", ["a3c", "nature", "a3g", "mlp", "lenet"])  # more: test_encoders.py
@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_of_a_policy_gets_a_gradient(encoder, head):
    space = {"mlp": VECTOR, "a3g": SMALL_FRAMES}.get(encoder, FRAMES)
    policy = Policy(space, gym.spaces.Box(-1, 1, (2,), np.float32), PolicyConfig(encoder=encoder, head=head))
    observation = torch.as_tensor(np.stack([[space.sample() for _ in range(2)] for _ in range(2)]))
    output, _, _ = policy(observation, policy.initial_state(2), torch.zeros(2, 2, dtype=torch.bool))
    distribution = policy.distribution(output.logits)
    action = distribution.sample()
    loss = distribution.log_prob(action).sum() + output.value.square().sum() + policy.aux_loss()
    loss.backward()
    unused = {
        f"{part}.{name}"
        for part in ("actor", "critic")
        for name in getattr(policy.get_submodule(part), "unused_parameters", ())
    }
    assert bool(unused) == (
        head == "neurocoder-released"
    )  # the release carries some, and Table 6 counts them
    for name, parameter in policy.named_parameters():
        alive = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert alive == (name not in unused), name


def test_uint8_frames_are_scaled_and_large_batches_take_the_same_path():
    policy = Policy(FRAMES, SIX).double()
    frames = torch.randint(0, 256, (40, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(policy.encoder(frames), policy.encoder(frames.double() / 255))
    torch.testing.assert_close(policy.encoder(frames)[:3], policy.encoder(frames[:3]))


@pytest.mark.parametrize(
    ("space", "config", "message"),
    [
        (VECTOR, dict(encoder="a3c"), "needs image observations"),
        (
            gym.spaces.Box(0, 255, (3, 16, 16), np.uint8),
            dict(encoder="a3c"),
            "needs larger images than 16x16",
        ),
        (gym.spaces.Dict(a=VECTOR), {}, "expected a Box"),
    ],
)
def test_observations_that_do_not_fit_are_refused(space, config, message):
    with pytest.raises(ConfigError, match=message):
        Policy(space, SIX, PolicyConfig(**config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(encoder="natur"), "did you mean 'nature'"),
        (dict(core="lstn"), "did you mean 'lstm'"),
        (dict(head="linea"), "did you mean 'linear'"),
        (dict(core_size=0), "policy.core_size=0"),
        (dict(head_config={"slotz": 3}), "did you mean 'slots'"),
    ],
)
def test_names_and_values_are_checked_when_the_config_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**options)


CONFIGS = [
    *(PolicyConfig(encoder="mlp", head=head) for head in HEADS),
    *(PolicyConfig(encoder="mlp", core=core, head="linear", critic=False) for core in CORES),
    *(
        PolicyConfig(encoder=encoder, core="none", head="linear")
        for encoder in ENCODERS
        if encoder not in LARGE
    ),
    PolicyConfig(
        encoder="mlp", encoder_config={"layers_head": "neurocoder", "layers_head_config": {"slots": 7}}
    ),
    PolicyConfig(encoder="mlp", core="ntm", core_config={"head": "nsm", "rows": 9}),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_that_is_spelled_out_is_the_same_policy_and_depends_on_no_defaults(config, monkeypatch):
    space = VECTOR if config.encoder in ("mlp", "projection") else FRAMES
    torch.manual_seed(0)
    policy = Policy(space, SIX, config)
    whole = spelled_out(config)
    torch.manual_seed(0)
    again = Policy(space, SIX, whole)
    assert repr(again) == repr(policy) and spelled_out(whole) == whole
    for (name, ours), (other, theirs) in zip(
        policy.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs)
    monkeypatch.setattr("neurocoder.policies.heads.factory.SHARPNESS", 2.0)
    monkeypatch.setattr("neurocoder.policies.heads.factory.COMPONENTS", 3)
    assert repr(Policy(space, SIX, whole)) == repr(policy)


@pytest.mark.parametrize(
    ("head", "core"), [*((head, "none") for head in HEADS), *(("moe", core) for core in CORES)]
)
def test_under_autocast_everything_learners_ask_for_is_there(head, core):
    torch.manual_seed(0)
    policy = Policy(VECTOR, SIX, PolicyConfig(encoder="mlp", core=core, core_size=8, head=head))
    observation, start = torch.randn(3, 2, 6), torch.zeros(3, 2, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        output, _, _ = policy(observation, policy.initial_state(2), start)
        learned, features, auxiliary = policy.evaluate(observation, policy.initial_state(2), start)
        logits, _ = policy.act(observation[0], policy.initial_state(2), start[0])
        value = policy.value(observation, policy.initial_state(2), start)
        numbers = policy.diagnostics(features[-1])
    (learned.logits.square().mean() + learned.value.square().mean() + auxiliary).backward()
    kept = (output.logits, output.value, learned.logits, learned.value, logits, value, features, auxiliary)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in kept)
    assert all(np.isfinite(value) for value in numbers.values())
    assert numbers == policy.diagnostics(features[-1])
