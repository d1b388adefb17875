"""All steps in a few minutes: synthesise, shard, train by `ray job submit` with two workers, evaluate, report.

    make demo

Where the machine has a GPU, each worker takes one, so with a single GPU there is one worker. Uses a Ray that already
runs on this machine if this user has access to it. Otherwise it starts its own, with a private token, and stops it at
the end. Each command is shown as a user would type it.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cluster.lab.local_ray import environment, local_ray
from cluster.launch.ray_submission import job_server_version
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.system.surroundings import RAY_JOB_SERVER

ROOT = Path(__file__).resolve().parent.parent
_RECIPE = "synthetic_demo"
_NUM_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m jobs.demo`."""

    workers: int | None = None
    """Number of workers. Default: 2, or 1 on a machine with a single GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if not (ROOT / "pyproject.toml").exists():
        raise InputError("the demo submits a checkout, and this is an installed package; run `make demo` in a checkout")
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers is {arguments.workers}; it must be at least 1")
    began = time.monotonic()
    data = embedded.dataset_folder()
    run = embedded.cache_folder() / "runs" / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    _run("python", "-m", "pipeline.shard")
    with _ray() as (address, variables):
        # Ctrl-C in `ray job submit` only detaches, so the job gets a name by which it can be stopped.
        with _stopped_on_interrupt(address, variables, run.name):
            submit = ("ray", "job", "submit", "--address", address, "--submission-id", run.name, "--working-dir", ".")
            train = ("python", "jobs/train.py", "--data", str(data), "--run", str(run), "--recipe", _RECIPE)
            workers = num_workers(num_gpus()) if arguments.workers is None else arguments.workers
            _run(*submit, "--", *train, "--workers", str(workers), variables=variables)
    output = _run("python", "jobs/evaluate.py", "--data", str(data), "--run", str(run))
    seconds = time.monotonic() - began
    report = run / "report.html"
    _run("python", "jobs/report.py", str(run), "-o", str(report))
    sys.stdout.write(
        f"\nfrom archives to a trained AlexNet in {seconds:.0f} s: {output.splitlines()[-1]}\n"
        f"  archives  {embedded.source_folder()}\n  dataset   {data}\n  run       {run}\n"
        f"  report    {report}, to be opened in a browser\n"
    )
    return 0


def num_gpus() -> int:
    """Return the number of GPUs of this machine that the workers may use."""
    import torch  # here: the command's help does not wait for it

    return torch.cuda.device_count()


def num_workers(num_gpus: int) -> int:
    """Return the number of workers for a machine with so many GPUs: each worker needs one if there are any."""
    return min(_NUM_WORKERS, num_gpus or _NUM_WORKERS)


def _run(*command: str, variables: dict[str, str] | None = None) -> str:
    """Show a command, run it, print its output as it appears, and return it.

    Raises:
        InputError: The command failed; its own message is already printed.
    """
    sys.stdout.write(f"\n$ {shlex.join(command)}\n")
    sys.stdout.flush()
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=variables or environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                lines.append(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InputError(f"`{shlex.join(command[:4])} ...` failed; see above")
    return "".join(lines)


@contextlib.contextmanager
def _ray() -> Iterator[tuple[str, dict[str, str]]]:
    """Find a Ray that this user has access to, or start one; yield its job server's address and its environment."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", RAY_JOB_SERVER)
    try:
        job_server_version(address)
    except InputError as error:
        sys.stdout.write(f"\n{error.args[0].partition('; ')[0]}: starting a Ray, to be stopped at the end\n")
        sys.stdout.flush()
    else:
        sys.stdout.write(f"\na Ray runs at {address}: using it\n")
        yield address, environment()
        return
    with local_ray(working_directory=ROOT) as cluster:
        yield cluster.address, cluster.environment


@contextlib.contextmanager
def _stopped_on_interrupt(address: str, variables: dict[str, str], submission_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        command = ["ray", "job", "stop", "--no-wait", "--address", address, submission_id]
        subprocess.run(command, env=variables, capture_output=True, check=False)
        raise


if __name__ == "__main__":
    run_command(main)
