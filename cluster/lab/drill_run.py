"""The run of a kill drill: submitted to a local Ray of several nodes, hit, and followed by its own logs."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from cluster.lab.drill_report import Outage, PlannedEvent
from cluster.lab.local_ray import LocalRay
from cluster.lab.program_log import last_line_of
from cluster.lab.ray_node import Node, is_alive
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import (
    LAUNCHES_JSONL,
    METRICS_JSONL,
    Line,
    Lost,
    Resizing,
    Resumed,
    Started,
    Steps,
    Stopped,
    only,
    read_launches,
    read_metrics,
)

NUM_WORKERS = 2  # one a node
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0
_GONE_SECONDS = 15.0  # that processes get to end after their cluster was stopped


class DrillFailed(Exception):
    """What should have happened did not, in time or at all; the message says what."""


class DrilledRun:
    """A training run that is hit while it runs.

    Args:
        cluster: Cluster whose head has no CPUs; nodes of one CPU each are added.
        command: Command that is submitted, and submitted again after its driver's death.
        run_path: Run folder named in it.
        deadline: End of the whole drill, by `time.monotonic`.
        recovery_seconds: Longest time for the run to recover from an event.
    """

    def __init__(
        self, cluster: LocalRay, command: list[str], run_path: Path, deadline: float, recovery_seconds: float
    ) -> None:
        self._cluster, self._command, self._run_path = cluster, command, run_path
        self._deadline, self._recovery_seconds = deadline, recovery_seconds
        self._nodes = [cluster.add_node(1) for _ in range(NUM_WORKERS)]
        self._num_submissions = 0
        self._job: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._seen: set[psutil.Process] = set()
        self._looked_around = 0.0

    @contextlib.contextmanager
    def submitted(self) -> Iterator[None]:
        """Submit the run; what waits for the job is ended with the block, the job with its cluster."""
        self._began = time.time()
        self._submit()
        try:
            yield
        finally:
            assert self._job is not None
            self._job.terminate()
            self._job.wait()

    def hit(self, planned: PlannedEvent) -> Outage:
        """Wait for the moment of an event, let it happen, and wait until the run has recovered.

        Raises:
            DrillFailed: The run ended before, or did not recover.
        """
        self._wait_for_moment(planned)
        before = self._metrics()
        num_workers = only(Started, before)[-1].world_size
        if planned.event == "join":
            self._nodes.append(self._cluster.add_node(1))
        happened = time.time()
        noticed = self._do(planned, happened)
        all_workers = len(self._nodes)

        def is_recovered() -> bool:
            starts = [start for start in only(Started, self._metrics()) if start.time > happened]
            return bool(starts) and starts[-1].world_size == all_workers and self._steps_since(starts[-1].time)

        self._wait(is_recovered, f"a step by {all_workers} worker(s) after the event `{planned.event}`")
        new = [line for line in self._metrics() if line.time > happened]
        starts = only(Started, new)
        num_undone = sum(resume.num_rolled_back for resume in only(Resumed, new))
        return Outage(
            event=planned.event,
            step=only(Steps, before)[-1].step,
            at_seconds=happened - self._began,
            noticed_seconds=noticed - happened,
            first_step_seconds=self._first_step_time(starts[0].time) - happened,
            all_workers_seconds=self._first_step_time(starts[-1].time) - happened,
            resumed_steps=tuple(start.step for start in starts),
            num_recomputed_steps=num_undone,
            num_workers=(num_workers, *(start.world_size for start in starts)),
        )

    def stop(self) -> int:
        """Stop the job, which ends the run at a checkpoint; return the checkpoint's step.

        Raises:
            DrillFailed: It did not end so, or not in time.
        """
        assert self._job is not None
        job = self._job
        command = ["ray", "job", "stop", "--no-wait", "--address", self._cluster.address, self._submission_id]
        subprocess.run(
            command, env=self._cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        self._wait(lambda: job.poll() is not None, "the stopped job to end", is_job_needed=False)
        last = self._metrics()[-1]
        if not isinstance(last, Stopped) or self._run().checkpoints.latest_step() != last.step:
            raise DrillFailed(f"the stopped run did not end at a checkpoint: {last_line_of(self._job_log, 'error: ')}")
        return last.step

    def left_running(self) -> list[str]:
        """Return what still runs of all that was seen, some time after the cluster was stopped; a line each."""
        _, alive = psutil.wait_procs([process for process in self._seen if is_alive(process)], timeout=_GONE_SECONDS)
        return [f"process {p.pid} is left running: {' '.join(_command_line(p))[:100]}" for p in alive]

    def _submit(self) -> None:
        self._num_submissions += 1
        submit = ["ray", "job", "submit", "--address", self._cluster.address]
        submit += ["--submission-id", self._submission_id, "--"]
        with open(self._job_log, "wb") as output:
            self._job = subprocess.Popen(
                [*submit, *self._command],
                env=self._cluster.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def _submission_id(self) -> str:
        return f"{self._run_path.parent.name}-{self._num_submissions}"

    @property
    def _job_log(self) -> Path:
        return self._run_path.parent / f"job-{self._num_submissions}.log"

    def _wait_for_moment(self, planned: PlannedEvent) -> None:
        """Wait until the workers have written a checkpoint since they were started, and a part of an interval more."""

        def has_new_checkpoint() -> bool:
            starts = only(Started, self._metrics())
            return bool(starts) and self._run().checkpoints.latest_step() > starts[-1].step

        self._wait(has_new_checkpoint, "a checkpoint")
        recipe = self._run().config
        pace = only(Steps, self._metrics())[-1].images_per_second
        interval = recipe.checkpoint_interval * recipe.global_batch_size / pace
        time.sleep(planned.fraction * interval)

    def _do(self, planned: PlannedEvent, happened: float) -> float:
        """Let an event happen; return when it was noticed, in Unix time."""
        if planned.event == "join":
            return self._launcher_notices(Resizing, happened)
        if planned.event == "driver":
            return self._kill_driver()
        if planned.event == "worker":
            workers = [process for node in self._nodes for process in _workers(node)]
            workers[planned.choose(len(workers))].kill()
        else:
            node = self._nodes.pop(planned.choose(len(self._nodes)))
            if planned.event == "raylet":
                node.kill_raylet()
            else:
                node.kill()
            if planned.event != "node":
                self._nodes.append(self._cluster.add_node(1))
        return self._launcher_notices(Lost, happened)

    def _kill_driver(self) -> float:
        (driver,) = [p for p in self._cluster.head.processes() if _command_line(p)[1:2] == self._command[1:2]]
        driver.kill()
        assert self._job is not None
        job = self._job
        self._wait(lambda: job.poll() is not None, "Ray's word that the job has failed", is_job_needed=False)
        noticed = time.time()
        self._submit()
        return noticed

    def _launcher_notices(self, line_type: type[Line], happened: float) -> float:
        def noticed() -> list[float]:
            lines = only(line_type, read_launches(self._run_path / LAUNCHES_JSONL))
            return [line.time for line in lines if line.time > happened]

        self._wait(lambda: bool(noticed()), f"the launcher to write `{line_type.kind}`")
        return noticed()[0]

    def _wait(
        self, condition: Callable[[], bool], what: str, seconds: float | None = None, is_job_needed: bool = True
    ) -> None:
        began = time.monotonic()
        end = min(began + (self._recovery_seconds if seconds is None else seconds), self._deadline)
        while not condition():
            self._look_around()
            if time.monotonic() > end:
                raise DrillFailed(f"waited {time.monotonic() - began:.0f} s for {what}, in vain")
            assert self._job is not None
            if is_job_needed and self._job.poll() is not None and not condition():
                raise DrillFailed(
                    f"the job ended while the drill waited for {what}: {last_line_of(self._job_log, 'error: ')}"
                )
            time.sleep(_POLL_SECONDS)

    def _look_around(self) -> None:
        """Note now and then what runs, so that it is known afterwards whether it has ended."""
        if time.monotonic() - self._looked_around > _LOOK_SECONDS:
            self._seen.update(self._cluster.processes())
            self._looked_around = time.monotonic()

    def _run(self) -> RunFolder:
        return RunFolder.open(self._run_path)

    def _metrics(self) -> list[Line]:
        return read_metrics(self._run_path / METRICS_JSONL)

    def _steps_since(self, moment: float) -> bool:
        return any(line.time > moment for line in only(Steps, self._metrics()))

    def _first_step_time(self, start: float) -> float:
        return next(line.time for line in only(Steps, self._metrics()) if line.time > start)


def _workers(node: Node) -> list[psutil.Process]:
    """Return a node's training workers, by the title that Ray Train gives them."""
    return [process for process in node.processes() if "RayTrainWorker" in " ".join(_command_line(process))]


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []
