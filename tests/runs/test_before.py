"""What the code before `asks` and `makes` wrote opens, loads and goes on: see ``tests/golden/before-16/README.md``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from v2f.cli import main
from v2f.config import build, read_yaml
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.training.trainer import fit

BEFORE = Path(__file__).resolve().parents[1] / "golden" / "before-16"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
CHECKPOINT = "checkpoints/step-00000002"
PAGE = (BEFORE.parent.parent.parent / "docs" / "compatibility.md").read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run, since a start writes into it."""
    return Path(shutil.copytree(BEFORE / "run", tmp_path / "run"))


def logged(run: Path) -> dict[str, dict[str, float]]:
    """Losses, norms, rates and meters by step."""
    found: dict[str, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        found.setdefault(str(point["step"]), {}).update(point.get("metrics", {}))
    return found


def test_the_data_set_opens_and_keeps_its_fingerprint() -> None:
    dataset = open_dataset(str(BEFORE / "data"))
    said = json.loads((BEFORE / "data" / "manifest.json").read_text())
    assert dataset.fingerprint == said["fingerprint"] == dataset.manifest.content_fingerprint()
    manifest = dataset.manifest
    assert (manifest.schema_version, manifest.holds, manifest.arrays) == (1, ["audio", "photos"], {})
    assert main(["shards", "verify", str(BEFORE / "data")]) == 0


@pytest.mark.parametrize("which", ["run", "export"])
def test_it_makes_the_picture_that_it_made(which: str) -> None:
    system = Run.open(str(BEFORE / which)).system()
    with torch.no_grad():
        face_13HH = system.sample({"noise": torch.linspace(-200, 200, 6)[None]})["face"]
    expected_13HH = torch.tensor(EXPECTED["face"]).reshape(1, 3, 16, 16)
    assert float(expected_13HH.std()) > 0.05
    assert torch.allclose(face_13HH, expected_13HH, atol=1e-4, rtol=0)


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_the_commands_accept_it(verb: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", verb, str(run)]) == 0
    assert main(["checkpoint", verb, str(run / CHECKPOINT)]) == 0
    assert verb == "verify" or f"data fingerprint: {Run.open(str(run)).info['fingerprint']}" in capsys.readouterr().out


def test_the_run_goes_on_as_it_went_on_then(run: Path) -> None:
    assert checkpoint.read_state(str(run / CHECKPOINT))["state"]["slot"] == 16
    values: dict[str, Any] = read_yaml(run / "config.yaml")
    values["out"], values["data"]["path"] = str(run), str(BEFORE / "data")
    fit(build(RunConfig, values, "test"), resume="auto")

    state = checkpoint.read_state(checkpoint.latest(str(run / "checkpoints")) or "")["state"]
    assert (state["step"], state["slot"]) == (4, 32)
    assert (run / "starts.jsonl").read_text().count('"step": 2') == 1
    found = logged(run)
    assert found.keys() == EXPECTED["numbers"].keys()
    for step, numbers in EXPECTED["numbers"].items():
        # Measured: bit-equal; kernels for another instruction set move a number by 1.2e-6 of its value.
        assert {name: found[step][name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-7), step


def test_a_record_without_a_checksum_is_read(run: Path) -> None:
    record = json.loads((run / CHECKPOINT / "checkpoint.json").read_text())
    before = {key: record[key] for key in ("format", "step", "saved", "parts", "state")}
    (run / CHECKPOINT / "checkpoint.json").write_text(json.dumps(before))
    assert checkpoint.read_state(str(run / CHECKPOINT))["state"]["slot"] == 16


def test_what_another_version_wrote_is_refused_as_the_page_says(tmp_path: Path) -> None:
    def changed(file: str, **values: Any) -> None:
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | values))

    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    told = []
    changed("data/manifest.json", schema_version=5)
    with pytest.raises(V2FError) as refused:
        open_dataset(str(tmp_path / "data"))
    told.append(str(refused.value))
    record = json.loads((tmp_path / "run" / CHECKPOINT / "checkpoint.json").read_text()) | {"format": 2}
    record = {key: record[key] for key in ("format", "step", "saved", "parts", "state")}
    (tmp_path / "run" / CHECKPOINT / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(V2FError) as refused:
        checkpoint.read_state(str(tmp_path / "run" / CHECKPOINT))
    told.append(str(refused.value))
    measured = {"data": {"path": "data", "fingerprint": "f"}, "splits": {"test": {"what": "unseen", "people": 2}}}
    (tmp_path / "run" / "eval.json").write_text(json.dumps(measured))
    with pytest.raises(V2FError) as refused:
        _ = Run.open(str(tmp_path / "run")).evaluated
    told.append(str(refused.value).partition(" `")[0])
    with open(tmp_path / "export" / "config.yaml", "a") as file:
        file.write("novel: 3\n")
    with pytest.raises(V2FError) as refused:
        _ = Run.open(str(tmp_path / "export")).config
    told.append(str(refused.value).partition(";")[0])
    for message in told:
        assert message.partition(": ")[2] in PAGE, message
    assert [message.partition(": ")[2][:10] for message in told] == [
        "schema ver",
        "checkpoint",
        "it was wri",
        "unknown ke",
    ]
