"""Small sources for tests: pictures in folders, and what a command makes of them."""

from pathlib import Path

from PIL import Image

from pipeline.sources.base import Listing, ListingOptions
from pipeline.sources.detect import open_source
from pipeline.sources.inventory import Inventory, take_inventory


def save_pictures(root: Path, names: list[str]) -> None:
    """Save a different picture under each name; a PNG, whatever the name says."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(path, "PNG")


def taken(root: Path, *ignore: str, layout: str | None = None, partial: bool = False) -> tuple[Listing, Inventory]:
    """List a source and account for its files."""
    source = open_source(root, layout, ListingOptions(ignore, partial))
    listing = source.list_samples()
    return listing, take_inventory(source, listing)


def samples(listing: Listing) -> dict[str, list[tuple[str, str]]]:
    """Return split -> (sample, wnid) of all its samples."""
    wnids = [entry.wnid for entry in listing.classes]
    return {
        split: [(row["source"], wnids[row["class_index"]]) for row in table.to_pylist()]
        for split, table in listing.splits.items()
    }


def check_adds_up(inventory: Inventory) -> None:
    """All files, and all members of archives, are accounted for."""
    left_out = sum(found.num_files for found in inventory.left_out.values())
    assert inventory.num_files == inventory.num_samples + inventory.num_archives + len(inventory.tables) + left_out
    listed = sum(content.num_samples for content in inventory.splits.values())
    if inventory.members is None:
        assert inventory.num_samples == listed
    else:
        members = inventory.members
        left_out = sum(found.num_files for found in members.left_out.values())
        assert members.num_found == listed - inventory.num_samples + members.num_labels + left_out
