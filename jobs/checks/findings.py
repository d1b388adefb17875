"""What a check finds, and checks that can't take the others down with them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.command import UserError
from pipeline.system.os_errors import described, way_out

Verdict = Literal["ok", "warning", "problem"]
INSTALL = "run `make setup`, or pip install -e '.[cuda13]' (or [cuda12])"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: Name of the check.
        verdict: `problem`: something will fail or is not safe; `warning`: it may fail or be slow; `ok`.
        found: What was found.
        advice: What to do; empty if nothing needs to be done.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.verdict:7}  {self.check}: {' '.join(self.found.split())}{self.advice and '; '}{self.advice}"


Check = Callable[[], Iterable[Finding]]


def findings_of(name: str, check: Check) -> Iterator[Finding]:
    """Run a check; where it fails itself, that is its finding.

    Args:
        name: Name of the check.
        check: Yields its findings.
    """
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Finding(name, "problem", f"can't be checked: the module {error.name} is not installed", INSTALL)
    except UserError as error:
        for line in str(error).splitlines():
            found, _, advice = line.partition("; ")
            yield Finding(name, "problem", found, advice or INSTALL)
    except OSError as error:
        advice = way_out(error) or "look at it, and try again"
        yield Finding(name, "problem", f"can't be looked at: {described(error)}", advice)
    except Exception as error:  # a broken installation may raise anything, and the other checks go on
        yield Finding(name, "problem", f"can't be checked: {type(error).__name__}: {error}", INSTALL)
