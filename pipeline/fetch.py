"""Fetch a public data set of real pictures: from this machine if a distribution's package is installed, else online.

    python -m pipeline.fetch fashion-mnist data/fashion-mnist

Every file is checked before it appears under its name. Correct files that exist already are kept. Other or damaged data
under these names is refused, since this command did not write it.
"""

import gzip
import hashlib
import http.client
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import tyro

from pipeline.command import InputError, run_command
from pipeline.format.manifest import DATASET_JSON
from pipeline.progress import progress_bar
from pipeline.sources.numbered_classes import CLASS_NAMES
from pipeline.system.files import atomic_file

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Origin and checksums of a data set.

    Attributes:
        origin: URL of the folder that holds the files.
        package: Name of Debian's package.
        package_folder: Folder of the package's files.
        files: File name -> SHA-256 of its uncompressed content, since distributions recompress files.
        class_names: Class names in the order of the labels.
    """

    origin: str
    package: str
    package_folder: Path
    files: Mapping[str, str]
    class_names: tuple[str, ...]


DATA_SETS = {
    # Xiao, Rasul, Vollgraf, "Fashion-MNIST" (2017). The digests were taken from Debian's files; with the gzip headers
    # of the origin restored, these have the MD5 sums that the authors publish (8d4fb7e6c68d591d4c3dfef9ec88bf0d, ...).
    "fashion-mnist": DataSet(
        origin="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        package="dataset-fashion-mnist",
        package_folder=Path("/usr/share/datasets/fashion-mnist"),
        files={
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.fetch`."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set: fashion-mnist."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the files."""


def fetch(name: str, out: Path) -> None:
    """Write a data set's files, and a list of its class names, into a folder.

    Args:
        name: Name of the data set.
        out: Folder for the files.

    Raises:
        InputError: The data set is unknown, unavailable, or not what was published; or the folder is a dataset, or
            holds other or damaged data under the names of its files.
    """
    if name not in DATA_SETS:
        raise InputError(f"data set {name!r} is unknown; known: {', '.join(DATA_SETS)}")
    if (out / DATASET_JSON).exists():
        raise InputError(f"{out} is a dataset, which holds only its own files; choose another folder")
    data_set = DATA_SETS[name]
    class_names = "".join(f"{class_name}\n" for class_name in data_set.class_names).encode()
    present = [file_name for file_name in data_set.files if (out / file_name).exists()]
    others = [file_name for file_name in present if content_sha256(out / file_name) != data_set.files[file_name]]
    if (out / CLASS_NAMES).exists() and (out / CLASS_NAMES).read_bytes() != class_names:
        others.append(CLASS_NAMES)
    if others:
        raise InputError(
            f"{out} already holds other or damaged data as {', '.join(others)}; remove it, or choose another folder "
            f"for {name}"
        )
    for file_name, digest in data_set.files.items():
        target = out / file_name
        if file_name in present:
            sys.stdout.write(f"{file_name}: already there\n")
            continue
        shipped = data_set.package_folder / file_name
        with atomic_file(target) as file:
            if shipped.exists():
                origin, remedy = str(shipped), f"reinstall Debian's package {data_set.package}"
                file.write(shipped.read_bytes())
            else:
                origin = data_set.origin + file_name
                remedy = f"check the network, or install Debian's package {data_set.package}"
                _download(origin, file, remedy)
            file.flush()
            if content_sha256(Path(file.name)) != digest:
                raise InputError(f"{origin} is not what was published (expected SHA-256: {digest}); {remedy}")
        sys.stdout.write(f"{file_name}: from {origin}\n")
    with atomic_file(out / CLASS_NAMES) as file:
        file.write(class_names)


def content_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a .gz file's uncompressed content, or None if it can't be decompressed."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None


def _download(url: str, file: IO[bytes], remedy: str) -> None:
    """Write the content of a URL into a file.

    Raises:
        InputError: The download failed; the message says why, and gives the remedy.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            num_bytes = int(response.headers.get("Content-Length", 0))
            with progress_bar(num_bytes, Path(url).name, "B", unit_scale=True) as bar:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"cannot download {url}: {reason}; {remedy}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    fetch(arguments.name, arguments.out)
    sys.stdout.write(f"data set: {arguments.out.absolute()}\n")
    return 0


if __name__ == "__main__":
    run_command(main)
