"""Datasets that the tests share, made once a session."""

import os
import signal
from pathlib import Path

import pytest
import torch
from coded_source import CodedSource

from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig

# A shell that runs the tests in the background lets them ignore Ctrl-C, which the tested commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Test processes that run side by side take one thread each, and so do the processes that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

NUM_TRAIN, NUM_VAL = 41, 10


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, also from the commands that tests start, unless the tests that need one were asked for.

    So the other tests check the same on each machine, and their processes do not share a GPU.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _dataset(out: Path, encoding: str, pixels: bool, num_train: int = NUM_TRAIN, size: int = 32) -> Dataset:
    source = CodedSource(out, num_train, NUM_VAL, size, pixels)
    stored = EncodingConfig(encoding=encoding, size=None if pixels else size)
    shard_dataset(source, out, ShardingConfig(encoding=stored, samples_per_shard=15), num_workers=1)
    return Dataset.open(out)


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory) -> Dataset:
    """41 training and 10 validation pictures of 32x32 noise, stored as pixels, in shards of at most 15."""
    return _dataset(tmp_path_factory.mktemp("raw"), "raw", pixels=True)


@pytest.fixture(scope="session")
def jpeg_dataset(tmp_path_factory) -> Dataset:
    """The same pictures as JPEGs."""
    return _dataset(tmp_path_factory.mktemp("jpeg"), "jpeg", pixels=False)


@pytest.fixture(scope="session")
def original_dataset(tmp_path_factory) -> Dataset:
    """The same pictures as JPEGs whose bytes are the source's."""
    return _dataset(tmp_path_factory.mktemp("original"), "original", pixels=False)
