"""Run any command of this project by its name: `alexnet COMMAND ...`, or from a checkout, `python -m jobs COMMAND ...`.

    alexnet --help
    alexnet train --help
    alexnet train --data DATASET --run RUN
    alexnet shard SOURCE DATASET

It is the same as `python jobs/train.py ...` or `python -m pipeline.shard ...`, from any directory: in this process,
with the same options and the same exit status.
"""

import importlib
import importlib.metadata
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from jobs.bootstrap import prepare
from jobs.commands import COMMANDS, find_command, nearest_name
from pipeline.command import InputError, run_command
from pipeline.paths import CHECKOUT

_EXIT_STATUSES = {
    "0": "done",
    "1": "done, but something was found: a problem, a file that is not a picture, a proof that fails, a link that does "
    "not fit; or, with a traceback, an error of the program",
    "2": "wrong input, or something outside failed: one line per cause says what to do",
    "130, 143": "interrupted by Ctrl-C, ended by SIGTERM",
    "141": "the reader of the output has exited",
}
_MOST_COLUMNS = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    program = "alexnet" if Path(sys.argv[0]).name == "alexnet" else "python -m jobs"
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write("\n".join(_help(program)) + "\n")
        sys.exit(0)
    if words[0] == "--version":
        sys.stdout.write(f"alexnet-at-scale {_version()} ({CHECKOUT})\n")
        return 0
    command = find_command(words[0])
    if command is None:
        nearest = nearest_name(words[0])
        meant = f"did you mean `{program} {nearest}`? " if nearest else ""
        raise InputError(f"there is no command {words[0]!r}; {meant}`{program} --help` lists all")
    sys.argv = [f"{program} {command.name}", *words[1:]]  # the name that the command's help and messages show
    prepare(command.key)
    status: int = importlib.import_module(command.module).main(words[1:])
    return status


def run() -> NoReturn:
    """Run `alexnet` as the command of this process."""
    run_command(main)


def _version() -> str:
    try:
        return importlib.metadata.version("alexnet-at-scale")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _help(program: str) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    yield f"usage: {program} COMMAND [options]"
    yield ""
    yield textwrap.fill((__doc__ or "").partition("\n")[0], width)
    indent = 4 + max(map(len, COMMANDS))
    group = ""
    for command in COMMANDS.values():
        if command.group != group:
            group = command.group
            yield f"\n{group}"
        yield _item(command.name, command.summary, indent, width)
    yield ""
    yield f"`{program} COMMAND --help` shows a command's options and examples."
    yield "\nexit status"
    for status, meaning in _EXIT_STATUSES.items():
        yield _item(status, meaning, 4 + max(map(len, _EXIT_STATUSES)), width)


def _item(name: str, text: str, indent: int, width: int) -> str:
    return textwrap.fill(
        text, max(width, indent + 20), initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent
    )


if __name__ == "__main__":
    run()
