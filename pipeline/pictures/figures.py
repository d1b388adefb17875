"""Shared by the commands that draw: a PNG is written completely or not at all, with text in any script."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline.command import InputError
from pipeline.pictures.fonts import covering_fonts, drawable, font_families, warn_of_missing_letters
from pipeline.system.files import atomic_file

_DOTS_PER_INCH = 150


def check_figure_path(path: Path, option: str) -> None:
    """Raise InputError if the figure could not be written to `path`, before any work is done."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path} does not end in .png; name the figure OUT.png")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name the figure OUT.png")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; one line of warning lists the letters that no installed font has."""
    missing = _choose_fonts([artist for artist in figure.findobj(Text) if isinstance(artist, Text)])
    with atomic_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # one warning per letter and place
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    warn_of_missing_letters(missing)


def _choose_fonts(texts: Sequence[Text]) -> str:
    """Choose fonts for the non-ASCII letters in the texts; return the letters that no font has."""
    special = [text for text in texts if not text.get_text().isascii()]
    if not special:
        return ""
    for text in special:
        text.set_text("\n".join(map(drawable, text.get_text().split("\n"))))
    files, missing = covering_fonts(text.get_text() for text in special)
    for text in special if files else ():
        text.set_fontfamily(font_families(files))
    return missing
