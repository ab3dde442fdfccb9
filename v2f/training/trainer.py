"""The training loop: batch -> phases -> log -> validate -> save -> stop. It knows no system by name.

Progress is counted in samples seen (slots consumed): a run's position is one integer, and every random choice is keyed
by (seed, slot), so a resumed run continues as if it had never stopped (batch order depends on nothing but data and
seed; the numbers are repeatable). What all ranks must do alike (skip a step, stop, save, give up) follows from numbers
that they have reduced or gathered. What only rank 0 does is in :mod:`v2f.training.rank_zero`.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, SupportsInt

from tqdm import tqdm

from v2f.errors import V2FError
from v2f.runs.config import RunConfig
from v2f.runs.folder import RunFolder
from v2f.storage import store
from v2f.storage.lease import LostError
from v2f.system import Batch, by_stream, first_stream
from v2f.tracking.console import say
from v2f.training import setup
from v2f.training.job import Job
from v2f.training.profiling import Profiler
from v2f.training.progress import StepMeans, over_ranks
from v2f.training.quarantine import share_quarantine
from v2f.training.saving import report_saves, save
from v2f.training.stopping import REASONS, TAKEN_OVER, GivenUpError, Stopped, Watchdog

_HURRY_S = 5.0  # for MLflow after a stop: the scheduler will not wait long, and the next start sends the rest


def fit(config: RunConfig, resume: str = "none", *, allow_changes: bool = False, stop_request: SupportsInt = 0) -> str:
    """Train as ``config`` says, and return the run's folder. Collective over the launcher's ranks.

    ``resume``: ``auto`` continues from the newest committed checkpoint in the run's folder, or starts if there is none;
    ``none`` starts, and refuses a folder that holds a run. Resuming under another configuration needs
    ``allow_changes``. As soon as the ``stop_request`` (a :class:`~v2f.training.stopping.StopRequest`) of any rank is
    not 0, all ranks save after the same step and raise :class:`~v2f.training.stopping.Stopped`.

    A run belongs to one start at a time: :class:`~v2f.storage.lease.HeldError` if another live start holds it,
    :class:`~v2f.storage.lease.LostError` if another start has taken it over, or its folder is gone.
    """
    local, rank = str(RunFolder(config.folder).local), int(os.environ.get("RANK", "0"))
    with Watchdog(config.train.watchdog_minutes, local, rank) as watchdog, contextlib.ExitStack() as resources:
        job = setup.prepare(config, resume, allow_changes, stop_request, resources)
        watchdog.alive()
        stop = _train(job, stop_request, watchdog)
        watchdog.alive()
        job.engine.close()
        steps = config.train.steps
        if stop and job.step < steps:
            raise Stopped(f"{REASONS[stop]}: saved at step {job.step} of {steps}; resume with --resume auto")
    return config.folder


def _train(job: Job, stop_request: SupportsInt, watchdog: Watchdog) -> int:
    """Train to the last step or to a stop request, which it returns; 0 if there was none."""
    train, batch_size, stop = job.config.train, job.config.data.batch, 0
    means, skipped = StepMeans(), dict.fromkeys((phase.name for phase in job.system.phases()), 0)
    job.system.train()
    with _opened(job) as (bar, profiler):
        if _missed_validation(job):
            with _off_the_clock(means, watchdog):
                _validate(job)
        batches = iter(job.loader)
        while job.step < train.steps and not stop:
            with means.waiting():
                batch = next(batches)
            with means.stepping():
                stop = _step(job, batch, means, skipped, stop_request)
            if stop == TAKEN_OVER:
                raise job.lost_error()
            if job.slots is not None:
                job.slots.write(job.step, batch)
            job.step += 1
            job.goodput.step(means.count(batch_size))
            watchdog.alive()
            bar.update()
            profiler.step(job.step)
            report_saves(job)
            last = job.step == train.steps
            saves = last or bool(stop) or job.step % train.checkpoint_every == 0
            if last or stop or job.step % train.log_every == 0:
                _log(job, bar, means)
            # To compete for the best, a checkpoint needs numbers measured on it. A stop leaves no time for that.
            due = job.step % train.validate_every == 0 or (saves and train.best is not None)
            if last or (due and not stop):
                with _off_the_clock(means, watchdog):
                    _validate(job)
            if saves:
                with _off_the_clock(means, watchdog):
                    save(job, wait=last or bool(stop))
        if job.rank_zero is not None and job.step < train.steps:
            job.rank_zero.tracker.status, job.rank_zero.tracker.patience_s = "SCHEDULED", _HURRY_S
    return stop


def _step(job: Job, batch: Batch, means: StepMeans, skipped: dict[str, int], stop_request: SupportsInt) -> int:
    """Step every phase that is due; returns the most urgent stop request of all ranks, or 0.

    ``skipped`` counts each phase's skipped steps in a row; ``train.max_skipped`` of them are too many.
    """
    train, stop = job.config.train, 0
    seen, total = job.samples_seen, train.steps * job.config.data.batch
    for phase in job.system.phases():
        if job.step % phase.every:
            continue
        result = job.engine.step(
            phase,
            batch,
            job.step,
            micro_batch=job.micro_batch,
            seen=seen,
            total=total,
            limit=job.norms.limit(phase.name),
            stop=TAKEN_OVER if job.lost else int(stop_request),
        )
        job.norms.add(phase.name, result.grad_norm)
        means.add(phase.name, result)
        stop = max(stop, result.stop)
        skipped[phase.name] = skipped[phase.name] + 1 if result.skipped else 0
        if skipped[phase.name] >= train.max_skipped:
            raise _give_up(job, batch, phase.name, result.skipped, train.max_skipped)
    return stop


@contextlib.contextmanager
def _opened(job: Job) -> Iterator[tuple["tqdm[Any]", Profiler]]:
    """Inside, the job's files, threads and workers are open, and there are a progress bar and a profiler."""
    profiler, first = Profiler(str(job.folder.local), job.engine.rank), job.rank_zero
    profiler.install()
    with (
        tqdm(
            total=job.config.train.steps, initial=job.step, desc=job.config.name, unit="step", disable=first is None
        ) as bar,
        _publishing(job),
        job.loader,
        job.saver,
        first.tracker if first is not None else contextlib.nullcontext(),
        contextlib.closing(profiler),
        contextlib.closing(job.slots) if job.slots is not None else contextlib.nullcontext(),
    ):
        yield bar, profiler


@contextlib.contextmanager
def _publishing(job: Job) -> Iterator[None]:
    """However the run ends, upload the files that have grown; a store that cannot be reached changes no result."""
    try:
        yield
    finally:
        try:
            if job.rank_zero is not None:
                with job.rank_zero.lease.holding():
                    job.folder.publish()
        except LostError:
            pass  # already reported, and the files in the store are another start's
        except V2FError as error:
            say(
                f"{error}; the newest points and pictures are in {job.folder.local}; the next start on this "
                "machine uploads them"
            )


@contextlib.contextmanager
def _off_the_clock(means: StepMeans, watchdog: Watchdog) -> Iterator[None]:
    """Around a validation or a save, which is not training time, but is a sign of life."""
    yield
    means.restart_clock()
    watchdog.alive()


def _missed_validation(job: Job) -> bool:
    """Whether the previous start was stopped where a validation was due, and had no time for it."""
    train, first = job.config.train, job.rank_zero
    due = 0 < job.step < train.steps and job.step % train.validate_every == 0
    return due and first is not None and first.measured_at != job.step


def _validate(job: Job) -> None:
    if job.rank_zero is not None:
        job.rank_zero.validate(job.step)


def _log(job: Job, bar: "tqdm[Any]", means: StepMeans) -> None:
    """Log the means over all ranks, and how the ranks differ; collective."""
    by_rank = job.engine.gather(means.take(job.loader))
    share_quarantine(job)
    if job.rank_zero is None or not job.rank_zero.owns_run():
        return
    numbers = over_ranks(by_rank)
    numbers |= {"data/quarantined": sum(map(len, job.loader.quarantined.values())), **job.goodput.numbers()}
    job.rank_zero.log(job.step, numbers | {"checkpoint/failed": job.failed_saves})
    losses = {k.split("/", 1)[1]: f"{v:.3f}" for k, v in numbers.items() if k.startswith("loss/")}
    if len(job.system.phases()) == 1:
        losses = {k.split("/", 1)[1]: v for k, v in losses.items()}
    bar.set_postfix(losses, refresh=False)


def _give_up(job: Job, batch: Batch, phase: str, skipped: str, times: int) -> GivenUpError:
    """The error for too many skipped steps, after writing the batch of all ranks to a file; collective."""
    own = {name: {"key": list(b["key"]), "slot": b["slot"].tolist()} for name, b in by_stream(batch).items()}
    batches = job.engine.gather(own.get("", own))
    name = f"bad-batch-step-{job.step:08d}.json"
    path = store.join(job.folder.path, name)
    if job.engine.rank == 0:
        found = {"step": job.step, "phase": phase, "skipped_for": skipped, "ranks": batches}
        content = json.dumps(found, indent=1).encode()
        try:
            store.write_bytes(path, content)
        except V2FError as error:
            path = str(job.folder.local / name)
            store.write_bytes(path, content)
            say(f"{error}; wrote {path} instead")
    what = "the gradient norm is a spike" if skipped == "spike" else f"the {skipped} is not finite"
    return GivenUpError(
        f"step {job.step}, phase {phase}: {what} for {times} steps in a row; lower the learning rate or clip harder "
        f"(samples: {', '.join(first_stream(batches[0])['key'][:4])} ...; the whole list is in {path})"
    )
