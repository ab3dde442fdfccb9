"""Files of weights that users bring: found by name, told apart by SHA-256, read without running anything.

    a file, a folder or an s3:// mirror -> find -> read -> (content, checksum)

Nothing here downloads. A checksum that the user names, or that a ``SHA256SUMS`` beside the file names, must hold.
"""

import argparse
import hashlib
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from v2f.errors import V2FError
from v2f.storage import store
from v2f.storage.local import opened

SUMS = "SHA256SUMS"
SUFFIXES = (".pt", ".pth", ".safetensors", ".pkl")
_BLOCK = 1 << 24
_GLOBAL = re.compile(r"GLOBAL (\S+)|(?:class|function|global)s? (\S+\.\S+)")


def find(path: str, names: Sequence[str], way_out: str) -> str:
    """The file that ``path`` is, or the first of ``names`` that the folder or prefix ``path`` holds.

    ``way_out`` ends the V2FError where there is none: it says where to get the file.
    """
    if path.lower().endswith(SUFFIXES):
        if not store.exists(path):
            raise V2FError(f"{path}: there is no such file of weights; {way_out}")
        return path
    there = set(store.names(path))
    for name in names:
        if name in there:
            return store.join(path, name)
    what = f"it holds none of {', '.join(names)}"
    if there <= {path.rstrip("/").rpartition("/")[2]}:  # empty, or a file that lists itself
        kinds = f"no folder of weights, nor a file that ends in {', '.join(SUFFIXES[:3])}"
        what = kinds if store.exists(path) else "there is no such folder"
    raise V2FError(f"{path}: {what}; {way_out}")


def sha256_of(path: str) -> str:
    """The SHA-256 of a file or object as 64 hex digits."""
    local = store.local_path(path)
    if local is None:
        return hashlib.sha256(store.read_bytes(path)).hexdigest()
    digest = hashlib.sha256()
    with store.explained(path, "read"), opened(local) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sums_beside(path: str) -> dict[str, str]:
    """File name -> SHA-256, of the ``SHA256SUMS`` (coreutils' format) in a folder or prefix, if it has one."""
    where = store.join(path, SUMS)
    if SUMS not in store.names(path):
        return {}
    sums = {}
    for number, line in enumerate(store.read_bytes(where).decode(errors="replace").splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise V2FError(
                f"{where}: line {number} is no line of sha256sum; write the file again: sha256sum * > {SUMS}"
            )
        sums[match[2]] = match[1]
    return sums


def check(path: str, digest: str, wanted: str | None) -> None:
    """V2FError unless ``digest``, that of ``path``, agrees with ``wanted`` and with the ``SHA256SUMS`` beside it."""
    folder, _, name = path.rpartition("/")
    for source, expected in (("the configuration", wanted), (SUMS, sums_beside(folder or ".").get(name))):
        if expected is not None and expected != digest:
            raise V2FError(
                f"{path}: its SHA-256 is {digest[:16]}..., {source} says {expected[:16]}...: it is damaged or another "
                "file; copy it anew, or write the new checksum there"
            )


def read(path: str, wanted: str | None = None) -> tuple[Any, str]:
    """What a ``.pt``, ``.pth`` or ``.safetensors`` file holds, on the CPU, and its SHA-256. Loading runs nothing.

    A local file is read for the checksum and then for the tensors: nobody may write to it meanwhile.

    V2FError in one line for a checksum that differs, a file that is damaged, or one that holds anything but tensors,
    containers and plain values (and the namespaces of options that training scripts keep beside their weights).
    """
    if path.lower().endswith(".pkl"):
        raise V2FError(
            f"{path}: a pickle of whole networks is not loaded; make tensors of it: v2f weights convert {path} ..."
        )
    local = store.local_path(path)
    data = b"" if local else store.read_bytes(path)  # fetched once: for the checksum and for the tensors
    digest = sha256_of(path) if local else hashlib.sha256(data).hexdigest()
    check(path, digest, wanted)
    if path.lower().endswith(".safetensors"):
        try:
            return safetensors.torch.load_file(local) if local else safetensors.torch.load(data), digest
        except (SafetensorError, OSError) as error:
            raise V2FError(f"{path}: it is cut, or no safetensors file; copy it anew") from error
    mapped = bool(local) and zipfile.is_zipfile(str(local))  # then only the tensors that are used come into memory
    source: Any = local or io.BytesIO(data)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles that it then refuses
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped), digest
    except pickle.UnpicklingError as error:
        raise V2FError(f"{path}: {_refusal(error)}") from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise V2FError(f"{path}: it is cut, or no file that torch.save wrote; copy it anew") from error


def _refusal(error: pickle.UnpicklingError) -> str:
    found = _GLOBAL.search(str(error))
    name = next((part for part in found.groups() if part), "") if found else ""
    what = f"it holds {name.strip('.`')}, which is no tensor" if name else "it is no file of tensors, or damaged"
    return (
        f"refused, nothing of it was run: {what}; weights are a state_dict of tensors, "
        "save them again so where the file is trusted"
    )


def part(content: Any, key: str, path: str) -> Any:
    """``content[key]``, or one line that says what a file holds instead."""
    if not isinstance(content, Mapping) or key not in content:
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise V2FError(f"{path}: has no {key!r}; it holds {held or 'nothing'}")
    return content[key]


def tensors(content: Any, path: str) -> dict[str, Tensor]:
    """``content`` as a state_dict; V2FError if it is anything else."""
    if not isinstance(content, Mapping) or not content:
        raise V2FError(f"{path}: a state_dict of tensors is wanted, it holds {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise V2FError(f"{path}: a state_dict of tensors is wanted, its {name!r} is {type(value).__name__}")
    return dict(content)
