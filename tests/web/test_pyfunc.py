"""``v2f register``: a run becomes a model at MLflow whose loading runs no pickle, and which answers as ``generate``."""

import base64
import importlib.metadata
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from PIL import Image

from v2f.cli import main
from v2f.config import build
from v2f.errors import V2FError
from v2f.generate import DISCLAIMER, generate
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.tracking import mlflow_client
from v2f.tracking.state import read_state
from v2f.training.trainer import fit
from v2f.web.pyfunc import NEEDS, register, synthetic_voice

pytestmark = pytest.mark.slow


class Registered(NamedTuple):
    run: Run
    run_id: str
    uri: str
    where: str
    said: str
    files: Path


def tiny(shards: str, out: Path, uri: str | None, system: str = "voice_styled_face", **train: Any) -> str:
    from systems.small import SMALL

    values = {
        "name": "tiny",
        "out": str(out),
        "system": SMALL[system],
        "data": {"path": shards, "batch": 8, "workers": 0, "window": 8, "partitions": 4, "valid": None},
        "train": {"steps": 2, "threads": 1, "log_every": 1} | train,
        "tracking": {"uri": uri, "experiment": "voices"},
    }
    return fit(build(RunConfig, values, "here"))


@pytest.fixture(scope="module")
def registered(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    import mlflow

    root = tmp_path_factory.mktemp("registered")
    uri = f"sqlite:///{root}/mlflow.db"
    run = Run.open(tiny(tiny_shards, root / "run", uri))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        said = io.StringIO()
        patch.setattr(sys, "stdout", said)
        assert main(["register", run.path, "--name", "voices"]) == 0
        patch.undo()
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        where = "models:/voices/1"
        files = Path(mlflow.artifacts.download_artifacts(where, dst_path=str(root / "files"), tracking_uri=uri))
        yield Registered(run, read_state(run.path)["run_id"], uri, where, said.getvalue(), files)


@pytest.fixture(scope="module")
def loaded(registered: Registered) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(registered.files))


def table(*content: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({"audio": list(content)})


def test_it_answers_as_generate_does_and_says_in_the_picture_what_it_is(registered, loaded, tmp_path) -> None:
    voices = [synthetic_voice(0.3), synthetic_voice(1.5)]
    answer = loaded.predict(table(*voices))
    assert list(answer["windows"]) == [1, 7]
    assert answer["seconds"].tolist() == pytest.approx([0.3, 1.5])
    assert set(answer["disclaimer"]) == {DISCLAIMER}
    for number, voice in enumerate(voices):
        (tmp_path / "voice.wav").write_bytes(voice)
        generate(registered.run, str(tmp_path / "voice.wav"), str(tmp_path / "face.png"))
        wanted, found = Image.open(tmp_path / "face.png"), Image.open(io.BytesIO(answer["picture"][number]))
        assert found.size == (64, 64)
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
        assert found.text["Disclaimer"] == DISCLAIMER
        assert (found.text["Run"], found.text["Step"]) == ("tiny", "2")
        assert found.text["Voice"] == wanted.text["Voice"]


def test_a_server_of_the_model_takes_and_gives_base64(loaded) -> None:
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    client = TestClient(init(loaded))
    rows = [{"audio": base64.b64encode(synthetic_voice()).decode()}]
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["predictions"]
    assert Image.open(io.BytesIO(base64.b64decode(row["picture"]))).size == (64, 64)
    rows.append({"audio": base64.b64encode(b"no sound at all").decode()})
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 400
    assert answer.json()["message"].endswith(
        "audio, row 1: audio cannot be decoded (neither libsndfile nor FFmpeg can read it)"
    )


def test_what_is_hardly_speech_is_called_so(loaded) -> None:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000, format="WAV")
    answer = loaded.predict(table(synthetic_voice(), file.getvalue()))
    assert answer["doubt"][0] == ""
    assert answer["doubt"][1].startswith("hardly speech: as steady as noise or a tone")
    assert Image.open(io.BytesIO(answer["picture"][1])).text["Doubt"] == answer["doubt"][1]


def silence() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000), 16000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "audio, row 1: audio is empty"),
        (b"just a text", "audio, row 1: audio cannot be decoded"),
        (silence(), "audio, row 1: audio is silent"),
        (silence() * 2, "audio, row 1: audio is more than one recording"),
        (synthetic_voice(0.1), "audio, row 1: audio is too short"),
    ],
)
def test_what_is_no_voice_is_one_line_that_names_its_row(loaded, content: bytes, said: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said) as found:
        loaded.predict(table(synthetic_voice(), content))
    assert "\n" not in str(found.value)


def test_base64_is_taken_without_a_server_too_and_other_types_are_refused_by_the_signature(loaded) -> None:
    from mlflow.exceptions import MlflowException

    voice = synthetic_voice(0.3)
    one, other = loaded.predict(table(voice)), loaded.predict(table(base64.encodebytes(voice).decode()))
    assert (one["seconds"] == other["seconds"]).all()
    with pytest.raises(MlflowException, match="audio, row 0: neither the bytes of a recording nor their base64"):
        loaded.predict(table("a path.wav"))
    with pytest.raises(MlflowException, match="audio"):
        loaded.predict(table(7))
    with pytest.raises(MlflowException, match="audio"):
        loaded.predict(table(voice).rename(columns={"audio": "sound"}))


def test_nothing_in_it_is_a_pickle_and_all_that_it_needs_is_in_it(registered: Registered) -> None:
    files = {str(path.relative_to(registered.files)): path for path in registered.files.rglob("*") if path.is_file()}
    for name, path in files.items():
        assert Path(name).suffix in (
            ".py",
            ".j2",
            ".safetensors",
            ".yaml",
            ".json",
            ".md",
            ".txt",
            ".pyi",
            ".typed",
            "",
        ), name
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), name
    assert "code/v2f/web/pyfunc.py" in files
    assert "data/model/model.safetensors" in files
    assert not [name for name in files if "__pycache__" in name]
    told = "".join(path.read_text() for name, path in files.items() if name.endswith((".yaml", ".md", "MLmodel")))
    assert registered.run.path not in told  # where it was trained is nobody's business


LOADED_ELSEWHERE = """
import builtins, pickle, sys
asked, real = set(), builtins.__import__
def note(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and str((globals or {}).get("__name__")).split(".")[0] == "v2f":
        asked.add(name.split(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = note
import mlflow, pandas
def refuse(*_, **__):
    raise AssertionError("something was unpickled")
pickle.load = pickle.loads = refuse
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(model.input_example)
assert answer["picture"][0].startswith(b"\\x89PNG"), answer
import v2f
print(v2f.__file__)
print(*sorted(asked))
"""


def test_the_package_that_came_along_and_the_pinned_requirements_are_enough(registered: Registered, tmp_path) -> None:
    """A process that knows v2f from nowhere else; what v2f imports there of its dependencies is in the list."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    hidden = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    done = subprocess.run(
        [sys.executable, "-c", hidden + LOADED_ELSEWHERE, str(registered.files)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    where, modules = done.stdout.splitlines()
    assert where == str(registered.files / "code" / "v2f" / "__init__.py")
    normal = {name.lower().replace("_", "-") for name in NEEDS}
    declared = {
        requirement.split(";")[0].split("=")[0].split(">")[0].split("<")[0].split("[")[0].strip().lower()
        for requirement in importlib.metadata.requires("v2f") or []
        if "extra ==" not in requirement
    }
    owners = importlib.metadata.packages_distributions()
    used = {owner.lower().replace("_", "-") for module in modules.split() for owner in owners.get(module, [])}
    assert {"torch", "numpy", "pillow"} <= used & declared <= normal
    pinned = (registered.files / "requirements.txt").read_text().splitlines()
    assert pinned == [f"{name}=={importlib.metadata.version(name)}" for name in NEEDS]


def test_its_page_says_what_it_is_and_where_it_came_from(registered: Registered, loaded) -> None:
    client = mlflow_client.connect(registered.uri)
    version = client.get_model_version("voices", "1")
    info = registered.run.info
    assert version.run_id == registered.run_id
    assert version.tags["v2f.fingerprint"] == info["fingerprint"]
    assert (version.tags["v2f.step"], version.tags["v2f.samples"]) == ("2", "16")
    assert "generator" in version.tags["v2f.stand_ins"]
    assert version.tags["v2f.disclaimer"] == DISCLAIMER
    assert "## What the pictures are not" in version.description
    (model,) = client.get_run(registered.run_id).outputs.model_outputs
    assert model.step == 16
    assert client.get_logged_model(model.model_id).source_run_id == registered.run_id
    assert client.get_run(registered.run_id).info.status == "FINISHED"
    assert [spec.name for spec in loaded.metadata.get_output_schema()] == [
        "picture",
        "seconds",
        "windows",
        "doubt",
        "disclaimer",
    ]
    assert json.loads(loaded.metadata.metadata["v2f"])["step"] == 2
    assert registered.said.startswith(f"models:/voices/1: step 2 of {registered.run.path}, of the MLflow run ")
    assert registered.said.count("\n") == 1


def test_the_mlflow_id_still_opens_the_run_and_registers_the_next_version(registered: Registered, capsys) -> None:
    assert Run.open(registered.run_id, registered.uri).path == registered.run.path
    assert register(registered.run_id, "voices", registered.uri) == "models:/voices/2"


def test_an_export_is_registered_without_a_run(registered: Registered, tmp_path, capsys) -> None:
    assert main(["checkpoint", "export", registered.run.path, "-o", str(tmp_path / "model")]) == 0
    assert register(str(tmp_path / "model"), None, registered.uri) == "models:/tiny/1"
    assert mlflow_client.connect(registered.uri).get_model_version("tiny", "1").run_id in (None, "")
    assert "of no MLflow run there" in capsys.readouterr().out


def test_what_cannot_be_registered_is_one_line(tiny_shards, tmp_path, registered: Registered, monkeypatch) -> None:
    deaf = tiny(tiny_shards, tmp_path / "deaf", None, "face_gan", steps=1)
    with pytest.raises(V2FError, match="does not hear a voice"):
        register(deaf, "deaf", registered.uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(V2FError, match="trained without MLflow; name an address with --uri or MLFLOW_TRACKING_URI"):
        register(deaf)
    with pytest.raises(V2FError, match=r"127\.0\.0\.1:1: the MLflow request failed \(the connection failed\)"):
        register(registered.run.path, "voices", "http://127.0.0.1:1")
    with pytest.raises(V2FError, match="no checkpoint of step 7"):
        register(registered.run.path, "voices", registered.uri, 7)
    assert mlflow_client.connect(registered.uri).search_registered_models("name = 'deaf'") == []
