"""Check in advance what `ray job submit` will do from here: the upload, the job server, the environment.

    python -m jobs.preflight --address http://HEAD:8265

Measures the upload by Ray's own rules and lists its largest parts if it nears the limit, asks the job server for its
version, and ends with the command line to submit. Nothing is uploaded. The job itself checks the nodes before it begins
a run; `jobs/train.py --dry-run` does only that.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("preflight")

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from cluster.lab.local_ray import STOP_SECONDS
from cluster.launch.ray_submission import Upload, client_version, job_server_version, measure_upload, needed_variables
from pipeline.command import InputError, run_command
from pipeline.json_answer import JsonTarget, completed, json_answer
from pipeline.system.surroundings import RAY_ADDRESS_VARIABLES, RAY_JOB_SERVER

_NEAR = 0.5  # fraction of the limit
_NUM_LISTED = 5
_ENTRY_POINT = "jobs/train.py"
_OLDEST_RAY = (2, 60)  # oldest version on the cluster, as in pyproject.toml


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m jobs.preflight`."""

    working_dir: Path = Path()
    """Folder to upload: the checkout."""
    address: str | None = None
    """Address of the job server. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's."""
    json: JsonTarget = None
    """File to write the findings to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    with json_answer(arguments.json) as answer:
        answer(_look(arguments))
    return 0


def _look(arguments: Arguments) -> dict[str, Any]:
    """Check everything, print what was found, and return it as a document.

    Raises:
        InputError: Submitting would fail.
    """
    errors = []
    upload = version = None
    try:
        upload = measure_upload(arguments.working_dir)
        if upload is None:
            sys.stderr.write(
                f"warning: Ray {client_version()} does not tell by which rules it uploads, so the upload is not "
                f"measured; it should stay below 100 MiB and hold {_ENTRY_POINT}\n"
            )
        else:
            errors += list(_upload_errors(upload))
            _show(upload)
    except InputError as error:
        errors.append(str(error))
    try:
        address = _address(arguments.address)
        version = job_server_version(address)
        errors += list(_version_errors(version)) if version else []
        sys.stdout.write(
            f"job server {address}: Ray{f' {version}' if version else ', version unknown'}, here {client_version()}\n"
        )
    except InputError as error:
        errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    if "RAY_AUTH_MODE" not in os.environ:
        sys.stderr.write(
            "warning: RAY_AUTH_MODE is not set, so whether the cluster is open to everybody who reaches it depends on "
            "files in ~/.ray; set it to `token`, here and where `ray start` runs, and make one: ray get-auth-token "
            "--generate\n"
        )
    elif os.environ["RAY_AUTH_MODE"] == "disabled":
        sys.stderr.write(
            "warning: RAY_AUTH_MODE is disabled: whoever reaches the cluster's ports can run code on it; use `token` "
            "unless its network is closed\n"
        )
    command = _submit_line(arguments, address)
    sys.stdout.write(f"\nto submit (append --dry-run to check the nodes alone):\n\n{command}\n")
    measured = upload and {
        "folder": str(upload.folder),
        "num_files": len(upload.files),
        "num_bytes": upload.num_bytes,
        "limit_bytes": upload.limit_bytes,
    }
    server = {"address": address, "version": version}
    return {"upload": measured, "job_server": server, "version_here": client_version(), "command": command}


def _show(upload: Upload) -> None:
    sys.stdout.write(
        f"upload of {upload.folder}: {len(upload.files):,} files, {_mebibytes(upload.num_bytes)} of at most "
        f"{_mebibytes(upload.limit_bytes)}\n"
    )
    if upload.num_bytes > _NEAR * upload.limit_bytes:
        sys.stdout.write("".join(f"  {line}\n" for line in _largest(upload)))


def _upload_errors(upload: Upload) -> Iterator[str]:
    if upload.num_bytes > upload.limit_bytes:
        yield (
            f"the upload of {_mebibytes(upload.num_bytes)} is above Ray's limit of {_mebibytes(upload.limit_bytes)}; "
            f"add what the job does not need, see above, to {upload.folder / '.rayignore'}"
        )
    if _ENTRY_POINT not in upload.files:
        yield f"{_ENTRY_POINT} is not in the upload; name the checkout, --working-dir, and see its .gitignore"


def _largest(upload: Upload) -> Iterator[str]:
    for name, num_bytes in upload.largest_folders(_NUM_LISTED):
        yield f"{_mebibytes(num_bytes):>12}  {name}/"
    for name, num_bytes in upload.largest_files(_NUM_LISTED):
        yield f"{_mebibytes(num_bytes):>12}  {name}"


def _version_errors(version: str) -> Iterator[str]:
    parts = version.split(".")[:2]
    if tuple(int(part) for part in parts if part.isdigit()) < _OLDEST_RAY:
        oldest = ".".join(map(str, _OLDEST_RAY))
        yield f"the cluster runs Ray {version}, this project needs {oldest} or newer; upgrade the cluster"
    elif parts != client_version().split(".")[:2]:
        sys.stderr.write(
            f"warning: the cluster runs Ray {version}, this is {client_version()}; should submitting fail, use the "
            "cluster's version here\n"
        )


def _address(asked: str | None) -> str:
    """Return the address that `ray job submit` would use.

    Raises:
        InputError: An environment variable would silently override the requested address.
    """
    for variable in RAY_ADDRESS_VARIABLES:
        value = os.environ.get(variable)
        if value and asked and asked.rstrip("/") != value.rstrip("/"):
            raise InputError(f"{variable}={value} goes before --address {asked}; unset {variable}")
        if value:
            return value
    return asked or RAY_JOB_SERVER


def _submit_line(arguments: Arguments, address: str) -> str:
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}})
    options = ["--address", address, "--working-dir", str(arguments.working_dir)]
    variables = "".join(f"{name}={value} " for name, value in needed_variables(address).items())
    return (
        f"{variables}ray job submit {shlex.join(options)} \\\n    --runtime-env-json {shlex.quote(environment)} \\\n"
        f"    -- python {_ENTRY_POINT} --data /SHARED/DATASET --run /SHARED/RUN"
    )


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


if __name__ == "__main__":
    run_command(main)
