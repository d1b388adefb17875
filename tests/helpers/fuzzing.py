"""Damaged inputs for all readers of outside bytes, and a process of its own that reads them.

`python tests/fuzzing.py READER:SEED:COUNT ...` reads the inputs of COUNT seeds from SEED on, with bounded memory and
time, and prints a line per seed that was not read as it should be: each gives the right samples or one InputError of
one line (RejectedPicture for pictures).
"""

import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.command import InputError
from pipeline.paths import CHECKOUT
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.sources.base import SAMPLE_SCHEMA, Listing
from pipeline.sources.detect import open_source
from pipeline.sources.devkit import DEVKIT_ARCHIVE, DEVKIT_GROUND_TRUTH, DEVKIT_META, read_devkit
from pipeline.sources.text import decode_lines
from pipeline.synthesize import synthesize

_MAX_SECONDS = 20  # for one input
_MAX_BYTES = 2**30  # beyond what the process has when all libraries are loaded
_FIELDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def picture(number: int, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """Return a small picture that differs for each number."""
    pixels = np.random.Generator(np.random.Philox(key=number)).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


# Good inputs


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 1.5
    tar.addfile(info, io.BytesIO(content))


def _make_tars(root: Path) -> None:
    for name, tar_format in (("train-0.tar", tarfile.USTAR_FORMAT), ("val-0.tar", tarfile.PAX_FORMAT)):
        with tarfile.open(root / name, "w", format=tar_format) as tar:
            for number in range(4):
                _add(tar, f"folder/{number}.jpg", picture(number))
                if number % 2:
                    _add(tar, f"folder/{number}.json", json.dumps({"label": number}).encode())
                else:
                    _add(tar, f"folder/{number}.cls", b"%d" % number)
            link = tarfile.TarInfo("folder/9.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "folder/0.jpg"
            tar.addfile(link)
            _add(tar, "folder/9.cls", b"3")
            _add(tar, "n" * 90 + ".jpg", picture(9))
            _add(tar, "n" * 90 + ".cls", b"1")
    (root / "classes.txt").write_text("cat\ndog\nox\ncow\n")


def _make_idx(root: Path) -> None:
    for prefix, ending in (("train", ".gz"), ("t10k", "")):
        for name, array in (("images-idx3-ubyte", np.arange(48).reshape(4, 3, 4)), ("labels-idx1-ubyte", np.arange(4))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.astype(np.uint8).tobytes()
            (root / f"{prefix}-{name}{ending}").write_bytes(gzip.compress(content, mtime=0) if ending else content)


def _make_cifar(root: Path) -> None:
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (root / name).write_bytes(b"\1" + bytes(range(256)) * 12 + b"\0" + bytes(3072))
    (root / "batches.meta.txt").write_text("airplane\nautomobile\n\n")


def _make_parquet(root: Path) -> None:
    features = {"label": {"names": ["cat", "dog", "ox"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    for name in ("train-0-of-1.parquet", "test-0-of-1.parquet"):
        images = [{"bytes": picture(row), "path": f"{row}.jpg"} for row in range(6)]
        table = pa.table({"image": images, "label": [0, 1, 2, 0, 1, 2]}, schema=schema)
        pq.write_table(table, root / name, row_group_size=4, write_page_checksum=False)


def _make_official(root: Path) -> None:
    synthesize(root, classes=2, train_per_class=2, val_per_class=1, max_side=24)


def _make_devkit(root: Path) -> None:
    """Unpack the devkit, so that what is damaged is not the compression alone."""
    _make_official(root)
    with tarfile.open(root / DEVKIT_ARCHIVE) as tar:
        contents = [tar.extractfile(name) for name in (DEVKIT_META, DEVKIT_GROUND_TRUTH)]
        for name, file in zip(("meta.mat", "truth.txt"), contents, strict=True):
            assert file is not None
            (root / name).write_bytes(file.read())
    for path in root.glob("*.tar*"):
        path.unlink()


def _make_texts(root: Path) -> None:
    (root / "a.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 Käfig\n")
    (root / "b.txt").write_bytes("one\r\ntwo\r\n".encode("utf-8-sig"))
    (root / "c.txt").write_bytes("one\r\ntwo\r\n".encode("utf-16"))


def _make_pictures(root: Path) -> None:
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA")]
    kinds += [("GIF", "P"), ("WEBP", "RGB"), ("TIFF", "RGB"), ("BMP", "RGB"), ("PPM", "RGB")]
    for number, (kind, mode) in enumerate(kinds):
        (root / f"{number}.bin").write_bytes(picture(number, kind, mode))
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "exif.bin").write_bytes(picture(20, exif=exif.tobytes()))
    (root / "progressive.bin").write_bytes(picture(21, progressive=True))


# What must hold of a damaged one


def _read_source(layout: str) -> Callable[[Path, Path], None]:
    def read(root: Path, _: Path) -> None:
        source = open_source(root, layout)
        listing = source.list_samples()
        check_listing(root, listing)
        for table in listing.splits.values():
            for row in table.to_pylist():
                content = source.read(row["file"], row["offset"], row["num_bytes"])
                assert isinstance(content, bytes | np.ndarray)

    return read


def check_listing(root: Path, listing: Listing) -> None:
    """Check that a listing is sound: in range, within its files, and that its counts add up."""
    num_samples = 0
    for table in listing.splits.values():
        assert table.schema == SAMPLE_SCHEMA
        names = table["source"].to_pylist()
        assert len(set(names)) == len(names)
        num_samples += len(names)
        for row in table.to_pylist():
            assert 0 <= row["class_index"] < len(listing.classes)
            assert row["offset"] >= 0 and row["num_bytes"] >= 0
            if row["file"].endswith((".tar", ".bin")):
                assert row["offset"] + row["num_bytes"] <= (root / row["file"]).stat().st_size
    if listing.members is not None:
        left_out = sum(found.num_files for found in listing.members.left_out.values())
        assert listing.members.num_found == num_samples + listing.members.num_labels + left_out


def _read_devkit(root: Path, _: Path) -> None:
    path = root / DEVKIT_ARCHIVE
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(root / "meta.mat", DEVKIT_META)
        tar.add(root / "truth.txt", DEVKIT_GROUND_TRUTH)
    devkit = read_devkit(path)
    assert set(devkit.ground_truth) <= devkit.wnids.keys()


def _read_text(_: Path, damaged: Path) -> None:
    assert all(isinstance(line, str) and "\n" not in line for line in decode_lines(damaged.read_bytes(), "a.txt"))


def _read_picture(_: Path, damaged: Path) -> None:
    pixels = decode_picture(damaged.read_bytes()).pixels_HWC
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@dataclass(frozen=True)
class Reader:
    """A reader: what makes its good input in a folder, and what reads that folder when one file was damaged."""

    make: Callable[[Path], None]
    read: Callable[[Path, Path], None]


READERS = {
    "webdataset": Reader(_make_tars, _read_source("webdataset")),
    "official": Reader(_make_official, _read_source("official")),
    "idx": Reader(_make_idx, _read_source("idx")),
    "cifar": Reader(_make_cifar, _read_source("cifar")),
    "parquet": Reader(_make_parquet, _read_source("parquet")),
    "devkit": Reader(_make_devkit, _read_devkit),
    "texts": Reader(_make_texts, _read_text),
    "pictures": Reader(_make_pictures, _read_picture),
}


# Damage


def damage(content: bytes, seed: random.Random) -> bytes:
    """Return the content with one to three kinds of damage."""
    for _ in range(seed.choice((1, 1, 2, 3))):
        content = seed.choice(_DAMAGES)(bytearray(content), seed)
    return content


def _somewhere(content: bytearray, seed: random.Random, longest: int = 4096) -> slice:
    """Return a range, more often at the beginning or the end, where formats have their headers and footers."""
    begin = seed.choice((seed.randrange(len(content) + 1), seed.randrange(min(64, len(content)) + 1)))
    begin = seed.choice((begin, begin, max(0, len(content) - begin)))
    return slice(begin, begin + int(longest ** seed.random()))


def _flip(content: bytearray, seed: random.Random) -> bytes:
    for _ in range(seed.choice((1, 1, 4, 32))):
        if content:
            content[_somewhere(content, seed).start % len(content)] ^= 1 << seed.randrange(8)
    return bytes(content)


def _cut(content: bytearray, seed: random.Random) -> bytes:
    return bytes(content[: _somewhere(content, seed).start])


def _remove(content: bytearray, seed: random.Random) -> bytes:
    del content[_somewhere(content, seed)]
    return bytes(content)


def _insert(content: bytearray, seed: random.Random) -> bytes:
    where = _somewhere(content, seed)
    content[where.start : where.start] = seed.randbytes(where.stop - where.start)
    return bytes(content)


def _zero(content: bytearray, seed: random.Random) -> bytes:
    where = _somewhere(content, seed)
    if seed.random() < 0.5:
        where = slice(where.start // 512 * 512, -(-where.stop // 512) * 512)
    content[where] = bytes(len(content[where]))
    return bytes(content)


def _swap(content: bytearray, seed: random.Random) -> bytes:
    size = seed.choice((16, 512, 1024))
    first, second = (seed.randrange(len(content) // size + 1) * size for _ in range(2))
    one, two = content[first : first + size], content[second : second + size]
    if len(one) == len(two):
        content[first : first + size], content[second : second + size] = two, one
    return bytes(content)


def _repeat(content: bytearray, seed: random.Random) -> bytes:
    where = _somewhere(content, seed)
    return bytes(content[: where.stop] + content[where] + content[where.stop :])


def _set_field(content: bytearray, seed: random.Random) -> bytes:
    start, size = _somewhere(content, seed).start, seed.choice((1, 2, 4, 8))
    value = seed.choice(_FIELDS) % 2 ** (8 * size)
    content[start : start + size] = value.to_bytes(size, seed.choice(("little", "big")))
    return bytes(content)


def _edit_tar_header(content: bytearray, seed: random.Random) -> bytes:
    """Change a header of a tar and seal it with the right check sum; other files as `_set_field` does."""
    starts = [at - 257 for at in range(257, len(content) - 255, 512) if content[at : at + 5] == b"ustar"]
    if not starts:
        return _set_field(content, seed)
    start = seed.choice(starts)
    header = content[start : start + 512]
    field = seed.choice((slice(0, 100), slice(124, 136), slice(156, 157), slice(157, 257), slice(345, 500)))
    size = field.stop - field.start
    texts = (b"", b"/", b"../x.jpg", b"a\nb.jpg", b"777777777777", b"-1", b"\x80" + b"\xff" * 11, seed.randbytes(size))
    types = (b"1", b"2", b"5", b"S", b"L", b"K", b"x", b"g", b"Z")
    header[field] = (seed.choice(types) if size == 1 else seed.choice(texts))[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    return bytes(content)


def _recompress(content: bytearray, seed: random.Random) -> bytes:
    """Damage what is compressed, and compress it again; other files are cut."""
    if content[:2] != b"\x1f\x8b":
        return _cut(content, seed)
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return bytes(content)
    return gzip.compress(seed.choice(_DAMAGES[:8])(bytearray(inner), seed), 1, mtime=0)


_DAMAGES = (_flip, _cut, _remove, _insert, _zero, _swap, _repeat, _set_field, _edit_tar_header, _recompress)


# A process of its own


def fuzz(*ranges: tuple[str, int, int]) -> list[str]:
    """Read damaged inputs in a process of its own.

    Args:
        ranges: Of a reader each, the first seed, and how many.

    Returns:
        A line per seed that went wrong.
    """
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *(":".join(map(str, seeds)) for seeds in ranges)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        lines.append(f"the process ended with {done.returncode}: {done.stderr[-2000:]}")
    return lines


def _read_damaged(name: str, good: Path, seed: int) -> str | None:
    """Return what went wrong with one seed, or None."""
    source = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        shutil.copytree(good, root)
        path = source.choice(sorted(path for path in root.rglob("*") if path.is_file()))
        path.write_bytes(damage(path.read_bytes(), source))
        signal.alarm(_MAX_SECONDS)
        faulthandler.dump_traceback_later(3 * _MAX_SECONDS, exit=True)  # where no Python code runs any more
        try:
            READERS[name].read(root, path)
        except (InputError, RejectedPicture) as error:
            is_one_line = isinstance(error, RejectedPicture) or "\n" not in str(error)
            return None if is_one_line else f"a message of several lines: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error} ({path.name})"
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
    return None


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"more than {_MAX_SECONDS} s")


def main(ranges: list[str]) -> None:
    """Read damaged inputs; write what went wrong."""
    import webdataset  # noqa: F401  # loads torch, which takes more memory than any input may

    signal.signal(signal.SIGALRM, _raise_timeout)
    for name, first_seed, count in (seeds.split(":") for seeds in ranges):
        with tempfile.TemporaryDirectory() as folder:
            READERS[name].make(Path(folder))
            with suppress(InputError):  # text that is none; all that is loaded late is loaded now
                READERS[name].read(Path(folder), min(Path(folder).iterdir()))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + _MAX_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            for seed in range(int(first_seed), int(first_seed) + int(count)):
                sys.stderr.write(f"{name} {seed}\n")  # the last one tells where a process crashed
                problem = _read_damaged(name, Path(folder), seed)
                if problem is not None:
                    sys.stdout.write(f"{name} seed {seed}: {problem}".replace("\n", "\\n") + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
