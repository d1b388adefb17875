"""The arrows of the architecture, checked in a fresh process: what a module loads is what it really needs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from pipeline.paths import CHECKOUT

SPECIFICATION = [
    *("pipeline.format.color", "pipeline.format.manifest", "pipeline.online.augmentation", "pipeline.online.order"),
    *("pipeline.online.philox", "pipeline.online.random_streams", "pipeline.online.reference"),
]
PROBE = (
    "import sys, importlib; [importlib.import_module(n) for n in sys.argv[1:]]; sys.stdout.write(' '.join(sys.modules))"
)


def _loaded(*modules: str) -> set[str]:
    """Return what a fresh process has loaded once it has imported some modules."""
    command = [sys.executable, "-c", PROBE, *modules]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT).stdout.split())


def test_the_specification_and_the_ledger_load_neither_torch_nor_dali_nor_ray():
    assert not {"torch", "nvidia.dali", "ray"} & _loaded(*SPECIFICATION, "cluster.run.ledger_files")


def test_what_a_driver_knows_of_a_run_loads_neither_torch_nor_dali():
    heavy = {"torch", "nvidia.dali", "ray", "numba", "timm", "torchvision"}
    light = ["cluster.run.config", "cluster.run.run_folder", "cluster.run.fit", "cluster.run.curves", "jobs.recipes"]
    assert not heavy & _loaded(*light)


def test_a_worker_s_world_loads_no_dali():
    assert "nvidia.dali" not in _loaded("cluster.worker.world")


def test_only_the_launcher_loads_ray():
    assert "ray" not in _loaded("pipeline.loader", "cluster.worker.training", "cluster.launch.node_checks")


def test_what_looks_at_a_node_is_light():
    assert not {"torch", "nvidia.dali", "pyarrow"} & _loaded("cluster.launch.ray_node_inquiry")


HELP = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as help, contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    assert "usage: " in help.getvalue(), name
    if heavy := {"torch", "nvidia.dali", "ray"} & sys.modules.keys():
        sys.exit(f"{name} loads {heavy}")
"""
COMMANDS = [
    *("jobs.train", "jobs.evaluate", "jobs.predict", "jobs.curves", "jobs.preflight", "jobs.demo", "jobs.scale"),
    *("jobs.report", "jobs.doctor", "jobs.completion", "jobs.__main__"),
    *("cluster.drill", "cluster.ledger", "cluster.lab.__main__", "pipeline.stats"),
]


def test_the_help_of_a_command_loads_neither_torch_nor_dali_nor_ray():
    answer = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 0, answer.stderr


def test_a_ledger_is_proven_without_docstrings():
    command = [sys.executable, "-OO", "-m", "cluster.ledger", "--help"]  # DALI needs docstrings
    answer = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 0 and "RUN" in answer.stdout, answer.stderr


IMPORT_ALL = """
import os, pkgutil, sys, cv2, nvidia.dali, ray.train, torch  # what libraries set is theirs
before = dict(os.environ)
import pipeline, model, cluster, jobs
for package in (pipeline, model, cluster, jobs):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
names = before.keys() | os.environ.keys()
sys.stdout.write(" ".join(name for name in names if before.get(name) != os.environ.get(name)))
"""


def test_no_module_sets_a_variable_of_the_environment_as_it_is_imported():
    answer = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert answer.stdout == ""


def test_pipeline_and_model_do_not_load_each_other():
    assert not any(name.split(".")[0] == "pipeline" for name in _loaded("model.alexnet"))
    assert not any(name.split(".")[0] == "model" for name in _loaded("pipeline.loader"))


# One module a library may use what the library does not document; each says what happens where it is absent.
QUIRKS = {"pipeline/system/ray_quirks.py", "pipeline/online/dali_quirks.py", "model/torch_quirks.py"}
INTERNAL = re.compile(r"(^|\.)_(?!_|exit$)|^ray\.train\.v2")  # `os._exit` is documented


def _insides_used(path: Path) -> list[str]:
    """Return modules that are imported, and attributes that are read, by whose names their library keeps them back."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")}
    used = [node.attr for node in attributes if node.attr not in defined | own]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            used += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # super()._method of a library
            if isinstance(node.func.value, ast.Call) and ast.unparse(node.func.value) == "super()":
                used += [node.func.attr]
    return [name for name in used if INTERNAL.search(name)]


def test_what_a_library_does_not_document_is_used_in_one_module_a_library():
    files = [path for folder in ("pipeline", "model", "cluster", "jobs") for path in (CHECKOUT / folder).rglob("*.py")]
    found = {str(path.relative_to(CHECKOUT)): names for path in files if (names := _insides_used(path))}
    assert found.keys() <= QUIRKS, found
    assert "pipeline/system/ray_quirks.py" in found  # else nothing is looked for


def test_import_contracts_hold():
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert answer.returncode == 0, answer.stdout


def test_no_file_is_longer_than_400_lines():
    files = [
        path
        for folder in ("pipeline", "model", "cluster", "jobs", "tests")
        for path in (CHECKOUT / folder).rglob("*.py")
    ]
    assert len(files) > 40
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 400] == []
