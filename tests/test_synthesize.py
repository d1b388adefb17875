import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from pipeline.command import InputError
from pipeline.sources.official import DEVKIT_ARCHIVE, DEVKIT_GROUND_TRUTH, DEVKIT_META, TRAIN_ARCHIVE, VAL_ARCHIVE
from pipeline.synthesize import main, synthesize
from pipeline.synthetic_pictures import NUM_CLASSES, class_name, draw_picture

ARCHIVES = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)


def random(*numbers):
    return np.random.Generator(np.random.Philox(key=np.array(numbers, dtype=np.uint64)))


def contents(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def all_bytes(folder):
    return [(folder / name).read_bytes() for name in ARCHIVES]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Three classes with the odd files."""
    folder = tmp_path_factory.mktemp("archives")
    odd_files = synthesize(folder, classes=3, train_per_class=4, val_per_class=2, max_side=64, odd_files=True)
    return folder, odd_files


def test_the_layout_is_the_official_one(archives):
    folder, _ = archives
    outer = contents(folder / TRAIN_ARCHIVE)
    assert list(outer) == ["n90000000.tar", "n90000010.tar", "n90000020.tar"]
    inner = contents(io.BytesIO(outer["n90000010.tar"])) if False else None
    with tarfile.open(fileobj=io.BytesIO(outer["n90000010.tar"]), mode="r:") as tar:
        inner = tar.getnames()
    assert inner[:2] == ["n90000010_1.JPEG", "n90000010_2.JPEG"]
    assert list(contents(folder / VAL_ARCHIVE))[:2] == ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    assert {DEVKIT_META, DEVKIT_GROUND_TRUTH} == contents(folder / DEVKIT_ARCHIVE).keys()


def test_tar_headers_carry_no_time_or_owner(archives):
    folder, _ = archives
    for name in ARCHIVES:
        with tarfile.open(folder / name) as tar:
            assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in tar)
            assert not tar.pax_headers
