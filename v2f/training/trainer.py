"""The loop: batch -> phases -> track -> save -> stop. No ``if`` on a system's name.

Everything is counted in samples seen (slots consumed); the position of a run is one integer, and every
random choice is keyed by (seed, slot), so a resumed run goes on as if nothing had happened (promises 1, 5).
What all ranks must do alike (skip a step, stop, save, give up) is decided from numbers that they have reduced or
gathered; rank 0 alone tracks, validates, and names what is wrong.
"""

import contextlib
import json
import os
import platform
import secrets
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, SupportsInt

import torch
from torch import Tensor
from tqdm import tqdm

from v2f import generate
from v2f.config import dump_yaml, flatten
from v2f.data.loader import Loader, check_batch, micro_batch_of, read_usable
from v2f.data.manifest import Samples, open_dataset
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.data.quarantine import Entry
from v2f.data.streams import Streams, joint_fingerprint, joint_people, numbered, side_by_side, stream_seed
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.evaluation import sheets
from v2f.nn.batchnorm import common_group
from v2f.runs import checkpoint
from v2f.runs.config import DataConfig, RunConfig, changes, what_is
from v2f.runs.folder import RunFolder
from v2f.runs.peers import alike, check_shared
from v2f.runs.run import build_system, check_shapes, check_weights, config_of, source_line, start_from, streams_of
from v2f.runs.saver import Saver, deal
from v2f.storage import local as files
from v2f.storage import store
from v2f.storage.cache import Cache
from v2f.storage.fencing import inherited, taken_up
from v2f.storage.lease import Lease, LostError
from v2f.system import Batch, System, by_stream, first_stream, trained
from v2f.tracking.tracker import NOTE, ROLLED_BACK, Tracker, read_state, roll_back, say
from v2f.training.profiling import Profiler
from v2f.training.stopping import REASONS, TAKEN, GivenUpError, Stopped, Watchdog
from v2f.training.window import Clock, Norms, SlotLog, Window

_NO_PARAMETER = ("name", "out", "tracking.")  # MLflow has them as the run's name, tag and experiment
QUARANTINE = "quarantine.jsonl"
_HURRY_S = 5.0  # for MLflow, after a stop: the next start delivers the rest, and a scheduler's patience is short
_WATCHED = 32  # samples of a validation batch at most
_HISTORY = 200  # logged points of each number that a system's verdict looks at


@dataclass
class _Job:
    """What the loop works with. ``fingerprint`` is the data's; ``lease``, ``tracker``, ``watched`` (the validation
    batches), ``left_out`` (samples that these would have, could they be used) and ``history`` are rank 0's. ``meters``
    are those of the step ``measured_at``. ``init_from``: what the run started from (:func:`v2f.runs.run.start_from`).
    """

    config: RunConfig
    folder: RunFolder
    lease: Lease | None
    engine: Engine
    system: System
    fingerprint: str
    loader: Streams
    saver: Saver
    tracker: Tracker | None
    watched: list[Batch]
    left_out: int
    step: int
    micro_batch: int | None
    clock: Clock
    norms: Norms
    slots: SlotLog | None
    init_from: list[dict[str, Any]] = field(default_factory=list)
    meters: dict[str, float] = field(default_factory=dict)
    measured_at: int | None = None
    history: dict[str, deque[float]] = field(default_factory=dict)
    failed_saves: int = 0


def fit(config: RunConfig, resume: str = "none", *, allow_changes: bool = False, wish: SupportsInt = 0) -> str:
    """Train as ``config`` says and return the run's folder. Collective over the ranks of the launcher.

    ``resume``: ``auto`` goes on from the newest committed checkpoint of the run's folder, or starts where there
    is none; ``none`` starts, and refuses a folder that holds a run. A run goes on under another configuration only
    with ``allow_changes``. Once ``wish`` (a :class:`~v2f.training.stopping.Wish`) of any rank is not 0, all ranks save
    after the same step and raise :class:`~v2f.training.stopping.Stopped`.

    A run belongs to one start at a time: :class:`~v2f.storage.lease.HeldError` where another one that lives has it,
    :class:`~v2f.storage.lease.LostError` where another one has taken it over, or its folder is gone.
    """
    local, rank = str(RunFolder(config.folder).local), int(os.environ.get("RANK", "0"))
    with Watchdog(config.train.watchdog_minutes, local, rank) as watchdog, contextlib.ExitStack() as owned:
        job = _prepare(config, resume, allow_changes, wish, owned)
        watchdog.alive()
        return _fit(job, wish, watchdog)


def _fit(job: _Job, wish: SupportsInt, watchdog: Watchdog) -> str:
    config = job.config
    engine, system, train, batch_size = job.engine, job.system, config.train, config.data.batch
    window, stop, skipped_in_a_row = Window(), 0, dict.fromkeys((phase.name for phase in system.phases()), 0)
    system.train()
    bar = tqdm(total=train.steps, initial=job.step, desc=config.name, unit="step", disable=engine.rank != 0)
    profiler = Profiler(str(job.folder.local), engine.rank)
    profiler.install()
    with (
        bar,
        _published(job),
        job.loader,
        job.saver,
        job.tracker or contextlib.nullcontext(),
        contextlib.closing(profiler),
        contextlib.closing(job.slots) if job.slots is not None else contextlib.nullcontext(),
    ):
        if 0 < job.step < train.steps and job.step % train.validate_every == 0 and job.measured_at != job.step:
            _validate(job)  # whoever was stopped here had no time for it
            window.restart()
            watchdog.alive()
        batches = iter(job.loader)
        while job.step < train.steps and not stop:
            with window.waiting():
                batch = next(batches)
            seen, total = job.step * batch_size, train.steps * batch_size
            with window.stepping():
                for phase in system.phases():
                    if job.step % phase.every:
                        continue
                    result = engine.step(
                        phase,
                        batch,
                        job.step,
                        micro_batch=job.micro_batch,
                        seen=seen,
                        total=total,
                        limit=job.norms.limit(phase.name),
                        stop=TAKEN if job.lease is not None and job.lease.lost else int(wish),
                    )
                    job.norms.add(phase.name, result.grad_norm)
                    window.add(phase.name, result)
                    stop = max(stop, result.stop)
                    skipped_in_a_row[phase.name] = skipped_in_a_row[phase.name] + 1 if result.skipped else 0
                    if skipped_in_a_row[phase.name] >= train.max_skipped:
                        raise _given_up(job, batch, phase.name, result.skipped, train.max_skipped)
            if stop == TAKEN:
                raise _taken(job)
            if job.slots is not None:
                job.slots.write(job.step, batch)
            job.step += 1
            job.clock.step(window.count(batch_size))
            watchdog.alive()
            bar.update()
            profiler.step(job.step)
            _tell_saves(job)
            last = job.step == train.steps
            save = last or bool(stop) or job.step % train.checkpoint_every == 0
            if last or stop or job.step % train.log_every == 0:
                _log(job, bar, window)
            # A checkpoint is the best by what was measured on it. Who is stopped has no time for that.
            due = job.step % train.validate_every == 0 or (save and train.best is not None)
            if last or (due and not stop):
                _validate(job)
                window.restart()
                watchdog.alive()
            if save:
                _save(job, wait=last or bool(stop))
                window.restart()
                watchdog.alive()
        if job.tracker is not None and job.step < train.steps:
            job.tracker.status, job.tracker.patience_s = "SCHEDULED", _HURRY_S
    watchdog.alive()
    engine.close()
    if stop and job.step < train.steps:
        raise Stopped(f"{REASONS[stop]}: saved at step {job.step} of {train.steps}; go on with --resume auto")
    return config.folder


@contextlib.contextmanager
def _published(job: _Job) -> Iterator[None]:
    """Whichever way the run ends, what has grown is put to its prefix; a store that is away takes nothing from that."""
    try:
        yield
    finally:
        try:
            if job.lease is not None:
                with job.lease.holding():
                    job.folder.publish()
        except LostError:
            pass  # it is told already, and what is there is another's
        except V2FError as error:
            say(f"{error}; the newest points and pictures are in {job.folder.local}; the next start here takes them")


def _taken(job: _Job) -> LostError:
    """Why the run is no more this start's; collective, and so the same error on all ranks."""
    lost = job.lease.lost if job.lease is not None else None
    why, gone = job.engine.gather((str(lost), lost is not None and lost.gone))[0]
    return LostError(why, gone=gone)


def _own(config: RunConfig, engine: Engine, wish: SupportsInt, owned: contextlib.ExitStack) -> Lease | None:
    """Rank 0's lease on the run, which ends with ``owned``; all ranks leave alike where another start has it."""
    lease: Lease | None = None

    def take() -> None:
        nonlocal lease
        if engine.rank == 0:
            root, stopped = store.join(config.folder, "checkpoints"), lambda: bool(int(wish))
            lease = Lease.take(root, "a training", note=inherited, say=say, interrupted=stopped)
            owned.enter_context(lease)

    alike(engine, take)
    return lease


def _prepare(
    config: RunConfig, resume: str, allow_changes: bool, wish: SupportsInt, owned: contextlib.ExitStack
) -> _Job:
    """Build everything from the configuration and, where the run goes on, from its newest checkpoint. What is the
    run's alone ends with ``owned``."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    engine = Engine(config.train.precision, config.train.strategy, patience_minutes=config.train.watchdog_minutes)
    attempt = engine.gather(f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}")[0]
    folder = RunFolder(config.folder)
    lease = _own(config, engine, wish, owned)
    found, changed = _take_up(config, resume, engine, folder, lease, attempt, allow_changes)
    ordered = {name: _ordered(data, stream_seed(config.seed, name)) for name, data in config.data.by_stream().items()}
    fingerprint = joint_fingerprint({name: own for name, (own, _, _) in ordered.items()})
    order_fingerprint = joint_fingerprint({name: order.fingerprint for name, (_, _, order) in ordered.items()})
    people = joint_people(split for _, split, _ in ordered.values()) if config.data.streams is not None else None
    system = build_system(config)
    init_from = start_from(config, system, engine) if found is None else []
    streams = streams_of(config, system)
    bn_group = common_group(trained(system).values())
    for name, data in streams.items():
        check_batch(data.batch, engine.world_size, bn_group, name)
    share, *others = [data.batch // engine.world_size for data in streams.values()]
    micro_batch = micro_batch_of(share, config.train.micro_batch, bn_group, others)
    engine.wrap(system, share=share, micro_batch=micro_batch, seed=config.seed)
    state: dict[str, Any] = {}
    if found is not None:
        tensors, state = checkpoint.load(found, peers=engine)
        trained_on = checkpoint.needed(state, "fingerprint", found)
        if trained_on != fingerprint:
            raise V2FError(f"{config.data.home}: its fingerprint is {fingerprint}, {trained_on} in {found}")
        if state.get("order", order_fingerprint) != order_fingerprint:
            raise V2FError(
                f"the order of the samples is not that of {found}: data.mix, data.streams, data.batch, "
                "data.partitions, data.window or seed differs; resume with what it was trained with"
            )
        check_weights(system, state, found)
        init_from = state.get("init_from", [])
        engine.load(system, tensors, found)
        del tensors
    step = 0 if found is None else checkpoint.step_of(found)
    quarantine: dict[str, list[int]] = {"": state.get("quarantine", []), **state.get("quarantines", {})}
    cache = None if config.data.cache is None else Cache(config.data.cache.path, config.data.cache.bytes)
    reads = system.streams()
    loader = Streams(
        {
            name: Loader(
                ordered[name][1],
                ordered[name][2],
                reads[name],
                batch=data.batch,
                rank=engine.rank,
                world_size=engine.world_size,
                bn_group=bn_group,
                seed=stream_seed(config.seed, name),
                start_slot=step * data.batch,
                workers=data.workers,
                cache=cache,
                quarantine=quarantine.get(name, []),
                identity_N=None if people is None else numbered(ordered[name][1], people),
            )
            for name, data in streams.items()
        }
    )
    train = config.train
    saver = Saver(
        store.join(config.folder, "checkpoints"),
        rank=engine.rank,
        world_size=engine.world_size,
        attempt=attempt,
        keep=train.keep,
        keep_every=train.keep_every,
        best=None if train.best is None else (train.best.metric, train.best.mode),
        lease=lease,
    )
    tracker, watched, left_out, starts = None, [], 0, 1
    if engine.rank == 0:
        store.write_bytes(store.join(folder.path, "config.yaml"), dump_yaml(config).encode())
        note = f"; stand-ins: {', '.join(system.stand_ins)}" if system.stand_ins else ""
        say(
            f"{config.name}: {_numbers(system):,} trained parameters on {engine.world_size} x {engine.device.type}, "
            f"{engine.strategy}, {torch.get_num_threads()} threads, {engine.precision}, batch {config.data.batch}, "
            f"steps {step} to {train.steps}{note}"
        )
        if state.get("precision", engine.precision) != engine.precision:
            say(f"goes on in {engine.precision}: {found} was trained in {state['precision']}")
        for record in init_from if found is None else []:
            say(f"init_from: {source_line(record)}")
        if any(difference.startswith("init_from:") for difference in changed):
            say(f"init_from is for a first start: nothing new is taken, the run goes on from {found}")
        if micro_batch not in (None, train.micro_batch):
            say(f"train.micro_batch: {micro_batch}, the most that divides a rank's {share} samples")
        starts = _note_start(folder, attempt, engine, step, changed)
        tracker = _start(config, folder, engine, system, loader, fingerprint, init_from, state.get("run_id"))
        _name_again(folder.local, quarantine)
        batches, left_out = _validation(config, streams, system, people, min(_WATCHED, micro_batch or share))
        watched = [engine.place(batch) for batch in batches]
    slots = SlotLog(folder.local, attempt, engine.rank) if train.sample_log else None
    return _Job(
        config,
        folder,
        lease,
        engine,
        system,
        fingerprint,
        loader,
        saver,
        tracker,
        watched,
        left_out,
        step,
        micro_batch=micro_batch,
        clock=Clock(state.get("clock"), starts),
        norms=Norms(train.spike_sigma, state.get("norms", {})),
        slots=slots,
        init_from=init_from,
        meters=state.get("metrics", {}),
        measured_at=state.get("measured_at"),
    )


def _ordered(config: DataConfig, seed: int) -> tuple[str, Samples, Order | MixOrder]:
    """What a stream is trained on: its fingerprint, it, and in which order."""
    kind = {"seed": seed, "batch": config.batch, "partitions": config.partitions, "window": config.window}
    if config.mix is None:
        split = open_dataset(config.home).split(config.split)
        return split.dataset.fingerprint, split, Order.for_batches(split.shard_sizes, data=split.fingerprint, **kind)
    splits = [open_dataset(source.path).split(source.split or config.split) for source in config.mix]
    weights = [source.weight for source in config.mix]
    sizes, names = [split.shard_sizes for split in splits], [split.fingerprint for split in splits]
    mixed = Union(splits)
    return mixed.fingerprint, mixed, MixOrder(sizes, weights, data=names, **kind)


def _validation(
    config: RunConfig,
    streams: Mapping[str, DataConfig],
    system: System,
    people: Mapping[str, int] | None,
    size: int,
) -> tuple[list[Batch], int]:
    """The batches of a validation, of ``size`` samples (of the first stream) at most; each stream's are of its own
    data, in the proportion of training, numbered as ``people``. Nothing stands in here: what cannot be used is left
    out, counted, and said."""
    left_out: list[str] = []
    most = config.train.validate_samples
    found: dict[str, list[Batch]] = {}
    for name, data in streams.items():
        if data.valid is None:
            return [], 0
        dataset = open_dataset(data.home)
        if data.valid not in dataset.splits:
            say(f"{data.home} has no split {data.valid!r}: no meters and no samples while training")
            return [], 0
        split = dataset.split(data.valid)
        own_size, limit = (max(1, count * data.batch // config.data.batch) for count in (size, most))
        if found:  # as many batches as the first stream has, or some of its samples would be met by none
            parts = max(1, len(next(iter(found.values()))))
            own_size = max(1, min(own_size, min(limit, split.samples) // parts))
            limit = own_size * parts
        identity_N = None if people is None else numbered(split, people)
        reads = system.streams()[name]
        found[name] = list(read_usable(split, reads, own_size, left_out, limit=limit, identity_N=identity_N))
    if left_out:
        say(f"validation leaves out {len(left_out)} samples that cannot be used, the first: {left_out[0]}")
    return list(side_by_side(found)), len(left_out)


def _take_up(
    config: RunConfig,
    resume: str,
    engine: Engine,
    folder: RunFolder,
    lease: Lease | None,
    attempt: str,
    allow_changes: bool,
) -> tuple[str | None, list[str]]:
    """The checkpoint to go on from, and what the configuration has changed since; rank 0 refuses what must not be
    overwritten, and fetches what lies elsewhere."""
    if resume not in ("auto", "none"):
        raise V2FError(f"--resume {resume}: auto or none")
    checkpoints = store.join(folder.path, "checkpoints")

    def look() -> tuple[str | None, list[str]]:
        if engine.rank != 0:
            return None, []
        newest = checkpoint.latest(checkpoints)
        if resume == "none" and (newest is not None or store.exists(store.join(folder.path, "config.yaml"))):
            raise V2FError(
                f"{folder.path}: a run is there already; go on with --resume auto, or choose another name or out="
            )
        # Against what the checkpoint was trained with: a start that came to none has trained nothing.
        changed = [] if newest is None else changes(config_of(newest), config)
        if newest is not None and changed:
            check_shapes(config, checkpoint.shapes_of(newest), newest)
        if changed and not allow_changes:
            raise V2FError(
                f"{folder.path}: the configuration changed, {'; '.join(changed)}; resume with the old one, start "
                "under another name, or allow it with --allow-changes"
            )
        if lease is not None:
            lease.keep(taken_up(lease.note, checkpoint.step_of(newest) if newest else 0))
        folder.fetch(attempt)
        return newest, changed

    found, changed = alike(engine, look)[0]
    check_shared(checkpoints, rank=engine.rank, gather=engine.gather)
    return found, changed


def _note_start(folder: RunFolder, attempt: str, engine: Engine, step: int, changed: list[str]) -> int:
    """A line for this start: what earlier starts logged from its step on does not count. How many starts there are."""
    for difference in changed:
        say(f"changed and allowed: {difference}")
    if again := roll_back(str(folder.local), step):
        say(f"steps after {step} are trained again: what was logged of them ({again} lines) is now in {ROLLED_BACK}")
    facts = {"attempt": attempt, "step": step, "time": time.time(), "world_size": engine.world_size}
    facts |= {"strategy": engine.strategy, "changed": changed}
    path = folder.local / "starts.jsonl"
    files.append_line(path, json.dumps(facts))
    return store.read_bytes(str(path)).count(b"\n")


def _start(
    config: RunConfig,
    folder: RunFolder,
    engine: Engine,
    system: System,
    loader: Streams,
    fingerprint: str,
    init_from: list[dict[str, Any]],
    run_id: str | None,
) -> Tracker:
    """The tracker, and ``run.json``: what identifies the run. ``run_id``: MLflow's, as the checkpoint knows it."""
    info = {
        "name": config.name,
        "system": config.system.name,
        "fingerprint": fingerprint,
        "data": ", ".join(dict.fromkeys(source.path for source in config.data.sources)),
        "stand_ins": ", ".join(system.stand_ins) or "none",
        "weights": dict(system.weights),
        "init_from": init_from,
        "code": _code_version(),
        "world_size": engine.world_size,
        "strategy": engine.strategy,
        "precision": engine.precision,
        "device": _device(engine),
        "versions": _versions(),
    }
    store.write_bytes(store.join(folder.path, "run.json"), json.dumps(info, indent=1).encode())
    tags = {f"v2f.{k}": v for k, v in info.items() if isinstance(v, str)}
    if init_from:
        tags["v2f.init_from"] = "; ".join(map(source_line, init_from))
    tags["v2f.out"] = folder.path if folder.remote else str(folder.local.resolve())
    return Tracker(
        str(folder.local),
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        name=config.name,
        parameters={key: value for key, value in flatten(config).items() if not key.startswith(_NO_PARAMETER)},
        tags=tags
        | {"mlflow.source.git.commit": info["code"].split("+")[0], NOTE: _description(config, system, loader)},
        datasets=[
            {
                "name": _last_part(dataset.root),
                "digest": dataset.fingerprint[:32],  # as much as MLflow takes; whole, it is a tag
                "source": dataset.root,
                "profile": {name: size.model_dump() for name, size in dataset.manifest.splits.items()},
            }
            for dataset in {d.root: d for own in loader.loaders.values() for d in own.split.datasets}.values()
        ],
        run_id=read_state(str(folder.local)).get("run_id") or run_id,
    )


def _description(config: RunConfig, system: System, loader: Streams) -> str:
    """What MLflow's page of the run says first, in Markdown."""
    train, batch = config.train, config.data.batch
    epochs = []
    for own in loader.loaders.values():
        data = ", ".join(f"`{_last_part(dataset.root)}`" for dataset in own.split.datasets)
        count = own.split.samples
        epochs.append(f"{train.steps * own.batch / count:.1f} epochs of the {count:,} of {data}")
    nets = f"Stand-ins ({', '.join(system.stand_ins)}): its numbers and faces hold for the synthetic world only."
    lines = [
        f"**{what_is(config.system.name)}**",
        f"{_numbers(system):,} trained parameters; {train.steps:,} steps of {batch}: {train.steps * batch:,} samples "
        f"seen, {', and '.join(epochs)}.",
        *([nets] if system.stand_ins else []),
        "The axis of every curve here is samples seen, whatever it is called; `step` is the optimizer's.",
        "A face estimated from a voice is no photograph and no evidence: do not use it to identify or to judge anyone.",
    ]
    return "\n\n".join(lines)


def _numbers(system: System) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for module in trained(system).values() for p in module.parameters())


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _log(job: _Job, bar: "tqdm[Any]", window: Window) -> None:
    """The window's means over all ranks, and what each rank did alone; collective."""
    samples = job.step * job.config.data.batch
    every = job.engine.gather(window.take(job.loader))
    _share_quarantine(job)
    if job.tracker is None or not _still_ours(job):
        return
    numbers = {name: statistics.fmean(rank[name] for rank in every) for name in every[0]}
    forward = [rank["time/forward_seconds"] for rank in every]
    if len(every) > 1:
        numbers["skew/forward_slowest_over_median"] = max(forward) / max(statistics.median(forward), 1e-9)
        numbers["skew/slowest_rank"] = float(forward.index(max(forward)))
        numbers["skew/data_wait_most"] = max(rank["speed/data_wait_share"] for rank in every)
    numbers |= {"data/quarantined": sum(map(len, job.loader.quarantined.values())), "data/valid_left_out": job.left_out}
    numbers |= job.clock.numbers() | {"checkpoint/failed": job.failed_saves, "tracking/seconds": job.tracker.seconds}
    for name, value in numbers.items():
        job.history.setdefault(name, deque(maxlen=_HISTORY)).append(value)
    job.tracker.log(job.step, samples, numbers)
    job.tracker.log_system(job.step, samples)
    losses = {k.split("/", 1)[1]: f"{v:.3f}" for k, v in numbers.items() if k.startswith("loss/")}
    if len(job.system.phases()) == 1:
        losses = {k.split("/", 1)[1]: v for k, v in losses.items()}
    bar.set_postfix(losses, refresh=False)


def _validate(job: _Job) -> None:
    """Collapse meters, losses and a grid of samples, by rank 0, from the averaged weights and batches that stay."""
    if job.tracker is None or not job.watched or not _still_ours(job):
        return
    system = job.system
    losses: dict[str, float] = {}
    with job.engine.evaluating(system, size=max(len(first_stream(batch)["slot"]) for batch in job.watched)):
        meters = dict(system.meters(job.watched))
        for phase in system.phases():
            found = job.engine.losses(phase, job.watched, job.step)
            losses |= {f"loss/{phase.name}/{part}": value for part, value in found.items()}
        pictures = _shown(system, job.watched, job.config.train.validate_pictures)
    job.meters, job.measured_at = meters | losses, job.step
    named = {f"valid/{k}": v for k, v in job.meters.items()}
    job.tracker.log(job.step, job.step * job.config.data.batch, named, "validation")
    best = job.config.train.best
    if best is not None and best.metric not in job.meters:
        say(
            f"step {job.step}: train.best.metric: {best.metric} is no meter, so no checkpoint is kept as the best; "
            f"there are {', '.join(sorted(job.meters))}"
        )
    verdict = system.verdict(meters, job.history)
    if verdict:
        say(f"step {job.step}: {verdict}")
    made = sheets.sheet(system, pictures, generate.notes(job.config.name, system, job.step))
    if made is None:
        return
    suffix, content = made
    path = job.folder.local / "samples" / f"step-{job.step:08d}{suffix}"
    try:
        with files.explained(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    except V2FError as error:
        say(f"{error}; training goes on")
        return
    job.tracker.picture(job.step, job.step * job.config.data.batch, str(path), "samples")


def _still_ours(job: _Job) -> bool:
    """Whether rank 0 may write into the run's folder: after it was paused, another start may have taken the run."""
    try:
        if job.lease is not None:
            job.lease.look()
    except LostError:
        return False  # the next step tells all ranks
    return True


def _shown(system: System, batches: list[Batch], left: int) -> dict[str, Tensor]:
    """What the system makes of the first ``left`` samples of the batches (of its first stream), a batch at a time."""
    parts: list[dict[str, Tensor]] = []
    for batch in map(first_stream, batches):
        parts.append(system.sample({k: v[:left] for k, v in batch.items()}))
        left -= len(batch["key"])
        if left <= 0:
            break
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _share_quarantine(job: _Job) -> None:
    """Every rank learns what each has put into quarantine, and rank 0 names it; too much of it stops the run.

    Collective, and so the same error on all ranks. What the ranks know is the same at every checkpoint.
    """
    loaders, allowed = job.loader.loaders, job.config.data.max_bad_fraction
    gathered = job.engine.gather({stream: loader.quarantine.news() for stream, loader in loaders.items()})
    for stream, loader in loaders.items():
        quarantine, split = loader.quarantine, loader.split
        news = sorted((entry for rank in gathered for entry in rank[stream]), key=lambda entry: entry.slot)
        if not news:
            continue
        quarantine.adopt(news)
        if job.tracker is not None:
            _name(job.folder.local, news, stream)
            of = f" of the stream {stream}" if stream else ""
            say(f"step {job.step}: {len(quarantine)} samples{of} are in quarantine; the newest: {news[-1]}")
        if len(quarantine) > allowed * split.samples:
            raise GivenUpError(
                f"{len(quarantine)} of the {split.samples} samples of {split.name} cannot be used, more than "
                f"data.max_bad_fraction={allowed:g} allows; {'; '.join(map(str, news[:3]))}; all are in "
                f"{store.join(job.folder.path, QUARANTINE)}; `v2f shards verify` lists all damage: mend it, or allow "
                "more"
            )


def _name(folder: Path, entries: list[Entry], stream: str) -> None:
    path, of = folder / QUARANTINE, {"stream": stream} if stream else {}
    try:
        files.append_line(path, "\n".join(json.dumps(asdict(entry) | of) for entry in entries))
    except V2FError as error:  # the checkpoint holds the numbers, too
        say(f"{error}; training goes on")


def _name_again(folder: Path, quarantine: Mapping[str, list[int]]) -> None:
    """Leave in the list what the checkpoint holds of each stream: what a killed run met after it will be met again."""
    path = folder / QUARANTINE
    if not path.exists():
        return
    known, kept = {(stream, number) for stream, numbers in quarantine.items() for number in numbers}, {}
    for line in store.read_bytes(str(path)).decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):  # a kill may have cut a line
            entry: dict[str, Any] = dict(json.loads(line))
            which = entry.get("stream", ""), entry["number"]
            if which in known:
                kept[which] = line + "\n"
    store.write_bytes(str(path), "".join(kept.values()).encode())


def _given_up(job: _Job, batch: Batch, phase: str, why: str, times: int) -> GivenUpError:
    """Skipped too often: name the batch of all ranks in a file; collective."""
    own = {name: {"key": list(b["key"]), "slot": b["slot"].tolist()} for name, b in by_stream(batch).items()}
    batches = job.engine.gather(own.get("", own))
    name = f"bad-batch-step-{job.step:08d}.json"
    path = store.join(job.folder.path, name)
    if job.engine.rank == 0:
        found = {"step": job.step, "phase": phase, "skipped_for": why, "ranks": batches}
        content = json.dumps(found, indent=1).encode()
        try:
            store.write_bytes(path, content)
        except V2FError as error:
            path = str(job.folder.local / name)
            store.write_bytes(path, content)
            say(f"{error}; instead it is in {path}")
    what = "the gradient is a spike" if why == "spike" else f"the {why} is not finite"
    return GivenUpError(
        f"step {job.step}, phase {phase}: {what} for {times} steps in a row; lower the rate or clip harder "
        f"(samples: {', '.join(first_stream(batches[0])['key'][:4])} ...; all are in {path})"
    )


def _save(job: _Job, wait: bool) -> None:
    """Hand a checkpoint to the thread that writes it, and with ``wait`` see it committed; collective.

    While one is still being written on some rank, the next is left out on all, and that is said.
    """
    config, engine, saver = job.config, job.engine, job.saver
    _share_quarantine(job)
    if wait:
        saver.wait()
        _tell_saves(job)
    if any(engine.gather(saver.busy)):
        if engine.rank == 0:
            say(f"step {job.step}: the checkpoint before is still being written, so this one is left out")
        return
    quarantined = job.loader.quarantined
    state = {
        "step": job.step,
        "slot": job.step * config.data.batch,
        "fingerprint": job.fingerprint,
        "order": job.loader.fingerprint,
        "quarantine": quarantined.get("", []),
        "quarantines": {name: numbers for name, numbers in quarantined.items() if name},
        "weights": dict(job.system.weights),
        "init_from": job.init_from,
        "config": config.model_dump(mode="json"),
        "run_id": job.tracker.run_id if job.tracker else None,
        "versions": _versions(),
        "precision": engine.precision,
        "metrics": job.meters,
        "measured_at": job.measured_at,
        "clock": job.clock.state(),
        "norms": job.norms.past,
    }
    shares = deal(engine.sizes(job.system), engine.world_size)
    mine = engine.copy(job.system, shares[engine.rank])
    saver.start(job.step, shares, mine, state, job.folder.publish)
    if wait:
        saver.wait()
        before = job.failed_saves
        _tell_saves(job)
        if any(engine.gather(job.lease is not None and job.lease.lost is not None)):
            raise _taken(job)
        if any(engine.gather(job.failed_saves > before)):
            raise _UnsavedError(
                f"step {job.step}: this checkpoint could not be written; start again with --resume auto"
            )


class _UnsavedError(V2FError):
    again = True


def _tell_saves(job: _Job) -> None:
    """Say what the saving thread has done since; a failed save costs nothing but the checkpoint."""
    for folder in job.saver.take_committed():
        say(f"step {checkpoint.step_of(folder)}: saved {folder}")
    for failure in job.saver.take_failures():
        job.failed_saves += 1
        say(f"rank {job.engine.rank}: {failure}; training goes on, the checkpoint before is whole")


def _code_version() -> str:
    """The commit of the source tree, with ``+dirty`` where it differs from it, else the package's version.

    Without a lock: a training that is killed just then would leave it behind, and stop its owner's next commit.
    """
    here = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "--", "."],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"v2f-{version('v2f')}"
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{p: version(p) for p in ("v2f", "torch", "accelerate", "deepspeed", "webdataset", "numpy")},
    }


def _device(engine: Engine) -> str:
    return (
        torch.cuda.get_device_name(engine.device)
        if engine.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
