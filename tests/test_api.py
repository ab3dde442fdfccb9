"""The library: what docs/api.md shows runs, and a loader's state is one integer with which another one goes on."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from corpora import voice
from systems.small import SMALL

import v2f
from v2f.data.transforms import PersonNumber, Photo, Waveform
from v2f.errors import V2FError

REPOSITORY = Path(__file__).resolve().parent.parent
READS = {"wav": Waveform(0.25), "image": Photo(16), "person": PersonNumber()}


def test_every_block_of_the_page_runs(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder like a clone, with small data and a small recipe under the names that the page uses."""
    shutil.copytree(tiny_shards, tmp_path / "data" / "quickstart")
    values: dict[str, Any] = {"name": "quickstart", "system": SMALL["voice_styled_face"]}
    values |= {"data": {"path": "data/quickstart", "batch": 8, "workers": 0}, "train": {"steps": 1, "threads": 1}}
    values |= {"tracking": {"uri": None}}
    (tmp_path / "launch" / "recipes").mkdir(parents=True)
    import yaml

    (tmp_path / "launch" / "recipes" / "quickstart.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    soundfile.write("voice.wav", voice(1), 16000)
    assert v2f.train(values) == "runs/quickstart"
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)  # noqa: S102 - the page is ours
    assert names["face"].size == (64, 64)
    assert names["face"].info["Run"] == "quickstart"
    assert (tmp_path / "face-from-python.png").exists()
    assert names["state"] == 24
    assert names["first"]["key"] == names["again"]["key"]
    np.testing.assert_array_equal(names["first"]["audio"], names["again"]["audio"])
    assert names["folder"] == "runs/from-python"


def test_a_state_is_gone_on_with_by_any_ranks_and_workers(tiny_shards: str) -> None:
    def slots(count: int, **more: Any) -> list[dict[str, Any]]:
        with v2f.Loader(tiny_shards, READS, batch=8, seed=5, **more) as loader:
            return [next(loader) for _ in range(count)]

    whole = slots(6)
    later = slots(3, state=24, workers=1)
    ranks = [slots(3, state=24, rank=rank, world_size=2) for rank in range(2)]
    for step in range(3):
        one = whole[3 + step]
        two = {name: [batches[step][name] for batches in ranks] for name in one}
        for name in ("wav", "image", "person", "slot", "weight"):
            assert torch.equal(later[step][name], one[name])
            assert torch.equal(torch.cat(two[name]), one[name])
        assert later[step]["key"] == one["key"] == [key for keys in two["key"] for key in keys]
    assert sorted(key for batch in whole for key in batch["key"]) == sorted(v2f.open_dataset(tiny_shards).keys("train"))
    with pytest.raises(
        V2FError, match="state 12 is not a multiple of the batch size 8; use the batch size that it was saved with"
    ):
        slots(1, state=12)


def test_what_is_not_there_is_one_line(tiny_shards: str, tmp_path: Path) -> None:
    data = v2f.open_dataset(tiny_shards)
    assert data.splits == {"train": 48, "valid": 6, "test": 6, "seen": 6} or set(data.splits) >= {"train", "valid"}
    assert repr(data).startswith("DataSet(")
    for which in (10_000, -1, "nobody"):
        with pytest.raises(V2FError, match=f"the split train has no sample {which!r}"):
            data.sample(which)
    with pytest.raises(V2FError, match="no run there"):
        v2f.load(str(tmp_path))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        v2f.trian  # noqa: B018


def test_import_v2f_imports_nothing_heavy() -> None:
    heavy = "[name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules]"
    code = f"import sys, v2f; print(v2f.__version__); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [v2f.__version__, "[]"]
