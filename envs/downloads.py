"""Downloads of data sets: checked by hash, whole or not at all, by one process at a time."""

import errno
import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import pooch

from neurocoder.envs.registry import EnvError

RECEIPT = "official.json"
"""What a checked archive held: SHA-256 by file."""


LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""What is wrong here and not at the other end: another mirror would not help."""


class DataError(EnvError):
    """Raised when a data set is missing, damaged, or cannot be downloaded; names the file and what to do."""


@dataclass(frozen=True, slots=True)
class SingleFiles:
    """Files that are downloaded one by one: their md5 by name; `mirrors` are tried in order."""

    mirrors: tuple[str, ...]
    md5: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar archive that holds the files in a folder; `urls` are tried in order."""

    urls: tuple[str, ...]
    md5: str


Download = SingleFiles | Archive


def fetch(title: str, download: Download, home: Path, names: Collection[str]) -> None:
    """Download a data set's files, `names`, into the folder `home`.

    Raises
    ------
    DataError
        There is no connection, or what came is not what was expected; nothing is left behind.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with (
            filelock.FileLock(home.parent / f".{home.name}.lock"),
            tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as aside,
        ):
            if home.is_dir() and all(any(home.glob(f"{name}*")) for name in names):
                return  # another process was faster
            part = Path(aside) / "whole"
            part.mkdir()
            if isinstance(download, SingleFiles):
                for name, md5 in download.md5.items():
                    _retrieve([mirror + name for mirror in download.mirrors], md5, part / name)
            else:
                packed = Path(aside) / "archive"
                _retrieve(list(download.urls), download.md5, packed)
                unpack(packed, part, names)
                receipt = {path.name: _sha256(path) for path in part.iterdir()}
                (part / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", "utf-8")
            if home.exists():
                shutil.rmtree(home)  # what was there was not whole
            part.rename(home)
    except _Refused as error:
        raise DataError(
            f"{title} cannot be downloaded ({error}); put {', '.join(sorted(names))} into {home}"
        ) from None
    except OSError as error:
        raise DataError(f"{home}: cannot be written: {error.strerror or error}") from None


class _Refused(Exception):
    """No address gave the file."""


def _retrieve(urls: list[str], md5: str, target: Path) -> None:
    """Download from the first address that gives the right bytes."""
    # A .gz file is to come as it is, whatever the server could do to it on the way.
    headers = {"Accept-Encoding": "identity"}
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=30, headers=headers)
    last = ""
    for url in urls:
        try:
            pooch.retrieve(url, f"md5:{md5}", target.name, target.parent, downloader=downloader)
            return
        except Exception as error:  # requests' and urllib3's many, and pooch's own for a wrong hash
            if isinstance(error, OSError) and error.errno in LOCAL:
                raise
            wrong = isinstance(error, ValueError) and "hash" in str(error)
            last = f"{url}: {'not the official bytes' if wrong else type(error).__name__}"
            target.unlink(missing_ok=True)
    raise _Refused(last)


def unpack(packed: Path, folder: Path, names: Collection[str]) -> None:
    """Write the members of a tar archive whose file names are `names` into `folder`; anything else is left in it.

    Raises
    ------
    DataError
        The archive is damaged, or lacks one of them.
    """
    missing = set(names)
    try:
        with tarfile.open(packed) as archive:
            for member in archive:
                name = Path(member.name).name
                if name not in missing or not member.isfile():  # links and folders are not followed
                    continue
                content = archive.extractfile(member)
                assert content is not None
                with (folder / name).open("wb") as file:  # by its bare name: no path in the archive counts
                    shutil.copyfileobj(content, file)
                missing.remove(name)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{packed.name}: the archive is damaged: {error}") from None
    if missing:
        raise DataError(f"{packed.name}: the archive lacks {', '.join(sorted(missing))}")


def verified(folder: Path, paths: list[Path]) -> bool:
    """Whether `paths` are, byte for byte, what :func:`fetch` unpacked into `folder`."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text("utf-8"))
        return all(receipt.get(path.name) == _sha256(path) for path in paths)
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
