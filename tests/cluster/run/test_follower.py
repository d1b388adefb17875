"""What a person sees of a run while it runs."""

import dataclasses

import pytest

from cluster.run.follower import Follower
from cluster.run.run_log import RunLog, Started, Steps

STEP = Steps(
    step=1,
    samples_seen=9,
    epoch=0.1,
    loss=1.0,
    top1=0.5,
    learning_rate=0.1,
    images_per_second=9.0,
    data_wait_fraction=0.0,
    eta_seconds=9e9,
    losses=[1.0],
)


def shown(tmp_path, capsys, etas, advice="") -> list[str]:
    """Return the lines that are shown of a run whose step lines expect these seconds to its end."""
    log = RunLog(tmp_path / "metrics.jsonl")
    log.write(STEP)  # of a start before
    with Follower(tmp_path / "metrics.jsonl", 99, advice):
        log.write(Started(step=0, world_size=1))
        for number, eta in enumerate(etas, start=2):
            log.write(dataclasses.replace(STEP, step=number, eta_seconds=eta))
    log.close()
    return capsys.readouterr().out.splitlines()


def test_a_long_run_is_told_its_time_once_after_its_first_steps(tmp_path, capsys):
    lines = shown(tmp_path, capsys, [1e5, 1e5, 7000, 6060, 6000, 5000], "fewer epochs")
    assert lines[4] == "at this pace the run needs another 1:41:00; shorter with fewer epochs"
    assert sum("at this pace" in line for line in lines) == 1 and len(lines) == 7


@pytest.mark.parametrize("etas", [[9000, 9000, 900, 599, 9000], [9000, 9000, 9000]], ids=["short", "not known yet"])
def test_a_short_run_is_not(etas, tmp_path, capsys):
    lines = shown(tmp_path, capsys, etas, "fewer epochs")
    assert len(lines) == len(etas) and not any("at this pace" in line for line in lines)
