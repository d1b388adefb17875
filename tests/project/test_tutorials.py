"""The commands of the tutorials, each run as it stands on the page, in the page's order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.paths import CHECKOUT

SCALING = CHECKOUT / "docs" / "tutorial_scaling.md"
makes_hosts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="hosts are made by root, with iproute2"
)


def _commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.multinode
@makes_hosts
@pytest.mark.timeout(900)
def test_scaling(tmp_path):
    # Results go to an empty folder, and the cache is this test's alone.
    for name in ("pipeline", "model", "cluster", "jobs", "pyproject.toml"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    printed = {}
    try:
        for command in _commands(SCALING):
            answer = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
            )
            assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
            printed[command] = answer.stdout
    finally:
        down = [sys.executable, "-m", "cluster.lab", "down"]
        subprocess.run(down, cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    (status,) = (text for command, text in printed.items() if command.endswith("lab status"))
    assert status.count("in the cluster") == 3
    assert (tmp_path / "runs" / "on-three-hosts" / "result.json").exists()
    assert len(list((tmp_path / "runs" / "scaling" / "figures").glob("*.png"))) >= 3
    plans = [text for command, text in printed.items() if "jobs/plan.py" in command]
    assert len(plans) == 2 and all("images/s" in text for text in plans)
