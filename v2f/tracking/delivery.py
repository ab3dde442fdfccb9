"""The thread that delivers the spool to MLflow, and keeps trying while MLflow is away."""

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.tracking import mlflow_client
from v2f.tracking.mlflow_run import MlflowRun
from v2f.tracking.problems import Problems
from v2f.tracking.spool import SPOOL, parse_line
from v2f.tracking.state import STATE, Channel, delivered_bytes, mark_at, read_state, write_state

PACE_S = 1.0  # between deliveries: many points fit in one request, and the training thread keeps the interpreter's lock
RETRY_S = 10.0


class Delivery(threading.Thread):
    """Delivers the spool in ``folder``. ``state`` is what ``tracking.json`` holds; it belongs to this thread from now
    on. Set ``news`` when the spool has grown."""

    def __init__(self, folder: Path, state: dict[str, Any], problems: Problems) -> None:
        super().__init__(name="tracking", daemon=True)
        self.news, self.closing = threading.Event(), threading.Event()
        self._folder, self._spool = folder, folder / SPOOL
        self._problems = problems
        self._state: dict[str, Any] = {"id": uuid.uuid4().hex, "marks": {}} | state
        self._done = False
        self._mlflow_run: MlflowRun | None = None

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None until MLflow has been reached."""
        return self._state["run_id"]

    def finish(self, status: str, patience_s: float) -> bool:
        """Deliver the rest and set the run's status; False if that took longer than ``patience_s``."""
        self._state["status"] = status
        self.closing.set()
        self.news.set()
        self.join(patience_s)
        if not self._done:
            self._save()  # with the status, for whoever delivers the rest
        return self._done

    def run(self) -> None:
        self._save()
        while True:
            self.news.wait()
            self.news.clear()
            closing = self.closing.is_set()  # read before delivering: nothing is spooled after it is set
            self._done = self._deliver("points") and self._deliver("pictures") and (not closing or self._end())
            if closing:
                return
            if self._done:
                self.closing.wait(PACE_S)
            else:
                self.closing.wait(RETRY_S)
                self.news.set()

    def _deliver(self, channel: Channel) -> bool:
        return self._attempt(channel, lambda run: self._send_all(run, channel))

    def _end(self) -> bool:
        return self._attempt("points", MlflowRun.end)

    def _attempt(self, channel: Channel, act: Callable[[MlflowRun], None]) -> bool:
        """Call ``act``, after connecting if necessary; False if it fails."""
        try:
            if self._mlflow_run is None:
                self._mlflow_run = MlflowRun(self._folder, self._state, self._problems, self._save)
            act(self._mlflow_run)
        except Exception as error:  # MLflow raises many types; none of them may reach the training
            self._mlflow_run = None  # a new connection asks MLflow what has arrived
            why = mlflow_client.reason(error)
            self._problems.report(channel, f"MLflow does not accept {channel} ({why}); they are kept and sent later")
            return False
        self._problems.resolve(channel, f"MLflow accepts {channel} again")
        return True

    def _send_all(self, run: MlflowRun, channel: Channel) -> None:
        position = delivered_bytes(self._spool, self._state, channel)
        while True:
            lines, size = self._read(position)
            if not size:
                return
            lines = [line for line in lines if ("picture" in line) == (channel == "pictures")]
            if channel == "points":
                run.send_points(lines)
            else:
                for line in lines:
                    run.send_picture(line)
            position += size
            self._state["marks"][channel] = mark_at(self._spool, position)
            if lines:
                self._save()

    def _read(self, position: int) -> tuple[list[dict[str, Any]], int]:
        """The next complete lines of the spool, with about as many points as one request takes, and their bytes."""
        lines: list[dict[str, Any]] = []
        size = points = 0
        if self._spool.exists():
            with files.opened(self._spool) as spool:
                spool.seek(position)
                for raw in spool:
                    if not raw.endswith(b"\n") or points >= mlflow_client.POINTS_PER_REQUEST:
                        break
                    size += len(raw)
                    line = parse_line(raw)
                    if line is not None:
                        lines.append(line)
                        points += len(line.get("metrics", ())) + 1
        return lines, size

    def _save(self) -> None:
        path = self._folder / STATE
        try:
            write_state(str(self._folder), self._state)
            self._problems.resolve("state", f"{path} can be written again")
        except (V2FError, OSError) as error:
            self._problems.report("state", f"{error}; until then, the next start compares all points with MLflow")


def deliver(folder: str, patience_s: float = 600.0) -> None:
    """Deliver what MLflow is missing of a run that has ended; V2FError if that does not succeed."""
    state = read_state(folder)
    if not state.keys() >= {"uri", "experiment", "name", "parameters", "tags", "status"}:
        raise V2FError(
            f"{folder}: tracking.json is missing or damaged; if the run was trained with tracking.uri=null, it is not "
            "in MLflow; otherwise start it once more with --resume auto, which rewrites the file"
        )
    delivery = Delivery(Path(folder), state, Problems())
    delivery.start()
    if not delivery.finish(state["status"] or "KILLED", patience_s):  # None: it could not record how it ended
        raise V2FError(f"{state['uri']}: MLflow did not receive everything of {folder}; try again once it responds")
