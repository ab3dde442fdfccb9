"""This machine: cores, memory, limits, network, and the disks that a run writes to."""

import contextlib
import os
import random
import resource
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from v2f.doctor.findings import GIB, MIB, Finding, Setup, Step, existing
from v2f.errors import V2FError
from v2f.storage import store

_MEMORY = 3 * GIB  # of a small run, with its workers and MLflow's client
_SHM = 1 * GIB  # of /dev/shm, enough for several GPUs of a machine
_FILES, _TASKS = 1024, 512
_RENDEZVOUS = 29500  # accelerate's and torch's default port
_WRITTEN = 64 * MIB
_LOW, _TOO_LOW = 10 * GIB, 1 * GIB  # free bytes of a disk
_SLOW = 50e6  # bytes a second
_MEMORY_DISKS = ("ramfs", "tmpfs")
_SHARED_DISKS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.glusterfs", "9p")


def machine(
    setup: Setup, *, groups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup", shm: str = "/dev/shm"
) -> Iterator[Step]:
    """Cores, memory, /dev/shm, open files and processes: of the machine, and what this container or user may use."""
    import psutil

    limits = _limits(groups, own)
    cores: float = len(os.sched_getaffinity(0))
    quota = limits.get("cpu")
    if quota is not None and quota < cores - 0.5:
        advice = f"set OMP_NUM_THREADS and train.threads to {max(1, int(quota))}: torch would start {cores:.0f} threads"
        done = os.environ.get("OMP_NUM_THREADS", "").isdigit() and int(os.environ["OMP_NUM_THREADS"]) <= max(1, quota)
        yield Finding(
            "cpu",
            "ok" if done else "look",
            f"this container may use {quota:g} of the {cores:.0f} cores",
            "" if done else advice,
        )
    else:
        yield Finding("cpu", "ok", f"{cores:.0f} cores")
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    if "memory" in limits and limits["memory"] < total:
        used = limits.get("memory_used", 0)
        free = min(free, int(limits["memory"] - used))
        text = f"{free / GIB:.1f} GiB free of the {limits['memory'] / GIB:.1f} GiB that this container may use"
    else:
        text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < _MEMORY:
        advice = (
            f"a small run needs about {_MEMORY / GIB:.0f} GiB: raise the limit, or lower data.workers or data.batch"
        )
        yield Finding("memory", "look", text, advice)
    else:
        yield Finding("memory", "ok", text)
    yield _shared_memory(shm)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        yield Finding("limits", "look", f"{soft} open files", f"ulimit -n {_FILES} or more (up to {hard} without root)")
    else:
        yield Finding("limits", "ok", f"{'any number of' if soft == resource.RLIM_INFINITY else soft} open files")
    tasks = [limits["pids"]] if "pids" in limits else []
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    tasks += [processes] if processes != resource.RLIM_INFINITY else []
    if tasks and min(tasks) < _TASKS:
        yield Finding(
            "limits", "look", f"{min(tasks):.0f} processes and threads", f"ulimit -u, pids.max: {_TASKS} or more"
        )


def _shared_memory(shm: str) -> Finding:
    """/dev/shm, which only NCCL uses: workers decode into memory without a file system (docs/data.md, Speed)."""
    who = "the loader does not use it, NCCL does between GPUs of a machine"
    several = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) > 1
    try:
        size = shutil.disk_usage(shm).total
        with tempfile.NamedTemporaryFile(dir=shm) as file:
            file.write(b"\0" * min(size, MIB))
            file.flush()
    except OSError as error:
        advice = f"mount a tmpfs of {_SHM / GIB:.0f} GiB there (docker --shm-size, an emptyDir with medium: Memory)"
        return Finding("shm", "wrong" if several else "look", f"{shm} cannot be used ({error.strerror}); {who}", advice)
    if size < _SHM:
        advice = f"give it {_SHM / GIB:.0f} GiB (docker --shm-size, an emptyDir with medium: Memory)"
        text = f"{shm}: {size / MIB:.0f} MiB; {who}"
        if not several:
            return Finding("shm", "ok", text, f"before several GPUs: {advice}")
        return Finding("shm", "look", text, advice)
    return Finding("shm", "ok", f"{shm}: {size / GIB:.1f} GiB; {who}")


def _limits(groups: str, own: str) -> dict[str, float]:
    """The tightest limits of this process's control groups (version 1 or 2): bytes, cores, tasks."""
    found: dict[str, float] = {}

    def least(name: str, value: float) -> None:
        found[name] = min(found.get(name, value), value)

    try:
        entries = [line.split(":", 2) for line in Path(own).read_text().splitlines()]
    except OSError:
        return found
    for _, controllers, path in entries:
        root = Path(groups, controllers) if controllers else Path(groups)
        # In a container the path may be that of the host, while this group is mounted at the root.
        for folder in dict.fromkeys(
            root.joinpath(*Path(path).parts[1:up]) for up in range(len(Path(path).parts), 0, -1)
        ):
            for file, name in (("memory.max", "memory"), ("memory.limit_in_bytes", "memory"), ("pids.max", "pids")):
                number = _number(folder / file)
                if number is not None and number < 1 << 60:  # version 1 writes "no limit" as a huge number
                    least(name, number)
                    used = _number(folder / ("memory.current" if file == "memory.max" else "memory.usage_in_bytes"))
                    if name == "memory" and used is not None and found["memory"] == number:
                        found["memory_used"] = max(0.0, used - _reclaimable(folder))
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                least("cpu", float(quota) / float(period))  # "max" is not a number and means no limit
            quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota_us is not None and quota_us > 0 and period_us:
                least("cpu", quota_us / period_us)
    return found


def _reclaimable(folder: Path) -> float:
    """Bytes of a group's page cache, which are freed when memory is needed."""
    with contextlib.suppress(OSError, ValueError):
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def network(setup: Setup, *, port: int = _RENDEZVOUS) -> Iterator[Step]:
    """What a launcher's rendezvous needs: a host name that resolves, and the default port."""
    name = socket.gethostname()
    yield f"resolving {name}"
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)})
    except OSError as error:
        advice = "add it to /etc/hosts, or set the interface with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        yield Finding("network", "look", f"the host's own name {name} does not resolve ({error.strerror})", advice)
    else:
        alone = all(address.startswith("127.") or address == "::1" for address in addresses)
        advice = "for several machines, set the interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME" if alone else ""
        yield Finding("network", "ok", f"{name} is {', '.join(addresses)}", advice)
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        advice = (
            "does another job run? accelerate launch --main_process_port 0, torchrun --standalone choose a free one"
        )
        yield Finding("network", "look", f"port {port}, the launchers' default, is in use ({error.strerror})", advice)
    else:
        yield Finding("network", "ok", f"port {port}, the launchers' default, is free")


def disk(setup: Setup, *, mounts: str = "/proc/self/mountinfo") -> Iterator[Step]:
    """The disks of the run, its scratch and its cache: free space, kind; 64 MiB written, synced, read and compared."""
    places: dict[tuple[int, str], tuple[str, list[str]]] = {}
    for what, path in (("runs", setup.out), ("scratch", setup.scratch), ("cache", setup.cache)):
        local = store.local_path(path) if path else None
        if local is not None:
            folder = existing(local)
            kind = _file_system(folder, mounts)
            places.setdefault((os.stat(folder).st_dev, kind), (folder, []))[1].append(what)
    for (_, kind), (folder, whats) in places.items():
        named = f"{' and '.join(whats)}: {folder} ({kind})"
        yield f"writing to {folder}"
        yield from _one_disk(named, folder, kind, whats, setup)


def _one_disk(named: str, folder: str, kind: str, whats: Sequence[str], setup: Setup) -> Iterator[Step]:
    free, statistics = shutil.disk_usage(folder).free, os.statvfs(folder)
    try:
        written, read = _speed(folder, min(_WRITTEN, free // 2))
    except OSError as error:
        why = "it is full" if free < MIB else error.strerror or type(error).__name__
        yield Finding(
            "disk",
            "wrong",
            f"{named}: cannot be written to: {why}",
            "free some space, fix its permissions, or set out=",
        )
        return
    except V2FError as error:
        yield Finding("disk", "wrong", f"{named}: {error}", "do not use this disk")
        return
    text = f"{named}: {free / GIB:.0f} GiB free, writes {written / 1e6:.0f} MB/s synced, reads {read / 1e6:.0f} MB/s"
    if free < _TOO_LOW:
        yield Finding("disk", "wrong", text, "make room: a run keeps two checkpoints and writes a third beside them")
    elif free < _LOW:
        yield Finding("disk", "look", text, "make room before a long run: `v2f checkpoint show` says what a run keeps")
    elif statistics.f_files and statistics.f_favail < 0.01 * statistics.f_files:
        yield Finding("disk", "look", f"{text}; no inodes left", "remove small files: the next one may not be written")
    elif "runs" in whats and kind in _MEMORY_DISKS:
        yield Finding(
            "disk", "look", f"{text}; it is memory", "checkpoints are lost with the machine: take out= on a disk"
        )
    elif "cache" in whats and kind in _MEMORY_DISKS:
        yield Finding(
            "disk", "look", f"{text}; it is memory", "a cache there counts toward the container's memory limit"
        )
    elif kind.startswith(_SHARED_DISKS) and (setup.tracking or "").startswith("sqlite:") and "runs" in whats:
        advice = "SQLite's locks do not work on a shared file system: set tracking.uri to a local disk or a server"
        yield Finding("disk", "look", f"{text}; MLflow's SQLite file is there", advice)
    elif kind.startswith(_SHARED_DISKS) and "cache" in whats:
        yield Finding("disk", "look", f"{text}; it is shared", "set data.cache.path to a disk of this machine")
    elif written < _SLOW:
        yield Finding(
            "disk", "look", text, f"slow: a checkpoint of 1 GB takes {1e9 / written:.0f} s (in the background)"
        )
    else:
        yield Finding("disk", "ok", text)


def _speed(folder: str, size: int) -> tuple[float, float]:
    """Bytes per second, written (including fsync) and read back, for at most three seconds of writing."""
    block = random.Random(0).randbytes(4 * MIB)  # not zeros, which some file systems do not store
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".v2f-doctor-") as file:
        begun, written, crc = time.perf_counter(), 0, 0
        while written < size or not written:
            some = block[: max(1, size - written)]
            file.write(some)
            written, crc = written + len(some), zlib.crc32(some, crc)
            if time.perf_counter() - begun > 3:
                break
        file.flush()
        os.fsync(file.fileno())
        down = time.perf_counter() - begun
        with contextlib.suppress(OSError):  # otherwise the page cache would be measured
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun, found = time.perf_counter(), 0
        file.seek(0)
        while some := file.read(4 * MIB):
            found = zlib.crc32(some, found)
        up = time.perf_counter() - begun
    if found != crc:
        raise V2FError("the bytes read are not the bytes written")
    return written / max(down, 1e-9), written / max(up, 1e-9)


def _file_system(folder: str, mounts: str) -> str:
    """The type of the file system of a folder."""
    real, best, kind = os.path.realpath(folder), "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path(mounts).read_text().splitlines():
            before, _, behind = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
                best, kind = point, behind.split()[0]
    return kind
