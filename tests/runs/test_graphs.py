"""What a system exports as a graph says what torch says, for a batch of another size, and nothing of the site."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from systems.small import SMALL
from torch import Tensor, nn

from v2f.cli import main
from v2f.config import build, dump_yaml
from v2f.errors import V2FError
from v2f.runs import checkpoint, graphs
from v2f.runs.config import RunConfig
from v2f.runs.export import export
from v2f.runs.run import Run, build_system
from v2f.runs.saver import Saver, deal
from v2f.system import Exported

REPOSITORY = Path(__file__).resolve().parents[2]


def run_of(system: str, folder: Path) -> str:
    """A run of one checkpoint, whose moving averages are not its weights."""
    values = {"name": "tiny", "seed": 3, "system": SMALL[system], "data": {"path": "shards", "batch": 8}}
    config = build(RunConfig, values | {"train": {"steps": 2}, "tracking": {"uri": None}}, "test")
    tensors = {name: t.detach().clone() for name, t in checkpoint.module_tensors(build_system(config)).items()}
    torch.manual_seed(0)
    for name, tensor in list(tensors.items()):
        floats = tensor.is_floating_point()
        tensors["ema/" + name.removeprefix("model/")] = tensor + 0.02 * torch.rand_like(tensor) if floats else tensor
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(config))
    saver = Saver(str(folder / "checkpoints"), rank=0, world_size=1, attempt="t", keep=9)
    state: Mapping[str, Any] = {"step": 2, "slot": 16, "config": config.model_dump(mode="json"), "weights": {}}
    saver.start(2, deal({name: t.nbytes for name, t in tensors.items()}, 1), tensors, state)
    saver.wait()
    assert saver.take_failures() == []
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_of("voice_styled_face", tmp_path_factory.mktemp("graphs") / "run")


def waves(count: int) -> Tensor:
    return 0.1 * torch.randn(count, 6400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_the_graph_says_what_torch_says(run: str, raw: bool, count: int, tmp_path: Path) -> None:
    out = tmp_path / "export"
    options = ["--raw"] if raw else []
    assert main(["checkpoint", "export", run, "-o", str(out), "--format", "torch-export", *options]) == 0
    graph = torch.export.load(out / "model.pt2").module()
    with torch.no_grad():
        told = graph(waves(count))
        for ema in (False, True):
            wanted: Tensor = Run.open(run).system(ema=ema).styles({"wav": waves(count)})  # type: ignore[attr-defined]
            assert bool(torch.allclose(told, wanted, atol=1e-5, rtol=0)) == (ema != raw)
    assert float(wanted.std()) > 1e-2


def test_the_export_is_as_without_a_graph_and_its_card_tells_of_it(run: str, tmp_path: Path) -> None:
    export(run, str(tmp_path / "plain"))
    export(run, str(tmp_path / "graph"), format="torch-export")
    plain, graph = ({path.name for path in (tmp_path / name).iterdir()} for name in ("plain", "graph"))
    assert graph - plain == {"model.pt2"}
    assert (tmp_path / "plain" / "config.yaml").read_bytes() == (tmp_path / "graph" / "config.yaml").read_bytes()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "graph"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = (tmp_path / "graph" / "README.md").read_text()
    assert "float32 [B, 6400] in [-1, 1]" in card
    assert "torch.export.load('model.pt2')" in card
    assert "model.pt2" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_graph_names_no_place_of_the_machine_that_wrote_it(run: str, tmp_path: Path) -> None:
    export(run, str(tmp_path / "export"), format="torch-export")
    content = (tmp_path / "export" / "model.pt2").read_bytes()
    for hidden in (str(REPOSITORY), str(tmp_path), run, "/home/", ".py"):
        assert hidden.encode() not in content, hidden


def test_a_system_that_exports_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = run_of("face_gan", tmp_path / "run")
    with pytest.raises(V2FError, match="the system face_gan exports no graph; leave --format out"):
        export(folder, str(tmp_path / "export"), format="torch-export")
    assert not (tmp_path / "export").exists()


def test_a_missing_package_is_told_with_the_way_out(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["checkpoint", "export", run, "-o", str(tmp_path / "export"), "--format", "onnx"]) == 1
    told = capsys.readouterr().err
    assert "onnx is not installed" in told
    assert "pip install 'v2f[onnx]'" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "export").exists()


def test_what_cannot_be_traced_is_told_in_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    exported = Exported(graph=Branches(), inputs={"x": torch.zeros(2, 3)}, makes="y", about="")
    with pytest.raises(V2FError, match=r"cannot be traced: [^\n]+$"):
        graphs.content(exported, "torch-export")


@pytest.mark.parametrize("count", [1, 5])
def test_onnx_says_what_torch_says(run: str, count: int, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    export(run, str(tmp_path / "export"), format="onnx")
    session = runtime.InferenceSession(str(tmp_path / "export" / "model.onnx"))
    (told,) = session.run(["w"], {"wav": waves(count).numpy()})
    with torch.no_grad():
        wanted: Tensor = Run.open(run).system().styles({"wav": waves(count)})  # type: ignore[attr-defined]
    assert np.abs(told - wanted.numpy()).max() < 1e-4
