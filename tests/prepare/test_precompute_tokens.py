"""`v2f shards precompute --tokens`: the codes of sounds in the shards."""

from pathlib import Path

import numpy as np
import pytest
import sounding
import torch
import untrained

from v2f.cli import main
from v2f.data.loader import read_split
from v2f.data.manifest import ArrayKind, Dataset, open_dataset
from v2f.data.transforms import TokenWindow
from v2f.prepare.precompute import load, precompute
from v2f.prepare.verify import verify
from v2f.runs.run import Run
from v2f.systems.vq_audio import VQAudio


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sounding.make_data(str(tmp_path_factory.mktemp("tokens") / "data"))


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sounding.run_on(data.root, tmp_path_factory.mktemp("coder") / "run")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["shards", "precompute", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_each_sample_gets_the_codes_of_both_levels(data, run, tmp_path, capsys):
    out = str(tmp_path / "codes")
    assert main(["shards", "precompute", data.root, "--tokens", run, "--out", out, "batch=3", "workers=1"]) == 0
    coded = open_dataset(out)
    kinds = {"codes_top": ArrayKind(dtype="uint16", shape=[50]), "codes_bottom": ArrayKind(dtype="uint16", shape=[100])}
    assert coded.manifest.arrays == kinds
    told = coded.manifest.provenance["precomputed"]["tokens"]
    assert told["levels"] == {"top": [50, 8], "bottom": [100, 16]}
    assert (told["sample_rate"], told["seconds"], len(told["sha256"])) == (4000, 0.1, 64)
    assert coded.manifest.provenance["classes"] == data.manifest.provenance["classes"]
    assert not verify(out)
    coder = Run.open(run).system()
    assert isinstance(coder, VQAudio)
    reads = {**coder.transforms(), "top": TokenWindow("codes_top", 50), "bottom": TokenWindow("codes_bottom", 100)}
    batch = next(iter(read_split(coded.split("test"), reads, 10)))
    for level, number_BN in coder.encode(batch["wav"]).items():
        assert torch.equal(number_BN, batch[level])
        assert len(np.unique(number_BN)) > 1
    before = next(iter(read_split(data.split("test"), coder.transforms(), 10)))
    assert torch.equal(before["wav"], batch["wav"])
    # the same again has nothing to do; another run's codes are another data set, or members that are there already
    assert precompute(data.root, out, load([], tokens=run)) is not None
    assert "computed already by these nets, nothing to do" in capsys.readouterr().out
    other = sounding.run_on(data.root, tmp_path / "other", steps=2)
    assert "another data set is there" in refused(capsys, data.root, "--tokens", other, "--out", out)
    line = refused(capsys, out, "--tokens", other, "--out", str(tmp_path / "twice"), "workers=1")
    assert "has its codes_top.npy already" in line or "has its codes_bottom.npy already" in line


def test_what_codes_no_sounds_is_refused_in_a_line(data, run, tmp_path, capsys):
    (tmp_path / "face").mkdir()
    face = untrained.export(tmp_path / "face")
    line = refused(capsys, data.root, "--tokens", face, "--out", str(tmp_path / "out"))
    assert f"{face}: --tokens needs a run that codes sounds" in line
    nowhere = str(tmp_path / "nowhere")
    assert f"{nowhere}: no run there" in refused(capsys, data.root, "--tokens", nowhere, "--out", str(tmp_path / "out"))
    pictures = sounding.make_data(str(tmp_path / "pictures"), photos=True)
    line = refused(capsys, pictures.root, "--tokens", run, "--out", str(tmp_path / "out"))
    assert "not every sample has audio, but a sound coder needs it" in line
    assert not Path(tmp_path / "out").exists()
