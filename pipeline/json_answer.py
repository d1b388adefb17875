"""Answers for scripts: the option `--json`, which means the same in every command that has it.

`--json FILE.json` writes a JSON document to a file, whose name must end so: another word after the option is then not
taken for it. `--json -`, or `--json` as the last word or before another option, prints it on standard output, and what
is said to people goes to standard error instead.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipeline.command import InputError
from pipeline.system.files import write_json

_OPTION, _STANDARD_OUTPUT = "--json", "-"
JsonTarget = Annotated[Path | None, tyro.conf.arg(metavar="FILE.json|-")]
"""Type of the option in a command's `Arguments`; its default is None."""


def completed(argv: Sequence[str] | None) -> list[str]:
    """Return the words of a command line, in which `--json` without a file has become `--json -`.

    Args:
        argv: Words of the command line; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for index in range(len(words) - 1, -1, -1):
        follows = words[index + 1] if index + 1 < len(words) else "--"
        if words[index] == _OPTION and follows.startswith("--"):
            words.insert(index + 1, _STANDARD_OUTPUT)
    return words


@contextlib.contextmanager
def json_answer(target: Path | None, *inputs: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the function that gives a command's document to whoever asked for it; without a target, to nobody.

    Args:
        target: Value of the option.
        inputs: Files and folders that the command reads, which the document must leave as they are.

    Raises:
        InputError: The target is not a place for the document; found out before the command does its work.
    """
    if target is None:
        yield lambda document: None
    elif str(target) == _STANDARD_OUTPUT:
        output = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda document: _print(document, output)
    else:
        _check(target, [path for path in inputs if path is not None])
        yield lambda document: write_json(target, document)


def _check(target: Path, inputs: Sequence[Path]) -> None:
    if target.is_dir():
        raise InputError(f"{_OPTION} {target} is a folder; name a file to write")
    if target.suffix.lower() != ".json":
        raise InputError(f"{_OPTION} {target} does not end in .json; name FILE.json, or - for standard output")
    for path in inputs:
        if target.resolve() == path.resolve():
            raise InputError(f"{_OPTION} {target} would overwrite what the command reads; name another FILE.json")
        if target.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"{_OPTION} {target} lies in {path}, which holds only its own files; name another FILE.json"
            )


def _print(document: dict[str, Any], output: Any) -> None:
    output.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
    output.flush()
