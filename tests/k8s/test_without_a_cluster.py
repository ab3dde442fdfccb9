"""The overlay for clusters without a GPU, run here: its commands, in its order, with its environment, as its users.

From nothing to a trained run: PostgreSQL, MLflow, an account, two parts of a data set, its commit, two ranks that train
from and to a real object store. On the way one pod loses its node and another is evicted.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from cluster import Cluster, postgres_programs
from rendered import REPOSITORY, launch, render, secrets_in

from v2f.runs import checkpoint

STEPS, LOG_EVERY, SAVE_EVERY = 40, 5, 5
SMALL_DATA = [f"synthetic.{text}" for text in (
    "train.people=24", "valid.people=6", "test.people=6", "seen.people=6", "seconds=0.5")]  # fmt: skip
SMALL_RUN = [
    f"train.steps={STEPS}", f"train.log_every={LOG_EVERY}", f"train.checkpoint_every={SAVE_EVERY}", "data.batch=16",
    "data.window=8", "data.partitions=4", "data.workers=0", "system.seconds=0.5", "train.validate_every=20",
    "train.validate_samples=6", "train.precision=fp32",
]  # fmt: skip


def site(folder: Path, endpoint: str) -> Path:
    """What a user writes: an overlay of their own, with their store, and another size of the same work."""
    base = os.path.relpath(REPOSITORY / "k8s" / "overlays" / "cpu", folder)
    more = {"pack": SMALL_DATA, "finalize": SMALL_DATA, "train": SMALL_RUN}
    path = "/spec/template/spec/containers/0/args/-"
    patches = [
        {
            "target": {"kind": "Job", "name": name},
            "patch": yaml.safe_dump([{"op": "add", "path": path, "value": word} for word in words]),
        }
        for name, words in more.items()
    ]
    settings = {"name": "settings", "behavior": "merge", "literals": [f"AWS_ENDPOINT_URL={endpoint}"]}
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "v2f",
                "resources": [base],
                "configMapGenerator": [settings],
                "patches": patches,
            }
        )
    )
    return folder


@pytest.fixture
def cluster(swift, monkeypatch) -> Iterator[Cluster]:
    postgres_programs()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in swift.environment().items():
        monkeypatch.setenv(name, value)
    folder = Path(tempfile.mkdtemp(prefix="v2f-cluster-"))
    folder.chmod(0o755)
    (folder / "site").mkdir()
    done = launch(folder, "secrets", AWS_ACCESS_KEY_ID=swift.access_key, AWS_SECRET_ACCESS_KEY=swift.secret_key)
    assert done.returncode == 0, done.stderr
    running = Cluster(folder, render(site(folder / "site", swift.endpoint)), secrets_in(folder))
    try:
        yield running
    finally:
        running.tear_down()
        shutil.rmtree(folder)


@pytest.mark.slow
def test_the_overlay_without_gpus_trains_two_ranks_from_and_to_s3(cluster, swift):
    run, checkpoints = "s3://v2f/runs/quickstart", "s3://v2f/runs/quickstart/checkpoints"
    disturbed: list[int] = []  # the step of the newest checkpoint at each disturbance

    def disturb(stage: str) -> None:
        """First a node is lost, then a pod is evicted; each once there is a checkpoint newer than the last time."""
        if stage != "5-train" or len(disturbed) == 2:
            return
        newest = checkpoint.latest(checkpoints)
        if newest is None or (disturbed and checkpoint.step_of(newest) <= disturbed[-1]):
            return
        disturbed.append(checkpoint.step_of(newest))
        (cluster.lose if len(disturbed) == 1 else cluster.evict)(cluster.newest("train", 1))

    cluster.bring_up(disturb)

    codes = {owner: [code for each, _, code in cluster.codes if each == owner] for owner, _, _ in cluster.codes}
    assert (codes["account"], codes["pack"], codes["finalize"]) == ([0], [0, 0], [0])
    # The lost pod; then both, since all ranks save and leave when one is asked to; then both, at the end.
    assert codes["train"] == [-9, 75, 75, 0, 0], cluster.said("train")
    assert len(disturbed) == 2
    assert checkpoint.step_of(checkpoint.latest(checkpoints)) == STEPS
    starts = [json.loads(line) for line in _object(swift, "runs/quickstart/starts.jsonl").splitlines()]
    assert [each["world_size"] for each in starts] == [2, 2, 2]
    assert starts[0]["step"] == 0
    assert disturbed[0] <= starts[1]["step"] < starts[2]["step"]
    logged = [json.loads(line) for line in _object(swift, "runs/quickstart/metrics.jsonl").splitlines()]
    steps = [line["step"] for line in logged if line["kind"] == "training"]
    assert steps == sorted(set(steps))
    assert set(range(LOG_EVERY, STEPS + 1, LOG_EVERY)) <= set(steps)

    # What MLflow has, to somebody with an account, and to nobody else.
    server = f"http://127.0.0.1:{cluster.port('mlflow')}"
    search = f"{server}/api/2.0/mlflow/runs/search"
    assert requests.post(search, json={"experiment_ids": ["1"]}, timeout=30).status_code == 401
    tracking = cluster.secrets["tracking"]
    login = (tracking["MLFLOW_TRACKING_USERNAME"], tracking["MLFLOW_TRACKING_PASSWORD"])
    (found,) = requests.post(search, json={"experiment_ids": ["1"]}, auth=login, timeout=30).json()["runs"]
    assert found["info"]["status"] == "FINISHED"
    assert {"key": "v2f.out", "value": run} in found["data"]["tags"]
    query = {"run_id": found["info"]["run_id"], "metric_key": "loss/supervised/total"}
    history = requests.get(f"{server}/api/2.0/mlflow/metrics/get-history", query, auth=login, timeout=30).json()[
        "metrics"
    ]
    assert len({point["step"] for point in history}) == len(history) == len(steps)
    users = f"{server}/api/2.0/mlflow/users/create"
    made = requests.post(users, json={"username": "me", "password": "twelve-letters"}, auth=login, timeout=30)
    assert made.status_code == 403, "who trains administers nothing"
    listed = swift.client().list_objects_v2(Bucket="v2f", Prefix="mlflow/")["Contents"]
    assert any(each["Key"].endswith(".png") for each in listed), "pictures lie in the store, too"
    assert _rows(cluster, "select count(*) from metrics where key = 'loss/supervised/total'") == len(history)

    # No secret got anywhere: what the pods said, what the run keeps, what the database holds of it.
    values = [value for keys in cluster.secrets.values() for value in keys.values() if len(value) > 12]
    said = "".join(pod.log.read_text(errors="replace") for pod in cluster.pods)
    kept = "".join(_object(swift, f"runs/quickstart/{name}") for name in ("config.yaml", "run.json", "tracking.json"))
    assert not [value for value in values if value in said + kept + json.dumps(found)]
    assert not re.search(r"Permission denied|Read-only file system", said)


def _object(swift, key: str) -> str:
    return swift.client().get_object(Bucket=swift.bucket, Key=key)["Body"].read().decode()


def _rows(cluster: Cluster, query: str) -> int:
    """A number that PostgreSQL itself gives."""
    import psycopg2

    password = cluster.secrets["postgres"]["POSTGRES_PASSWORD"]
    settings = {"host": "127.0.0.1", "port": cluster.port("postgres"), "user": "mlflow", "dbname": "mlflow"}
    connection = psycopg2.connect(password=password, **settings)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return int(cursor.fetchone()[0])
    finally:
        connection.close()
