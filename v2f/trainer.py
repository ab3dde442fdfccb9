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
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from v2f import checkpoint, metrics, store
from v2f.config import dump_yaml, flatten
from v2f.data.loader import Loader, read_split
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.order import Order
from v2f.engine import Engine, StepResult
from v2f.errors import V2FError
from v2f.nn.batchnorm import ghost_norms
from v2f.run import Run, RunConfig, build_system, check_weights
from v2f.system import Batch, System, trained
from v2f.tracking import Tracker, read_state, say

# What may differ when a run goes on: it changes neither the function that is trained nor its order. Weights that the
# user brings may lie elsewhere; their checksums are compared.
_FREE = (
    "out",
    "data.path",
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


@dataclass
class _Job:
    """What the loop works with. ``tracker`` and ``watched`` (the validation batches) are rank 0's."""

    config: RunConfig
    engine: Engine
    system: System
    dataset: Dataset
    loader: Loader
    tracker: Tracker | None
    watched: list[Batch]
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
                numbers = engine.reduce_mean(window.take(job.loader.bytes_read))
                _log(job, bar, numbers)
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
    dataset = open_dataset(config.data.path)
    system = build_system(config)
    engine.wrap(system)
    step = 0
    if found is not None:
        tensors, state = checkpoint.load(found)
        if state["fingerprint"] != dataset.fingerprint:
            raise V2FError(
                f"{config.data.path}: its fingerprint is {dataset.fingerprint}, {state['fingerprint']} in {found}"
            )
        check_weights(system, state, found)
        engine.load(system, tensors, found)
        step = state["step"]
    split = dataset.split(config.data.split)
    order = Order.for_batches(
        split.shard_sizes,
        seed=config.seed,
        batch=config.data.batch,
        partitions=config.data.partitions,
        window=config.data.window,
        data=split.fingerprint,
    )
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
    )
    tracker, watched = None, []
    if engine.rank == 0:
        parameters = sum(p.numel() for m in trained(system).values() for p in m.parameters())
        note = f"; stand-ins: {', '.join(system.stand_ins)}" if system.stand_ins else ""
        say(
            f"{config.name}: {parameters:,} trained parameters on {engine.world_size} x {engine.device.type}, "
            f"{torch.get_num_threads()} threads, {config.train.precision}, batch {config.data.batch}, "
            f"steps {step} to {config.train.steps}{note}"
        )
        tracker = _start(config, engine, system, dataset)
        if config.data.valid is not None and config.data.valid not in dataset.splits:
            say(f"{config.data.path} has no split {config.data.valid!r}: no meters and no samples while training")
        elif config.data.valid is not None:
            valid = dataset.split(config.data.valid)
            batches = read_split(valid, system.transforms(), 32, limit=config.train.validate_samples)
            watched = [engine.place(batch) for batch in batches]
    return _Job(config, engine, system, dataset, loader, tracker, watched, step)


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


def _start(config: RunConfig, engine: Engine, system: System, dataset: Dataset) -> Tracker:
    """The tracker, and ``run.json``: what identifies the run."""
    out = config.folder
    info = {
        "name": config.name,
        "system": config.system.name,  # type: ignore[attr-defined]
        "fingerprint": dataset.fingerprint,
        "data": config.data.path,
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


def _log(job: _Job, bar: "tqdm[Any]", numbers: dict[str, float]) -> None:
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


def _save(job: _Job) -> None:
    """Commit a checkpoint; collective."""
    config, engine = job.config, job.engine
    state = {
        "step": job.step,
        "slot": job.step * config.data.batch,
        "fingerprint": job.dataset.fingerprint,
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

    def take(self, bytes_read: int) -> dict[str, float]:
        """The means, and a new window. Tensors become numbers only here: nothing waits for a GPU in between."""
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        numbers = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        numbers["speed/samples_per_second"] = self._slots / seconds
        numbers["speed/data_wait_share"] = self._waited / seconds
        numbers["data/bytes_read_per_rank"] = float(bytes_read)
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
