"""From a source to a dataset folder: plan, write the shards in parallel, merge, publish.

One output shard is one task, described by its rows of a seeded global shuffle, so the bytes do not depend on the number
of workers. A finished shard leaves a record in `OUT/.partial/`; if the same command runs again, it skips that shard:

    source -> listing, inventory -> plan (tasks) -> workers: tar + idx + record -> merge: manifest, statistics,
                                    shard_plan.py   shard_task.py                  dataset.json

`dataset.json` is written last; then `.partial` is removed. No time, host, number of workers or lock stays behind.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.command import InputError
from pipeline.format.manifest import DATASET_JSON, FORMAT_VERSION
from pipeline.offline.ordered_map import load_ahead
from pipeline.offline.publishing import Contents, publish
from pipeline.offline.shard_plan import ShardingConfig, plan_shards, plan_splits
from pipeline.offline.shard_task import PLAN_JSON, RECORD_ENDING, Executor, run_tasks, unfinished_tasks
from pipeline.progress import progress_bar
from pipeline.sources.base import Listing, Source
from pipeline.sources.inventory import Inventory, take_inventory
from pipeline.system.files import is_temporary, write_json

PARTIAL = ".partial"  # folder of a run that is not finished
_LOCK = "lock"


def shard_dataset(
    source: Source,
    out: Path,
    config: ShardingConfig,
    num_workers: int | None = None,
    executor: Executor = "local",
    announce: Callable[[Inventory], None] | None = None,
) -> dict[str, Any]:
    """Write a dataset folder and return its `dataset.json`.

    Args:
        source: Source of the pictures.
        out: Folder to write; created, or resumed after an interrupted run with the same plan.
        config: Configuration of the dataset.
        num_workers: Number of processes, or of concurrent Ray tasks; by default as many as there are CPUs. It does not
            change the bytes.
        executor: `local` processes, or `ray`: tasks of a running cluster, whose nodes see source and folder under the
            same absolute paths. It does not change the bytes.
        announce: Function that is called with the source's inventory before the work begins.

    Raises:
        InputError: The source is ambiguous, the folder holds something else, another run is writing it, or too many
            pictures were rejected.
    """
    finished, partial = out / DATASET_JSON, out / PARTIAL
    if finished.exists() and not partial.exists():
        raise InputError(_finished(out))
    if out.exists() and not finished.exists() and not _is_free(out):
        raise InputError(f"{out} exists, is not empty and holds no interrupted run; choose another folder")
    if executor == "local" and num_workers != 1:
        load_ahead(run_tasks.__module__, *config.encoding.modules)  # while the source is listed
    listing = source.list_samples()
    inventory = take_inventory(source, listing)
    splits = plan_splits(listing, config)
    if announce is not None:
        announce(inventory)
    partial.mkdir(parents=True, exist_ok=True)
    with _exclusive(partial):
        if finished.exists() and not (partial / PLAN_JSON).exists():
            _remove(partial)  # this run has made it: another run finished while this one listed the source
            raise InputError(_finished(out))
        _check_plan(partial, _plan_document(source, listing, splits, config))
        if finished.exists():  # by a run that was killed while it cleaned up
            _remove(partial)
            return dict(json.loads(finished.read_bytes()))
        tasks = plan_shards(listing, splits, config)
        waiting = unfinished_tasks(tasks, out, partial)
        num_waiting = sum(task.rows.num_rows for task in waiting)
        num_done, num_bytes = len(tasks) - len(waiting), 0
        total = sum(task.rows.num_rows for task in tasks)
        with progress_bar(total, "sharding", "img", initial=total - num_waiting) as bar:
            for task, shard_bytes in run_tasks(waiting, source, config.encoding, out, partial, executor, num_workers):
                num_done, num_bytes = num_done + 1, num_bytes + shard_bytes
                megabytes_per_second = num_bytes / 1e6 / max(bar.format_dict["elapsed"], 1e-3)
                bar.set_postfix_str(f"{megabytes_per_second:.1f} MB/s, {num_done}/{len(tasks)} shards", refresh=False)
                bar.update(task.rows.num_rows)
        document = publish(out, partial, Contents(inventory, listing, splits, tasks), config)
        _remove(partial)
    return document


def _remove(partial: Path) -> None:
    """Remove a run's own files: the records before the plan, so that a run killed in between can be resumed."""
    if (partial / PLAN_JSON).exists():
        for path in partial.glob(f"*{RECORD_ENDING}"):
            path.unlink()
    for name in (PLAN_JSON, _LOCK):
        (partial / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else has put files there
        partial.rmdir()


def _is_free(out: Path) -> bool:
    """Return whether a folder holds only what an interrupted run has left; its plan is compared later."""
    partial = out / PARTIAL
    if not out.is_dir():
        return False
    if (partial / PLAN_JSON).exists():
        return True
    lies_there = [*(path for path in out.iterdir() if path != partial), *partial.glob("*")]
    return all(path.name == _LOCK or is_temporary(path.name) for path in lies_there)


def _finished(out: Path) -> str:
    return f"{out} already holds a finished dataset; remove it, or choose another folder"


@contextlib.contextmanager
def _exclusive(partial: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it when the process ends, however it ends."""
    with open(partial / _LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {partial.parent}; wait for it, or stop it first") from error
        yield


def _plan_document(
    source: Source, listing: Listing, splits: dict[str, pa.Table], config: ShardingConfig
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for table in splits.values():
        for column in table.combine_chunks().columns:
            for chunk in column.chunks:
                for buffer in filter(None, chunk.buffers()):
                    digest.update(buffer)
    return {
        "format_version": FORMAT_VERSION,
        "layout": source.layout,
        "classes": [asdict(entry) for entry in listing.classes],
        "rows": {split: table.num_rows for split, table in splits.items()},
        "rows_sha256": digest.hexdigest(),
        **config.document(),
    }


def _check_plan(partial: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or check that an interrupted run had the same one."""
    path = partial / PLAN_JSON
    if not path.exists():
        write_json(path, plan)
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the plan of an interrupted run; choose another folder") from error
    changed = sorted(name for name in plan.keys() | before.keys() if plan.get(name) != before.get(name))
    if changed:
        raise InputError(
            f"{partial.parent} holds an interrupted run with other {', '.join(changed)}; "
            f"run it again as before, or remove the folder"
        )
