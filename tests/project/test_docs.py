"""The documents tell the truth: commands have help and stand in the README, links and paths lead somewhere."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.paths import CHECKOUT

FOLDERS = ("pipeline", "model", "cluster", "jobs", "tests", "docs", "benchmarks", "examples")
DOCUMENTS = [*CHECKOUT.glob("*.md"), *(path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.md"))]
COMMANDS = sorted(
    path
    for folder in ("pipeline", "cluster", "jobs")
    for pattern in ("*.py", "*/__main__.py")
    for path in (CHECKOUT / folder).glob(pattern)
    if "run_command(main)" in path.read_text()
)
FORMAT, TROUBLESHOOTING = CHECKOUT / "docs" / "dataset_format.md", CHECKOUT / "docs" / "troubleshooting.md"
# Messages of others, and what is no message.
NOT_OURS = {"nvidia-dali", "AuthenticationError", "ray job submit", "/dev/shm"}


def _name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)


def test_the_commands_and_documents_are_found():
    assert {"pipeline/shard.py", "jobs/train.py", "cluster/lab/__main__.py"} <= {_name(path) for path in COMMANDS}
    assert {"README.md", "CHANGELOG.md", "docs/architecture.md"} <= {_name(path) for path in DOCUMENTS}


def _first_line(path: Path) -> str:
    return path.read_text().partition('"""')[2].partition("\n")[0]


@pytest.mark.parametrize("path", COMMANDS, ids=_name)
def test_a_command_has_help(path, monkeypatch, capsys):
    # Without a cache folder, a command that goes to work instead of showing its help fails at once.
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(_module(path)).main(["--help"])
    assert ended.value.code == 0
    assert _first_line(path) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["-m", "pipeline.shard"], ["jobs/train.py"]], ids=" ".join)
def test_a_command_shows_its_help_from_a_shell(words):
    command = [sys.executable, *words, "--help"]
    answer = subprocess.run(command, cwd=CHECKOUT, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--data" in answer.stdout or "--encoding" in answer.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=_name)
def test_a_command_stands_in_the_readme(path):
    module = _module(path).removesuffix(".__main__")
    forms = [f"python -m {module}"] + [f"python {_name(path)}"] * (path.parent.name == "jobs")
    readme = (CHECKOUT / "README.md").read_text()
    assert any(re.search(rf"{re.escape(form)}(?![\w.])", readme) for form in forms), f"README.md lacks {forms[-1]}"


@pytest.mark.parametrize("path", COMMANDS, ids=_name)
def test_a_command_stands_in_the_reference(path):
    module = _module(path).removesuffix(".__main__")
    reference = (CHECKOUT / "docs" / "commands.md").read_text()
    assert f"python -m {module}" in reference or f"python {_name(path)}" in reference


@pytest.mark.parametrize("path", COMMANDS, ids=_name)
def test_a_command_s_help_has_an_example(path):
    header = path.read_text().partition('"""')[2].partition('"""')[0]
    assert re.search(r"^    (python|make|alexnet|ray|torchrun) \S", header, flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_relative_links_lead_somewhere(document):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", target)]
    for target in targets:
        name, _, anchor = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), f"{_name(document)} links {target}"
        if anchor:
            headings = re.findall(r"^#+ +(.+)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_code_in_a_table_has_no_escaped_bar(document):
    rows = [line for line in document.read_text().splitlines() if line.startswith("|")]
    assert [code for row in rows for code in re.findall(r"`[^`]+`", row) if r"\|" in code] == []  # the site shows the \


def test_the_site_breaks_no_short_code():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", CHECKOUT / "docs" / "site.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    block = "<pre><span></span><code>make demo\n</code></pre>"
    page = f"<code>--json -</code> <code>{'x' * 60}</code> {block}"
    assert hooks.on_page_content(page) == page.replace("<code>--json", '<code class="short">--json')


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_paths_and_modules_in_code_exist(document):
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), flags=re.DOTALL))
    paths = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", code)
    modules = re.findall(rf"(?:python -m|from|import) ((?:{'|'.join(FOLDERS)})[.\w]+)", code)
    for path in (module.replace(".", "/") for module in modules):
        paths.append(f"{path}/__main__.py" if (CHECKOUT / path).is_dir() else f"{path}.py")
    assert [path for path in paths if not (CHECKOUT / path).exists()] == []


def test_documents_that_the_code_names_exist():
    sources = [path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.py")]
    named = {path for source in sources for path in re.findall(r"docs/[\w/-]+\.md", source.read_text())}
    assert named
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def _printed() -> str:
    """Return all texts of the programs but for their docstrings; what varies in a text is left out."""
    texts = []
    for path in (path for folder in ("pipeline", "cluster", "jobs") for path in (CHECKOUT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
                texts += [part.value for part in node.values if isinstance(part, ast.Constant)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n\n" not in node.value:
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_of_the_troubleshooting_page_are_the_programs():
    """Parts of a message between what varies: names in capitals, numbers, paths and what is left out."""
    printed = _printed()
    symptoms = re.findall(r"^\| ([^|]+) \|", TROUBLESHOOTING.read_text(), flags=re.MULTILINE)
    messages = {found for symptom in symptoms for found in re.findall(r"`([^`]+)`", symptom)} - NOT_OURS
    assert len(messages) > 15
    for message in messages:
        varying = r"\.\.\.|\b(?:SOURCE|DATASET|RUN|N)\b|\S*/\S*|\S*\d{2,}\S*|(?<![\w-])\d\S*|\btrain\b"
        parts = [part.strip(" ,;:()") for part in re.split(varying, message)]
        assert max(map(len, parts)) >= 5, message
        for part in parts:
            assert part in printed, f"no program prints {part!r}, of {message!r}"


README_EXAMPLE = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readmes_example_runs(jpeg_dataset, tmp_path, monkeypatch):
    (example,) = README_EXAMPLE
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fashion-mnist-shards").symlink_to(jpeg_dataset.path)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(example, "README.md", "exec"), found)
    assert found["logits"].shape == (96, jpeg_dataset.num_classes)


def test_the_format_names_each_field_of_dataset_json(jpeg_dataset):
    document = jpeg_dataset.document
    fields = {*document, *(f"encoding.{name}" for name in document["encoding"])} - {"encoding"}
    assert fields - set(re.findall(r"`([^`\n]+)`", FORMAT.read_text())) == set()


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", FORMAT.read_text(), flags=re.DOTALL))
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_formats_examples_run(example, jpeg_dataset, raw_dataset, tmp_path, monkeypatch):
    (tmp_path / "DATASET").symlink_to(jpeg_dataset.path)
    (tmp_path / "RAW_DATASET").symlink_to(raw_dataset.path)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(example, FORMAT, "exec"), found)
    if "row" in found:
        assert found["row"]["key"] == jpeg_dataset.manifest("train")["key"].to_pylist()[-1]
    elif "labels" in found:
        assert found["labels"] == jpeg_dataset.manifest("train")["class_index"].to_pylist()[:8]
    else:
        assert found["pixels"].shape == (32, 32, 3)
