"""The command proves what a run consumed, and finds whatever it did not."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from runs import CONFIG

from cluster import ledger as command
from cluster.run import ledger_files
from cluster.run.run_folder import RunFolder
from pipeline.command import InputError

NUM_SAMPLES, NUM_STEPS = 41, 10  # of 12: 2 epochs of 41 and 38 of the third


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 2 steps and more, so that the proof crosses them."""
    monkeypatch.setattr(ledger_files, "_IDS_OF_A_CLOSED_PART", 24)


@pytest.fixture
def stream() -> np.ndarray:
    """A permutation after another, one an epoch."""
    generator = np.random.default_rng(0)
    return np.concatenate([generator.permutation(NUM_SAMPLES) for _ in range(3)])


@pytest.fixture
def make_run(raw_dataset, tmp_path):
    def make(
        name: str, stream: np.ndarray, num_steps: int = NUM_STEPS, size: int = 12, dataset=raw_dataset
    ) -> RunFolder:
        """A run of which the first 4 steps were made by 2 workers, the others by 3."""
        run = RunFolder.create(tmp_path / name, dataclasses.replace(CONFIG, global_batch_size=size), dataset)
        ids_SG = stream[: num_steps * size].reshape(num_steps, size)
        for first in range(0, num_steps, 2):
            run.ledger.append(first + 1, ids_SG[first : first + 2], world_size=2 if first < 4 else 3)
            if first % 4 == 0:
                run.ledger.consolidate()
        return run

    return make


def _outcome(capsys, *runs: RunFolder) -> tuple[int, list[str]]:
    status = command.main([str(run.path) for run in runs])
    return status, capsys.readouterr().out.splitlines()


def test_a_run_is_proved(make_run, stream, capsys):
    run = make_run("run", stream)
    status, lines = _outcome(capsys, run)
    assert status == 0
    assert lines[0] == (
        f"{run.path}: 10 steps of 12 samples without gap: 4 on 2 workers, 6 on 3 workers; 0 more were rolled back"
    )
    assert lines[1] == "  2 epochs, each of the 41 samples exactly once in each; 38 samples of the next, none twice"
    assert re.fullmatch(r"  sha256 of the 120 sample ids: [0-9a-f]{64}", lines[2]) and len(lines) == 3


def test_a_proof_and_a_finding_are_documents(make_run, stream, capsys):
    run, other = make_run("run", stream), make_run("other", _replace(stream, 43, stream[41]))
    assert command.main([str(run.path), str(run.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    proof = document["runs"][str(run.path)]
    assert (document["is_proven"], document["finding"], document["num_shared_positions"]) == (True, None, 120)
    assert (proof["num_steps"], proof["steps_by_world_size"]) == (10, {"2": 4, "3": 6})
    assert command.main([str(other.path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["is_proven"] and "twice" in document["finding"] and document["runs"] == {}


def test_what_was_rolled_back_does_not_count(make_run, stream, capsys):
    run = make_run("run", np.concatenate([stream[:84], stream[:36]]))
    assert _outcome(capsys, run)[0] == 1
    run.ledger.roll_back(7)
    run.ledger.append(8, stream[84:120].reshape(3, 12), 1)
    status, lines = _outcome(capsys, run)
    assert status == 0 and lines[0].endswith("3 on 1 worker, 4 on 2 workers, 3 on 3 workers; 3 more were rolled back")


def test_a_run_shorter_than_an_epoch_is_proved(make_run, stream, capsys):
    status, lines = _outcome(capsys, make_run("run", stream, num_steps=2))
    assert status == 0 and lines[1] == "  no whole epoch; 24 samples of the next, none twice"


def _replace(stream: np.ndarray, position: int, sample: int) -> np.ndarray:
    return np.where(np.arange(len(stream)) == position, sample, stream)


def test_a_repeated_sample_is_named(make_run, stream, capsys):
    # Positions 41 to 81 are epoch 1, steps 4 to 7.
    across = _replace(stream, 80, stream[41])
    run = make_run("across parts", across)
    repeated = f"epoch 1 consumed sample {stream[41]} twice, in steps"
    assert _outcome(capsys, run) == (1, [f"not proven: {run.path}: {repeated} 4 and 7"])
    run = make_run("in a step", _replace(stream, 43, stream[41]))
    assert _outcome(capsys, run) == (1, [f"not proven: {run.path}: {repeated} 4 and 4"])
    run = make_run("in the running epoch", _replace(stream, 119, stream[82]))
    assert _outcome(capsys, run)[1] == [
        f"not proven: {run.path}: epoch 2 consumed sample {stream[82]} twice, in steps 7 and 10"
    ]


def test_a_swap_across_epochs_is_found_and_one_inside_is_a_difference(make_run, stream, capsys):
    straight = make_run("straight", stream)
    swapped = stream.copy()
    swapped[[50, 60]] = stream[[60, 50]]
    inside = make_run("inside", swapped)
    assert _outcome(capsys, inside)[0] == 0
    status, lines = _outcome(capsys, straight, inside)
    assert status == 1 and lines[-1] == (
        f"not proven: the runs differ from position 50 on: sample {stream[50]} in step 5 of {straight.path} and "
        f"sample {stream[60]} in step 5 of {inside.path}"
    )
    swapped = stream.copy()
    assert stream[40] != stream[41]
    swapped[[40, 41]] = stream[[41, 40]]
    status, lines = _outcome(capsys, make_run("across", swapped))
    assert status == 1 and f"epoch 0 consumed sample {stream[41]} twice" in lines[0]


@pytest.mark.parametrize("sample", [-1, NUM_SAMPLES])
def test_a_sample_that_does_not_exist_is_named(make_run, stream, capsys, sample):
    run = make_run("run", _replace(stream, 100, sample))
    told = f"not proven: {run.path}: step 9 consumed sample {sample}, which the training set of 41 lacks"
    assert _outcome(capsys, run) == (1, [told])


def test_a_damaged_ledger_proves_nothing(make_run, stream, capsys):
    run = make_run("run", stream)
    next((run.path / "ledger").glob("steps-00000003-*")).unlink()
    status, lines = _outcome(capsys, run)
    assert status == 1 and len(lines) == 1 and "lacks steps 3 to" in lines[0]


def test_two_runs_of_different_batches_consumed_the_same(make_run, stream, capsys):
    first, second = make_run("first", stream), make_run("second", stream, num_steps=16, size=7)
    status, lines = _outcome(capsys, first, second)
    assert status == 0
    assert lines[-1] == "both consumed the same samples at the 112 positions that they share"
    assert lines[3].startswith(f"{second.path}: 16 steps of 7 samples")


def test_the_digest_does_not_depend_on_the_batch(make_run, stream, capsys):
    runs = make_run("first", stream, num_steps=7), make_run("second", stream, num_steps=12, size=7)
    _, lines = _outcome(capsys, *runs)
    assert lines[2] == lines[5] and lines[6].startswith("both consumed the same samples at the 84 positions")


def test_one_other_sample_is_a_difference(make_run, stream, capsys):
    left_over = np.setdiff1d(np.arange(NUM_SAMPLES), stream[82:120])[0]
    first, second = make_run("first", stream), make_run("second", _replace(stream, 118, left_over), 17, 7)
    status, lines = _outcome(capsys, first, second)
    assert status == 1 and lines[-1] == (
        f"not proven: the runs differ from position 118 on: sample {stream[118]} in step 10 of {first.path} and "
        f"sample {left_over} in step 17 of {second.path}"
    )


def test_equal_ids_of_different_datasets_prove_nothing(make_run, stream, jpeg_dataset, capsys):
    status, lines = _outcome(capsys, make_run("first", stream), make_run("second", stream, dataset=jpeg_dataset))
    assert status == 1 and "were trained on different datasets" in lines[-1]


def test_a_ledger_shorter_than_the_run_is_found(make_run, stream, capsys):
    run = make_run("run", stream)
    run.checkpoints.save({"step": 10}, 10)
    assert _outcome(capsys, run)[0] == 0
    run.checkpoints.save({"step": 11}, 11)
    status, lines = _outcome(capsys, run)
    assert status == 1 and "the ledger ends at step 10, but the newest checkpoint was made at step 11" in lines[0]
    run.finish({"num_steps": 12})
    status, lines = _outcome(capsys, run)
    assert status == 1 and "the ledger ends at step 10, but the run has 12 steps" in lines[0]


def test_a_torn_checkpoint_claims_nothing(make_run, stream, capsys):
    """The run has gone on from the one before, and may not be as far again."""
    run = make_run("run", stream)
    run.checkpoints.save({"step": 8}, 8)
    run.checkpoints.save({"step": 12}, 12)
    (run.path / "checkpoints" / "step-00000012.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is torn or was modified; it is skipped"):
        assert _outcome(capsys, run)[0] == 0


def test_a_ledger_of_another_recipe_is_refused(make_run, stream, capsys):
    run, other = make_run("run", stream), make_run("other", stream, num_steps=4, size=10)
    shutil.rmtree(run.path / "ledger")
    shutil.copytree(other.path / "ledger", run.path / "ledger")
    status, lines = _outcome(capsys, run)
    assert status == 1 and "the ledger's steps have 10 samples, the recipe's 12" in lines[0]


def test_wrong_input_is_named(raw_dataset, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        command.main([str(tmp_path)])
    run = RunFolder.create(tmp_path / "new", CONFIG, raw_dataset)
    with pytest.raises(InputError, match="has not logged a step yet; train it first"):
        command.main([str(run.path)])
    run.checkpoints.save({"step": 4}, 4)  # of a run that kept no ledger
    assert command.main([str(run.path)]) == 1


def test_the_number_of_samples_of_an_older_run_is_that_of_its_dataset(make_run, stream, capsys):
    run = make_run("run", stream)
    path = run.path / "config.json"
    document = json.loads(path.read_text())
    assert document["dataset"].pop("num_samples") == NUM_SAMPLES
    path.write_text(json.dumps(document))
    assert _outcome(capsys, run)[0] == 0
