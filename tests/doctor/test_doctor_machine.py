"""The doctor's checks of this machine and its disks find what is wrong where it is made wrong."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from doctor_findings import lines, of

from v2f.doctor import machine
from v2f.doctor.findings import GIB, Finding, Setup

# ------------------------------------------------------------------------------------------------ this machine


def written(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


GROUPS = {
    "2": (
        "0::/job/pod\n",
        {
            "memory.max": "max\n",
            "job/memory.max": str(64 << 30),
            "job/pod/memory.max": str(4 << 30),
            "job/pod/memory.current": str(3 << 30),
            "job/pod/memory.stat": f"anon 1\ninactive_file {1 << 30}\n",
            "job/pod/cpu.max": "150000 100000\n",
            "job/cpu.max": "max 100000\n",
            "job/pod/pids.max": "100\n",
        },
    ),
    "1": (
        "9:name=systemd:/\n4:memory:/of/the/host\n3:cpu,cpuacct:/\n2:pids:/\n",
        {
            "memory/memory.limit_in_bytes": str(4 << 30),
            "memory/memory.usage_in_bytes": str(3 << 30),
            "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {1 << 30}\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "pids/pids.max": "100\n",
        },
    ),
}


@pytest.mark.parametrize("version", GROUPS)
def test_the_limits_of_a_container_are_found(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files = GROUPS[version]
    groups = written(tmp_path / "groups", files)
    written(tmp_path, {"own": own})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=60 * GIB))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = {
        line.found: line for line in of(machine.machine(Setup(), groups=groups, own=str(tmp_path / "own")), "look")
    }
    assert found["this container may use 1.5 of the 16 cores"].advice.startswith(
        "set OMP_NUM_THREADS and train.threads to 1"
    )
    (memory,) = [line for line in found.values() if line.check == "memory"]
    # 3 of 4 GiB are used, of which 1 holds files of a disk and goes when memory is wanted
    assert memory.found == "2.0 GiB free of the 4.0 GiB that this container may use"
    assert "100 processes and threads" in found
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = of(machine.machine(Setup(), groups=groups, own=str(tmp_path / "own")), "look")
    assert "cpu" not in {line.check for line in told}


def test_no_limits_is_no_complaint(tmp_path: Path) -> None:
    groups = written(tmp_path / "groups", {"memory.max": "max", "memory/memory.limit_in_bytes": str((1 << 63) - 4096)})
    written(tmp_path, {"own": "0::/\n4:memory:/\n"})
    assert machine._limits(groups, str(tmp_path / "own")) == {}
    assert machine._limits(groups, str(tmp_path / "none")) == {}


def test_few_open_files_are_to_be_looked_at(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        found = of(machine.machine(Setup(), groups=str(tmp_path)), "look")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "256 open files" in [line.found for line in found]


def test_shared_memory_is_said_to_be_nccls(tmp_path: Path) -> None:
    gone = machine._shared_memory(str(tmp_path / "none"))
    assert gone.verdict == "look"
    assert "the loader does not use it, NCCL does" in gone.found
    assert "docker --shm-size" in gone.advice


def test_a_disk_and_a_shared_memory_that_are_tiny_are_seen_from_within(tmp_path: Path) -> None:
    """In a mount namespace of its own: 2 MiB of /dev/shm, and a run's disk of 8 MiB."""
    script = """
import json, sys
from v2f.doctor import machine
from v2f.doctor.findings import Setup, Finding
found = [*machine.machine(Setup()), *machine.disk(Setup(out="runs/x", scratch="/dev/shm"))]
print(json.dumps([[line.check, line.verdict, line.found] for line in found if isinstance(line, Finding)]))
"""
    mount = f"mount -t tmpfs -o size=2m s /dev/shm && mount -t tmpfs -o size=8m d {tmp_path} && cd {tmp_path}"
    unshare = ["unshare", "--mount"] + ([] if os.getuid() == 0 else ["--user", "--map-root-user"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of its own")
    done = subprocess.run(
        [*unshare, "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (shm,) = [told for check, _, told in found if check == "shm"]
    assert shm.startswith("/dev/shm: 2 MiB")
    disks = {told.split(":")[0]: (verdict, told) for check, verdict, told in found if check == "disk"}
    assert disks["runs"][0] == "wrong"
    assert f"{tmp_path} (tmpfs): 0 GiB free" in disks["runs"][1]
    assert disks["scratch"][0] == "wrong"


def test_a_port_that_is_taken_and_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        found = lines(machine.network(Setup(), port=taken.getsockname()[1]))
    assert found[1].verdict == "look"
    assert "is in use" in found[1].found
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody.invalid")
    found = lines(machine.network(Setup(), port=0))
    assert found[0].verdict == "look"
    assert "nobody.invalid does not resolve" in found[0].found
    assert found[1].verdict == "ok"


# ------------------------------------------------------------------------------------------------ disks

MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:5 / {root}/memory rw - tmpfs tmpfs rw
24 22 0:6 / {root}/shared\\040disk rw - nfs4 server:/x rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    for name in ("memory", "shared disk", "local"):
        (tmp_path / name).mkdir()
    return str(Path(written(tmp_path / "m", {"mountinfo": MOUNTS.format(root=tmp_path.resolve())}), "mountinfo"))


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room that is fast, whatever this one is."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=900 * GIB))
    monkeypatch.setattr(machine, "_speed", lambda folder, size: (1e9, 2e9))


def disk(mounts: str, **setup: Any) -> list[Finding]:
    return lines(machine.disk(Setup(**setup), mounts=mounts))


def test_the_kind_of_a_disk_decides_what_may_lie_there(tmp_path: Path, mounts: str, roomy: None) -> None:
    here = {"scratch": str(tmp_path / "local")}
    (line,) = disk(mounts, out=f"{tmp_path}/local/runs/x", **here)
    assert (line.verdict, line.check) == ("ok", "disk")
    assert line.found.startswith(f"runs and scratch: {tmp_path}/local (ext4): 900 GiB free, writes 1000 MB/s")
    assert [line.advice for line in disk(mounts, out=f"{tmp_path}/memory/x", **here)] == [
        "checkpoints are lost with the machine: take out= on a disk",
        "",
    ]
    shared = f"file://{tmp_path}/shared disk/x"
    assert [line.verdict for line in disk(mounts, out=shared, **here)] == ["ok", "ok"]
    told = disk(mounts, out=shared, tracking="sqlite:///runs/mlflow.db", **here)
    assert "SQLite's locks do not work" in told[0].advice
    told = disk(mounts, out="s3://lab/x", cache=f"{tmp_path}/shared disk", **here)
    assert [line.verdict for line in told] == ["ok", "look"]
    assert "set data.cache.path to a disk of this machine" in told[1].advice


@pytest.mark.parametrize(("free", "verdict"), [(20 * GIB, "ok"), (5 * GIB, "look"), (GIB // 2, "wrong")])
def test_little_room_is_told(
    tmp_path: Path, mounts: str, roomy: None, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert disk(mounts, out=str(tmp_path / "local"), scratch=str(tmp_path / "local"))[0].verdict == verdict


def test_a_disk_that_takes_no_bytes_or_gives_others_back_is_wrong(
    tmp_path: Path, mounts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = disk(mounts, out="/proc/self/x", scratch="/proc/self")
    assert line.verdict == "wrong"
    assert "cannot be written to" in line.found
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        found = disk(mounts, out=str(tmp_path / "local"), scratch=str(tmp_path / "local"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[0].found.endswith(f"cannot be written to: {os.strerror(errno.EFBIG)}")
    numbers = iter(range(1000))
    monkeypatch.setattr(machine.zlib, "crc32", lambda *_: next(numbers))
    (line,) = disk(mounts, out=str(tmp_path / "local"), scratch=str(tmp_path / "local"))
    assert line.verdict == "wrong"
    assert line.found.endswith("the bytes read are not the bytes written")
    assert list((tmp_path / "local").iterdir()) == []


def test_a_disk_is_measured(tmp_path: Path) -> None:
    down, up = machine._speed(str(tmp_path), 9_000_001)
    assert down > 1e5
    assert up > 1e5
    assert list(tmp_path.iterdir()) == []
