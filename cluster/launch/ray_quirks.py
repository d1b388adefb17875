"""What is asked of Ray beside its documented interface, as seen in Ray 2.60; one that lacks or changed it does without.

What Ray Train is overridden in stands in `cluster/launch/ray_launch.py`, beside what it serves.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray


@dataclass(frozen=True)
class UploadRules:
    """What `ray job submit` goes by.

    Attributes:
        limit_bytes: Of a request to the job server, which else answers with status 413.
        paths: Returns each file and folder in a folder that would be uploaded; None where this Ray's functions are
            called otherwise.
    """

    limit_bytes: int
    paths: Callable[[Path], list[Path] | None]


def upload_rules() -> UploadRules | None:
    """Return Ray's rules for the upload of a working directory; None where this Ray keeps them elsewhere."""
    try:
        from ray._private.ray_constants import (
            DASHBOARD_CLIENT_MAX_SIZE,
            RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
            get_runtime_env_default_excludes,
        )
        from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
    except Exception:
        return None

    def paths(folder: Path) -> list[Path] | None:
        found: list[Path] = []
        try:
            _dir_travel(
                folder,
                [_get_excludes(folder, get_runtime_env_default_excludes())],
                found.append,
                include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
                logger=logging.getLogger(__name__),
            )
        except OSError:  # of the folder, not of this Ray
            raise
        except Exception:
            return None
        return found

    return UploadRules(DASHBOARD_CLIENT_MAX_SIZE, paths)


def ray_version_at(client: Any) -> str | None:
    """Return the version of the Ray whose job server a JobSubmissionClient talks to, or None.

    Raises:
        OSError: It does not answer.
        RayError: It does not let this user in.
    """
    try:
        return str(client._do_request("GET", "/api/version").json()["ray_version"])
    except (OSError, ray.exceptions.RayError):
        raise
    except Exception:
        return None


def temporary_folder() -> Path | None:
    """Return the folder of this node that Ray writes its logs to, or None."""
    try:
        node: Any = ray._private.worker._global_node
        return Path(node.get_temp_dir_path())
    except Exception:
        return None


def end_synchronization_actor() -> None:
    """End, from a worker, the actor through which workers agree on what they report to Ray Train: nothing here."""
    with contextlib.suppress(Exception):
        from ray.train.v2._internal.execution.context import get_train_context

        actor: Any = get_train_context().execution_context.synchronization_actor
        ray.kill(actor)
