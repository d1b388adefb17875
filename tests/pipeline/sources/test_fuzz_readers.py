"""Damaged bytes for all readers: the right samples or one clear error, never a crash, a hang, or a sample lost."""

import random
import shutil
import tarfile

import pytest
from fuzzing import READERS, check_listing, fuzz

from pipeline.command import InputError
from pipeline.sources.detect import open_source
from pipeline.sources.tar_headers import scan_paths

# Seeds that once ended otherwise, with what came of them.
FOUND = [
    ("cifar", 39),  # UnicodeDecodeError
    ("devkit", 9),  # IndexError
    ("devkit", 35),  # OSError of SciPy
    ("devkit", 2_859),  # NotImplementedError of SciPy
    ("devkit", 7_854),  # SciPy crashed
    ("official", 247),  # BadGzipFile
    ("official", 298),  # a message of two lines
    ("official", 397),  # OverflowError: a size of 2^80 bytes
]
LAYOUTS = ["webdataset", "official", "idx", "cifar", "parquet"]


def test_a_few_inputs_of_each_reader_and_what_was_found_once():
    assert fuzz(*((reader, 0, 40) for reader in READERS), *((reader, seed, 1) for reader, seed in FOUND)) == []


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_inputs_of_each_reader(reader):
    assert fuzz((reader, 100_000, 2_500)) == []


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path):
    """A source whose good input lies in a folder."""
    READERS[request.param].make(tmp_path)
    return open_source(tmp_path, request.param)


def test_the_good_inputs_are_read(source):
    listing = source.list_samples()
    check_listing(source.root, listing)
    assert sum(table.num_rows for table in listing.splits.values()) >= 4


def test_damage_within_a_picture_leaves_all_else_as_it_was(tmp_path):
    """Where headers are whole, the listing is the same, and only the damaged picture has other bytes."""
    for layout in ("webdataset", "official", "cifar"):
        root = tmp_path / layout
        root.mkdir()
        READERS[layout].make(root)
        source = open_source(root, layout)
        listing = source.list_samples()
        rows = [row for table in listing.splits.values() for row in table.to_pylist()]
        shared = [(row["file"], row["offset"]) for row in rows]  # a link shares its target's bytes
        before = [bytes(source.read(row["file"], row["offset"], row["num_bytes"])) for row in rows]
        for seed in range(20):
            chance = random.Random(seed)
            row = chance.choice(rows)
            path = root / row["file"]
            good = path.read_bytes()
            content = bytearray(good)
            where = row["offset"] + chance.randrange(row["num_bytes"])
            end = row["offset"] + row["num_bytes"]
            content[where:end] = chance.randbytes(end - where)
            path.write_bytes(content)
            assert open_source(root, layout).list_samples() == listing, (layout, seed)
            after = [bytes(source.read(row["file"], row["offset"], row["num_bytes"])) for row in rows]
            changed = {place for place, one, two in zip(shared, before, after, strict=True) if one != two}
            assert changed <= {(row["file"], row["offset"])}, (layout, seed)
            path.write_bytes(good)
        shutil.rmtree(root)


@pytest.mark.parametrize("size", [100, 700, 3000])
def test_no_hole_loses_a_member_in_silence(tmp_path, size):
    """Zeros anywhere before the end: refused, or all members are there, since only their data were hit.

    But for zeros from a member's very first byte to a record's end, which are what `cat a.tar b.tar` has between two.
    """
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(60):
            (tmp_path / "member").write_bytes(random.Random(number).randbytes(size))
            tar.add(tmp_path / "member", f"{number}.jpg")
    good = path.read_bytes()
    members = scan(path)
    with tarfile.open(path) as tar:
        starts = {member.offset for member in tar}
    num_refused = 0
    for seed in range(300):
        chance = random.Random(seed)
        begin, end = sorted(chance.randrange(members[-1].offset) for _ in range(2))
        if chance.random() < 0.5:  # as torrents have it
            begin, end = begin // 512 * 512, end // 512 * 512
        begin += begin in starts
        content = bytearray(good)
        content[begin:end] = bytes(end - begin)
        path.write_bytes(content)
        try:
            assert scan(path) == members, seed
        except InputError as error:
            num_refused += 1
            assert "get the archive again" in str(error), seed
    assert 100 < num_refused < 300


def scan(path):
    with open(path, "rb", buffering=0) as file:
        return list(scan_paths(file, 0, path.stat().st_size))
