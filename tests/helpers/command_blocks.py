"""The blocks of commands in a document, each of which a test runs or a mark explains.

A mark is a comment right before the block, or, for all blocks of a page, in its first lines:

    <!-- not run by a test: it takes hosts with SSH -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(?:^<!-- not run by a test: (?P<reason>[^\n]+) -->\n)?^```sh\n(?P<text>.*?)^```$", re.M | re.S)
_OF_PAGE = re.compile(r"\A# [^\n]+\n+<!-- commands of this page are not run by a test: ([^\n]+) -->$", re.M)


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        commands: Lines of the block, with continued ones joined, without comments.
        reason: Why no test runs it; None if one must.
    """

    commands: tuple[str, ...]
    reason: str | None


def command_blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks of shell commands in order."""
    text = page.read_text()
    others = re.findall(r"^ *```(?:bash|shell|console|sh\b.+)$|^ +```sh", text, flags=re.M)
    if others:
        raise ValueError(f"{page.name} has the block {others[0]!r}: commands stand in blocks that begin with ```sh")
    of_page = _OF_PAGE.search(text)
    for found in _BLOCK.finditer(text):
        lines = found["text"].replace("\\\n", " ").splitlines()
        commands = (re.sub(r"\s+#\s.*", "", line).strip() for line in lines)
        reason = found["reason"] or (of_page and of_page[1])
        yield Block(tuple(command for command in commands if command), reason)


def commands_to_run(page: Path) -> list[str]:
    """Return the commands of a page that a test must run, in order."""
    return [command for block in command_blocks(page) if block.reason is None for command in block.commands]
