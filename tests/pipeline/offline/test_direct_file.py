import errno
import fcntl
import hashlib
import os
import threading

import pytest

from pipeline.offline.direct_file import DirectFile, WrittenFile

LENGTHS = [1, 4095, 4096, 5_000_000, 0, 13, 4 << 20, 9_000_001]


def write(path, lengths=LENGTHS):
    """Write pieces of these lengths; return them joined, and what the file says of itself."""
    pieces = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    with DirectFile(path) as file:
        for piece in pieces:
            file.write(piece)
        return b"".join(pieces), file.finish()


def test_what_was_written_is_there_with_its_hash_and_no_more(tmp_path):
    for lengths in (LENGTHS, LENGTHS[:1], []):
        content, written = write(tmp_path / "file", lengths)
        assert (tmp_path / "file").read_bytes() == content
        assert written == WrittenFile(len(content), hashlib.sha256(content).hexdigest())
    assert not [thread for thread in threading.enumerate() if thread.name == "direct file"]


def test_a_file_system_without_direct_writes_gets_ordinary_ones(tmp_path, monkeypatch):
    pwrite, refused = os.pwrite, []

    def refuse_direct(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse_direct)
    content, _ = write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    assert refused == [0]  # once, then no more


@pytest.mark.parametrize("at", [0, 4 << 20, 16 << 20])
def test_a_failed_write_is_told_and_names_the_file(tmp_path, monkeypatch, at):
    pwrite = os.pwrite

    def fail(descriptor, data, offset):
        if offset == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")
    assert not [thread for thread in threading.enumerate() if thread.name == "direct file"]


def test_short_writes_go_on(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[: 1 << 20], offset))
    content, _ = write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
