"""Saving a training run: what a checkpoint holds beside the tensors, and what became of each save."""

from typing import Any

from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.saver import deal
from v2f.tracking.console import say
from v2f.training.job import Job
from v2f.training.quarantine import share_quarantine
from v2f.training.run_record import package_versions


class UnsavedError(V2FError):
    """The last checkpoint of a start could not be written; another start may succeed."""

    retryable = True


def save(job: Job, wait: bool) -> None:
    """Hand a checkpoint to the thread that writes it; with ``wait``, return once it is committed. Collective.

    While any rank is still writing the previous one, all ranks skip this one.
    """
    engine, saver = job.engine, job.saver
    share_quarantine(job)
    if wait:
        saver.wait()
        report_saves(job)
    if any(engine.gather(saver.busy)):
        if engine.rank == 0:
            say(f"step {job.step}: the previous checkpoint is still being written, so this one is skipped")
        return
    shares = deal(engine.sizes(job.system), engine.world_size)
    mine = engine.copy(job.system, shares[engine.rank])
    saver.start(job.step, shares, mine, _state(job), job.folder.publish)
    if wait:
        saver.wait()
        before = job.failed_saves
        report_saves(job)
        if any(engine.gather(job.lost)):
            raise job.lost_error()
        if any(engine.gather(job.failed_saves > before)):
            raise UnsavedError(f"step {job.step}: the checkpoint could not be written; start again with --resume auto")


def _state(job: Job) -> dict[str, Any]:
    """A checkpoint's record, plain JSON; the saver writes rank 0's."""
    quarantined, rank_zero = job.loader.quarantined, job.rank_zero
    return {
        "step": job.step,
        "slot": job.samples_seen,
        "fingerprint": job.fingerprint,
        "order": job.loader.fingerprint,
        "quarantine": quarantined.get("", []),
        "quarantines": {name: numbers for name, numbers in quarantined.items() if name},
        "weights": dict(job.system.weights),
        "init_from": job.init_from,
        "config": job.config.model_dump(mode="json"),
        "run_id": rank_zero.tracker.run_id if rank_zero else None,
        "versions": package_versions(),
        "precision": job.engine.precision,
        "metrics": rank_zero.meters if rank_zero else {},
        "measured_at": rank_zero.measured_at if rank_zero else None,
        "clock": job.goodput.state(),
        "norms": job.norms.past,
    }


def report_saves(job: Job) -> None:
    """Print what the saving thread has done since the last call; a failed save does not stop the training."""
    for folder in job.saver.take_committed():
        say(f"step {checkpoint.step_of(folder)}: saved {folder}")
    for failure in job.saver.take_failures():
        job.failed_saves += 1
        say(f"rank {job.engine.rank}: {failure}; training continues, and the previous checkpoint is intact")
