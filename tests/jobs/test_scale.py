"""`jobs/scale.py`: declarations by name and by flags, and input that cannot be used."""

import pytest

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


def test_pictures_that_are_smaller_than_the_models_input_are_refused(jpeg_dataset, tmp_path):
    words = ["--workers", "1", "--global-batch-sizes", "8", "--loaders", "real", "--data", str(jpeg_dataset.path)]
    with pytest.raises(InputError, match="crop_size is 224, but the pictures are stored at"):
        scale.main(["--out", str(tmp_path / "out"), *words])
    with pytest.raises(InputError, match="two of --data have the encoding jpeg"):
        scale.main(["--out", str(tmp_path / "out"), *words, str(jpeg_dataset.path), "--models", "alexnet_small:24"])
