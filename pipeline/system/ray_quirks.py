"""What is used of Ray beside its documented interface, as seen in Ray 2.60; nothing else in this project does so.

A Ray that lacks one of these, or calls it otherwise, is used without: each function says what is lost. Nothing here
loads Ray before it is called. `tests/pipeline/system/test_ray_quirks.py` fails where a Ray has changed one.
"""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEN_IN = "2.60"  # pyproject.toml admits no later minor version before the tests have seen it

# Variables that Ray reads when it needs them, not as it is imported. One that it no longer knows changes nothing.

# Of every session. Nothing is reported to anyone. Ray Train's print patch would double every line, and its watcher of
# preemptions costs a launch a second.
SESSION_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Of a Ray that we start: no workers that nobody has asked for, and the priority of any other process for those that
# are.
OWN_RAY_VARIABLES = {"RAY_prestart_worker_first_driver": "0", "RAY_worker_niceness": "0"}
# Of an embedded Ray, beside those: it collects no metrics, does not look for new log files ten times a second, and
# keeps no history of tasks and of its node's load. Only a dashboard would show them.
EMBEDDED_RAY_VARIABLES = {
    "RAY_enable_metrics_collection": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "RAY_task_events_report_interval_ms": "0",
}
# Of a Ray of several nodes whose loss is rehearsed. A killed node refuses connections and is given up after 5 checks;
# one that no longer answers, after some 15 s. Ray's own: 5 checks at 3 s, 10 s each.
QUICK_HEALTH_CHECK_VARIABLES = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}

_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
_SIGN_OF_A_REFUSAL = "InvalidAuthToken"


@dataclass(frozen=True)
class UploadRules:
    """What `ray job submit` goes by.

    Attributes:
        limit_bytes: Largest request that the job server takes; it answers a larger one with status 413.
        paths: Returns each file and folder in a folder that would be uploaded; None where this Ray's functions are
            called otherwise.
    """

    limit_bytes: int
    paths: Callable[[Path], list[Path] | None]


def upload_rules() -> UploadRules | None:
    """Return Ray's rules for the upload of a working directory; None: the upload can't be measured beforehand."""
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
    """Return the version of the Ray whose job server a JobSubmissionClient talks to; None: the two are not compared.

    Raises:
        OSError: It does not answer.
        RayError: It does not let this user in.
    """
    from ray.exceptions import RayError

    try:
        return str(client._do_request("GET", "/api/version").json()["ray_version"])
    except (OSError, RayError):
        raise
    except Exception:
        return None


def temporary_folder() -> Path | None:
    """Return the folder of this node that Ray writes its logs to; None: its room is not judged."""
    import ray

    try:
        node: Any = ray._private.worker._global_node
        return Path(node.get_temp_dir_path())
    except Exception:
        return None


def keep_quiet_about_tokens() -> None:
    """Keep Ray from saying, each time, that it has made a token and how to do without; else it says so."""
    logging.getLogger(_TOKEN_LOGGER).setLevel(logging.ERROR)


def is_refusal(error: BaseException) -> bool:
    """Return whether a cluster did not let this process in, where Ray does not raise its AuthenticationError.

    Where Ray words it otherwise, a person reads that no cluster answers.
    """
    return _SIGN_OF_A_REFUSAL in str(error.__cause__)


def is_startup_timeout(failure: BaseException) -> bool:
    """Return whether Ray Train found no room for workers in time; else a person reads Ray's own words."""
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def health_check_cause(failure: BaseException) -> BaseException:
    """Return what Ray Train met when it asked for a worker's health, or the failure itself; else Ray's own words."""
    cause = getattr(failure, "health_check_failure", failure)
    return cause if isinstance(cause, BaseException) else failure


def controller_callbacks() -> list[Any]:
    """Return callbacks for a RunConfig with which Ray Train's controller ends as soon as its work is done.

    Without them one of some twenty controllers hangs as it exits: its stack shows C++ destroying an event loop whose
    last message wants to use that loop. Such a process outlives the run and its Ray.
    """
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
    except Exception:
        return []

    class EndAtExit(ControllerCallback):
        """Ends the controller's process once Python is through with it."""

        def after_controller_start(self, train_run_context: object) -> None:
            atexit.register(os._exit, 0)  # before C++ destroys what waits for each other

    return [EndAtExit()]


def remove_placement_groups() -> None:
    """Remove this driver's placement groups: one that a killed controller left would keep its CPUs and GPUs.

    Ray Train's own cleaner asks the dashboard's server whether the controller lives, and an embedded Ray has none.
    Where Ray lays its table out otherwise they stay, and the next launch may find no room.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    job_id = ray.get_runtime_context().get_job_id()
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        for group_id, group in placement_group_table().items():
            if group_id.endswith(job_id) and group["state"] != "REMOVED":  # its last bytes are its job's
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))
