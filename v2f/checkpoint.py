"""Checkpoints: named tensors and a state, as safetensors parts that their last file commits (promise 4).

``ROOT/step-00000040/part-00000.safetensors ... checkpoint.json``. Whole tensors are dealt to the ranks by
bytes; any world size reads every other's. A folder without ``checkpoint.json`` is no checkpoint. Names:
``model/MODULE.PARAMETER``, ``ema/MODULE.PARAMETER``, ``optim/PHASE/MODULE.PARAMETER/SLOT``. Nothing here
knows what a system is, beyond the modules that it trains; loading runs no code.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from v2f import store
from v2f.errors import V2FError
from v2f.system import System, trained

FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")
_COMMIT = "checkpoint.json"


def deal(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Names dealt to ``parts`` lists of about equal bytes: the largest first, each to the emptiest.

    A pure function of the names and sizes, so that every rank finds its own share without talking.
    """
    shares: list[list[str]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        emptiest = filled.index(min(filled))
        shares[emptiest].append(name)
        filled[emptiest] += sizes[name]
    return shares


def save(
    root: str,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> str:
    """Write one checkpoint and commit it; then remove all but the newest ``keep``. Collective over the ranks.

    Every rank holds all ``tensors`` and writes its share of them; rank 0 commits once the store lists every
    part, and deletes nothing before. A kill at any moment leaves the previous checkpoint whole.
    """
    folder = store.join(root, f"step-{step:08d}")
    if rank == 0:
        _discard(folder)  # the remains of an attempt that was killed
    barrier()
    shares = deal({name: t.numel() * t.element_size() for name, t in tensors.items()}, world_size)
    mine = {name: tensors[name].detach().cpu().contiguous() for name in shares[rank]}
    payload = safetensors.torch.save(mine)
    store.write_bytes(store.join(folder, _part(rank)), payload)
    receipt = json.dumps({"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()})
    store.write_bytes(store.join(folder, _part(rank) + ".json"), receipt.encode())
    barrier()
    if rank == 0:
        _commit(root, folder, step, shares, state)
        _prune(root, keep)
    barrier()
    return folder


def _part(rank: int) -> str:
    return f"part-{rank:05d}.safetensors"


def _commit(root: str, folder: str, step: int, shares: list[list[str]], state: Mapping[str, Any]) -> None:
    listed = set(store.names(folder))
    parts = []
    for rank in range(len(shares)):
        name = _part(rank)
        if name not in listed or name + ".json" not in listed:
            raise V2FError(
                f"{folder}: rank {rank}'s part is not there; all ranks must write to one shared folder or s3://"
            )
        parts.append({"name": name, **json.loads(store.read_bytes(store.join(folder, name + ".json")))})
    record = {"format": FORMAT, "step": step, "parts": parts, "state": dict(state)}
    store.write_bytes(store.join(folder, _COMMIT), json.dumps(record, indent=1).encode())


def committed(root: str) -> list[str]:
    """The folders of all committed checkpoints, oldest first."""
    found = sorted((int(m[1]), name) for name in store.names(root) if (m := _STEP.fullmatch(name)))
    return [folder for _, name in found if store.exists(store.join(folder := store.join(root, name), _COMMIT))]


def latest(root: str) -> str | None:
    """The folder of the newest committed checkpoint, or None."""
    found = committed(root)
    return found[-1] if found else None


def _prune(root: str, keep: int) -> None:
    for folder in committed(root)[:-keep]:
        _discard(folder)


def _discard(folder: str) -> None:
    store.remove_folder(folder, first=_COMMIT)  # half a folder must not pass for a checkpoint


def read_state(folder: str) -> dict[str, Any]:
    """The record of a checkpoint: its step, parts and state."""
    record: dict[str, Any] = json.loads(store.read_bytes(store.join(folder, _COMMIT)))
    if record.get("format") != FORMAT:
        raise V2FError(f"{folder}: checkpoint format {record.get('format')!r}, this version of v2f reads {FORMAT}")
    return record


def load(folder: str, wanted: Callable[[str], bool] = lambda name: True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All ``wanted`` tensors of a committed checkpoint, on the CPU, and its state. Checksums are verified."""
    record = read_state(folder)
    tensors: dict[str, Tensor] = {}
    for part in record["parts"]:
        payload = store.read_bytes(store.join(folder, part["name"]))
        if hashlib.sha256(payload).hexdigest() != part["sha256"]:
            raise V2FError(
                f"{folder}/{part['name']}: damaged (its SHA-256 differs); remove the folder to use an older one"
            )
        tensors |= {name: t for name, t in safetensors.torch.load(payload).items() if wanted(name)}
    return tensors, record["state"]


def module_tensors(system: System, prefix: str = "model") -> dict[str, Tensor]:
    """Parameters and persistent buffers of what the system trains, by name; the frozen nets are not among them."""
    return {
        f"{prefix}/{name}.{key}": tensor
        for name, module in trained(system).items()
        for key, tensor in module.state_dict(keep_vars=True).items()
    }


def restore_weights(folder: str, system: System, *, ema: bool) -> None:
    """Load what the system trains, strictly: a tensor that is missing, extra or misshapen is an error.

    With ``ema``, the moving averages where the checkpoint keeps them, else the weights themselves.
    """
    tensors, _ = load(folder, lambda name: name.startswith(("model/", "ema/")))
    fill(module_tensors(system), {n: t for n, t in tensors.items() if n.startswith("model/")}, folder)
    if ema:
        averages = {"model/" + n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
        targets = module_tensors(system)
        fill({name: targets[name] for name in averages}, averages, folder)


def fill(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy ``source`` into ``targets`` in place; names and shapes must agree."""
    if targets.keys() != source.keys():
        name = sorted(targets.keys() ^ source.keys())[0]
        raise V2FError(f"{where}: the tensor {name!r} is {'missing' if name in targets else 'not part of this system'}")
    for name, tensor in targets.items():
        if tensor.shape != source[name].shape:
            raise V2FError(f"{where}: {name!r} has shape {list(source[name].shape)}, this system {list(tensor.shape)}")
        tensor.data.copy_(source[name])
