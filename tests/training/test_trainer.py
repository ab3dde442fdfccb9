"""A killed run resumes bit for bit as if nothing had happened (promise 5: numbers are repeatable)."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from systems.reading import fixed
from systems.small import SMALL
from torch.nn.modules.module import register_module_forward_pre_hook

from v2f import cli
from v2f.config import build
from v2f.data.manifest import Dataset, open_dataset
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run
from v2f.storage import disk
from v2f.system import System
from v2f.systems import SYSTEMS
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.training.rank_zero import RankZero
from v2f.training.stopping import MISTAKE
from v2f.training.trainer import fit

REPOSITORY = Path(__file__).resolve().parents[2]


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


def test_a_finished_run_stays_as_it_is_and_more_steps_are_a_change_of_configuration(run_values):
    config = build(RunConfig, run_values(steps=2), "test")
    folder = fit(config)
    before = final(folder)
    assert fit(config, resume="auto") == folder
    assert all(torch.equal(before[k], v) for k, v in final(folder).items())
    with pytest.raises(V2FError, match=r"there is already a run here; resume it with --resume auto"):
        fit(config)
    longer = build(RunConfig, run_values(steps=3), "test")
    with pytest.raises(V2FError, match=r"the configuration changed \(train\.steps: 2 -> 3\)"):
        fit(longer, resume="auto")


def test_other_data_are_refused_by_their_fingerprint(run_values, tmp_path, tiny_shards):
    folder = fit(build(RunConfig, run_values(steps=1), "test"))
    newest = checkpoint.latest(f"{folder}/checkpoints")
    record = checkpoint.read_state(newest)
    record["state"]["fingerprint"] = "another"
    record["sha256"] = checkpoint.checksum_of(record)
    Path(newest, "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(
        V2FError, match=r"the data\'s fingerprint is \w+, but \S+ was trained on another; resume with the data"
    ):
        fit(build(RunConfig, run_values(steps=1), "test"), resume="auto")


def test_a_run_does_not_resume_from_a_record_with_a_flipped_bit(run_values):
    config = build(RunConfig, run_values(steps=2), "test")
    newest = checkpoint.latest(f"{fit(config)}/checkpoints")
    record = Path(newest) / "checkpoint.json"
    record.write_bytes(record.read_bytes().replace(b'"step": 2', b'"step": 3', 1))
    with pytest.raises(V2FError, match=r"checkpoint\.json: damaged \(its checksum does not match\); there is no older"):
        fit(config, resume="auto")


def test_numbers_that_are_not_finite_are_skipped_and_then_stop_the_run(run_values, monkeypatch):
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
    assert all(math.isfinite(value) for value in logged(folder).values())
    assert all(torch.isfinite(t).all() for t in final(folder).values())
    values = run_values(steps=6, max_skipped=2) | {"out": folder + "-2"}
    with pytest.raises(V2FError, match="step 4, phase supervised: the loss is not finite for 2 steps in a row"):
        fit(build(RunConfig, values, "test"))


def test_a_first_start_that_fails_can_be_resumed_with_a_repaired_configuration(run_values, monkeypatch, tmp_path):
    def too_large(self, phase, batch, step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    values = run_values(steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(VoiceStyledFace, "loss", too_large)
        with pytest.raises(V2FError, match=r"then a smaller data\.batch"):
            fit(build(RunConfig, values, "test"))
    smaller = build(RunConfig, values | {"data": values["data"] | {"batch": 4}}, "test")
    folder = fit(smaller, resume="auto")
    assert Run(folder).config == smaller
    assert json.loads(Path(folder, "starts.jsonl").read_text().splitlines()[-1])["changed"] == []


def test_a_start_that_is_refused_leaves_the_configuration_as_it_was(run_values):
    values = run_values(steps=2)
    config = build(RunConfig, values, "test")
    folder = fit(config)
    other = build(RunConfig, values | {"data": values["data"] | {"window": 4}}, "test")
    with pytest.raises(V2FError, match=r"the order of the samples is not that of"):
        fit(other, resume="auto", allow_changes=True)
    assert Run(folder).config == config
    assert fit(config, resume="auto") == folder


def test_steps_trained_again_under_another_configuration_have_its_points_alone(run_values, capsys):
    values = run_values(steps=4, checkpoint_every=2, validate_every=2)
    folder = fit(build(RunConfig, values, "test"))
    before, spool = logged(folder), Path(folder, "metrics.jsonl").read_bytes().splitlines()
    shutil.rmtree(f"{folder}/checkpoints/step-00000004")  # as if killed before it was saved
    system = values["system"]
    rates = {module: 8 * rate for module, rate in system["optimizer"]["lr"].items()}
    changed = values | {"system": system | {"optimizer": system["optimizer"] | {"lr": rates}}}
    fit(build(RunConfig, changed, "test"), resume="auto", allow_changes=True)
    assert "steps after 2 are trained again: what was logged of them" in capsys.readouterr().err
    after = logged(folder)  # each point once
    assert after.keys() == before.keys()
    for (step, name), value in after.items():
        if name.startswith("rate/"):
            assert value == pytest.approx(before[step, name] * (8 if step > 2 else 1))
    rolled_back = Path(folder, "rolled-back.jsonl").read_bytes().splitlines()
    assert rolled_back == [line for line in spool if json.loads(line)["step"] > 2]


def test_checkpoints_without_their_configuration_are_a_run_too(run_values):
    config = build(RunConfig, run_values(steps=2), "test")
    folder = fit(config)
    Path(folder, "config.yaml").unlink()
    with pytest.raises(V2FError, match=r"there is already a run here; resume it with --resume auto"):
        fit(config)
    assert fit(config, resume="auto") == folder
    assert Run(folder).config == config


def test_a_picture_that_cannot_be_written_does_not_stop_the_training(run_values, capsys):
    values = run_values(steps=2, validate_every=1)
    Path(values["out"]).mkdir()
    Path(values["out"], "samples").write_text("in the way")
    folder = fit(build(RunConfig, values, "test"))
    assert checkpoint.latest(f"{folder}/checkpoints").endswith("step-00000002")
    said = capsys.readouterr().err
    assert "step-00000001.png: cannot write it, " in said
    assert "/samples is in the way; move it away, or choose another place; training continues" in said
    assert any(name.startswith("valid/") for _, name in logged(folder))


def test_a_file_in_the_way_is_a_mistake_and_a_full_disk_is_worth_another_start(
    run_values, tmp_path, monkeypatch, capsys
):
    (tmp_path / "recipe.yaml").write_text(json.dumps(run_values(steps=1)))
    (tmp_path / "file").write_bytes(b"")

    def start(out: Path) -> tuple[int, str]:
        code = cli.main(["train", "--config", str(tmp_path / "recipe.yaml"), f"out={out}"])
        return code, capsys.readouterr().err.splitlines()[-1]

    code, told = start(tmp_path / "file" / "run")
    assert code == MISTAKE
    assert f"the file {tmp_path}/file is in the way; move it away" in told

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.tempfile, "mkstemp", full)
    code, told = start(tmp_path / "run")
    assert code == 1
    assert f"{tmp_path}/run/checkpoints/" in told
    assert "cannot write it, the disk is full; make room" in told


def test_the_best_is_judged_by_what_was_measured_on_it(run_values, capsys):
    train = {"steps": 6, "validate_every": 5, "checkpoint_every": 2, "keep": 9}
    best = {"metric": "margin", "mode": "max"}
    folder = fit(build(RunConfig, run_values(**train, best=best), "test"))
    states = [checkpoint.read_state(each)["state"] for each in checkpoint.committed(f"{folder}/checkpoints")]
    assert [(state["step"], state["measured_at"]) for state in states] == [(2, 2), (4, 4), (6, 6)]
    assert all("margin" in state["metrics"] for state in states)
    capsys.readouterr()
    values = run_values(**train, best={"metric": "margn", "mode": "max"}) | {"out": folder + "-2"}
    fit(build(RunConfig, values, "test"))
    assert "train.best.metric: margn is not a meter, so no checkpoint is kept as the best" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["loss/supervised/total", "valid/loss/supervised/total"])
def test_the_best_may_be_that_of_a_held_out_loss(run_values, name):
    train = {"steps": 3, "checkpoint_every": 1, "keep": 9, "best": {"metric": name, "mode": "min"}}
    folder = fit(build(RunConfig, run_values(**train), "test"))
    points = {step: v for (step, name), v in logged(folder).items() if name == "valid/loss/supervised/total"}
    assert sorted(points) == [1, 2, 3]
    run = Run.open(folder)
    assert run.step_of("best") == min(points, key=points.__getitem__)


def test_a_run_says_what_it_is(run_values, tiny_shards):
    run = Run.open(fit(build(RunConfig, run_values(steps=1, validate_every=1), "test")))
    assert run.info["stand_ins"] == "generator, identity, perceptual, codes"
    assert run.info["fingerprint"] == json.loads((Path(tiny_shards) / "manifest.json").read_text())["fingerprint"]
    assert run.info["versions"]["torch"] == version("torch")
    sheet = Image.open(Path(run.path) / "samples" / "step-00000001.png")
    assert sheet.width > 6 * 64
    assert (sheet.info["Run"], sheet.info["Step"]) == ("tiny", "1")
    names = {name for _, name in logged(run.path)}
    assert {"loss/supervised/total", "loss/supervised/id", "grad_norm/supervised", "rate/supervised/encoder"} <= names
    assert {"valid/identity_distance_ratio", "valid/w_norm", "valid/margin"} <= names


def test_a_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(V2FError, match=r"no run there \(no config\.yaml\)"):
        Run.open(str(tmp_path))


def test_data_without_a_validation_split_are_trained_on_and_reported(run_values, capsys):
    values = run_values(steps=1)
    values["data"] = values["data"] | {"valid": "seen-too"}
    fit(build(RunConfig, values, "test"))
    assert ": there is no split 'seen-too', so training runs without meters and samples" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ damaged data


@pytest.fixture
def damaged(tiny_shards, tmp_path) -> Callable[..., Dataset]:
    """A copy of the tiny shards, some samples of which have a flipped bit."""

    def damage(split: str, *numbers: int) -> Dataset:
        folder = tmp_path / "damaged"
        if not folder.exists():
            shutil.copytree(tiny_shards, folder)
        dataset = open_dataset(str(folder))
        for number in numbers:
            of = dataset.split(split)
            with open(of.shard_path(number), "r+b") as file:
                file.seek(of.byte(number) + 600)
                byte = file.read(1)[0]
                file.seek(of.byte(number) + 600)
                file.write(bytes([byte ^ 1]))
        return dataset

    return damage


def on(values: dict, dataset: Dataset, **data: object) -> RunConfig:
    return build(RunConfig, values | {"data": values["data"] | {"path": dataset.root} | data}, "test")


def quarantined(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "quarantine.jsonl").read_text().splitlines()]


def counted(folder: str, name: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"][name] for line in lines if name in line.get("metrics", {})]


def test_samples_that_cannot_be_used_are_named_counted_kept_in_the_checkpoint_and_stay_out(run_values, damaged):
    dataset = damaged("train", 5, 40)
    split = dataset.split("train")
    values = run_values(steps=12, checkpoint_every=6)  # 48 samples in batches of 8: two epochs
    folder = fit(on(values, dataset, max_bad_fraction=0.1))
    entries = quarantined(folder)
    assert sorted(entry["number"] for entry in entries) == [5, 40]
    for entry in entries:
        assert entry["slot"] < 48
        assert (entry["shard"], entry["key"], entry["byte"]) == (
            split.shard_path(entry["number"]),
            split.key(entry["number"]),
            split.byte(entry["number"]),
        )
        assert "checksum differs" in entry["reason"]
    steps = sorted(entry["slot"] // 8 + 1 for entry in entries)
    assert counted(folder, "data/quarantined") == [sum(at <= step for at in steps) for step in range(1, 13)]
    whole, at_six = checkpoint.committed(f"{folder}/checkpoints")[-1], checkpoint.committed(f"{folder}/checkpoints")[0]
    assert checkpoint.read_state(whole)["state"]["quarantine"] == [5, 40]
    undisturbed = final(folder)

    # Resume from the middle, on data repaired meanwhile: what is in quarantine stays there.
    assert checkpoint.read_state(at_six)["state"]["quarantine"] == [5, 40]
    shutil.rmtree(whole)
    shutil.rmtree(dataset.root)
    shutil.copytree(values["data"]["path"], dataset.root)
    fit(on(values, dataset, max_bad_fraction=0.1), resume="auto")
    assert all(torch.equal(undisturbed[name], tensor) for name, tensor in final(folder).items())
    assert quarantined(folder) == entries


def test_what_was_met_after_the_checkpoint_is_met_again(run_values, damaged):
    dataset = damaged("train", 5, 40)
    values = run_values(steps=6, checkpoint_every=1)
    values["train"] |= {"keep": 9}
    folder = fit(on(values, dataset, max_bad_fraction=0.1))
    entries = quarantined(folder)
    kept = [c for c in checkpoint.committed(f"{folder}/checkpoints") if checkpoint.read_state(c)["step"] <= 1]
    for later in checkpoint.committed(f"{folder}/checkpoints")[len(kept) :]:
        shutil.rmtree(later)
    with (Path(folder) / "quarantine.jsonl").open("a") as file:
        file.write('{"number": 5, "sl')  # killed while it wrote
    fit(on(values, dataset, max_bad_fraction=0.1), resume="auto")
    assert quarantined(folder) == entries


def test_too_many_bad_samples_stop_the_run_with_one_line_that_names_some(run_values, damaged, tmp_path):
    dataset = damaged("train", *range(10))
    values = run_values(steps=12)
    message = (
        r"^(\d+) of the 48 samples of train cannot be used, more than data\.max_bad_fraction=0\.05 allows; "
        r".*train-00000\.tar: sample \S+ at byte \d+: its checksum differs.*; "
        r"the whole list is in .*run/quarantine\.jsonl; repair the shards \(`v2f shards verify` lists all damage\), "
        r"or raise data\.max_bad_fraction$"
    )
    with pytest.raises(V2FError, match=message) as caught:
        fit(on(values, dataset, max_bad_fraction=0.05))
    assert len(quarantined(values["out"])) == int(str(caught.value).split()[0]) > 2
    with pytest.raises(V2FError, match=r"more than data\.max_bad_fraction=0\.01 allows"):  # the default
        fit(on(values | {"out": str(tmp_path / "other")}, dataset))


@pytest.mark.parametrize("system", sorted(SMALL))
def test_validation_is_no_larger_than_a_forward_pass_and_measures_the_same(run_values, monkeypatch, system):
    sizes: set[int] = set()
    validate, first = RankZero.validate, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Embedding)

    def watched(rank_zero, step):
        hook = register_module_forward_pre_hook(
            lambda module, inputs: sizes.add(len(inputs[0])) if isinstance(module, first) else None
        )
        try:
            validate(rank_zero, step)
        finally:
            hook.remove()

    monkeypatch.setattr(RankZero, "validate", watched)
    told, pictures = [], []
    for micro in (None, 2):
        sizes.clear()
        values = run_values(system, steps=1, micro_batch=micro)
        folder = fit(build(RunConfig, values | {"out": f"{values['out']}-{micro}"}, "test"))
        assert max(sizes) == (micro or 6)  # train.validate_samples of these tests
        told.append({name: value for (_, name), value in logged(folder).items() if name.startswith("valid/")})
        sheets = Path(folder, "samples").glob("step-00000001.png")  # none of embeddings, labels and codes
        pictures.append([Image.open(sheet).size for sheet in sheets])
    assert told[0]
    assert told[1] == pytest.approx(told[0], rel=1e-3, abs=1e-6, nan_ok=True)  # a margin is a difference of cosines
    assert pictures[0] == pictures[1]
    without = ("code_transformer", "speaker_recognition", "picture_recognition", "sound_recognition", "vq_audio")
    assert len(pictures[0]) == (system not in (*without, "voice_identity"))


@pytest.mark.parametrize("system", sorted(SMALL))
def test_validation_logs_the_mean_of_each_loss_over_the_held_out_samples(run_values, system):
    folder = fit(build(RunConfig, run_values(system, steps=2, micro_batch=4), "test"))  # 6 samples: 4 and 2
    points = {name: value for (step, name), value in logged(folder).items() if step == 2}
    trained = Run.open(folder).system()  # the averages, in eval mode
    split = open_dataset(Run(folder).config.data.home).split("valid")
    batch = next(fixed(split, trained, 6))
    for phase in trained.phases():
        with torch.no_grad():
            expected = trained.loss(phase.name, batch, 2)
        assert expected
        for part, value in expected.items():
            assert points[f"valid/loss/{phase.name}/{part}"] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
            assert f"loss/{phase.name}/{part}" in {name for _, name in logged(folder)}


def rude(monkeypatch, system: type[System], seen: list[dict[str, Any]] | None = None) -> None:
    """It draws without a key, and its meters forget that they are not training."""
    loss, meters = system.loss, system.meters.__wrapped__  # without its torch.no_grad

    def state() -> dict[str, Any]:
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return {"bf16": bf16, "grad": torch.is_grad_enabled()}

    def drawing(self, phase, batch, step):
        if seen is not None:
            seen.append({"what": "loss", "training": self.training, **state()})
        return {name: value * (1 + 0.1 * torch.rand(())) for name, value in loss(self, phase, batch, step).items()}

    def careless(self, batches):
        if seen is not None:
            seen.append({"what": "meters", "training": self.training, **state()})
        torch.rand(7)
        found = meters(self, batches)
        self.train()
        self.loss(self.phases()[0].name, batches[0], 0)  # collects statistics
        self.eval()
        return found

    monkeypatch.setattr(system, "loss", drawing)
    monkeypatch.setattr(system, "meters", careless)


@pytest.mark.parametrize("system", sorted(SMALL))
def test_a_training_is_bit_for_bit_the_same_with_validations_and_without(run_values, monkeypatch, tmp_path, system):
    rude(monkeypatch, SYSTEMS[system])
    found = []
    for every in (1, 100):
        torch.manual_seed(0)
        values = run_values(system, steps=4, validate_every=every) | {"out": str(tmp_path / str(every))}
        found.append(fit(build(RunConfig, values, "test")))
    often, once = map(final, found)
    assert often.keys() == once.keys()
    assert [name for name, t in often.items() if not torch.equal(t, once[name])] == []
    often, once = ({key: v for key, v in logged(run).items() if not key[1].startswith("valid/")} for run in found)
    assert often == once
    often, once = ({key: v for key, v in logged(run).items() if key[1].startswith("valid/")} for run in found)
    assert once
    assert once.items() <= often.items()  # what is drawn without a key is the same every time


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_validation_computes_as_a_step_does_and_without_gradients(run_values, monkeypatch, precision):
    seen: list[dict[str, Any]] = []
    rude(monkeypatch, VoiceStyledFace, seen)
    fit(build(RunConfig, run_values(steps=1, precision=precision), "test"))
    step, meters, forgot, validation = seen
    bf16 = precision == "bf16"
    assert step == {"what": "loss", "training": True, "bf16": bf16, "grad": True}
    assert meters == {"what": "meters", "training": False, "bf16": bf16, "grad": False}
    assert forgot == {"what": "loss", "training": True, "bf16": bf16, "grad": False}
    assert validation == {"what": "loss", "training": False, "bf16": bf16, "grad": False}


def test_out_of_memory_in_a_first_validation_names_what_to_reduce(run_values, monkeypatch):
    def too_large(self, batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(VoiceStyledFace, "meters", too_large)
    told = (
        r"^out of memory in the first validation \(rank 0, cpu, which requested 20\.00 GiB\): set "
        r"train\.micro_batch=4 \(now 6; the same mathematics\), then fewer "
        r"train\.validate_samples or train\.validate_pictures, shorter clips"
    )
    with pytest.raises(V2FError, match=told):
        fit(build(RunConfig, run_values(steps=1), "test"))


def test_a_validation_draws_as_many_pictures_as_configured(run_values):
    widths = {}
    for pictures in (2, 5, 16):
        values = run_values(steps=1, validate_pictures=pictures)
        folder = fit(build(RunConfig, values | {"out": f"{values['out']}-{pictures}"}, "test"))
        widths[pictures] = Image.open(f"{folder}/samples/step-00000001.png").width
    assert widths == {pictures: shown * (64 + 1) + 1 for pictures, shown in ((2, 2), (5, 5), (16, 6))}


def test_validation_leaves_out_and_counts_what_cannot_be_used(run_values, damaged, capsys):
    dataset = damaged("valid", 0, 3)
    folder = fit(on(run_values(steps=1), dataset))
    assert counted(folder, "data/valid_left_out") == [2]
    assert counted(folder, "data/quarantined") == [0]
    assert "validation leaves out 2 samples that cannot be used; the first: " in capsys.readouterr().err
    assert counted(folder, "valid/w_norm") != []
    Path(dataset.split("valid").shard_path(0)).unlink()
    nothing = run_values(steps=1) | {"out": f"{folder}-2"}
    assert counted(fit(on(nothing, dataset)), "valid/w_norm") == []


@pytest.mark.slow
def test_two_ranks_learn_from_each_other_what_is_bad(run_values, damaged, tmp_path):
    dataset = damaged("train", *range(0, 48, 12))
    config = on(run_values(steps=8, checkpoint_every=4, log_every=3), dataset, max_bad_fraction=0.1, workers=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    train = [*launcher, *command(recipe)[1:]]
    done = subprocess.run(train, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = config.folder
    state = checkpoint.read_state(checkpoint.latest(f"{folder}/checkpoints"))["state"]
    assert state["quarantine"] == [0, 12, 24, 36]
    entries = quarantined(folder)
    assert sorted(entry["number"] for entry in entries) == [0, 12, 24, 36]
    assert {entry["slot"] % 8 // 4 for entry in entries} == {0, 1}  # both ranks met some
    assert counted(folder, "data/quarantined")[-1] == 4

    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_fraction": 0.03})})
    recipe.write_text(yaml.safe_dump(strict.model_dump(mode="json") | {"out": str(tmp_path / "strict")}))
    supervised = [sys.executable, "-m", "v2f.cli", "exec", *launcher, "--max-restarts=3", *command(recipe)[1:]]
    stopped = subprocess.run(
        [*supervised, "--resume", "auto"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert stopped.returncode == MISTAKE, stopped.stderr[-3000:]
    assert len((tmp_path / "strict" / "starts.jsonl").read_text().splitlines()) == 1  # no launcher starts it again
    told = "v2f: 2 of the 48 samples of train cannot be used, more than data.max_bad_fraction=0.03 allows"
    assert stopped.stderr.count(told) == 2  # by both ranks


# ------------------------------------------------------------------------------------------------ where data lie


def test_a_cache_changes_nothing_but_what_the_store_is_asked_for(run_values, tmp_path):
    values = run_values(steps=3)
    plain = final(fit(build(RunConfig, values, "test")))
    cache = {"path": str(tmp_path / "cache"), "gb": 0.1}
    asked = []
    for name in ("filled", "used"):
        one = values | {"out": str(tmp_path / name), "data": values["data"] | {"cache": cache}}
        folder = fit(build(RunConfig, one, "test"))
        assert all(torch.equal(plain[key], tensor) for key, tensor in final(folder).items())
        asked.append(counted(folder, "data/bytes_read_per_rank")[-1])
    assert asked[1] < asked[0] / 2  # the first one ended while it read ahead


def test_a_mix_is_trained_on_resumes_and_is_refused_with_other_weights(run_values, tiny_shards, tmp_path):
    values = run_values(steps=4, checkpoint_every=2)
    values["data"] = {key: value for key, value in values["data"].items() if key != "path"}

    def mixed(weight: float, out: str) -> RunConfig:
        mix = [{"path": tiny_shards, "weight": 3}, {"path": tiny_shards, "weight": weight, "split": "seen"}]
        return build(RunConfig, values | {"out": str(tmp_path / out), "data": values["data"] | {"mix": mix}}, "test")

    folder = fit(mixed(1.0, "run"))
    whole = final(folder)
    shutil.rmtree(checkpoint.latest(f"{folder}/checkpoints"))
    fit(mixed(1.0, "run"), resume="auto")
    assert all(torch.equal(whole[key], tensor) for key, tensor in final(folder).items())
    with pytest.raises(V2FError, match=r"the order of the samples is not that of .*step-00000004: data\.mix"):
        fit(mixed(2.0, "run"), resume="auto")
    assert counted(folder, "valid/w_norm") != []
    other = fit(mixed(2.0, "other"))
    assert any(not torch.equal(whole[key], tensor) for key, tensor in final(other).items())


@pytest.mark.parametrize("data", [{}, {"path": "a", "mix": [{"path": "b"}]}])
def test_data_are_one_data_set_or_a_mix(run_values, data):
    values = run_values()
    values["data"] = {key: value for key, value in values["data"].items() if key != "path"} | data
    with pytest.raises(V2FError, match=r"data needs either path \(one data set\) or mix \(several\)"):
        build(RunConfig, values, "test")
