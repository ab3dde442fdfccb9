"""Checkpoints: what they are, choosing one and reading it.

    ROOT/step-00000040/part-00000-ATTEMPT.safetensors ... checkpoint.json -> named tensors and a state

A checkpoint is a folder of safetensors parts, which its last file, ``checkpoint.json``, commits (promise 4,
docs/architecture.md); a folder without it is not a checkpoint. Each part holds whole tensors, dealt to the ranks by
bytes. Any world size reads the checkpoint of any other: one rank reads each part and sends it to the others. Names:
``model/MODULE.PARAMETER``, ``ema/MODULE.PARAMETER``, ``optim/PHASE/MODULE.PARAMETER/SLOT``. This module knows no more
of a system than the modules that it trains. Loading runs no code. :mod:`v2f.runs.saver` writes checkpoints.
"""

import functools
import hashlib
import json
import logging
import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from v2f.errors import V2FError
from v2f.runs.peers import ALONE, Peers, alike
from v2f.storage import store
from v2f.storage.fencing import Fences
from v2f.storage.records import Record, problem_of
from v2f.storage.term import highest_term
from v2f.system import System, trained

log = logging.getLogger("v2f")

FORMAT = 1
COMMIT = "checkpoint.json"
Mode = Literal["min", "max"]
_STEP = re.compile(r"step-(\d{8,})")
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


def committed(root: str) -> list[str]:
    """The folders of all committed checkpoints, oldest first, without those of superseded starts."""
    return not_superseded(root, [folder for folder, files in files_by_folder(root).items() if COMMIT in files])


def not_superseded(root: str, folders: Sequence[str]) -> list[str]:
    """The ``folders`` of committed checkpoints that no superseded start of the run has committed."""
    fences = Fences.of(highest_term(root))
    if fences.trivial:
        return list(folders)
    with ThreadPoolExecutor(16) as pool:  # each record is a round trip where the run is remote
        return [
            folder
            for folder, counts in zip(folders, pool.map(functools.partial(_counts, fences), folders), strict=True)
            if counts
        ]


def _counts(fences: Fences, folder: str) -> bool:
    if fences.trivial:
        return True
    record = sound_record(folder)
    # A damaged one counts, so that its reader raises an error instead of passing it over.
    return record is None or fences.counts(step_of(folder), owner_of(record))


def sound_record(folder: str) -> dict[str, Any] | None:
    """The record of a checkpoint; None if it is damaged. Records of earlier versions have no checksum."""
    try:
        record = json.loads(store.read_tagged(store.join(folder, COMMIT))[0] or b"")
    except (ValueError, RecursionError):
        return None
    if problem_of(_Commit, record) is not None:
        return None
    return record if record.get("sha256") in (None, checksum_of(record)) else None


def owner_of(record: Mapping[str, Any]) -> tuple[int, str] | None:
    """The start that committed a checkpoint: its lease's number and token; None if the record does not say."""
    lease = record.get("lease")
    return (lease[0], lease[1]) if lease else None


def files_by_folder(root: str) -> dict[str, set[str]]:
    """All folders of checkpoints, committed or not, oldest first, and their files; takes a single listing."""
    files: dict[str, set[str]] = {}
    for path in store.tree(root):
        folder, _, name = path.partition("/")
        files.setdefault(folder, set()).add(name)
    if store.local_path(root) is not None:  # only a disk has empty folders
        files |= {name: set() for name in store.names(root) if name not in files}
    steps = sorted((int(m[1]), name) for name in files if (m := _STEP.fullmatch(name)))
    return {store.join(root, name): files[name] for _, name in steps}


def latest(root: str) -> str | None:
    """The folder of the newest committed checkpoint, without those of superseded starts; None if there is none."""
    steps = sorted((int(m[1]), name) for name in store.names(root) if (m := _STEP.fullmatch(name)))
    fences = Fences.of(highest_term(root))
    for _, name in reversed(steps):
        folder = store.join(root, name)
        if store.exists(store.join(folder, COMMIT)):
            if _counts(fences, folder):
                return folder
            log.warning("%s: ignored: a start committed it after another start had taken over the run", folder)
    return None


def best(root: str, metric: str, mode: Mode) -> str | None:
    """The folder of the checkpoint with the best ``metric`` measured at its own step; the oldest of equals."""
    return best_of({folder: measured(folder, metric) for folder in committed(root)}, mode)


def best_of(values: Mapping[str, float | None], mode: Mode) -> str | None:
    known = {folder: value for folder, value in values.items() if value is not None and math.isfinite(value)}
    # The oldest of equals: in old records without measured_at, later checkpoints may only repeat its number.
    return (min if mode == "min" else max)(known, key=lambda folder: known[folder], default=None)


def measured(folder: str, name: str) -> float | None:
    """The metric ``name`` if it was measured at this checkpoint's own step; None if an earlier step left it there."""
    record = read_state(folder)
    state = record["state"]
    value = state.get("metrics", {}).get(name)
    own = state.get("measured_at", record["step"]) == record["step"]
    return float(value) if own and value is not None else None


def step_of(folder: str) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.rstrip("/").rsplit("-", 1)[1])


def step_named(folder: str) -> int | None:
    """As :func:`step_of`, for any folder; None if a checkpoint was copied to a folder of another name."""
    match = _STEP.fullmatch(_whole(folder).rpartition("/")[2])
    return int(match[1]) if match else None


def _whole(folder: str) -> str:
    """The path, made absolute on a disk, so that it ends in the folder's name even for ``.``."""
    local = store.local_path(folder)
    return folder.rstrip("/") if local is None else os.path.abspath(local)


class _Part(Record):
    name: str = Field(pattern=r"^[^/]+$")
    bytes: int = Field(ge=0)
    sha256: str
    tensors: int = 0


class _Data(Record):
    batch: int | None = Field(None, gt=0)
    path: str | None = None
    split: str = ""


class _Config(Record):
    data: _Data = _Data()


class _Clock(Record):
    first_start: float
    starts: int
    step_seconds: float
    saved: float


class _State(Record):
    """What a run resumes from. A program that saves less than a training run leaves out the rest."""

    step: int | None = None
    slot: int | None = None
    fingerprint: str = ""
    order: str = ""
    quarantine: list[int] = []
    quarantines: dict[str, list[int]] = {}
    weights: dict[str, str | None] = {}
    config: _Config = _Config()
    run_id: str | None = None
    versions: dict[str, str] = {}
    precision: str = ""
    metrics: dict[str, float | None] = {}
    measured_at: int | None = None
    clock: _Clock | None = None
    norms: dict[str, list[float]] = {}
    init_from: list[dict[str, Any]] = []


class _Commit(Record):
    lease: list[int | str] | None = Field(None, min_length=2, max_length=2)
    step: int = Field(ge=0)
    saved: str = ""
    parts: list[_Part] = Field(min_length=1)
    state: _State


_BEFORE_CHECKSUMS = {"format", "step", "saved", "parts", "state"}  # the keys of a record that may lack a checksum


def read_state(folder: str) -> dict[str, Any]:
    """The record of a checkpoint: its step, parts and state. Every reader calls this.

    V2FError, with a way out, if the record is not what was written: its checksum does not match, its step, slot and
    batch contradict each other, or its folder is named after another step.
    """
    content = store.read_bytes(store.join(folder, COMMIT))
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise _damaged(folder, COMMIT, "it is not a JSON record")
    if "sha256" in record:
        if record["sha256"] != checksum_of(record):
            raise _damaged(folder, COMMIT, "its checksum does not match")
    elif record.keys() - _BEFORE_CHECKSUMS:
        raise _damaged(folder, COMMIT, "its checksum is missing")
    if record.get("format") != FORMAT:
        known = record.get("format")
        raise V2FError(f"{folder}: checkpoint format {known!r}, this version of v2f reads {FORMAT}")
    problem = problem_of(_Commit, record)
    if problem is not None:
        raise _damaged(folder, COMMIT, problem)
    known = _Commit.model_validate(record)
    step, slot, batch = known.step, known.state.slot, known.state.config.data.batch
    if known.state.step not in (None, step):
        raise _damaged(folder, COMMIT, f"it says both step {step} and step {known.state.step}")
    if slot is not None and batch is not None and slot != step * batch:
        raise _damaged(folder, COMMIT, f"step {step} of batches of {batch} is not slot {slot}")
    if step_named(folder) not in (None, step):
        raise V2FError(f"{folder}: its record belongs to step {step}; name the folder step-{step:08d}, or remove it")
    return record


def needed(state: Mapping[str, Any], key: str, folder: str) -> Any:
    """The value of ``key`` in the state of the checkpoint in ``folder``; V2FError if it is missing."""
    if key not in state:
        raise _damaged(folder, COMMIT, f"its state has no {key!r}")
    return state[key]


def checksum_of(record: Mapping[str, Any]) -> str:
    """The SHA-256 of a record without its checksum; independent of white space and the order of keys in the file."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(
    folder: str, wanted: Callable[[str], bool] = lambda name: True, peers: Peers = ALONE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All ``wanted`` tensors of a committed checkpoint, on the CPU, and its state. Checksums are verified.

    Collective over ``peers``: one of them reads each part from the store and sends it to the others; an error on one
    is raised on all. Besides the tensors this needs memory for about one part.
    """
    rank, world_size = peers.rank, peers.world_size
    record = alike(peers, lambda: read_state(folder) if rank == 0 else {})[0]
    tensors: dict[str, Tensor] = {}
    for first in range(0, len(record["parts"]), world_size):
        some = record["parts"][first : first + world_size]
        mine: dict[str, Tensor] = {}

        def read(own: Sequence[Mapping[str, Any]], found: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
            for part in own:
                found |= {name: t for name, t in read_tensors(folder, part).items() if wanted(name)}
            return {name: (tuple(t.shape), t.dtype) for name, t in found.items()}

        everyones = alike(peers, functools.partial(read, some[rank : rank + 1], mine))
        for source, kinds in enumerate(everyones[: len(some)]):
            whole = mine if source == rank else {n: torch.empty(shape, dtype=d) for n, (shape, d) in kinds.items()}
            peers.broadcast([whole[name] for name in kinds], source)
            tensors |= whole
    return tensors, record["state"]


def read_tensors(folder: str, part: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a part that a record names, on the CPU; errors as for :func:`read_part`."""
    return _decoded(folder, part, read_part(folder, part))


def _decoded(folder: str, part: Mapping[str, Any], payload: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(payload)
    except safetensors.SafetensorError:
        raise _damaged(folder, part["name"], "it is not a safetensors file") from None


def read_part(folder: str, part: Mapping[str, Any]) -> bytes:
    """The content of a part that a record names; V2FError, with a way out, if it is not what was written."""
    path = store.join(folder, part["name"])
    try:
        payload = store.read_bytes(path)
    except store.UnreachableError:
        raise
    except V2FError:
        if store.exists(path):
            raise
        raise _damaged(folder, part["name"], "it is missing") from None
    if len(payload) != part["bytes"]:
        raise _damaged(folder, part["name"], f"it has {len(payload)} bytes instead of {part['bytes']}")
    if hashlib.sha256(payload).hexdigest() != part["sha256"]:
        raise _damaged(folder, part["name"], "its SHA-256 does not match")
    return payload


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says about a tensor."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_header(path: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the notes that a safetensors file declares in its header; the tensors are not read."""
    length = int.from_bytes(store.read_range(path, 0, 8), "little")
    try:
        if length > _LARGEST_HEADER:
            raise ValueError(length)
        header = json.loads(store.read_range(path, 8, length))
        notes = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
        tensors = {
            name: TensorInfo(
                str(about["dtype"]),
                tuple(map(operator.index, about["shape"])),
                operator.index(about["data_offsets"][1]) - operator.index(about["data_offsets"][0]),
            )
            for name, about in header.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise V2FError(f"{path}: not a safetensors file; it was cut or damaged, copy it again") from None
    return tensors, notes


def shapes_of(folder: str) -> dict[str, Sequence[int]]:
    """The shapes of the weights in a committed checkpoint, by ``MODULE.tensor``, from the headers of its parts."""
    headers = [read_header(store.join(folder, part["name"]))[0] for part in read_state(folder)["parts"]]
    return _of_model({name: tensor.shape for header in headers for name, tensor in header.items()})


def _of_model(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {n.removeprefix("model/"): shape for n, shape in shapes.items() if n.startswith("model/")}


def _damaged(folder: str, name: str, why: str) -> V2FError:
    own = step_named(folder)
    if own is None:
        return V2FError(f"{folder}/{name}: damaged ({why}); copy it again")
    root = _whole(folder).rpartition("/")[0]
    older = [each.rsplit("/", 1)[1] for each in committed(root) if step_of(each) < own]
    way = f"remove it to resume from {older[-1]}" if older else "there is no older checkpoint"
    more = f" (older still: {', '.join(reversed(older[:-1]))})" if len(older) > 1 else ""
    return V2FError(f"{folder}/{name}: damaged ({why}); {way}{more}")


def module_tensors(system: System, prefix: str = "model") -> dict[str, Tensor]:
    """Parameters and persistent buffers of the modules that the system trains, by name; without the frozen nets."""
    return {
        f"{prefix}/{name}.{key}": tensor
        for name, module in trained(system).items()
        for key, tensor in module.state_dict(keep_vars=True).items()
    }


def restore_weights(folder: str, system: System, *, ema: bool) -> None:
    """Load the modules that the system trains; a missing or extra tensor or another shape is a MisfitError.

    With ``ema``, the moving averages where the checkpoint has them, else the weights themselves.
    """
    tensors, _ = load(folder, lambda name: name.startswith(("model/", "ema/")))
    fill(module_tensors(system), {n: t for n, t in tensors.items() if n.startswith("model/")}, folder)
    if ema:
        averages = {"model/" + n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
        targets = module_tensors(system)
        fill({name: targets[name] for name in averages}, averages, folder)


def restore_export(path: str, system: System) -> None:
    """Load the modules that the system trains from a file of ``v2f checkpoint export``; as :func:`restore_weights`."""
    try:
        tensors = safetensors.torch.load(store.read_bytes(path))
    except safetensors.SafetensorError:
        raise V2FError(f"{path}: not a safetensors file; it was cut or damaged, copy it again") from None
    fill(module_tensors(system), {f"model/{name}": tensor for name, tensor in tensors.items()}, path)


class MisfitError(V2FError):
    """Weights that do not fit the system; ``shapes``: their shapes, by ``MODULE.tensor``."""

    def __init__(self, message: str, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__(message)
        self.shapes = shapes or {}


def fill(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy ``source`` into ``targets`` in place; MisfitError unless all names and shapes agree."""
    shapes = _of_model({name: tensor.shape for name, tensor in source.items()})
    if targets.keys() != source.keys():
        name = sorted(targets.keys() ^ source.keys())[0]
        lack = "missing" if name in targets else "not part of this system"
        raise MisfitError(f"{where}: the tensor {name!r} is {lack}", shapes)
    for name, tensor in targets.items():
        if tensor.shape != source[name].shape:
            line = f"{where}: {name!r} has shape {list(source[name].shape)}, this system {list(tensor.shape)}"
            raise MisfitError(line, shapes)
        tensor.data.copy_(source[name])
