"""``v2f register`` of systems of other kinds: columns, examples and answers follow from what they declare."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from toys.toy import LABELS, RATE, SECONDS, SIDE

from v2f.errors import V2FError
from v2f.generate import generate
from v2f.runs.run import Run
from v2f.web.pyfunc import register, synthetic_voice

pytestmark = pytest.mark.slow

Loaded = Callable[[str], Any]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    mlflow.set_tracking_uri(uri)  # MLflow's own, in this process and in its environment
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def loaded(toy_run: Callable[[str], str], uri: str, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Registers the toy of a name and loads it back."""
    import mlflow

    def load(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp("artifacts")
            patch.chdir(folder)
            where = register(toy_run(name))
            files = mlflow.artifacts.download_artifacts(where, dst_path=str(folder / "files"), tracking_uri=uri)
            return mlflow.pyfunc.load_model(files)

    return load


def columns(schema: Any) -> dict[str, str]:
    return {each.name: each.type.name for each in schema}


def photo(side: int = 20, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 80, 40)).save(file, format=kind)
    return file.getvalue()


def test_a_label_and_a_seed_make_a_picture(loaded: Loaded, toy_run: Callable[[str], str], tmp_path: Path) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    model = loaded("label_picture")
    assert columns(model.metadata.get_input_schema()) == {"label": "string", "seed": "long"}
    assert columns(model.metadata.get_output_schema()) == {"picture": "binary", "disclaimer": "string"}
    answer = model.predict(pd.DataFrame({"label": ["owl", "owl", "cat"], "seed": [4, 5, 4]}, index=[7, 8, 9]))
    assert list(answer.index) == [7, 8, 9]
    assert set(answer["disclaimer"]) == {"Made by a program; not a photograph, and nobody's likeness."}
    pictures = [Image.open(io.BytesIO(content)) for content in answer["picture"]]
    generate(Run.open(toy_run("label_picture")), None, str(tmp_path / "out.png"), label="owl", seed=4)
    wanted = Image.open(tmp_path / "out.png")
    assert pictures[0].size == (SIDE, SIDE)
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(wanted))
    assert not np.array_equal(np.asarray(pictures[1]), np.asarray(wanted))
    told = [(each.info["Run"], each.info["Step"], each.info["Label"], each.info["Seed"]) for each in pictures]
    assert told == [("label-picture", "1", label, seed) for label, seed in (("owl", "4"), ("owl", "5"), ("cat", "4"))]
    assert pictures[0].info["Title"] == "A picture made from a label, not a photograph"

    def refused(labels: list[Any], seeds: list[Any]) -> str:
        with pytest.raises(MlflowException) as found:
            model.predict(pd.DataFrame({"label": labels, "seed": seeds}))
        return str(found.value)

    assert refused(["cat", "cow"], [0, 0]) == f"row 1: there is no label 'cow'; there are {', '.join(LABELS)}"
    assert refused(["cat", "cat"], [0, -1]) == "row 1: -1: a seed must be a whole number, 0 or larger"
    assert refused([None, "cat"], [0, 0]) == "row 0: there is no label"


def test_a_photo_makes_a_sound_and_a_server_takes_it_in_base64(loaded: Loaded) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    model = loaded("photo_sound")
    assert columns(model.metadata.get_input_schema()) == {"photo": "binary"}
    assert columns(model.metadata.get_output_schema()) == {"sound": "binary", "disclaimer": "string"}
    client = TestClient(init(model))
    rows = [{"photo": base64.b64encode(photo(kind=kind)).decode()} for kind in ("PNG", "BMP")]
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert len(found) == 2
    assert found[0] == found[1]
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(found[0]["sound"]))) as file:
        assert (file.samplerate, file.frames) == (RATE, round(RATE * SECONDS))
        notes = json.loads(file.comment)
    assert notes["Disclaimer"] == found[0]["disclaimer"] == "Made by a program; not a recording of anything."
    assert "Seed" not in notes  # nothing was drawn
    rows.append({"photo": base64.b64encode(b"Dear all").decode()})
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 400
    said = "row 2: the photo: photo cannot be decoded (unknown picture format); give a photo, such as a JPEG"
    assert answer.json()["message"].endswith(said)
    with pytest.raises(MlflowException, match=r"^row 1: neither the bytes of a photo nor their base64$"):
        model.predict(pd.DataFrame({"photo": [base64.encodebytes(photo()).decode(), "a path.jpg"]}))


@pytest.mark.parametrize("name", ["voice_label", "voice_embedding", "label_picture", "photo_sound"])
def test_its_example_is_answered_in_the_columns_that_it_declares(toy_run: Callable[[str], str], name: str) -> None:
    import pandas as pd

    from v2f.web.pyfunc import COLUMNS, _example, _load_pyfunc, _signature

    model, system = _load_pyfunc(toy_run(name)), Run.open(toy_run(name)).system()
    example = {COLUMNS[type(kind)]: [_example(kind)] for kind in system.asks().values()}
    signature = _signature(system)
    assert columns(signature.inputs).keys() == example.keys()
    answer = model.predict(pd.DataFrame(example))
    python = {"binary": bytes, "string": str}
    assert {each: type(answer[each][0]) for each in answer} == {
        each: python[kind] for each, kind in columns(signature.outputs).items()
    }
    if name == "voice_label":
        shares = json.loads(answer["kind_shares"][0])
        assert shares.keys() == set(LABELS)
        assert sum(shares.values()) == pytest.approx(1)
        assert answer["kind"][0] == max(shares, key=shares.__getitem__)
    if name == "voice_embedding":
        assert len(json.loads(answer["embedding"][0])) == 3


def test_the_bytes_of_a_video_are_read_as_its_file_is(tmp_path: Path) -> None:
    from corpora import write_video

    from v2f.given import read_frames

    path = tmp_path / "v.mp4"
    write_video(path, None, [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(0, 250, 10)])
    of_file, of_bytes = (
        np.stack([np.asarray(each) for each in read_frames(v, 4)]) for v in (str(path), path.read_bytes())
    )
    assert np.array_equal(of_file, of_bytes)


def test_the_example_of_a_video_is_one() -> None:
    from v2f.given import read_frames
    from v2f.system import Video
    from v2f.web.pyfunc import _example

    content = _example(Video(8, 3))
    assert isinstance(content, bytes)
    first, _, last = (np.asarray(frame)[0, 0, 0] for frame in read_frames(content, 3))
    assert last > first + 100
    playlist = f"ffconcat version 1.0\nfile '{__file__}'\n".encode()
    for other in (playlist, synthetic_voice(0.3), b""):
        with pytest.raises(V2FError, match=r"^the video: video cannot be decoded .*; give a video"):
            read_frames(other, 3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokens_tokens", r"asks for tokens \(Tokens\): no column gives that"),
        ("noise_picture", "does not hear a voice, and is given nothing else: noise alone"),
    ],
)
def test_what_no_table_can_ask_is_refused_before_anything_is_sent(
    toy_run: Callable[[str], str], uri: str, name: str, said: str
) -> None:
    from v2f.tracking import mlflow_client

    with pytest.raises(V2FError, match=said):
        register(toy_run(name), "refused", uri)
    assert mlflow_client.connect(uri).search_registered_models("name = 'refused'") == []
