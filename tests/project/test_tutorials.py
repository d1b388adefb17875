"""The commands of the tutorials, each run as it stands on the page, in the page's order."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_blocks import command_blocks, commands_to_run
from needs import makes_hosts
from pictures import encoded, photo

from cluster.lab.local_ray import local_ray
from pipeline.paths import CHECKOUT

DOCS, README = CHECKOUT / "docs", CHECKOUT / "README.md"
SCALING, TUTORIAL = DOCS / "tutorial_scaling.md", DOCS / "tutorial.md"
FORMAT, SOURCES, OWN = DOCS / "dataset_format.md", DOCS / "sources.md", DOCS / "own.md"


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_each_block_of_commands_is_run_by_a_test_or_marked(page):
    if page in (README, SCALING, TUTORIAL, FORMAT, SOURCES, OWN):
        return  # whatever is not marked is run below
    unmarked = [block.commands[0] for block in command_blocks(page) if block.reason is None]
    assert not unmarked, "say why no test runs it, or let one do: <!-- not run by a test: REASON -->"


def _environment(folder: Path) -> dict[str, str]:
    """Copy the checkout's code to a folder, which takes the results, and return an environment for it.

    The cache is this test's alone.
    """
    for name in ("pipeline", "model", "cluster", "jobs"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(CHECKOUT / name, folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(folder)}


def _run(commands: Sequence[str], folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Run commands one after the other, and return what each printed."""
    printed = {}
    for command in commands:
        answer = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
        printed[command] = answer.stdout
    return printed


@pytest.mark.multinode
@makes_hosts
@pytest.mark.timeout(900)
def test_scaling(tmp_path):
    environment = _environment(tmp_path)
    try:
        printed = _run(commands_to_run(SCALING), tmp_path, environment)
    finally:
        down = [sys.executable, "-m", "cluster.lab", "down"]
        subprocess.run(down, cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    (status,) = (text for command, text in printed.items() if command.endswith("lab status"))
    assert status.count("in the cluster") == 3
    assert (tmp_path / "runs" / "on-three-hosts" / "result.json").exists()
    assert len(list((tmp_path / "runs" / "scaling" / "figures").glob("*.png"))) >= 3
    plans = [text for command, text in printed.items() if "jobs/plan.py" in command]
    assert len(plans) == 2 and all("images/s" in text for text in plans)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_the_archives_to_a_trained_net(tmp_path):
    environment = _environment(tmp_path)
    with local_ray(num_cpus=2, working_directory=tmp_path) as ray:
        own = {name: value for name, value in environment.items() if os.environ.get(name) != value}
        printed = _run(
            commands_to_run(TUTORIAL), tmp_path, ray.environment | own | {"RAY_API_SERVER_ADDRESS": ray.address}
        )
    outputs = {command.split(" --")[0].split(" data")[0]: text for command, text in printed.items()}
    top1 = float(re.search(r"top-1 ([\d.]+) %", outputs["python jobs/evaluate.py"])[1])
    assert top1 > 60, "ten classes: guessing has 10 %"
    assert "rejected: 0" in outputs["python -m pipeline.shard"]
    assert "without gap" in outputs["python -m cluster.ledger runs/first"]
    assert (tmp_path / "data" / "preview.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_formats_commands(tmp_path):
    printed = _run(commands_to_run(FORMAT), tmp_path, _environment(tmp_path))
    assert printed["tar -xOf DATASET/train-000000.tar 00000001.cls"] == "1"
    assert (tmp_path / "1.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_sources_commands(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "train/old/1.jpg"):
        path = tmp_path / "PHOTOS" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo()))
    (tmp_path / "PHOTOS" / "list.dat").write_bytes(b"0")
    ((_, output),) = _run(commands_to_run(SOURCES), tmp_path, _environment(tmp_path)).items()
    assert "2 classes" in output and not (tmp_path / "OUT").exists()


@pytest.mark.slow  # 90 s, most of it the start of Ray and of seven processes
@pytest.mark.timeout(600)
def test_from_a_clone_to_ones_own_net_network_and_loop(tmp_path):
    environment = _environment(tmp_path)
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name, turned in (("CLASS", False), ("OTHER", True)):
        folder = tmp_path / "PHOTOS" / name
        folder.mkdir(parents=True)
        for number in range(1, 11):
            picture = photo(80 + number, 64)
            (folder / f"{number}.jpg").write_bytes(encoded(picture.rotate(90) if turned else picture))
    printed = _run([*commands_to_run(README), *commands_to_run(OWN)], tmp_path, environment)
    outputs = {command.partition(" PHOTOS")[0]: text for command, text in printed.items()}
    assert "20 in 2 classes, 20% of each class held out" in outputs["python jobs/train.py --source"]
    assert "by the nearest mean colour alone" in outputs["python jobs/train.py --source"]
    assert outputs["python jobs/evaluate.py --run runs/photos"].endswith("n=4\n")
    assert all((tmp_path / "runs" / name / "result.json").exists() for name in ("photos", "resnet18", "own"))
    assert "</html>" in (tmp_path / "runs" / "photos.html").read_text()
    assert any("examples/own_loop.py" in command and "step 19" in text for command, text in printed.items())
