"""What one rank trains with; :func:`v2f.training.setup.prepare` builds it, the loop moves it on."""

from dataclasses import dataclass
from typing import Any

from v2f.data.streams import Streams
from v2f.engine import Engine
from v2f.runs.config import RunConfig
from v2f.runs.folder import RunFolder
from v2f.runs.saver import Saver
from v2f.storage.lease import LostError
from v2f.system import System
from v2f.training.progress import Goodput, GradientNorms
from v2f.training.rank_zero import RankZero
from v2f.training.slot_log import SlotLog


@dataclass
class Job:
    """One rank's part of a training run, at ``step``. ``rank_zero`` is None on the other ranks.

    ``fingerprint`` is that of the data; ``init_from`` records which weights the run started from
    (:func:`v2f.runs.run.start_from`); ``failed_saves`` counts this rank's.
    """

    config: RunConfig
    folder: RunFolder
    engine: Engine
    system: System
    fingerprint: str
    loader: Streams
    saver: Saver
    step: int
    micro_batch: int | None
    goodput: Goodput
    norms: GradientNorms
    slots: SlotLog | None
    init_from: list[dict[str, Any]]
    rank_zero: RankZero | None
    failed_saves: int = 0

    @property
    def samples_seen(self) -> int:
        """Slots consumed so far."""
        return self.step * self.config.data.batch

    @property
    def lost(self) -> bool:
        """Whether this rank knows that the run now belongs to another start."""
        return self.rank_zero is not None and self.rank_zero.lease.lost is not None

    def lost_error(self) -> LostError:
        """Why the run no longer belongs to this start. Collective, so that all ranks raise the same error."""
        error = self.rank_zero.lease.lost if self.rank_zero is not None else None
        why, gone = self.engine.gather((str(error), error is not None and error.gone))[0]
        return LostError(why, gone=gone)
