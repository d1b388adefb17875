"""The files of a source's folder, walked once; links that would double a file or form a circle are refused.

Links are followed. Hidden files, files that a NAS or desktop adds, and files that the user ignores are left out and
counted.
"""

import errno
import fnmatch
import glob
import itertools
import os
import shlex
import stat
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipeline.command import InputError

# Reasons to leave files out.
HIDDEN, SYSTEM, SPECIAL, LINK = "hidden", "of a NAS or desktop", "not a regular file", "a second link to a file"
UNLABELLED, ANNOTATIONS, OUTSIDE = "test pictures without labels", "annotations that are not used", "outside the splits"
# In lower case: thumbnails, recycle bins and snapshots of Synology, QNAP and others; macOS, Windows and Linux desktops.
_SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot"),
        *(".@__thumb", ".snapshot", ".zfs"),
        *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", "icon\r"),
        *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("lost+found", ".thumbnails", ".directory", ".ipynb_checkpoints"),
    )
)
_SYSTEM_PREFIXES = ("._", ".trash-", ".nfs0", ".fuse_hidden")  # AppleDouble; a disk's recycle bin; open files


@dataclass
class LeftOut:
    """Files or archive members left out for one reason.

    Attributes:
        num_files: Number of files or members.
        first: Name of the first of them, in the order of names.
    """

    num_files: int
    first: str

    def add(self, name: str) -> None:
        """Count another file or member."""
        self.num_files += 1
        self.first = min(self.first, name)


def leave_out(left_out: dict[str, LeftOut], reason: str, name: str) -> None:
    """Count a file or member that is left out for a reason."""
    if reason in left_out:
        left_out[reason].add(name)
    else:
        left_out[reason] = LeftOut(1, name)


def is_system_name(name: str) -> bool:
    """Return whether this is the name of a file or folder that a NAS or desktop adds."""
    lower = name.lower()
    return lower in _SYSTEM_NAMES or lower.startswith(_SYSTEM_PREFIXES)


def ignored_by(name: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that leaves out a file, folder or member, or None.

    Args:
        name: Path relative to the source, with slashes.
        patterns: Shell patterns (`*`, `?`, `[...]`), matched against the whole path or its last part; patterns that
            begin with a slash only against the whole path. A match on a folder leaves out all it contains.
    """
    last = name.rpartition("/")[2]
    for pattern in patterns:
        plain, may_be_last = pattern.strip("/"), not pattern.startswith("/")
        if fnmatch.fnmatchcase(name, plain) or (may_be_last and fnmatch.fnmatchcase(last, plain)):
            return pattern
    return None


def ignore_option(name: str) -> str:
    """Return the option that leaves out just this file, folder or member, for error messages."""
    pattern = "".join(letter if letter.isprintable() else "?" for letter in glob.escape(name))
    # Without a slash, a name of one part would match others further down; one with a dash would be taken as an option.
    return f"--ignore {shlex.quote(f'/{pattern}' if '/' not in name or name.startswith('-') else pattern)}"


def ignored_reason(name: str, patterns: Sequence[str]) -> str | None:
    """Return the reason to leave out a name that a pattern of `--ignore` matches, or None; see `ignored_by`."""
    pattern = ignored_by(name, patterns)
    return None if pattern is None else reason_of_pattern(pattern)


def reason_of_pattern(pattern: str) -> str:
    """Return the reason to leave out what a pattern of `--ignore` matches."""
    return f"ignored by {pattern}"


def ending_reason(name: str) -> str:
    """Return the reason to leave out a file or member that is not named like a picture."""
    ending = os.path.splitext(name)[1].lower()
    return f"ending {ending}" if ending else "no ending"


@dataclass
class Folder:
    """A folder with its files and subfolders, except those left out.

    Attributes:
        path: Path relative to the root, with slashes; empty for the root itself.
        names: Names of its files, in the file system's order.
        sizes: Sizes of its files in bytes, in the order of `names`.
        folders: Name -> subfolder, sorted by name.
        inodes: Inode numbers of its files, in the order of `names`.
    """

    path: str
    names: list[str] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("q"))
    folders: dict[str, "Folder"] = field(default_factory=dict)
    inodes: array = field(default_factory=lambda: array("Q"))

    def of(self, name: str) -> str:
        """Return the path, relative to the root, of a file or folder in this folder."""
        return f"{self.path}/{name}" if self.path else name

    def find(self, path: str) -> "Folder | None":
        """Return the folder with this path, relative to this folder, or None."""
        folder: Folder | None = self
        for name in path.split("/"):
            folder = folder.folders.get(name) if folder is not None else None
        return folder

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all folders below it, sorted by name."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()


@dataclass(frozen=True)
class SourceTree:
    """All files of a source's folder.

    Attributes:
        root: Folder that was walked.
        top: Files and folders in it, except those left out.
        hidden: Paths of hidden files, and of files in hidden folders.
        left_out: Reason -> other files left out.
        twins: Groups of two or more paths that lead to the same file; the first is a link only if all are.
        links: Those of these paths that are symbolic links.
    """

    root: Path
    top: Folder
    hidden: list[str]
    left_out: dict[str, LeftOut]
    twins: list[list[str]]
    links: frozenset[str]

    def files(self) -> Iterator[str]:
        """Yield the paths of all files, except those left out, folder by folder."""
        for folder in self.top.walk():
            for name in folder.names:
                yield folder.of(name)

    @property
    def num_files(self) -> int:
        """Number of all files, including those left out."""
        left_out = sum(found.num_files for found in self.left_out.values())
        return sum(len(folder.names) for folder in self.top.walk()) + len(self.hidden) + left_out


def walk_source(root: Path, ignore: Sequence[str] = ()) -> SourceTree:
    """Walk a source's folder.

    Args:
        root: Folder to walk.
        ignore: Patterns of names to leave out; see `ignored_by`.

    Raises:
        InputError: A link is broken, forms a circle, or leads to a folder that was met before.
    """
    return _Walk(root, ignore).run()


def check_twins(tree: SourceTree, place_of: Callable[[str], Hashable]) -> dict[str, str]:
    """Return the links to leave out, because the pictures they lead to are present already, with the reason.

    Args:
        tree: Files of the source.
        place_of: Returns a path's split and class, or None if it is not a picture.

    Raises:
        InputError: One file would be a picture of two splits or classes.
    """
    second_links: dict[str, str] = {}
    for paths in tree.twins:
        pictures = [path for path in paths if place_of(path) is not None]
        if len(set(map(place_of, pictures))) > 1:
            first, second = next((a, b) for a, b in itertools.pairwise(pictures) if place_of(a) != place_of(b))
            raise InputError(
                f"{tree.root / first} and {tree.root / second} are one file, which would be a picture of two splits or "
                f"classes; remove one of them, or leave it out: {ignore_option(second)}"
            )
        second_links |= dict.fromkeys((path for path in pictures[1:] if path in tree.links), LINK)
    return second_links


class _Walk:
    """State of a walk."""

    def __init__(self, root: Path, ignore: Sequence[str]) -> None:
        self._root, self._ignore = root, ignore
        self._hidden: list[str] = []
        self._left_out: dict[str, LeftOut] = {}
        self._folders: dict[tuple[int, int], str] = {}  # device and inode -> path where the folder was met first
        self._shared: dict[tuple[int, int], list[str]] = {}  # device and inode -> paths, for links and shared files
        self._links: set[str] = set()

    def run(self) -> SourceTree:
        top = Folder("")
        self._remember(top)
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            self._look_into(folder)
            waiting += reversed(folder.folders.values())
        twins = self._find_twins(top)
        return SourceTree(self._root, top, sorted(self._hidden), self._left_out, twins, frozenset(self._links))

    def _look_into(self, folder: Folder) -> None:
        """Read a folder from the file system."""
        subfolders = []
        with os.scandir(self._root / folder.path) as entries:
            for entry in entries:
                reason = self._reason_to_leave_out(folder, entry.name)
                if reason is not None:
                    self._leave_out(reason, folder.of(entry.name), entry.is_dir(follow_symlinks=False))
                elif _is_folder(entry):
                    subfolders.append(entry.name)
                else:
                    self._add_file(folder, entry)
        for name in sorted(subfolders):
            folder.folders[name] = Folder(folder.of(name))
            self._remember(folder.folders[name])

    def _reason_to_leave_out(self, folder: Folder, name: str) -> str | None:
        if self._ignore and (reason := ignored_reason(folder.of(name), self._ignore)):
            return reason
        if is_system_name(name):
            return SYSTEM
        return HIDDEN if name.startswith(".") else None

    def _leave_out(self, reason: str, path: str, is_folder: bool) -> None:
        """Count a file, or all files below a folder, without following links."""
        paths = [path]
        if is_folder:
            start = len(os.path.join(self._root, ""))
            # System folders may be unreadable for users, like `lost+found`.
            walked = os.walk(self._root / path, onerror=_raise if reason == HIDDEN else None)
            paths = [os.path.join(parent, name)[start:] for parent, _, names in walked for name in names]
        for name in paths:
            # A hidden folder may still contain files that the user ignores or a desktop has added.
            found = self._reason_to_leave_out_below(name) if reason == HIDDEN else reason
            if found == HIDDEN:
                self._hidden.append(name)
            else:
                leave_out(self._left_out, found, name)

    def _reason_to_leave_out_below(self, path: str) -> str:
        """Return the reason to leave out a file in a hidden folder, or a hidden file."""
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            if reason := ignored_reason("/".join(parts[:end]), self._ignore):
                return reason
        return SYSTEM if any(map(is_system_name, parts)) else HIDDEN

    def _add_file(self, folder: Folder, entry: os.DirEntry[str]) -> None:
        path = folder.of(entry.name)
        try:
            status = entry.stat()
        except OSError as error:
            if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise InputError(
                    f"{self._root / path} is a link to {os.readlink(entry.path)}, which leads to no file; mend it, or "
                    f"leave it out: {ignore_option(path)}"
                ) from error
            raise
        if not stat.S_ISREG(status.st_mode):
            leave_out(self._left_out, SPECIAL, path)
            return
        folder.names.append(entry.name)
        folder.sizes.append(status.st_size)
        folder.inodes.append(status.st_ino)
        is_link = entry.is_symlink()
        if is_link:
            self._links.add(path)
        if is_link or status.st_nlink > 1:
            self._shared.setdefault((status.st_dev, status.st_ino), []).append(path)

    def _remember(self, folder: Folder) -> None:
        """Note a folder.

        Raises:
            InputError: The folder was met before; the message names both paths.
        """
        path = self._root / folder.path
        status = path.stat()
        before = self._folders.setdefault((status.st_dev, status.st_ino), folder.path)
        if before == folder.path:
            return
        way_out = f"remove one of them, or leave it out: {ignore_option(folder.path)}"
        if f"{folder.path}/".startswith(f"{before}/" if before else ""):
            raise InputError(f"{path} leads back to {self._root / before}, in which it lies; {way_out}")
        raise InputError(f"{path} and {self._root / before} are one folder, reached through a link; {way_out}")

    def _find_twins(self, top: Folder) -> list[list[str]]:
        """Return the paths of each file that has several."""
        targets = np.array([inode for _, inode in self._shared], dtype=np.uint64)
        if self._links:  # a link's target may be a file with a single name, which was not noted as shared
            for folder in top.walk():
                for index in np.flatnonzero(np.isin(np.frombuffer(folder.inodes, np.uint64), targets)).tolist():
                    path = folder.of(folder.names[index])
                    status = os.stat(self._root / path)
                    paths = self._shared.get((status.st_dev, status.st_ino), [])
                    if paths and path not in paths:
                        paths.append(path)
        twins = (sorted(paths, key=lambda path: (path in self._links, path)) for paths in self._shared.values())
        return sorted(paths for paths in twins if len(paths) > 1)


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # links that point to each other
        return False
