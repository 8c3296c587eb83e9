"""Pixels against their own mean and deviation: equations by slow loops, the encoder that uses them, real Pong."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.envs import get_protocol, make_vec, random_observations
from neurocoder.policies import Policy, PolicyConfig, calibrate
from neurocoder.policies.encoders import CHANNELS_LAST_FROM, IMAGE_NETS, make_encoder
from neurocoder.policies.pixels import LEAST_DEVIATION, PixelStandardisation

SIX = gym.spaces.Discrete(6)
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def grey(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def fitted(images: torch.Tensor) -> PixelStandardisation:
    pixels = PixelStandardisation(tuple(images.shape[1:]))
    pixels.fit(images)
    return pixels


# ------------------------------------------------------------------------------------------- equation


def test_a_pixel_is_measured_from_its_mean_in_deviations_by_slow_loops():
    images = grey(9, 2, 3, 4)
    pixels = fitted(images)
    result = pixels(images.float())
    for c, y, x in np.ndindex(2, 3, 4):
        values = [float(v) for v in images[:, c, y, x]]
        mean = sum(values) / len(values)
        deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        for value, found in zip(values, result[:, c, y, x], strict=True):
            # the mean is a whole grey level, and the factor has eight bits
            expected = (value - round(mean)) / max(deviation, LEAST_DEVIATION)
            assert float(found) == pytest.approx(expected, rel=2**-8)


def test_hand_numbers():
    frames = torch.tensor([[0, 100, 7], [128, 100, 8]], dtype=torch.uint8).view(2, 1, 1, 3)
    result = fitted(frames)(frames.float())
    # means 64, 100, 8 (7.5, to even); deviations 64, 0 and ½, of which the last two count as 32
    assert result.flatten(1).tolist() == [[-1.0, 0.0, -1 / 32], [1.0, 0.0, 0.0]]


def test_until_it_has_seen_images_a_pixel_is_divided_by_255():
    images = grey(2, 3, 5, 4)
    torch.testing.assert_close(PixelStandardisation((3, 5, 4))(images.float()), images / 255)


def test_bfloat16_has_what_rounding_the_result_of_float32_gives():
    images = grey(50, 4, 9, 7)
    pixels = fitted(images)
    expected = pixels(images.float()).bfloat16()
    lowered = pixels.to(torch.bfloat16)(images.bfloat16())
    torch.testing.assert_close(lowered, expected, rtol=0, atol=0)


def test_an_image_that_takes_a_gradient_is_left_as_it_is():
    images = grey(5, 1, 2, 2)
    pixels = fitted(images)
    x = images.float().requires_grad_()
    pixels(x).sum().backward()
    assert torch.equal(x, images.float())
    assert torch.equal(x.grad, pixels.factor.permute(2, 0, 1).expand(5, -1, -1, -1))


# -------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_an_encoder_sees_the_same_however_many_images_there_are(name):
    images = grey(CHANNELS_LAST_FROM, 4, 84, 84)
    encoder = make_encoder(name, (4, 84, 84), scaled=True, standardize=True)
    encoder.fit(images)
    many, few = encoder.scaled(images), torch.cat([encoder.scaled(part) for part in images.split(5)])
    torch.testing.assert_close(many, few, rtol=0, atol=0)
    torch.testing.assert_close(many, fitted(images)(images.float()), rtol=0, atol=0)
    assert encoder.scaled(images[:2].float()).equal(images[:2].float())  # floats are taken as they are


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_floating_point_observations_have_nothing_to_standardise(name):
    plain, asked = (make_encoder(name, (4, 84, 84), standardize=asked) for asked in (False, True))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in asked.named_parameters()]


def test_what_is_standardised_is_not_learned():
    encoder = make_encoder("a3c", (4, 84, 84), scaled=True, standardize=True)
    fixed = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert fixed == ["pixels.mean", "pixels.factor"]


# ------------------------------------------------------------------------------------------ real Pong


def test_in_pong_the_background_is_zero_and_what_moves_stands_out():
    make_envs = partial(make_vec, "ALE/Pong-v5", protocol=get_protocol("machado2018"))
    seen = torch.from_numpy(random_observations(make_envs, 2048, seed=0))
    policy = Policy(FRAMES, SIX, PolicyConfig(core="none", encoder_config={"standardize": True}))
    calibrate(policy, seen)
    before, after = seen.float() / 255, policy.encoder.scaled(seen)
    deviation = seen.float().std(0, correction=0)
    assert after.mean(0).abs().max() <= 0.5 / LEAST_DEVIATION + 1e-6
    moving = deviation > LEAST_DEVIATION
    assert 0.005 < moving.float().mean() < 0.2  # paddles, and the score
    torch.testing.assert_close(
        after.std(0, correction=0)[moving], torch.ones(int(moving.sum())), rtol=0.01, atol=0
    )

    def share_of_the_background(x: torch.Tensor) -> float:
        return float(x.mean(0).square().sum() / x.square().mean(0).sum())

    assert share_of_the_background(before) > 0.9
    assert share_of_the_background(after) < 0.01
