"""Order, checkpoints and repeatable numbers (promises 1, 4, 5) under launchers: signals, lost agents, kills, S3.

What a run did is read from its slot log.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from ports import free_port

from v2f.config import build
from v2f.errors import V2FError
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.folder import SCRATCH, RunFolder
from v2f.runs.run import Run
from v2f.storage import store
from v2f.training.slot_log import read_slots
from v2f.training.stopping import STOPPED, Stopped
from v2f.training.supervise import REJOINED
from v2f.training.trainer import fit

TRAIN = str(Path(__file__).resolve().parents[2] / "v2f" / "train.py")
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def wait_for(reached: Callable[[], Any], *processes: subprocess.Popen) -> Any:
    """Its first true value; the processes must not end before."""
    deadline = time.monotonic() + 240
    while not (value := reached()):
        assert all(process.poll() is None for process in processes), "it ended"
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.005)  # a look, not a guess: the value decides
    return value


def recipe(values: dict, folder: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return [TRAIN, "--config", str(path), "--resume", "auto"]


def steps_logged(out: str, rank: int = 0) -> int:
    logs = sorted(Path(out, "slots").glob(f"*-rank-{rank:05d}.jsonl"))
    return logs[-1].read_bytes().count(b"\n") if logs else 0


def assert_every_slot_once(out: str, steps: int, batch: int = 8) -> None:
    found = [(step, slot) for step, slot, _ in read_slots(out)]
    assert found == [(slot // batch, slot) for slot in range(steps * batch)]


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_the_same_step_on_all_and_other_ranks_resume(run_values, tmp_path):
    """4 ranks under ZeRO-2, then 2 under DDP, then 1: each resumes at the very next slot."""
    values = run_values(steps=2000, checkpoint_every=1000, sample_log=True)
    out, train = values["out"], recipe(values, tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [sys.executable, "-m", "v2f.cli", "exec", *torchrun, "--nproc_per_node=4", *train, "train.strategy=zero2"]
    with open(tmp_path / "log.txt", "wb") as log:
        process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=log)
    wait_for(lambda: steps_logged(out) > 2, process)
    rank(3, process).send_signal(signal.SIGTERM)
    assert process.wait(120) == STOPPED, (tmp_path / "log.txt").read_text()[-3000:]
    (folder,) = checkpoint.committed(f"{out}/checkpoints")
    step = checkpoint.step_of(folder)
    assert [steps_logged(out, rank) for rank in range(4)] == [step] * 4
    assert f"SIGTERM: saved at step {step} of 2000" in (tmp_path / "log.txt").read_text()

    process = subprocess.Popen([*torchrun, "--nproc_per_node=2", *train], env=os.environ | ENVIRONMENT)
    wait_for(lambda: len(list(Path(out, "slots").glob("*"))) == 6 and steps_logged(out) > 2, process)
    rank(1, process).send_signal(signal.SIGUSR1)
    assert process.wait(120) == 1, "without `v2f exec`, torchrun makes 1 of 75"
    middle = checkpoint.step_of(checkpoint.latest(f"{out}/checkpoints"))
    assert middle > step
    with pytest.raises(Stopped, match=rf"saved at step {middle + 3} of 2000"):
        fit(build(RunConfig, values, "test"), resume="auto", stop_request=_After(2))
    assert_every_slot_once(out, middle + 3)
    starts = [json.loads(line) for line in Path(out, "starts.jsonl").read_text().splitlines()]
    told = [(start["step"], start["world_size"], start["strategy"]) for start in starts]
    assert told == [(0, 4, "zero2"), (step, 2, "ddp"), (middle, 1, "ddp")]


def rank(number: int, launcher: subprocess.Popen) -> psutil.Process:
    (found,) = [
        child
        for child in psutil.Process(launcher.pid).children(recursive=True)
        if TRAIN in child.cmdline() and child.environ().get("RANK") == str(number)
    ]
    return found


@pytest.mark.slow
def test_training_survives_the_loss_of_an_agent(run_values, tmp_path):
    values = run_values(steps=60, checkpoint_every=5, sample_log=True)
    out, train = values["out"], recipe(values, tmp_path)
    port = free_port()
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=3"]
    agent += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test", "--monitor_interval=0.1"]
    agent += ["--rdzv_conf=last_call_timeout=10,join_timeout=240"]
    environment = os.environ | ENVIRONMENT | REJOINED  # else a slow machine would lose the second agent
    first = subprocess.Popen([*agent, *train], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(port), first)  # the first agent hosts the rendezvous
        second = subprocess.Popen([*agent, *train], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for(lambda: _starts(out)[-1:] == [2] and steps_logged(out) > 6, first, second)
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()
        assert first.wait(300) == 0
    finally:
        for process in (first, second):
            if process.poll() is None:
                process.kill()
    assert _starts(out)[-2:] == [2, 1]
    assert_every_slot_once(out, 60)


def _starts(out: str) -> list[int]:
    """The world sizes of all starts."""
    path = Path(out, "starts.jsonl")
    return [json.loads(line)["world_size"] for line in path.read_text().splitlines()] if path.exists() else []


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


class _After:
    """A stop request from the ``n``-th question on."""

    def __init__(self, questions: int) -> None:
        self._left = questions

    def __int__(self) -> int:
        self._left -= 1
        return int(self._left < 0)


def test_a_stop_at_the_step_of_a_validation_leaves_no_gap_in_the_points(run_values, tmp_path):
    def points(name: str) -> list[tuple[str, int, float | None]]:
        lines = map(json.loads, Path(values["out"], name).read_text().splitlines())
        return [
            (p["kind"], p["step"], p.get("metrics", {}).get("valid/w_norm")) for p in lines if p["kind"] != "system"
        ]

    values = run_values(validate_every=2)
    fit(build(RunConfig, values, "test"))
    undisturbed = points("metrics.jsonl")
    values["out"] = str(tmp_path / "stopped")
    with pytest.raises(Stopped, match="saved at step 2 of 4"):
        fit(build(RunConfig, values, "test"), stop_request=_After(1))
    fit(build(RunConfig, values, "test"), resume="auto")
    assert [step for kind, step, _ in undisturbed if kind == "validation"] == [2, 4]
    assert points("metrics.jsonl") == undisturbed


def test_a_run_on_s3_is_stopped_resumes_elsewhere_and_ends_like_one_on_a_disk(
    run_values, s3_root, tmp_path, monkeypatch
):
    values = run_values(steps=6, checkpoint_every=2, validate_every=2)
    plain = checkpoint.load(checkpoint.latest(fit(build(RunConfig, values, "test")) + "/checkpoints"))[0]
    config = build(RunConfig, values | {"out": f"{s3_root}/run"}, "test")
    monkeypatch.setenv(SCRATCH, str(tmp_path / "one machine"))
    with pytest.raises(Stopped, match=r"--max-time is over: saved at step 4 of 6; resume with --resume auto"):
        fit(config, stop_request=_After(3))
    monkeypatch.setenv(SCRATCH, str(tmp_path / "another"))
    fit(config, resume="auto")
    newest = checkpoint.latest(f"{s3_root}/run/checkpoints")
    assert newest == f"{s3_root}/run/checkpoints/step-00000006"
    tensors = checkpoint.load(newest)[0]
    assert tensors.keys() == plain.keys()
    assert all(torch.equal(plain[name], tensor) for name, tensor in tensors.items())
    there = RunFolder(f"{s3_root}/run")
    there.fetch("a reader elsewhere")
    lines = [json.loads(line) for line in (there.local / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [1, 2, 3, 4, 5, 6]
    starts = [json.loads(line)["step"] for line in (there.local / "starts.jsonl").read_text().splitlines()]
    assert starts == [0, 4]
    assert Run.open(f"{s3_root}/run").system().training is False


def test_a_changed_configuration_is_shown_and_refused_unless_allowed(run_values, capsys):
    values = run_values(steps=2)
    folder = fit(build(RunConfig, values, "test"))
    changed = build(RunConfig, values | {"train": values["train"] | {"steps": 3, "precision": "bf16"}}, "test")
    with pytest.raises(V2FError, match=r"precision: fp32 -> bf16; train\.steps: 2 -> 3\); .* allow the changes with"):
        fit(changed, resume="auto")
    fit(changed, resume="auto", allow_changes=True)
    assert "changed and allowed: train.steps: 2 -> 3" in capsys.readouterr().err
    assert checkpoint.latest(f"{folder}/checkpoints").endswith("step-00000003")
    starts = [json.loads(line) for line in Path(folder, "starts.jsonl").read_text().splitlines()]
    assert starts[1]["changed"] == ["train.precision: fp32 -> bf16", "train.steps: 2 -> 3"]


def test_a_batch_whose_numbers_are_bad_is_named_in_a_file(run_values, monkeypatch):
    from v2f.systems.voice_styled_face import VoiceStyledFace

    real = VoiceStyledFace.loss

    def broken(self, phase, batch, step):
        losses = real(self, phase, batch, step)
        return {**losses, "total": losses["total"] * (float("inf") if step else 1.0)}

    monkeypatch.setattr(VoiceStyledFace, "loss", broken)
    values = run_values(steps=6, max_skipped=2)
    with pytest.raises(
        V2FError,
        match=r"step 2, phase supervised: the loss is not finite for 2 .* the whole list is in .*bad-batch",
    ):
        fit(build(RunConfig, values, "test"))
    (path,) = Path(values["out"]).glob("bad-batch-step-00000002.json")
    found = json.loads(path.read_text())
    assert found["ranks"][0]["slot"] == list(range(16, 24))
    assert len(set(found["ranks"][0]["key"])) == 8


def test_on_s3_the_file_of_a_bad_batch_and_the_newest_points_outlive_the_machine(
    run_values, s3_root, tmp_path, monkeypatch
):
    from v2f.systems.voice_styled_face import VoiceStyledFace

    real = VoiceStyledFace.loss

    def broken(self, phase, batch, step):
        losses = real(self, phase, batch, step)
        return {**losses, "total": losses["total"] * (float("nan") if step else 1.0)}

    monkeypatch.setattr(VoiceStyledFace, "loss", broken)
    monkeypatch.setenv(SCRATCH, str(tmp_path / "a machine that is lost"))
    values = run_values(steps=6, max_skipped=3) | {"out": f"{s3_root}/bad"}
    with pytest.raises(V2FError, match=rf"the whole list is in {s3_root}/bad/bad-batch-step-00000003\.json"):
        fit(build(RunConfig, values, "test"))
    assert json.loads(store.read_bytes(f"{s3_root}/bad/bad-batch-step-00000003.json"))["step"] == 3
    lines = [json.loads(line) for line in store.read_bytes(f"{s3_root}/bad/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [1, 2, 3]


def test_a_saved_run_ends_well_even_if_its_last_points_cannot_be_published(run_values, monkeypatch, capsys):
    real = RunFolder.publish

    def away(self):
        if threading.current_thread() is threading.main_thread():
            raise V2FError("the store cannot be reached")
        real(self)

    monkeypatch.setattr(RunFolder, "publish", away)
    folder = fit(build(RunConfig, run_values(steps=2), "test"))
    assert checkpoint.latest(f"{folder}/checkpoints").endswith("step-00000002")
    assert "the store cannot be reached; the newest points and pictures are in" in capsys.readouterr().err


def test_the_watchdog_watches_the_start_of_a_run_too(run_values, monkeypatch):
    def looks(*_: object) -> None:
        raise V2FError(f"watched: {'watchdog' in {thread.name for thread in threading.enumerate()}}")

    monkeypatch.setattr("v2f.training.setup.prepare", looks)
    with pytest.raises(V2FError, match="watched: True"):
        fit(build(RunConfig, run_values(), "test"))


def test_a_spike_is_skipped_and_counted(run_values, monkeypatch):
    from v2f.systems.voice_styled_face import VoiceStyledFace

    real = VoiceStyledFace.loss

    def spiky(self, phase, batch, step):
        losses = real(self, phase, batch, step)
        return {**losses, "total": losses["total"] * (1e6 if step == 9 else 1.0)}

    monkeypatch.setattr(VoiceStyledFace, "loss", spiky)
    monkeypatch.setattr("v2f.training.progress._SPIKE_STEPS", 16)
    folder = fit(build(RunConfig, run_values(steps=12, spike_sigma=100.0, validate_every=100), "test"))
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    skipped = [line["metrics"]["skipped/supervised"] for line in lines if line["kind"] == "training"]
    assert [step for step, value in enumerate(skipped) if value] == [9]


def test_every_logged_point_has_goodput_starts_and_waiting(run_values):
    folder = fit(build(RunConfig, run_values(steps=2), "test"))
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    point = [line["metrics"] for line in lines if line["kind"] == "training"][-1]
    assert 0 < point["time/goodput"] <= 1
    assert point["time/starts"] == 1
    assert point["time/forward_seconds"] > 0
    assert 0 <= point["speed/data_wait_share"] < 1
    assert point["checkpoint/failed"] == 0


def test_a_phase_that_fails_alone_stops_the_run_too(run_values, monkeypatch):
    from v2f.systems.face_gan import FaceGAN

    real = FaceGAN.loss

    def broken(self, phase, batch, step):
        losses = real(self, phase, batch, step)
        return losses if phase == "generator" else {**losses, "total": losses["total"] * float("nan")}

    monkeypatch.setattr(FaceGAN, "loss", broken)
    values = run_values("face_gan", steps=9, max_skipped=3, validate_every=100)
    values["system"] = values["system"] | {"every": 1}
    with pytest.raises(V2FError, match=r"step 2, phase discriminator: the loss is not finite for 3 steps in a row"):
        fit(build(RunConfig, values, "test"))
