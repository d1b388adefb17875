"""Folders: room, permission and kind of file system; the dataset and the run that were named."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.checks.findings import Finding
from pipeline import embedded
from pipeline.command import InputError
from pipeline.system.byte_counts import TEMPORARY_FILES_BYTES, readable_bytes
from pipeline.system.file_systems import existing_folder, file_system_of

_FULL = 0.95  # Ray complains when the disk of its temporary folder is fuller


def check_folder(name: str, path: Path, is_written: bool = True) -> Iterator[Finding]:
    """Tell room and file system of a folder, whether it exists or not.

    Args:
        name: Name of the check.
        path: The folder.
        is_written: Files will be written there.
    """
    folder = existing_folder(path)
    usage, mounted = shutil.disk_usage(folder), file_system_of(folder)
    kind = f", {mounted.kind}" if mounted else ""
    found = f"{path}: {readable_bytes(usage.free)} free of {readable_bytes(usage.total)}{kind}"
    if not is_written:
        yield Finding(name, "ok", found)
    elif not os.access(folder, os.W_OK | os.X_OK):
        advice = f"let this user write to {folder}, or choose another folder"
        yield Finding(name, "problem", f"{found}, and this user may not write to {folder}", advice)
    elif usage.free < TEMPORARY_FILES_BYTES:
        yield Finding(name, "warning", f"{found}, which is little", "free some space, or choose another folder")
    else:
        yield Finding(name, "ok", found)


def check_folders() -> Iterator[Finding]:
    """Look at the folders that commands use when they are told of no other."""
    yield from check_folder("cache folder", embedded.cache_folder())
    yield from check_folder("working directory", Path.cwd())
    temporary = Path(tempfile.gettempdir())
    usage = shutil.disk_usage(temporary)
    if 1 - usage.free / usage.total > _FULL:
        cause = f"{temporary}: the disk is {1 - usage.free / usage.total:.0%} full, and Ray complains above {_FULL:.0%}"
        yield Finding("temporary folder", "warning", cause, "free some space, or set TMPDIR to another folder")
    else:
        yield from check_folder("temporary folder", temporary)


def check_data(path: Path) -> Iterator[Finding]:
    """Check that a dataset is complete: every file is there with its length. `pipeline.verify` reads them, too."""
    from cluster.launch.node_checks import read_dataset
    from pipeline.dataset import Dataset

    dataset = Dataset.open(path)
    sha256, error = read_dataset(dataset.path)
    if error:
        yield Finding("dataset", "problem", f"{path} {error.replace(' there', '')}", "restore it, or shard again")
        return
    counts = ", ".join(f"{dataset.num_samples(split):,} in {split}" for split in dataset.splits)
    found = f"{path}: {counts}; {len(dataset.files):,} files, all complete by their lengths; sha256 {sha256}"
    yield Finding("dataset", "ok", found)
    yield from check_folder("disk of the dataset", path, is_written=False)


def check_run(path: Path) -> Iterator[Finding]:
    """Check a run folder: what is in it, and whether it lies where workers on other nodes would see it."""
    from cluster.run.run_folder import RunFolder, holds_run, is_a_beginning

    if path.exists() and not path.is_dir():
        yield Finding("run folder", "problem", f"{path} is not a folder", "name another --run")
        return
    if holds_run(path):
        try:
            run = RunFolder.open(path.absolute())
        except InputError as error:
            cause = str(error).partition("; ")[0]
            yield Finding("run folder", "problem", cause, "name the folder of a run, or an empty one")
            return
        state = "is finished" if run.result else f"goes on after step {run.checkpoints.latest_step():,}"
        yield Finding("run folder", "ok", f"{path}: a run of {run.config.name}, which {state}")
    elif path.exists() and not is_a_beginning(path):
        cause = f"{path} is in use but holds no run"
        yield Finding("run folder", "problem", cause, "name the folder of a run, or an empty one")
        return
    else:
        yield Finding("run folder", "ok", f"{path}: a run would begin there")
    yield from check_folder("disk of the run", path)
    mounted = file_system_of(path)
    if mounted is None:
        return
    kind = mounted.kind
    match mounted.place:
        case "shared":
            yield Finding("file system of the run", "ok", f"{kind}: other nodes see it, if they mount it there, too")
        case "disk":
            yield Finding("file system of the run", "ok", f"{kind}: a disk of this machine; other nodes don't see it")
        case "memory":
            cause = f"{kind} at {mounted.mount_point}: it takes memory, and a restart of the machine empties it"
            yield Finding("file system of the run", "warning", cause, "name a --run on a disk")
        case "container":
            cause = f"{kind}: it belongs to a container and may be removed with it"
            yield Finding("file system of the run", "warning", cause, "name a --run on a volume that is mounted")
