"""MLflow's client: connecting, explaining its errors, and the operations that need no :class:`Tracker`.

MLflow is imported inside the functions, because importing it takes seconds.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from v2f.errors import V2FError, first_line
from v2f.storage import local as files
from v2f.storage.credentials import without_credentials
from v2f.tracking.state import read_state

POINTS_PER_REQUEST = 500  # MLflow takes at most 1,000, and 1 MB

_CA = "MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE"
_KIND = "custom_model_development"  # otherwise MLflow's page treats the experiment as one of language models
_SQLITE = "sqlite:///"


def connect(uri: str) -> Any:
    """An MLflow client whose calls end after a minute and are not retried. It sends no telemetry."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if uri.startswith(_SQLITE):
        with files.explained(uri.removeprefix(_SQLITE)):
            Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def fluent(uri: str) -> Iterator[Any]:
    """A client, with MLflow's module-level API set to ``uri`` meanwhile, for operations that a client does not have
    (logging a model). V2FError in one line instead of MLflow's exceptions."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # files of gigabytes, which the server passes on
    client = connect(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield client
    except MlflowException as error:
        raise V2FError(f"{uri}: the MLflow request failed ({reason(error)})") from error
    finally:
        mlflow.set_tracking_uri(before)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, _artifact_root(uri), tags={"mlflow.experimentKind": _KIND}))


def _artifact_root(uri: str) -> str | None:
    """Next to the SQLite file; None for a server, which has a setting of its own."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlflow-artifacts").as_uri()


def log_metrics(folder: str, numbers: Mapping[str, float], samples: int) -> bool:
    """Add ``numbers``, measured at ``samples``, to the MLflow run of the run in ``folder`` (or under that prefix).

    False if the run is not tracked by MLflow. V2FError if MLflow cannot be reached or rejects them.
    """
    state = read_state(folder)
    run_id, uri = state.get("run_id"), os.environ.get("MLFLOW_TRACKING_URI") or state.get("uri")
    if not run_id or not uri:
        return False
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists():
        raise V2FError(f"{uri}: no such file on this machine; set MLFLOW_TRACKING_URI to the MLflow that has the run")
    client, now = connect(uri), int(time.time() * 1000)
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    metrics = [Metric(name, value, now, samples) for name, value in numbers.items()]
    try:
        for batch in batches(metrics, POINTS_PER_REQUEST):
            client.log_batch(run_id, metrics=batch)
    except MlflowException as error:
        raise V2FError(f"{without_credentials(uri)}: the MLflow request failed: {reason(error)}") from error
    return True


def run_folder(run_id: str, uri: str | None) -> str:
    """The folder of an MLflow run that v2f trained."""
    if uri is None:
        raise V2FError(f"{run_id}: an MLflow run id needs a tracking server; set MLFLOW_TRACKING_URI")
    from mlflow.exceptions import MlflowException

    try:
        tags = connect(os.environ.get("MLFLOW_TRACKING_URI", uri)).get_run(run_id).data.tags
    except MlflowException as error:
        raise V2FError(f"{run_id}: {reason(error)} (set MLFLOW_TRACKING_URI to the server that has it)") from error
    if "v2f.out" not in tags:
        raise V2FError(f"{run_id}: this MLflow run was not created by v2f (it has no tag v2f.out)")
    return tags["v2f.out"]


def round_trip(uri: str) -> str:
    """Do once at MLflow what a run does: create a run in the experiment ``v2f-doctor``, write a metric and an image,
    read both back, delete the run. Returns a summary; V2FError names the operation that failed, and why."""
    from PIL import Image

    doing, client, run_id = "be reached", None, None
    image = Image.new("RGB", (8, 8), (30, 60, 90))
    try:
        try:
            client = connect(uri)
            experiment = client.get_experiment_by_name("v2f-doctor")
            doing = "create an experiment"
            number = (
                client.create_experiment("v2f-doctor", _artifact_root(uri))
                if experiment is None
                else experiment.experiment_id
            )
            doing = "create a run"
            run_id = client.create_run(number, run_name="doctor").info.run_id
            doing = "store a metric"
            client.log_metric(run_id, "doctor", 0.1, step=1)
            doing = "return the metric"
            if [(point.value, point.step) for point in client.get_metric_history(run_id, "doctor")] != [(0.1, 1)]:
                raise ValueError("it has changed")
            doing = "store an image"
            client.log_image(run_id, image, artifact_file="doctor.png")
            doing = "return the image"
            with tempfile.TemporaryDirectory() as folder:
                with Image.open(client.download_artifacts(run_id, "doctor.png", folder), formats=("PNG",)) as back:
                    if back.convert("RGB").tobytes() != image.tobytes():
                        raise ValueError("it has changed")
        except BaseException:
            if client is not None and run_id is not None:
                with contextlib.suppress(Exception):  # report the first error
                    client.delete_run(run_id)
            raise
        doing = "delete the run"
        client.delete_run(run_id)
    except Exception as error:  # MLflow raises many types
        raise V2FError(f"{without_credentials(uri)}: MLflow cannot {doing}: {reason(error)}") from error
    return "a run with a metric and an image was created, read back and deleted"


def reason(error: BaseException) -> str:
    """Why a request to MLflow failed, in a few words and without secrets."""
    import requests

    line = first_line(error)
    if "CERTIFICATE_VERIFY_FAILED" in line:
        return f"its certificate is not trusted; set {_CA} to the file of its CA"
    if "[X509" in line or "TLS CA certificate bundle" in line:
        return f"the file named by {_CA} is missing or holds no certificate"
    code = re.search(r"(?:error code |too many )(\d{3})", line)
    if code is not None:
        denied = "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return f"it responds with HTTP {code[1]}{denied if code[1] in ('401', '403') else ''}"
    if re.search(r"time[d ]?out", line, re.IGNORECASE):
        return "it does not respond in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.ConnectionError):
            return "the connection failed"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {without_credentials(line)[:200]}"


def batches(items: list[Any], length: int) -> Iterator[list[Any]]:
    """``items`` in lists of at most ``length``."""
    return (items[start : start + length] for start in range(0, len(items), length))
