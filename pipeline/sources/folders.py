"""Class folders: ROOT/train/CLASS/*, ROOT/val/CLASS/*, ROOT/test/CLASS/*, or only training pictures in ROOT/CLASS/*.

Splits may be called train or training, val, valid, validation or dev, test or testing, in any case. A class folder
holds its pictures directly, or in a single folder below it. A file is a picture if its name ends like one; all other
files are left out. ROOT/classes.txt may name classes for people: each line is a class folder's name, a space, and the
name.

Anything ambiguous is refused: pictures beside class folders or without them, a class with several folders of pictures,
one folder or file in two classes, names that differ only by case or Unicode normalisation.
"""

import os
import unicodedata
from collections.abc import Container, Mapping
from pathlib import Path
from typing import ClassVar, NoReturn

import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SPLITS, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_whole_file, whole_files
from pipeline.sources.split_names import resembles_split, split_of
from pipeline.sources.text import read_lines
from pipeline.sources.tree import OUTSIDE, Folder, check_twins, ignore_option, is_system_name, walk_source

EXTENSIONS = (  # matched in any case
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
CLASS_NAMES = "classes.txt"
_LOOKED_INTO = 4  # levels of folders searched to recognise the layout


class ClassFolders:
    """Reads class folders; each read opens the file."""

    layout: ClassVar[str] = "folders"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the splits or the classes."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder holds a picture."""
        return root.is_dir() and _holds_a_picture(root, _LOOKED_INTO)

    def list_samples(self) -> Listing:
        """List all pictures, sorted by class folder and name.

        Raises:
            InputError: The content is ambiguous, there is no class folder, or a class folder holds no picture.
        """
        tree = walk_source(self.root, self.options.ignore)
        folders = self._find_splits(tree.top)
        for folder in folders.values():
            self._check_classes(folder)
        wnids = sorted({wnid for folder in folders.values() for wnid in folder.folders})
        if not wnids:
            raise InputError(f"{self.root} has no class folders; expected ROOT/train/CLASS/* or ROOT/CLASS/*")
        _check_names(self.root, wnids)
        self._check_shared_classes(folders)
        second_links = check_twins(tree, Places(folders).of)
        class_index = {wnid: index for index, wnid in enumerate(wnids)}
        names = self._class_names(tree.top, wnids)
        return Listing(
            classes=[ClassEntry(wnid, names.get(wnid, wnid)) for wnid in wnids],
            splits={
                split: list_class_folders(folders[split], class_index, second_links)
                for split in SPLITS
                if split in folders
            },
            tables=[CLASS_NAMES] if names else [],
            left_out=outside(tree.top, folders) | second_links,
            tree=tree,
        )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        return read_whole_file(os.path.join(self.root, file), num_bytes)

    def _find_splits(self, top: Folder) -> dict[str, Folder]:
        """Return split -> folder; the root itself is `train` if its folders are classes."""
        for name, folder in top.folders.items():
            if resembles_split(name) and holds_pictures(folder):
                self._refuse(
                    folder.path,
                    "is named almost like a split; rename it, to train, val or test where it is one",
                )
        named = {name: folder for name, folder in top.folders.items() if split_of(name)}
        if not any(holds_pictures(below) for folder in named.values() for below in folder.folders.values()):
            num_flat = sum(map(has_pictures, named.values()))
            has_others = any(holds_pictures(folder) for name, folder in top.folders.items() if name not in named)
            if num_flat == 0 or (num_flat == 1 and has_others):  # `train` may be a class: pictures of trains
                return {"train": top} if top.folders or has_pictures(top) else {}
        found: dict[str, Folder] = {}
        for name, folder in named.items():
            split = split_of(name) or ""
            if split in found:
                self._refuse(
                    folder.path, f"means {split}, as {self.root / found[split].path} does; bring them into one folder"
                )
            if not holds_pictures(folder):
                self._refuse(folder.path, "is named like a split, but holds no picture; fill it or remove it")
            found[split] = folder
        return found

    def _check_classes(self, split_folder: Folder) -> None:
        """Refuse a split whose class folders are ambiguous."""
        if has_pictures(split_folder):
            first = first_picture(split_folder)
            beside = "beside class folders" if split_folder.folders else "but no class folders"
            ignored = split_folder.path if split_folder.path and not split_folder.folders else first
            self._refuse(
                ignored,
                f"{beside}: each picture belongs in the folder of its class",
                f"{self.root / split_folder.path} holds pictures ({first}) ",
            )
        for folder in split_folder.folders.values():
            if not holds_pictures(folder):
                self._refuse(
                    folder.path,
                    f"holds no picture ({' '.join(EXTENSIONS)}), but each folder there is a class; fill or remove it",
                )
            for below in folder.walk():
                holding = [inner for inner in below.folders.values() if holds_pictures(inner)]
                is_split = holding and split_of(Path(below.path).name)
                if len(holding) > 1 or is_split or any(map(split_of, below.folders)):
                    names = ", ".join(Path(inner.path).name for inner in holding[:3])
                    self._refuse(
                        below.path,
                        f"would be one class, but holds folders of pictures ({names}); if they are splits or classes, "
                        f"name {self.root / below.path} itself as the SOURCE",
                    )

    def _check_shared_classes(self, folders: Mapping[str, Folder]) -> None:
        for split, folder in folders.items():
            if "train" in folders and folder.folders.keys().isdisjoint(folders["train"].folders):
                self._refuse(
                    folder.path,
                    f"has the classes {', '.join(list(folder.folders)[:3])}, none of which is in "
                    f"{self.root / folders['train'].path}; sort {split} into folders of the same names",
                )

    def _refuse(self, path: str, why: str, what: str | None = None) -> NoReturn:
        """Refuse `path` (or `what`), and say how to leave `path` out."""
        begin = f"{self.root / path} " if what is None else what
        raise InputError(f"{begin}{why}, or leave it out: {ignore_option(path)}")

    def _class_names(self, top: Folder, wnids: list[str]) -> dict[str, str]:
        """Return wnid -> name for people, for the classes named in classes.txt."""
        if CLASS_NAMES not in top.names:
            return {}
        by_form = {unicodedata.normalize("NFC", wnid): wnid for wnid in wnids}
        names: dict[str, str] = {}
        for line in read_lines(self.root / CLASS_NAMES):
            text = unicodedata.normalize("NFC", line.strip())
            # A folder's name may contain spaces: the longest name that the line begins with is meant.
            ends = [index for index, letter in enumerate(text) if letter in " \t"] + [len(text)]
            end = next((end for end in reversed(ends) if text[:end] in by_form), None)
            if end is not None and text[end:].strip():
                names[by_form[text[:end]]] = text[end:].strip()
        return names


def outside(top: Folder, split_folders: Mapping[str, Folder]) -> dict[str, str]:
    """Return the files and folders that lie beside the split folders, with the reason to leave them out."""
    inside = {folder.path for folder in split_folders.values()}
    return {} if "" in inside else dict.fromkeys({*top.names, *top.folders} - inside, OUTSIDE)


class Places:
    """Finds the split and class of a picture file."""

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self._splits = {folder.of(""): split for split, folder in folders.items()}

    def of(self, path: str) -> tuple[str, str] | None:
        """Return a file's split and class, or None if it is not a picture of a split."""
        for prefix, split in self._splits.items():
            wnid, is_below, _ = path.removeprefix(prefix).partition("/")
            if path.startswith(prefix) and is_below and is_picture_name(path):
                return split, wnid
        return None


def is_picture_name(name: str) -> bool:
    """Return whether a file's name ends like a picture's."""
    return name.lower().endswith(EXTENSIONS)


def has_pictures(folder: Folder) -> bool:
    """Return whether pictures lie directly in a folder."""
    return any(map(is_picture_name, folder.names))


def holds_pictures(folder: Folder) -> bool:
    """Return whether pictures lie in a folder or below it."""
    return any(map(has_pictures, folder.walk()))


def first_picture(folder: Folder) -> str:
    """Return the path of the first picture, by name, directly in a folder."""
    return folder.of(min(filter(is_picture_name, folder.names)))


def list_class_folders(
    split_folder: Folder, class_index: Mapping[str, int], second_links: Container[str] = ()
) -> pa.Table:
    """Return a table of `SAMPLE_SCHEMA` for the pictures in class folders, sorted by class folder and name.

    Args:
        split_folder: Folder that holds the class folders.
        class_index: Name of a class folder -> class index.
        second_links: Paths of pictures to leave out.

    Raises:
        InputError: A file's name is not UTF-8.
    """
    rows = []
    start = len(split_folder.of(""))
    for wnid, class_folder in split_folder.folders.items():
        label = class_index[wnid]
        for folder in class_folder.walk():
            parent = folder.of("")[start:]
            for name, num_bytes in zip(folder.names, folder.sizes, strict=True):
                if is_picture_name(name) and not (second_links and folder.of(name) in second_links):
                    rows.append((parent + name, label, num_bytes))
    rows.sort()
    parent = split_folder.of("")
    return whole_files([(source, label, parent + source, num_bytes) for source, label, num_bytes in rows])


def _holds_a_picture(folder: Path, num_levels: int) -> bool:
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries if not is_system_name(entry.name)]
    if any(not is_folder and is_picture_name(name) for name, is_folder in names):
        return True
    below = (folder / name for name, is_folder in names if is_folder and not name.startswith("."))
    return num_levels > 0 and any(_holds_a_picture(path, num_levels - 1) for path in below)


def _check_names(root: Path, wnids: list[str]) -> None:
    """Refuse class names that a person or another file system would take for the same."""
    seen: dict[str, str] = {}
    for wnid in wnids:
        form = unicodedata.normalize("NFKC", wnid).casefold().strip()
        if form in seen:
            raise InputError(
                f"{root} has the classes {seen[form]!a} and {wnid!a}, whose names differ only by case, spaces at "
                "the end or Unicode normalisation; rename the folders of one of them"
            )
        seen[form] = wnid
