"""The page of a run that makes something other than a face from a voice: widgets, refusals, what it keeps."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from toys.toy import LABELS, RATE, SIDE

pytest.importorskip("gradio", reason="the page needs v2f[serve]")

from starlette.testclient import TestClient

from v2f.runs.run import Run
from v2f.web.limits import Limits
from v2f.web.maker import Maker
from v2f.web.replies import MakerReplies
from v2f.web.serve import application

Toy = Callable[[str], Maker]


@pytest.fixture(scope="module")
def maker(toy_run: Callable[[str], str]) -> Toy:
    return lambda name: Maker(Run.open(toy_run(name)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


def upload(folder: Path, content: bytes, name: str = "mine.jpg") -> str:
    """As Gradio keeps one: in a folder named by its content."""
    home = folder / hashlib.sha256(content).hexdigest()
    home.mkdir(exist_ok=True)
    (home / name).write_bytes(content)
    return str(home / name)


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), (200, 80, 40)).save(file, format="JPEG")
    return file.getvalue()


def recording(seconds: float) -> bytes:
    file = io.BytesIO()
    tone = 0.4 * np.sin(2 * np.pi * 500 * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(file, tone, RATE, format="WAV")
    return file.getvalue()


def test_a_photo_in_a_sound_out_and_the_photo_is_gone(maker: Toy, folder: Path) -> None:
    answer = MakerReplies(maker("photo_sound"), str(folder), Limits())({"photo": upload(folder, photo())}, "a")
    (content,) = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"', answer)
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(content))) as file:
        assert file.samplerate == RATE
        assert json.loads(file.comment)["Run"] == "photo-sound"
    assert "Made by a program; not a recording of anything." in answer
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "what", "content", "said"),
    [
        ("photo_sound", "photo", b"", "the photo: photo cannot be decoded"),
        ("photo_sound", "photo", b"Dear all, this is a letter.", "the photo: photo cannot be decoded"),
        ("photo_sound", "photo", photo()[:200], "the photo: photo cannot be decoded"),
        ("photo_sound", "photo", bytes(30_000), "the photo has 0.03 MB, the limit is 0.02 MB"),
        ("voice_label", "voice", photo(), "the recording: audio cannot be decoded"),
        ("voice_label", "voice", recording(0.1), "the recording: audio is too short"),
        ("voice_label", "voice", recording(2.0), "the recording: audio is too long (2.0 s of at most 1 s)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words_that_name_no_place_and_is_gone(
    maker: Toy, folder: Path, name: str, what: str, content: bytes, said: str
) -> None:
    making = MakerReplies(maker(name), str(folder), Limits(max_seconds=1, max_mb=0.02))
    answer = making({what: upload(folder, content, "private name")}, "a")
    assert f"Nothing: {said}" in answer
    assert "private name" not in answer
    assert str(folder.parent) not in answer
    assert "/" not in "".join(re.findall(r"<p>(.*?)</p>", answer))
    assert list(folder.iterdir()) == []


def test_a_client_is_told_to_wait_and_its_file_is_gone_all_the_same(maker: Toy, folder: Path) -> None:
    making = MakerReplies(maker("photo_sound"), str(folder), Limits(per_minute=2))
    said = []
    for client in ("a", "a", "a", "b"):
        said.append(making({"photo": upload(folder, photo())}, client))
        assert list(folder.iterdir()) == []
    assert ["at most 2 requests per minute are answered; wait " in each for each in said] == [False, False, True, False]
    assert ["<audio" in each for each in said] == [True, True, False, True]


def test_a_file_that_was_swept_is_asked_for_again(maker: Toy, folder: Path) -> None:
    making = MakerReplies(maker("photo_sound"), str(folder), Limits())
    path = upload(folder, photo())
    assert "<audio" in making({"photo": path}, "a")
    assert "the photo is gone" in making({"photo": path}, "a")
    assert "give the photo" in making({"photo": None}, "a")


def test_every_file_is_gone_though_one_was_lost_and_two_were_the_same(maker: Toy, folder: Path) -> None:
    making = MakerReplies(maker("photo_sound"), str(folder), Limits())
    lost = str(folder / "hash" / "lost.wav")
    answer = making({"voice": lost, "photo": upload(folder, photo()), "video": upload(folder, b"a video")}, "a")
    assert "the voice is gone" in answer
    assert list(folder.iterdir()) == []
    same = upload(folder, photo())
    assert "does not hear a voice" in making({"photo": same, "voice": same}, "a")  # read twice: no file is missed
    assert list(folder.iterdir()) == []


def test_whatever_a_system_raises_its_file_is_gone(maker: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = maker("photo_sound")

    def fail(batch: Any) -> Any:
        assert list(folder.iterdir()) == []  # before anything is made
        raise RuntimeError("out of memory")

    monkeypatch.setattr(toy.system, "sample", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        MakerReplies(toy, str(folder), Limits())({"photo": upload(folder, photo())}, "a")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": "<b>", "seed": 0}, "there is no label &#39;&lt;b&gt;&#39;; there are cat, dog, owl"),
        ({"label": None, "seed": 0}, "give the label"),
        ({"label": "cat", "seed": -1}, "-1: a seed must be a whole number, 0 or larger"),
    ],
)
def test_words_that_cannot_be_used_are_refused_and_break_no_page(
    maker: Toy, folder: Path, given: dict[str, Any], said: str
) -> None:
    assert said in MakerReplies(maker("label_picture"), str(folder), Limits())(given, "a")


def test_a_run_that_asks_for_noise_alone_asks_nobody_for_anything(maker: Toy, folder: Path) -> None:
    opening = MakerReplies(maker("noise_picture"), str(folder), Limits()).opening()
    assert "<h1>Face</h1>" in opening
    assert "nothing" not in opening
    assert "A face made from noise, not a photograph" in opening


def called(client: TestClient, data: list[Any]) -> Any:
    """What the button's call gives back, by the queue and its stream of events, as Gradio's page asks."""
    config = client.get("/config").json()
    (button,) = (each for each in config["dependencies"] if each["targets"])
    call = {"data": data, "fn_index": button["id"], "session_hash": "s", "trigger_id": button["targets"][0][0]}
    joined = client.post("/gradio_api/queue/join", json=call)
    assert joined.status_code == 200, joined.text
    told = client.get("/gradio_api/queue/data?session_hash=s").text
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line]
    (done,) = (event for event in events if event["msg"] == "process_completed")
    assert done["success"], done
    return done["output"]["data"]


def test_the_page_has_the_widgets_that_fit_and_answers(maker: Toy, folder: Path) -> None:
    with TestClient(application(maker("label_picture"), str(folder), Limits())) as client:
        config = client.get("/config").json()
        widgets = {each["props"].get("elem_id"): each for each in config["components"]}
        assert {"label", "seed", "make", "answer"} <= widgets.keys()
        assert not {"voice", "photo", "video", "microphone", "clip"} & widgets.keys()
        assert widgets["label"]["type"] == "dropdown"
        assert [name for name, _ in widgets["label"]["props"]["choices"]] == list(LABELS)
        assert (widgets["seed"]["type"], widgets["seed"]["props"]["minimum"]) == ("number", 0)
        html = " ".join(str(each["props"].get("value")) for each in config["components"])
        assert "made from a label (cat, dog, owl)" in html
        assert "A picture made from a label, not a photograph" in html
        (answer,) = called(client, ["owl", 4])
        (content,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', answer)
        picture: Any = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.size == (SIDE, SIDE)
        assert (picture.info["Run"], picture.info["Label"], picture.info["Seed"]) == ("label-picture", "owl", "4")
    assert list(folder.iterdir()) == []


def test_the_page_takes_a_photo_once_and_shows_that_it_is_gone(maker: Toy, folder: Path) -> None:
    with TestClient(application(maker("photo_sound"), str(folder), Limits())) as client:
        (path,) = client.post("/gradio_api/upload", files={"files": ("mine.jpg", photo())}).json()
        file = {"path": path, "orig_name": "mine.jpg", "meta": {"_type": "gradio.FileData"}}
        widget, answer = called(client, [file])
        assert widget is None  # what the page showed could not be used again
        assert "<audio" in answer
        assert list(folder.iterdir()) == []
        _, answer = called(client, [file])
        assert "the photo is gone" in answer
