"""The whole way in a few minutes: synthesise, shard, train by `ray job submit` with two workers, evaluate.

    make demo

Uses the Ray that runs on this machine, else starts one of its own and stops it at the end. Each command is shown as
a user would type it.
"""

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cluster.local_ray import environment, local_ray, running_address
from pipeline import embedded
from pipeline.command import InputError, run_command

ROOT = Path(__file__).resolve().parent.parent
_RECIPE = "synthetic_demo"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m jobs.demo`."""

    workers: int = 2
    """Number of workers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    began = time.monotonic()
    data = embedded.dataset_folder()
    run = embedded.cache_folder() / "runs" / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    _run("python", "-m", "pipeline.shard")
    with _ray() as address:
        # Ctrl-C in `ray job submit` only detaches: the job is given a name to be stopped by.
        with _stopped_on_interrupt(address, run.name):
            submit = ("ray", "job", "submit", "--address", address, "--submission-id", run.name, "--working-dir", ".")
            train = ("python", "jobs/train.py", "--data", str(data), "--run", str(run), "--recipe", _RECIPE)
            _run(*submit, "--", *train, "--workers", str(arguments.workers))
    output = _run("python", "jobs/evaluate.py", "--data", str(data), "--run", str(run))
    sys.stdout.write(
        f"\nfrom archives to a trained AlexNet in {time.monotonic() - began:.0f} s: {output.splitlines()[-1]}\n"
        f"  archives  {embedded.source_folder()}\n  dataset   {data}\n  run       {run}\n"
    )
    return 0


def _run(*command: str) -> str:
    """Show a command, run it, pass on what it prints, and return that.

    Raises:
        InputError: It failed; its own words stand above.
    """
    sys.stdout.write(f"\n$ {shlex.join(command)}\n")
    sys.stdout.flush()
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
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
def _ray() -> Iterator[str]:
    address = running_address()
    if address is not None:
        sys.stdout.write(f"\na Ray runs at {address}: using it\n")
        yield address
        return
    sys.stdout.write("\nno Ray runs here: starting one, to be stopped at the end\n")
    sys.stdout.flush()
    with local_ray(working_directory=ROOT) as cluster:
        yield cluster.address


@contextlib.contextmanager
def _stopped_on_interrupt(address: str, submission_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        command = ["ray", "job", "stop", "--no-wait", "--address", address, submission_id]
        subprocess.run(command, env=environment(), capture_output=True, check=False)
        raise


if __name__ == "__main__":
    run_command(main)
