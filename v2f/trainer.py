"""The loop: batch -> phases -> track -> save. No ``if`` on a system's name.

Everything is counted in samples seen (slots consumed); the position of a run is one integer, and every
random choice is keyed by (seed, slot), so a resumed run goes on as if nothing had happened (promises 1, 5).
"""

import contextlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from v2f import checkpoint, metrics, store
from v2f.cache import Cache
from v2f.config import dump_yaml, flatten
from v2f.data.loader import Loader, read_usable
from v2f.data.manifest import Samples, open_dataset
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.data.quarantine import Entry
from v2f.engine import Engine, StepResult
from v2f.errors import V2FError
from v2f.nn.batchnorm import ghost_norms
from v2f.run import DataConfig, Run, RunConfig, build_system, check_weights
from v2f.system import Batch, System, trained
from v2f.tracking import Tracker, read_state, say

# What may differ when a run goes on: it changes neither the function that is trained nor its order. Weights that the
# user brings may lie elsewhere; their checksums are compared.
_FREE = (
    "out",
    "data.path",
    "data.mix",  # what it changes is in the order's fingerprint
    "data.cache",
    "data.max_bad_fraction",
    "system.frozen.path",
    *(
        f"system.frozen.{role}.{key}"
        for role in ("generator", "identity", "perceptual", "codes")
        for key in ("file", "sha256")
    ),
    "data.workers",
    "tracking.",
    "train.threads",
    "train.micro_batch",
    "train.log_every",
    "train.validate_",
    "train.checkpoint_every",
    "train.keep",
    "train.max_skipped",
)


QUARANTINE = "quarantine.jsonl"


@dataclass
class _Job:
    """What the loop works with. ``fingerprint`` is the data's; ``tracker``, ``watched`` (the validation batches) and
    ``left_out`` (samples that these would have, could they be used) are rank 0's."""

    config: RunConfig
    engine: Engine
    system: System
    fingerprint: str
    loader: Loader
    tracker: Tracker | None
    watched: list[Batch]
    left_out: int
    step: int


def fit(config: RunConfig, resume: str = "none") -> str:
    """Train as ``config`` says and return the run's folder. Collective over the ranks of the launcher.

    ``resume``: ``auto`` goes on from the newest committed checkpoint of the run's folder, or starts where there
    is none; ``none`` starts, and refuses a folder that holds a run.
    """
    job = _prepare(config, resume)
    engine, system, train, batch_size = job.engine, job.system, config.train, config.data.batch
    window = _Window()
    skipped_in_a_row = 0
    system.train()
    bar = tqdm(total=train.steps, initial=job.step, desc=config.name, unit="step", disable=engine.rank != 0)
    with bar, job.loader, job.tracker or contextlib.nullcontext():
        batches = iter(job.loader)
        while job.step < train.steps:
            with window.waiting():
                batch = next(batches)
            for phase in system.phases():
                if job.step % phase.every:
                    continue
                seen, total = job.step * batch_size, train.steps * batch_size
                result = engine.step(phase, batch, job.step, micro_batch=train.micro_batch, seen=seen, total=total)
                window.add(phase.name, result)
                skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
                if skipped_in_a_row >= train.max_skipped:
                    raise V2FError(
                        f"step {job.step}: loss or gradient is not finite for {skipped_in_a_row} steps in a row; "
                        f"lower the rate or clip harder (samples: {', '.join(batch['key'][:4])} ...)"
                    )
                if not result.skipped:
                    system.after_step(phase.name)
            job.step += 1
            window.count(batch_size)
            bar.update()
            last = job.step == train.steps
            if last or job.step % train.log_every == 0:
                numbers = engine.reduce_mean(window.take(job.loader))
                _share_quarantine(job)
                bad = {"data/quarantined": len(job.loader.quarantine), "data/valid_left_out": job.left_out}
                _log(job, bar, numbers | bad)
            if last or job.step % train.validate_every == 0:
                _validate(job)
                window.restart()
            if last or job.step % train.checkpoint_every == 0:
                _save(job)
                window.restart()
    engine.close()
    return config.folder


def _prepare(config: RunConfig, resume: str) -> _Job:
    """Build everything from the configuration and, where the run goes on, from its newest checkpoint."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    engine = Engine(config.train.precision)
    found = _take_up(config, resume, engine)
    fingerprint, split, order = _ordered(config.data, config.seed)
    system = build_system(config)
    engine.wrap(system)
    step, quarantine = 0, []
    if found is not None:
        tensors, state = checkpoint.load(found)
        if state["fingerprint"] != fingerprint:
            raise V2FError(f"{config.data.home}: its fingerprint is {fingerprint}, {state['fingerprint']} in {found}")
        if state.get("order", order.fingerprint) != order.fingerprint:
            raise V2FError(f"data.mix: sources or weights are not those of {found}, so that the order is another one")
        check_weights(system, state, found)
        engine.load(system, tensors, found)
        step, quarantine = state["step"], state.get("quarantine", [])
    loader = Loader(
        split,
        order,
        system.transforms(),
        batch=config.data.batch,
        rank=engine.rank,
        world_size=engine.world_size,
        bn_group=math.lcm(*(norm.group for module in trained(system).values() for norm in ghost_norms(module))),
        seed=config.seed,
        start_slot=step * config.data.batch,
        workers=config.data.workers,
        cache=None if config.data.cache is None else Cache(config.data.cache.path, config.data.cache.bytes),
        quarantine=quarantine,
    )
    tracker, watched, left_out = None, [], 0
    if engine.rank == 0:
        parameters = sum(p.numel() for m in trained(system).values() for p in m.parameters())
        note = f"; stand-ins: {', '.join(system.stand_ins)}" if system.stand_ins else ""
        say(
            f"{config.name}: {parameters:,} trained parameters on {engine.world_size} x {engine.device.type}, "
            f"{torch.get_num_threads()} threads, {config.train.precision}, batch {config.data.batch}, "
            f"steps {step} to {config.train.steps}{note}"
        )
        tracker = _start(config, engine, system, fingerprint)
        _name_again(config.folder, quarantine)
        batches, left_out = _validation(config, system)
        watched = [engine.place(batch) for batch in batches]
    return _Job(config, engine, system, fingerprint, loader, tracker, watched, left_out, step)


def _ordered(config: DataConfig, seed: int) -> tuple[str, Samples, Order | MixOrder]:
    """What is trained on, its fingerprint, and in which order."""
    kind = {"seed": seed, "batch": config.batch, "partitions": config.partitions, "window": config.window}
    if config.mix is None:
        split = open_dataset(config.home).split(config.split)
        return split.dataset.fingerprint, split, Order.for_batches(split.shard_sizes, data=split.fingerprint, **kind)
    splits = [open_dataset(source.path).split(source.split or config.split) for source in config.mix]
    weights = [source.weight for source in config.mix]
    sizes, names = [split.shard_sizes for split in splits], [split.fingerprint for split in splits]
    mixed = Union(splits)
    return mixed.fingerprint, mixed, MixOrder(sizes, weights, data=names, **kind)


def _validation(config: RunConfig, system: System) -> tuple[list[Batch], int]:
    """The batches that the meters watch. Nothing stands in here: what cannot be used is left out, counted, and said."""
    data = config.data
    if data.valid is None:
        return [], 0
    dataset = open_dataset(data.home)
    if data.valid not in dataset.splits:
        say(f"{data.home} has no split {data.valid!r}: no meters and no samples while training")
        return [], 0
    left_out: list[str] = []
    split, limit = dataset.split(data.valid), config.train.validate_samples
    batches = list(read_usable(split, system.transforms(), 32, left_out, limit=limit))
    if left_out:
        say(f"validation leaves out {len(left_out)} samples that cannot be used, the first: {left_out[0]}")
    return batches, len(left_out)


def _take_up(config: RunConfig, resume: str, engine: Engine) -> str | None:
    """The checkpoint to go on from; rank 0 refuses what must not be overwritten and writes the configuration."""
    if resume not in ("auto", "none"):
        raise V2FError(f"--resume {resume}: auto or none")
    out = config.folder
    if "://" in out:
        raise V2FError(f"out: {out}: a run is written to a folder that its ranks share")
    if engine.rank == 0:
        there = store.join(out, "config.yaml")
        if store.exists(there):
            if resume == "none":
                raise V2FError(
                    f"{out}: a run is there already; go on with --resume auto, or choose another name or out="
                )
            _refuse_changes(Run(out).config, config, out)
        store.write_bytes(there, dump_yaml(config).encode())
    engine.barrier()
    return checkpoint.latest(store.join(out, "checkpoints")) if resume == "auto" else None


def _refuse_changes(before: RunConfig, now: RunConfig, out: str) -> None:
    """A resumed run trains the same function; what differs is shown."""
    old, new = flatten(before), flatten(now)
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and not k.startswith(_FREE)]
    if changed:
        shown = "; ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed[:5])
        more = f" (and {len(changed) - 5} more)" if len(changed) > 5 else ""
        raise V2FError(
            f"{out}: the configuration changed, {shown}{more}; resume with the old one or start under another name"
        )


def _start(config: RunConfig, engine: Engine, system: System, fingerprint: str) -> Tracker:
    """The tracker, and ``run.json``: what identifies the run."""
    out = config.folder
    info = {
        "name": config.name,
        "system": config.system.name,  # type: ignore[attr-defined]
        "fingerprint": fingerprint,
        "data": config.data.path or ", ".join(source.path for source in config.data.mix or []),
        "stand_ins": ", ".join(system.stand_ins) or "none",
        "weights": dict(system.weights),
        "code": _code_version(),
        "world_size": engine.world_size,
        "device": _device(engine),
        "versions": _versions(),
    }
    store.write_bytes(store.join(out, "run.json"), json.dumps(info, indent=1).encode())
    tags = {f"v2f.{k}": v for k, v in info.items() if isinstance(v, str)}
    return Tracker(
        out,
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        name=config.name,
        parameters=flatten(config),
        tags=tags | {"mlflow.source.git.commit": info["code"].split("+")[0]},
        run_id=read_state(out).get("run_id"),
    )


def _log(job: _Job, bar: "tqdm[Any]", numbers: Mapping[str, float]) -> None:
    if job.tracker is None:
        return
    samples = job.step * job.config.data.batch
    job.tracker.log(job.step, samples, numbers)
    job.tracker.log_system(job.step, samples)
    losses = {k.rsplit("/", 1)[1]: f"{v:.3f}" for k, v in numbers.items() if k.startswith("loss/")}
    bar.set_postfix(losses, refresh=False)


def _validate(job: _Job) -> None:
    """Collapse meters and a grid of samples, by rank 0, from the averaged weights and batches that stay the same."""
    if job.tracker is None or not job.watched:
        return
    with job.engine.averaged(job.system):
        meters = job.system.meters(job.watched)
        pictures = job.system.sample({k: v[:16] for k, v in job.watched[0].items()})
    job.tracker.log(
        job.step, job.step * job.config.data.batch, {f"valid/{k}": v for k, v in meters.items()}, "validation"
    )
    verdict = metrics.verdict(meters)
    if verdict:
        say(f"step {job.step}: {verdict}")
    rows = [p.float().cpu().clamp(-1, 1) for _, p in sorted(pictures.items(), reverse=True)]
    sheet = make_grid(torch.cat(rows), nrow=len(rows[0]), value_range=(-1, 1), normalize=True, padding=1)
    path = Path(job.config.folder) / "samples" / f"step-{job.step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    to_pil_image(sheet).save(path)
    job.tracker.picture(job.step, str(path), "samples")


def _share_quarantine(job: _Job) -> None:
    """Every rank learns what each has put into quarantine, and rank 0 names it; too much of it stops the run.

    Collective, and so the same error on all ranks. What the ranks know is the same at every checkpoint.
    """
    quarantine, config = job.loader.quarantine, job.config
    gathered = [entry for entries in job.engine.gather(quarantine.news()) for entry in entries]
    news = sorted(gathered, key=lambda entry: entry.slot)
    if not news:
        return
    quarantine.adopt(news)
    if job.tracker is not None:
        _name(config.folder, news)
        say(f"step {job.step}: {len(quarantine)} samples are in quarantine; the newest: {news[-1]}")
    allowed, split = config.data.max_bad_fraction, job.loader.split
    if len(quarantine) > allowed * split.samples:
        raise V2FError(
            f"{len(quarantine)} of the {split.samples} samples of {split.name} cannot be used, more than "
            f"data.max_bad_fraction={allowed:g} allows; {'; '.join(map(str, news[:3]))}; all are in "
            f"{store.join(config.folder, QUARANTINE)}; `v2f shards verify` lists all damage: mend it, or allow more"
        )


def _name(folder: str, entries: list[Entry]) -> None:
    path = Path(folder, QUARANTINE)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(entry)) + "\n" for entry in entries)
    except OSError as error:  # the checkpoint holds the numbers, too
        say(f"cannot write {path}: {error.strerror}; training goes on")


def _name_again(folder: str, numbers: list[int]) -> None:
    """Leave in the list what the checkpoint holds: what a killed run met after it will be met again."""
    path = Path(folder, QUARANTINE)
    if not path.exists():
        return
    known, kept = set(numbers), {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):  # a kill may have cut the last line
            number = json.loads(line)["number"]
            if number in known:
                kept[number] = line + "\n"
    store.write_bytes(str(path), "".join(kept.values()).encode())


def _save(job: _Job) -> None:
    """Commit a checkpoint; collective."""
    config, engine = job.config, job.engine
    _share_quarantine(job)
    state = {
        "step": job.step,
        "slot": job.step * config.data.batch,
        "fingerprint": job.fingerprint,
        "order": job.loader.order.fingerprint,
        "quarantine": job.loader.quarantine.numbers,
        "weights": dict(job.system.weights),
        "config": config.model_dump(mode="json"),
        "run_id": job.tracker.run_id if job.tracker else None,
        "versions": _versions(),
    }
    folder = checkpoint.save(
        store.join(config.folder, "checkpoints"),
        job.step,
        engine.tensors(job.system),
        state,
        keep=config.train.keep,
        rank=engine.rank,
        world_size=engine.world_size,
        barrier=engine.barrier,
    )
    if engine.rank == 0:
        say(f"step {job.step}: saved {folder}")


class _Window:
    """Means since the last logged point: losses, gradient norm, rates, throughput, the share of time spent waiting."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Start the clock anew, so that a validation or a save does not count as training time."""
        self._clock, self._slots, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def count(self, slots: int) -> None:
        self._slots += slots

    def add(self, phase: str, result: StepResult) -> None:
        values: dict[str, Any] = {f"loss/{phase}/{k}": v for k, v in result.losses.items()}
        values |= {f"rate/{phase}/{k}": v for k, v in result.rate.items()}
        values |= {f"grad_norm/{phase}": result.grad_norm, f"skipped/{phase}": float(result.skipped)}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, loader: Loader) -> dict[str, float]:
        """The means, and a new window. Tensors become numbers only here: nothing waits for a GPU in between."""
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        numbers = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        numbers["speed/samples_per_second"] = self._slots / seconds
        numbers["speed/data_wait_share"] = self._waited / seconds
        numbers["data/bytes_read_per_rank"] = float(loader.bytes_read)
        numbers["data/requests_per_rank"] = float(loader.requests)
        numbers["data/retries_per_rank"] = float(store.statistics().retries)
        self._sums, self._counts = {}, {}
        self.restart()
        return numbers


def _code_version() -> str:
    """The commit of the source tree, with ``+dirty`` where it differs from it, else the package's version."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"v2f-{version('v2f')}"
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{p: version(p) for p in ("v2f", "torch", "accelerate", "webdataset", "numpy")},
    }


def _device(engine: Engine) -> str:
    return (
        torch.cuda.get_device_name(engine.device)
        if engine.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
