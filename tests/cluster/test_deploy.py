"""The files to start from on other people's clusters, as far as the installed packages can tell what is right."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs import train
from pipeline.paths import CHECKOUT

DEPLOY = CHECKOUT / "cluster" / "deploy"
makes_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="namespaces are made by root, with util-linux and iproute2",
)


def _check_training(command: str) -> None:
    """Check that a command line is one of jobs/train.py."""
    words = shlex.split(command)
    script = words.index("python") + 1
    assert words[script].endswith("jobs/train.py")
    arguments, config = train.parse(words[script + 1 :])
    assert arguments.data.is_absolute() and arguments.run.is_absolute()
    assert config.name in (arguments.recipe, "small_demo")


def test_the_cluster_launchers_file_is_valid_and_passes_the_token_on():
    pytest.importorskip("ray")
    document = yaml.safe_load((DEPLOY / "ray_cluster.yaml").read_text())
    jsonschema.validate(document, json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text()))
    for commands in (document["head_start_ray_commands"], document["worker_start_ray_commands"]):
        stop, start = commands
        assert stop.endswith("ray stop") and "RAY_AUTH_MODE=token" in start
        assert ".venv/bin/activate" in start  # a job's python is the first on this PATH
    assert "~/.ray/auth_token" in document["file_mounts"]
    assert "make setup" in document["setup_commands"][-1]


def test_kuberays_job_trains_and_all_that_it_mounts_is_there():
    document = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    spec = document["spec"]
    _check_training(spec["entrypoint"])
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = set()
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # KubeRay wants strings
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert {"/shared"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        images.add(container["image"])
    assert len(images) == 1
    assert "REGISTRY/alexnet-at-scale:TAG" in images and "REGISTRY/alexnet-at-scale:TAG" in (
        (DEPLOY / "Dockerfile").read_text()
    )


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """Variables of an allocation of this machine alone, whose `srun` runs a command once, here."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": 'exec "$@"', "scontrol": "printf '127.0.0.1\\nother\\n'"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    submitted = tmp_path / "checkout"
    (submitted / ".venv" / "bin").mkdir(parents=True)
    folder = Path(sys.executable).parent
    (submitted / ".venv" / "bin" / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    (submitted / "jobs").symlink_to(CHECKOUT / "jobs")
    return os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(submitted),
        "SLURM_JOB_NODELIST": "127.0.0.1,other",
        "SLURM_JOB_NUM_NODES": "1",
    }


@pytest.mark.slow
@makes_namespaces
def test_slurms_script_starts_a_ray_trains_and_ends_it(slurm, raw_dataset, tmp_path):
    options = ["--data", raw_dataset.path, "--run", tmp_path / "run", "--workers", "1", "--num-epochs", "1"]
    options += ["--global-batch-size", "12", "--augmentation.crop-size", "24"]
    script = shlex.join(["bash", str(DEPLOY / "slurm.sh"), *map(str, options)])
    # Ray's ports, and all that `ray stop` finds, are this test's alone.
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c"]
    answer = subprocess.run(
        [*command, f"ip link set lo up && exec {script}"], env=slurm, capture_output=True, text=True, timeout=200
    )
    assert answer.returncode == 0, answer.stderr
    assert "finished" in answer.stdout
    assert (tmp_path / "run" / "result.json").exists()
