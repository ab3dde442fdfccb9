"""Tracking that can never stop or stall a job (promise 6), and the only file here that knows MLflow.

The training thread appends points to a spool, ``OUT/metrics.jsonl``, and goes on. A second thread reads the
spool and hands it to MLflow, remembering in ``OUT/tracking.json`` how far it came; a server that is away is
said once, and what it missed is delivered later, by the next start at the latest. So the folder always holds
every point, with or without MLflow. A point whose step is already in the spool (a resumed run repeats the
steps after its checkpoint, with the same values) is not written again.

Spool lines: ``{"kind", "step", "time", "samples", "metrics": {name: value}}`` or
``{"kind": "picture", "step", "time", "picture": file, "name"}``.
"""

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from v2f.errors import V2FError

log = logging.getLogger("v2f")
_BATCH = 500  # points a request; MLflow takes at most 1,000
_RETRY_S = 10.0
_PARAMETER = 6000  # characters that MLflow keeps of a parameter's value


class Tracker:
    """Spools points for one run and delivers them to MLflow in the background. Only rank 0 has one."""

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
    ) -> None:
        self.run_id = run_id
        self._folder = Path(folder)
        self._spool_path = self._folder / "metrics.jsonl"
        self._last = _last_step(self._spool_path)
        self._spool = self._spool_path.open("a", encoding="utf-8")
        self._news = threading.Event()
        self._closing = threading.Event()
        self._failure: str | None = None
        self._status = "FINISHED"
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._thread: threading.Thread | None = None
        if uri is not None:
            self._what = (uri, experiment, name, dict(parameters), dict(tags))
            self._thread = threading.Thread(target=self._deliver_all, name="tracking", daemon=True)
            self._thread.start()

    def log(self, step: int, samples: int, metrics: Mapping[str, float], kind: str = "training") -> None:
        """Spool numbers of one step; never waits for MLflow. Non-finite values are kept as they are in the spool.

        ``kind`` names what is logged together: a step of a kind that is in the spool already is not logged again.
        """
        if step > self._last.get(kind, -1):
            self._write({"kind": kind, "step": step, "samples": samples, "time": time.time(), "metrics": dict(metrics)})

    def log_system(self, step: int, samples: int) -> None:
        """Spool what the machine does: CPU and memory of this process, memory and disk of the machine."""
        gib = 2.0**30
        numbers = {
            "system/process_cpu_percent": self._process.cpu_percent(),
            "system/process_memory_gib": self._process.memory_info().rss / gib,
            "system/memory_percent": psutil.virtual_memory().percent,
            "system/disk_free_gib": psutil.disk_usage(str(self._folder)).free / gib,
        }
        self.log(step, samples, numbers, kind="system")

    def picture(self, step: int, path: str, name: str) -> None:
        """Spool a PNG that lies in the run's folder."""
        if step > self._last.get("picture", -1):
            where = os.path.relpath(path, self._folder)
            self._write({"kind": "picture", "step": step, "picture": where, "name": name, "time": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._spool.write(json.dumps(line) + "\n")
            self._spool.flush()
        except OSError as error:  # a full disk must not end a training
            self._say(f"cannot write {self._spool_path}: {error.strerror}; training goes on without these points")
        self._news.set()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._status = "FINISHED" if error is None else "FAILED"
        self.close()

    def close(self, patience_s: float = 60.0) -> None:
        """Deliver what is spooled, for at most ``patience_s``; the rest stays for the next start."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self._say("MLflow is still away; the undelivered points stay in metrics.jsonl for the next start")
        self._spool.close()

    def _say(self, message: str) -> None:
        if message != self._failure:
            self._failure = message
            log.warning("tracking: %s", message)

    # The delivering thread ---------------------------------------------------------------------------------------

    def _deliver_all(self) -> None:
        client = None
        while True:
            self._news.wait()
            self._news.clear()
            closing = self._closing.is_set()
            try:
                if client is None:
                    client = self._connect()
                while self._deliver(client):
                    pass
                self._failure = None
            except Exception as error:  # MLflow raises many types; none of them may reach the training
                self._say(
                    f"MLflow does not answer ({type(error).__name__}: {_first_line(error)}); points are kept, retrying"
                )
                if closing:
                    return
                self._closing.wait(_RETRY_S)
                self._news.set()
                continue
            if closing:
                with contextlib.suppress(Exception):
                    client.set_terminated(self.run_id, self._status)
                return

    def _connect(self) -> Any:
        uri, experiment, name, parameters, tags = self._what
        client = _client(uri)
        if self.run_id is None:
            found = client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else client.create_experiment(experiment, _artifact_root(uri))
            self.run_id = client.create_run(
                number, run_name=name, tags={**tags, "v2f.out": str(self._folder.resolve())}
            ).info.run_id
            self._set_state(run_id=self.run_id, uri=uri, delivered=self._state().get("delivered", 0))
            from mlflow.entities import Param

            items = [Param(key, str(value)[:_PARAMETER]) for key, value in parameters.items()]
            for start in range(0, len(items), 100):
                client.log_batch(self.run_id, params=items[start : start + 100])
        else:
            client.update_run(self.run_id, status="RUNNING")
        return client

    def _deliver(self, client: Any) -> bool:
        """Deliver the next lines of the spool and move the mark; False when there are none."""
        from mlflow.entities import Metric

        mark = self._state().get("delivered", 0)
        metrics: list[Any] = []
        pictures: list[dict[str, Any]] = []
        size = 0
        with self._spool_path.open("rb") as spool:
            spool.seek(mark)
            for raw in spool:
                if not raw.endswith(b"\n") or len(metrics) >= _BATCH:
                    break
                size += len(raw)
                line = json.loads(raw)
                if "picture" in line:
                    pictures.append(line)
                    continue
                when = int(line["time"] * 1000)
                values = {**line["metrics"], "samples": line["samples"]}
                metrics += [Metric(k, v, when, line["step"]) for k, v in values.items() if math.isfinite(v)]
        if not size:
            return False
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        for line in pictures:
            from PIL import Image

            with Image.open(self._folder / line["picture"]) as picture:
                client.log_image(self.run_id, picture, key=line["name"], step=line["step"])
        self._set_state(run_id=self.run_id, uri=self._what[0], delivered=mark + size)
        return True

    def _state(self) -> dict[str, Any]:
        return read_state(str(self._folder))

    def _set_state(self, **state: Any) -> None:
        path = self._folder / "tracking.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(path)


def read_state(folder: str) -> dict[str, Any]:
    """What is known of a run's tracking: ``run_id``, ``uri``, ``delivered`` (bytes of the spool)."""
    path = Path(folder) / "tracking.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def folder_of(run_id: str, uri: str | None) -> str:
    """The folder of an MLflow run that v2f trained."""
    if uri is None:
        raise V2FError(f"{run_id}: an MLflow run id needs a tracking server; set MLFLOW_TRACKING_URI")
    from mlflow.exceptions import MlflowException

    try:
        tags = _client(os.environ.get("MLFLOW_TRACKING_URI", uri)).get_run(run_id).data.tags
    except MlflowException as error:
        raise V2FError(
            f"{run_id}: {_first_line(error)} (set MLFLOW_TRACKING_URI to the server that holds it)"
        ) from error
    if "v2f.out" not in tags:
        raise V2FError(f"{run_id}: this MLflow run was not made by v2f (no tag v2f.out)")
    return tags["v2f.out"]


def _client(uri: str) -> Any:
    """An MLflow client whose calls give up soon; imported late, since the import alone takes seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _artifact_root(uri: str) -> str | None:
    """Beside the SQLite file; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts").as_uri()


def _last_step(spool: Path) -> dict[str, int]:
    """The newest step of each kind of line in the spool; a line cut by a kill is removed."""
    last: dict[str, int] = {}
    if not spool.exists():
        return last
    whole = 0
    with spool.open("rb") as lines:
        for raw in lines:
            if not raw.endswith(b"\n"):
                break
            whole += len(raw)
            line = json.loads(raw)
            last[line["kind"]] = max(last.get(line["kind"], -1), line["step"])
    os.truncate(spool, whole)
    return last


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def say(message: str) -> None:
    """One line for a person, on stderr; above a progress bar if one is drawn."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
