"""The doctor: each check finds what is wrong where it is made wrong, and none of them hangs, dies or tells a secret."""

import contextlib
import errno
import http.server
import io
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from faults import faulty
from mlflow_server import MlflowServer
from rich.console import Console
from workers import checks

from v2f.cli import main
from v2f.doctor import devices, examination, installed, machine, recipe, services
from v2f.doctor.findings import GIB, Finding, Setup
from v2f.doctor.processes import examine, steps
from v2f.runs.run import load_config
from v2f.storage import objects, retry, store

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "hush-hush"


def lines(found: Any) -> list[Finding]:
    return [each for each in found if isinstance(each, Finding)]


def of(found: Any, verdict: str) -> list[Finding]:
    return [line for line in lines(found) if line.verdict == verdict]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks have a process of their own, where they may set what they want; here they are called in ours."""
    monkeypatch.setattr(retry, "ATTEMPTS", retry.ATTEMPTS)
    monkeypatch.setattr(objects, "PART", objects.PART)
    monkeypatch.setattr(retry, "BACKOFF_S", 0.01)


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (checks.good, [Finding("x", "ok", "found it at runs")]),
        (checks.dies, [Finding("x", "wrong", "it crashed (signal 11) while loading a library: no error output")]),
        (
            checks.leaves,
            [Finding("x", "wrong", "it crashed (code 3) while loading a library: cannot open shared object file")],
        ),
        (checks.refuses, [Finding("x", "wrong", "http://***@host/x: it is away", "start it")]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_check_tells_what_it_found_or_how_it_ended(check: Any, told: list[Finding]) -> None:
    found = examine("x", check, Setup(), 60)
    assert [(line.verdict, line.found, line.do) for line in found] == [
        (each.verdict, each.found, each.do) for each in told
    ]


def test_a_check_that_hangs_costs_its_limit_and_keeps_what_it_had_found() -> None:
    for limit_s in (3, 12, 48):  # on a busy machine the process itself takes its time to start
        begun = time.monotonic()
        found = examine("x", checks.hangs, Setup(), limit_s)
        assert time.monotonic() - begun < 2 * limit_s + 10
        if len(found) > 1:
            break
    alive = [process for process in psutil.process_iter(["cmdline"]) if checks.WAITS in (process.info["cmdline"] or [])]
    assert not alive, "what it had started is still there"
    assert found[0] == Finding("hangs", "ok", "the first half")
    assert (found[1].verdict, found[1].found) == (
        "wrong",
        f"not finished within {limit_s} s while waiting for s3://***@bucket",
    )
    assert len(found) == 2


def test_an_error_of_ours_is_a_line_too() -> None:
    (line,) = lines(steps("x", lambda: checks.breaks(Setup())))
    assert line.verdict == "wrong"
    assert line.found.startswith("this check crashed: KeyError")


# ------------------------------------------------------------------------------------------------ what is installed

REQUIRES = ["torch<2.12,>=2.11", "accelerate>=1.15", "deepspeed", "facenet-pytorch==2.5.3", "mlflow>=3.17"]
REQUIRES += ['gradio<7,>=6; extra == "serve"', 'flask-wtf; extra == "server"', 'pytest; extra == "dev"']
THERE = {"torch": "2.11.0+cu130", "accelerate": "1.15.0", "deepspeed": "0.19.8", "facenet-pytorch": "2.5.3"}
THERE |= {"mlflow": "3.17.2", "gradio": "6.1.0", "flask-wtf": "1.2", "pytest": "9.0"}


def packages(tmp_path: Path, pinned: str = "", **changed: str | None) -> list[Finding]:
    there = {k: v for k, v in (THERE | {k.replace("_", "-"): v for k, v in changed.items()}).items() if v}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    (tmp_path / "constraints.txt").write_text(pinned)
    found = installed.packages(Setup(), version=version, requires=REQUIRES, constraints=tmp_path / "constraints.txt")
    return lines(found)


def test_versions_that_fit_are_one_line(tmp_path: Path) -> None:
    (line,) = packages(tmp_path, "torch==2.11.0\naccelerate==1.15.0\nabsent==1")
    assert line.verdict == "ok"
    assert "facenet-pytorch 2.5.3" in line.found


@pytest.mark.parametrize(
    ("changed", "verdict", "told"),
    [
        ({"torch": "2.12.1"}, "wrong", "torch 2.12.1 is installed, torch<2.12,>=2.11 is needed"),
        ({"facenet_pytorch": "2.6.0"}, "wrong", "facenet-pytorch 2.6.0 is installed, facenet-pytorch==2.5.3 is needed"),
        ({"deepspeed": None, "mlflow": "2.9"}, "wrong", "deepspeed is missing; mlflow 2.9 is installed, mlflow>=3.17"),
        ({"gradio": "5.0"}, "look", "[serve], for v2f serve: gradio 5.0 is installed"),
        ({"flask_wtf": None}, "ok", "[server], for an MLflow server with a login: not installed (flask-wtf)"),
    ],
)
def test_a_version_that_does_not_fit_is_named(tmp_path: Path, changed: dict[str, Any], verdict: str, told: str) -> None:
    (line,) = [line for line in packages(tmp_path, **changed) if told in line.found]
    assert line.verdict == verdict
    assert line.do


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is of Python 3.11")
def test_other_versions_than_ci_tests_are_to_be_looked_at(tmp_path: Path) -> None:
    (line,) = [line for line in packages(tmp_path, "torch==2.11.0\nmlflow==3.17.1\n") if line.verdict == "look"]
    assert "1 of 2 are not the versions that CI tests: mlflow 3.17.2 (tested: 3.17.1)" in line.found


def test_this_python_has_its_programs_or_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert not of(installed.python(Setup()), "look")
    other = tmp_path / "torchrun"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = [line.found for line in of(installed.python(Setup()), "look")]
    assert told == ["accelerate: not on the PATH", f"torchrun: the one on the PATH, {other}, is of another environment"]


# ------------------------------------------------------------------------------------------------ GPUs


def fake_torch(count: int = 1, *, available: bool = True, built: str | None = "13.0", **changed: Any) -> Any:
    """Answers as torch's do; computing happens on the CPU. ``changed``: free, major, arches, peers, result."""
    import torch

    about = SimpleNamespace(name="H100", major=changed.get("major", 9), minor=0)
    free = changed.get("free", 79 * GIB)

    def arange(length: int, device: str) -> Any:
        if changed.get("result") == "raise":
            raise RuntimeError("CUDA error: an illegal memory access\nmore")
        return torch.arange(length) + (1 if changed.get("result") == "wrong" else 0)

    return SimpleNamespace(
        version=SimpleNamespace(cuda=built),
        arange=arange,
        cuda=SimpleNamespace(
            is_available=lambda: available,
            device_count=lambda: count,
            get_device_properties=lambda number: about,
            mem_get_info=lambda number: (free, 80 * GIB),
            get_arch_list=lambda: changed.get("arches", ["sm_80", "sm_90", "compute_120"]),
            can_device_access_peer=lambda a, b: changed.get("peers", True),
        ),
    )


def gpus(torch: Any, cards: int = 1, driver: tuple[int, int] | None = (13, 0)) -> list[Finding]:
    return lines(devices.gpus(torch, [str(card) for card in range(cards)], driver))


def test_gpus_that_work_are_described() -> None:
    found = gpus(fake_torch(2))
    assert [line.verdict for line in found] == ["ok"] * 4
    assert found[0].found == "cuda:0 H100, 80 GiB, 79 free, compute capability 9.0"
    assert found[3].found == "direct access between all 2 GPUs"


@pytest.mark.parametrize(
    ("changed", "verdict", "told"),
    [
        ({"arches": ["sm_100", "sm_80", "compute_120"]}, "wrong", "this torch has sm_100 sm_80 compute_120"),
        ({"major": 7, "arches": ["sm_70"]}, "look", "it has no bfloat16"),
        ({"free": 20 * GIB}, "look", "other processes use its memory"),
        ({"result": "wrong"}, "wrong", "computes wrong"),
        ({"result": "raise"}, "wrong", "cannot compute: CUDA error: an illegal memory access"),
    ],
)
def test_a_gpu_that_does_not_work_is_named(changed: dict[str, Any], verdict: str, told: str) -> None:
    found = gpus(fake_torch(1, **changed))
    assert found[0].verdict == verdict
    assert found[0].found.endswith(told)
    assert found[0].do


def test_code_for_a_later_gpu_comes_from_ptx() -> None:
    assert gpus(fake_torch(1, major=12, arches=["sm_90", "compute_90"]))[0].verdict == "ok"
    assert gpus(fake_torch(1, major=9, arches=["compute_120"]))[0].verdict == "wrong"


def test_gpus_that_cannot_see_each_other_are_named() -> None:
    (line,) = of(gpus(fake_torch(3, peers=False)), "look")
    assert line.found == "no direct access between the GPUs 0-1, 0-2, 1-2"


@pytest.mark.parametrize(
    ("built", "cards", "driver", "hidden", "told"),
    [
        (None, 2, (13, 0), None, "install the registry's ordinary torch"),
        ("13.0", 2, (12, 8), None, "update the driver to one that supports CUDA 13; this one supports 12.8"),
        ("13.0", 2, (13, 0), "9", "CUDA_VISIBLE_DEVICES is '9'"),
        ("13.0", 2, None, None, "in a container, check that its runtime passes in GPUs"),
    ],
)
def test_gpus_that_torch_cannot_use_have_a_way_out(
    monkeypatch: pytest.MonkeyPatch, built: Any, cards: int, driver: Any, hidden: str | None, told: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_driver", lambda: None)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (line,) = gpus(fake_torch(available=False, built=built), cards, driver)
    assert line.verdict == "wrong"
    assert line.do.startswith(told) or told in line.do
    (none,) = gpus(fake_torch(available=False), 0, None)
    assert none.verdict == "ok"


@pytest.mark.slow
def test_an_all_reduce_that_fails_tells_its_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")  # how it is when all is well: the whole doctor, below
    found = lines(devices.all_reduce(Setup()))
    assert [(line.check, line.verdict) for line in found] == [("gloo", "wrong"), ("nccl", "ok")]
    assert "GLOO_SOCKET_IFNAME" in found[0].do


def test_a_wrong_sum_and_a_dead_process_are_wrong() -> None:
    assert devices._reduced("gloo", [{"seconds": 0.1}, {"seconds": 0.2}], "gloo", "").found.endswith("in 200 ms")
    line = devices._reduced("nccl", [{"seconds": 0.1}, {"error": "the sum is wrong"}], "NCCL 2.28.9", "do")
    assert line == Finding(
        "nccl", "wrong", "an all-reduce of 2 processes by NCCL 2.28.9 failed: the sum is wrong", "do"
    )


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
    assert found["this container may use 1.5 of the 16 cores"].do.startswith(
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
    assert "docker --shm-size" in gone.do


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
    assert "is taken" in found[1].found
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody.invalid")
    found = lines(machine.network(Setup(), port=0))
    assert found[0].verdict == "look"
    assert "nobody.invalid is not known" in found[0].found
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
    assert [line.do for line in disk(mounts, out=f"{tmp_path}/memory/x", **here)] == [
        "checkpoints are lost with the machine: take out= on a disk",
        "",
    ]
    shared = f"file://{tmp_path}/shared disk/x"
    assert [line.verdict for line in disk(mounts, out=shared, **here)] == ["ok", "ok"]
    told = disk(mounts, out=shared, tracking="sqlite:///runs/mlflow.db", **here)
    assert "SQLite's locks do not work" in told[0].do
    told = disk(mounts, out="s3://lab/x", cache=f"{tmp_path}/shared disk", **here)
    assert [line.verdict for line in told] == ["ok", "look"]
    assert "set data.cache.path to a disk of this machine" in told[1].do


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


# ------------------------------------------------------------------------------------------------ store


def test_a_round_trip_to_a_store_leaves_nothing(s3_root: str, swift: Any) -> None:
    found = lines(services.storage(Setup(store=s3_root)))
    assert [line.verdict for line in found] == ["ok"], found
    assert f"{s3_root} at {swift.endpoint}, credentials of the environment: 6 MiB written" in found[0].found
    assert "with the same CRC-32, listed, removed" in found[0].found
    assert store.tree(s3_root) == []
    assert swift.secret_key not in found[0].found


def test_a_store_that_refuses_says_why(
    s3_root: str, swift: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(root: str = s3_root) -> Finding:
        (line,) = lines(services.storage(Setup(store=root)))
        assert line.verdict == "wrong"
        return line

    assert told(s3_root.replace(swift.bucket, "nobodys-bucket")).found.endswith("there is no such bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "-0123")
    line = told()
    assert "access is denied (HTTP 403 SignatureDoesNotMatch)" in line.found
    assert line.do == "check its rights or credentials"
    assert SECRET not in str(line)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    line = told()
    assert line.found.endswith("credentials none")
    assert "AWS_PROFILE" in line.do
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id={swift.access_key}\naws_secret_access_key={swift.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    (line,) = lines(services.storage(Setup(store=s3_root)))
    assert (line.verdict, "credentials of the credentials file" in line.found) == ("ok", True)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE" in told().found


def test_a_store_behind_a_bad_network_is_to_be_looked_at_or_wrong(
    s3_root: str, swift: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(swift.endpoint, seed=3, share=0.0) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
        faults.kinds, faults.share = ["slow_down"], 1.0
        (line,) = lines(services.storage(Setup(store=s3_root)))
        assert (line.verdict, "HTTP 503 SlowDown" in line.found) == ("wrong", True)
        before = store.statistics().retries
        faults.share = 0.0
        seen: set[str] = set()

        def once(method: str, path: str) -> bool:  # the first answer to each request is lost
            fresh = f"{method} {path}" not in seen and method != "HEAD"
            seen.add(f"{method} {path}")
            return fresh

        faults.may, faults.share = once, 1.0
        (line,) = lines(services.storage(Setup(store=s3_root)))
        assert line.verdict == "look"
        assert f"{store.statistics().retries - before} requests had to be repeated" in line.found
        faults.share = 0.0
        assert store.tree(s3_root) == []
        faults.may, faults.kinds, faults.share = lambda method, path: True, ["stall"], 1.0
        found = examine("storage", services.storage, Setup(store=s3_root), 8)
        assert found[-1].found.startswith("not finished within 8 s while ")


def test_a_store_that_gives_other_bytes_or_lists_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(store=str(tmp_path))
    assert [line.verdict for line in lines(services.storage(setup))] == ["ok"]
    with monkeypatch.context() as patch:
        real = store.read_bytes
        patch.setattr(store, "read_bytes", lambda path: real(path)[:-1] + b"x")
        (line,) = lines(services.storage(setup))
        assert f"{tmp_path}: the bytes read are not the bytes written" in line.found
    with monkeypatch.context() as patch:
        patch.setattr(store, "names", lambda path: [])
        (line,) = lines(services.storage(setup))
        assert "a written object is not listed" in line.found
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_folder", lambda path, first: None)
        (line,) = lines(services.storage(setup))
        assert "a removed object is still listed" in line.found
    (line,) = lines(services.storage(Setup(store=str(tmp_path / "none"))))
    assert line.found.endswith("this folder does not exist")
    (line,) = lines(services.storage(Setup(store=f"s3://key:{SECRET}@bucket/x")))
    assert line.verdict == "wrong"
    assert SECRET not in str(line)


# ------------------------------------------------------------------------------------------------ MLflow, clocks


@contextlib.contextmanager
def answering(status: int, *, late_s: float = 0.0, silent: bool = False) -> Iterator[str]:
    """A server that gives one answer to everything, dated so many seconds from now, or none at all."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if silent:
                done.wait(60)
                return
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + late_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("late_s", "verdict", "told"), [(3700, "wrong", "behind"), (-100, "look", "ahead of"), (5, None, "")]
)
def test_a_clock_that_is_wrong_is_told_with_how_much(late_s: float, verdict: str | None, told: str) -> None:
    with answering(403, late_s=late_s) as address:
        found = list(services._clock("storage", address))
    assert [line.verdict for line in found] == ([verdict] if verdict else [])
    if verdict:
        assert f" s {told} the server's" in found[0].found
        assert abs(float(found[0].found.split()[4]) - abs(late_s)) < 10
    assert list(services._clock("storage", address)) == []  # it is away now: the round trip will say so


@pytest.mark.slow
def test_a_round_trip_to_mlflow_deletes_what_it_made(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    server = MlflowServer(tmp_path)
    server.start()
    try:
        found = lines(services.mlflow(Setup(tracking=server.uri)))
        assert [line.verdict for line in found] == ["ok"], found
        assert "a run, a number and a picture went there and came back, the run is deleted" in found[0].found
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("v2f-doctor")
        assert experiment is not None
        assert client.search_runs([experiment.experiment_id]) == []
        assert len(client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)) == 1
    finally:
        server.kill()
    (line,) = lines(services.mlflow(Setup(tracking=server.uri)))
    assert (line.verdict, "no connection to it" in line.found) == ("wrong", True)


def test_an_mlflow_that_refuses_or_is_silent_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    for status, told in (
        (401, "it answers with HTTP 401; set MLFLOW_TRACKING_USERNAME"),
        (403, "HTTP 403"),
        (500, "500"),
    ):
        with answering(status) as uri:
            (line,) = lines(services.mlflow(Setup(tracking=uri)))
        assert line.verdict == "wrong"
        assert told in f"{line.found}; {line.do}"
        assert line.found.startswith(f"{uri}: MLflow cannot be reached")
    with answering(200, silent=True) as uri:
        (line,) = lines(services.mlflow(Setup(tracking=uri)))
        assert "it does not answer in time" in line.found
    (line,) = lines(services.mlflow(Setup(tracking=f"http://ada:{SECRET}@127.0.0.1:1")))
    assert line.verdict == "wrong"
    assert "an address carries no credentials" in line.found
    assert "MLFLOW_TRACKING_PASSWORD" in line.do
    assert SECRET not in str(line)
    (line,) = lines(services.mlflow(Setup(tracking=f"sqlite:///{tmp_path}/none/mlflow.db")))
    assert (line.verdict, line.found.endswith("not there yet, the first run creates it")) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ the recipe


@pytest.fixture
def small_recipe(run_values: Callable[..., dict[str, Any]], tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(run_values()))
    return str(path)


def test_a_recipe_says_where_to_look_and_its_data_are_read(small_recipe: str, tmp_path: Path, tiny_shards: str) -> None:
    setup = Setup(recipe=small_recipe, overrides=["tracking.uri=http://mlflow.lab", "out=s3://lab/runs/x"])
    facts, line = recipe.recipe(setup)
    assert facts == {
        "out": "s3://lab/runs/x",
        "cache": None,
        "tracking": "http://mlflow.lab",
        "store": "s3://lab/runs/x",
    }
    assert line.verdict == "ok"  # type: ignore[union-attr]
    named = Setup(recipe=small_recipe, store="my/store", tracking="http://other")
    facts, _ = recipe.recipe(named)
    assert (facts["store"], facts["tracking"]) == ("my/store", "http://other")  # type: ignore[index]
    (found,) = lines(recipe.data(load_config(small_recipe, ["data.workers=2"])))
    assert found.verdict == "ok"
    assert found.found.startswith(f"{tiny_shards}: 48 samples of train, fingerprint ")
    # 2 workers of 4 trays of 8 samples of a second's half at 16 kHz in float32, a picture of 64 px, and the raw bytes
    share = float(found.found.split("up to ")[1].split()[0]) * GIB / (2 * 4 * 8)
    assert 0.4 * 16000 * 4 + 3 * 64 * 64 < share < 2 * (0.5 * 16000 * 4 + 3 * 64 * 64)


def test_data_that_are_gone_or_damaged_are_wrong(small_recipe: str, tiny_shards: str, tmp_path: Path) -> None:
    import shutil

    (line,) = lines(recipe.data(load_config(small_recipe, ["data.path=nowhere"])))
    assert (line.verdict, "nowhere: no data set here" in line.found) == ("wrong", True)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_shards, copy)
    for shard in copy.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:5000])
    (line,) = lines(recipe.data(load_config(small_recipe, [f"data.path={copy}"])))
    assert line.verdict == "wrong"
    assert line.do == f"v2f shards verify {copy} lists all damage"


def test_weights_that_are_missing_or_others_are_wrong(tmp_path: Path) -> None:
    path = str(REPOSITORY / "launch" / "recipes" / "thesis-final.yaml")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model_ir_se50.pth").write_bytes(b"another net")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model_ir_se50.pth\n")
    config = load_config(path, [f"system.frozen.path={folder}"])
    found = {line.found.split(" (")[0]: line for line in lines(recipe.weights("final", config))}
    assert {line.verdict for line in found.values()} == {"wrong"}
    assert "missing" in found["stylegan2-ffhq-1024"].found
    assert found["stylegan2-ffhq-1024"].do
    (identity,) = [line for line in found.values() if "model_ir_se50.pth" in line.found]
    assert "REFUSED" in identity.found
    small = str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml")
    (line,) = lines(recipe.weights("quickstart", load_config(small)))
    assert line.verdict == "ok"


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"good": (checks.good, False), "refuses": (checks.refuses, False)}
    monkeypatch.setattr(examination, "CHECKS", chosen)


def test_lines_json_and_table_say_the_same(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    plain = capsys.readouterr().out.splitlines()
    assert plain == [
        "ok    good: found it at runs",
        "wrong refuses: http://***@host/x: it is away; start it",
        "1 wrong",
    ]
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "wrong"
    assert [line["check"] for line in found["lines"]] == ["good", "refuses"]
    screen = io.StringIO()
    assert examination.doctor(Setup(), console=Console(file=screen, force_terminal=True, width=100)) == 1
    for word in ("good", "found it at runs", "refuses", "http://***@host/x: it is away", "start it", "1 wrong"):
        assert word in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_nothing_wrong_is_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(examination, "CHECKS", {"good": (checks.good, False)})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is wrong"


def test_a_wrong_recipe_is_one_line_and_the_rest_is_looked_at(
    few: None, tmp_path: Path, small_recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--run-config", small_recipe, "train.step=3"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "wrong recipe:" in told[0]
    assert "did you mean 'train.steps'?" in told[0]
    assert told[1] == "ok    good: found it at runs"
    assert main(["doctor", "--weights", "weights"]) == 1
    assert "--run-config" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_doctor_on_this_machine(
    small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    main(["doctor", "--json", "--run-config", small_recipe, "--store", "store", "--limit", "60"])
    text = capsys.readouterr().out
    assert SECRET not in text
    found = [Finding(**line) for line in json.loads(text)["lines"]]
    assert not [line for line in found if "this check crashed" in line.found or "not finished within" in line.found]
    names = {line.check for line in found}
    assert names >= {"recipe", "python", "packages", "torch", "gpu", "gloo", "nccl", "cpu", "memory", "shm", "limits"}
    assert names >= {"network", "disk", "storage", "mlflow", "data", "weights"}
    right = {"recipe", "torch", "gloo", "storage", "mlflow", "data", "weights"}
    assert not [line for line in found if line.check in right and line.verdict != "ok"]
    assert any("an all-reduce of 2 processes by gloo, 4 MiB in" in line.found for line in found)
    assert any(line.found.startswith(f"runs and scratch: {tmp_path}") for line in found)  # the recipe's, not ./runs
    assert list((tmp_path / "store").iterdir()) == []
