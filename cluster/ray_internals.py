"""What is asked of Ray beside its documented interface, as seen in Ray 2.60; a Ray that lacks it does without.

What Ray Train is overridden in stands in `cluster/ray_launch.py`, beside what it serves.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

_GONE = (ImportError, AttributeError, TypeError)


@dataclass(frozen=True)
class UploadRules:
    """What `ray job submit` goes by.

    Attributes:
        limit_bytes: Of a request to the job server, which else answers with status 413.
        visit: Calls a function for each file and folder in a folder that would be uploaded.
    """

    limit_bytes: int
    visit: Callable[[Path, Callable[[Path], None]], None]


def upload_rules() -> UploadRules | None:
    """Return Ray's rules for the upload of a working directory; None where this Ray keeps them elsewhere."""
    try:
        from ray._private.ray_constants import (
            DASHBOARD_CLIENT_MAX_SIZE,
            RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
            get_runtime_env_default_excludes,
        )
        from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
    except _GONE:
        return None

    def visit(folder: Path, handle: Callable[[Path], None]) -> None:
        _dir_travel(
            folder,
            [_get_excludes(folder, get_runtime_env_default_excludes())],
            handle,
            include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
            logger=logging.getLogger(__name__),
        )

    return UploadRules(DASHBOARD_CLIENT_MAX_SIZE, visit)


def ray_version_at(client: Any) -> str | None:
    """Return the version of the Ray whose job server a JobSubmissionClient talks to, or None."""
    try:
        return str(client._do_request("GET", "/api/version").json()["ray_version"])
    except _GONE:
        return None


def temporary_folder() -> Path | None:
    """Return the folder of this node that Ray writes its logs to, or None."""
    try:
        node: Any = ray._private.worker._global_node
        return Path(node.get_temp_dir_path())
    except _GONE:
        return None


def end_synchronization_actor() -> None:
    """End, from a worker, the actor through which workers agree on what they report to Ray Train: nothing here."""
    with contextlib.suppress(*_GONE):
        from ray.train.v2._internal.execution.context import get_train_context

        actor: Any = get_train_context().execution_context.synchronization_actor
        ray.kill(actor)
