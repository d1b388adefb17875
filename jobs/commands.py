"""The commands of this project, in the order in which `alexnet --help` lists them. Standard library only."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from pipeline.paths import CHECKOUT

# What the commands of a group are for -> their modules.
_GROUPS = {
    "making a dataset": (
        *("pipeline.synthesize", "pipeline.fetch", "pipeline.shard"),
        *("pipeline.verify", "pipeline.stats", "pipeline.preview", "pipeline.bench"),
    ),
    "training": ("jobs.demo", "jobs.train", "jobs.evaluate", "jobs.predict", "jobs.report", "jobs.curves"),
    "proofs": ("cluster.ledger", "cluster.drill"),
    "scaling": ("jobs.scale", "jobs.scaling_figures", "jobs.plan", "cluster.lab.__main__"),
    "this machine and the cluster": ("jobs.doctor", "jobs.preflight", "jobs.completion"),
}


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: Module whose `main` runs it.
        group: What it is for.
    """

    module: str
    group: str

    @property
    def name(self) -> str:
        """What is typed after `alexnet`."""
        return self.key.replace("_", "-")

    @property
    def key(self) -> str:
        """Name by which `jobs.bootstrap.prepare` knows it."""
        return self.module.removesuffix(".__main__").rpartition(".")[2]

    @property
    def path(self) -> Path:
        """File of the module."""
        return CHECKOUT.joinpath(*self.module.split(".")).with_suffix(".py")

    @property
    def summary(self) -> str:
        """First line of the module's docstring; the module is read, not loaded."""
        return self.path.read_text().partition('"""')[2].partition("\n")[0].removesuffix('"""')


COMMANDS = {
    command.name: command
    for command in (Command(module, group) for group, modules in _GROUPS.items() for module in modules)
}


def find_command(word: str) -> Command | None:
    """Return the command of a name, in which `_` stands for `-`, or None if there is none."""
    return COMMANDS.get(word.replace("_", "-"))


def nearest_name(word: str) -> str | None:
    """Return the name of the command that a misspelt word is most like, or None if none is."""
    return next(iter(difflib.get_close_matches(word.replace("_", "-"), COMMANDS, n=1)), None)
