"""``v2f shards pack``: a recipe in, a data set out.

The planned items are shuffled (by a hash of the key, so that adjacent samples are of different people), made in
parallel, written shard by shard, and committed by the manifest. The same recipe gives the same bytes for any number of
processes. A pack that was killed resumes after its last whole shard when the same command runs again.

    recipe -> plan -> items -> processes -> shards, a record each -> the part's record -> (all parts) -> manifest

On several machines, ``--part i/n`` packs one part of the same plan, and ``finalize`` commits the parts;
:mod:`v2f.prepare.parts` describes the files in the folder meanwhile.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field, model_validator

from v2f.config import Config, Place, build, override, read_yaml
from v2f.data.manifest import MANIFEST, Dataset, open_dataset
from v2f.data.sample import SPLITS
from v2f.data.shards import write_shard
from v2f.errors import V2FError
from v2f.prepare import Converter, Item, LeftOut, Made, Plan, parts, share, yields
from v2f.prepare.avspeech import AVSpeech, AVSpeechConfig
from v2f.prepare.folder import Folder, FolderConfig
from v2f.prepare.names import person
from v2f.prepare.pairs import Pairs, PairsConfig
from v2f.prepare.parts import WHOLE, Packing, Part, PartRecord, ShardRecord
from v2f.prepare.processes import CHUNK, Make, cores, maker
from v2f.prepare.progress import Progress
from v2f.prepare.shapes import Shapes, ShapesConfig
from v2f.prepare.steps import StepsConfig
from v2f.prepare.synthetic import Synthetic, SyntheticConfig
from v2f.prepare.things import SoundingThings, ThingsConfig
from v2f.prepare.voxceleb import VoxCeleb, VoxCelebConfig
from v2f.prepare.yields import LEFT_OUT, YIELD
from v2f.storage import store
from v2f.storage.lease import Lease

CONVERTERS: dict[str, Callable[[Any], Converter]] = {
    "synthetic": Synthetic,
    "pairs": Pairs,
    "voxceleb": VoxCeleb,
    "avspeech": AVSpeech,
    "folder": Folder,
    "shapes": Shapes,
    "things": SoundingThings,
}
"""The name of a source, which is also its group in a recipe -> its converter."""

_WAY_OUT = "choose another `out`, or remove this folder to pack anew"
# keys of the provenance that describe inputs, not the recipe
_OF_INPUTS = {"classes", "csv_sha256", "files_sha256", "meta_sha256"}
_ORPHAN = "nothing of this person is left in train"
_TRIED = 32  # inputs that are tried again at most, when there is nothing to pack

_MOST_WITH_PSP = 4  # processes by default: each holds pSp, 1.2 GB of weights, and all share one GPU


class PackConfig(Config):
    """A recipe. ``source`` names the group that configures what is packed."""

    out: Place = Field(description="where the data set goes: a folder or an s3:// prefix")
    source: Literal["synthetic", "pairs", "voxceleb", "avspeech", "folder", "shapes", "things"]
    synthetic: SyntheticConfig | None = None
    pairs: PairsConfig | None = None
    voxceleb: VoxCelebConfig | None = None
    avspeech: AVSpeechConfig | None = None
    folder: FolderConfig | None = None
    shapes: ShapesConfig | None = None
    things: ThingsConfig | None = None
    shard_mb: float = Field(32.0, gt=0.0, description="size of a shard in 10^6 bytes, about")
    workers: int | None = Field(
        None, ge=1, description="processes; null: one for each core, with pSp at most 4; 1: this one"
    )

    @model_validator(mode="after")
    def _one_group(self) -> "PackConfig":
        groups = dict(self)
        for name in CONVERTERS:
            if (groups[name] is not None) != (name == self.source):
                verb = "is missing" if name == self.source else "does not belong here"
                raise ValueError(f"source is {self.source!r}, the group {name!r} {verb}")
        return self

    @property
    def group(self) -> Config:
        group: Config = dict(self)[self.source]
        return group

    def converter(self) -> Converter:
        return CONVERTERS[self.source](self.group)


def load_recipe(path: str, overrides: Sequence[str] = ()) -> PackConfig:
    """The recipe in a YAML file, with ``dotted.key=value`` overrides applied."""
    return build(PackConfig, override(read_yaml(path), overrides), path)


def pack(recipe: PackConfig) -> Dataset:
    """Pack a recipe, print what was kept and left out, and open the result.

    If the data set of this recipe exists already, it is left unchanged. V2FError if anything else is in ``out``.
    """
    dataset = _pack(recipe, WHOLE)
    assert dataset is not None, "the whole is committed"
    return dataset


def pack_part(recipe: PackConfig, part: Part) -> None:
    """Pack one part of a recipe, unless that part is complete already."""
    if _pack(recipe, part) is None:
        print(f"{recipe.out}: part {part} is whole; `v2f shards finalize` with the same recipe commits all parts")


def finalize(recipe: PackConfig) -> Dataset:
    """Check that all parts of a recipe are complete, commit them as one data set, and open it."""
    wanted = {"recipe": _content_of(recipe)}
    dataset = _existing(recipe.out, wanted)
    if dataset is not None:
        return dataset
    _packing_of(recipe, wanted)  # checked first, so that a folder where nothing was packed gets no lease
    with parts.leased(recipe.out, "v2f shards finalize") as owner:
        return _existing(recipe.out, wanted, owner) or _commit(owner, recipe.out, _packing_of(recipe, wanted))


def _packing_of(recipe: PackConfig, wanted: dict[str, Any]) -> Packing:
    """What is being packed in the recipe's ``out``; V2FError if it is another recipe, or nothing."""
    packing = parts.read_packing(recipe.out)
    if packing is None:
        raise V2FError(
            f"{recipe.out}: nothing was packed here yet; first `v2f shards pack` the recipe with --part 0/n to n-1/n"
        )
    differing = _differing_keys(packing.provenance, wanted)
    if differing:
        raise V2FError(f"{recipe.out}: parts of another recipe are here ({differing} differ); name the one they are of")
    return packing


def _pack(recipe: PackConfig, part: Part) -> Dataset | None:
    """Pack a part, and commit it if it is the whole; or open the data set if it is committed already."""
    converter = recipe.converter()
    plan = converter.plan()
    if plan.taken:
        print(f"{recipe.out}: the subset takes {plan.taken}")
    packing = Packing.of(part.of, plan.items, {"recipe": _content_of(recipe), **plan.provenance})
    out = recipe.out
    dataset = _existing(out, packing.provenance)
    if dataset is None:
        parts.enter(None, out, packing)
        what = "v2f shards pack" + (f" --part {part}" if part.of > 1 else "")
        with parts.leased(out, what, packing, part) as owner:
            # another process may have committed it while this one waited
            dataset = _existing(out, packing.provenance, owner)
            if dataset is None:
                parts.enter(owner, out, packing)
                record = parts.read_part_record(out, part)
                if record is None:
                    _make(owner, recipe, converter, plan, part)
                else:
                    way_out = f"to have the part packed again, remove {store.join(out, part.record)} first"
                    _print_usable_now(out, part.record, record.left_out, converter, plan, way_out)
                return _commit(owner, out, packing) if part.of == 1 else None
    way_out = f"nothing is added to a data set that is committed: {_WAY_OUT}"
    _print_usable_now(out, MANIFEST, yields.read_left_out(out), converter, plan, way_out)
    return dataset


# ------------------------------------------------------------------------------------------------ a part


def _make(owner: Lease, recipe: PackConfig, converter: Converter, plan: Plan, part: Part) -> None:
    """Make and write the samples of a part, resuming after the shards of an earlier attempt."""
    out, items = recipe.out, part.deal(plan.items)
    done = parts.recover(out, part)
    shards: list[str] = []
    left_out = list(plan.left_out) if part.number == 0 else []
    people: set[str] = set()  # those with samples in train
    what = out if part.of == 1 else f"part {part} of {out}"
    progress = Progress(len(items), what, psp=_uses_psp(recipe))
    with progress, maker(converter, _workers(recipe, len(items))) as make:
        for split in SPLITS:
            mine = sorted((item for item in items if item.split == split), key=lambda item: share(item.key))
            if split == "seen":
                orphans = [item for item in mine if item.identity not in people]
                left_out += [LeftOut(o.name, o.identity, _ORPHAN) for o in orphans]
                progress.add(len(orphans))
                mine = [item for item in mine if item.identity in people]
            records = _still_true(done[split], mine, make)
            progress.add(_stop(records))
            if _stop(records) < len(mine):
                parts.forget(owner, out, part, [*shards, *(record.rows.shard.name for record in records)])
                done = {name: [] for name in SPLITS}  # later splits depend on the people in this one
                for record in _new(owner, recipe, part, split, records, mine, make, progress, left_out):
                    parts.write_record(owner, out, parts.rows_name(record.rows.shard.name), record)
                    records.append(record)
            shards += [record.rows.shard.name for record in records]
            left_out += [each for record in records for _, each in record.left_out]
            if split == "train":
                people = {identity for record in records for identity in record.rows.identity}
    left_out.sort(key=str)
    for line in yields.examples(left_out):
        print(line)
    if progress.pictures:
        print(progress.summary())
    parts.write_record(owner, out, part.record, PartRecord(shards=shards, left_out=left_out))


def _stop(records: Sequence[ShardRecord]) -> int:
    return records[-1].stop if records else 0


def _still_true(records: list[ShardRecord], items: Sequence[Item], make: Make) -> list[ShardRecord]:
    """``records`` up to the first with an input that was left out but can be used now, for example after a remount."""
    left = [(number, at) for number, record in enumerate(records) for at, _ in record.left_out]
    for (number, _), result in zip(left, make([items[at] for _, at in left]), strict=True):
        if isinstance(result, Made):
            return records[:number]
    return records


def _new(
    owner: Lease,
    recipe: PackConfig,
    part: Part,
    split: str,
    before: Sequence[ShardRecord],
    items: Sequence[Item],
    make: Make,
    progress: Progress,
    tail: list[LeftOut],
) -> Iterator[ShardRecord]:
    """Make and write the items of a split that follow the shards ``before``. Inputs left out after the last shard are
    added to ``tail``."""
    start, number = _stop(before), len(before)
    made: list[Made] = []
    left: list[tuple[int, LeftOut]] = []
    size = 0

    def write(stop: int) -> ShardRecord:
        samples = [(each.item.key, each.item.identity, each.members) for each in made]
        with owner.holding():
            rows = write_shard(recipe.out, part.shard(split, number), split, samples)
        progress.wrote(rows.shard.name)
        return ShardRecord.of(rows, made, stop, left)

    for at, result in enumerate(make(items[start:]), start):
        progress.add(pictures=result.through_psp if isinstance(result, Made) else 0)
        if isinstance(result, LeftOut):
            left.append((at, result))
            continue
        made.append(result)
        size += sum(map(len, result.members.values()))
        if size >= recipe.shard_mb * 1e6:
            yield write(at + 1)
            made, left, size, number = [], [], 0, number + 1
    if made:
        yield write(len(items))
    else:
        tail += [each for _, each in left]


# --------------------------------------------------------------------------------------------- all parts


def _commit(owner: Lease, out: str, packing: Packing) -> Dataset:
    """Commit the parts in ``out`` as a data set; V2FError if one is not complete."""
    wanted = [Part(number, packing.parts) for number in range(packing.parts)]
    with ThreadPoolExecutor(16) as pool:  # reading a record from a remote folder takes a round trip
        found = list(pool.map(lambda part: parts.read_part_record(out, part), wanted))
        missing = [part for part, whole in zip(wanted, found, strict=True) if whole is None]
        if missing:
            raise V2FError(f"{out}: {_in_words(missing)} not packed yet; run `v2f shards pack` for them first")
        whole = {part: record for part, record in zip(wanted, found, strict=True) if record is not None}
        of = {name: part for part, record in whole.items() for name in record.shards}
        records = dict(zip(of, pool.map(lambda name: parts.read_shard_record(out, name), of), strict=True))
    for name, record in records.items():
        if record is None:
            with owner.holding():
                store.remove(store.join(out, of[name].record))  # so that packing the part again repairs it
            raise V2FError(f"{out}: {name} is not there or was cut; run `v2f shards pack` for part {of[name]} again")
    left_out = sorted((each for record in whole.values() for each in record.left_out), key=str)
    ordered = [record for split in SPLITS for record in records.values() if record and record.rows.shard.split == split]
    if not ordered:
        with owner.holding():
            for part in wanted:
                store.remove(store.join(out, part.record))
        raise V2FError(
            f"{out}: all of the {len(left_out)} inputs were left out, there is nothing to pack ({yields.why(left_out)})"
        )
    kept = Counter((record.rows.shard.split, identity) for record in ordered for identity in record.rows.identity)
    rejected = [photo for record in ordered for photo in record.rejected]
    report = yields.yield_report(kept, left_out, rejected)
    yields.write_left_out(out, left_out, owner.put)
    owner.put(store.join(out, YIELD), yields.to_json(report))
    dataset = parts.commit(owner, out, [record.rows for record in ordered], packing.provenance)
    seconds = dict.fromkeys(SPLITS, 0.0)
    for record in ordered:
        seconds[record.rows.shard.split] += record.seconds
    _summarize(dataset, seconds, report)
    return dataset


def _in_words(some: Sequence[Part]) -> str:
    """The parts as text; of many, the first few."""
    named = ", ".join(map(str, some[:8])) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
    return f"part {named} is" if len(some) == 1 else f"parts {named} are"


def _summarize(dataset: Dataset, seconds: dict[str, float], report: dict[str, Any]) -> None:
    manifest = dataset.manifest
    samples = sum(shard.samples for shard in manifest.shards)
    size = sum(shard.bytes for shard in manifest.shards)
    heard = sum(seconds.values()) > 0  # a data set without sound has no hours

    def hours(of: float) -> str:
        return f", {of / 3600:.2f} hours" if heard else ""

    print(
        f"{dataset.root}: {samples} samples of {len(manifest.identities)} people{hours(sum(seconds.values()))}, "
        f"{size / 1e6:.0f} MB in {len(manifest.shards)} shards"
    )
    for name, split in manifest.splits.items():
        print(f"  {name}: {split.samples} samples of {split.people} people{hours(seconds[name])}")
    if report["left_out"]["reasons"] or report["rejected_photos"]:
        for line in yields.lines(report):
            print(f"  {line}")
        print(f"  each of them is in {LEFT_OUT}, the counts by person in {YIELD}")
    else:
        print("  left out: nothing")
    print(f"  fingerprint {dataset.fingerprint}")


# ------------------------------------------------------------------------------------------------- place


def _existing(out: str, wanted: dict[str, Any], owner: Lease | None = None) -> Dataset | None:
    """The data set in ``out`` if its provenance includes ``wanted``; None if there is none, V2FError if it is
    another."""
    if not store.exists(store.join(out, MANIFEST)):
        return None
    try:
        dataset = open_dataset(out)
    except V2FError as error:
        raise V2FError(f"{out}: a data set is there that cannot be used ({error}); {_WAY_OUT}") from error
    differing = _differing_keys(dataset.manifest.provenance, wanted)
    if differing:
        what = "other inputs" if set(differing.split(", ")) <= _OF_INPUTS else "another recipe"
        raise V2FError(f"{out}: a data set of {what} is there ({differing} differ); {_WAY_OUT}")
    parts.finish(owner, dataset, "v2f shards pack")
    print(f"{out}: packed already from this recipe, nothing to do; fingerprint {dataset.fingerprint}")
    return dataset


def _differing_keys(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The keys of ``wanted`` in which ``found`` differs, with each differing key of the recipe; empty if none does."""
    found, wanted = {**found, "recipe": _completed(found.get("recipe"))}, json.loads(json.dumps(wanted))
    differing = [name for name in sorted(wanted) if found.get(name) != wanted[name]]
    if "recipe" in differing and isinstance(found["recipe"], dict):
        differing.remove("recipe")
        differing += sorted(_differing(found["recipe"], wanted["recipe"], ""))
    return ", ".join(differing)


def _content_of(recipe: PackConfig) -> dict[str, Any]:
    """The part of a recipe that determines the content: all but the destination and how to compute it."""
    how = {"psp": {"sha256": True, "batch": True, "device": True}}
    exclude: Any = {"out": True, "workers": True, **dict.fromkeys(CONVERTERS, how)}
    return recipe.model_dump(mode="json", exclude=exclude)


def _completed(found: Any) -> Any:
    """A data set's recipe with defaults for the keys that were added after it was packed; these keep the old
    behavior."""
    try:
        return _content_of(build(PackConfig, {**found, "out": "."}, ""))
    except (V2FError, TypeError):
        return found  # another kind of recipe, or of a version with other keys: it differs anyway


def _differing(one: Any, two: Any, prefix: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in {**one, **two}:
            yield from _differing(one.get(name), two.get(name), f"{prefix}.{name}" if prefix else name)
    elif one != two:
        yield prefix


def _print_usable_now(
    out: str, written: str, left_out: Sequence[LeftOut], converter: Converter, plan: Plan, way_out: str
) -> None:
    """Print which inputs were left out when the file ``written`` in ``out`` was made but can be used now.

    Looks at their files, and tries only inputs that were missing or have changed since.
    """
    lost = {(each.name, person(each.identity)): each for each in left_out if each.reason != _ORPHAN}
    items = [item for item in plan.items if (item.name, item.identity) in lost]
    local = store.local_path(store.join(out, written))
    since = os.stat(local).st_mtime_ns if local is not None else None
    reasons = [lost[item.name, item.identity].reason for item in items]
    there = [_may_be_usable_now(converter.inputs(item), why, since) for item, why in zip(items, reasons, strict=True)]
    tried = [item for item, may in zip(items, there, strict=True) if may]
    mended = [item for item in tried[:_TRIED] if isinstance(converter.make([item])[0], Made)]
    if mended:
        first = mended[0]
        many = f"{'at least ' * (len(tried) > _TRIED)}{len(mended)}"
        print(
            f"{out}: inputs that were left out and may be usable now: {many}, the first: {first.name} (it was left out "
            f"because: {lost[first.name, first.identity].reason}); {way_out}"
        )


def _may_be_usable_now(paths: Sequence[str], reason: str, since: int | None) -> bool:
    local = [store.local_path(path) for path in paths]
    if reason.endswith(("is missing", "cannot be read")):
        return all(path is None or os.path.exists(path) for path in local)
    changed = [os.stat(path).st_ctime_ns for path in local if path is not None and os.path.exists(path)]
    return since is not None and max(changed, default=-1) >= since


# --------------------------------------------------------------------------------------------- processes


def _workers(recipe: PackConfig, items: int) -> int:
    most = cores()
    if _uses_psp(recipe):
        most = min(most, _MOST_WITH_PSP)
    return min(recipe.workers or most, max(1, items // CHUNK))


def _uses_psp(recipe: PackConfig) -> bool:
    return isinstance(recipe.group, StepsConfig) and recipe.group.psp is not None
