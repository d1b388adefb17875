"""Lasting errors of the operating system, and what helps against them.

All other errors may be temporary, like those of a shared file system (a stale handle, an input/output error, a
connection reset, a file that is invisible for a moment), so the operation is tried again.
"""

import errno
import os

from pipeline.command import UserError

_PERMISSION = "give the user who runs it permission to read and write there"
_LOCKS = "mount its file system with file locks, or choose another folder"
_OPEN_FILES = "raise the limit of open files (ulimit -n)"
_WAYS_OUT = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "ask for a larger quota, or free some space there",
    errno.EFBIG: "raise the limit of file size there (ulimit -f)",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "mount its file system for writing, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "choose another folder",
    errno.EISDIR: "choose another folder",
    errno.ELOOP: "fix its symbolic links",
    errno.ENOLCK: _LOCKS,
    errno.ENOSYS: _LOCKS,
    errno.EOPNOTSUPP: _LOCKS,
}
_LIMITS = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENOMEM: "raise the limit of address space (ulimit -v) or of maps (sysctl vm.max_map_count)",
}
_OF_A_FILE = (errno.EACCES, errno.EPERM, errno.ELOOP)


def way_out(error: OSError) -> str | None:
    """Return what a person can do about a lasting error, or None if the error may be temporary."""
    return _WAYS_OUT.get(error.errno or 0)


def is_out_of_reach(error: Exception) -> bool:
    """Return whether a file that should exist is temporarily out of reach, so that another try may find it intact."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        return False
    return way_out(error) is None or limit_of(error) is not None


def limit_of(error: OSError) -> str | None:
    """Return how to raise the process limit behind an error (the file itself may be intact), or None."""
    return _LIMITS.get(error.errno or 0)


def mending(error: OSError) -> str:
    """Return what to do about a dataset's file that can't be read and is not just temporarily out of reach."""
    return _WAYS_OUT[error.errno] if error.errno in _OF_A_FILE else "restore it, or shard again"


def described(error: OSError) -> str:
    """Return an error's own description: what happened, and to which file."""
    if not error.errno:
        return str(error) or type(error).__name__
    return f"{error.strerror or os.strerror(error.errno)}{f': {error.filename}' * bool(error.filename)}"


def as_user_error(error: OSError, where: str = "", next_time: str = "goes on from the latest checkpoint") -> UserError:
    """Return an error as one line for a person.

    Args:
        error: Error that ended the command.
        where: Text before the error's own description, saying where it happened.
        next_time: What the same command will do when run again.
    """
    next_step = f"{way_out(error)}, and the" if way_out(error) else "the"
    return UserError(f"{where}{described(error)}; {next_step} same command {next_time}")
