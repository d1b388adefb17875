"""`jobs/scale.py`: declarations by name and by flags, and input that cannot be used."""

import contextlib

import pytest

from cluster.lab.scaling_table import read_rows
from cluster.run.json_log import JsonLog
from cluster.scaling.cells import computation_cells
from cluster.scaling.folder import Identity, SweepFolder, write_cell, write_launch
from jobs import scale
from jobs.experiments import EXPERIMENTS, get_experiment
from jobs.scaling import sweep
from pipeline.command import InputError

SMALL = ["--workers", "1", "2", "--global-batch-sizes", "8", "--models", "alexnet_small:26"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_its_functions_name_and_can_be_planned(name, tmp_path, capsys):
    assert get_experiment(name).name == name
    assert EXPERIMENTS[name].__doc__.count("Cost: ") == 1
    assert scale.main(["--out", str(tmp_path / "out"), "--experiment", name, "--dry-run"]) == 0
    assert "launches: about " in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_flags_override_an_experiments_fields():
    words = ["--out", "out", "--experiment", "small_trial", "--steps", "10", "--links", "0.5"]
    arguments, experiment = scale._parse(words)
    assert (experiment.steps, experiment.links, str(arguments.out)) == (10, (0.5,), "out")
    assert experiment.models == get_experiment("small_trial").models


def test_a_cluster_to_imitate_replaces_an_experiments_links():
    words, like = ["--out", "out", "--experiment", "small_trial"], ["--like", "8 x 20000 img/s @ 100gbit"]
    for given in (like, ["=".join(like)]):
        experiment = scale._parse([*words, *given])[1]
        assert (experiment.links, experiment.like) == ((), like[1])
    with pytest.raises(InputError, match="leave out one"):
        scale._parse([*words, *like, "--links", "1"])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_too_few_blocks_for_intervals_are_named(blocks, tmp_path, capsys):
    assert scale.main(["--out", str(tmp_path), *SMALL, "--blocks", str(blocks), "--dry-run"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "confidence intervals need at least 3" in line]
    assert [line.partition(":")[0] for line in said] == {1: ["1 block"], 2: ["2 blocks"], 3: []}[blocks]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--global-batch-sizes for strong scaling"),
        ([*SMALL, "--experiment", "huge"], "there is no experiment 'huge'"),
        ([*SMALL, "--loaders", "real"], "--data and the loader `real` go together"),
        ([*SMALL, "--data", "nowhere"], "--data and the loader `real` go together"),
        ([*SMALL, "--data", "nowhere", "--loaders", "real"], "nowhere does not exist"),
        ([*SMALL, "--links", "1", "--on", "ray"], "limited on hosts alone"),
        ([*SMALL, "--cpus-per-worker", "500"], "2 workers of 500 CPUs need 1000"),
        ([*SMALL, "--links", "-1"], "must be above 0"),
        (["--workers", "300", "--global-batch-sizes", "600", "--links", "1", "--dry-run"], "300 hosts; a lab has 1 to"),
        (["--workers", "9", "--global-batch-sizes", "8"], "9 workers: a batch of 8 can't be shared by so many"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, tmp_path):
    with pytest.raises(InputError) as refused:
        scale.main(["--out", str(tmp_path / "out"), *words])
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_where_hosts_cannot_be_made_nothing_is_written(tmp_path, monkeypatch):
    def refuse() -> None:
        raise InputError("run the command as root")

    monkeypatch.setattr(sweep, "check_rights", refuse)
    with pytest.raises(InputError, match="as root"):
        scale.main(["--out", str(tmp_path / "out"), *SMALL, "--links", "1"])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def measured(tmp_path) -> list[str]:
    """The words of an experiment with two measured blocks, in `tmp_path`, and no table yet."""
    words = ["--out", str(tmp_path), "--workers", "1", "--global-batch-sizes", "8", "--models", "alexnet_small:26"]
    words += ["--cpus-per-worker", "0.5"]
    experiment = scale._parse([*words, "--blocks", "2"])[1]
    folder = SweepFolder(tmp_path)
    folder.begin(experiment.to_json() | {"on": "hosts", "datasets": {}}).close()
    (cell,) = computation_cells(experiment, (), experiment.num_classes)
    names = ("step", "mean_step", "data_wait", "forward", "backward", "blocked", "update", "throttled", "cpu")
    fields = {f"{name}_seconds": 0.5 for name in names} | {"step_seconds_p90": 0.5}
    for block in range(2):
        with contextlib.closing(JsonLog(folder.launch_log(block, 1))) as log:
            write_launch(log, Identity("code", "machine"), {})
            write_cell(log, cell, 0, 6, fields | {"sent_bytes": 0.0, "peak_memory_bytes": 1})
    return words


def test_the_table_of_a_finished_experiment_has_the_blocks_that_were_asked_for(measured, tmp_path, capsys):
    def blocks() -> list[int]:
        return [row.block for row in read_rows(tmp_path / "scaling.parquet")]

    for num_blocks in (
        1,
        2,
        1,
    ):  # the first one was killed before the second table
        assert scale.main([*measured, "--blocks", str(num_blocks)]) == 0
        words = "1 cell, " + ("1 block in " if num_blocks == 1 else "2 blocks in ")
        assert words in capsys.readouterr().out and blocks() == list(range(num_blocks))


def test_a_dry_run_of_a_finished_experiment_says_so_and_writes_nothing(measured, tmp_path, capsys):
    assert scale.main([*measured, "--blocks", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is left to measure"
    assert not (tmp_path / "scaling.parquet").exists()


def test_pictures_that_are_smaller_than_the_models_input_are_refused(jpeg_dataset, tmp_path):
    words = ["--workers", "1", "--global-batch-sizes", "8", "--loaders", "real", "--data", str(jpeg_dataset.path)]
    with pytest.raises(InputError, match="crop_size is 224, but the pictures are stored at"):
        scale.main(["--out", str(tmp_path / "out"), *words])
    with pytest.raises(InputError, match="two of --data have the encoding jpeg"):
        scale.main(["--out", str(tmp_path / "out"), *words, str(jpeg_dataset.path), "--models", "alexnet_small:24"])
