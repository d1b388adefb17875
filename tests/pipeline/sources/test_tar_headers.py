"""Headers of tars: end marks and zeros that are none, links, sizes, extended headers, and files that are no tars."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import tracemalloc
import zipfile

import pytest

from pipeline.command import InputError
from pipeline.sources.tar_headers import scan_paths, scan_tar

BLOCK, RECORD = 512, 10_240


def content_of(number, num_bytes=700):
    return random.Random(number).randbytes(num_bytes)


def header(name, size=0, kind=tarfile.REGTYPE, link="", **fields):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def seal(block):
    """Return a header with the check sum that its bytes ask for."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def file_member(name, content):
    return header(name, len(content)) + content + bytes(-len(content) % BLOCK)


def pax(fields, kind=tarfile.XHDTYPE):
    records = b""
    for key, value in fields.items():
        body = b" %s=%s\n" % (key.encode(), value)
        length = len(body) + next(n for n in range(1, 9) if len(str(len(body) + n)) == n)
        records += b"%d" % length + body
    return header("pax", len(records), kind) + records + bytes(-len(records) % BLOCK)


def tar(names, num_zeros=None):
    """Return a tar as tarfile writes it, or with another number of zeros at its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(content_of(name)))
    if num_zeros is None:
        return buffer.getvalue()
    return buffer.getvalue()[: len(names) * (BLOCK + 1024)] + bytes(num_zeros)


def scan(tmp_path, content, start=0, end=None):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with open(path, "rb", buffering=0) as file:
        members = list(scan_paths(file, start, len(content) if end is None else end))
    return {name: content[offset : offset + num_bytes] for name, offset, num_bytes in members}


def expected(*names):
    return {name: content_of(name) for name in names}


NAMES = [f"{number}.jpg" for number in range(12)]


@pytest.mark.parametrize("num_zeros", [1024, 1536, 5000, RECORD, RECORD + BLOCK])
def test_zeros_up_to_a_record_are_an_end_mark(tmp_path, num_zeros):
    assert scan(tmp_path, tar(NAMES, num_zeros)) == expected(*NAMES)


@pytest.mark.parametrize("record", [2**15, 2**20])
def test_longer_records_are_told_by_the_length_of_the_whole(tmp_path, record):
    members = tar(NAMES, 0)
    assert scan(tmp_path, members + bytes(record - len(members))) == expected(*NAMES)
    with pytest.raises(InputError, match=rf"a.tar holds zeros from byte {len(members)} on, up to its end, which are"):
        scan(tmp_path, members + bytes(record - len(members) + BLOCK))


@pytest.mark.parametrize(
    "parts",
    [
        (tar(NAMES[:4]), tar(NAMES[4:])),
        (tar(NAMES[:4], 1024), tar(NAMES[4:], 1024)),
        (tar(NAMES[:4], 1024), tar(NAMES[4:8]), tar(NAMES[8:])),
    ],
)
def test_tars_behind_one_another_are_read_whole(tmp_path, parts):
    assert scan(tmp_path, b"".join(parts)) == expected(*NAMES)


@pytest.mark.parametrize("num_zeros", [512, 1536, 2048, RECORD + 4096 - 512, 5 * RECORD + 4096])
def test_other_zeros_between_two_tars_are_refused(tmp_path, num_zeros):
    with pytest.raises(
        InputError, match=f"zeros from byte 6144 on, up to byte {6144 + num_zeros}, which are not the end"
    ):
        scan(tmp_path, tar(NAMES[:4], num_zeros) + tar(NAMES[4:]))


def test_zeros_between_two_tars_that_began_in_a_picture_are_refused(tmp_path):
    content = bytearray(tar(NAMES[:4]) + tar(NAMES[4:]))
    content[5300:6144] = bytes(844)  # the last of the first tar's data: what follows may have been members too
    with pytest.raises(InputError, match="zeros from byte 6144 on, up to byte 10240"):
        scan(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (4, 5),  # one member, a header follows
        (2, 9),
        (4, 4 + 1 / 3),  # a header alone: its data follows
        (0, 2),
        (3, 5.5),  # up to the midst of a member's data
        (11, 11 + 1 / 3),
    ],
)
def test_a_hole_where_members_should_be_is_refused_by_its_byte(tmp_path, begin, end):
    content = bytearray(tar(NAMES))
    begin, end = round(begin * 1536), round(end * 1536)
    content[begin:end] = bytes(end - begin)
    with pytest.raises(InputError, match=rf"zeros from byte {begin} on, .*lacks a piece; get the archive") as caught:
        scan(tmp_path, bytes(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_zeros", [1024, RECORD])
def test_members_that_may_be_missing_before_the_first_are_no_empty_tar(tmp_path, num_zeros):
    with pytest.raises(InputError, match=r"zeros from byte 0 on, .*lacks a piece"):
        scan(tmp_path, bytes(num_zeros) + tar(NAMES))
    assert not scan(tmp_path, bytes(num_zeros))


def test_a_download_whose_rest_is_zeros_is_refused_without_reading_them(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(NAMES, 0))
    os.truncate(path, 2**33)
    tracemalloc.start()
    with open(path, "rb", buffering=0) as file, pytest.raises(InputError, match="zeros from byte 18432 on, "):
        list(scan_paths(file, 0, 2**33))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("num_zeros", [0, 100, BLOCK, 1023])
def test_half_an_end_mark_is_none(tmp_path, num_zeros):
    with pytest.raises(InputError, match=r"a.tar is damaged or cut short at byte \d+ "):
        scan(tmp_path, tar(NAMES, num_zeros))


def test_foreign_bytes_behind_the_end_mark_are_refused(tmp_path):
    with pytest.raises(InputError, match="zeros from byte 18432 on, and no member at byte 19456"):
        scan(tmp_path, tar(NAMES, 1024) + content_of(1, 1024))
    with pytest.raises(InputError, match="zeros from byte 18432 on, "):
        scan(tmp_path, tar(NAMES) + b"\n")


def test_the_tar_in_a_range_ends_with_it(tmp_path):
    inner = tar(NAMES[:3])
    outer = file_member("n1.tar", inner) + file_member("n2.tar", tar(NAMES[3:])) + bytes(1024)
    assert list(scan(tmp_path, outer, 512, 512 + len(inner))) == NAMES[:3]
    hole = bytearray(outer)
    hole[512 + 1536 : 512 + 3072] = bytes(1536)
    with pytest.raises(InputError, match="zeros from byte 2048 on"):
        scan(tmp_path, bytes(hole), 512, 512 + len(inner))


# Links


LINKED = file_member("./s/a.jpg", content_of("a")) + file_member("s/b.jpg", content_of("b"))


@pytest.mark.parametrize(
    ("kind", "name", "link", "of"),
    [
        (tarfile.LNKTYPE, "s/z.jpg", "./s/a.jpg", "a"),
        (tarfile.LNKTYPE, "s/z.jpg", "s/b.jpg", "b"),
        (tarfile.SYMTYPE, "s/z.jpg", "b.jpg", "b"),
        (tarfile.SYMTYPE, "t/u/z.jpg", "../../s/a.jpg", "a"),
        (tarfile.SYMTYPE, "s/z.jpg", "later.jpg", "later"),
        (tarfile.LNKTYPE, "s/z.jpg", "s/chain.jpg", "b"),
    ],
)
def test_a_link_is_its_targets_bytes_at_its_own_place(tmp_path, kind, name, link, of):
    content = (
        LINKED
        + header(name, 0, kind, link)
        + file_member("s/later.jpg", content_of("later"))
        + header("s/chain.jpg", 0, tarfile.SYMTYPE, "b.jpg")
        + bytes(1024)
    )
    found = scan(tmp_path, content)
    assert list(found) == ["./s/a.jpg", "s/b.jpg", name, "s/later.jpg", "s/chain.jpg"]
    assert found[name] == content_of(of)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.LNKTYPE, "s/none.jpg"),
        (tarfile.SYMTYPE, "/s/a.jpg"),
        (tarfile.SYMTYPE, "../../a.jpg"),
        (tarfile.SYMTYPE, "z.jpg"),  # itself
        (tarfile.SYMTYPE, "round.jpg"),
        (tarfile.LNKTYPE, "s/twice.jpg"),
        (tarfile.SYMTYPE, "folder"),
    ],
)
def test_a_link_without_one_target_is_named(tmp_path, kind, link):
    content = LINKED + header("s/folder", 0, tarfile.DIRTYPE) + header("s/round.jpg", 0, tarfile.SYMTYPE, "z.jpg")
    content += 2 * file_member("s/twice.jpg", b"x") + header("s/z.jpg", 0, kind, link) + bytes(1024)
    with pytest.raises(InputError, match=r"a.tar: s/(z|round).jpg is a link to .*, which is not a single file of this"):
        scan(tmp_path, content)


def test_hard_links_of_tar_itself_are_read(tmp_path):
    folder = tmp_path / "n1"
    folder.mkdir()
    (folder / "a.JPEG").write_bytes(b"picture")
    os.link(folder / "a.JPEG", folder / "b.JPEG")
    (folder / "c.JPEG").symlink_to("a.JPEG")
    with tarfile.open(tmp_path / "n1.tar", "w") as archive:
        archive.add(folder, ".")
    with open(tmp_path / "n1.tar", "rb", buffering=0) as file:
        members = sorted(scan_tar(file, 0, (tmp_path / "n1.tar").stat().st_size))
    assert [name for name, _, _ in members] == ["a.JPEG", "b.JPEG", "c.JPEG"]
    assert len({tuple(member[1:]) for member in members}) == 1


# Headers


def v7(name, content):
    block = bytearray(header(name, len(content)))
    block[156:157] = b"\0"
    block[257:] = bytes(255)
    return seal(block) + content + bytes(-len(content) % BLOCK)


def base_256(name, size):
    block = bytearray(header(name))
    block[124:136] = (size % 2**88 | (0xFF if size < 0 else 0x80) << 88).to_bytes(12, "big")
    return seal(block)


def ustar(name):
    info = tarfile.TarInfo(name)
    info.size = 7
    return info.tobuf(tarfile.USTAR_FORMAT)


def incremental(name, size):
    """As `tar --listed-incremental` writes it: times where USTAR has the first part of a long name."""
    return seal(header(name, size)[:345] + b"14712345670\x0014712345670\0" + header(name, size)[369:])


def signed_sum(name, size):
    """As old tars summed it up."""
    block = bytearray(header(name, size))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (v7("a.jpg", b"picture"), "a.jpg"),
        (v7("folder/", b"") + v7("folder/a.jpg", b"picture"), "folder/a.jpg"),
        (base_256("a.jpg", 7) + b"picture" + bytes(505), "a.jpg"),
        (pax({"path": b"p" * 300 + b".jpg", "size": b"7"}) + header("a") + b"picture" + bytes(505), "p" * 300 + ".jpg"),
        (ustar("d" * 100 + "/" + "a" * 90) + b"picture" + bytes(505), "d" * 100 + "/" + "a" * 90),
        (incremental("a.jpg", 7) + b"picture" + bytes(505), "a.jpg"),
        (signed_sum("ä.jpg", 7) + b"picture" + bytes(505), "ä.jpg"),
        (pax({"size": b"7"}, tarfile.SOLARIS_XHDTYPE) + header("a.jpg") + b"picture" + bytes(505), "a.jpg"),
        (pax({"comment": b"a commit"}, tarfile.XGLTYPE) + file_member("a.jpg", b"picture"), "a.jpg"),
        (header("n" * 200 + ".jpg", 7) + b"picture" + bytes(505), "n" * 200 + ".jpg"),
        (header("volume", 0, b"V") + file_member("a.jpg", b"picture"), "a.jpg"),
        (header("fifo", 0, tarfile.FIFOTYPE) + file_member("a.jpg", b"picture"), "a.jpg"),
        (header("folder", 512, tarfile.DIRTYPE) + file_member("a.jpg", b"picture"), "a.jpg"),
        (pax({"path": b"\xe9.jpg"}) + file_member("a.jpg", b"picture"), "\\xe9.jpg"),
        (pax({"path": "ü.jpg".encode()}) + file_member("a.jpg", b"picture"), "ü.jpg"),
    ],
)
def test_headers_of_other_kinds(tmp_path, content, name):
    assert scan(tmp_path, content + bytes(1024)) == {name: b"picture"}


def test_names_that_are_not_utf8_stay_apart(tmp_path):
    content = b"".join(pax({"path": bytes([byte]) + b".jpg"}) + file_member("x", b"%c" % byte) for byte in (233, 234))
    assert scan(tmp_path, content + bytes(1024)) == {"\\xe9.jpg": b"\xe9", "\\xea.jpg": b"\xea"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (base_256("a.jpg", -7), "a.jpg of -7 bytes"),
        (base_256("a.jpg", 2**80), f"a.jpg of {2**80} bytes"),
        (seal(header("a.jpg")[:124] + b"-0000000017\0" + header("a.jpg")[136:]), "the number b'-0000000017'"),
        (seal(header("a.jpg")[:124] + b"00000000009\0" + header("a.jpg")[136:]), "invalid literal"),
        (header("a.jpg", 5000) + bytes(2000), "a.jpg of 5000 bytes"),
        (pax({"size": b"abc"}) + file_member("a.jpg", b"picture"), "the size 'abc'"),
        (pax({"size": b"-1"}) + file_member("a.jpg", b"picture"), "the size '-1'"),
        (pax({"size": b"9" * 20}) + file_member("a.jpg", b"picture"), "a.jpg of 99999999999999999999 bytes"),
        (header("x", 2**33, tarfile.XHDTYPE), "an extended header of 8589934592 bytes"),
        (header("x", 2**33, tarfile.GNUTYPE_LONGNAME), "an extended header of 8589934592 bytes"),
        (header("x", 9, tarfile.XHDTYPE) + b"99 a=b\nxx" + bytes(503) + file_member("a.jpg", b""), "is incomplete"),
        (header("x", 9, tarfile.XHDTYPE) + b"9 a b\nxx" + bytes(504) + file_member("a.jpg", b""), "is incomplete"),
        (pax({"path": b"a"}), "an extended header without its member"),
        (header("a.jpg", 0, b"Z"), "a.jpg has the unknown type b'Z'"),
        (header("a.jpg", 0, b"M"), "a.jpg has the unknown type b'M'"),
    ],
)
def test_a_header_that_says_the_impossible_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=r"a.tar is damaged or cut short at byte \d+ .*; get the archive") as caught:
        scan(tmp_path, content + bytes(1024))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"99", "GNU.sparse.name": b"a.jpg"},
        {"GNU.sparse.size": b"99", "GNU.sparse.numblocks": b"1", "GNU.sparse.offset": b"9"},
        {"GNU.sparse.map": b"0,1", "GNU.sparse.size": b"99"},
        {"GNU.sparse.realsize": b"99"},
    ],
)
def test_members_with_holes_are_refused_in_pax_too(tmp_path, fields):
    content = pax(fields) + file_member("a.jpg", b"1\n0\n1\n" + bytes(506)) + bytes(1024)
    with pytest.raises(InputError, match=r"stores a\.jpg with holes; pack it again without --sparse"):
        scan(tmp_path, content)


def test_a_chain_of_extended_headers_is_no_recursion(tmp_path):
    chain = 2000 * pax({"path": b"a.jpg"})
    assert scan(tmp_path, chain + file_member("b", b"picture") + bytes(1024)) == {"a.jpg": b"picture"}


def test_a_name_with_a_line_end_leaves_a_message_one_line(tmp_path):
    with pytest.raises(InputError) as caught:
        scan(tmp_path, pax({"path": b"a\nb"}) + header("x", 9999) + bytes(1024))
    assert "\n" not in str(caught.value) and r"a\nb" in str(caught.value)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"picture")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(tar(NAMES)), "it is compressed by gzip; decompress it first: gzip -dc FILE > NEW"),
        (bz2.compress(tar(NAMES)), "it is compressed by bzip2; decompress it first: bzip2 -dc FILE > NEW"),
        (lzma.compress(tar(NAMES)), "it is compressed by xz; decompress it first: xz -dc FILE > NEW"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "it is compressed by zstd; decompress it first: zstd -dc FILE > NEW"),
        (zipped() + bytes(600), "it is a zip; unpack it first: unzip FILE"),
        (b"\n<!DOCTYPE html><html>" + bytes(600), "it is a web page, perhaps an error or a login; get the file again"),
        (b"<?xml version='1.0'?><Error>", "it is a web page, perhaps an error or a login; get the file again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is Git LFS's pointer to the file; .*: git lfs pull"),
    ],
)
def test_what_is_no_tar_is_told(tmp_path, content, message):
    with pytest.raises(InputError, match=f"a.tar is not a tar: {message}"):
        scan(tmp_path, content)


def test_an_empty_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cut short at byte 0 \(it is empty\); get the archive again"):
        scan(tmp_path, b"")
