"""Voices among photos: systems whose score is known, and what the table and the file say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeSystem, make_data, make_run, register
from torch import Tensor

from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.runs.run import Run
from v2f.system import Embedding, Kind
from v2f.systems.voice_identity import VoiceIdentity


class Placing(FakeSystem):
    """Gives a voice the embedding of its person's first photo, or that of one person to everyone."""

    protocol = "identities_of_voices"
    verdict = VoiceIdentity.verdict  # type: ignore[assignment]

    def makes(self) -> dict[str, Kind]:
        return {"embedding": Embedding(24)}

    def sample(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"embedding": self.embed(super().sample(batch)["face"])}


@pytest.fixture(autouse=True)
def _fake_system(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def measured(tmp_path: Path, kind: str = "copy", **data: Any) -> dict[str, Any]:
    make_data(tmp_path / "data", {"test": range(30)}, **data)
    run, _ = make_run(tmp_path / "run", tmp_path / "data", kind)
    system = Placing(run.config.system).eval()  # type: ignore[arg-type]
    found = evaluate(run, system=system, progress=False, device="cpu")
    assert Run.open(run.path).evaluated == found
    return found["splits"]["test"]


def test_a_voice_that_is_placed_at_its_photo_is_always_found(tmp_path: Path) -> None:
    test = measured(tmp_path, synthetic=True)
    assert test["by"].keys() == {"judge"}
    lines = test["by"]["judge"]["lines"]
    assert lines.keys() == {"embedding", "clips", "U1", "U2", "U3", "U4", "strongest", "photo"}
    for line in ("embedding", "clips"):
        assert lines[line]["R@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert lines[line]["identity_distance_ratio"] == pytest.approx(1.0)
        assert lines[line]["picture"] is None
    assert (lines["embedding"]["queries"], lines["clips"]["queries"]) == (60, 30)
    assert lines["U2"]["R@10"]["value"] < 1  # these squares have nothing to do with the world's faces
    assert test["by"]["judge"]["consistency"]["same"] == pytest.approx(1.0)
    assert test["verdict"] is None


def test_one_place_for_everyone_is_chance_and_named(tmp_path: Path) -> None:
    test = measured(tmp_path, "constant", photos=1)
    lines = test["by"]["judge"]["lines"]
    assert lines.keys() == {"embedding", "clips"}
    assert lines["embedding"]["R@1"]["value"] == pytest.approx(1 / 30)
    assert np.isclose(lines["embedding"]["identity_distance_ratio"], 0.0, atol=1e-6)
    assert "one embedding for every voice" in test["verdict"]
    assert any("second photo" in note for note in test["notes"])


def test_a_system_without_an_embedding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSystem, "protocol", "identities_of_voices")
    make_data(tmp_path / "data", {"test": range(3)})
    run, system = make_run(tmp_path / "run", tmp_path / "data")
    with pytest.raises(V2FError, match="this system asks for wav, and makes face"):
        evaluate(run, system=system, progress=False, device="cpu")
