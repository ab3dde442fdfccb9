"""Compute: torch and its companion packages, the GPUs, and all-reduces between processes."""

import ctypes
import importlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from v2f.doctor.findings import GIB, MIB, Finding, Setup, Step, dotted, shown_reason, some
from v2f.doctor.processes import last_line, start


def torch_and_gpus(setup: Setup) -> Iterator[Step]:
    """Whether torch, torchvision and torchaudio load together (a CPU build among CUDA builds does not); the GPUs."""
    versions = []
    for name in ("torch", "torchvision", "torchaudio"):
        yield f"importing {name}"
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:
            yield Finding(
                "torch",
                "wrong",
                f"{name} cannot be loaded: {type(error).__name__}: {shown_reason(error)}",
                "install matching versions of torch, torchvision and torchaudio from one index; see CONTRIBUTING.md",
            )
            return
    import torch

    builds = {version.partition("+")[2] for version in versions}
    if len(builds) > 1:
        advice = "install all three from one index: operators of one build may not accept tensors of another"
        yield Finding("torch", "look", f"{', '.join(versions)}: builds of different kinds", advice)
    else:
        yield Finding("torch", "ok", f"{', '.join(versions)}, CUDA {torch.version.cuda or 'none'}")
    yield "querying the GPU driver"
    yield from gpus(torch)


def gpus(torch: Any, cards: Sequence[str] | None = None, driver: tuple[int, int] | None = None) -> Iterator[Step]:
    """What torch can do with the GPUs. ``cards``: NVIDIA GPUs that the kernel lists; ``driver``: newest CUDA version
    that the driver supports; both are looked up if None."""
    if cards is None:
        folder = Path("/proc/driver/nvidia/gpus")
        cards = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    driver = driver or _driver()
    built = torch.version.cuda
    if not torch.cuda.is_available():
        if not cards and driver is None:
            yield Finding("gpu", "ok", "none: small recipes run on the CPU, thesis-*.yaml need one")
            return
        seen = f"{len(cards)} NVIDIA GPUs" if cards else "an NVIDIA driver"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if built is None:
            advice = "install the default torch package, which includes CUDA"
        elif driver is not None and driver[0] < int(built.split(".")[0]):
            advice = (
                f"update the driver to one that supports CUDA {built.split('.')[0]}; this one supports {dotted(driver)}"
            )
        elif hidden is not None:
            advice = f"CUDA_VISIBLE_DEVICES is {hidden!r}: unset it, or name devices that exist"
        else:
            advice = "run nvidia-smi; in a container, check that its runtime passes in GPUs and driver libraries"
        yield Finding("gpu", "wrong", f"{seen}, but torch (CUDA {built or 'none'}) can use no GPU", advice)
        return
    count = torch.cuda.device_count()
    for number in range(count):
        yield f"computing on GPU {number}"
        yield _gpu(torch, number)
    supported = f"the driver supports CUDA {dotted(driver)}, " if driver else ""
    yield Finding("gpu", "ok", f"{supported}torch is built for CUDA {built}")
    if count > 1:
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        apart = [f"{a}-{b}" for a, b in pairs if a < b and not torch.cuda.can_device_access_peer(a, b)]
        if apart:
            advice = "gradients go through CPU memory: check `nvidia-smi topo -m`, the IOMMU and the container's limits"
            yield Finding("gpu", "look", f"no direct access between the GPUs {some(apart)}", advice)
        else:
            yield Finding("gpu", "ok", f"direct access between all {count} GPUs")


def _gpu(torch: Any, number: int) -> Finding:
    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    major, minor = about.major, about.minor
    memory = f"{total / GIB:.0f} GiB, {free / GIB:.0f} free"
    found = f"cuda:{number} {about.name}, {memory}, compute capability {major}.{minor}"
    arches = torch.cuda.get_arch_list()
    here = 10 * major + minor
    kinds = [(kind, int(number.rstrip("af"))) for kind, _, number in (name.partition("_") for name in arches)]
    # Machine code runs on the same major version from its minor version on; PTX ("compute") on everything later.
    if not any(number <= here and (kind == "compute" or number // 10 == major) for kind, number in kinds):
        return Finding(
            "gpu", "wrong", f"{found}; this torch has {' '.join(arches)}", "install a torch that is built for it"
        )
    try:
        right = float((torch.arange(1024, device=f"cuda:{number}") * 2).sum()) == 1023 * 1024
    except Exception as error:
        return Finding(
            "gpu", "wrong", f"{found}: cannot compute: {shown_reason(error)}", "run nvidia-smi -q; reset or replace it"
        )
    if not right:
        return Finding(
            "gpu", "wrong", f"{found}: computes wrong", "take it out of service; launch/preflight examines it further"
        )
    if free < 0.8 * total:
        return Finding(
            "gpu", "look", f"{found}: other processes use its memory", "nvidia-smi lists the processes that use it"
        )
    if major < 8:
        return Finding("gpu", "look", f"{found}: it has no bfloat16", "train with train.precision=fp32")
    return Finding("gpu", "ok", found)


def _driver() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, according to its library; None if there is no driver."""
    try:
        number = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) or not number.value:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def all_reduce(setup: Setup) -> Iterator[Step]:
    """All-reduces: between two processes with gloo on the CPU, and between one process per GPU with NCCL."""
    yield "an all-reduce of two processes by gloo"
    ranks = _ranks("gloo", 2)
    gpus, nccl = int(ranks[0].get("gpus", 0)), ranks[0].get("nccl")
    yield _reduced("gloo", ranks, "gloo", "check /etc/hosts; GLOO_SOCKET_IFNAME sets the interface")
    if not gpus:
        built = f"; torch has NCCL {nccl}" if nccl else ""
        yield Finding("nccl", "ok", f"not used without a GPU{built}")
        return
    yield f"an all-reduce of {gpus} GPUs by NCCL {nccl}"
    names = sorted(name for name in os.environ if name.startswith("NCCL_"))
    named = f"NCCL {nccl}" + (f" with {', '.join(names)}" if names else "")
    advice = "run it again with NCCL_DEBUG=WARN; check /dev/shm above and launch/nccl/*.env"
    yield _reduced("nccl", _ranks("nccl", gpus), named, advice)


def _ranks(backend: str, count: int) -> list[dict[str, Any]]:
    """The result of each of ``count`` processes: {"seconds", "gpus", "nccl"}, or {"error"}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        start(backend, _rank, {"backend": backend, "rank": rank, "count": count, "port": port}) for rank in range(count)
    ]
    found = []
    for process in running:
        output, errors = process.communicate()
        why = f"a process crashed ({process.returncode}): {last_line(errors)}"
        found.append(json.loads(output) if output else {"error": why})
    return found


def _rank(backend: str, rank: int, count: int, port: int) -> Iterator[dict[str, Any]]:
    """One process of an all-reduce."""
    about: dict[str, Any] = {}
    try:
        import torch
        import torch.distributed as dist

        about["gpus"] = torch.cuda.device_count()
        if dist.is_nccl_available():
            about["nccl"] = dotted(torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
        numbers = torch.full((MIB,), rank + 1.0, device=device)
        dist.all_reduce(torch.ones(1, device=device))  # sets up the connections
        begun = time.perf_counter()
        dist.all_reduce(numbers)
        right = bool((numbers == count * (count + 1) / 2).all())
        about |= {"seconds": time.perf_counter() - begun} if right else {"error": "the sum is wrong"}
        dist.destroy_process_group()
    except Exception as error:
        about["error"] = f"{type(error).__name__}: {shown_reason(error)}"
    yield about


def _reduced(check: str, ranks: Sequence[Mapping[str, Any]], by: str, advice: str) -> Finding:
    errors = [each["error"] for each in ranks if "error" in each]
    if errors:
        return Finding(check, "wrong", f"an all-reduce of {len(ranks)} processes by {by} failed: {errors[0]}", advice)
    seconds = max(each["seconds"] for each in ranks)
    return Finding(check, "ok", f"an all-reduce of {len(ranks)} processes by {by}, 4 MiB in {1000 * seconds:.0f} ms")
