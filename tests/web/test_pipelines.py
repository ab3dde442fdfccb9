"""A pipeline on the page and in MLflow: a photo, a video or a label in, the sound and the clip with its sound out."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import sounders
import soundfile
from corpora import write_video
from sounders import HERTZ, NAMES, RATE, SECONDS, hertz_of, make_pipeline, picture

from v2f.errors import V2FError
from v2f.pipeline import Pipeline, opened
from v2f.storage import store
from v2f.web import pyfunc
from v2f.web.limits import Limits
from v2f.web.maker import Maker


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        sounders.register(patch)
        yield make_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def maker(file: str) -> Maker:
    return Maker(opened(file))


def png(color: str) -> bytes:
    content = io.BytesIO()
    picture(color).save(content, "PNG")
    return content.getvalue()


def clip(folder: Path, color: str, suffix: str = ".mp4") -> bytes:
    write_video(folder / f"v{suffix}", None, [picture(color)] * 12, fps=10)
    return (folder / f"v{suffix}").read_bytes()


def heard(content: bytes) -> tuple[float, float]:
    wav_T, rate = soundfile.read(io.BytesIO(content))
    assert rate == RATE
    return hertz_of(wav_T, rate), len(wav_T) / rate


# ------------------------------------------------------------------------------------------------ the page


def upload(folder: Path, content: bytes) -> str:
    (folder / "hash").mkdir(exist_ok=True)
    (folder / "hash" / "mine").write_bytes(content)
    return str(folder / "hash" / "mine")


def data(answer: str, kind: str) -> bytes:
    (content,) = re.findall(rf'src="data:{kind};base64,([^"]+)"', answer)
    return base64.b64decode(content)


def test_a_photo_or_a_label_is_answered_with_a_player(maker: Maker, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs v2f[serve]")
    from v2f.web.replies import MakerReplies

    replies = MakerReplies(maker, str(tmp_path), Limits())
    answer = replies({"photo": upload(tmp_path, png("blue")), "seed": 0}, "a")
    assert heard(data(answer, "audio/wav")) == (pytest.approx(HERTZ["blue"], abs=3), SECONDS)
    assert "label found: blue" in answer
    assert "A sound made from a photo, not a recording" in answer
    assert heard(data(replies({"label": "red", "seed": 0}, "a"), "audio/wav"))[0] == pytest.approx(300, abs=3)
    assert "give one of them" in replies({"photo": None, "seed": 0}, "a")
    assert list(tmp_path.iterdir()) == []
    opening = replies.opening()
    assert "<h1>Sound, made from a photo, a video or a label (red, green, blue)</h1>" in opening
    assert "step labels 10, top 11, bottom 12, sound 13" in opening


@pytest.mark.parametrize(("suffix", "kind"), [(".mp4", "video/mp4"), (".webm", "video/x-matroska")])
def test_a_video_is_answered_with_its_sound(maker: Maker, tmp_path: Path, suffix: str, kind: str) -> None:
    pytest.importorskip("gradio", reason="the page needs v2f[serve]")
    from v2f.web.replies import MakerReplies

    (tmp_path / "uploads").mkdir()
    replies = MakerReplies(maker, str(tmp_path / "uploads"), Limits(max_seconds=2))
    answer = replies({"video": upload(tmp_path / "uploads", clip(tmp_path, "green", suffix)), "seed": 0}, "a")
    assert heard(data(answer, "audio/wav")) == (pytest.approx(500, abs=3), 1.2)
    with av.open(io.BytesIO(data(answer, kind))) as container:
        assert len(list(container.decode(video=0))) == 12
        assert len(container.streams.audio) == 1
    replies = MakerReplies(maker, str(tmp_path / "uploads"), Limits(max_seconds=1))
    answer = replies({"video": upload(tmp_path / "uploads", clip(tmp_path, "green")), "seed": 0}, "a")
    assert "Nothing: the video: video is too long (1.2 s of at most 1 s)" in answer
    assert list((tmp_path / "uploads").iterdir()) == []


def test_the_page_has_a_tab_for_each_way_to_ask(maker: Maker, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs v2f[serve]")
    from v2f.web.blocks import maker_page

    config = maker_page(maker, str(tmp_path), Limits()).get_config_file()
    tabs = [each["props"]["label"] for each in config["components"] if each["type"] == "tabitem"]
    assert tabs == ["Photo", "Video", "Label"]
    there = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    calls = {there[each["targets"][0][0]]: [there[one] for one in each["inputs"]] for each in config["dependencies"]}
    assert calls == {f"make-{what}": [what, "seed"] for what in ("photo", "video", "label")}


# ---------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def exported(file: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return pyfunc._exported(Pipeline(file), "latest", str(tmp_path_factory.mktemp("exported") / "model"))


def test_an_export_can_be_moved_and_holds_all_that_it_needs(exported: str, tmp_path: Path) -> None:
    Path(exported).rename(tmp_path / "elsewhere")
    moved = opened(str(tmp_path / "elsewhere"))
    try:
        assert isinstance(moved, Pipeline)
        assert moved.runs["top"].path == f"{tmp_path}/elsewhere/top"
        assert moved.step == "labels 10, top 11, bottom 12, sound 13"
        assert str(tmp_path.parent) not in store.read_bytes(f"{moved.path}/pipeline.yaml").decode()
        assert "| top | a-top | 11 | draw codes |" in Path(moved.path, "README.md").read_text()
        assert moved.system().makes().keys() == {"sound"}
    finally:
        Path(moved.path).rename(exported)


def test_a_table_of_photos_videos_and_labels_is_answered(exported: str, tmp_path: Path) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    model = pyfunc._load_pyfunc(exported)
    nothing = {"photo": None, "video": None, "label": None, "seed": 3}
    rows = [
        {**nothing, "photo": png("blue")},
        {**nothing, "video": base64.b64encode(clip(tmp_path, "green")).decode()},
        {**nothing, "label": "red"},
    ]
    answer = model.predict(pd.DataFrame(rows))
    assert list(answer["label"]) == ["blue", "green", "red"]
    found = [heard(content) for content in answer["sound"]]
    assert [hertz for hertz, _ in found] == pytest.approx([HERTZ[color] for color in answer["label"]], abs=3)
    assert [seconds for _, seconds in found] == [SECONDS, 1.2, SECONDS]
    with soundfile.SoundFile(io.BytesIO(answer["sound"][1])) as sound:
        notes = json.loads(sound.comment)
    assert (notes["Title"], notes["Run"]) == ("A sound made from a video, not a recording", "tones")
    only = model.predict(pd.DataFrame({"label": ["red"], "seed": [3]}))
    assert only["sound"][0] is not None
    for row, said in [
        (nothing, "row 0: this system asks for a photo, a video or a label"),
        ({**nothing, "label": "cow"}, "row 0: there is no label 'cow'"),
        ({**nothing, "label": "red", "seed": None}, "row 0: there is no seed"),
        ({**nothing, "photo": b"Dear all"}, "row 0: the photo: photo cannot be decoded"),
    ]:
        with pytest.raises(MlflowException, match=said):
            model.predict(pd.DataFrame([row]))


def test_its_columns_and_its_example_fit_each_other(exported: str) -> None:
    import pandas as pd

    system = opened(exported).system()
    signature = pyfunc._signature(system)
    asked = {each.name: (each.type.name, each.required) for each in signature.inputs}
    assert asked == {
        "label": ("string", False),
        "seed": ("long", True),
        "photo": ("binary", False),
        "video": ("binary", False),
    }
    answer = pyfunc._load_pyfunc(exported).predict(pd.DataFrame({k: [v] for k, v in pyfunc._examples(system).items()}))
    assert set(answer) == {each.name for each in signature.outputs} == {"label", "sound", "disclaimer"}
    assert answer["label"][0] in NAMES


@pytest.mark.slow
def test_a_pipeline_is_registered_and_loaded_from_the_registry(file: str, tmp_path: Path, monkeypatch: Any) -> None:
    import mlflow
    import pandas as pd

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(V2FError, match="a pipeline uses the newest checkpoint of each run"):
        pyfunc.register(file, "tones", uri, "best")
    where = pyfunc.register(file, None, uri)
    assert where == "models:/tones/1"
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(where)
        answer = model.predict(pd.DataFrame({"photo": [png("green")], "seed": [0]}))
        (version,) = mlflow.MlflowClient(uri).search_model_versions("name = 'tones'")
    finally:
        mlflow.set_tracking_uri(None)
    assert answer["label"][0] == "green"
    assert heard(answer["sound"][0])[0] == pytest.approx(500, abs=3)
    assert "Four runs of v2f" in version.description
