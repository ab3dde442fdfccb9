"""Sets up a training run: from its configuration and, when it resumes, from its newest checkpoint.

claim the run -> find the checkpoint -> open the data -> build the system -> restore -> open the loader
                                                                   -> on rank 0: log the start, read held-out data
"""

import contextlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsInt

import torch

from v2f.config import dump_yaml
from v2f.data.loader import Loader, check_batch, micro_batch_of
from v2f.data.manifest import Samples, open_dataset
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.data.streams import Streams, joint_fingerprint, joint_people, numbered, numbered_alike, stream_seed
from v2f.data.transforms import Transform
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.nn.groups import common_group
from v2f.runs import checkpoint
from v2f.runs.config import DataConfig, RunConfig, changes
from v2f.runs.folder import RunFolder
from v2f.runs.peers import alike, check_shared
from v2f.runs.run import build_system, check_shapes, check_weights, config_of, source_line, start_from, streams_of
from v2f.runs.saver import Saver
from v2f.storage import store
from v2f.storage.cache import Cache
from v2f.storage.fencing import inherited, taken_up
from v2f.storage.lease import Lease
from v2f.system import System, trained
from v2f.tracking.console import say
from v2f.training import quarantine
from v2f.training.job import Job
from v2f.training.progress import Goodput, GradientNorms
from v2f.training.rank_zero import RankZero
from v2f.training.run_record import count_parameters, record_start, start_tracker, write_run_info
from v2f.training.slot_log import SlotLog
from v2f.training.validation import read_held_out

_VALIDATION_BATCH = 32  # samples at most


@dataclass(frozen=True)
class _Start:
    """One start of a run, which ``attempt`` names. ``lease`` is None on all ranks but 0."""

    config: RunConfig
    engine: Engine
    folder: RunFolder
    attempt: str
    lease: Lease | None


@dataclass(frozen=True)
class _Origin:
    """The checkpoint to resume from, None for a new run, and how the configuration has ``changed`` since it."""

    checkpoint: str | None
    changed: list[str]

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else checkpoint.step_of(self.checkpoint)


@dataclass(frozen=True)
class _Data:
    """The training samples of each stream and their orders; the fingerprints are those of all streams together.

    ``people`` numbers the identities across streams; None if the system has one stream.
    """

    samples: dict[str, Samples]
    orders: dict[str, Order | MixOrder]
    fingerprint: str
    order_fingerprint: str
    people: dict[str, int] | None


@dataclass(frozen=True)
class _Batching:
    """How a global batch is cut: a rank's ``share`` of the first stream, ``micro_batch`` samples at a time (None: all
    at once), in groups of ``bn_group`` for batch norm. ``streams``: what each stream is read from."""

    streams: dict[str, DataConfig]
    share: int
    micro_batch: int | None
    bn_group: int


def prepare(
    config: RunConfig, resume: str, allow_changes: bool, stop_request: SupportsInt, resources: contextlib.ExitStack
) -> Job:
    """Build everything the loop needs. Collective. The run's lease is released with ``resources``."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    start = _claim(config, stop_request, resources)
    engine = start.engine
    origin = _find_checkpoint(start, resume, allow_changes)
    data = _open_data(config)
    system = build_system(config)
    init_from = start_from(config, system, engine) if origin.checkpoint is None else []
    batching = _plan_batching(config, engine, system)
    engine.wrap(system, share=batching.share, micro_batch=batching.micro_batch, seed=config.seed)
    state: dict[str, Any] = {}
    if origin.checkpoint is not None:
        state = _restore(config, engine, system, data, origin.checkpoint)
        init_from = state.get("init_from", [])
    quarantined: dict[str, list[int]] = {"": state.get("quarantine", []), **state.get("quarantines", {})}
    reads = numbered_alike(system.streams(), data.samples)
    loader = _open_loader(config, engine, reads, data, batching, origin.step, quarantined)
    rank_zero, starts = None, 1
    if start.lease is not None:
        store.write_bytes(store.join(start.folder.path, "config.yaml"), dump_yaml(config).encode())
        _announce(start, origin, system, batching, state.get("precision"), init_from)
        starts = record_start(start.folder, start.attempt, engine, origin.step, origin.changed)
        info = write_run_info(config, start.folder, engine, system, data.fingerprint, init_from)
        tracker = start_tracker(config, start.folder, system, loader, info, state.get("run_id"))
        quarantine.roll_back_list(start.folder.local, quarantined)
        size = min(_VALIDATION_BATCH, batching.micro_batch or batching.share)
        rank_zero = RankZero(
            config,
            start.folder,
            engine,
            system,
            start.lease,
            tracker,
            read_held_out(config, batching.streams, reads, data.people, size, engine),
            meters=state.get("metrics", {}),
            measured_at=state.get("measured_at"),
        )
    return Job(
        config,
        start.folder,
        engine,
        system,
        data.fingerprint,
        loader,
        _saver(start),
        origin.step,
        batching.micro_batch,
        Goodput(state.get("clock"), starts),
        GradientNorms(config.train.spike_sigma, state.get("norms", {})),
        SlotLog(start.folder.local, start.attempt, engine.rank) if config.train.sample_log else None,
        init_from,
        rank_zero,
    )


def _claim(config: RunConfig, stop_request: SupportsInt, resources: contextlib.ExitStack) -> _Start:
    """Join the other ranks, and take the run's lease on rank 0. If another start holds it, all ranks raise the same
    error."""
    engine = Engine(config.train.precision, config.train.strategy, patience_minutes=config.train.watchdog_minutes)
    attempt = engine.gather(f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}")[0]
    lease: Lease | None = None

    def take() -> None:
        nonlocal lease
        if engine.rank == 0:
            root = store.join(config.folder, "checkpoints")
            lease = Lease.take(
                root, "a training run", note=inherited, say=say, interrupted=lambda: bool(int(stop_request))
            )
            resources.enter_context(lease)

    folder = RunFolder(config.folder)
    alike(engine, take)
    return _Start(config, engine, folder, attempt, lease)


def _find_checkpoint(start: _Start, resume: str, allow_changes: bool) -> _Origin:
    """The checkpoint to resume from. Rank 0 refuses to overwrite a run, or to change its configuration unless
    ``allow_changes``, and fetches the files of the run that are stored elsewhere."""
    if resume not in ("auto", "none"):
        raise V2FError(f"--resume {resume}: unknown value; use auto or none")
    config, engine, folder, lease = start.config, start.engine, start.folder, start.lease
    checkpoints = store.join(folder.path, "checkpoints")

    def look() -> _Origin:
        if lease is None:
            return _Origin(None, [])
        newest = checkpoint.latest(checkpoints)
        if resume == "none" and (newest is not None or store.exists(store.join(folder.path, "config.yaml"))):
            raise V2FError(
                f"{folder.path}: there is already a run here; resume it with --resume auto, or choose another name or "
                "out="
            )
        # Compared with the checkpoint's configuration, not the folder's: a start without a checkpoint trained nothing.
        changed = [] if newest is None else changes(config_of(newest), config)
        if newest is not None and changed:
            check_shapes(config, checkpoint.shapes_of(newest), newest)
        if changed and not allow_changes:
            raise V2FError(
                f"{folder.path}: the configuration changed ({'; '.join(changed)}); resume with the old one, start "
                "under another name, or allow the changes with --allow-changes"
            )
        lease.keep(taken_up(lease.note, checkpoint.step_of(newest) if newest else 0))
        folder.fetch(start.attempt)
        return _Origin(newest, changed)

    origin = alike(engine, look)[0]
    check_shared(checkpoints, rank=engine.rank, gather=engine.gather)
    return origin


def _open_data(config: RunConfig) -> _Data:
    samples: dict[str, Samples] = {}
    orders: dict[str, Order | MixOrder] = {}
    fingerprints: dict[str, str] = {}
    for name, data in config.data.by_stream().items():
        fingerprints[name], samples[name], orders[name] = _open_stream(data, stream_seed(config.seed, name))
    return _Data(
        samples,
        orders,
        joint_fingerprint(fingerprints),
        joint_fingerprint({name: order.fingerprint for name, order in orders.items()}),
        joint_people(samples.values()) if config.data.streams is not None else None,
    )


def _open_stream(config: DataConfig, seed: int) -> tuple[str, Samples, Order | MixOrder]:
    """A stream's training data: their fingerprint, the samples, and their order."""
    kind = {"seed": seed, "batch": config.batch, "partitions": config.partitions, "window": config.window}
    if config.mix is None:
        split = open_dataset(config.home).split(config.split)
        return split.dataset.fingerprint, split, Order.for_batches(split.shard_sizes, data=split.fingerprint, **kind)
    splits = [open_dataset(source.path).split(source.split or config.split) for source in config.mix]
    weights = [source.weight for source in config.mix]
    sizes, names = [split.shard_sizes for split in splits], [split.fingerprint for split in splits]
    mixed = Union(splits)
    return mixed.fingerprint, mixed, MixOrder(sizes, weights, data=names, **kind)


def _plan_batching(config: RunConfig, engine: Engine, system: System) -> _Batching:
    streams = streams_of(config, system)
    bn_group = common_group(trained(system).values())
    for name, data in streams.items():
        check_batch(data.batch, engine.world_size, bn_group, name)
    share, *others = [data.batch // engine.world_size for data in streams.values()]
    return _Batching(streams, share, micro_batch_of(share, config.train.micro_batch, bn_group, others), bn_group)


def _restore(config: RunConfig, engine: Engine, system: System, data: _Data, found: str) -> dict[str, Any]:
    """Load the checkpoint ``found`` into the system and its optimizers; returns the checkpoint's state.

    V2FError if it was trained on other data, in another order, or with other frozen weights.
    """
    tensors, state = checkpoint.load(found, peers=engine)
    trained_on = checkpoint.needed(state, "fingerprint", found)
    if trained_on != data.fingerprint:
        raise V2FError(
            f"{config.data.home}: the data's fingerprint is {data.fingerprint}, but {found} was trained on "
            f"{trained_on}; resume with the data that it was trained on"
        )
    if state.get("order", data.order_fingerprint) != data.order_fingerprint:
        raise V2FError(
            f"the order of the samples is not that of {found}: data.mix, data.streams, data.batch, data.partitions, "
            "data.window or seed differs; resume with the values that it was trained with"
        )
    check_weights(system, state, found)
    engine.load(system, tensors, found)
    return state


def _open_loader(
    config: RunConfig,
    engine: Engine,
    reads: Mapping[str, Mapping[str, Transform]],
    data: _Data,
    batching: _Batching,
    step: int,
    quarantined: Mapping[str, list[int]],
) -> Streams:
    """This rank's loader of every stream, from ``step`` on."""
    cache = None if config.data.cache is None else Cache(config.data.cache.path, config.data.cache.bytes)
    return Streams(
        {
            name: Loader(
                data.samples[name],
                data.orders[name],
                reads[name],
                batch=own.batch,
                rank=engine.rank,
                world_size=engine.world_size,
                bn_group=batching.bn_group,
                seed=stream_seed(config.seed, name),
                start_slot=step * own.batch,
                workers=own.workers,
                cache=cache,
                quarantine=quarantined.get(name, []),
                identity_N=None if data.people is None else numbered(data.samples[name], data.people),
            )
            for name, own in batching.streams.items()
        }
    )


def _saver(start: _Start) -> Saver:
    train = start.config.train
    return Saver(
        store.join(start.config.folder, "checkpoints"),
        rank=start.engine.rank,
        world_size=start.engine.world_size,
        attempt=start.attempt,
        keep=train.keep,
        keep_every=train.keep_every,
        best=None if train.best is None else (train.best.metric, train.best.mode),
        lease=start.lease,
    )


def _announce(
    start: _Start,
    origin: _Origin,
    system: System,
    batching: _Batching,
    precision: str | None,
    init_from: list[dict[str, Any]],
) -> None:
    """Print what this start trains and on what; ``precision`` is the checkpoint's."""
    config, engine = start.config, start.engine
    note = f"; stand-ins: {', '.join(system.stand_ins)}" if system.stand_ins else ""
    say(
        f"{config.name}: {count_parameters(system):,} trained parameters on {engine.world_size} x "
        f"{engine.device.type}, {engine.strategy}, {torch.get_num_threads()} threads, {engine.precision}, batch "
        f"{config.data.batch}, steps {origin.step} to {config.train.steps}{note}"
    )
    if precision not in (None, engine.precision):
        say(f"resuming in {engine.precision}: {origin.checkpoint} was trained in {precision}")
    for record in init_from if origin.checkpoint is None else []:
        say(f"init_from: {source_line(record)}")
    if any(difference.startswith("init_from:") for difference in origin.changed):
        say(f"init_from: ignored, because only a first start uses it and this run resumes from {origin.checkpoint}")
    if batching.micro_batch not in (None, config.train.micro_batch):
        say(f"train.micro_batch: {batching.micro_batch}, the largest that divides a rank's {batching.share} samples")
