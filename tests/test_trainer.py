"""Promise 5: a run that was killed goes on, bit for bit, as if nothing had happened."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from systems.small import SMALL

from v2f import checkpoint
from v2f.config import build
from v2f.errors import V2FError
from v2f.run import Run, RunConfig
from v2f.trainer import fit

REPOSITORY = Path(__file__).resolve().parent.parent


def final(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))[0]


def logged(folder: str) -> dict[tuple[int, str], float]:
    """Every loss and meter by step; a point that stands twice is an error."""
    points: dict[tuple[int, str], float] = {}
    for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.get("metrics", {}).items():
            if name.startswith(("loss/", "grad_norm/", "rate/", "valid/")):
                assert (record["step"], name) not in points
                points[record["step"], name] = value
    return points


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "v2f" / "train.py"), "--config", str(config), *more]


@pytest.mark.slow
@pytest.mark.parametrize("system", sorted(SMALL))
def test_forty_steps_are_twenty_a_kill_and_twenty_more(run_values, tmp_path, system):
    values = run_values(system, steps=40, checkpoint_every=20, validate_every=10)
    values["data"] = values["data"] | {"workers": 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values | {"out": str(tmp_path / "whole")}))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command(recipe), env=environment, check=True, capture_output=True, timeout=300)

    recipe.write_text(yaml.safe_dump(values | {"out": str(tmp_path / "killed")}))
    process = subprocess.Popen(command(recipe), env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 20: saved" in line:
            process.kill()
            break
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert Path(checkpoint.latest(f"{tmp_path}/killed/checkpoints")).name == "step-00000020"
    subprocess.run(command(recipe, "--resume", "auto"), env=environment, check=True, capture_output=True, timeout=300)

    whole, resumed = final(f"{tmp_path}/whole"), final(f"{tmp_path}/killed")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert logged(f"{tmp_path}/whole") == logged(f"{tmp_path}/killed")


def test_a_finished_run_goes_nowhere_and_a_longer_one_is_another_function(run_values):
    config = build(RunConfig, run_values(steps=2), "test")
    folder = fit(config)
    before = final(folder)
    assert fit(config, resume="auto") == folder
    assert all(torch.equal(before[k], v) for k, v in final(folder).items())
    with pytest.raises(V2FError, match=r"a run is there already; go on with --resume auto"):
        fit(config)
    longer = build(RunConfig, run_values(steps=3), "test")
    with pytest.raises(V2FError, match=r"the configuration changed, train\.steps: 2 -> 3"):
        fit(longer, resume="auto")


def test_other_data_are_refused_by_their_fingerprint(run_values, tmp_path, tiny_shards):
    folder = fit(build(RunConfig, run_values(steps=1), "test"))
    record = Path(checkpoint.latest(f"{folder}/checkpoints")) / "checkpoint.json"
    state = json.loads(record.read_text())
    state["state"]["fingerprint"] = "another"
    record.write_text(json.dumps(state))
    with pytest.raises(V2FError, match=r"its fingerprint is \w+, another in"):
        fit(build(RunConfig, run_values(steps=1), "test"), resume="auto")


def test_numbers_that_are_not_finite_are_skipped_and_then_stop_the_run(run_values, monkeypatch):
    from v2f.systems.voice_styled_face import VoiceStyledFace

    real = VoiceStyledFace.loss

    def broken(self, phase, batch, step):
        losses = real(self, phase, batch, step)
        return {**losses, "total": losses["total"] * (float("nan") if step in (1, 3, 4) else 1.0)}

    monkeypatch.setattr(VoiceStyledFace, "loss", broken)
    values = run_values(steps=6, max_skipped=3)
    folder = fit(build(RunConfig, values, "test"))
    skipped = [
        record["metrics"]["skipped/supervised"]
        for record in map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        if "skipped/supervised" in record.get("metrics", {})
    ]
    assert skipped == [0, 1, 0, 1, 1, 0]
    assert all(torch.isfinite(t).all() for t in final(folder).values())
    values = run_values(steps=6, max_skipped=2) | {"out": folder + "-2"}
    with pytest.raises(V2FError, match="step 4: loss or gradient is not finite for 2 steps in a row"):
        fit(build(RunConfig, values, "test"))


def test_a_run_says_what_it_is(run_values, tiny_shards):
    run = Run.open(fit(build(RunConfig, run_values(steps=1, validate_every=1), "test")))
    assert run.info["stand_ins"] == "generator, identity, perceptual, codes"
    assert run.info["fingerprint"] == json.loads((Path(tiny_shards) / "manifest.json").read_text())["fingerprint"]
    assert run.info["versions"]["torch"] == version("torch")
    assert (Path(run.path) / "samples" / "step-00000001.png").stat().st_size > 1000
    names = {name for _, name in logged(run.path)}
    assert {"loss/supervised/total", "loss/supervised/id", "grad_norm/supervised", "rate/supervised/encoder"} <= names
    assert {"valid/identity_distance_ratio", "valid/w_norm", "valid/margin"} <= names


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(V2FError, match=r"no run there \(no config\.yaml\)"):
        Run.open(str(tmp_path))


def test_data_without_a_validation_split_are_trained_on_and_that_is_said(run_values, capsys):
    values = run_values(steps=1)
    values["data"] = values["data"] | {"valid": "seen-too"}
    fit(build(RunConfig, values, "test"))
    assert "has no split 'seen-too': no meters and no samples" in capsys.readouterr().err
