"""Tracking that never stops or delays a run (promise 6 in CONTRIBUTING.md).

    training thread -- log() --> OUT/metrics.jsonl, the spool -- delivery thread --> MLflow
                                 OUT/tracking.json: MLflow's run, and how much of the spool it has (the marks)

The training thread appends points to the spool and never waits for MLflow; points that a full disk rejects wait in
memory. If the server is away, one warning says so; what it missed is delivered when it is back, by the next start, or
by ``v2f track RUN``. The folder therefore holds every point, with or without MLflow.

Each point (a name at a step) is delivered once. The spool has it once: a resumed run repeats the steps after its
checkpoint, and what earlier starts logged of them is set aside first (:mod:`v2f.tracking.rollback`). And after each
connection MLflow is asked for the newest point of each name; older points are compared with its history before they
are sent. Hence neither a kill between a delivery and the mark, nor a lost answer, nor a lost spool or mark duplicates
a point. MLflow cannot delete one: of a repeated step it keeps the first point that it received, and a tag names the
samples.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from v2f.storage import local as files
from v2f.tracking.delivery import Delivery
from v2f.tracking.mlflow_run import PARAMETER_CHARACTERS, TAG_CHARACTERS
from v2f.tracking.problems import Problems
from v2f.tracking.spool import Spool
from v2f.tracking.state import read_state

MEASURE_S = 10.0  # between measurements of the machine
_GIB = 2.0**30


class Tracker:
    """Spools the points of one run and delivers them to MLflow in the background. Only rank 0 has one.

    Args:
        folder: the run's folder, which is local.
        uri: MLflow's tracking URI; None only spools.
        experiment, name: of the run at MLflow.
        parameters, tags: what MLflow shows of the run. The tag ``v2f.out`` says where the run lies if that is not
            ``folder``; the tag :data:`v2f.tracking.mlflow_run.NOTE` describes it, and is not overwritten once set.
        run_id: MLflow's run according to the checkpoint, for a folder without ``tracking.json``.
        datasets: what the run is trained on, each with the strings ``name``, ``digest`` (at most 36 characters) and
            ``source`` (its path), and a mapping ``profile`` of further facts.
        patience_s: how long :meth:`close` waits for the last delivery.

    ``seconds`` is the time that the training thread has spent in here so far. ``status`` is what MLflow shows after
    the run (FINISHED, FAILED, KILLED, or SCHEDULED for one that will be resumed); None derives it from whether the
    ``with`` block ended with an error.
    """

    def __init__(
        self,
        folder: str,
        *,
        uri: str | None,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
        datasets: Sequence[Mapping[str, Any]] = (),
        patience_s: float = 60.0,
    ) -> None:
        self.seconds = 0.0
        self.status: str | None = None
        self.patience_s = patience_s
        self._folder = Path(folder)
        self._spool = Spool(self._folder)
        self._out = tags.get("v2f.out", str(self._folder.resolve()))
        self._problems = Problems()
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._measure_at = -math.inf
        self._delivery: Delivery | None = None
        if uri is not None:
            before = read_state(folder)
            all_tags = {**_origin_tags(), **tags, "v2f.out": self._out}
            now = {
                "uri": uri,
                "experiment": experiment,
                "name": name,
                "parameters": {key: str(value)[:PARAMETER_CHARACTERS] for key, value in parameters.items()},
                "tags": {key: str(value)[:TAG_CHARACTERS] for key, value in all_tags.items()},
                "datasets": [dict(dataset) for dataset in datasets],
                "run_id": before.get("run_id") or run_id,
                "status": None,
            }
            self._delivery = Delivery(self._folder, before | now, self._problems)
            self._delivery.start()
        self._known_id = run_id

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None until MLflow has been reached."""
        return self._known_id if self._delivery is None else self._delivery.run_id

    def log(self, step: int, samples: int, metrics: Mapping[str, float], kind: str = "training") -> None:
        """Spool the metrics of one step. The spool keeps non-finite values; MLflow does not get them.

        ``kind`` names what is logged together: if the spool has a step of this kind already, the call does nothing.
        """
        with self._timed():
            numbers = {name: float(value) for name, value in metrics.items()}
            self._write({"kind": kind, "step": step, "samples": samples, "time": time.time(), "metrics": numbers})

    def log_system(self, step: int, samples: int) -> None:
        """Spool the use of CPU, memory, disk and this rank's GPU, at most every :data:`MEASURE_S` seconds."""
        with self._timed():
            if time.monotonic() < self._measure_at:
                return
            self._measure_at = time.monotonic() + MEASURE_S
            try:
                numbers = {
                    "system/process_cpu_percent": self._process.cpu_percent(),
                    "system/process_memory_gib": self._process.memory_info().rss / _GIB,
                    "system/memory_percent": psutil.virtual_memory().percent,
                    "system/disk_free_gib": psutil.disk_usage(str(self._folder)).free / _GIB,
                    **_gpu_metrics(),
                }
            except Exception as error:  # a failing driver stops the training by itself
                why = type(error).__name__
                self._problems.report("system", f"cannot measure CPU, memory and GPU use ({why}); training continues")
                return
        self.log(step, samples, numbers, kind="system")

    def picture(self, step: int, samples: int, path: str, name: str) -> None:
        """Spool a file of samples in the run's folder: a PNG, or an HTML page of recordings."""
        with self._timed():
            line = {"kind": "picture", "step": step, "picture": os.path.relpath(path, self._folder), "name": name}
            self._write(line | {"time": time.time(), "samples": samples})

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._spool.append(line)
            self._problems.resolve("disk", f"{self._spool.path} can be written again; the waiting points are in it")
        except OSError as error:  # a full disk must not end a training run
            reason = files.strerror(error)
            self._problems.report(
                "disk", f"cannot write {self._spool.path}: {reason}; training continues, and points wait in memory"
            )
        if self._delivery is not None:
            self._delivery.news.set()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.status is None and error is not None:
            self.status = "KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"
        self.close()

    def close(self) -> None:
        """Deliver what is spooled, within ``patience_s``; the rest stays in the folder."""
        self._spool.close()
        if lost := self._spool.lost_lines:
            self._problems.report("lost", f"{lost} lines could not be written to {self._spool.path} and are lost")
        if self._delivery is not None and not self._delivery.finish(self.status or "FINISHED", self.patience_s):
            self._problems.report(
                "rest", f"MLflow did not receive everything; `v2f track {self._out}` or the next start sends the rest"
            )


def _origin_tags() -> dict[str, str]:
    """The user and the program, as MLflow's table shows them."""
    user = next((os.environ[name] for name in ("MLFLOW_TRACKING_USERNAME", "USER") if os.environ.get(name)), None)
    source = {"mlflow.source.name": "v2f/train.py", "mlflow.source.type": "LOCAL"}
    return source if user is None else source | {"mlflow.user": user}


def _gpu_metrics() -> dict[str, float]:
    """This process's GPU, if it uses one already: querying CUDA otherwise would allocate memory on one."""
    if not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    numbers = {
        "system/gpu_memory_gib": (total - free) / _GIB,
        "system/gpu_memory_percent": 100 * (1 - free / total),
        "system/gpu_allocated_peak_gib": torch.cuda.max_memory_allocated() / _GIB,
    }
    with contextlib.suppress(ImportError):  # it needs nvidia-ml-py
        numbers["system/gpu_percent"] = float(torch.cuda.utilization())
    return numbers
