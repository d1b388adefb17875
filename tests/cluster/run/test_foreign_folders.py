"""Folders that hold somebody's files are not taken for beginnings of ours: nothing in them is written or removed."""

import gzip
import hashlib
import json
import uuid

import pytest
from coded_source import CodedSource
from runs import CONFIG

from cluster.run.checkpoint import CheckpointStore
from cluster.run.launch_mark import LaunchMark
from cluster.run.ledger_files import Ledger
from cluster.run.run_folder import RunFolder, open_launches, stop_request_of
from pipeline.command import InputError
from pipeline.fetch import DATA_SETS, DataSet, fetch
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.numbered_classes import CLASS_NAMES
from pipeline.system.files import atomic_file, is_temporary

RAW = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None))


def _left_aside(path) -> str:
    """Write like a process that is killed in the middle; return the name of what it leaves."""
    with atomic_file(path) as file:
        aside = path.with_name(file.name.rpartition("/")[2])
    aside.write_bytes(b"half")
    return aside.name


def _digest(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["features.npy", "mean_image.npy", "draft.tmp", ".draft.tmp", "config.json.tmp", "result.json"]
)
def test_somebodys_files_are_no_beginning_of_a_run(raw_dataset, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="in use but holds no run; choose another run folder"):
        RunFolder.resume(tmp_path, CONFIG, raw_dataset)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_folder_of_the_name_of_one_of_our_files_is_no_beginning_of_a_run(raw_dataset, tmp_path):
    (tmp_path / "mean_image.npy").mkdir()
    with pytest.raises(InputError, match="in use but holds no run"):
        RunFolder.resume(tmp_path, CONFIG, raw_dataset)


def test_what_a_run_writes_before_its_config_is_a_beginning(raw_dataset, tmp_path):
    open_launches(tmp_path).close()
    stop_request_of(tmp_path).clear()
    with LaunchMark(tmp_path).lasting():
        pass
    for name in ("mean_image.npy", "config.json"):
        assert is_temporary(_left_aside(tmp_path / name))
        (tmp_path / name).unlink()
    (tmp_path / "mean_image.npy").write_bytes(b"whole")
    (tmp_path / f".preflight-{uuid.uuid4().hex}.tmp").touch()
    assert len(list(tmp_path.iterdir())) == 7
    assert RunFolder.resume(tmp_path, CONFIG, raw_dataset) is None


@pytest.mark.parametrize(
    "names",
    [["features.npy"], ["features.npy", ".partial/lock"], [".partial/draft.npz"], [".draft.tmp"], [".partial/.a.tmp"]],
)
def test_somebodys_files_are_no_interrupted_sharding(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    before = _digest(tmp_path)
    with pytest.raises(InputError, match="exists, is not empty and holds no interrupted run; choose another folder"):
        shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    assert _digest(tmp_path) == before


@pytest.mark.parametrize("name", ["draft.npz", "train-000000.npz", "notes/a.txt"])
def test_somebodys_folder_beside_a_finished_dataset_stays(tmp_path, name):
    shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    path = tmp_path / ".partial" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    before = _digest(tmp_path)
    with pytest.raises(InputError, match="already holds a finished dataset"):
        shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    assert _digest(tmp_path) == before


@pytest.mark.parametrize("content", ["no JSON", "[1]", "3"])
def test_a_plan_that_this_program_did_not_write_is_refused(tmp_path, content):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "plan.json").write_text(content)
    with pytest.raises(InputError, match=r"plan\.json is not the plan of an interrupted run; choose another folder"):
        shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)


def test_a_sharding_that_was_killed_before_its_plan_goes_on(tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "lock").touch()
    _left_aside(tmp_path / ".partial" / "plan.json")
    (tmp_path / ".partial" / "plan.json").unlink()
    shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    assert not (tmp_path / ".partial").exists()


def test_an_interrupted_sharding_removes_its_own_temporary_files_alone(tmp_path):
    class Stopped(CodedSource):
        def read(self, file, offset, num_bytes):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard_dataset(Stopped(tmp_path), tmp_path, RAW, num_workers=1)
    (tmp_path / ".mine.tmp").write_bytes(b"mine")
    left = tmp_path / _left_aside(tmp_path / "train-000000.tar")
    shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    assert (tmp_path / ".mine.tmp").read_bytes() == b"mine" and not left.exists()
    assert json.loads((tmp_path / "dataset.json").read_text())["splits"]["train"]["num_samples"] == 40


@pytest.mark.parametrize("step", [0, 3])
def test_a_resume_removes_its_own_leftovers_alone(tmp_path, step):
    mine = [".mine.tmp", "mine.pt", "step-3.pt", "step-00000003-mine.pt", "step-mine.json", "worst-00000004.pt"]
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    store, ledger = CheckpointStore(tmp_path, 1), Ledger(tmp_path)
    store.save({"step": step}, step, is_best=True)
    for number in (0, 2, 4):
        (tmp_path / f"best-{number:08d}.pt").write_bytes(b"half")
    _left_aside(tmp_path / "step-00000004.pt")
    store.remove_leftovers(step)
    _left_aside(tmp_path / "steps-00000001-00000004.parquet")
    (tmp_path / "steps-00000001-00000004.parquet").unlink()
    ledger.roll_back(step)
    ours = [f"{kind}-{step:08d}.{form}" for kind in ("best", "step") for form in ("json", "pt")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine + ours)
    assert store.latest_step() == step
    assert {(tmp_path / name).read_bytes() for name in mine} == {b"mine"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.gz", gzip.compress(b"another data set")),
        ("images.gz", gzip.compress(b"published")[:-9]),
        ("images.gz", b"no gzip"),
        ("images.gz", b""),
        (CLASS_NAMES, b"another data set"),
    ],
    ids=["other content", "cut short", "no gzip", "empty", "class names"],
)
def test_other_data_under_the_names_of_what_is_fetched_is_left_alone(tmp_path, monkeypatch, name, content):
    package, out = tmp_path / "package", tmp_path / "out"
    package.mkdir()
    out.mkdir()
    (package / "images.gz").write_bytes(gzip.compress(b"published"))
    data_set = DataSet(
        origin="http://127.0.0.1:9/",
        package="dataset-tiny",
        package_folder=package,
        files={"images.gz": hashlib.sha256(b"published").hexdigest()},
        class_names=("cat", "dog"),
    )
    monkeypatch.setitem(DATA_SETS, "tiny", data_set)
    (out / name).write_bytes(content)
    before = _digest(out)
    message = f"{out} already holds other or damaged data as {name}; remove it, or choose another folder for tiny"
    with pytest.raises(InputError, match=message):
        fetch("tiny", out)
    assert _digest(out) == before
    (out / name).unlink()
    for _ in range(2):
        fetch("tiny", out)
    assert (out / CLASS_NAMES).read_text() == "cat\ndog\n"
