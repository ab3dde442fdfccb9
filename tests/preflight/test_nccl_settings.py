"""launch/nccl: every name is one that the installed libraries read, every value has its why above it."""

import mmap
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "launch" / "nccl").glob("*.env"))
SETTING = re.compile(r"#?([A-Z][A-Z0-9_]+)=(\S+)")


def settings(path: Path) -> dict[str, str]:
    """What a file sets, and what it offers in a comment."""
    found = [SETTING.fullmatch(line) for line in path.read_text().splitlines()]
    return {match[1]: match[2] for match in found if match}


def libraries() -> list[Path]:
    torch, nccl = find_spec("torch"), find_spec("nvidia.nccl")
    if nccl is None or nccl.submodule_search_locations is None:
        pytest.skip("this torch was installed without CUDA")
    assert torch is not None
    assert torch.origin is not None
    folder = Path(torch.origin).parent / "lib"
    nccl_files = [file for at in nccl.submodule_search_locations for file in Path(at, "lib").glob("libnccl.so*")]
    return [*nccl_files, folder / "libtorch_cuda.so", folder / "libtorch_cpu.so"]


def test_there_is_a_file_for_each_network():
    assert [path.stem for path in FILES] == ["efa", "infiniband", "roce", "tcp"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shell_reads_it_and_each_setting_has_its_why(path):
    lines = path.read_text().splitlines()
    given = {name: value for name, value in settings(path).items() if f"{name}={value}" in lines}
    script = f"set -eu; set -a; . {path}; set +a; env"
    found = subprocess.run(["sh", "-c", script], env={}, check=True, capture_output=True, text=True).stdout.splitlines()
    assert given.items() <= dict(line.split("=", 1) for line in found).items()
    for paragraph in path.read_text().split("\n\n")[1:]:
        if SETTING.search(paragraph):
            assert not SETTING.fullmatch(paragraph.splitlines()[0]), f"{path.name}: {paragraph.splitlines()[0]}: why?"


def test_the_installed_libraries_know_every_name():
    names = {name for path in FILES for name in settings(path) if not name.startswith("FI_")}  # FI_: libfabric's
    assert len(names) > 8
    for library in libraries():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = {name for name in names if content.find(name.encode()) < 0}
    assert names == set()
