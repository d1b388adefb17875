import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pipeline import fetch as fetch_module
from pipeline.command import InputError
from pipeline.fetch import DATA_SETS, DataSet, fetch, main
from pipeline.sources.detect import open_source


def idx_file(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


CONTENTS = {
    "train-images-idx3-ubyte.gz": idx_file(np.arange(4 * 5 * 6).reshape(4, 5, 6)),
    "train-labels-idx1-ubyte.gz": idx_file(np.array([1, 0, 2, 1])),
}


@pytest.fixture
def origin():
    """A server on loopback: its `files` are served, its `requests` recorded."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            body = self.server.files.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {name: gzip.compress(content) for name, content in CONTENTS.items()}
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def package_folder(origin, tmp_path, monkeypatch):
    """A data set `tiny` whose distribution's folder is this one, empty at first."""
    folder = tmp_path / "package"
    folder.mkdir()
    tiny = DataSet(
        origin=f"http://127.0.0.1:{origin.server_port}/",
        package="dataset-tiny",
        package_folder=folder,
        files={name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()},
        class_names=("cat", "dog", "bird"),
    )
    monkeypatch.setitem(DATA_SETS, "tiny", tiny)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_downloaded_and_become_a_source(package_folder, tmp_path):
    out = tmp_path / "out"
    assert main(["tiny", str(out)]) == 0
    assert names(out) == ["classes.txt", *sorted(CONTENTS)]
    listing = open_source(out).list_samples()
    assert [entry.name for entry in listing.classes] == ["cat", "dog", "bird"]
    assert listing.splits["train"].num_rows == 4


def test_what_a_distribution_ships_is_taken_without_network_though_compressed_anew(origin, package_folder, tmp_path):
    for name, content in CONTENTS.items():
        (package_folder / name).write_bytes(gzip.compress(content, compresslevel=1, mtime=7))
    fetch("tiny", tmp_path / "out")
    assert origin.requests == []
    assert all((tmp_path / "out" / name).read_bytes() == (package_folder / name).read_bytes() for name in CONTENTS)


def test_what_is_there_and_right_is_kept_and_what_is_missing_is_fetched(origin, package_folder, tmp_path):
    out = tmp_path / "out"
    fetch("tiny", out)
    missing = list(CONTENTS)[1]
    (out / missing).unlink()
    origin.requests.clear()
    fetch("tiny", out)
    assert origin.requests == [f"/{missing}"]
    assert gzip.decompress((out / missing).read_bytes()) == CONTENTS[missing]


@pytest.mark.parametrize("damage", ["other content", "cut short", "flipped bits", "no gzip"])
def test_a_corrupted_download_leaves_nothing_and_says_so(origin, package_folder, tmp_path, damage):
    name = next(iter(CONTENTS))
    whole = origin.files[name]
    origin.files[name] = {
        "other content": gzip.compress(b"x"),
        "cut short": whole[:-9],
        "flipped bits": whole[:10] + b"\xff\xff" + whole[12:],
        "no gzip": b"<html>",
    }[damage]
    with pytest.raises(InputError, match="is not what was published"):
        fetch("tiny", tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_damaged_package_names_the_package(package_folder, tmp_path):
    (package_folder / next(iter(CONTENTS))).write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match="reinstall Debian's package dataset-tiny"):
        fetch("tiny", tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_missing_file_and_a_dead_origin_are_one_line_each(origin, package_folder, tmp_path, monkeypatch):
    origin.files.clear()
    with pytest.raises(InputError, match=r"cannot download http://127.0.0.1:.*: Not Found; check the network"):
        fetch("tiny", tmp_path / "out")

    def refuse(url, timeout):
        raise fetch_module.urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setattr(fetch_module.urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match="Connection refused; check the network, or install Debian's package"):
        fetch("tiny", tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_an_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="known: fashion-mnist"):
        fetch("imagenet", tmp_path)


def test_a_dataset_gets_no_files(tmp_path):
    (tmp_path / "dataset.json").touch()
    with pytest.raises(InputError, match="is a dataset, which holds only its own files"):
        fetch("fashion-mnist", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_the_published_fashion_mnist_is_what_a_distribution_ships(tmp_path):
    data_set = DATA_SETS["fashion-mnist"]
    if not data_set.package_folder.exists():
        pytest.skip(f"Debian's package {data_set.package} is not installed")
    fetch("fashion-mnist", tmp_path)
    listing = open_source(tmp_path).list_samples()
    assert {split: table.num_rows for split, table in listing.splits.items()} == {"train": 60_000, "test": 10_000}
    assert np.bincount(listing.splits["test"]["class_index"]).tolist() == [1000] * 10
    assert listing.classes[9].name == "Ankle boot"
