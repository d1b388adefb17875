"""`jobs/scale.py` with real workers: on hosts with shaped links, killed and begun again, and on Ray."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import makes_hosts

from cluster.lab.cpu_quota import remove_orphaned_quotas
from cluster.lab.scaling_table import NO_EXCHANGE, read_rows
from cluster.scaling.experiment import Experiment
from cluster.scaling.folder import SweepFolder, read_cells
from pipeline.paths import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXPERIMENT = Experiment(
    workers=(2,),
    global_batch_sizes=(8,),
    models=("alexnet_small:26",),
    exchanges=("allreduce",),
    links=(0.1, 1.0),
    cpus_per_worker=0.3,
    num_classes=10,
    steps=2,
    blocks=2,
)


def _command(out: Path, *words: str) -> list[str]:
    command = [sys.executable, "jobs/scale.py", "--out", str(out), "--models", "alexnet_small:26"]
    return [*command, "--num-classes", "10", "--steps", "2", "--global-batch-sizes", "8", *words]


def _measured(out: Path) -> list:
    return [cell for log in sorted((out / "blocks").glob("*.jsonl")) for cell, _ in read_cells(log)]


@makes_hosts
def test_a_sweep_on_hosts_that_was_killed_goes_on_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    words = ["--workers", "2", "--exchanges", "allreduce", "--links", "0.1", "1.0", "--cpus-per-worker", "0.3"]
    command = _command(out, *words, "--blocks", "2")
    folder, declaration = SweepFolder(out), EXPERIMENT.to_json() | {"on": "hosts", "datasets": {}}
    with contextlib.closing(folder.begin(declaration)) as log:  # the sweep of links has its own tests
        for gigabits in EXPERIMENT.links:
            rate = gigabits * 1e9 / 8
            log.write(
                "link",
                num_workers=2,
                gigabits_per_second=gigabits,
                latency_seconds=0.0,
                bytes_per_second=rate,
                largest_deviation=0.01,
            )
    first = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(_measured(out)) < 2:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not folder.table.exists()  # no block is whole
    before = _measured(out)

    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert _measured(out)[: len(before)] == before
    rows = read_rows(folder.table)
    assert len({(row.block, row.cell) for row in rows}) == len(rows) == len(_measured(out)) == 2 * 3
    for row in rows:
        assert row.throttled_seconds > 0 and row.cpu_seconds > 0
        if row.exchange == NO_EXCHANGE:
            assert row.sent_bytes < 20_000
        else:
            assert row.sent_bytes == pytest.approx(row.expected_bytes, rel=0.05)
            bucket_bytes = 200_000  # that pass at once
            assert row.step_seconds > (row.expected_bytes - bucket_bytes) / row.link_bytes_per_second
        parts = (row.data_wait_seconds, row.forward_seconds, row.backward_seconds, row.update_seconds)
        assert all(0 <= part <= row.step_seconds for part in parts) and row.peak_memory_bytes > 1e8
    assert remove_orphaned_quotas() == []  # those of the killed command have gone with the next one's

    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.splitlines()[0].startswith(f"{out} is finished already: ")


def test_a_sweep_on_ray_measures_noise_and_pictures(jpeg_dataset, raw_dataset, tmp_path):
    out = tmp_path / "out"
    data = ["--data", str(jpeg_dataset.path), str(raw_dataset.path), "--loaders", "synthetic", "real"]
    command = _command(out, *data, "--workers", "2", "--exchanges", "factors", "--blocks", "1")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    rows = read_rows(out / "scaling.parquet")
    assert sorted((row.loader, row.encoding, row.exchange) for row in rows) == [
        *(("real", encoding, exchange) for encoding in ("jpeg", "raw") for exchange in ("factors", NO_EXCHANGE)),
        *(("synthetic", "", exchange) for exchange in ("factors", NO_EXCHANGE)),
    ]
    for row in rows:
        assert row.num_classes == jpeg_dataset.num_classes
        assert math.isnan(row.sent_bytes) and math.isnan(row.throttled_seconds)  # all on one machine, without limits
        assert row.link_bytes_per_second > 0 and row.step_seconds > 0
        assert not math.isnan(row.exposed_seconds)
