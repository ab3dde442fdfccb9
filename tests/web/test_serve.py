"""The served page as a visitor sees it, with a real server and a real Chromium: a clip in, a face or a refusal out."""

import base64
import io
import json
import re
import shutil
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from mlflow_server import until
from PIL import Image
from served import REPOSITORY, Site, speak

pytest.importorskip("gradio", reason="the page to speak into needs v2f[serve]")

from starlette.testclient import TestClient

from v2f.cli import main
from v2f.runs.run import Run
from v2f.web.answer import Listener
from v2f.web.limits import Limits
from v2f.web.replies import ClipReplies, take
from v2f.web.serve import PASSWORD, USER, application

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
MAX_SECONDS, MAX_MB = 8, 1
_FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,1400 --disable-dev-shm-usage
--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --autoplay-policy=no-user-gesture-required"""


@pytest.fixture(scope="module")
def site(tiny_run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium or chromedriver on this machine")
    bounds = ("--max-seconds", str(MAX_SECONDS), "--max-mb", str(MAX_MB), "--per-minute", "1000")
    with Site(tiny_run, tmp_path_factory.mktemp("site"), *bounds) as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[Any]:
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("browser")
    spoken = folder / "spoken.wav"
    speak(spoken, 4.0, key=3, rate=48000)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS.split(), f"--user-data-dir={folder}/profile", f"--use-file-for-fake-audio-capture={spoken}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, site: Site) -> Any:
    browser.get(site.url)
    until(lambda: _all(browser, "#clip input[type=file]"))
    return browser


def _all(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def _drop(browser: Any, path: Path) -> None:
    _all(browser, "#clip input[type=file]")[0].send_keys(str(path))


def _loaded(browser: Any, image: Any) -> bool:
    return bool(browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", image))


def _refusal(browser: Any) -> str:
    until(lambda: _all(browser, ".refusal"), 30)
    return str(_all(browser, ".refusal")[0].text)


def test_a_clip_in_a_face_out(page: Any, site: Site, tmp_path: Path) -> None:
    speak(tmp_path / "voice.wav", 3.0, key=7)
    _drop(page, tmp_path / "voice.wav")
    until(lambda: _all(page, ".portrait img"), 30)
    image = _all(page, ".portrait img")[0]
    until(lambda: _loaded(page, image), 10)
    assert image.get_property("naturalWidth") == image.get_property("naturalHeight") == 64
    link = _all(page, "a[download]")[0]
    saved = Image.open(io.BytesIO(base64.b64decode(link.get_attribute("href").partition(",")[2])))
    assert saved.format == "PNG"
    assert saved.size == (64, 64)
    assert link.get_attribute("download").endswith(".png")
    assert saved.info["Run"] == "tiny"
    assert "not a photograph" in saved.info["Title"]
    assert saved.info["Creation Time"]
    for selector, count in ((".draws img", 10), (".spectrogram", 1)):
        images = _all(page, selector)
        assert len(images) == count
        assert all(_loaded(page, each) for each in images)
    assert len(_all(page, ".gauge")) == 3
    duration = "return document.querySelector('.answer audio').duration"
    until(lambda: abs((page.execute_script(duration) or 0) - 3.0) < 0.01, 10)
    text = page.find_element("tag name", "body").text
    for words in ("Not evidence", "Not neutral", "not a photograph", "How sure is it?", "A synthetic world"):
        assert words in text
    until(lambda: not site.uploads(), 10)


def test_the_microphone_is_heard(page: Any, site: Site) -> None:
    page.find_element("css selector", "#microphone .record-button, #microphone button.record").click()
    page.set_script_timeout(20)
    page.execute_async_script("setTimeout(arguments[0], 2500)")  # speaking takes its time
    page.find_element("css selector", "#microphone .stop-button").click()
    until(lambda: _all(page, ".portrait img"), 30)
    duration = "return document.querySelector('.answer audio').duration"
    until(lambda: 1.5 < (page.execute_script(duration) or 0) < MAX_SECONDS, 10)
    assert "Is it speech?" in page.find_element("tag name", "body").text
    until(lambda: not site.uploads(), 10)


def test_a_text_file_is_refused_in_words(page: Any, site: Site, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all, this is a letter and no sound. " * 20)
    _drop(page, tmp_path / "letter.txt")
    said = _refusal(page)
    assert "No face" in said
    assert "audio cannot be decoded" in said
    assert "give a recording of one voice, of 0.25 to 8 s" in said
    assert not _all(page, ".portrait img")
    until(lambda: not site.uploads(), 10)


@pytest.mark.parametrize(("name", "said"), [
    ("long.wav", "too long (9.0 s of at most 8 s)"),
    ("silent.wav", "silent"),
])  # fmt: skip
def test_what_is_no_clip_is_refused_in_words(page: Any, site: Site, tmp_path: Path, name: str, said: str) -> None:
    samples = {"long.wav": np.full(9 * 8000, 0.1), "silent.wav": np.zeros(8000)}[name]
    soundfile.write(tmp_path / name, samples, 8000)
    _drop(page, tmp_path / name)
    assert said in _refusal(page)
    until(lambda: not site.uploads(), 10)


def test_a_file_that_is_too_large_is_refused(page: Any, site: Site, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "large.wav", np.zeros(16000 * 60), 16000)  # 1.9 MB
    _drop(page, tmp_path / "large.wav")
    until(lambda: "exceed the maximum allowed size" in page.find_element("tag name", "body").text, 30)
    assert not _all(page, ".portrait img")
    until(lambda: not site.uploads(), 10)


def test_nothing_leaves_this_machine(page: Any, site: Site, tmp_path: Path) -> None:
    """The log holds everything since the browser started, at least this visit."""
    speak(tmp_path / "voice.wav", 2.0, key=9)
    _drop(page, tmp_path / "voice.wav")
    until(lambda: _all(page, ".portrait img"), 30)
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 5
    home = urllib.parse.urlsplit(site.url).netloc
    # data:, blob: and Chromium's own chrome: are no network
    asked = [url for url in urls if url.startswith(("http", "ws", "ftp"))]
    assert {urllib.parse.urlsplit(url).netloc for url in asked} == {home}
    assert not site.wanted.exists(), site.wanted.read_text()
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [error for error in errors if "Content Security Policy" in error], errors


# ------------------------------------------------------------------------------------ without a browser


@pytest.fixture(scope="module")
def listener(tiny_run: str) -> Listener:
    return Listener(Run.open(tiny_run))


def test_stopping_removes_what_was_uploaded(tiny_run: str, tmp_path: Path) -> None:
    with Site(tiny_run, tmp_path) as site:
        (own,) = site.folder.iterdir()
        assert own.stat().st_mode & 0o777 == 0o700
        (own / "left").mkdir()
        (own / "left" / "voice.wav").write_bytes(b"a voice")
        assert site.stop() == 0
        assert list(site.folder.iterdir()) == []


def test_a_client_is_told_to_wait_and_its_clip_is_gone_all_the_same(
    listener: Listener, clip: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "uploads"
    answering = ClipReplies(listener, str(folder), Limits(per_minute=2))
    said = []
    for client in ("a", "a", "a", "b"):
        (folder / "hash").mkdir(parents=True)
        shutil.copy(clip(), folder / "hash" / "voice.wav")
        said.append(answering(str(folder / "hash" / "voice.wav"), client))
        assert list(folder.iterdir()) == []
    assert ["at most 2 clips per minute are answered; wait " in each for each in said] == [False, False, True, False]
    assert ['class="portrait"' in each for each in said] == [True, True, False, True]


def test_an_upload_is_gone_even_if_it_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "hash").mkdir()
    with pytest.raises(FileNotFoundError):
        take(str(tmp_path / "hash" / "voice.wav"), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_names_cannot_break_the_page(listener: Listener, tmp_path: Path) -> None:
    answering = ClipReplies(listener, str(tmp_path), Limits())
    assert "<script>" not in answering._refused("<script>alert(1)</script>")


ELSEWHERE = {"host": "page.example.org", "x-forwarded-proto": "https"}


@pytest.mark.parametrize("left", ["", "/voice"], ids=["a proxy takes the path off", "a proxy leaves it there"])
@pytest.mark.parametrize("told", [{}, {"x-forwarded-host": "page.example.org"}, {"x-forwarded-prefix": "/evil"}])
def test_a_page_under_a_path_links_to_what_is_there(
    listener: Listener, tmp_path: Path, left: str, told: dict[str, str]
) -> None:
    headers = ELSEWHERE | told
    with TestClient(application(listener, str(tmp_path), Limits(), root_path="/voice")) as client:
        assert client.get(f"{left}/config", headers=headers).json()["root"] == "https://page.example.org/voice"
        html = client.get(f"{left}/", headers=headers).text
        links = set(re.findall(r"(?:src|href)=\"([^\"]*\.(?:js|css))\"", html))
        assert links
        assert all(link.startswith(("./", "https://page.example.org/voice/")) for link in links), links
        for link in links:
            path = link.removeprefix("https://page.example.org/voice/").removeprefix("./")
            assert client.get(f"{left}/{path}", headers=headers).status_code == 200, link
        assert client.get(f"{left}/healthz").json()["status"] == "ok"
        for hidden in ("/docs", "/gradio_api/info", "/voicex/config"):
            assert client.get(f"{left}{hidden}").status_code == 404
        redirect = client.get("/voice", follow_redirects=False)
        assert (redirect.status_code, redirect.headers["location"]) == (308, "/voice/")
        posted = client.post(f"{left}/gradio_api/upload", files={"files": ("v.wav", b"RIFF")})
        assert (posted.status_code, len(posted.json())) == (200, 1)


@pytest.mark.slow
def test_a_clip_is_answered_under_a_path(tiny_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload, call and stream of events, as Gradio's page does."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    from bench.serve import ask

    speak(tmp_path / "voice.wav", 3.0, key=7)
    with Site(tiny_run, tmp_path, "--root-path", "/voice/") as site:
        assert site.url.endswith("/voice")
        for seen in (site.url, site.url.removesuffix("/voice")):
            assert "data:image/png" in ask(seen, (tmp_path / "voice.wav").read_bytes())


def test_a_login_keeps_the_page_to_those_who_have_it(listener: Listener, tmp_path: Path) -> None:
    app = application(listener, str(tmp_path), Limits(), ("ann", "s3cr3t-öß"))
    with TestClient(app) as client:
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/upload", files={"files": ("a.wav", b"a")}).status_code == 401
        assert client.post("/login", data={"username": "ann", "password": "guess"}).status_code == 400
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "ann", "password": "s3cr3t-öß"}).status_code == 200
        config = client.get("/config")
        assert config.status_code == 200
        assert "s3cr3t" not in config.text + client.get("/").text
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(
    tiny_run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", tiny_run, "--port", port]) == 1
        assert f"127.0.0.1:{port}: cannot listen on this address" in capsys.readouterr().err
    monkeypatch.setenv(USER, "ann")
    assert main(["serve", tiny_run, "--port", "0"]) == 1
    assert f"{USER} and {PASSWORD}: only one of the two is set" in capsys.readouterr().err
    monkeypatch.delenv(USER)
    assert main(["serve", str(Path(tiny_run) / "nowhere"), "--port", "0"]) == 1
    assert "no run there" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", tiny_run, "--port", "0"]) == 1
    assert "pip install 'v2f[serve]'" in capsys.readouterr().err
