"""The main job without Ray: alone, and in processes of torchrun; stopped and killed by real signals."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from runs import entries, losses, wait_for_step

from cluster import ledger
from cluster.launch import torch_launch
from cluster.launch.torch_launch import local_world
from cluster.run.run_folder import RunFolder
from jobs import train
from pipeline.command import UserError
from pipeline.paths import CHECKOUT

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--"]
ALONE = [sys.executable, "jobs/train.py", "--launcher", "alone"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _options(dataset, run: Path, num_epochs: int = 20) -> list[str]:
    options = [
        "--data",
        str(dataset.path),
        "--run",
        str(run),
        "--global-batch-size",
        "10",
        "--checkpoint-interval",
        "5",
        "--checkpoint-seconds",
        "0",
    ]
    options += ["--optimizer.learning-rate", "0.001", "--stuck-after-epochs", "100", "--precision", "float64"]
    return [*options, "--num-epochs", str(num_epochs), "--evaluations-per-epoch", "0.1"]


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=CHECKOUT, env=ENVIRONMENT, capture_output=True, text=True)


def _start(command: list[str]) -> subprocess.Popen:
    """Start a run and wait until it is past its second checkpoint."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(Path(command[command.index("--run") + 1]), 10, process)
    return process


def test_workers_are_counted_by_whoever_starts_them(raw_dataset, tmp_path):
    with pytest.raises(UserError, match="--workers and --cpus-per-worker are for Ray, not for --launcher alone"):
        train.main([*_options(raw_dataset, tmp_path / "run"), "--launcher", "alone", "--workers", "2"])
    with pytest.raises(UserError, match="--launcher torch is for a process of torchrun"):
        train.main([*_options(raw_dataset, tmp_path / "run"), "--launcher", "torch"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_trains_what_one_process_alone_trains(raw_dataset, tmp_path):
    alone = _run([*ALONE, *_options(raw_dataset, tmp_path / "alone", 2)])
    assert alone.returncode == 0, alone.stderr
    assert "resumed" not in alone.stdout and alone.stdout.splitlines()[-2].startswith("finished: python jobs/evaluate")
    together = _run([*TORCHRUN, "jobs/train.py", *_options(raw_dataset, tmp_path / "together", 2)])
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("finished: ") == together.stdout.count("2 workers of torchrun") == 1
    runs = [RunFolder.open(tmp_path / name) for name in ("alone", "together")]
    assert [entries(run, "start")[0]["world_size"] for run in runs] == [1, 2]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-8)
    again = _run([*TORCHRUN, "jobs/train.py", *_options(raw_dataset, tmp_path / "together", 2)])
    assert again.returncode == 0 and again.stdout.count("is finished already") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_alone_at_a_checkpoint(raw_dataset, tmp_path, signum):
    command = [*ALONE, *_options(raw_dataset, tmp_path / "run", 100)]
    process = _start(command)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum and "Traceback" not in errors
    assert "stopped at a checkpoint" in output
    run = RunFolder.open(tmp_path / "run")
    (stop,) = entries(run, "stop")
    assert run.checkpoints.latest_step() == stop["step"] >= 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_passes_a_signal_on_and_all_workers_stop_at_a_checkpoint(raw_dataset, tmp_path):
    command = [*TORCHRUN, "jobs/train.py", *_options(raw_dataset, tmp_path / "run", 100)]
    process = _start(command)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped at a checkpoint" in output, errors
    run = RunFolder.open(tmp_path / "run")
    (stop,) = entries(run, "stop")
    assert run.checkpoints.latest_step() == stop["step"] >= 10
    assert ledger.main([str(run.path)]) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_starts_a_killed_worker_again_from_the_latest_checkpoint(raw_dataset, tmp_path, monkeypatch):
    command = [*TORCHRUN[:-1], "--max-restarts", "1", "--", "jobs/train.py", *_options(raw_dataset, tmp_path / "run")]
    refused = _run(command)
    assert refused.returncode != 0 and "works with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 alone" in refused.stderr
    monkeypatch.setitem(ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    process = _start(command)
    workers = [child for child in psutil.Process(process.pid).children() if "jobs/train.py" in child.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    run = RunFolder.open(tmp_path / "run")
    (resume,) = entries(run, "resume")
    assert resume["step"] >= 5 and resume["num_rolled_back"] <= 20
    assert run.result["num_steps"] == 82


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "No space left on device: RUN/x; free some space there, and the same command goes on from"),
        (errno.EIO, "Input/output error: RUN/x; the same command goes on from the latest checkpoint"),
    ],
)
def test_an_error_of_the_system_ends_a_run_alone_with_the_way_out(code, said):
    with pytest.raises(UserError) as refused, local_world("alone"):
        raise OSError(code, os.strerror(code), "RUN/x")
    assert str(refused.value).startswith(said)


def test_an_output_that_nobody_reads_is_no_fault_of_the_run():
    with pytest.raises(BrokenPipeError), local_world("alone"):
        raise BrokenPipeError


def test_a_process_that_only_looks_like_one_of_torchrun_is_refused(raw_dataset, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "left over")
    with pytest.raises(
        UserError, match="TORCHELASTIC_RUN_ID is set, but not TORCHELASTIC_MAX_RESTARTS, as by torchrun"
    ):
        train.main(_options(raw_dataset, tmp_path / "run"))


@pytest.mark.parametrize("variable", ["GLOO_SOCKET_IFNAME", "MASTER_ADDR"])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("[enforce fail at a.cc:84] ifa != nullptr. Unable to find address for: no0"),
            "no0",
        ),
        (ValueError("a traceback\n\nValueError: the host can't be resolved\n"), "the host can't be resolved"),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "The client socket has timed out"),
    ],
)
def test_workers_that_never_meet_are_told_with_what_says_how(monkeypatch, variable, error, cause):
    def fails(_):
        raise error

    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "no0")
    monkeypatch.setattr(torch_launch, "_check_torchrun", lambda: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", fails)
    with pytest.raises(UserError) as caught, local_world("torch"):
        pass
    told = str(caught.value)
    assert told.startswith("the workers can't reach each other (") and f"{cause}); {variable}=no0 say how: " in told
    assert len(told.splitlines()) == 1
