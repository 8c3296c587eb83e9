"""Data-dependent initialisation: every layer standardised over what was seen, and nothing else changed."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from neurocoder.envs import get_protocol, make_vec, random_observations
from neurocoder.policies import CORES, HEADS, Policy, PolicyConfig, calibrate
from neurocoder.policies.calibration import standardize_

SIX = gym.spaces.Discrete(6)
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
PONG = partial(make_vec, "ALE/Pong-v5", protocol=get_protocol("machado2018"))


@pytest.fixture(scope="module")
def pong() -> torch.Tensor:
    return torch.from_numpy(random_observations(PONG, 2048, seed=0))


def fresh(seed: int = 0, **config: str) -> Policy:
    torch.manual_seed(seed)
    return Policy(FRAMES, SIX, PolicyConfig(**config))


def constant_share(features: torch.Tensor) -> float:
    """Return what share of the features' power is the same for every observation."""
    return float(features.mean(0).square().sum() / features.square().mean(0).sum())


# ------------------------------------------------------------------------------------------- equation


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(5, 3, 2)])
def test_standardised_outputs_are_what_slow_loops_give(layer):
    layer = layer.double()
    x = torch.randn(7, 5, *[4] * (layer.weight.ndim - 2), dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        returned = standardize_(layer.weight, layer.bias, before.clone())
        after = layer(x)
    torch.testing.assert_close(returned, after)
    for channel in range(3):
        values = [float(v) for v in before[:, channel].flatten()]
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        expected = [(v - mean) / std for v in values]
        torch.testing.assert_close(after[:, channel].flatten(), torch.tensor(expected, dtype=torch.float64))


def test_a_channel_that_does_not_vary_is_shifted_but_not_scaled():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        standardize_(layer.weight, layer.bias, layer(x))
        torch.testing.assert_close(layer.weight, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        torch.testing.assert_close(layer(x), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


# --------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize(
    ("encoder", "core"),
    # a3g ends with a map, whose places share a bias: what is constant at one of them goes with a core's input.
    [
        (e, c)
        for e in ("a3c", "nature", "a3g", "mlp")
        for c in CORES
        if (e, c) != ("a3g", "none") and c != "ntm"
    ],
)
def test_what_stays_the_same_in_all_frames_of_pong_no_longer_fills_the_features(encoder, core, pong):
    frames = pong[::4]
    policy = fresh(encoder=encoder, core=core)
    steps = (
        len(frames),
        1,
    )  # every frame as the first of its episode: the core's output for that frame alone
    start = torch.ones(*steps, dtype=torch.bool)
    with torch.no_grad():
        before = [
            policy.features(f[None], policy.initial_state(1), s)[0]
            for f, s in zip(frames, start, strict=True)
        ]
        calibrate(policy, frames)
        after = [
            policy.features(f[None], policy.initial_state(1), s)[0]
            for f, s in zip(frames, start, strict=True)
        ]
    assert constant_share(torch.cat(before)) > 0.95
    assert constant_share(torch.cat(after)) < 0.5
    assert torch.cat(after).var(0).mean() > 5 * torch.cat(before).var(0).mean()


def test_every_layer_sees_mean_zero_and_deviation_one(pong):
    policy = fresh(encoder="a3c", core="lstm")
    calibrate(policy, pong)
    with torch.no_grad():
        first = policy.encoder.convolutions[0](policy.encoder.scaled(pong)).movedim(1, 0).flatten(1)
        features = policy.encoder(pong)
        gates = features @ policy.core.cell.weight_ih.t() + policy.core.cell.bias_ih
    for output in (first, gates.t()):
        torch.testing.assert_close(output.mean(1), torch.zeros(len(output)), atol=1e-3, rtol=0)
        torch.testing.assert_close(output.std(1), torch.ones(len(output)), atol=1e-2, rtol=0)


def test_heads_and_recurrent_weights_stay_as_they_were(pong):
    policy, twin = fresh(), fresh()
    calibrate(policy, pong)
    changed = {
        name
        for (name, one), two in zip(policy.named_parameters(), twin.parameters(), strict=True)
        if not torch.equal(one, two)
    }
    assert changed == {name for name, _ in policy.named_parameters() if name.startswith("encoder.")} | {
        "core.cell.weight_ih",
        "core.cell.bias_ih",
    }


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_a_calibrated_policy_starts_as_harmlessly(head, core, pong):
    policy = fresh(head=head, core=core)
    calibrate(policy, pong[1::2])
    frames = pong[::16].unsqueeze(1)
    start = torch.zeros(frames.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        output, _, _ = policy(frames, policy.initial_state(1), start)
    log_probs = output.logits.log_softmax(-1)
    assert (log_probs.exp() * (log_probs + np.log(6))).sum(-1).max() < 1e-3
    assert output.value.abs().max() < 0.05


def test_blank_frames_give_finite_weights():
    policy = fresh()
    calibrate(policy, torch.zeros(4, 4, 84, 84, dtype=torch.uint8))
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())


# ---------------------------------------------------------------------------------------- random play


def test_random_play_repeats_with_its_seed_and_counts_its_steps():
    one, two, other = (random_observations(PONG, 400, seed) for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert one.shape == (8 * 25, 4, 84, 84) and one.dtype == np.uint8  # every second round of 50
    assert (
        len(random_observations(partial(make_vec, "CartPole-v1"), 5_000, 0)) == 8 * 32
    )  # every 20th of 625 rounds
