"""On which processor a benchmark ran."""

import os
import platform
import re
from pathlib import Path

BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}  # the system's flag: the unit, the fastest first


def cpus() -> str:
    """Number and name of the processors, where the system tells it."""
    names = (line.partition(":")[2].strip() for line in _told("model name"))
    return f"{os.cpu_count()} x {next(names, platform.machine())}"


def bf16_unit() -> str:
    """The processor's unit for products of bfloat16; "none" where the system tells of no such unit."""
    flags = set(" ".join(_told("flags")[:1]).split())
    return next((unit for flag, unit in BF16_UNITS.items() if flag in flags), "none")


def slug(name: str) -> str:
    """A device's name as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _told(field: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [line for line in lines if line.startswith(field)]
