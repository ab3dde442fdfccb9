"""What rank 0 alone does in a training run: it holds the run's lease, logs, and validates."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from v2f import generate
from v2f.engine import Engine
from v2f.errors import V2FError
from v2f.evaluation import sheets
from v2f.runs.config import RunConfig
from v2f.runs.folder import RunFolder
from v2f.storage import local as files
from v2f.storage.lease import Lease, LostError
from v2f.system import System
from v2f.tracking.console import say
from v2f.tracking.tracker import Tracker
from v2f.training.validation import HeldOut, validate

_HISTORY = 200  # logged points of each number that a system's verdict looks at


@dataclass
class RankZero:
    """Rank 0's own objects and duties; nothing here is collective.

    ``meters`` are the newest validation's numbers, measured at the step ``measured_at``; a checkpoint records both.
    """

    config: RunConfig
    folder: RunFolder
    engine: Engine
    system: System
    lease: Lease
    tracker: Tracker
    held_out: HeldOut
    meters: dict[str, float]
    measured_at: int | None
    history: dict[str, deque[float]] = field(default_factory=dict)

    def owns_run(self) -> bool:
        """Whether it may write into the run's folder: while it was paused, another start may have taken the run."""
        try:
            self.lease.look()
        except LostError:
            return False  # the next step tells all ranks
        return True

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log ``numbers``, what only rank 0 counts, and the machine's load."""
        own = {"data/valid_left_out": self.held_out.left_out, "tracking/seconds": self.tracker.seconds}
        numbers = numbers | own
        for name, value in numbers.items():
            self.history.setdefault(name, deque(maxlen=_HISTORY)).append(value)
        self.tracker.log(step, self._samples_seen(step), numbers)
        self.tracker.log_system(step, self._samples_seen(step))

    def validate(self, step: int) -> None:
        """Log meters and losses on the held-out batches, a verdict if the system has one, and a sheet of samples."""
        if not self.held_out.batches or not self.owns_run():
            return
        train = self.config.train
        found = validate(self.engine, self.system, self.held_out.batches, step, train.validate_pictures)
        self.meters, self.measured_at = found.meters | found.losses, step
        named = {f"valid/{name}": value for name, value in self.meters.items()}
        self.tracker.log(step, self._samples_seen(step), named, "validation")
        if train.best is not None and train.best.metric not in self.meters:
            say(
                f"step {step}: train.best.metric: {train.best.metric} is not a meter, so no checkpoint is kept as the "
                f"best; choose one of {', '.join(sorted(self.meters))}"
            )
        verdict = self.system.verdict(found.meters, self.history)
        if verdict:
            say(f"step {step}: {verdict}")
        self._draw(step, found.samples)

    def _draw(self, step: int, samples: dict[str, Tensor]) -> None:
        """Write a sheet of ``samples`` into the run's folder, and log it."""
        made = sheets.sheet(self.system, samples, generate.notes(self.config.name, self.system, step))
        if made is None:
            return
        suffix, content = made
        path: Path = self.folder.local / "samples" / f"step-{step:08d}{suffix}"
        try:
            with files.explained(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        except V2FError as error:
            say(f"{error}; training continues")
            return
        self.tracker.picture(step, self._samples_seen(step), str(path), "samples")

    def _samples_seen(self, step: int) -> int:
        return step * self.config.data.batch
