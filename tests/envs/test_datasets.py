"""Data sets: official formats, checked before they are believed; downloads that are whole or not there."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neurocoder.envs import datasets as ds
from neurocoder.envs import downloads
from neurocoder.envs.datasets import CIFAR10_NAMES, CIFAR100_NAMES, DATASETS, load_dataset, read_idx
from neurocoder.envs.downloads import Archive, DataError, SingleFiles, unpack

SIZES = {"train": 30, "test": 10}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def mnist_files(seed: int = 0) -> dict[str, bytes]:
    generator = np.random.default_rng(seed)
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        n = SIZES[split]
        files[f"{prefix}-images-idx3-ubyte"] = idx(generator.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(generator.integers(0, 10, n, dtype=np.uint8))
    return files


def cifar_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    names = [*DATASETS["cifar10"].files["train"], "test_batch.bin"]
    rows = {name: 6 if name != "test_batch.bin" else 10 for name in names}
    records = {name: generator.integers(0, 256, (n, 3073), dtype=np.uint8) for name, n in rows.items()}
    for array in records.values():
        array[:, 0] %= 10
    return {name: array.tobytes() for name, array in records.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """MNIST and CIFAR-10 of a few images, no environment variable, a cache of our own, nothing remembered."""
    for name in ("mnist", "cifar10"):
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], sizes=SIZES))
    monkeypatch.delenv("NEUROCODER_DATA", raising=False)
    monkeypatch.setattr(ds, "cache_folder", lambda: tmp_path / "cache")
    ds._load.cache_clear()
    yield
    ds._load.cache_clear()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# ------------------------------------------------------------------------------------------- formats


def test_idx_files_are_read_plain_and_gzipped(tmp_path):
    files = mnist_files()
    write(tmp_path / "mnist", files)
    plain = load_dataset("mnist", "train", tmp_path)
    write(tmp_path / "z" / "mnist", {f"{name}.gz": gzip.compress(content) for name, content in files.items()})
    packed = load_dataset("mnist", "train", tmp_path / "z")
    expected = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(30, 1, 28, 28)
    for data in (plain, packed):
        np.testing.assert_array_equal(data.images, expected)
        assert data.labels.tolist() == list(files["train-labels-idx1-ubyte"][8:])
        assert data.images.dtype == np.uint8 and data.labels.dtype == np.int64
        assert data.provenance == f"MNIST, local, not the official bytes ({IMAGES}, {LABELS})"
        assert data.images.flags.c_contiguous and data.label_names == tuple("0123456789")
    for array in (plain.images, plain.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert load_dataset("mnist", "train", tmp_path).images is plain.images


def test_the_plain_file_counts_where_both_are_there(tmp_path):
    write(tmp_path / "mnist", {f"{name}.gz": gzip.compress(part) for name, part in mnist_files(1).items()})
    write(tmp_path / "mnist", mnist_files(2))
    labels = load_dataset("mnist", "test", tmp_path).labels
    assert labels.tolist() == list(mnist_files(2)["t10k-labels-idx1-ubyte"][8:])


def test_provenance_names_the_files_that_are_not_official(tmp_path, monkeypatch):
    files = mnist_files()
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], md5=md5))
    files[LABELS] = files[LABELS][:-1] + bytes([(files[LABELS][-1] + 1) % 10])
    write(tmp_path / "mnist", files)
    data = load_dataset("mnist", "train", tmp_path)
    assert data.provenance == f"MNIST, local, not the official bytes ({LABELS})"
    assert load_dataset("mnist", "test", tmp_path).provenance == "MNIST, official bytes"


def test_contents_unpacked_by_hand_are_official_if_they_are_known(tmp_path, monkeypatch):
    files = cifar_files()
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], md5=md5))
    write(
        tmp_path / "cifar-10-batches-bin", {f"{name}.gz": gzip.compress(part) for name, part in files.items()}
    )
    assert load_dataset("cifar10", "train", tmp_path).provenance == "CIFAR-10, official bytes"


def test_cifar_records_are_label_then_colours(tmp_path):
    files = cifar_files()
    write(tmp_path / "cifar-10-batches-bin", files)
    data = load_dataset("cifar10", "train", tmp_path)
    second = files["data_batch_2.bin"][3073 * 4 : 3073 * 5]
    assert data.labels[10] == second[0] and data.images[10, 2, 31, 31] == second[-1]
    assert data.images.flags.c_contiguous and data.label_names == CIFAR10_NAMES
    assert data.images[10, 1, 0, 0] == second[1 + 1024] and data.images.shape == (30, 3, 32, 32)


def test_cifar_100_has_two_labels_and_the_fine_one_counts(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "cifar100", replace(DATASETS["cifar100"], sizes=SIZES))
    rows = np.random.default_rng(0).integers(0, 20, (30, 3074), dtype=np.uint8)
    rows[:, 1] = np.arange(30) + 70
    write(tmp_path / "cifar-100-binary", {"train.bin": rows.tobytes(), "test.bin": rows[:10].tobytes()})
    data = load_dataset("cifar100", "train", tmp_path)
    assert data.labels.tolist() == list(range(70, 100)) and data.n_classes == 100
    assert data.provenance == "CIFAR-100, local, whose bytes could not be checked"
    assert data.images[3, 0, 0, 0] == rows[3, 2]
    assert (
        data.label_names == CIFAR100_NAMES == tuple(sorted(set(CIFAR100_NAMES)))
        and len(CIFAR100_NAMES) == 100
    )
    rows[4, 1] = 100
    write(tmp_path / "cifar-100-binary", {"train.bin": rows.tobytes()})
    ds._load.cache_clear()
    with pytest.raises(DataError, match=r"train\.bin: has the label 100, expected 0 to 99"):
        load_dataset("cifar100", "train", tmp_path)


def test_digits_need_no_files_and_no_image_is_in_both_splits():
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert len(train.labels) == DATASETS["digits"].sizes["train"] == 1442
    assert len(test.labels) == DATASETS["digits"].sizes["test"] == 355
    assert train.images.max() == 255 and train.images.shape[1:] == (1, 8, 8)
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}
    assert np.bincount(test.labels).min() >= 34
    assert train.provenance == test.provenance == "scikit-learn's digits"


def spoil(kind: str, files: dict[str, bytes]) -> None:
    whole = files[IMAGES]
    match kind:
        case "truncated":
            files[IMAGES] = whole[:-1]
        case "too long":
            files[IMAGES] = whole + b"x"
        case "magic":
            files[IMAGES] = b"\x00\x00\x0d\x03" + whole[4:]
        case "count":
            files[LABELS] = idx(np.zeros(29, np.uint8))
        case "huge":
            files[IMAGES] = bytes((0, 0, 8, 3)) + b"\xff" * 12 + whole[16:]
        case "label":
            files[LABELS] = files[LABELS][:-1] + b"\x0a"
        case "torn header":
            files[IMAGES] = whole[:10]
        case "empty":
            files[IMAGES] = b""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "holds only 23,535 bytes, expected 23,536"),
        ("too long", "holds more than 23,536 bytes"),
        ("magic", "starts with 00000d03, expected 00000803"),
        ("count", r"declares the shape \(29,\), expected \(30,\)"),
        ("huge", r"declares the shape \(4294967295"),
        ("label", "has the label 10, expected 0 to 9"),
        ("torn header", "holds only 10 bytes, expected 23,536"),
        ("empty", "holds only 0 bytes, expected 23,536"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, kind, message):
    files = mnist_files()
    spoil(kind, files)
    write(tmp_path / "mnist", files)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("mnist", "train", tmp_path)
    name = LABELS if kind in ("count", "label") else IMAGES
    assert str(caught.value).startswith(f"{tmp_path / 'mnist' / name}: ") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; put the official file there")


def test_a_gzip_file_is_unpacked_no_further_than_it_may_be(tmp_path, monkeypatch):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((2, 3), np.uint8)) + bytes(1 << 24)))
    sizes = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: sizes.append(size) or read(self, size))
    with pytest.raises(DataError, match="holds more than 18 bytes"):
        read_idx(path, (2, 3))
    assert sizes == [4 + 8 + 6 + 1]


@pytest.mark.parametrize("damage", ["empty", "header", "middle", "end", "checksum", "bits", "no gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    whole = files[f"{IMAGES}.gz"]
    cut = {"empty": 0, "header": 3, "middle": len(whole) // 2, "end": -1}
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    others = {"checksum": flipped, "bits": whole[:10] + b"\xff" + whole[11:], "no gzip": b"<html>"}
    files[f"{IMAGES}.gz"] = others[damage] if damage in others else whole[: cut[damage]]
    write(tmp_path / "mnist", files)
    with pytest.raises(
        DataError, match=rf"{IMAGES}\.gz: (damaged|holds only 0 bytes).*; put the official file there$"
    ):
        load_dataset("mnist", "train", tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "mnist", mnist_files())
    load_dataset("mnist", "train", tmp_path)
    ds._load.cache_clear()
    (tmp_path / "mnist" / LABELS).unlink()
    with pytest.raises(DataError, match=rf"{LABELS}: cannot be read \(No such file"):
        ds._load("mnist", "train", tmp_path / "mnist")


def test_a_torn_cifar_file_is_named(tmp_path):
    files = cifar_files()
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:-5]
    write(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(
        DataError, match=r"data_batch_3\.bin: holds only 18,433 bytes, expected 18,438 \(6 images of 3,073"
    ):
        load_dataset("cifar10", "train", tmp_path)
    assert len(load_dataset("cifar10", "test", tmp_path).labels) == 10
    write(tmp_path / "cifar-10-batches-bin", {"data_batch_3.bin": bytes(3073 * 7)})
    with pytest.raises(DataError, match=r"data_batch_3\.bin: holds more than 18,438 bytes"):
        load_dataset("cifar10", "train", tmp_path)


def test_the_cifar_file_with_a_wrong_label_is_named(tmp_path):
    files = cifar_files()
    files["data_batch_2.bin"] = b"\x0a" + files["data_batch_2.bin"][1:]
    write(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(DataError, match=r"data_batch_2\.bin: has the label 10, expected 0 to 9"):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("minst", "train", "did you mean 'mnist'"), ("mnist", "val", "split 'val'")],
)
def test_unknown_names_are_refused(name, split, message):
    with pytest.raises(DataError, match=message):
        load_dataset(name, split)


# ------------------------------------------------------------------------------------------ where it is


def test_the_variable_comes_before_the_cache(tmp_path, monkeypatch):
    write(tmp_path / "cache" / "mnist", mnist_files(1))
    write(tmp_path / "given" / "mnist", mnist_files(2))
    cached = load_dataset("mnist", "test").images
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path / "given"))
    assert (load_dataset("mnist", "test").images != cached).any()
    (tmp_path / "file").write_bytes(b"")
    for wrong in ("nowhere", "file"):
        monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path / wrong))
        with pytest.raises(DataError, match=rf"NEUROCODER_DATA=.*{wrong}: no such folder"):
            load_dataset("mnist", "test")


def test_what_is_there_only_in_part_is_said(tmp_path, monkeypatch):
    files = mnist_files()
    del files[LABELS]
    write(tmp_path / "mnist", files)
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"MNIST is not whole: {LABELS} missing"):
        load_dataset("mnist", "train")


def test_a_given_folder_is_the_only_place(tmp_path, monkeypatch):
    write(tmp_path / "cache" / "mnist", mnist_files())
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", "train", tmp_path / "other")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'other' / 'mnist'}: ") and "\n" not in text
    assert all(name in text for name in mnist_files())


# ------------------------------------------------------------------------------------------ downloads


@pytest.fixture
def requested():
    """Return what was asked of the mirror, in order."""
    return []


@pytest.fixture
def mirror(tmp_path, requested):
    """A web server of one folder, not a fast one: its address, and the folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Mirror(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            requested.append(self.path[1:])

        def copyfile(self, source, outputfile):
            for part in iter(lambda: source.read(4096), b""):
                time.sleep(0.005)
                outputfile.write(part)

    handler = functools.partial(Mirror, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    server.server_close()


def serve_mnist(monkeypatch, address: str, folder: Path) -> None:
    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    write(folder, files)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    contents = {name: hashlib.md5(content).hexdigest() for name, content in mnist_files().items()}
    download = SingleFiles(("http://127.0.0.1:9/", address), md5)  # nobody listens at the first
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], download=download, md5=contents))


def test_files_come_from_the_first_mirror_that_has_them(tmp_path, monkeypatch, mirror, capfd):
    serve_mnist(monkeypatch, *mirror)
    (tmp_path / "given").mkdir()
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path / "given"))  # not there: into the cache
    data = load_dataset("mnist", "train")
    assert data.provenance == "MNIST, official bytes" and len(data.labels) == 30
    assert sorted(
        path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")
    ) == ["mnist"]
    assert not any((tmp_path / "given").iterdir())
    assert capfd.readouterr().err.count("100%|") >= 4  # a bar for each file


def test_wrong_bytes_are_refused_and_nothing_stays(tmp_path, monkeypatch, mirror):
    serve_mnist(monkeypatch, *mirror)
    (mirror[1] / f"{LABELS}.gz").write_bytes(b"something else")
    with pytest.raises(
        DataError, match=rf"MNIST cannot be downloaded \(.*{LABELS}\.gz: not the official bytes\)"
    ):
        load_dataset("mnist", "train")
    assert not [path for path in (tmp_path / "cache").rglob("*") if not path.name.endswith(".lock")]


def test_a_failed_download_leaves_what_was_there(tmp_path, monkeypatch, mirror):
    serve_mnist(monkeypatch, *mirror)
    (mirror[1] / f"{LABELS}.gz").unlink()
    part = {IMAGES: mnist_files()[IMAGES]}
    write(tmp_path / "cache" / "mnist", part)
    with pytest.raises(DataError, match=r"MNIST cannot be downloaded \(.*HTTPError"):
        load_dataset("mnist", "train")
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.name: path.read_bytes() for path in left} == part


def test_a_full_disk_is_no_failed_download(tmp_path, monkeypatch, mirror):
    serve_mnist(monkeypatch, *mirror)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads.pooch, "retrieve", full)
    with pytest.raises(DataError, match="mnist: cannot be written: No space left on device"):
        load_dataset("mnist", "train")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]


def test_offline_says_which_files_to_put_where(tmp_path, monkeypatch):
    nobody = SingleFiles(("http://127.0.0.1:9/",), DATASETS["mnist"].download.md5)
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], download=nobody))
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", "train")
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "cache" / "mnist") in text
    assert all(name in text for name in mnist_files())


def archive(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def serve_cifar(monkeypatch, address: str, folder: Path, content: bytes) -> None:
    (folder / "cifar.tar.gz").write_bytes(content)
    download = Archive((f"{address}cifar.tar.gz",), hashlib.md5(content).hexdigest())
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], download=download))


def test_an_archive_is_official_until_a_byte_changes(tmp_path, monkeypatch, mirror):
    serve_cifar(monkeypatch, *mirror, archive({f"cifar-10/{n}": c for n, c in cifar_files().items()}))
    assert load_dataset("cifar10", "train").provenance == "CIFAR-10, official bytes"
    file = tmp_path / "cache" / "cifar-10-batches-bin" / "data_batch_1.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    ds._load.cache_clear()
    expected = "CIFAR-10, local, not the official bytes (data_batch_1.bin)"
    assert load_dataset("cifar10", "train").provenance == expected
    assert load_dataset("cifar10", "test").provenance == "CIFAR-10, official bytes"


def test_nothing_is_unpacked_outside_its_folder(tmp_path):
    link = tarfile.TarInfo("data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("data_batch_2.bin")
    device.type = tarfile.CHRTYPE
    files = cifar_files()
    members = {
        "data_batch_1.bin": link,
        "data_batch_2.bin": device,
        "/data_batch_3.bin": files["data_batch_3.bin"],
        "../../evil": b"evil",
        "../evil/data_batch_1.bin": files["data_batch_1.bin"],
        "x/data_batch_2.bin": files["data_batch_2.bin"],
        "x/data_batch_2.bin/": b"",
    }
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(archive(members))
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*")}
    unpack(packed, folder, [f"data_batch_{k}.bin" for k in (1, 2, 3)])
    new = {path for path in tmp_path.rglob("*")} - before
    assert new == {folder / f"data_batch_{k}.bin" for k in (1, 2, 3)}
    assert all(path.is_file() and not path.is_symlink() for path in new)
    assert (folder / "data_batch_1.bin").read_bytes() == files["data_batch_1.bin"]


def test_an_archive_that_lacks_a_file_or_is_torn_is_refused(tmp_path, monkeypatch, mirror):
    files = cifar_files()
    lost = {name: content for name, content in files.items() if name != "test_batch.bin"}
    serve_cifar(monkeypatch, *mirror, archive(lost))
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        load_dataset("cifar10", "train")
    serve_cifar(monkeypatch, *mirror, archive(files)[:-2000])
    with pytest.raises(DataError, match=r"damaged|lacks"):
        load_dataset("cifar10", "train")
    assert not (tmp_path / "cache" / "cifar-10-batches-bin").exists()


CHILD = """
import json, sys
from dataclasses import replace
from pathlib import Path
from neurocoder.envs import datasets as ds
from neurocoder.envs.downloads import SingleFiles
address, cache, sizes, md5 = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
ds.cache_folder = lambda: cache
download = SingleFiles((address,), md5)
ds.DATASETS["mnist"] = replace(ds.DATASETS["mnist"], sizes=sizes, download=download)
print("ready", flush=True)
input()
print(int(ds.load_dataset("mnist", "train").labels.sum()))
"""


def test_two_processes_may_fetch_at_once(tmp_path, monkeypatch, mirror, requested):
    serve_mnist(monkeypatch, *mirror)
    md5 = DATASETS["mnist"].download.md5
    arguments = [mirror[0], str(tmp_path / "cache"), json.dumps(SIZES), json.dumps(md5)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    whole = {path.name: path.stat().st_size for path in mirror[1].iterdir()}
    seen = 0
    while any(child.poll() is None for child in children):
        if (home := tmp_path / "cache" / "mnist").is_dir():
            assert {path.name: path.stat().st_size for path in home.iterdir()} == whole
            seen += 1
        time.sleep(0.001)
    outputs = [child.communicate() for child in children]
    assert seen and [out for out, _ in outputs] == [f"{sum(mnist_files()[LABELS][8:])}\n"] * 2, outputs
    assert sorted(requested) == sorted(whole)  # one fetched, the other waited


# ------------------------------------------------------------------------------------------ the real ones


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes"),
    [("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]), ("cifar10", [5000] * 10)],
)
def test_the_real_files(name, classes, monkeypatch, request):
    monkeypatch.undo()
    ds._load.cache_clear()
    data = load_dataset(name, "train")
    assert np.bincount(data.labels).tolist() == classes
    assert data.images.shape == (sum(classes), *DATASETS[name].image_shape)
    if name == "mnist":
        assert data.provenance == "MNIST, official bytes"
