"""The folder of a scaling experiment, which identifies it: the same command goes on where it was stopped.

OUT/
  links.jsonl                 what was found before the blocks: links by their sweeps, times of computations; its lock
                              keeps other commands out
  experiment.json             what was declared, and the datasets; written as soon as the folder is locked
  blocks/BLOCK-WORKERS.jsonl  a launch: a line for its machine and code, and one for each measured cell
  scaling.parquet             the rows of all whole blocks, see `cluster/lab/scaling_table.py`
  workers.log                 messages of workers on hosts
  current-launch              mark of the launch that is under way on Ray, see `cluster/run/launch_mark.py`

A block is whole if it has all its cells, measured by one code on one kind of machine.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.exchange.cost import Link
from cluster.lab.link_sweep import LinkFit
from cluster.lab.scaling_table import Cell, Row, with_exposed, write_rows
from cluster.run.json_log import JsonLog
from cluster.scaling.cells import expected_bytes, operations_of
from pipeline.command import InputError
from pipeline.system.files import write_json

TABLE = "scaling.parquet"
_DECLARATION, _LINKS, _BLOCKS, _WORKERS_LOG = "experiment.json", "links.jsonl", "blocks", "workers.log"
Say = Callable[[Cell, float], None]
"""Function that is told a measured cell and the time of its step."""
_UNMEASURED = ("sent_bytes", "blocked_seconds", "mean_step_seconds", "throttled_seconds")  # fields that may be


@dataclass(frozen=True)
class Identity:
    """What a block must not mix.

    Attributes:
        code: Hash of this project's code.
        machine: Kind of the machine.
    """

    code: str
    machine: str

    def difference(self, other: "Identity") -> str:
        """Return in words how another one measured."""
        return f"on {other.machine}, not {self.machine}" if other.machine != self.machine else "by other code"


@dataclass(frozen=True)
class Measured:
    """A cell's line of a launch.

    Attributes:
        cell: The cell.
        identity: Code and machine that measured it.
        versions: Versions of Python and the libraries, as JSON.
        place: Place of the cell in the launch's order.
        num_steps: Number of timed steps.
        fields: Measured fields of its row.
        link: The link between the launch's workers as it is; None: not measured.
        time: When it was written, in seconds since 1970.
    """

    cell: Cell
    identity: Identity
    versions: str
    place: int
    num_steps: int
    fields: dict[str, float | None]
    link: Link | None
    time: float


class SweepFolder:
    """Files of an experiment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def table(self) -> Path:
        """Path of the table."""
        return self.path / TABLE

    @property
    def workers_log(self) -> Path:
        """Path of the file for the messages of workers on hosts."""
        return self.path / _WORKERS_LOG

    def check(self, declaration: dict[str, Any]) -> None:
        """Check that the folder is free for an experiment, or has it already; a number of blocks may change.

        Raises:
            InputError: It has another one, or something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file; name a folder")
        try:
            found = json.loads((self.path / _DECLARATION).read_text())
        except FileNotFoundError:
            # A command that was killed before it wrote what is declared leaves the log, which it locks first.
            if self.path.exists() and (others := sorted({each.name for each in self.path.iterdir()} - {_LINKS})):
                raise InputError(
                    f"--out {self.path} holds {others[0]}, which is not of an experiment; name a folder of its own"
                ) from None
            return
        except ValueError as error:
            raise InputError(f"{self.path / _DECLARATION} is not JSON; name another folder: --out") from error
        names = sorted((declaration.keys() | found.keys()) - {"blocks"})
        changed = [name for name in names if declaration.get(name) != found.get(name)]
        if changed:
            differences = (
                f"--out {self.path} holds an experiment with {name} {_short(found.get(name))}, not "
                f"{_short(declaration.get(name))}; name another folder, or repeat that experiment's command"
                for name in changed
            )
            raise InputError("\n".join(differences))

    def begin(self, declaration: dict[str, Any]) -> JsonLog:
        """Write what is declared, and return the log of links, whose lock keeps other commands out.

        Raises:
            InputError: Another command writes to the folder, or has written another experiment since `check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        log = JsonLog(self.path / _LINKS)
        try:
            self.check(declaration)
            write_json(self.path / _DECLARATION, declaration)
        except BaseException:
            log.close()
            raise
        return log

    def links(self) -> dict[tuple[int, float], LinkFit]:
        """Return the latest sweep of each link, by number of workers and Gbit/s."""
        return {
            (line["num_workers"], line["gigabits_per_second"]): LinkFit(
                Link(line["latency_seconds"], line["bytes_per_second"]), line["largest_deviation"]
            )
            for line in _lines(self.path / _LINKS)
            if line["kind"] == "link"
        }

    def computations(self) -> dict[Cell, float]:
        """Return the time of both passes of cells without an exchange, as found before the blocks."""
        lines = (line for line in _lines(self.path / _LINKS) if line["kind"] == "computation")
        return {Cell(**line["cell"]): line["passes_seconds"] for line in lines}

    def launch_log(self, block: int, num_workers: int) -> Path:
        """Return the path of a launch's log; its folder exists."""
        (self.path / _BLOCKS).mkdir(exist_ok=True)
        return self.path / _BLOCKS / f"{block}-{num_workers}.jsonl"

    def measured(self, block: int) -> list[Measured]:
        """Return the lines of a block that one code measured on one kind of machine: those of its latest launch."""
        identity = self.identity(block)
        return [
            Measured(
                cell=Cell(**line["cell"]),
                identity=identity,
                versions=json.dumps(launch["versions"]),
                place=line["place"],
                num_steps=line["num_steps"],
                fields=line["fields"],
                link=None if launch["link"] is None else Link(**launch["link"]),
                time=line["time"],
            )
            for launch, line in self._launched(block)
            if line["kind"] == "cell" and identity == Identity(launch["code"], launch["machine"])
        ]

    def identity(self, block: int) -> Identity | None:
        """Return code and machine of a block's latest launch; None: it was not begun."""
        launches = [line for _, line in self._launched(block) if line["kind"] == "launch"]
        latest = max(launches, key=lambda line: line["time"], default=None)
        return None if latest is None else Identity(latest["code"], latest["machine"])

    def _launched(self, block: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the lines of a block, each with the line of the launch that it belongs to."""
        for path in sorted((self.path / _BLOCKS).glob(f"{block}-*.jsonl")):
            launch: dict[str, Any] | None = None
            for line in _lines(path):
                launch = line if line["kind"] == "launch" else launch
                if launch is not None:
                    yield launch, line

    def rows(self, block: int, cells: Iterable[Cell]) -> list[Row] | None:
        """Return the rows of a block; None: it is not whole."""
        measured, links = {each.cell: each for each in self.measured(block)}, self.links()
        rows = []
        for cell in cells:
            if cell not in measured:
                return None
            fit = links.get((cell.num_workers, cell.gigabits_per_second))
            as_it_is = measured[cell].link
            if fit is None and as_it_is is not None:
                fit = LinkFit(as_it_is, math.nan)
            rows.append(_row(block, measured[cell], fit))
        return with_exposed(rows)

    def write_table(self, blocks: Iterable[int], cells: Iterable[Cell]) -> None:
        """Write the rows of all whole blocks, if there are any."""
        cells = list(cells)
        whole = [rows for block in blocks if (rows := self.rows(block, cells)) is not None]
        if whole:
            write_rows(self.table, [row for rows in whole for row in rows])


def write_launch(log: JsonLog, identity: Identity, versions: dict[str, str], link: Link | None = None) -> None:
    """Begin a launch in its log.

    Args:
        log: The log.
        identity: Code and machine of the workers.
        versions: Versions of Python and the libraries.
        link: The link between the workers as it is, where it is not shaped; None: not measured.
    """
    found = None if link is None else dataclasses.asdict(link)
    log.write("launch", **dataclasses.asdict(identity), versions=versions, link=found)


def write_cell(log: JsonLog, cell: Cell, place: int, num_steps: int, fields: dict[str, Any]) -> None:
    """Add a measured cell to a launch's log."""
    log.write("cell", cell=dataclasses.asdict(cell), place=place, num_steps=num_steps, fields=fields)


def read_cells(log: Path) -> list[tuple[Cell, float]]:
    """Return the cells of a launch's log, in order, with the time of a step."""
    return [(Cell(**line["cell"]), line["fields"]["step_seconds"]) for line in _lines(log) if line["kind"] == "cell"]


def _row(block: int, measured: Measured, fit: LinkFit | None) -> Row:
    cell = measured.cell
    fields: dict[str, Any] = {
        name: math.nan if name in _UNMEASURED and value is None else value for name, value in measured.fields.items()
    }
    return Row(
        **dataclasses.asdict(cell),
        block=block,
        place=measured.place,
        num_steps=measured.num_steps,
        images_per_second=cell.global_batch_size / fields["step_seconds"],
        expected_bytes=expected_bytes(cell),
        operations=operations_of(cell),
        link_latency_seconds=math.nan if fit is None else fit.link.latency_seconds,
        link_bytes_per_second=math.nan if fit is None else fit.link.bytes_per_second,
        link_deviation=math.nan if fit is None else fit.largest_deviation,
        code=measured.identity.code,
        machine=measured.identity.machine,
        versions=measured.versions,
        time=datetime.fromtimestamp(measured.time, UTC).isoformat(timespec="seconds"),
        **fields,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; those that a kill has torn are skipped, and of a log that does not exist none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line:
            yield line


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
