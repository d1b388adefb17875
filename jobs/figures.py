"""What the commands that draw have in common: a PNG appears whole or not at all."""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.command import InputError
from pipeline.files import atomic_file

_DOTS_PER_INCH = 150


def check_figure_path(path: Path, option: str) -> None:
    """Raise InputError where the figure could not be written to `path`, before work is spent on it."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path} does not end in .png; name the figure OUT.png")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name the figure OUT.png")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
