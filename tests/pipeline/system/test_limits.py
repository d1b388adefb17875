"""Control groups, file systems and the clock, from what Linux tells of them."""

from pathlib import Path

import pytest

from pipeline.system import memory
from pipeline.system.clock import clock_state
from pipeline.system.control_group import MemoryLimit, cpu_limit, memory_limit
from pipeline.system.file_systems import existing_folder, file_system_of

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev/shm rw - tmpfs tmpfs rw
24 22 0:6 / /data rw shared:2 - nfs4 server:/export rw
25 24 0:7 / /data/with\040space rw - fuse.sshfs host:/ rw
26 22 0:8 / /data2 rw - overlay overlay rw
27 24 0:9 / /data/hidden rw - ext4 /dev/sdb rw
28 27 0:9 / /data/hidden rw - xfs /dev/sdc rw
29 22 0:10 / /rootless rw - fuse.fuse-overlayfs fuse-overlayfs rw
30 22 0:11 / /usb rw - fuseblk /dev/sdd1 rw
31 22 0:12 / /vault rw - fuse.gocryptfs /home/u/cipher rw
32 22 0:13 / /volume rw - fuse.glusterfs server:/volume rw
"""


def _write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def groups(tmp_path):
    """The folder where control groups are mounted, and the list of the process's own."""
    return tmp_path / "cgroup", tmp_path / "own"


def test_the_tightest_group_of_version_2_counts(groups):
    root, own = groups
    own.write_text("0::/outer/inner\n")
    _write(root, memory__max=5000, memory__current=605, memory__stat="anon 1", cpu__max="900000 100000")
    _write(root / "outer", memory__max=1000, memory__current=600, memory__stat="anon 1\ninactive_file 100")
    _write(root / "outer" / "inner", memory__max="max", memory__current=50, cpu__max="150000 100000")
    _write(root / "outer", cpu__max="max 100000")
    assert memory_limit(root, own) == MemoryLimit(1000, 500)
    assert memory_limit(root, own).available_bytes == 500
    assert cpu_limit(root, own) == 1.5


def test_the_groups_of_version_1_count(groups):
    root, own = groups
    own.write_text("5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n3:pids:/x\n")
    _write(root / "memory" / "docker" / "1", **{"memory__limit_in_bytes": 800, "memory__usage_in_bytes": 900})
    _write(root / "memory", **{"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 10})
    _write(root / "memory" / "docker" / "1", memory__stat="total_inactive_file 50")
    _write(root / "memory", memory__stat="total_inactive_file 50")
    _write(root / "cpu,cpuacct" / "docker" / "1", **{"cpu__cfs_quota_us": 50000, "cpu__cfs_period_us": 100000})
    _write(root / "cpu,cpuacct", **{"cpu__cfs_quota_us": -1, "cpu__cfs_period_us": 100000})
    assert memory_limit(root, own) == MemoryLimit(800, 850)
    assert memory_limit(root, own).available_bytes == 0
    assert cpu_limit(root, own) == 0.5


def test_a_container_that_sees_only_its_own_group_is_limited_by_it(groups):
    root, own = groups
    own.write_text("0::/docker/outside/of/what/is/mounted\n")
    _write(root, memory__max=700, memory__current=300, memory__stat="inactive_file 0", cpu__max="200000 100000")
    assert memory_limit(root, own) == MemoryLimit(700, 300)
    assert cpu_limit(root, own) == 2


@pytest.mark.parametrize("list_of_groups", ["0::/\n", None])
def test_without_a_limit_there_is_none(list_of_groups, groups):
    root, own = groups
    if list_of_groups is not None:
        own.write_text(list_of_groups)
        _write(root, memory__max="max", memory__current=1, memory__stat="", cpu__max="max 100000")
    assert (memory_limit(root, own), cpu_limit(root, own)) == (None, None)


def test_available_memory_is_that_of_the_tightest_limit(monkeypatch):
    free = memory.available_memory_bytes()
    assert 0 < free
    monkeypatch.setattr(memory, "memory_limit", lambda: MemoryLimit(1000, 400))
    assert memory.available_memory_bytes() == 600
    monkeypatch.setattr(memory, "memory_limit", lambda: None)
    assert memory.available_memory_bytes() >= free * 0.5


@pytest.mark.parametrize(
    ("path", "kind", "place"),
    [
        ("/somewhere/run", "ext4", "disk"),
        ("/dev/shm/run", "tmpfs", "memory"),
        ("/data/run", "nfs4", "shared"),
        ("/data/with space/run", "fuse.sshfs", "shared"),
        ("/data2/run", "overlay", "container"),
        ("/data/hidden", "xfs", "disk"),
        ("/rootless/run", "fuse.fuse-overlayfs", "container"),
        ("/usb/run", "fuseblk", "disk"),
        ("/vault/run", "fuse.gocryptfs", "disk"),
        ("/volume/run", "fuse.glusterfs", "shared"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path, kind, place, tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS)
    found = file_system_of(Path(path), tmp_path / "mounts")
    assert (found.kind, found.place) == (kind, place)


def test_a_system_that_does_not_tell_its_mounts(tmp_path):
    assert file_system_of(tmp_path, tmp_path / "nothing") is None
    assert file_system_of(tmp_path) is not None


def test_the_nearest_folder_above_exists(tmp_path):
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert existing_folder(tmp_path) == tmp_path


def test_linux_tells_of_its_clock():
    state = clock_state()
    assert state is not None and state.max_error_seconds >= 0
