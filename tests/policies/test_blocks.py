"""Images in blocks: PyTorch's pixel_unshuffle, faster; an encoder that sees them so computes what it would without."""

import copy

import pytest
import torch
from torch.nn import functional as F

from neurocoder.policies import image_encoder
from neurocoder.policies.blocks import to_blocks
from neurocoder.policies.encoders import make_encoder
from neurocoder.policies.image_encoder import BLOCKS_FROM
from neurocoder.policies.pixels import PixelStandardisation


def grey(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.fixture
def cut(monkeypatch):
    """Return a list of the shapes that are cut into blocks from now on."""
    shapes = []
    monkeypatch.setattr(
        image_encoder, "to_blocks", lambda images: (shapes.append(images.shape), to_blocks(images))[1]
    )
    return shapes


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 3, 8, 12), (5, 4, 84, 84)])
def test_blocks_are_pixels_unshuffled_in_channels_last_memory(shape):
    images = grey(*shape)
    blocks = to_blocks(images)
    assert torch.equal(blocks, F.pixel_unshuffle(images, 4))
    assert blocks.permute(0, 2, 3, 1).is_contiguous()
    strided = grey(shape[0], 2, *shape[1:])[:, 1].transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(to_blocks(strided), F.pixel_unshuffle(strided, 4))


def test_a_convolution_in_steps_of_four_is_one_of_blocks():
    images, weight, bias = grey(3, 4, 20, 28), torch.randn(5, 4, 8, 8).double(), torch.randn(5).double()
    expected = F.conv2d(images.double(), weight, bias, stride=4)
    made = F.conv2d(to_blocks(images).double(), F.pixel_unshuffle(weight, 4), bias)
    torch.testing.assert_close(made, expected)


def test_blocks_are_standardised_as_images_are_to_the_bit():
    images = grey(40, 4, 12, 16)
    images[3, :3] = images[30, 0] = 0  # a game's first picture, and its fourth
    pixels = PixelStandardisation((4, 12, 16))
    pixels.fit(images)
    for some in (images, images[:3], images[4:6]):
        expected = pixels.bfloat16()(some, some.bfloat16())
        for dtype in (torch.bfloat16, torch.float32):  # its own numbers may be of either
            made = pixels.to(dtype).of_blocks(some, to_blocks(some).bfloat16())
            assert torch.equal(made, F.pixel_unshuffle(expected, 4))
    assert not made.float().isnan().any() and made.any()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", ["a3c", "nature"])
def test_features_and_gradients_are_as_good_as_those_of_whole_images(name, standardize, cut):
    """Both in bfloat16, and compared with the same weights in float64."""
    images = grey(BLOCKS_FROM, 4, 84, 84)
    images[0, :3] = 0
    encoder = make_encoder(name, (4, 84, 84), scaled=True, standardize=standardize)
    encoder.fit(images)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(parameter.bfloat16())

    def learned(network, lowered=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            features = network(images)
        features.double().square().mean().backward()
        return [features.double(), *(p.grad.double() for p in network.parameters() if p.grad is not None)]

    exact, whole = copy.deepcopy(encoder).double(), copy.deepcopy(encoder)
    whole._cuts_blocks = False
    true, usual = learned(exact, lowered=False), learned(whole)
    assert not cut
    made = learned(encoder)
    assert cut == [images.shape]
    for one, two, three in zip(made, usual, true, strict=True):
        error, error_of_whole, size = ((part - three).norm() for part in (one, two, torch.zeros_like(three)))
        assert error <= 1.25 * error_of_whole + 0.002 * size
        assert error <= 0.1 * size


def test_only_bfloat16_of_whole_blocks_is_cut(cut):
    for shape in ((4, 84, 84), (4, 44, 48)):
        encoder = make_encoder("a3c", shape, scaled=True)
        images = grey(2, *shape)
        for lowered, seen, count in (
            (False, images, 0),  # float32 gains nothing
            (True, images.float(), 0),
            (True, images, 1),
        ):
            cut.clear()
            with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
                encoder(seen)
            assert len(cut) == count
    cut.clear()
    with torch.autocast("cpu", torch.bfloat16):
        standardised = make_encoder("a3c", (4, 84, 84), scaled=True, standardize=True)
        standardised(grey(BLOCKS_FROM - 1, 4, 84, 84))  # too few for means to be cut as well
        make_encoder("a3c", (4, 42, 42), scaled=True)(grey(2, 4, 42, 42))  # half a block
        make_encoder("a3g", (4, 80, 80), scaled=True)(grey(2, 4, 80, 80))  # steps of 1, padded
        encoder = make_encoder("a3c", (4, 84, 84), scaled=True)
        torch.func.vmap(lambda image: encoder(image[None])[0])(grey(2, 4, 84, 84))
    assert not cut
