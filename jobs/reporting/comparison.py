"""What differs between the runs of a report: recipes, datasets, versions, workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.run.run_log import Started, only
from jobs.reporting.reading import RunRecord
from jobs.reporting.words import NONE, value

_HASH_DIGITS = 12  # of a hash or commit: enough to tell any two apart


@dataclass(frozen=True)
class Difference:
    """A field in which runs differ.

    Attributes:
        group: What the field belongs to: recipe, dataset, versions or workers.
        field: Dotted name of the field.
        values: Value of each run, in words.
    """

    group: str
    field: str
    values: Sequence[str]


def differences(records: Sequence[RunRecord]) -> list[Difference]:
    """Return the fields in which the runs differ, in the order in which `config.json` has them."""
    found = []
    described = [_described(record) for record in records]
    for group in described[0]:
        fields = dict.fromkeys(field for one in described for field in one[group])
        for field in fields:
            contents = [one[group].get(field, NONE) for one in described]
            num_distinct = sum(content not in contents[:index] for index, content in enumerate(contents))
            if num_distinct > 1:
                words = [value(content) for content in contents]
                is_rounded = len(set(words)) < num_distinct
                found.append(Difference(group, field, [str(content) for content in contents] if is_rounded else words))
    return found


def flattened(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects by their dotted names."""
    flat: dict[str, Any] = {}
    for name, content in document.items():
        flat |= flattened(content, f"{prefix}{name}.") if isinstance(content, dict) else {prefix + name: content}
    return flat


def _described(record: RunRecord) -> dict[str, dict[str, Any]]:
    """Return what identifies a run, by group."""
    document, starts = record.run.document, only(Started, record.metrics)
    dataset = {name: content for name, content in document["dataset"].items() if name not in ("wnids", "class_names")}
    dataset["classes"] = len(document["dataset"]["wnids"])
    dataset["sha256"] = dataset["sha256"][:_HASH_DIGITS]
    return {
        "recipe": flattened(record.run.config.to_json()),
        "dataset": flattened(dataset),
        "versions": {**document.get("versions", {}), "commit": short_commit(document)},
        "workers": {
            "number": _changes([str(start.world_size) for start in starts]),
            "exchange": _changes([start.exchange for start in starts]),
        },
    }


def short_commit(document: Mapping[str, Any]) -> str | None:
    """Return the commit that a `config.json` records, shortened, and whether files had changed since; None without."""
    if document.get("git_commit") is None:
        return None
    return document["git_commit"][:_HASH_DIGITS] + (", with changes" if document.get("git_has_changes") else "")


def _changes(values: Sequence[str]) -> str:
    """Return the values without immediate repetitions, in words; a dash without any."""
    return ", then ".join(one for index, one in enumerate(values) if not index or one != values[index - 1]) or NONE
