"""Which file system a path lies on. Standard library only."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Of those in user space (FUSE), only the ones known to be shared: others show an archive, a cipher or a local disk.
_SHARED = re.compile(
    r"nfs4?|cifs|smb3?|smbfs|lustre|gpfs|beegfs|ceph|glusterfs|panfs|pvfs2|orangefs|afs|9p|virtiofs|"
    r"fuse\.(sshfs|glusterfs|ceph|ceph-fuse|mfs|juicefs|seaweedfs|alluxio-fuse|daos|s3fs|gcsfuse|rclone)"
)
_IN_MEMORY = ("tmpfs", "ramfs")
_OF_A_CONTAINER = ("overlay", "aufs", "fuse.fuse-overlayfs")


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system.

    Attributes:
        kind: Its name in Linux: `ext4`, `nfs4`, `tmpfs`, ...
        mount_point: Where it is mounted.
    """

    kind: str
    mount_point: Path

    @property
    def place(self) -> Literal["shared", "memory", "container", "disk"]:
        """Where the files are: on other machines too (if they mount it), in memory, in a container, or on a disk."""
        if _SHARED.fullmatch(self.kind):
            return "shared"
        if self.kind in _IN_MEMORY:
            return "memory"
        return "container" if self.kind in _OF_A_CONTAINER else "disk"


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> FileSystem | None:
    """Return the file system of a path, whether the path exists or not; None if Linux does not tell.

    Args:
        path: The path.
        mounts: Linux's list of mounts (proc(5), `/proc/pid/mountinfo`).
    """
    real, best = Path(os.path.realpath(path)), None
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4]))
        is_above = real == point or point in real.parents
        if is_above and (best is None or len(point.parts) >= len(best.mount_point.parts)):  # a later mount hides others
            best = FileSystem(after.split(" ")[0], point)
    return best


def existing_folder(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    found = path.absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    return found
