"""Errors of the operating system that last, and what then helps.

All others may pass, as those of a shared file system do (a stale handle, an input/output error, a connection that was
reset, a file that is not to be seen for a moment): what met one is tried again.
"""

import errno
import os

from pipeline.command import InputError

_PERMISSION = "let the user whom it runs as read and write there"
_LOCKS = "mount its file system with file locks, or choose another folder"
_OPEN_FILES = "raise the limit of open files (ulimit -n)"
_WAYS_OUT = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "ask for a larger quota, or free some space there",
    errno.EFBIG: "raise the limit of a file's size there (ulimit -f)",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "mount its file system for writing, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "choose another folder",
    errno.EISDIR: "choose another folder",
    errno.ELOOP: "mend its symbolic links",
    errno.ENOLCK: _LOCKS,
    errno.ENOSYS: _LOCKS,
    errno.EOPNOTSUPP: _LOCKS,
}
_LIMITS = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENOMEM: "raise the limit of address space (ulimit -v), or of maps (sysctl vm.max_map_count)",
}
_OF_A_FILE = (errno.EACCES, errno.EPERM, errno.ELOOP)


def way_out(error: OSError) -> str | None:
    """Return what a person can do about an error that lasts, or None where it may pass."""
    return _WAYS_OUT.get(error.errno or 0)


def is_out_of_reach(error: Exception) -> bool:
    """Return whether a file that should be there can't be reached for the moment: another try may find it whole."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        return False
    return way_out(error) is None or limit_of(error) is not None


def limit_of(error: OSError) -> str | None:
    """Return how to raise the process's limit that an error tells of: what was to be opened may be whole."""
    return _LIMITS.get(error.errno or 0)


def mending(error: OSError) -> str:
    """Return what to do about a dataset's file that can't be read, and is not merely out of reach."""
    return _WAYS_OUT[error.errno] if error.errno in _OF_A_FILE else "restore it, or shard again"


def described(error: OSError) -> str:
    """Return an error's own words: what happened, and to which file."""
    if not error.errno:
        return str(error) or type(error).__name__
    return f"{error.strerror or os.strerror(error.errno)}{f': {error.filename}' * bool(error.filename)}"


def as_input_error(
    error: OSError, where: str = "", next_time: str = "goes on from the latest checkpoint"
) -> InputError:
    """Return an error as one line for a person.

    Args:
        error: That ended the command.
        where: Who met it, before the error's own words.
        next_time: What the same command does when it is run again.
    """
    next_step = f"{way_out(error)}, and the" if way_out(error) else "the"
    return InputError(f"{where}{described(error)}; {next_step} same command {next_time}")
