"""One run at MLflow: found or created, described, and sent what it does not have yet.

MLflow's step axis is samples seen: the step of a point or a picture there is the number of slots consumed, so that
curves of runs with different batch sizes line up. The optimizer's step is the metric ``step``. Metrics of the trainer
itself, as opposed to what it trains, are named ``system/...``, because MLflow's page shows these on a tab of their own.
"""

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from v2f.storage import local as files
from v2f.tracking import mlflow_client
from v2f.tracking.mlflow_client import batches, experiment_id, reason
from v2f.tracking.problems import Problems
from v2f.tracking.spool import SPOOL

PARAMETER_CHARACTERS, TAG_CHARACTERS = 6000, 5000  # the most that MLflow keeps
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
_TRAINER_METRICS = ("checkpoint/", "data/", "skew/", "speed/", "time/", "tracking/")


class MlflowRun:
    """A run, over one connection. ``state`` is what ``tracking.json`` holds, and ``save`` writes it.

    MLflow is asked once which points and pictures it has, so that none is sent twice. Any method can raise any of
    MLflow's exceptions; connect anew after one, because the request may have been carried out.
    """

    def __init__(self, folder: Path, state: dict[str, Any], problems: Problems, save: Callable[[], None]) -> None:
        self._folder, self._state, self._problems, self._save = folder, state, problems, save
        self._client = mlflow_client.connect(state["uri"])
        run = self._existing() or self._created()
        self._newest: dict[str, int] = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._received: dict[str, set[int]] = {}
        self._pictures: list[str] | None = None
        self._describe(run)

    @property
    def _run_id(self) -> str | None:
        return self._state["run_id"]

    def end(self) -> None:
        """Set the status that ``state`` names."""
        self._client.set_terminated(self._run_id, self._state["status"])

    def _existing(self) -> Any:
        """The run to continue, or None if a new one is needed."""
        from mlflow.exceptions import MlflowException

        if self._run_id is None:
            return None
        try:
            run = self._client.get_run(self._run_id)
            if run.info.lifecycle_stage == "active":
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self._problems.report(
            f"unknown {self._run_id}",
            f"MLflow has no run {self._run_id}, or it was deleted there; a new MLflow run continues it",
        )
        self._state |= {"run_id": None, "id": uuid.uuid4().hex, "marks": {}, "rolled_back": []}
        return None

    def _created(self) -> Any:
        """A new run, or the one with our id: an earlier attempt may have created it and then been killed, or its
        answer lost."""
        client, state = self._client, self._state
        experiment = experiment_id(client, state["uri"], state["experiment"])
        self._save()
        found = client.search_runs([experiment], f"tags.`v2f.id` = '{state['id']}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, run_name=state["name"], tags={"v2f.id": state["id"]})
        state["run_id"] = run.info.run_id
        self._save()
        return run

    def _describe(self, run: Any) -> None:
        """Send tags, data sets and missing parameters. Parameters are immutable: a tag holds those that a resume has
        changed."""
        from mlflow.entities import Param, RunTag

        client, parameters, before = self._client, self._state["parameters"], run.data.params
        changed = {key: value for key, value in parameters.items() if before.get(key, value) != value}
        tags = dict(self._state["tags"])
        if changed:
            tags["v2f.resumed_with"] = "; ".join(f"{key}: {value}" for key, value in changed.items())[:TAG_CHARACTERS]
        if repeated := self._state.get("rolled_back"):
            ranges = ", ".join(f"{first} to {last}" for first, last in repeated)
            text = f"samples {ranges}: points of an earlier start; {SPOOL} has the current ones"
            tags["v2f.rolled_back"] = text[:TAG_CHARACTERS]
        new_parameters = [Param(key, value) for key, value in parameters.items() if key not in before]
        old_tags = run.data.tags
        new_tags = [
            RunTag(key, value)
            for key, value in tags.items()
            if old_tags.get(key) != value and not (key == NOTE and NOTE in old_tags)  # somebody may have edited it
        ]
        for batch in batches(new_parameters, 100):
            self._offer(batch, lambda items: client.log_batch(self._run_id, params=items))
        for batch in batches(new_tags, 100):
            self._offer(batch, lambda items: client.log_batch(self._run_id, tags=items))
        inputs = [_dataset_input(dataset) for dataset in self._state.get("datasets", [])]
        if inputs:  # MLflow identifies a data set by name and digest, and adds it to a run once
            client.log_inputs(self._run_id, datasets=inputs)
        if run.info.status != "RUNNING":
            client.update_run(self._run_id, status="RUNNING")

    def send_points(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send the finite points of spool lines that MLflow does not have."""
        from mlflow.entities import Metric

        client, points = self._client, []
        for line in lines:
            samples, milliseconds = line["samples"], int(line["time"] * 1000)
            values = {mlflow_name(name): value for name, value in line["metrics"].items()}
            if samples > self._newest.get("step", -1):  # once, although a step can have several lines
                self._newest["step"] = samples
                values = values | {"step": line["step"]}
            points += [
                Metric(name, value, milliseconds, samples)
                for name, value in values.items()
                if math.isfinite(value) and (name == "step" or self._lacks(name, samples))
            ]
        for batch in batches(points, mlflow_client.POINTS_PER_REQUEST):
            self._offer(batch, lambda items: client.log_batch(self._run_id, metrics=items))

    def _lacks(self, name: str, samples: int) -> bool:
        """Whether MLflow did not have this point when the connection was made."""
        if samples > self._newest.get(name, -1):
            return True
        if name not in self._received:
            history = self._client.get_metric_history(self._run_id, name)
            self._received[name] = {point.step for point in history}
        return samples not in self._received[name]

    def send_picture(self, line: Mapping[str, Any]) -> None:
        """Send the file of a spool line unless MLflow has it: a PNG as an image, any other file as an artifact."""
        path = self._folder / line["picture"]
        if path.suffix == ".png":
            self._send_image(path, line)
        elif path.is_file():  # sending it twice writes the same file twice
            self._client.log_artifact(self._run_id, str(path), line["name"])
        else:
            self._problems.report("picture", f"{path} no longer exists, so MLflow does not get it")

    def _send_image(self, path: Path, line: Mapping[str, Any]) -> None:
        from PIL import Image

        if self._pictures is None:
            listing = self._client.list_artifacts(self._run_id, "images")
            self._pictures = [PurePosixPath(file.path).name for file in listing]
        # MLflow writes the image and then a small copy, images/NAME+step+SAMPLES+timestamp+...+compressed.webp
        start, end = f"{line['name'].replace('/', '~')}+step+{line['samples']}+", "+compressed.webp"
        if any(name.startswith(start) and name.endswith(end) for name in self._pictures):
            return
        try:
            with files.opened(path) as content, Image.open(content, formats=("PNG",)) as file:
                image = file.copy()
        except OSError:
            self._problems.report("picture", f"{path} is missing or damaged, so MLflow does not get it")
            return
        self._client.log_image(self._run_id, image, key=line["name"], step=line["samples"])

    def _offer(self, items: list[Any], send: Callable[[list[Any]], object]) -> None:
        """Send ``items``, without those whose names MLflow rejects: these must not hold up the others."""
        from mlflow.exceptions import MlflowException

        try:
            send(items)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(items) > 1:
                self._offer(items[: len(items) // 2], send)
                self._offer(items[len(items) // 2 :], send)
            elif self._client.get_run(self._run_id).info.lifecycle_stage == "active":
                name = items[0].key
                self._problems.report(f"rejected {name}", f"MLflow rejects {name!r} ({reason(error)}); it is skipped")
            else:  # the run has been deleted meanwhile
                raise


def mlflow_name(metric: str) -> str:
    """A metric's name at MLflow."""
    return f"system/{metric}" if metric.startswith(_TRAINER_METRICS) else metric


def _dataset_input(dataset: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    where = dataset["source"]
    kind = where.split("://")[0] if "://" in where else "local"
    known = {"source": json.dumps({"uri": where}), "profile": json.dumps(dataset["profile"])}
    found = Dataset(name=dataset["name"], digest=dataset["digest"], source_type=kind, **known)
    return DatasetInput(found, [InputTag("mlflow.data.context", "training")])
