"""Print a script that completes the commands of `alexnet` and their options in bash or zsh.

    eval "$(alexnet completion bash)"
    mkdir -p ~/.local/share/bash-completion/completions
    alexnet completion bash > ~/.local/share/bash-completion/completions/alexnet
    alexnet completion zsh > "${fpath[1]}/_alexnet"

The first line is for the shell in which it is typed, the others are for all shells that are started later. A command's
options are asked for when they are first completed in a shell, so they are always those of the installed version.
"""

import contextlib
import importlib
import importlib.metadata
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jobs.commands import COMMANDS, Command, find_command
from pipeline.command import InputError, run_command

Shell = Literal["bash", "zsh"]
# What follows the function in tyro's script (1.0.0 and 1.0.17 were seen): its registration, in whose place ours stands.
_END_OF_FUNCTION = {"bash": "# Register completion", "zsh": "typeset -A opt_args"}

_BASH = """\
# Completion of alexnet in bash.
_alexnet() {
  local command=${COMP_WORDS[1]} loaded
  COMPREPLY=()
  if ((COMP_CWORD < 2)); then
    COMPREPLY=($(compgen -W "NAMES" -- "$command"))
    return
  fi
  loaded=_tyro_alexnet_${command//[^[:alnum:]_]/_}
  if ! declare -F "$loaded" > /dev/null; then
    eval "$("${COMP_WORDS[0]/#\\~\\//$HOME/}" completion bash "$command" 2> /dev/null)"
    declare -F "$loaded" > /dev/null || return
  fi
  COMP_WORDS=("alexnet $command" "${COMP_WORDS[@]:2}")
  ((COMP_CWORD -= 1))
  "$loaded"
}
complete -o default -F _alexnet alexnet
"""
_ZSH = """\
#compdef alexnet
# Completion of alexnet in zsh.
_alexnet() {
  local -a commands
  commands=(
DESCRIPTIONS
  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local name=${words[2]} loaded
  loaded=_tyro_alexnet_${name//[^[:alnum:]_]/_}
  if ((! $+functions[$loaded])); then
    eval "$(${~words[1]} completion zsh $name 2> /dev/null)"
    (($+functions[$loaded])) || return
  fi
  words=("alexnet $name" "${(@)words[3,-1]}")
  ((CURRENT -= 1))
  $loaded
}
if [[ $funcstack[1] == _alexnet ]]; then  # loaded from fpath
  _alexnet "$@"
else
  compdef _alexnet alexnet
fi
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m jobs.completion`."""

    shell: Annotated[Shell, tyro.conf.Positional]
    """The shell."""
    command: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[COMMAND]")] = None
    """Command whose options are completed; the script asks for it. Default: the script itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if arguments.command is None:
        sys.stdout.write(dispatcher(arguments.shell))
        return 0
    command = find_command(arguments.command)
    if command is None:
        raise InputError(f"there is no command {arguments.command!r}; `alexnet --help` lists all")
    sys.stdout.write(options_function(command, arguments.shell))
    return 0


def dispatcher(shell: Shell) -> str:
    """Return the script that completes the names of commands, and loads the function for a command's options."""
    if shell == "bash":
        return _BASH.replace("NAMES", " ".join(COMMANDS))
    descriptions = (f"{command.name}:{command.summary}" for command in COMMANDS.values())
    quoted = ("    '" + text.replace("'", "'\\''") + "'" for text in descriptions)
    return _ZSH.replace("DESCRIPTIONS", "\n".join(quoted))


def options_function(command: Command, shell: Shell) -> str:
    """Return the function that completes a command's options, as tyro makes it.

    Raises:
        InputError: This tyro makes another script than the ones that were seen.
    """
    sys.argv = [f"alexnet {command.name}"]  # tyro names the function after it
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        importlib.import_module(command.module).main(["--tyro-write-completion", shell, "-"])
    function, end, _ = script.getvalue().partition(_END_OF_FUNCTION[shell])
    if not end:
        version = importlib.metadata.version("tyro")
        raise InputError(f"tyro {version} completes options in a way that is not known here; update this program")
    # The shells take the lines of an answer apart, and would offer the later lines of a description as words.
    return re.sub(r"^COMPLETION_SPEC = .*", lambda spec: spec[0].replace(r"\n", " "), function, flags=re.MULTILINE)


if __name__ == "__main__":
    run_command(main)
