"""On which processor a benchmark ran."""

import os
import platform
from pathlib import Path


def cpus() -> str:
    """Number and name of the processors, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} x {next(names, platform.machine())}"
