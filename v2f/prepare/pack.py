"""``v2f shards pack``: a recipe in, a data set out.

What a converter plans is mixed (by a hash of the key, so that adjacent samples are of different people), made in
parallel, written shard by shard, and committed by its manifest. The same recipe gives the same bytes, whatever the
number of processes. A pack that was killed is started again by the same command.
"""

import json
import multiprocessing
import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from v2f import store
from v2f.config import Config, build, override, read_yaml
from v2f.data.manifest import INDEX, MANIFEST, PACKING, Dataset, ShardRows, open_dataset, write_manifest, write_shard
from v2f.data.sample import SPLITS
from v2f.errors import V2FError
from v2f.prepare import Converter, Item, LeftOut, Made, share
from v2f.prepare.pairs import Pairs, PairsConfig
from v2f.prepare.synthetic import Synthetic, SyntheticConfig

LEFT_OUT = "left_out.jsonl"
_CHUNK = 32  # items that a process makes at once
_OURS = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5}}\.tar|{re.escape(INDEX)}|{re.escape(LEFT_OUT)}|\.writing-.*")
_MOST_WITH_PSP = (
    4  # processes, where the recipe sets no number: each holds pSp, 1.2 GB of weights, and one GPU serves all
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class PackConfig(Config):
    """A recipe. ``source`` names the group that says what is packed."""

    out: str = Field(description="where the data set goes: a folder or an s3:// prefix")
    source: Literal["synthetic", "pairs"]
    synthetic: SyntheticConfig | None = None
    pairs: PairsConfig | None = None
    shard_mb: float = Field(32.0, gt=0.0, description="size of a shard in 10^6 bytes, about")
    workers: int | None = Field(
        None, ge=1, description="processes; null: one for each core, with pSp at most 4; 1: this one"
    )

    @model_validator(mode="after")
    def _one_group(self) -> "PackConfig":
        for name in ("synthetic", "pairs"):
            if (getattr(self, name) is not None) != (name == self.source):
                verb = "is missing" if name == self.source else "does not belong here"
                raise ValueError(f"source is {self.source!r}, the group {name!r} {verb}")
        return self


def load_recipe(path: str, overrides: Sequence[str] = ()) -> PackConfig:
    """The recipe in a YAML file, with ``dotted.key=value`` overrides applied."""
    return build(PackConfig, override(read_yaml(path), overrides), path)


def pack(recipe: PackConfig) -> Dataset:
    """Pack what ``recipe`` says, print what was kept and left out, and open the result.

    A data set of the same recipe that is there already is left as it is; anything else in the way is refused.
    """
    converter: Converter
    if recipe.source == "synthetic":
        assert recipe.synthetic is not None
        converter = Synthetic(recipe.synthetic)
    else:
        assert recipe.pairs is not None
        converter = Pairs(recipe.pairs)
    plan = converter.plan()
    provenance = {"recipe": _what(recipe), **plan.provenance}
    if _is_there(recipe.out, provenance):
        dataset = open_dataset(recipe.out)
        print(f"{recipe.out}: packed already from this recipe, nothing to do; fingerprint {dataset.fingerprint}")
        return dataset
    _make_room(recipe.out, provenance)

    left_out = list(plan.left_out)
    kept: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    people: dict[str, set[str]] = {split: set() for split in SPLITS}
    shards: list[ShardRows] = []
    bar = tqdm(total=len(plan.items), unit="sample", desc=f"packing {recipe.out}", disable=None, smoothing=0.05)
    with bar, _maker(converter, _workers(recipe, len(plan.items))) as make:
        for split in SPLITS:
            items = sorted((item for item in plan.items if item.split == split), key=lambda item: share(item.key))
            if split == "seen":
                orphans = [item for item in items if item.identity not in people["train"]]
                left_out += [LeftOut(o.name, o.identity, "nothing of this person is left in train") for o in orphans]
                bar.update(len(orphans))
                items = [item for item in items if item.identity in people["train"]]
            parts: list[Made] = []
            size = 0
            for result in make(items):
                bar.update()
                if isinstance(result, LeftOut):
                    left_out.append(result)
                    continue
                kept[split] += 1
                seconds[split] += result.seconds
                people[split].add(result.item.identity)
                parts.append(result)
                size += sum(map(len, result.members.values()))
                if size >= recipe.shard_mb * 1e6:
                    shards.append(_write(recipe.out, split, shards, parts))
                    parts, size = [], 0
            if parts:
                shards.append(_write(recipe.out, split, shards, parts))
    left_out.sort(key=str)
    lines = [json.dumps(asdict(each), ensure_ascii=False) for each in left_out]
    for each in left_out:
        print(f"left out: {each}")
    if not shards:
        raise V2FError(f"{recipe.out}: all of the {len(left_out)} inputs were left out, there is nothing to pack")
    store.write_bytes(store.join(recipe.out, LEFT_OUT), "".join(f"{line}\n" for line in lines).encode())
    dataset = write_manifest(recipe.out, shards, provenance)
    store.remove(store.join(recipe.out, PACKING))
    _summarise(dataset, seconds, left_out)
    return dataset


def _write(out: str, split: str, shards: Sequence[ShardRows], parts: Sequence[Made]) -> ShardRows:
    number = sum(rows.shard.split == split for rows in shards)
    samples = [(made.item.key, made.item.identity, made.members) for made in parts]
    return write_shard(out, f"{split}-{number:05d}.tar", split, samples)


def _summarise(dataset: Dataset, seconds: "Counter[str]", left_out: Sequence[LeftOut]) -> None:
    manifest = dataset.manifest
    samples = sum(shard.samples for shard in manifest.shards)
    size = sum(shard.bytes for shard in manifest.shards)
    print(
        f"{dataset.root}: {samples} samples of {len(manifest.identities)} people, "
        f"{sum(seconds.values()) / 3600:.2f} hours, {size / 1e6:.0f} MB in {len(manifest.shards)} shards"
    )
    for name, split in manifest.splits.items():
        print(f"  {name}: {split.samples} samples of {split.people} people, {seconds[name] / 3600:.2f} hours")
    if left_out:
        reasons = Counter(each.reason for each in left_out).most_common()
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons)
        print(f"  left out: {len(left_out)} of {samples + len(left_out)} ({counted}); all in {LEFT_OUT}")
    else:
        print("  left out: nothing")
    print(f"  fingerprint {dataset.fingerprint}")


# ------------------------------------------------------------------------------------------------- place


def _is_there(out: str, provenance: dict[str, Any]) -> bool:
    """Whether ``out`` holds this data set; another one is refused."""
    if not store.exists(store.join(out, MANIFEST)):
        return False
    way_out = "choose another `out`, or remove this folder to pack anew"
    try:
        found = open_dataset(out).manifest.provenance
    except V2FError as error:
        raise V2FError(f"{out}: a data set is there that cannot be used ({error}); {way_out}") from error
    found, wanted = {**found, "recipe": _completed(found.get("recipe"))}, json.loads(json.dumps(provenance))
    if found != wanted:
        differing = [name for name in sorted({**found, **wanted}) if found.get(name) != wanted.get(name)]
        if "recipe" in differing and isinstance(found["recipe"], dict):
            differing.remove("recipe")
            differing += sorted(_differing(found["recipe"], wanted["recipe"], ""))
        raise V2FError(f"{out}: a data set of another recipe is there ({', '.join(differing)} differ); {way_out}")
    store.remove(store.join(out, PACKING))
    return True


def _what(recipe: PackConfig) -> dict[str, Any]:
    """What of a recipe decides about the content: all but where it goes and how it is made."""
    exclude: Any = {"out": True, "workers": True, "pairs": {"psp": {"sha256": True, "batch": True, "device": True}}}
    return recipe.model_dump(mode="json", exclude=exclude)


def _completed(found: Any) -> Any:
    """A data set's recipe with the keys that it did not have yet when it was packed; their defaults change nothing."""
    try:
        return _what(build(PackConfig, {**found, "out": ""}, ""))
    except (V2FError, TypeError):
        return found  # of another kind, or of a version that knew other keys: it differs


def _differing(one: Any, two: Any, prefix: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in {**one, **two}:
            yield from _differing(one.get(name), two.get(name), f"{prefix}.{name}" if prefix else name)
    elif one != two:
        yield prefix


def _make_room(out: str, provenance: dict[str, Any]) -> None:
    """Remove what a pack that was killed has left, refuse what is not ours, and mark that a pack is under way."""
    there = store.names(out)
    foreign = [name for name in there if name != PACKING and not _OURS.fullmatch(name)]
    if foreign or (there and PACKING not in there):
        raise V2FError(f"{out}: it is not empty ({(foreign or there)[0]}) and holds no data set; choose another `out`")
    for name in there:
        store.remove(store.join(out, name))
    store.write_bytes(store.join(out, PACKING), json.dumps(provenance, indent=1).encode())


# --------------------------------------------------------------------------------------------- processes


def _workers(recipe: PackConfig, items: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if recipe.pairs is not None and recipe.pairs.psp is not None:
        cores = min(cores, _MOST_WITH_PSP)
    return min(recipe.workers or cores, max(1, items // _CHUNK))


@contextmanager
def _maker(converter: Converter, workers: int) -> "Iterator[Any]":
    """A function from items to what was made of them, in the same order; made here, or by ``workers`` processes."""
    if workers == 1:
        yield lambda items: (made for part in _chunks(items) for made in converter.make(part))
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # processes share the cores already; they start on demand
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda items: _in_order(pool, converter, items, 3 * workers)
    except BrokenProcessPool as error:
        raise V2FError(
            "a packing process died, probably for lack of memory; start it again with fewer `workers`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _in_order(
    pool: ProcessPoolExecutor, converter: Converter, items: Sequence[Item], ahead: int
) -> Iterator[Made | LeftOut]:
    waiting: deque[Future[list[Made | LeftOut]]] = deque()
    for part in _chunks(items):
        waiting.append(pool.submit(converter.make, part))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK))
