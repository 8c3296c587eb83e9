"""Data sets of images: digits, MNIST, CIFAR-10 and CIFAR-100, in their official formats, as read-only arrays.

A folder of data sets holds ``mnist/`` (four IDX files), ``cifar-10-batches-bin/`` and ``cifar-100-binary/`` (``.bin``
files), each file plain or gzipped. Data sets are looked for in ``NEUROCODER_DATA``, then in the cache, into which what
is in neither is downloaded (``envs.downloads``). The digits come with scikit-learn and need no files.

Files are data from anywhere: no more of one is read than it must hold, and one that is not whole is never used in part.
Nothing is unpickled. Contents that are not the official ones are used, but said beside every figure.

    load_dataset("mnist", "train").images    # uint8 [60000, 1, 28, 28]
"""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pooch
from safetensors import SafetensorError, safe_open

from neurocoder.envs.downloads import Archive, DataError, Download, SingleFiles, fetch, verified
from neurocoder.errors import lookup

VARIABLE = "NEUROCODER_DATA"
SPLITS = ("train", "test")
OFFICIAL = "official bytes"
LOCAL = ", local, "
"""In the provenance of data that are not known to be the official bytes."""
REPLACE = "put the official file there"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images uint8 [N, C, H, W], or features of them float32 [N, D], and labels int64 [N] of one split, read-only; where
    they come from, in words."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    n_classes: int
    provenance: str
    label_names: tuple[str, ...]


Read = Callable[["Source", Path, str], tuple[np.ndarray, np.ndarray, dict[str, str]]]
"""Returns the images and labels of a split, and the md5 of the contents read, by file."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a data set is, known before it is read."""

    title: str
    image_shape: tuple[int, int, int]
    n_classes: int
    sizes: Mapping[str, int]
    """How many images, by split."""
    read: Read
    folder: str = ""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """File names by split."""
    download: Download | None = None
    md5: Mapping[str, str] = field(default_factory=dict)
    """Of the official contents, uncompressed, by file; where one is missing, only our own download can vouch for it."""
    label_names: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.label_names or tuple(map(str, range(self.n_classes)))


# ------------------------------------------------------------------------------------------- formats


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of `shape` in an IDX file, gzipped if its name ends in .gz.

    The format: bytes 0, 0, 8 (unsigned bytes), number of dimensions; each dimension as a big-endian 32-bit integer;
    data.

    Raises
    ------
    DataError
        It is no such file, declares another shape, or holds more or less than it declares.
    """
    return _parse_idx(path, _content(path, _idx_size(shape)), shape)


def _idx_size(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)


def _parse_idx(path: Path, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    header, expected = _idx_size(shape) - math.prod(shape), _idx_size(shape)
    magic = bytes((0, 0, 8, len(shape)))
    if len(content) >= header:
        if content[:4] != magic:
            raise DataError(
                f"{path}: starts with {content[:4].hex()}, expected {magic.hex()} (an IDX file of bytes); "
                f"{REPLACE}"
            )
        declared = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
        if declared != shape:
            raise DataError(f"{path}: declares the shape {declared}, expected {shape}; {REPLACE}")
    _check_size(path, content, expected, "the header and what it declares")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path, size: int) -> bytes:
    """Return a file's content, unpacked if its name ends in .gz; no more than one byte beyond `size`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read(size + 1)  # whatever a file of a few bytes would unpack to
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); {REPLACE}") from None


def _check_size(path: Path, content: bytes, size: int, meaning: str) -> None:
    if len(content) != size:
        held = f"more than {size:,}" if len(content) > size else f"only {len(content):,}"
        raise DataError(f"{path}: holds {held} bytes, expected {size:,} ({meaning}); {REPLACE}")


def _check_labels(path: Path, labels: np.ndarray, n_classes: int) -> None:
    if labels.size and (wrong := int(labels.max())) >= n_classes:
        raise DataError(f"{path}: has the label {wrong}, expected 0 to {n_classes - 1}; {REPLACE}")


def _either(path: Path) -> Path:
    """Return the plain file, or the gzipped one if only that is there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_mnist(source: Source, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    n = source.sizes[split]
    arrays, md5 = [], {}
    for name, shape in zip(source.files[split], ((n, *source.image_shape[1:]), (n,)), strict=True):
        path = _either(folder / name)
        content = _content(path, _idx_size(shape))
        arrays.append(_parse_idx(path, content, shape))
        md5[name] = _md5(content)
    images, labels = arrays
    _check_labels(path, labels, source.n_classes)
    return images[:, None], labels.astype(np.int64), md5


def _read_cifar(source: Source, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Records of label bytes (CIFAR-100: the coarse one first) and 3 · 32 · 32 pixels, colours first."""
    names = source.files[split]
    pixels = math.prod(source.image_shape)
    record = pixels + (1 if source.n_classes == 10 else 2)
    n = source.sizes[split] // len(names)
    images = np.empty((n * len(names), *source.image_shape), np.uint8)
    labels = np.empty(n * len(names), np.int64)
    md5 = {}
    for k, name in enumerate(names):
        path = _either(folder / name)
        content = _content(path, n * record)
        _check_size(path, content, n * record, f"{n:,} images of {record:,}")
        rows = np.frombuffer(content, np.uint8).reshape(n, record)
        own = slice(k * n, (k + 1) * n)
        labels[own] = rows[:, -pixels - 1]
        _check_labels(path, labels[own], source.n_classes)
        images[own] = rows[:, -pixels:].reshape(n, *source.image_shape)
        md5[name] = _md5(content)
    return images, labels, md5


def _read_digits(source: Source, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Of every class, in the order of the file, each fifth image is a test image; 0 … 16 becomes 0 … 255."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    labels = bunch.target
    rank = np.empty(len(labels), np.int64)
    for digit in range(source.n_classes):
        own = np.flatnonzero(labels == digit)
        rank[own] = np.arange(len(own))
    chosen = (rank % 5 == 4) == (split == "test")
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return images[:, None], labels[chosen].astype(np.int64), {}


# ------------------------------------------------------------------------------------------ catalogue

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST_FILES = {
    # name: md5 of the file as it is downloaded, of what is in it
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
CIFAR10_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_NAMES = tuple(_CIFAR100.split())
"""The fine labels, as in fine_label_names.txt."""
CIFAR = "https://www.cs.toronto.edu/~kriz/"

DATASETS: dict[str, Source] = {
    "digits": Source("digits", (1, 8, 8), 10, {"train": 1442, "test": 355}, _read_digits),
    "mnist": Source(
        "MNIST",
        (1, 28, 28),
        10,
        {"train": 60_000, "test": 10_000},
        _read_mnist,
        "mnist",
        {
            "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        },
        SingleFiles(
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            {f"{name}.gz": packed for name, (packed, _) in MNIST_FILES.items()},
        ),
        {name: content for name, (_, content) in MNIST_FILES.items()},
    ),
    "cifar10": Source(
        "CIFAR-10",
        (3, 32, 32),
        10,
        {"train": 50_000, "test": 10_000},
        _read_cifar,
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
        Archive((f"{CIFAR}cifar-10-binary.tar.gz",), "c32a1d4ab5d03f1284b67883e8d87530"),
        CIFAR10_MD5,
        CIFAR10_NAMES,
    ),
    "cifar100": Source(
        "CIFAR-100",
        (3, 32, 32),
        100,
        {"train": 50_000, "test": 10_000},
        _read_cifar,
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        Archive((f"{CIFAR}cifar-100-binary.tar.gz",), "03b5dce01913d631647c71ecec9e9cb8"),
        label_names=CIFAR100_NAMES,
    ),
}


# -------------------------------------------------------------------------------------------- loading


def load_dataset(name: str, split: str, folder: Path | None = None) -> Dataset:
    """Return a split of a data set; all that ask for it in one process share its arrays.

    Parameters
    ----------
    name
        digits, mnist, cifar10 or cifar100.
    split
        train or test.
    folder
        A folder of data sets, instead of ``NEUROCODER_DATA``, the cache and the download.

    Raises
    ------
    DataError
        It is nowhere and cannot be downloaded, or a file is damaged: which, and what to do.
    """
    source = lookup(DATASETS, name, "data set", DataError)
    lookup(dict.fromkeys(SPLITS), split, "split", DataError)
    return _load(name, split, _find(source, folder).absolute() if source.folder else Path())


@lru_cache(maxsize=8)
def _load(name: str, split: str, home: Path) -> Dataset:
    source = DATASETS[name]
    try:
        images, labels, md5 = source.read(source, home, split)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or home}: cannot be read ({reason}); {REPLACE}") from None
    images = np.ascontiguousarray(images)
    for array in (images, labels):
        array.flags.writeable = False
    provenance = _provenance(source, home, md5)
    return Dataset(source.title, images, labels, source.n_classes, provenance, source.names())


def _provenance(source: Source, home: Path, md5: Mapping[str, str]) -> str:
    """Say whether the contents that were read are the official ones, and which are not."""
    if not md5:
        return "scikit-learn's digits"
    foreign = [
        name for name in md5 if md5[name] != source.md5.get(name) and not verified(home, [home / name])
    ]
    if foreign:
        if not source.md5:
            return f"{source.title}{LOCAL}whose bytes could not be checked"
        return f"{source.title}{LOCAL}not the {OFFICIAL} ({', '.join(foreign)})"
    return f"{source.title}, {OFFICIAL}"


def features_folder(name: str, features: str) -> Path:
    """Return where `features` of data set `name` are, or are to be put: below ``NEUROCODER_DATA``, else in the cache."""
    given = os.environ.get(VARIABLE)
    folders = [
        place / "features" / f"{name}-{features}"
        for place in (*([Path(given)] if given else []), cache_folder())
    ]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def load_features(name: str, split: str, features: str) -> Dataset:
    """Return a split of a data set with float32 features [N, D] of its images in their place, standardised.

    They are those that ``neurocoder features`` stored: ``<split>.safetensors`` with one tensor, ``features``.

    Raises
    ------
    DataError
        They are not there, or not of these images.
    """
    lookup(DATASETS, name, "data set", DataError)
    lookup(dict.fromkeys(SPLITS), split, "split", DataError)
    if not features.replace("-", "").replace("_", "").replace(".", "").isalnum() or ".." in features:
        raise DataError(f"features={features!r}: expected a name of letters, digits, - and _")
    return _load_features(name, split, features, features_folder(name, features) / f"{split}.safetensors")


@lru_cache(maxsize=4)
def _load_features(name: str, split: str, features: str, file: Path) -> Dataset:
    source, images = DATASETS[name], load_dataset(name, split)
    make = f"make them: neurocoder features {name}"
    try:
        with safe_open(file, "numpy") as stored:
            part = stored.get_slice("features")
            shape, dtype = part.get_shape(), part.get_dtype()
            if len(shape) != 2 or shape[0] != len(images.labels) or dtype not in ("F16", "F32"):
                raise DataError(
                    f"{file}: {dtype} {shape} are no features of {len(images.labels)} images; {make} anew"
                )
            values = stored.get_tensor("features").astype(np.float32)
            made = (stored.metadata() or {}).get("made", "unknown")
    except FileNotFoundError:
        raise DataError(f"{file}: not there; {make}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: damaged ({error}); {make} anew") from None
    if not np.isfinite(values).all():
        raise DataError(f"{file}: holds numbers that are not finite; {make} anew")
    values.flags.writeable = False
    provenance = f"{images.provenance}; features of {made}"
    return Dataset(source.title, values, images.labels, source.n_classes, provenance, images.label_names)


def cache_folder() -> Path:
    """Return the folder into which data sets are downloaded."""
    return Path(pooch.os_cache("neurocoder"))


def _find(source: Source, folder: Path | None) -> Path:
    """Return the folder of the data set's files, downloading them if they are nowhere."""
    given = os.environ.get(VARIABLE)
    if folder is not None:
        places = [folder]
    elif given:
        if not Path(given).is_dir():
            raise DataError(
                f"{VARIABLE}={given}: no such folder; set it to a folder of data sets, or unset it"
            )
        places = [Path(given), cache_folder()]
    else:
        places = [cache_folder()]
    names = [name for split in SPLITS for name in source.files[split]]
    for place in places:
        home = place / source.folder
        missing = [name for name in names if not _either(home / name).is_file()]
        if not missing:
            return home
        if len(missing) < len(names) and (folder is not None or place != cache_folder()):
            raise DataError(
                f"{home}: {source.title} is not whole: {', '.join(missing)} missing; put what is missing there"
            )
    home = places[-1] / source.folder
    if folder is None and source.download is not None:
        fetch(source.title, source.download, home, names)
        return home
    raise DataError(
        f"{home}: {source.title} is not there; put {', '.join(names)} there, each plain or as .gz"
    )
