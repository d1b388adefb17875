"""`alexnet COMMAND` is the same as the command's own call, from any folder, and completes names and options."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from jobs import __main__ as front_door
from jobs import bootstrap, completion
from jobs.commands import COMMANDS, find_command, nearest_name
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

MODULE = [sys.executable, "-m", "jobs"]


@pytest.fixture
def restarts(monkeypatch) -> list[None]:
    """Called as the console script; collects restarts of the process instead of restarting it."""
    calls: list[None] = []
    monkeypatch.setattr(bootstrap, "restart_with_tuned_allocator", lambda: calls.append(None))
    monkeypatch.setattr(sys, "argv", ["/venv/bin/alexnet"])
    monkeypatch.setenv("COLUMNS", "200")
    return calls


def _run(*words: str, cwd: Path | None = None, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs` in a folder, with another folder on Python's path; glibc's settings are not inherited."""
    others = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_ENVIRONMENT}
    folders = os.pathsep.join(map(str, filter(None, [path, CHECKOUT])))
    environment = others | {"PYTHONPATH": folders, "COLUMNS": "200"}
    return subprocess.run([*MODULE, *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_its_first_line(words, restarts, capsys):
    with pytest.raises(SystemExit) as ended:
        front_door.main(words)
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: alexnet COMMAND [options]")
    for command in COMMANDS.values():
        assert f"{command.name} {command.summary}" in text
    assert "130, 143 interrupted by Ctrl-C" in text


def test_every_command_of_the_project_is_listed():
    files = [
        path
        for folder in ("pipeline", "cluster", "jobs")
        for pattern in ("*.py", "*/__main__.py")
        for path in (CHECKOUT / folder).glob(pattern)
        if "run_command(main)" in path.read_text() and path != CHECKOUT / "jobs" / "__main__.py"
    ]
    assert {command.path for command in COMMANDS.values()} == set(files)
    assert all(command.summary.endswith((".", ":")) for command in COMMANDS.values())


def test_the_list_needs_the_standard_library_alone(tmp_path):
    script = (
        "import sys; from jobs.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.stderr.write(' '.join(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    answer = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "usage: " in answer.stdout
    assert not {"tyro", "numpy", "torch", "pyarrow", "ray"} & set(answer.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_has_the_name_that_called_it(name, restarts, capsys):
    with pytest.raises(SystemExit) as ended:
        front_door.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: alexnet {name} " in " ".join(capsys.readouterr().out.split())
    assert len(restarts) == (name in ("evaluate", "predict"))


@pytest.mark.parametrize(("words", "num_restarts"), [(["--launcher", "alone"], 1), ([], 0)])
def test_training_in_this_process_tunes_the_allocator(words, num_restarts, restarts):
    with pytest.raises(InputError, match="no recipe 'none'"):
        front_door.main(["train", "--recipe", "none", *words])
    assert len(restarts) == num_restarts


def test_a_restarted_command_is_called_as_before(tmp_path):
    note = "open('starts', 'a').write(f\"{os.environ.get('MALLOC_TOP_PAD_')} {sys.orig_argv[1:]}\\n\")"
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\n{note}\n")
    answer = _run("predict", "--help", cwd=tmp_path, path=tmp_path)
    assert answer.returncode == 0 and "usage: python -m jobs predict" in " ".join(answer.stdout.split())
    words = "['-m', 'jobs', 'predict', '--help']"
    assert (tmp_path / "starts").read_text() == f"None {words}\n{256 << 20} {words}\n"


@pytest.mark.parametrize(
    ("word", "meant"), [("trian", "train"), ("scaling_figure", "scaling-figures"), ("evalute", "evaluate"), ("x", None)]
)
def test_the_nearest_name_is_offered(word, meant):
    assert nearest_name(word) == meant


def test_an_unknown_command_gets_one_line():
    answer = _run("trian", "--data", "x")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr == (
        "error: there is no command 'trian'; did you mean `python -m jobs train`? `python -m jobs --help` lists all\n"
    )


def test_names_are_taken_with_either_dash():
    assert find_command("scaling_figures") is find_command("scaling-figures") is not None


def test_input_is_refused_as_by_the_command_itself(tmp_path):
    through = _run("verify", str(tmp_path))
    itself = subprocess.run(
        [sys.executable, "-m", "pipeline.verify", str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert (through.returncode, through.stderr) == (itself.returncode, itself.stderr)
    assert through.returncode == 2 and through.stderr.count("\n") == 1


def test_the_lab_names_the_call_in_its_own_advice(restarts):
    with pytest.raises(InputError, match="`alexnet lab submit -- python"):
        front_door.main(["lab", "submit"])


@pytest.fixture
def script(tmp_path):
    """The console script as pip writes it, first on PATH; returns the environment."""
    path = tmp_path / "bin" / "alexnet"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom jobs.__main__ import run\nsys.exit(run())\n")
    path.chmod(0o755)
    return os.environ | {
        "PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(CHECKOUT),
    }


BASH = r"""
eval "$(alexnet completion bash)"
complete -p alexnet
try() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _alexnet
  echo "$*: ${COMPREPLY[*]}"
}
try alexnet ev
try alexnet stats --fi
try alexnet stats --json f --fi
try alexnet train --reci
try alexnet train --placement s
try alexnet lab cu
try alexnet train --exch
try '~/bin/alexnet' verify --wo
try alexnet unknown --x
complete -p alexnet
"""


def test_bash_completes_names_options_and_values(script, tmp_path):
    answer = subprocess.run(["bash", "--norc", "-c", BASH], cwd=tmp_path, env=script, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    registered, *lines, registered_after = answer.stdout.splitlines()
    assert registered == registered_after and "-F _alexnet" in registered
    found = {words: completions.split() for words, _, completions in (line.partition(": ") for line in lines)}
    assert found["alexnet ev"] == ["evaluate"]
    assert found["alexnet stats --fi"] == found["alexnet stats --json f --fi"] == ["--figure"]
    assert found["alexnet train --reci"] == ["--recipe"]
    assert found["alexnet train --placement s"] == ["spread"]
    assert found["alexnet lab cu"] == ["cut"]
    assert found["alexnet train --exch"] == ["--exchange"]  # no words of its description, which has several lines
    assert found["~/bin/alexnet verify --wo"] == ["--workers"]


ZSH = r"""
_describe() { print -r -- "$1: ${(P)2}" }
compdef() { print -r -- "compdef $*" }
eval "$(alexnet completion zsh)"
try() { words=("$@"); CURRENT=$#; _alexnet }
try alexnet tr
try alexnet stats --fi
try '~/bin/alexnet' verify --wo
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_names_and_options(script, tmp_path):
    answer = subprocess.run(["zsh", "-f", "-c", ZSH], cwd=tmp_path, env=script, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "compdef _alexnet alexnet" in answer.stdout
    assert "train:Train a recipe" in answer.stdout and "--figure:" in answer.stdout and "--workers:" in answer.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_script_of_another_tyro_is_not_passed_on(shell, restarts, monkeypatch, capsys):
    monkeypatch.setitem(completion._END_OF_FUNCTION, shell, "what another tyro writes")
    with pytest.raises(InputError, match=r"tyro .* completes options in a way that is not known here"):
        front_door.main(["completion", shell, "stats"])
    assert capsys.readouterr().out == ""


def test_completion_of_an_unknown_command_is_refused(restarts):
    with pytest.raises(InputError, match="there is no command 'trian'"):
        front_door.main(["completion", "bash", "trian"])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_has_a_function_that_completes_it(shell, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alexnet completion"])
    text = completion.options_function(COMMANDS[name], shell)
    function = f"_tyro_alexnet_{re.sub('[^a-zA-Z0-9_]', '_', name)}() {{"
    assert function in text and not re.search(r"^\s*(complete -F|typeset -A)", text, flags=re.MULTILINE)


@pytest.mark.slow  # 10 s
def test_an_installed_package_has_the_command(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        CHECKOUT, source, ignore=shutil.ignore_patterns(".git", ".venv", "tests", "docs", "data", "runs", "*.egg-info")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheel, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(path)], capture_output=True, check=True)
    shutil.rmtree(source)
    environment = os.environ | {"PYTHONPATH": str(place)}
    (tmp_path / "elsewhere").mkdir()

    def alexnet(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(place / "bin" / "alexnet"), *words]
        return subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)

    listed = alexnet()
    assert listed.returncode == 0 and all(command in listed.stdout for command in COMMANDS), listed.stderr
    assert str(place) in alexnet("--version").stdout
    assert (place / "jobs" / "reporting" / "templates" / "style.css").exists()  # what the report is made of
    for name in COMMANDS:
        helped = alexnet(name, "--help")
        assert helped.returncode == 0 and f"usage: alexnet {name}" in " ".join(helped.stdout.split()), helped.stderr
    refused = alexnet("demo")
    assert refused.returncode == 2 and "run `make demo` in a checkout" in refused.stderr
