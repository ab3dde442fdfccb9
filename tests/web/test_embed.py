"""``v2f embed``: rows of every file that can be read, the same in NPZ and Parquet, and a name for each other one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import untrained
from PIL import Image

from v2f import generate, given
from v2f.cli import main
from v2f.errors import V2FError
from v2f.evaluation import embed as embedding
from v2f.evaluation.embed import embed
from v2f.evaluation.observers import look, observers_of
from v2f.runs.run import Run

Clip = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.open(untrained.export(tmp_path_factory.mktemp("run")))


@pytest.fixture
def folder(tmp_path: Path, clip: Clip) -> Path:
    """Three recordings, three photos at two depths, and four files that cannot be used."""
    root = tmp_path / "files"
    (root / "deep" / "er").mkdir(parents=True)
    for name, seconds, key in (("a.wav", 1.0, 1), ("deep/b.flac", 5.0, 2), ("deep/c.WAV", 0.5, 3)):
        wav, rate = soundfile.read(clip("one.wav", seconds=seconds, key=key))
        soundfile.write(root / name, wav, rate)
    for key, (name, size) in enumerate((("x.png", (64, 64)), ("deep/y.jpg", (90, 70)), ("deep/er/z.webp", (50, 80)))):
        pixels = np.random.default_rng(key).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    soundfile.write(root / "silent.wav", np.zeros(16000), 16000)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "deep" / "empty.wav").write_bytes(b"")
    (root / "list.csv").write_text("a,b\n")
    return root


LEFT_OUT = ["broken.png", "deep/empty.wav", "list.csv", "silent.wav"]


def test_every_file_that_can_be_read_has_its_rows(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_RECORDINGS", 2)
    monkeypatch.setattr(embedding, "BATCH", 2)
    out = tmp_path / "out.npz"
    assert main(["embed", run.path, str(folder), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "3 photos, 3 recordings; 4 files left out" in told
    with np.load(out, allow_pickle=False) as found:
        arrays = dict(found)
    assert arrays["photo_file"].tolist() == ["deep/er/z.webp", "deep/y.jpg", "x.png"]
    assert arrays["recording_file"].tolist() == ["a.wav", "deep/b.flac", "deep/c.WAV"]
    assert sorted(arrays["left_out_file"].tolist()) == LEFT_OUT
    assert all(f"left out: {name}: " in told for name in LEFT_OUT)
    about = json.loads(str(arrays["about"]))
    assert (about["run"], about["step"]) == ("quickstart", 0)

    system = run.system()
    observers, _ = observers_of(run, system)
    assert {each.name for each in observers} == {"judge", "referee"}
    photo = given._pixels(given.read_photo(str(folder / "deep" / "y.jpg")), system.makes()["face"])  # type: ignore[arg-type]
    wav = given.read_voice(str(folder / "deep" / "b.flac"), 16000)
    wav_WT = torch.from_numpy(generate.windows(wav, generate.voice_input(run, system).frames))
    assert len(wav_WT) > 1
    w_WLD = generate.codes_of(system, wav_WT)
    assert w_WLD is not None
    np.testing.assert_allclose(arrays["recording_w"][1], w_WLD.mean(0), atol=1e-5)
    face = generate.face_of(system, wav_WT)
    for by, one in look(observers, photo[None], torch.device("cpu")).items():
        np.testing.assert_allclose(arrays[f"photo_{by}"][1], one.emb_MD[0], atol=1e-5)
        observer = next(each for each in observers if each.name == by)
        with torch.no_grad():
            np.testing.assert_allclose(arrays[f"recording_{by}"][1], observer(face[None])[0][0], atol=1e-4)
        assert np.abs(arrays[f"photo_{by}"][0] - arrays[f"photo_{by}"][1]).max() > 1e-3


def test_parquet_holds_what_npz_holds(run: Run, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = embed(run, str(folder), str(tmp_path / "out.npz"), quiet=True)
    again = embed(run, str(folder), str(tmp_path / "out.parquet"), quiet=True)
    assert done == again
    assert sorted(done.left_out) == LEFT_OUT
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        arrays = dict(found)
    table = parquet.read_table(tmp_path / "out.parquet")
    notes = parquet.read_metadata(tmp_path / "out.parquet").metadata
    notes = parquet.read_metadata(tmp_path / "out.parquet").metadata
    told = {k.decode(): json.loads(v) for k, v in notes.items() if k in (b"about", b"left_out")}
    assert told["left_out"] == done.left_out
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [row["file"] for row in rows] == [*arrays["photo_file"], *arrays["recording_file"]]
    for kind in ("photo", "recording"):
        own = [row for row in rows if row["kind"] == kind]
        for by in ("judge", "referee"):
            np.testing.assert_array_equal(np.array([row[by] for row in own], "f4"), arrays[f"{kind}_{by}"])
    w_RLD = np.array([row["w"] for row in rows if row["w"] is not None], "f4")
    np.testing.assert_array_equal(w_RLD.reshape(-1, *told["about"]["w_shape"]), arrays["recording_w"])
    assert [row["doubt"] or "" for row in rows if row["kind"] == "recording"] == arrays["recording_doubt"].tolist()


@pytest.mark.parametrize("gone", ["the recordings", "the photos"])
def test_a_folder_of_one_kind_has_no_rows_of_the_other(run: Run, folder: Path, tmp_path: Path, gone: str) -> None:
    suffixes = (".wav", ".flac") if gone == "the recordings" else (".png", ".jpg", ".webp")
    for path in [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]:
        path.unlink()
    done = embed(run, str(folder), str(tmp_path / "out.npz"), quiet=True)
    assert (done.photos, done.recordings) == ((3, 0) if gone == "the recordings" else (0, 3))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert ("recording_w" in found, "photo_judge" in found) == (done.recordings > 0, done.photos > 0)
        assert (len(found["photo_file"]), len(found["recording_file"])) == (done.photos, done.recordings)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_where_nothing_can_be_read_nothing_is_written(run: Run, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "files").mkdir()
    with pytest.raises(V2FError, match="none of 0 files is a recording or a photo that can be read"):
        embed(run, str(tmp_path / "files"), str(tmp_path / f"out.{suffix}"), quiet=True)
    (tmp_path / "files" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(V2FError, match=r"none of 1 files .* broken\.png: photo cannot be decoded"):
        embed(run, str(tmp_path / "files"), str(tmp_path / f"out.{suffix}"), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_what_cannot_be_done_is_told_in_one_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(V2FError, match=r"as NPZ or Parquet; name the output something\.npz"):
        embed(run, str(folder), str(tmp_path / "out.csv"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(V2FError, match=r"pyarrow is not installed; install it, or write a \.npz"):
        embed(run, str(folder), str(tmp_path / "out.parquet"))
