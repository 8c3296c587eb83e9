"""Weights that someone else trained: from a file or a URL into a network, as data that is never executed."""

import importlib
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError

PRETRAINED = "pretrained"
"""Stands for the weights that were published with a network."""

UNCOUNTED = "num_batches_tracked"
"""A counter of batch normalisation that files older than it lack, and that nothing reads in evaluation."""

SLACK = 4
"""Larger than this many times the network's own tensors is no file of its weights: not read."""


def load_weights(
    network: nn.Module,
    weights: str,
    encoder: str,
    *,
    pretrained: Callable[[], Path],
    ignore: str,
) -> None:
    """Copy `weights` into `network`, in place.

    Parameters
    ----------
    weights
        A ``.safetensors`` file, a file that ``torch.save`` made of a state dict, an ``https://`` address of one
        whose name ends with its SHA-256 (``resnet18-f37072fd.pth``), or "pretrained".
    encoder
        Whose weights these are, for messages.
    pretrained
        Returns the file that "pretrained" stands for.
    ignore
        Tensors whose names begin so are left out: the classifier, which an encoder has none of.

    Raises
    ------
    ConfigError
        The file is missing, damaged, too large, holds anything but tensors, or those of another network.
    """
    if not isinstance(weights, str):
        raise ConfigError(
            f"weights={weights!r} of encoder {encoder!r} must be a file, an address or {PRETRAINED!r}"
        )
    if weights == PRETRAINED:
        file = pretrained()
    elif weights.startswith("https://"):
        file = downloaded(weights)
    else:
        file = Path(weights).expanduser()
    expected = network.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    found = read_tensors(file, encoder, SLACK * size)
    found = {name: tensor for name, tensor in found.items() if not name.startswith(ignore)}
    for name, tensor in expected.items():
        if name.endswith(UNCOUNTED):
            found.setdefault(name, tensor)
    where = f"weights of encoder {encoder!r}: {file}"
    for name in expected.keys() - found.keys() or found.keys() - expected.keys():
        which = "lacks" if name in expected else "has"
        raise ConfigError(f"{where}: {which} the tensor {name!r}: these are weights of another network")
    for name, tensor in expected.items():
        other = found[name]
        same_kind = other.is_floating_point() == tensor.is_floating_point() and other.layout == tensor.layout
        if other.shape != tensor.shape or not same_kind:
            raise ConfigError(
                f"{where}: {name} must be {tensor.dtype} {list(tensor.shape)}, got {other.dtype} "
                f"{list(other.shape)}"
            )
    network.load_state_dict(found)


def read_tensors(file: Path, encoder: str, limit: int) -> dict[str, Tensor]:
    """Return the tensors by name that `file` of at most `limit` bytes holds; see :func:`load_weights`."""
    where = f"weights of encoder {encoder!r}: {file}"
    if not file.is_file():
        raise ConfigError(f"{where}: no such file; give a .pth or .safetensors file, or {PRETRAINED!r}")
    if file.stat().st_size > limit:
        raise ConfigError(f"{where}: larger than {limit / 2**20:,.0f} MiB: not the weights of this network")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way it likes
        raise ConfigError(
            f"{where}: damaged, or more than tensors, which is refused ({type(error).__name__})"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise ConfigError(f"{where}: must hold a state dict, tensors by name, got {type(tensors).__name__}")
    return tensors


def downloaded(url: str) -> Path:
    """Return the file that `url` leads to, from torch's cache if it is there; its SHA-256 is in its name."""
    name = Path(urllib.parse.urlparse(url).path).name
    digest = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    if digest is None:
        raise ConfigError(
            f"weights {url}: the file's name must end with its SHA-256, as in resnet18-f37072fd.pth; download it "
            f"and give its path"
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), digest[1], progress=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"weights {url}: not to be had ({str(error).splitlines()[0]}); download it elsewhere and give its "
                f"path, or put it into {file.parent}"
            ) from None
    return file


def import_vision(module: str, encoder: str) -> ModuleType:
    """Return `module` of the optional packages for vision, or say how to install them."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"encoder {encoder!r} needs {module.replace('_', '-')}, which is not installed: "
            f'pip install "neurocoder[vision]"'
        ) from None
