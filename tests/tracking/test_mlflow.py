"""mlflow/serve and mlflow/personal, started for real: a login before everything, and nothing lost or told."""

import base64
import contextlib
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import postgres
import pytest
from mlflow_server import until
from ports import free_port

from v2f.config import build
from v2f.runs.config import RunConfig
from v2f.tracking import mlflow_client
from v2f.tracking.mlflow_run import NOTE
from v2f.tracking.state import read_state
from v2f.training.trainer import fit

REPOSITORY = Path(__file__).resolve().parents[2]
SECRETS = {
    "V2F_MLFLOW_ADMIN_PASSWORD": "planted-admin-password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-secret-key",
    "MLFLOW_TRACKING_PASSWORD": "planted-user-password",
    "PGPASSWORD": postgres.PASSWORD,
}
BATCH = 8


class Script:
    """One of ``mlflow/``'s scripts, on one port, however often it is started; its log lies in ``folder``."""

    def __init__(self, folder: Path, name: str, *arguments: str, **environment: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._command = [str(REPOSITORY / "mlflow" / name), *arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "V2F_", "AWS_", "PG"))}
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        place = {"PATH": path, "TMPDIR": str(self.temporary), "V2F_MLFLOW_PORT": str(self.port)}
        self.environment = kept | place | environment

    def start(self) -> None:
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(
                self._command, env=self.environment, stdout=said, stderr=said, start_new_session=True
            )
        until(self._healthy)

    def _healthy(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.get("/health") == 200
        return False

    def stop(self) -> None:
        """As a supervisor does it: SIGTERM to the process that it has started, and nothing to the others."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def get(self, path: str, login: str | None = None, **headers: str) -> int:
        """The status of an answer; ``login``: name:password."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if login is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

    def commands(self) -> str:
        """What everybody on the machine can read of its processes: all command lines of its session."""
        session = os.getsid(self._process.pid)
        said = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getsid(int(entry.name)) == session:
                        said.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        assert len(said) > 1
        return "\n".join(said)


@contextlib.contextmanager
def signed_in(monkeypatch: pytest.MonkeyPatch, name: str, password: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        yield


def config(shards: str, out: Path, uri: str | None, **train: Any) -> RunConfig:
    from systems.small import SMALL

    values = {
        "name": out.name,
        "out": str(out),
        "seed": 3,
        "system": SMALL["voice_styled_face"],
        "data": {"path": shards, "batch": BATCH, "workers": 0, "window": 8, "partitions": 4},
        "train": {"steps": 4, "threads": 1, "log_every": 1, "validate_every": 2, "validate_samples": 6} | train,
        "tracking": {"uri": uri, "experiment": "voices"},
    }
    return build(RunConfig, values, "here")


def held(uri: str, run_id: str) -> dict[str, Any]:
    """What a server holds of a run, in a comparable form."""
    client = mlflow_client.connect(uri)
    run = client.get_run(run_id)
    points = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in run.data.metrics}
    pictures = sorted(file.path for file in client.list_artifacts(run_id, "images"))
    inputs = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
    return {"points": points, "pictures": pictures, "inputs": inputs, "run": run.data.to_dictionary()}


@pytest.mark.slow
def test_a_team_on_postgresql_signs_in_tracks_and_finds_all_again_after_a_restart(tiny_shards, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    with contextlib.ExitStack() as stack:
        try:
            database = stack.enter_context(postgres.serving())
        except postgres.NoPostgresError as error:
            pytest.skip(str(error))
        server = Script(
            tmp_path,
            "serve",
            V2F_MLFLOW_DATABASE=database.uri,
            V2F_MLFLOW_ARTIFACTS=str(tmp_path / "artifacts"),
            V2F_MLFLOW_NAMES="mlflow,mlflow.example.org",
            **{name: secret for name, secret in SECRETS.items() if name != "MLFLOW_TRACKING_PASSWORD"},
        )
        server.start()
        stack.callback(server.stop)

        # Nobody reads anything without a login, and no page of another site reads it by somebody's browser.
        everything = "/api/2.0/mlflow/experiments/search?max_results=5"
        admin = f"admin:{SECRETS['V2F_MLFLOW_ADMIN_PASSWORD']}"
        assert [server.get(path) for path in (everything, "/", "/api/2.0/mlflow-artifacts/artifacts")] == [401] * 3
        assert server.get(everything, "admin:wrong-password") == 401
        assert server.get(everything, admin) == 200
        assert server.get(everything, admin, Host="evil.example") == 403
        assert server.get(everything, admin, Host="mlflow:5000") == 200
        assert server.get(everything, Host="mlflow.example.org") == 401

        with signed_in(monkeypatch, "admin", SECRETS["V2F_MLFLOW_ADMIN_PASSWORD"]):
            accounts = get_app_client("basic-auth", tracking_uri=server.uri)
            accounts.create_user("somebody", SECRETS["MLFLOW_TRACKING_PASSWORD"])
            owned = mlflow_client.experiment_id(mlflow_client.connect(server.uri), server.uri, "voices")

        with signed_in(monkeypatch, "somebody", SECRETS["MLFLOW_TRACKING_PASSWORD"]):
            out = tmp_path / "run"
            fit(config(tiny_shards, out, server.uri))
            run_id = read_state(str(out))["run_id"]
            before = held(server.uri, run_id)
            with pytest.raises(MlflowException, match="Permission denied"):  # somebody else's
                mlflow_client.connect(server.uri).delete_experiment(owned)
        seen = [BATCH * step for step in (1, 2, 3, 4)]
        assert [at for at, _ in before["points"]["loss/supervised/total"]] == seen
        assert before["points"]["step"] == [(at, at / BATCH) for at in seen]
        assert [name.split("+")[2] for name in before["pictures"] if name.endswith("compressed.webp")] == ["16", "32"]
        ((name, digest),) = before["inputs"]
        assert name == "shards"
        assert before["run"]["tags"]["v2f.fingerprint"].startswith(digest)
        assert "Voice Styled Face" in before["run"]["tags"][NOTE]
        assert before["run"]["params"]["system.encoder.channels"] == "[8, 12, 16]"

        commands = server.commands()
        server.stop()
        server.start()
        with signed_in(monkeypatch, "somebody", SECRETS["MLFLOW_TRACKING_PASSWORD"]):
            assert held(server.uri, run_id) == before
        assert server.get(everything, admin) == 200

    told = {"commands": commands, "log": server.log.read_text(), "MLflow": json.dumps(before["run"])}
    for path in [*out.rglob("*"), *server.temporary.rglob("*")]:
        if path.is_file():
            told[str(path)] = path.read_bytes().decode("latin-1")
    assert "v2f-mlflow" in " ".join(told)  # the accounts' settings are among them
    for place, content in told.items():
        assert [name for name, secret in SECRETS.items() if secret in content] == [], place


@pytest.mark.slow
def test_one_person_finds_the_runs_that_were_trained_without_a_server_behind_a_login(
    tiny_shards, tmp_path, monkeypatch
):
    runs = tmp_path / "my runs"
    fit(config(tiny_shards, runs / "alone", f"sqlite:///{runs}/mlflow.db", steps=2))
    run_id = read_state(str(runs / "alone"))["run_id"]
    before = held(f"sqlite:///{runs}/mlflow.db", run_id)
    server = Script(tmp_path, "personal", str(runs))
    server.start()
    try:
        login = dict(line.split("=", 1) for line in (runs / "mlflow-login").read_text().splitlines())
        password = login["V2F_MLFLOW_ADMIN_PASSWORD"]
        assert stat.S_IMODE((runs / "mlflow-login").stat().st_mode) == 0o600
        assert len(set(login.values())) == 2
        assert [server.get("/"), server.get("/", f"me:{password}")] == [401, 200]
        with signed_in(monkeypatch, "me", password):
            assert held(server.uri, run_id) == before
            fit(config(tiny_shards, runs / "served", server.uri, steps=2))
            again = held(server.uri, read_state(str(runs / "served"))["run_id"])
            assert again["pictures"]
        told = server.commands() + server.log.read_text()
        server.stop()
        server.start()
        assert server.get("/", f"me:{password}") == 200  # the one of before
    finally:
        server.stop()
    assert not [value for value in login.values() if value in told]


COMPLETE = {
    "V2F_MLFLOW_DATABASE": "postgresql://mlflow@127.0.0.1:1/mlflow",
    "V2F_MLFLOW_ARTIFACTS": "s3://bucket/mlflow",
    "V2F_MLFLOW_ADMIN_PASSWORD": "long-enough-password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "some-secret",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"V2F_MLFLOW_DATABASE": ""}, "set V2F_MLFLOW_DATABASE: postgresql://user@host/database"),
        ({"V2F_MLFLOW_DATABASE": "postgresql://me:hidden-word@host/db"}, "holds a password, which belongs into PGPASS"),
        ({"V2F_MLFLOW_DATABASE": "postgresql://host/db?password=hidden-word"}, "holds a password, which belongs into"),
        ({"V2F_MLFLOW_DATABASE": "runs/mlflow.db"}, "is neither postgresql://user@host/database nor sqlite:////"),
        ({"V2F_MLFLOW_ARTIFACTS": ""}, "set V2F_MLFLOW_ARTIFACTS to s3://bucket/prefix or to a folder"),
        ({"V2F_MLFLOW_ADMIN_PASSWORD": ""}, "set V2F_MLFLOW_ADMIN_PASSWORD"),
        ({"V2F_MLFLOW_ADMIN_PASSWORD": "hidden-word"}, "has fewer than 12 characters"),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}, "set MLFLOW_FLASK_SERVER_SECRET_KEY: openssl rand -hex 32"),
        ({"PATH": "/usr/bin:/bin"}, "no mlflow in PATH"),
    ],
)
def test_what_is_missing_is_one_line_that_shows_no_password(tmp_path, change: Mapping[str, str], said: str) -> None:
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)} | COMPLETE | change
    done = subprocess.run(
        [REPOSITORY / "mlflow" / "serve"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mlflow/serve: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hidden-word" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_that_name_holds_no_python_that_would_shadow_the_package() -> None:
    assert sorted(path.name for path in (REPOSITORY / "mlflow").iterdir()) == ["personal", "serve"]
