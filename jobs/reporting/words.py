"""Numbers and names as a report writes them."""

import re

from markupsafe import Markup, escape

NONE = "\N{EN DASH}"  # in place of a figure that is not known


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction in per cent; a dash for None."""
    return NONE if fraction is None else f"{fraction * 100:.{digits}f} %"


def count(number: int | float | None) -> str:
    """Return a whole number with thousands separated; a dash for None."""
    return NONE if number is None else f"{round(number):,}"


def signed(number: float, digits: int) -> str:
    """Return a number with its sign: +0.597, \N{MINUS SIGN}3."""
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Return a time to two units at most: 24 s, 9:41 min, 3:05 h, 2 d 4 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def millions(number: int) -> str:
    """Return a number to three digits if it is above a million."""
    return f"{number / 1e6:.3g} M" if number >= 1_000_000 else f"{number:,}"


def first_name(name: str) -> str:
    """Return the first of a class's names: ImageNet's are lists of synonyms."""
    return name.partition(",")[0].strip() or name


def plural(number: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def value(content: object) -> str:
    """Return a value of a recipe or of versions as a table shows it."""
    if content is None:
        return "none"
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, list | tuple):
        return ", ".join(map(value, content)) or "none"
    return f"{content:g}" if isinstance(content, float) else str(content)


def sentence(text: str) -> str:
    """Return a text with a capital letter first, unless it begins with a path or the name of something."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def breakable(name: str) -> Markup:
    """Return a dotted name or a path that a narrow column breaks between its words; numbers stay whole."""
    return Markup(re.sub(r"([._/])(?!\d)", r"\1<wbr>", str(escape(name))))
