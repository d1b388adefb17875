"""Fonts for text in any script, since names of classes, runs and files may be in any of them.

The fonts of this machine are searched in this order: matplotlib's own DejaVu Sans (Latin, Greek, Cyrillic and more),
then all installed fonts. Letters that no font has are drawn as boxes, with one warning per figure.
"""

import functools
import sys
from collections.abc import Iterable, Sequence

_DEFAULT = "DejaVu Sans"
_MAX_NAMED = 5  # letters named in a warning


def drawable(text: str) -> str:
    """Return a line that can be drawn: line breaks, tabs and a name's undecodable bytes become escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def covering_fonts(texts: Iterable[str]) -> tuple[list[str], str]:
    """Return font files that cover the texts' letters, DejaVu Sans first, and the letters that no font has."""
    missing = {letter for letter in "".join(texts) if letter.isprintable() and not letter.isspace()}
    files = []
    for file in _font_files() if missing else ():
        if not missing:
            break
        if found := {letter for letter in missing if _has(file, letter)}:
            missing -= found
            files.append(file)
    return files, "".join(sorted(missing))


def best_font(text: str) -> str:
    """Return the file of the font that has most of the text's letters."""
    files, _ = covering_fonts([text])
    return max(files or _font_files()[:1], key=lambda file: sum(_has(file, letter) for letter in text))


def font_families(files: Sequence[str]) -> list[str]:
    """Return matplotlib's names for font files."""
    from matplotlib import font_manager

    names: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist:
        names.setdefault(str(entry.fname), entry.name)  # the first face of a collection
    return [names[file] for file in files if file in names]


def warn_of_missing_letters(letters: str) -> None:
    """Warn in one line on standard error of letters that are drawn as boxes, if any, and say what helps."""
    if letters:
        named = " ".join(letters[:_MAX_NAMED]) + (" ..." if len(letters) > _MAX_NAMED else "")
        sys.stderr.write(
            f"warning: no installed font has the letters {named} ({len(letters)} in all), which are drawn as boxes; "
            "install one that does, for example Debian's package fonts-noto-cjk for Chinese, Japanese and Korean, or "
            "fonts-noto-core for most other scripts\n"
        )


@functools.cache
def _font_files() -> list[str]:
    """Return the files of all fonts, DejaVu Sans first, including those that matplotlib has not listed yet."""
    from matplotlib import font_manager  # imported here: it takes a while, and ASCII text does not need it

    first = str(font_manager.findfont(_DEFAULT))
    known = {str(entry.fname) for entry in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(file)
        except Exception:  # a file that FreeType can't read is not a font; it may raise anything
            continue
    usual = {str(entry.fname) for entry in font_manager.fontManager.ttflist if entry.style == "normal"}
    return [first, *sorted(usual - {first})]


@functools.lru_cache(maxsize=65_536)
def _has(file: str, letter: str) -> bool:
    return ord(letter) in _letters(file)


@functools.lru_cache(maxsize=64)
def _letters(file: str) -> frozenset[int]:
    from matplotlib import ft2font

    try:
        return frozenset(ft2font.FT2Font(file).get_charmap())
    except Exception:  # the file is gone or broken; FreeType may raise anything
        return frozenset()
