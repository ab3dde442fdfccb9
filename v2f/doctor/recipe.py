"""What a recipe names: its places, its data, its frozen nets."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2f.doctor.findings import GIB, Finding, Setup, Step, finding_of
from v2f.doctor.services import ATTEMPTS
from v2f.errors import V2FError
from v2f.storage import retry, store
from v2f.storage.credentials import without_credentials

if TYPE_CHECKING:
    from v2f.runs.config import RunConfig


def recipe(setup: Setup) -> Iterator[Step | dict[str, Any]]:
    """Whether the recipe is valid; and, as a dict, the places that it names, for the other checks."""
    from v2f.runs.config import load_config

    assert setup.recipe is not None
    config = load_config(setup.recipe, setup.overrides)
    yield {
        "out": config.folder,
        "cache": config.data.cache.path if config.data.cache else None,
        "tracking": setup.tracking or config.tracking.uri,
        "store": setup.store or (config.folder if store.local_path(config.folder) is None else None),
    }
    name = config.system.name
    size = f"{config.train.steps:,} steps of {config.data.batch}, {config.train.precision}"
    yield Finding("recipe", "ok", f"{setup.recipe}: {name}, {size}, to {without_credentials(config.folder)}")


def weights_and_data(setup: Setup) -> Iterator[Step]:
    """The frozen nets that the recipe names, and its data."""
    from v2f.runs.config import load_config

    assert setup.recipe is not None
    config = load_config(setup.recipe, setup.overrides)
    yield from weights(Path(setup.recipe).stem, config)
    yield from data(config)


def data(config: "RunConfig") -> Iterator[Step]:
    """Open each data set and read its first samples as the system reads them, with their checksums."""
    from v2f.data.loader import read_usable
    from v2f.data.manifest import open_dataset
    from v2f.runs.run import build_system, streams_of

    retry.ATTEMPTS = ATTEMPTS
    reads: dict[str, dict[str, Any]] = {}
    yield "building the system"
    try:
        system = build_system(config)
        streams_of(config, system)
        reads = system.streams()
    except V2FError as error:  # missing weights have their own findings; the data can be checked without them
        yield finding_of("recipe", error, "the system cannot be built: ")
    streams = config.data.by_stream()
    for name, path, split in [(name, each.path, each.split) for name, own in streams.items() for each in own.sources]:
        transforms = reads.get(name, {})
        shown = without_credentials(path)
        yield f"opening {shown}"
        try:
            dataset = open_dataset(path)
            part = dataset.split(split or streams[name].split)
            yield f"reading the first samples of {shown}"
            left_out: list[str] = []
            count = min(4, part.samples)
            batch = next(iter(read_usable(part, transforms, count, left_out, limit=count)), None)
        except V2FError as error:
            yield finding_of("data", error)
            continue
        text = f"{shown}: {part.samples:,} samples of {part.name}, fingerprint {dataset.fingerprint[:12]}"
        if batch is None or left_out:
            yield Finding("data", "wrong", f"{text}; {left_out[0]}", f"v2f shards verify {shown} lists all damage")
            continue
        decoded = sum(value.nbytes for key, value in batch.items() if key in transforms)
        sample = decoded / count + float(dataset.index.length.mean())
        trays = 4 * config.data.workers * streams[name].batch * sample
        yield Finding(
            "data", "ok", f"{text}; workers share up to {trays / GIB:.2g} GiB with one rank (memory, not /dev/shm)"
        )


def weights(name: str, config: "RunConfig") -> Iterator[Step]:
    """Whether the weights of the recipe's frozen nets are there, with the known checksums."""
    from v2f.runs.run import reading_runs
    from v2f.weights.commands import required_weights

    required = config.system.requirements(with_referee=True)
    if not required:
        yield Finding("weights", "ok", "none needed: the recipe uses the package's stand-ins, or no frozen nets")
        return
    yield f"reading the weights in {without_credentials(required.folder)}"
    with reading_runs(config.tracking.uri):
        found = required_weights({name: required})
    for row in found:
        who = ", ".join(row.needed_by)
        if row.path is None or row.sha256 is None:
            why = "missing" if row.path is None or row.state == "missing" else f"{row.path}: {row.state}"
            yield Finding("weights", "wrong", f"{row.published.name} ({who}): {why}", row.published.way_out)
        elif "NOT the file" in row.state:
            yield Finding(
                "weights",
                "look",
                f"{row.path} ({who}): {row.state}",
                "v2f weights table RECIPE.yaml --load tries to load it",
            )
        else:
            yield Finding("weights", "ok", f"{row.path} ({who}): SHA-256 {row.sha256[:16]}..., {row.state}")
