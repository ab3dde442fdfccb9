"""Tars that others wrote: what is whole is indexed where it lies, trains, is verified, resumes; the rest is named."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from corpora import write_m4a
from PIL import Image
from toys.label_picture import LabelPicture
from toys.noise_picture import NoisePicture
from toys.toy import LABELS

import v2f
from v2f.cli import main
from v2f.config import build
from v2f.data.fetch import Reader
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.mix import Union, identities
from v2f.data.sample import Sample
from v2f.data.transforms import Photo, Waveform
from v2f.errors import V2FError
from v2f.prepare.index import index
from v2f.prepare.verify import verify
from v2f.prepare.yields import read_left_out
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.storage import store
from v2f.systems import SYSTEMS
from v2f.training.trainer import fit

PHOTOS = "photo: jpg|png\nidentity: json:who.name\nlabel: cls\n"


def picture(number: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number * 5 % 256, 80, 200)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def said(person: str) -> bytes:
    return json.dumps({"who": {"name": person}}).encode()


def tone(channels: int = 1, rate: int = 16000) -> np.ndarray:
    wav_T = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    return np.stack([wav_T] * channels, axis=1)


def sound(kind: str, channels: int = 1, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(channels, rate), rate, format=kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def map_file(folder: Path, text: str) -> str:
    path = folder / "map.yaml"
    path.write_text(text)
    return str(path)


def by_source(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The samples as the library gives them, by the keys that others gave them."""
    opened = v2f.open_dataset(dataset.root)
    found = {}
    for split in opened.splits:
        for key in opened.keys(split):
            sample = opened.sample(key, split)
            found[sample["json"]["key"]] = sample
    return found


@pytest.fixture
def faces(tmp_path: Path) -> str:
    """Three shards of ShardWriter: 24 people with two photos each, keys with sub-folders."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "faces-%04d.tar"), maxcount=16, verbose=0) as writer:
        for number in range(48):
            label = LABELS[number % 3]
            sample = {"__key__": f"set/{number:03d}", "png": picture(number), "cls": label}
            writer.write(sample | {"json": {"who": {"name": f"person {number // 2}"}, "made": number}})
    return f"{folder}/faces-{{0000..0002}}.tar"


@pytest.mark.parametrize("system", [NoisePicture, LabelPicture])
def test_shards_of_shard_writer_train_and_go_on_bit_for_bit(
    faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = sorted(Path(faces).parent.glob("*.tar"))
    before = [path.read_bytes() for path in tars]
    out = str(tmp_path / "data")
    assert main(["shards", "index", faces, "-o", out, "--map", map_file(tmp_path, PHOTOS)]) == 0
    assert main(["shards", "verify", out]) == 0
    assert "48 samples" in capsys.readouterr().out
    assert read_left_out(out) == []
    dataset = open_dataset(out)
    assert len(dataset.index.key) == 48
    assert dataset.manifest.identities == sorted(f"person {n}" for n in range(24))

    name = next(name for name in ("noise_picture", "label_picture") if system.__name__.lower() == name.replace("_", ""))
    monkeypatch.setitem(SYSTEMS, name, system)

    def train() -> dict[str, torch.Tensor]:
        values = {"name": "theirs", "out": str(tmp_path / "run"), "seed": 3, "system": {"name": name}}
        values["data"] = {"path": out, "batch": 8, "workers": 1, "window": 8, "partitions": 4}
        values["train"] = {"steps": 6, "threads": 1, "validate_every": 3, "validate_samples": 6, "checkpoint_every": 3}
        fit(build(RunConfig, values | {"tracking": {"uri": None}}, "test"), resume="auto")
        return checkpoint.load(checkpoint.latest(str(tmp_path / "run" / "checkpoints")) or "")[0]

    whole = train()
    shutil.rmtree(checkpoint.latest(str(tmp_path / "run" / "checkpoints")) or "")
    again = train()
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    assert [path.read_bytes() for path in tars] == before


def test_an_epoch_has_what_webdataset_reads(faces: str, tmp_path: Path) -> None:
    dataset = index([faces], str(tmp_path / "data"), map_file(tmp_path, PHOTOS))
    ours = by_source(dataset)
    theirs = list(webdataset.WebDataset(faces, shardshuffle=False, empty_check=False))
    assert sorted(sample["__key__"] for sample in theirs) == sorted(ours)
    for sample in theirs:
        mine = ours[sample["__key__"]]
        assert (mine["photos"][0] == np.array(Image.open(io.BytesIO(sample["png"])))).all()
        assert mine["identity"] == json.loads(sample["json"])["who"]["name"]
        assert mine["json"]["label"] == sample["cls"].decode()
    assert dataset.manifest.provenance["classes"] == {"label": sorted(LABELS)}


def test_an_odd_tar_gives_what_is_whole_and_names_the_rest(tmp_path: Path) -> None:
    photo, long, noisy = picture(1), "deep/" * 30, io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noisy, "PNG")
    cut = noisy.getvalue()[: len(noisy.getvalue()) // 2]
    tar = write_tar(
        tmp_path / "odd.tar",
        [
            ("__meta__/x.json", b"{}"),
            ("a/", b""),
            ("a/1.json", said("ada")),  # the JSON first
            ("a/1.JPG", picture(1, kind="JPEG")),  # and capitals
            ("a.b/2.png", photo),  # a folder with a dot
            ("a.b/", b""),
            ("a.b/2.json", said("bob")),
            ("README", b"no extension"),
            ("3.png", photo),  # two that are mixed
            ("4.png", photo),
            ("3.json", said("eve")),
            ("4.json", said("eve")),
            ("5.json", said("eve")),  # nothing but a JSON
            ("6.png", photo),
            ("6.json", b"{no"),
            ("7.png", cut),
            ("7.json", said("eve")),
            ("8.png", photo),
            ("8.png", photo),
            ("8.json", said("eve")),
            ("a/1.png", photo),  # its key stood before
            ("a/1.json", said("eve")),
            (f"{long}9.seg.png", photo),
            (f"{long}9.png", photo),
            (f"{long}9.json", said("José")),
            ("é ü.png", photo),
            ("é ü.json", said("Jose\N{COMBINING ACUTE ACCENT}")),
            ("a-1.png", photo),  # by our rules for keys the same as a/1
            ("a-1.json", said("ada")),
        ],
    )
    out = str(tmp_path / "data")
    dataset = index([str(tar)], out, map_file(tmp_path, "photo: jpg|png\nidentity: json:who.name\n"))
    assert verify(out) == []
    found = by_source(dataset)
    assert {name: sample["identity"] for name, sample in found.items()} == {
        "a/1": "ada",
        "a.b/2": "bob",
        f"{long}9": "José",
        "é ü": "José",
        "a-1": "ada",
    }
    assert found["a/1"]["key"] == "a-1"
    assert found["a-1"]["key"] == "a-1-1"
    left = [(each.name.rpartition(": ")[2], each.reason.partition(" (")[0]) for each in read_left_out(out)]
    assert left == [
        ("3", "no identity: none of its members is called json"),
        ("4", "no identity: none of its members is called json"),
        ("3", "no photo: none of its members is called jpg|png"),
        ("4", "no photo: none of its members is called jpg|png"),
        ("5", "no photo: none of its members is called jpg|png"),
        ("6", "no identity: json:who.name holds none"),
        ("7", "photo png cannot be decoded"),
        ("8", "two members are called png"),
        ("a/1", "its key stood before, with other samples between"),
    ]


def test_plain_webdataset_reads_ours_as_the_page_shows(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(v2f.__file__).parents[1] / "docs" / "data.md").read_text()
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "webdataset" in each]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "quickstart").symlink_to(tiny_shards)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/data.md", "exec"), names)  # noqa: S102 - the page is ours
    data = v2f.open_dataset(tiny_shards)
    assert sorted(names["read"]) == sorted(data.keys("train"))
    for key, (identity, wav_T, size) in names["read"].items():
        ours = data.sample(key)
        assert identity == ours["identity"]
        assert np.array_equal(wav_T, ours["audio"])
        assert size == ours["photos"][0].shape[1::-1]


def test_labels_that_are_numbers_are_counted_as_numbers(tmp_path: Path) -> None:
    members = [part for n in (10, 2, 0) for part in ((f"{n}.png", picture(n)), (f"{n}.cls", str(n).encode()))]
    tar = write_tar(tmp_path / "a.tar", members)
    dataset = index([str(tar)], str(tmp_path / "data"), map_file(tmp_path, "photo: png\nlabel: cls\n"))
    assert dataset.manifest.provenance["classes"] == {"label": ["0", "2", "10"]}
    assert dataset.manifest.identities == ["0", "10", "2"]  # each its own


def test_any_sound_and_photo_is_brought_to_one_form(tmp_path: Path) -> None:
    write_m4a(tmp_path / "x.m4a", tone()[:, 0].astype(np.float32))
    sounds = {"mp3": sound("MP3"), "m4a": (tmp_path / "x.m4a").read_bytes(), "ogg": sound("OGG", rate=48000)}
    sounds |= {"wav": sound("WAV", channels=2, rate=44100), "flac": sound("FLAC", rate=8000)}
    modes = ["RGB", "RGBA", "L", "P", "LA"]
    members = []
    for number, (kind, content) in enumerate(sounds.items()):
        members += [(f"ada/{kind}.{kind}", content), (f"ada/{kind}.seg.png", picture(number, modes[number]))]
    members += [("ada/silent.wav", bytes(44)), ("ada/silent.seg.png", picture(1)), ("zoe.wav", sounds["wav"])]
    tar = write_tar(tmp_path / "both.tar", members)
    fields = "audio: flac|wav|mp3|m4a|ogg\nphoto: seg.png\nidentity: folder\nsample_rate: 16000\n"
    out = str(tmp_path / "data")
    dataset = index([str(tar)], out, map_file(tmp_path, fields))
    assert verify(out) == []
    assert main(["shards", "stats", out, "-o", str(tmp_path / "stats.html")]) == 0
    assert main(["shards", "show", out, "-o", str(tmp_path / "show.html")]) == 0
    assert dataset.manifest.holds == ["audio", "photos"]
    found = by_source(dataset)
    assert sorted(found) == sorted(f"ada/{kind}" for kind in sounds)
    for name, sample in found.items():
        assert sample["sample_rate"] == 16000, name
        assert 7900 <= len(sample["audio"]) <= 10300, name
        spectrum = np.abs(np.fft.rfft(sample["audio"][1000:7000]))
        assert abs(spectrum.argmax() * 16000 / 6000 - 440) < 5, name
        assert sample["photos"][0].shape == (12, 16, 3)
    assert {each.name.rpartition(": ")[2] for each in read_left_out(out)} == {"ada/silent", "zoe"}
    with v2f.Loader(out, {"wav": Waveform(0.25), "image": Photo(8)}, batch=5, seed=1) as loader:
        assert sorted(next(loader)["key"]) == sorted(v2f.open_dataset(out).keys("train"))


def person(name: str, numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    return [part for n in numbers for part in ((f"{n}.png", picture(n)), (f"{n}.json", said(name)))]


def test_splits_by_pattern_keep_people_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", person("ada", range(3)) + person("bob", range(3, 5)))
    write_tar(tmp_path / "train" / "1.tar", person("eve", range(3)))
    write_tar(tmp_path / "held" / "0.tar", person("bob", range(2)) + person("zoe", range(5, 7)))
    urls, fields = [f"{tmp_path}/{{train,held}}/0.tar", f"{tmp_path}/train/1.tar"], map_file(tmp_path, PHOTOS[:-11])
    out = str(tmp_path / "data")
    dataset = index(urls, out, fields, ["test=*/held/*"])
    assert verify(out) == []
    assert {name: (size.samples, size.people) for name, size in dataset.manifest.splits.items()} == {
        "train": (6, 2),
        "test": (4, 2),
    }
    assert [each.reason for each in read_left_out(out)] == ["its person is in test"] * 2
    with pytest.raises(V2FError, match="no tar lies at such a place"):
        index(urls, str(tmp_path / "other"), fields, ["test=*/hold/*"])
    with pytest.raises(V2FError, match=r"write train.valid.test=PATTERN"):
        index(urls, str(tmp_path / "other"), fields, ["seen=*"])


def test_they_mix_with_packed_shards(faces: str, tiny_shards: str, tmp_path: Path) -> None:
    theirs = index([faces], str(tmp_path / "data"), map_file(tmp_path, PHOTOS)).split("train")
    both = Union([open_dataset(tiny_shards).split("train"), theirs])
    found = Reader(both).read(np.arange(both.samples))
    samples = [Sample.from_tar(both.key(number), found[number]) for number in range(both.samples)]
    names = identities(both)
    assert [sample.identity for sample in samples] == [names[number] for number in both.identity_N]
    assert {sample.photo().shape for sample in samples[-theirs.samples :]} == {(12, 16, 3)}


def test_tars_that_moved_are_the_same_data_set(faces: str, tmp_path: Path) -> None:
    fields = map_file(tmp_path, PHOTOS)
    one = index([faces], str(tmp_path / "one"), fields)
    beside = tmp_path / "beside"
    shutil.move(Path(faces).parent, beside)
    two = index([f"{beside}/faces-000{{0..2}}.tar"], str(beside), fields)
    assert one.fingerprint == two.fingerprint
    assert not any("/" in place for place in two.manifest.foreign.places)
    shutil.move(beside, tmp_path / "again")
    assert verify(str(tmp_path / "again")) == []
    assert len(verify(str(tmp_path / "one"))) >= 3
    with pytest.raises(V2FError, match="a data set is there already"):
        index([faces], str(tmp_path / "one"), fields)


def test_damage_is_named_when_it_is_indexed_and_later(tmp_path: Path) -> None:
    fields = map_file(tmp_path, PHOTOS[:-11])
    tar = write_tar(tmp_path / "a.tar", person("ada", range(6)))
    content = bytearray(tar.read_bytes())
    (tmp_path / "cut.tar").write_bytes(content[: 9 * 1024 + 600])
    broken = bytearray(content)
    broken[8 * 1024 : 8 * 1024 + 512] = b"x" * 512
    (tmp_path / "broken.tar").write_bytes(broken)
    for name, kept in (("cut", 4), ("broken", 4)):
        dataset = index([f"{tmp_path}/{name}.tar"], str(tmp_path / name), fields)
        assert len(dataset.index.key) == kept
        assert any("damaged" in each.reason or "ends" in each.reason for each in read_left_out(dataset.root))
        assert verify(dataset.root) == []
    dataset = index([str(tar)], str(tmp_path / "data"), fields)
    content[dataset.index.offset[2] + 600] ^= 1
    tar.write_bytes(content)
    assert [problem.key for problem in verify(dataset.root)] == ["", "2"]


def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", person("ada", range(2)))
    out, fields = str(tmp_path / "data"), map_file(tmp_path, PHOTOS[:-11])
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.add(tar, "a.png")
    for urls, wanted in (
        ([f"{tmp_path}/a.tar.gz"], "not a plain tar"),
        ([f"{tmp_path}/b.tar"], "b.tar"),
        ([str(tar), str(tar)], "a tar is named twice"),
    ):
        with pytest.raises(V2FError, match=wanted):
            index(urls, out, fields)
    with pytest.raises(V2FError, match=r"no sample of .* is whole .2 samples: no audio"):
        index([str(tar)], out)
    for text, wanted in (
        ("photo: tiff", "'tiff' is none of"),
        ("identity: key", "neither audio nor photo"),
        ("foto: png", "unknown key 'foto'; did you mean 'photo'"),
    ):
        with pytest.raises(V2FError, match=wanted):
            index([str(tar)], out, map_file(tmp_path, text))
    index([str(tar)], out, map_file(tmp_path, PHOTOS[:-11]))
    for command in (["remove", out, "--identity", "ada"], ["precompute", out, "identity.net=stand_in", "--out", "x"]):
        assert main(["shards", *command]) == 1
    assert verify(out) == []


def test_it_is_the_same_through_an_object_store(faces: str, s3_root: str, tmp_path: Path) -> None:
    fields = map_file(tmp_path, PHOTOS)
    local = index([faces], str(tmp_path / "data"), fields)
    for path in Path(faces).parent.glob("*.tar"):
        store.write_bytes(f"{s3_root}/theirs/{path.name}", path.read_bytes())
    remote = index([f"{s3_root}/theirs/faces-{{0000..0002}}.tar"], f"{s3_root}/data", fields)
    assert remote.fingerprint == local.fingerprint
    assert verify(remote.root) == []

    def epoch(root: str, state: int = 0) -> list[dict[str, Any]]:
        count = (len(v2f.open_dataset(root).keys("train")) - state) // 8
        with v2f.Loader(root, {"image": Photo(8)}, batch=8, seed=2, state=state, workers=1) as loader:
            return [next(loader) for _ in range(count)]

    here, there, later = epoch(local.root), epoch(remote.root), epoch(remote.root, 16)
    for one, two in zip([*here, *here[2:]], [*there, *later], strict=True):
        assert one["key"] == two["key"]
        assert torch.equal(one["image"], two["image"])
