"""Tracking that can never stop or stall a job (promise 6), and the only file here that knows MLflow.

    training thread -- log() --> OUT/metrics.jsonl, the spool -- delivering thread --> MLflow
                                 OUT/tracking.json: MLflow's run, and how much of the spool it has got (the mark)

The training thread appends points to the spool and goes on; it never waits for MLflow, and what a full disk does not
take waits in memory. A server that is away is said once; what it missed is delivered when it is back, by the next
start, or by ``v2f track RUN``. So the folder always holds every point, with or without MLflow.

MLflow's axis is samples seen: what it calls the step of a point or a picture is the slots consumed, so that runs with
other batch sizes lie over each other as they are. The optimizer's step is a metric there, ``step``. What the machinery
does is called ``system/...`` there, by which MLflow's page keeps it apart from losses and meters.

A point (a name at a step) is delivered once. In the spool it stands once: a resumed run repeats the steps after its
checkpoint, and what earlier starts logged of them is set aside first (:func:`roll_back`). And MLflow is asked for the
newest point that it has of each name, whenever a connection is made; points up to there are compared with its history
before they are sent. So neither a kill between a delivery and the mark, nor an answer that is lost, nor a lost spool or
mark doubles a point. MLflow cannot forget one: of a step that is trained again it keeps the first point that it got,
and a tag names the samples.

Spool lines: ``{"kind", "step", "time", "samples", "metrics": {name: value}}`` or
``{"kind": "picture", "step", "time", "samples", "picture": file, "name"}``.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import psutil
import torch
from pydantic import Field

from v2f.errors import V2FError
from v2f.storage import local as files
from v2f.storage import records, store
from v2f.storage.credentials import without_credentials
from v2f.storage.records import Record, problem_of

log = logging.getLogger("v2f")

_BATCH = 500  # points a request; MLflow takes at most 1,000, and 1 MB
_PACE_S = 1.0  # between deliveries: many points a request, and the interpreter's lock is left to the training
_RETRY_S = 10.0
_MEASURE_S = 10.0
_WAITING = 10_000  # lines that wait in memory while the disk is full
_PARAMETER, _TAG = 6000, 5000  # characters that MLflow keeps
_CHECKED = 4096  # bytes before the mark by which the spool is known again
_GIB = 2.0**30

_CA = "MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE"
_MACHINERY = ("checkpoint/", "data/", "skew/", "speed/", "time/", "tracking/")  # of the trainer, not of what it trains
_KIND = "custom_model_development"  # else MLflow's page takes an experiment for one of language models
SPOOL, ROLLED_BACK = "metrics.jsonl", "rolled-back.jsonl"
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description

Cargo = Literal["points", "pictures"]


class Tracker:
    """Spools points for one run and delivers them to MLflow in the background. Only rank 0 has one.

    ``folder`` is local. ``run_id``: MLflow's run as a checkpoint knows it, for a folder that has lost its
    ``tracking.json``. ``datasets``: what it is trained on, each with the strings ``name``, ``digest`` (of at most 36
    characters), ``source`` (where it lies) and a mapping ``profile`` of what else is known. ``patience_s``: how long
    :meth:`close` waits for the last delivery. A tag ``v2f.out`` says where the run lies if that is not ``folder``; a
    tag :data:`NOTE` describes it, and stays where somebody has edited it at MLflow. ``seconds`` is what the training
    thread has spent in here so far. ``status`` is how MLflow shows the run afterwards (FINISHED, FAILED, KILLED, or
    SCHEDULED for one that will be resumed); left at None, it follows from whether the ``with`` block ended with an
    error.
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
        self._spool = _Spool(self._folder)
        self._out = tags.get("v2f.out", str(self._folder.resolve()))
        self._sayer = _Sayer()
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._measure_at = -math.inf
        self._delivery: _Delivery | None = None
        if uri is not None:
            before = read_state(folder)
            now = {
                "uri": uri,
                "experiment": experiment,
                "name": name,
                "parameters": {key: str(value)[:_PARAMETER] for key, value in parameters.items()},
                "tags": {key: str(value)[:_TAG] for key, value in {**_whose(), **tags, "v2f.out": self._out}.items()},
                "datasets": [dict(dataset) for dataset in datasets],
                "run_id": before.get("run_id") or run_id,
                "status": None,
            }
            self._delivery = _Delivery(self._folder, before | now, self._sayer)
            self._delivery.start()
        self._known_id = run_id

    @property
    def run_id(self) -> str | None:
        """MLflow's run; None as long as it has not been reached."""
        return self._known_id if self._delivery is None else self._delivery.run_id

    def log(self, step: int, samples: int, metrics: Mapping[str, float], kind: str = "training") -> None:
        """Spool numbers of one step; never waits for MLflow. Non-finite values are kept as they are in the spool.

        ``kind`` names what is logged together: a step of a kind that is in the spool already is not logged again.
        """
        with self._timed():
            numbers = {name: float(value) for name, value in metrics.items()}
            self._write({"kind": kind, "step": step, "samples": samples, "time": time.time(), "metrics": numbers})

    def log_system(self, step: int, samples: int) -> None:
        """Spool what the machine does, a few times a minute: this process, memory and disk, and this rank's GPU."""
        with self._timed():
            if time.monotonic() < self._measure_at:
                return
            self._measure_at = time.monotonic() + _MEASURE_S
            try:
                numbers = {
                    "system/process_cpu_percent": self._process.cpu_percent(),
                    "system/process_memory_gib": self._process.memory_info().rss / _GIB,
                    "system/memory_percent": psutil.virtual_memory().percent,
                    "system/disk_free_gib": psutil.disk_usage(str(self._folder)).free / _GIB,
                    **_gpu(),
                }
            except Exception as error:  # a driver that fails is seen by the training itself
                self._sayer.say("system", f"cannot measure the machine ({type(error).__name__}); training goes on")
                return
        self.log(step, samples, numbers, kind="system")

    def picture(self, step: int, samples: int, path: str, name: str) -> None:
        """Spool a sheet of samples that lies in the run's folder: a PNG, or a page of sounds."""
        with self._timed():
            where = os.path.relpath(path, self._folder)
            now = {"time": time.time(), "samples": samples}
            self._write({"kind": "picture", "step": step, "picture": where, "name": name} | now)

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
            self._sayer.over("disk", f"{self._spool.path} is written again, with the points that have waited")
        except OSError as error:  # a full disk must not end a training
            reason = files.strerror(error)
            self._sayer.say("disk", f"cannot write {self._spool.path}: {reason}; training goes on, points wait")
        if self._delivery is not None:
            self._delivery.news.set()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.status is None and error is not None:
            self.status = "KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"
        self.close()

    def close(self) -> None:
        """Deliver what is spooled, for at most ``patience_s``; the rest stays in the folder."""
        self._spool.close()
        if self._spool.lost:
            self._sayer.say("lost", f"{self._spool.lost} lines could not be written to {self._spool.path} and are lost")
        if self._delivery is not None and not self._delivery.finish(self.status or "FINISHED", self.patience_s):
            self._sayer.say(
                "rest", f"MLflow has not got everything; `v2f track {self._out}` or the next start delivers the rest"
            )


def _whose() -> dict[str, str]:
    """Whose run it is and what made it, as MLflow's table shows them."""
    user = next((os.environ[name] for name in ("MLFLOW_TRACKING_USERNAME", "USER") if os.environ.get(name)), None)
    made = {"mlflow.source.name": "v2f/train.py", "mlflow.source.type": "LOCAL"}
    return made if user is None else made | {"mlflow.user": user}


def _gpu() -> dict[str, float]:
    """This process's GPU, where it uses one already: asking about another would take memory there."""
    if not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    numbers = {
        "system/gpu_memory_gib": (total - free) / _GIB,
        "system/gpu_memory_percent": 100 * (1 - free / total),
        "system/gpu_allocated_peak_gib": torch.cuda.max_memory_allocated() / _GIB,
    }
    with contextlib.suppress(ImportError):  # wants nvidia-ml-py
        numbers["system/gpu_percent"] = float(torch.cuda.utilization())
    return numbers


class _Sayer:
    """Says each trouble once, until it is over."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, trouble: str, message: str) -> None:
        if trouble not in self._said:
            self._said.add(trouble)
            log.warning("tracking: %s", message)

    def over(self, trouble: str, message: str) -> None:
        if trouble in self._said:
            self._said.discard(trouble)
            log.warning("tracking: %s", message)


class _Spool:
    """``metrics.jsonl``, appended to line by line: a line is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SPOOL
        with files.explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._last, self._size = _taken_up(self.path)
        self._waiting: deque[bytes] = deque()
        self._file: Any = None
        self._torn = False
        self.lost = 0

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, and those that wait; OSError where that is not possible, and then it waits."""
        kind, step = _kind(line), line["step"]
        if step <= self._last.get(kind, -1):
            return
        self._last[kind] = step
        self._waiting.append(json.dumps(line).encode() + b"\n")
        if len(self._waiting) > _WAITING:
            self._waiting.popleft()
            self.lost += 1
        self._flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._flush()
        if self._file is not None:
            self._file.close()
        self.lost += len(self._waiting)

    def _flush(self) -> None:
        while self._waiting:
            if self._file is None:
                self._file = files.opened(self.path, "ab", buffering=0)
            if self._torn:  # the disk took a part of a line: away with it
                os.truncate(self._file.fileno(), self._size)
            self._torn = True
            written = self._file.write(self._waiting[0])
            if written != len(self._waiting[0]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = False
            self._size += written
            self._waiting.popleft()


def _taken_up(spool: Path) -> tuple[dict[str, int], int]:
    """The newest step of each kind of line, and the spool's length; a last line that a kill has cut is removed."""
    last: dict[str, int] = {}
    if not spool.exists():
        return last, 0
    whole = 0
    with files.opened(spool) as lines:
        for raw in lines:
            if raw.endswith(b"\n"):
                whole += len(raw)
                line = _parsed(raw)
                if line is not None:
                    last[_kind(line)] = max(last.get(_kind(line), -1), line["step"])
    os.truncate(spool, whole)
    return last, whole


def _kind(line: Mapping[str, Any]) -> str:
    return f"picture {line['name']}" if "picture" in line else str(line["kind"])


def _shown(name: str) -> str:
    """A metric's name at MLflow, whose page has a tab of its own for what begins with ``system/``."""
    return f"system/{name}" if name.startswith(_MACHINERY) else name


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line of the spool, or None where a crash of the machine has left something else."""
    with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(raw)
        if problem_of(_Picture if isinstance(line, dict) and "picture" in line else _Points, line) is None:
            found: dict[str, Any] = line
            return found
    return None


class _Line(Record):
    step: int
    samples: int
    time: float


class _Points(_Line):
    kind: str
    metrics: dict[str, float]


class _Picture(_Line):
    picture: str
    name: str


# ----------------------------------------------------------------------------------------------- rolling back


def roll_back(folder: str, step: int) -> int:
    """Set aside what earlier starts have logged of the steps after ``step``, which this one trains again: how many
    lines of the spool. Before a :class:`Tracker` is made for the folder, which is local.

    They go to ``rolled-back.jsonl`` as they are. A kill in between leaves a line in both files, and the next call takes
    it out of the spool. The marks go with what stays: what was not delivered yet of the rest, will be.
    """
    spool, aside = Path(folder, SPOOL), Path(folder, ROLLED_BACK)
    if not spool.exists():
        return 0
    with files.opened(spool) as lines:
        away = [raw for raw in lines if _is_after(raw, step)]
    if not away:
        return 0
    before = aside.read_bytes().splitlines(keepends=True) if aside.exists() else []
    known = set(before)
    store.write_bytes(str(aside), b"".join([*before, *(raw for raw in away if raw not in known)]))
    state = read_state(folder)
    old = {cargo: _mark(spool, state, cargo) for cargo in ("points", "pictures")}
    new, again = dict.fromkeys(old, 0), []
    with store.replacing(str(spool)) as temporary, open(temporary, "wb") as kept, files.opened(spool) as lines:
        position = 0
        for raw in lines:
            position += len(raw)
            if not _is_after(raw, step):
                kept.write(raw)
                new = {cargo: new[cargo] + len(raw) * (position <= mark) for cargo, mark in old.items()}
            elif position <= max(old.values(), default=0):
                again.append(json.loads(raw)["samples"])
    if state:
        marks = {cargo: {"bytes": mark, "crc": _crc(spool, mark)} for cargo, mark in new.items()}
        ranges = state.get("rolled_back", []) + ([[min(again), max(again)]] if again else [])
        now = json.dumps(state | {"marks": marks, "rolled_back": ranges}, indent=1)
        store.write_bytes(store.join(folder, "tracking.json"), now.encode())
    return len(away)


def _is_after(raw: bytes, step: int) -> bool:
    line = _parsed(raw) if raw.endswith(b"\n") else None
    return line is not None and bool(line["step"] > step)


def outdated(folder: str) -> set[str]:
    """The pictures, as paths in a run's folder or prefix, that only a start which was rolled back has drawn."""
    drawn: dict[str, set[str]] = {SPOOL: set(), ROLLED_BACK: set()}
    for name, pictures in drawn.items():
        path = store.join(folder, name)
        lines = map(_parsed, store.read_bytes(path).splitlines()) if store.exists(path) else ()
        pictures |= {str(line["picture"]) for line in lines if line is not None and "picture" in line}
    return drawn[ROLLED_BACK] - drawn[SPOOL]


def _mark(spool: Path, state: Mapping[str, Any], cargo: str) -> int:
    """Bytes of the spool that were delivered; 0 if it is not the spool that the mark was made for."""
    mark = state.get("marks", {}).get(cargo, {"bytes": 0, "crc": 0})
    return int(mark["bytes"]) if _crc(spool, mark["bytes"]) == mark["crc"] else 0


def _crc(spool: Path, mark: int) -> int | None:
    """The checksum of what stands before the mark; None if the spool ends before it."""
    if mark == 0:
        return 0
    if not spool.exists() or spool.stat().st_size < mark:
        return None
    start = max(0, mark - _CHECKED)
    with files.opened(spool) as file:
        file.seek(start)
        return zlib.crc32(file.read(mark - start))


# ------------------------------------------------------------------------------------------------ delivering


class _Delivery(threading.Thread):
    """Brings the spool to MLflow. ``state`` is what ``tracking.json`` holds, this thread's own from now on."""

    def __init__(self, folder: Path, state: dict[str, Any], sayer: _Sayer) -> None:
        super().__init__(name="tracking", daemon=True)
        self.news, self.closing = threading.Event(), threading.Event()
        self._folder, self._spool = folder, folder / SPOOL
        self._sayer = sayer
        self._state: dict[str, Any] = {"id": uuid.uuid4().hex, "marks": {}} | state
        self._done = False
        self._client: Any = None
        self._newest: dict[str, int] = {}
        self._had: dict[str, set[int]] = {}
        self._pictures: list[str] | None = None

    @property
    def run_id(self) -> str | None:
        return self._state["run_id"]

    def finish(self, status: str, patience_s: float) -> bool:
        """Deliver the rest, and say how the run ended; whether that was done within ``patience_s``."""
        self._state["status"] = status
        self.closing.set()
        self.news.set()
        self.join(patience_s)
        if not self._done:
            self._save()  # whoever delivers the rest will want the status
        return self._done

    def run(self) -> None:
        self._save()
        while True:
            self.news.wait()
            self.news.clear()
            closing = self.closing.is_set()  # before the delivery: then nothing comes after it
            self._done = self._deliver("points") and self._deliver("pictures") and (not closing or self._end())
            if closing:
                return
            if self._done:
                self.closing.wait(_PACE_S)
            else:
                self.closing.wait(_RETRY_S)
                self.news.set()

    def _deliver(self, cargo: Cargo) -> bool:
        """Whether everything of ``cargo`` that is spooled is at MLflow. One that it does not take keeps no other."""
        return self._tried(cargo, lambda: self._deliver_all(cargo))

    def _end(self) -> bool:
        return self._tried("points", lambda: self._client.set_terminated(self.run_id, self._state["status"]))

    def _tried(self, cargo: Cargo, act: Callable[[], object]) -> bool:
        try:
            if self._client is None:
                self._connect()
            act()
        except Exception as error:  # MLflow raises many types; none of them may reach the training
            self._client = None  # what has arrived all the same is asked when there is a connection again
            self._sayer.say(cargo, f"MLflow takes no {cargo} ({_reason(error)}); they are kept, and sent when it does")
            return False
        self._sayer.over(cargo, f"MLflow takes {cargo} again")
        return True

    # The run at MLflow -------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._client = client = _client(self._state["uri"])
        run = self._known(client) or self._begun(client)
        self._newest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._had, self._pictures = {}, None
        self._describe(client, run)

    def _known(self, client: Any) -> Any:
        """The run that this one goes on as, or None where that is a new one."""
        from mlflow.exceptions import MlflowException

        if self.run_id is None:
            return None
        try:
            run = client.get_run(self.run_id)
            if run.info.lifecycle_stage == "active":
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self._sayer.say(
            f"unknown {self.run_id}",
            f"MLflow does not have the run {self.run_id} (any more): this run goes on there as a new one",
        )
        self._state |= {"run_id": None, "id": uuid.uuid4().hex, "marks": {}, "rolled_back": []}
        return None

    def _begun(self, client: Any) -> Any:
        """A new run. It is found again by its id where its creation was killed, or only the answer was lost."""
        number = experiment_at(client, self._state["uri"], self._state["experiment"])
        self._save()
        found = client.search_runs([number], f"tags.`v2f.id` = '{self._state['id']}'", max_results=1)
        run = (
            found[0]
            if found
            else client.create_run(number, run_name=self._state["name"], tags={"v2f.id": self._state["id"]})
        )
        self._state["run_id"] = run.info.run_id
        self._save()
        return run

    def _describe(self, client: Any, run: Any) -> None:
        """Parameters are immutable: only missing ones are sent, and a tag holds what is another since a resume."""
        from mlflow.entities import Param, RunTag

        now, before = self._state["parameters"], run.data.params
        changed = {key: value for key, value in now.items() if before.get(key, value) != value}
        tags = dict(self._state["tags"])
        if changed:
            tags["v2f.resumed_with"] = "; ".join(f"{key}: {value}" for key, value in changed.items())[:_TAG]
        if again := self._state.get("rolled_back"):
            told = ", ".join(f"{first} to {last}" for first, last in again)
            tags["v2f.rolled_back"] = f"samples {told}: of an earlier start; {SPOOL} has what counts there"[:_TAG]
        parameters = [Param(key, value) for key, value in now.items() if key not in before]
        there = run.data.tags
        others = [
            RunTag(key, value)
            for key, value in tags.items()
            if there.get(key) != value and not (key == NOTE and NOTE in there)  # somebody may have edited it
        ]
        for some in _chunks(parameters, 100):
            self._offer(some, lambda items: client.log_batch(self.run_id, params=items))
        for some in _chunks(others, 100):
            self._offer(some, lambda items: client.log_batch(self.run_id, tags=items))
        inputs = [_input(dataset) for dataset in self._state.get("datasets", [])]
        if inputs:  # MLflow knows a data set by name and digest, and takes it as a run's input once
            client.log_inputs(self.run_id, datasets=inputs)
        if run.info.status != "RUNNING":
            client.update_run(self.run_id, status="RUNNING")

    # What is delivered -------------------------------------------------------------------------------------------

    def _deliver_all(self, cargo: Cargo) -> None:
        mark = _mark(self._spool, self._state, cargo)
        while True:
            lines, size = self._read(mark)
            if not size:
                return
            lines = [line for line in lines if ("picture" in line) == (cargo == "pictures")]
            if cargo == "points":
                self._send_points(lines)
            else:
                for line in lines:
                    self._send_picture(line)
            mark += size
            self._state["marks"][cargo] = {"bytes": mark, "crc": _crc(self._spool, mark)}
            if lines:
                self._save()

    def _read(self, mark: int) -> tuple[list[dict[str, Any]], int]:
        """The next whole lines of the spool, with about as many points as go into a request, and their bytes."""
        lines: list[dict[str, Any]] = []
        size = points = 0
        if self._spool.exists():
            with files.opened(self._spool) as spool:
                spool.seek(mark)
                for raw in spool:
                    if not raw.endswith(b"\n") or points >= _BATCH:
                        break
                    size += len(raw)
                    line = _parsed(raw)
                    if line is not None:
                        lines.append(line)
                        points += len(line.get("metrics", ())) + 1
        return lines, size

    def _send_points(self, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        client, points = self._client, []
        for line in lines:
            seen, when = line["samples"], int(line["time"] * 1000)
            values = {_shown(name): value for name, value in line["metrics"].items()}
            if seen > self._newest.get("step", -1):  # several lines of a step: once
                self._newest["step"] = seen
                values = values | {"step": line["step"]}
            points += [
                Metric(name, value, when, seen)
                for name, value in values.items()
                if math.isfinite(value) and (name == "step" or self._absent(name, seen))
            ]
        for some in _chunks(points, _BATCH):
            self._offer(some, lambda items: client.log_batch(self.run_id, metrics=items))

    def _absent(self, name: str, seen: int) -> bool:
        """Whether MLflow had no such point when the connection was made."""
        if seen > self._newest.get(name, -1):
            return True
        if name not in self._had:
            self._had[name] = {point.step for point in self._client.get_metric_history(self.run_id, name)}
        return seen not in self._had[name]

    def _send_picture(self, line: Mapping[str, Any]) -> None:
        from PIL import Image

        if not line["picture"].endswith(".png"):  # sent again it is the same file under the same name
            path = self._folder / line["picture"]
            if path.is_file():
                self._client.log_artifact(self.run_id, str(path), line["name"])
            else:
                self._sayer.say("picture", f"{path} is not there any more, and left out")
            return

        if self._pictures is None:
            there = self._client.list_artifacts(self.run_id, "images")
            self._pictures = [PurePosixPath(file.path).name for file in there]
        # MLflow writes the picture and after it a small copy, images/NAME+step+SAMPLES+timestamp+...+compressed.webp
        begins, ends = f"{line['name'].replace('/', '~')}+step+{line['samples']}+", "+compressed.webp"
        if any(name.startswith(begins) and name.endswith(ends) for name in self._pictures):
            return
        path = self._folder / line["picture"]
        try:
            with files.opened(path) as content, Image.open(content, formats=("PNG",)) as file:
                picture = file.copy()
        except OSError:
            self._sayer.say("picture", f"{path} is not there or no picture any more, and left out")
            return
        self._client.log_image(self.run_id, picture, key=line["name"], step=line["samples"])

    def _offer(self, items: list[Any], send: Callable[[list[Any]], object]) -> None:
        """Send what MLflow takes. A name that it refuses must not keep the others, nor those that come after."""
        from mlflow.exceptions import MlflowException

        try:
            send(items)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(items) > 1:
                self._offer(items[: len(items) // 2], send)
                self._offer(items[len(items) // 2 :], send)
            elif self._client.get_run(self.run_id).info.lifecycle_stage == "active":
                what = items[0].key
                self._sayer.say(f"refused {what}", f"MLflow refuses {what!r} ({_reason(error)}); it is left out")
            else:  # somebody has deleted the run meanwhile
                raise

    def _save(self) -> None:
        path = str(self._folder / "tracking.json")
        try:
            store.write_bytes(path, json.dumps(self._state, indent=1).encode())
            self._sayer.over("mark", f"{path} is written again")
        except (V2FError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            self._sayer.say("mark", f"cannot write {path}: {reason}; without it a start compares all points anew")


def read_state(folder: str) -> dict[str, Any]:
    """What ``tracking.json`` of a folder or prefix holds: ``run_id``, ``uri``, what describes the run, and the marks;
    {} where there is none.

    A broken file counts as none: the checkpoint knows the ``run_id``, too, and MLflow what it has.
    """
    try:
        return records.read_record(store.join(folder, "tracking.json"), _State, "remove it")
    except V2FError:
        return {}


class _Mark(Record):
    bytes: int = Field(ge=0)
    crc: int | None


class _Dataset(Record):
    name: str
    digest: str
    source: str
    profile: dict[str, Any]


class _State(Record):
    """What ``tracking.json`` holds; a start completes it."""

    id: str = ""
    run_id: str | None = None
    status: str | None = None
    uri: str = ""
    experiment: str = ""
    name: str = ""
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    marks: dict[str, _Mark] = {}
    datasets: list[_Dataset] = []


def deliver(folder: str, patience_s: float = 600.0) -> None:
    """Bring MLflow what it has missed of a run that is over; V2FError where that does not succeed."""
    state = read_state(folder)
    if not state.keys() >= {"uri", "experiment", "name", "parameters", "tags", "status"}:
        raise V2FError(
            f"{folder}: no tracking.json, or a damaged one: the run was trained with tracking.uri=null and is not at "
            "MLflow; or start it once more with --resume auto, which writes the file anew"
        )
    delivery = _Delivery(Path(folder), state, _Sayer())
    delivery.start()
    if not delivery.finish(state["status"] or "KILLED", patience_s):  # None: it could not even say how it ended
        raise V2FError(f"{state['uri']}: MLflow has not got everything of {folder}; try again when it answers")


def note(folder: str, numbers: Mapping[str, float], samples: int) -> bool:
    """Add ``numbers``, measured at ``samples``, to the MLflow run that a folder or prefix is tracked as; False where it
    is tracked by none. V2FError where MLflow does not take them."""
    state = read_state(folder)
    run_id, uri = state.get("run_id"), os.environ.get("MLFLOW_TRACKING_URI") or state.get("uri")
    if not run_id or not uri:
        return False
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise V2FError(f"{uri}: it is not here; name the MLflow that holds the run in MLFLOW_TRACKING_URI")
    client, now = _client(uri), int(time.time() * 1000)
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    try:
        for some in _chunks([Metric(name, value, now, samples) for name, value in numbers.items()], _BATCH):
            client.log_batch(run_id, metrics=some)
    except MlflowException as error:
        raise V2FError(f"{without_credentials(uri)}: MLflow does not take it: {_reason(error)}") from error
    return True


def round_trip(uri: str) -> str:
    """What a run does at MLflow, once: a run in the experiment ``v2f-doctor``, a number and a picture, both read back,
    and the run deleted; in words. V2FError with what does not work, and why."""
    from PIL import Image

    doing, client, run_id = "be reached", None, None
    picture = Image.new("RGB", (8, 8), (30, 60, 90))
    try:
        try:
            client = _client(uri)
            experiment = client.get_experiment_by_name("v2f-doctor")
            doing = "take an experiment"
            number = (
                client.create_experiment("v2f-doctor", _artifact_root(uri))
                if experiment is None
                else experiment.experiment_id
            )
            doing = "take a run"
            run_id = client.create_run(number, run_name="doctor").info.run_id
            doing = "take a number"
            client.log_metric(run_id, "doctor", 0.1, step=1)
            doing = "give the number back"
            if [(point.value, point.step) for point in client.get_metric_history(run_id, "doctor")] != [(0.1, 1)]:
                raise ValueError("it is another one")
            doing = "take a picture"
            client.log_image(run_id, picture, artifact_file="doctor.png")
            doing = "give the picture back"
            with tempfile.TemporaryDirectory() as folder:
                with Image.open(client.download_artifacts(run_id, "doctor.png", folder), formats=("PNG",)) as back:
                    if back.convert("RGB").tobytes() != picture.tobytes():
                        raise ValueError("it is another one")
        except BaseException:
            if client is not None and run_id is not None:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    client.delete_run(run_id)
            raise
        doing = "delete the run"
        client.delete_run(run_id)
    except Exception as error:  # MLflow raises many types
        raise V2FError(f"{without_credentials(uri)}: MLflow cannot {doing}: {_reason(error)}") from error
    return "a run, a number and a picture went there and came back, the run is deleted"


def folder_of(run_id: str, uri: str | None) -> str:
    """The folder of an MLflow run that v2f trained."""
    if uri is None:
        raise V2FError(f"{run_id}: an MLflow run id needs a tracking server; set MLFLOW_TRACKING_URI")
    from mlflow.exceptions import MlflowException

    try:
        tags = _client(os.environ.get("MLFLOW_TRACKING_URI", uri)).get_run(run_id).data.tags
    except MlflowException as error:
        raise V2FError(f"{run_id}: {_reason(error)} (set MLFLOW_TRACKING_URI to the server that holds it)") from error
    if "v2f.out" not in tags:
        raise V2FError(f"{run_id}: this MLflow run was not made by v2f (no tag v2f.out)")
    return tags["v2f.out"]


def experiment_at(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, _artifact_root(uri), tags={"mlflow.experimentKind": _KIND}))


@contextlib.contextmanager
def fluent(uri: str) -> Iterator[Any]:
    """A client, and MLflow's own module speaking to ``uri`` meanwhile, for what a client alone cannot do (to log a
    model). What MLflow raises is a V2FError in one line."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # files of gigabytes, which the server hands on
    client = _client(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield client
    except MlflowException as error:
        raise V2FError(f"{uri}: MLflow does not take it ({_reason(error)})") from error
    finally:
        mlflow.set_tracking_uri(before)


def _client(uri: str) -> Any:
    """An MLflow client whose calls end after a minute, and are not repeated by itself: imported late, since the import
    alone takes seconds. It reports nothing to MLflow's makers."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if uri.startswith("sqlite:///"):
        with files.explained(uri.removeprefix("sqlite:///")):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _input(dataset: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    where = dataset["source"]
    kind = where.split("://")[0] if "://" in where else "local"
    known = {"source": json.dumps({"uri": where}), "profile": json.dumps(dataset["profile"])}
    found = Dataset(name=dataset["name"], digest=dataset["digest"], source_type=kind, **known)
    return DatasetInput(found, [InputTag("mlflow.data.context", "training")])


def _artifact_root(uri: str) -> str | None:
    """Beside the SQLite file; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts").as_uri()


def _reason(error: BaseException) -> str:
    """Why MLflow does not do something, in few words and without a secret."""
    import requests

    first_line = (str(error).splitlines() or [""])[0]
    if "CERTIFICATE_VERIFY_FAILED" in first_line:
        return f"its certificate is not trusted; name the file of its CA in {_CA}"
    if "[X509" in first_line or "TLS CA certificate bundle" in first_line:
        return f"the file that {_CA} names is not there or holds no certificate"
    code = re.search(r"(?:error code |too many )(\d{3})", first_line)
    if code is not None:
        denied = "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return f"it answers with HTTP {code[1]}{denied if code[1] in ('401', '403') else ''}"
    if re.search(r"time[d ]?out", first_line, re.IGNORECASE):
        return "it does not answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.ConnectionError):
            return "no connection to it"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {without_credentials(first_line)[:200]}"


def _chunks(items: list[Any], length: int) -> Iterator[list[Any]]:
    return (items[start : start + length] for start in range(0, len(items), length))


def say(message: str) -> None:
    """One line for a person, on stderr; above a progress bar if one is drawn."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
