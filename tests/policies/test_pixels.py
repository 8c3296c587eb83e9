"""Pixels against their own mean and deviation: equations by slow loops, the encoder that uses them, real Pong."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.envs import get_protocol, make_vec, random_observations
from neurocoder.policies import Policy, PolicyConfig, calibrate
from neurocoder.policies.encoder_base import PIXEL_GAIN
from neurocoder.policies.encoders import make_encoder
from neurocoder.policies.image_encoder import CHANNELS_LAST_FROM, IMAGE_NETS
from neurocoder.policies.pixels import LEAST_DEVIATION, PixelStandardisation, is_padding

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
    result = pixels(images, images.float())
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
    result = fitted(frames)(frames, frames.float())
    # means 64, 100, 8 (7.5, to even); deviations 64, 0 and ½, of which the last two count as 32
    assert result.flatten(1).tolist() == [[-1.0, 0.0, -1 / 32], [1.0, 0.0, 0.0]]


def test_until_it_has_seen_images_a_pixel_is_divided_by_255():
    images = grey(2, 3, 5, 4)
    torch.testing.assert_close(PixelStandardisation((3, 5, 4))(images, images.float()), images / 255)


def test_bfloat16_has_what_rounding_the_result_of_float32_gives():
    images = grey(50, 4, 9, 7)
    pixels = fitted(images)
    expected = pixels(images, images.float()).bfloat16()
    lowered = pixels.to(torch.bfloat16)(images, images.bfloat16())
    torch.testing.assert_close(lowered, expected, rtol=0, atol=0)


def test_what_pads_a_stack_is_left_out_and_counts_as_the_mean():
    frames = grey(6, 3, 4, 5).clamp_min(1)
    padded = frames.clone()
    padded[:2, 0] = 0
    padded[1, 1] = 0
    pixels = fitted(padded)
    for channel, first in enumerate((2, 0, 0)):
        kept = frames[first:] if channel == 0 else frames[[0, *range(2, 6)]] if channel == 1 else frames
        alone = fitted(kept[:, channel : channel + 1])
        assert torch.equal(pixels.mean[..., channel], alone.mean[..., 0])
        assert torch.equal(pixels.factor[..., channel], alone.factor[..., 0])
    for result in (
        pixels(padded, padded.float()),
        pixels(padded.repeat(9, 1, 1, 1), padded.repeat(9, 1, 1, 1).float())[-6:],
    ):
        assert not result[:2, 0].any() and not result[1, 1].any()
        assert torch.equal(result[2:], pixels(frames[2:], frames[2:].float()))
        assert torch.equal(result[0, 1:], pixels(frames[:1], frames[:1].float())[0, 1:])


def test_a_place_in_the_stack_that_was_always_padding_is_divided_by_255():
    frames = grey(4, 2, 3, 3).clamp_min(1)
    frames[:, 0] = 0
    later = grey(1, 2, 3, 3).clamp_min(1)
    torch.testing.assert_close(fitted(frames)(later, later.float())[:, 0], later[:, 0] / 255)


# -------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_an_encoder_sees_the_same_however_many_images_there_are(name):
    images = grey(CHANNELS_LAST_FROM, 4, 84, 84)
    images[3, :3] = images[30, 0] = 0  # a game's first picture, and its fourth
    encoder = make_encoder(name, (4, 84, 84), scaled=True, standardize=True)
    encoder.fit(images)
    many, few = encoder.scaled(images), torch.cat([encoder.scaled(part) for part in images.split(5)])
    torch.testing.assert_close(many, few, rtol=0, atol=0)
    torch.testing.assert_close(many, fitted(images)(images, images.float()), rtol=0, atol=0)
    assert encoder.scaled(images[:2].float()).equal(images[:2].float())  # floats are taken as they are


def test_images_may_come_one_by_one_under_vmap():
    images = grey(6, 4, 84, 84)
    images[2, :2] = 0
    encoder = make_encoder("a3c", (4, 84, 84), scaled=True, standardize=True)
    encoder.fit(images)
    each = torch.func.vmap(lambda image: encoder(image[None])[0])(images)
    torch.testing.assert_close(each, encoder(images))


def test_only_what_divides_by_255_starts_with_larger_weights():
    first = []
    for standardize in (False, True):
        torch.manual_seed(0)
        first.append(
            make_encoder("a3c", (4, 84, 84), scaled=True, standardize=standardize).convolutions[0].weight
        )
    assert torch.equal(first[0], PIXEL_GAIN * first[1])


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_where_pixels_are_standardised_layers_stay_as_drawn(core):
    config = PolicyConfig(core=core, encoder_config={"standardize": True})
    torch.manual_seed(0)
    policy = Policy(FRAMES, SIX, config)
    torch.manual_seed(0)
    twin = Policy(FRAMES, SIX, config)
    calibrate(policy, grey(8, 4, 84, 84))
    pairs = zip(policy.named_parameters(), twin.parameters(), strict=True)
    assert [name for (name, one), two in pairs if not torch.equal(one, two)] == [
        "encoder.pixels.mean",
        "encoder.pixels.factor",
    ]


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
    padded = is_padding(seen).flatten(1).any(1)
    assert 0 < padded.float().mean() < 0.1  # the first three of a game have zeros in their stack
    seen = seen[~padded]
    policy = Policy(FRAMES, SIX, PolicyConfig(core="none", encoder_config={"standardize": True}))
    calibrate(policy, seen)
    before, after = seen.float() / 255, policy.encoder.scaled(seen)
    assert after.mean(0).abs().max() <= 0.5 / LEAST_DEVIATION + 1e-6
    assert seen.float().std(0, correction=0).max() < LEAST_DEVIATION  # nothing is anywhere for long
    stands_out = after.abs() > 2
    assert 1e-4 < stands_out.float().mean() < 0.01  # the ball, and paddles where they seldom are

    def share_of_the_background(x: torch.Tensor) -> float:
        return float(x.mean(0).square().sum() / x.square().mean(0).sum())

    assert share_of_the_background(before) > 0.9
    assert share_of_the_background(after) < 0.01
