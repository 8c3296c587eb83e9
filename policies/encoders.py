"""The encoders there are, by name, and their options."""

import inspect
from collections.abc import Callable
from typing import Any

from neurocoder.errors import ConfigError, lookup, near
from neurocoder.policies.encoder_base import Encoder, image_shape
from neurocoder.policies.flat_encoders import MLPEncoder, ProjectionEncoder
from neurocoder.policies.image_encoder import IMAGE_NETS, ImageEncoder
from neurocoder.policies.vision import DenseNet100, EfficientNetLite0, LeNet, ResNet18


def _image(name: str) -> Callable[[tuple[int, ...], bool], Encoder]:
    def build(shape: tuple[int, ...], scaled: bool, *, standardize: bool = False) -> Encoder:
        return ImageEncoder(image_shape(name, shape), IMAGE_NETS[name], name, scaled, standardize)

    return build


ENCODERS: dict[str, Callable[..., Encoder]] = {
    **{name: _image(name) for name in IMAGE_NETS},
    "mlp": MLPEncoder,
    "projection": ProjectionEncoder,
    "lenet": LeNet,
    "densenet100": DenseNet100,
    "resnet18": ResNet18,
    "efficientnet_lite0": EfficientNetLite0,
}


def default_encoder(shape: tuple[int, ...]) -> str:
    """Return the name of the encoder that ``auto`` stands for: a3c for images, mlp for everything else."""
    return "a3c" if len(shape) == 3 else "mlp"


def encoder_options(name: str) -> dict[str, Any]:
    """Return the options of encoder `name` with their defaults."""
    parameters = inspect.signature(lookup(ENCODERS, name, "encoder")).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_encoder(name: str, shape: tuple[int, ...], scaled: bool = False, **options: Any) -> Encoder:
    """Return encoder `name` for observations of `shape` (without the batch dimension).

    `scaled` says that they are uint8, which the encoder divides by 255.

    Raises
    ------
    ConfigError
        An unknown name or option (near names are offered), a value that the encoder cannot use, or a shape.
    """
    known = encoder_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"encoder {name!r} has no option {option!r}{near(option, known)}")
    return ENCODERS[name](shape, scaled, **options)
