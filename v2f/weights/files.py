"""Weight files that users provide: found by name, identified by SHA-256, read without running anything.

    a file, a folder or an s3:// mirror -> find -> read -> (content, checksum)

Nothing is downloaded. A checksum in the configuration, or in a ``SHA256SUMS`` beside the file, must match.
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
from v2f.weights import dlib_file

SUMS = "SHA256SUMS"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".dat", ".pkl")
_BLOCK = 1 << 24
_GLOBAL = re.compile(r"GLOBAL (\S+)|(?:class|function|global)s? (\S+\.\S+)")


def find(path: str, names: Sequence[str], way_out: str) -> str:
    """``path`` if it is a file, else the first of ``names`` in the folder or prefix ``path``.

    V2FError if there is none; ``way_out``, which says where to get the file, ends its message.
    """
    if path.lower().endswith(SUFFIXES):
        if not store.exists(path):
            raise V2FError(f"{path}: no such weights file; {way_out}")
        return path
    found = first_of(path, names)
    if found is not None:
        return store.join(path, found)
    there = set(store.names(path))
    what = f"contains none of {', '.join(names)}"
    if there <= {path.rstrip("/").rpartition("/")[2]}:  # empty, or a file that lists itself
        kinds = f"neither a folder of weights nor a file that ends in {', '.join(SUFFIXES[:-1])}"
        what = kinds if store.exists(path) else "no such folder"
    raise V2FError(f"{path}: {what}; {way_out}")


def first_of(path: str, names: Sequence[str]) -> str | None:
    """The first of ``names`` that is in the folder or prefix ``path``; a name may begin with a folder in it."""
    there = set(store.names(path))
    for name in names:
        folder, _, file = name.rpartition("/")
        if name in there or (folder in there and file in store.names(store.join(path, folder))):
            return name
    return None


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
    """File name -> SHA-256, from the ``SHA256SUMS`` (coreutils' format) in a folder or prefix; empty if it has none."""
    where = store.join(path, SUMS)
    if SUMS not in store.names(path):
        return {}
    sums = {}
    for number, line in enumerate(store.read_bytes(where).decode(errors="replace").splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise V2FError(
                f"{where}: line {number} is not in the format of sha256sum; write the file again: sha256sum * > {SUMS}"
            )
        sums[match[2]] = match[1]
    return sums


def check(path: str, digest: str, configured: str | None) -> None:
    """V2FError unless ``digest``, the SHA-256 of ``path``, equals the ``configured`` one and that in the ``SHA256SUMS``
    beside the file, where there are such."""
    folder, _, name = path.rpartition("/")
    for source, expected in (("the configuration", configured), (SUMS, sums_beside(folder or ".").get(name))):
        if expected is not None and expected != digest:
            raise V2FError(
                f"{path}: its SHA-256 is {digest[:16]}..., but {source} says {expected[:16]}...; the file is damaged "
                "or a different one: copy it again, or correct the checksum"
            )


def read(path: str, sha256: str | None = None) -> tuple[Any, str]:
    """The content of a file of weights (:data:`SUFFIXES`), on the CPU, and its SHA-256. Loading runs no code.

    A local file is read twice, for the checksum and for the tensors: it must not change in between. ``sha256``: the
    configured checksum.

    One-line V2FError for a checksum that differs, a damaged file, or one that contains anything but tensors, containers
    and plain values (and the option namespaces that training scripts store beside their weights).
    """
    if path.lower().endswith(".pkl"):
        raise V2FError(
            f"{path}: a pickle of whole networks cannot be loaded; convert it first: v2f weights convert {path} ..."
        )
    dlibs = path.lower().endswith(".dat")
    if dlibs and store.size(path) > dlib_file.MOST:
        raise V2FError(f"{path}: too large to be {dlib_file.NAME}; name that file or copy it again")
    local = store.local_path(path)
    data = b"" if local else store.read_bytes(path)  # fetched once: for the checksum and for the tensors
    digest = sha256_of(path) if local else hashlib.sha256(data).hexdigest()
    check(path, digest, sha256)
    if dlibs:
        return dlib_file.parse(data or store.read_bytes(path), path), digest
    if path.lower().endswith(".safetensors"):
        try:
            return safetensors.torch.load_file(local) if local else safetensors.torch.load(data), digest
        except (SafetensorError, OSError) as error:
            raise V2FError(f"{path}: truncated, or not a safetensors file; copy it again") from error
    mapped = bool(local) and zipfile.is_zipfile(str(local))  # loads only the tensors that are used
    source: Any = local or io.BytesIO(data)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped), digest
    except pickle.UnpicklingError as error:
        raise V2FError(f"{path}: {_refusal(error)}") from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise V2FError(f"{path}: truncated, or not written by torch.save; copy it again") from error


def _refusal(error: pickle.UnpicklingError) -> str:
    found = _GLOBAL.search(str(error))
    name = next((part for part in found.groups() if part), "") if found else ""
    what = f"contains {name.strip('.`')}, which is not a tensor" if name else "damaged, or not a file of tensors"
    return (
        f"refused, and no code in it was run: {what}; save the weights as a state_dict of tensors, on a machine that "
        "trusts the file"
    )


def part(content: Any, key: str, path: str) -> Any:
    """``content[key]``; V2FError, which lists what the file contains, if it has no such key."""
    if not isinstance(content, Mapping) or key not in content:
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise V2FError(f"{path}: has no {key!r}; it contains {found or 'nothing'}")
    return content[key]


def tensors(content: Any, path: str) -> dict[str, Tensor]:
    """``content`` if it is a state_dict; V2FError otherwise."""
    if not isinstance(content, Mapping) or not content:
        raise V2FError(f"{path}: expected a state_dict of tensors, found {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise V2FError(f"{path}: expected a state_dict of tensors, but its {name!r} is {type(value).__name__}")
    return dict(content)
