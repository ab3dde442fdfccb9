"""pSp in the preparation: which photos it sees, what of it a sample holds, and what must not change that."""

import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from v2f.config import build
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.sample import Sample
from v2f.data.transforms import Photo
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.prepare import psp
from v2f.prepare.pack import PackConfig, _workers, pack
from v2f.prepare.precompute import load, precompute
from v2f.prepare.remove import remove
from v2f.prepare.verify import verify
from v2f.web.dataset import show
from v2f.web.page import data_uri

STYLES, WIDTH = 4, 3
TONE = 0.4 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)


class FakePSP(torch.nn.Module):
    """Codes: the mean color of each quarter of the picture. Picture: one color, in which the last bits of the first
    code count, and which may lie outside of [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.threads: set[int] = set()
        self.broken = False

    def codes(self, img_B3HW: torch.Tensor) -> torch.Tensor:
        assert img_B3HW.dtype == torch.float32
        self.seen.append(tuple(img_B3HW.shape))
        self.threads.add(torch.get_num_threads())
        w_BLD = torch.nn.functional.adaptive_avg_pool2d(img_B3HW, 2).flatten(2).transpose(1, 2)
        return w_BLD * torch.nan if self.broken else w_BLD

    def pictures(self, w_BLD: torch.Tensor, size: int) -> torch.Tensor:
        return color(w_BLD[:, 0])[:, :, None, None].expand(-1, -1, size, size)


def color(code: Any) -> Any:
    return code * 512 % 3 - 1.25


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[FakePSP]]]:
    """All that were loaded so far. The file's name is its checksum."""
    loaded: list[FakePSP] = []

    def load(file: str, sha256: str | None, model: str) -> tuple[FakePSP, str]:
        assert model in ("encode", "frontalization")
        if sha256 not in (None, f"sha of {file}"):
            raise V2FError(f"{file}: its SHA-256 is another")
        loaded.append(FakePSP())
        return loaded[-1], f"sha of {file}"

    monkeypatch.setattr(psp, "load_psp", load)
    psp._loaded.cache_clear()
    yield lambda: loaded
    psp._loaded.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One voice; seven photos as large as pSp sees them, one color above and another below; the fourth is broken."""
    folder = tmp_path / "raw"
    folder.mkdir()
    soundfile.write(folder / "a.wav", TONE, 16000)
    for n in range(7):
        photo_HWC = np.full((256, 256, 3), [30 * n, 255 - 30 * n, 101], np.uint8)
        photo_HWC[128:] //= 2
        Image.fromarray(photo_HWC).save(folder / f"{n}.png")
    (folder / "3.png").write_bytes(b"broken")
    (folder / "pairs.csv").write_text("audio,image,identity\n" + "".join(f"a.wav,{n}.png,p{n}\n" for n in range(7)))
    return folder


def recipe(folder: Path, out: str, workers: int = 1, size: int = 256, **kinds: Any) -> PackConfig:
    pairs = {
        "csv": str(folder / "pairs.csv"),
        "people": {"train": 1.0, "valid": 0.0, "test": 0.0},
        "align": "none",
        "size": size,
        "psp": {"file": "psp.pt", "batch": 2, "device": "cpu", **kinds} if kinds else None,
    }
    values = {"out": str(folder.parent / out), "source": "pairs", "pairs": pairs, "workers": workers}
    return build(PackConfig, values, "the test")


def samples(dataset: Dataset) -> dict[str, Sample]:
    found = {}
    for i, key in enumerate(dataset.index.key.tolist()):
        raw = Path(dataset.shard_path(i)).read_bytes()[dataset.index.offset[i] :][: dataset.index.length[i]]
        found[key] = Sample.from_tar(key.decode(), raw)
    return {sample.identity: sample for sample in found.values()}


def expected_codes(n: int) -> np.ndarray:
    above = np.array([30 * n, 255 - 30 * n, 101])
    return (np.stack([above, above, above // 2, above // 2]) / 127.5 - 1).astype(np.float16)


def test_photos_are_redrawn_in_batches_and_the_codes_are_what_drew_them(
    folder: Path, fake: Callable[[], list[FakePSP]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("v2f.prepare.processes.CHUNK", 4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dataset = pack(recipe(folder, "out", pictures=True, codes=True, sha256="sha of psp.pt"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert verify(dataset.root) == []
    found = samples(dataset)
    assert sorted(found) == ["p0", "p1", "p2", "p4", "p5", "p6"]
    for identity, sample in found.items():
        codes = expected_codes(int(identity[1:]))
        assert np.abs(sample.codes() - codes).max() < 1e-3  # an ulp of float16
        drawn = np.round((np.clip(color(sample.codes()[0]), -1, 1) + 1) * 127.5)
        assert np.array_equal(sample.photo(), np.broadcast_to(drawn, (256, 256, 3)).astype(np.uint8))
    assert dataset.manifest.provenance["psp_sha256"] == "sha of psp.pt"
    _, used = fake()  # the first one was loaded to check the file
    assert {shape[1:] for shape in used.seen} == {(3, 256, 256)}
    assert {shape[0] for shape in used.seen} <= {1, 2}
    assert sum(shape[0] for shape in used.seen) == 6
    assert used.threads == {1}


def test_codes_alone_leave_the_photo_and_pictures_alone_leave_no_codes(
    folder: Path, fake: Callable[[], list[FakePSP]]
) -> None:
    plain = samples(pack(recipe(folder, "plain")))
    assert fake() == []
    codes = samples(pack(recipe(folder, "codes", codes=True)))
    for identity, sample in codes.items():
        assert np.array_equal(sample.photo(), plain[identity].photo())
        assert np.abs(sample.codes() - expected_codes(int(identity[1:]))).max() < 1e-3
        assert not plain[identity].has_codes
    pictures = samples(pack(recipe(folder, "pictures", pictures=True)))
    assert not any(sample.has_codes for sample in pictures.values())
    assert all(np.ptp(sample.photo(), axis=(0, 1)).max() == 0 for sample in pictures.values())
    assert all(shape[1:] == (3, 256, 256) for used in fake() for shape in used.seen)


def test_an_original_is_kept_beside_each_picture_and_is_never_read_as_one(
    folder: Path, fake: Callable[[], list[FakePSP]], tmp_path: Path
) -> None:
    plain = samples(pack(recipe(folder, "plain", size=64)))
    redrawn = pack(recipe(folder, "redrawn", size=64, pictures=True))
    dataset = pack(recipe(folder, "kept", size=64, pictures=True, keep_original=True))
    assert (redrawn.manifest.schema_version, dataset.manifest.schema_version) == (1, 4)
    assert dataset.manifest.holds == ["audio", "originals", "photos"]
    drawn = samples(redrawn)

    def check(root: str) -> set[str]:
        assert verify(root) == []
        found = samples(open_dataset(root))
        for identity, sample in found.items():
            assert np.array_equal(sample.photo(), drawn[identity].photo())
            assert np.array_equal(sample.original(), plain[identity].photo())
            assert sample.photo_count == 1
            for seed in range(8):
                read_3HW = Photo(64)(sample, keyed_rng(seed))
                assert np.array_equal(read_3HW.transpose(1, 2, 0), drawn[identity].photo())
        return set(found)

    assert check(dataset.root) == drawn.keys()
    precompute(dataset.root, str(tmp_path / "codes"), load(["identity.net=stand_in", "workers=1"]))
    assert check(str(tmp_path / "codes")) == drawn.keys()
    remove(dataset.root, ["p4"])
    assert check(dataset.root) == drawn.keys() - {"p4"}


def test_the_sheet_shows_a_photo_beside_its_frontalized_one(folder: Path, fake: Callable[[], list[FakePSP]]) -> None:
    pages = {}
    for name, keep in (("kept", True), ("gone", False)):
        dataset = pack(recipe(folder, name, pictures=True, keep_original=keep))
        cards = show(dataset.root, str(folder / f"{name}.html"))
        pages[name] = (folder / f"{name}.html").read_text()
        assert all(len(card.originals) == keep and len(card.photos) == 1 for card in cards)
    sample, card = samples(open_dataset(str(folder.parent / "kept")))["p2"], "photo 1 of p2-"
    was = pages["kept"].index(data_uri(sample.member("original.png"), "png"))
    now = pages["kept"].index(data_uri(sample.member("png"), "png"))
    assert pages["kept"].rindex("<li", 0, was) == pages["kept"].rindex("<li", 0, now)
    assert was < now
    assert pages["kept"].count("<figcaption>frontalized</figcaption>") == 6
    assert card in pages["kept"]
    assert "keep_original" not in pages["kept"]
    assert "<code>psp.keep_original: true</code> keeps them" in pages["gone"]
    show(pack(recipe(folder, "plain")).root, str(folder / "plain.html"))
    assert "frontal" not in (folder / "plain.html").read_text()


def test_pictures_a_second_are_in_the_progress_line_and_in_the_summary(
    folder: Path, fake: Callable[[], list[FakePSP]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(recipe(folder, "log", pictures=True))
    said = capsys.readouterr()
    pace = r"[\d.e+]+ pictures a second"
    out = re.escape(str(folder.parent / "log"))
    assert re.search(rf"{out}: train-00000\.tar written; pSp: 6 pictures so far, {pace}\n", said.out)
    assert re.search(rf"{out}: pSp processed 6 pictures in \d+ s, {pace}\n", said.out)
    assert said.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    pack(recipe(folder, "terminal", pictures=True))
    said = capsys.readouterr()
    assert "written" not in said.out
    assert re.search(rf"7/7 .*, {pace}\]", said.err)
    pack(recipe(folder, "plain"))
    said = capsys.readouterr()
    assert "pictures a second" not in said.out + said.err


@pytest.mark.parametrize(("size", "side"), [(30, 256), (300, 300)])
def test_pSp_sees_no_smaller_photo_than_it_was_made_for(
    folder: Path, fake: Callable[[], list[FakePSP]], size: int, side: int
) -> None:
    for name, sample in samples(pack(recipe(folder, "out", size=size, codes=True))).items():
        assert sample.photo().shape == (size, size, 3)
        top = sample.photo()[: size // 3].astype(int) - [30 * int(name[1:]), 255 - 30 * int(name[1:]), 101]
        assert np.abs(top).max() <= 1
    assert {shape[1:] for shape in fake()[-1].seen} == {(3, side, side)}


def test_how_pSp_is_run_makes_no_other_recipe_and_what_it_makes_does(
    folder: Path, fake: Callable[[], list[FakePSP]], capsys: pytest.CaptureFixture[str]
) -> None:
    pack(recipe(folder, "out", codes=True))
    pack(recipe(folder, "out", codes=True, batch=5, device="auto", sha256="sha of psp.pt"))
    assert "packed already from this recipe" in capsys.readouterr().out
    with pytest.raises(V2FError, match=r"another recipe is there \(pairs\.psp\.pictures differ\)"):
        pack(recipe(folder, "out", codes=True, pictures=True))
    with pytest.raises(V2FError, match=r"another recipe is there \(pairs\.psp differ\)"):
        pack(recipe(folder, "out"))
    with pytest.raises(V2FError, match="keep_original keeps the photos that `pictures: true` replaces"):
        recipe(folder, "out", codes=True, keep_original=True)


def test_a_data_set_from_before_these_keys_is_still_the_same_recipes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(pack(recipe(folder, "out")).root) / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("face", "min_face", "psp"):
        del manifest["provenance"]["recipe"]["pairs"][key]
    path.write_text(json.dumps(manifest))
    pack(recipe(folder, "out"))
    assert "packed already from this recipe" in capsys.readouterr().out


def test_what_cannot_work_is_one_clear_line(
    folder: Path, fake: Callable[[], list[FakePSP]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(V2FError, match=r"psp\.pt: its SHA-256 is another"):
        pack(recipe(folder, "out", codes=True, sha256="0" * 64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(V2FError, match=r"psp\.device: there is no GPU here that torch can use"):
        pack(recipe(folder, "out", codes=True, device="cuda"))
    monkeypatch.setattr(FakePSP, "pictures", lambda *_: torch.full((2, 3, 256, 256), torch.inf))
    with pytest.raises(V2FError, match=r"psp\.pt: its output for a photo is NaN or infinite"):
        pack(recipe(folder, "out", pictures=True))


def test_a_full_gpu_is_said_with_the_way_out(
    folder: Path, fake: Callable[[], list[FakePSP]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FakePSP, "codes", full)
    with pytest.raises(
        V2FError, match=r"psp\.batch: .* memory is too small for 2 photos at once.*lower it, or workers"
    ):
        pack(recipe(folder, "out", codes=True))


def test_not_every_core_holds_pSp_unless_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    with_psp = recipe(folder, "out", codes=True)
    assert _workers(with_psp.model_copy(update={"workers": None}), 10_000) == 4
    assert _workers(with_psp.model_copy(update={"workers": 16}), 10_000) == 16
    assert _workers(recipe(folder, "out").model_copy(update={"workers": None}), 10_000) == 64


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pSp's own code and random weights: in this process with all cores' threads, and in two processes."""
    from bench.random_weights import psp as random_psp

    torch.save(random_psp(8, 32), folder / "psp.pt")
    for module in ("processes", "pack"):
        monkeypatch.setattr(f"v2f.prepare.{module}.CHUNK", 3)
    kinds = {"file": str(folder / "psp.pt"), "pictures": True, "codes": True}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one = pack(recipe(folder, "one", **kinds))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        psp._loaded.cache_clear()
    two = pack(recipe(folder, "two", workers=2, **kinds))
    assert multiprocessing.active_children() == []
    assert one.fingerprint == two.fingerprint
    assert one.manifest == two.manifest
    codes = [sample.codes() for sample in samples(one).values()]
    assert {each.shape for each in codes} == {(8, 512)}
    assert all(np.abs(each - codes[0]).max() > 0 for each in codes[1:])
