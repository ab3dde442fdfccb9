"""The benchmark of a training step: the baseline is the same function as ours, its counts and rates are what they are
called, and it runs at a tiny size. How fast anything is, no test says."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from systems.small import SMALL
from torch import Tensor, nn
from torch.nn import functional as F

from bench import step, step_report, step_sizes
from bench.baseline import Baseline, Codes, Files, Identity, Perceptual, Steps, unpacked
from bench.machine import slug
from bench.parts import Clock, Counter, Parts, Work
from bench.step_sizes import BASELINE, ON_CPU, ON_GPU, SIZES, Arm, Runner, Twins, baseline_of, build, stored
from v2f.config import build as built
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.engine import Engine
from v2f.nn.frozen import FaceIdentity
from v2f.nn.irse import IRSE50
from v2f.nn.psp import PSP, GradualStyleEncoder, Map2Style, PSPCodeEncoder
from v2f.runs.config import RunConfig
from v2f.system import Batch, to_picture
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.weights import LPIPSWeights

CPU = torch.device("cpu")
OURS, STORED = Arm(True, "fp32"), Arm(True, "fp32", stored=True)
STYLEGAN2 = {"net": "stylegan2", "size": 64, "file": "none"}


def small(batch: int = 4, **changes: Any) -> VoiceStyledFace:
    """The system that the contract's tests train, with PReLU in the blocks, batch norm over the whole batch, and every
    gain, slope and bias off its start value."""
    values = SMALL["voice_styled_face"]
    encoder = values["encoder"] | {"bn_group": batch, "block_activation": "prelu"}
    system = values | {"encoder": encoder} | changes
    config = {
        "name": "small",
        "seed": 3,
        "system": system,
        "data": {"path": ".", "batch": batch},
        "train": {"steps": 1},
    }
    found = build(built(RunConfig, config, "small"), CPU, channel_max=8)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (found.encoder, found.mapping, found.generator):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return found


def a_batch(system: VoiceStyledFace, size: int = 4, dtype: torch.dtype = torch.float32) -> Batch:
    draw = torch.Generator().manual_seed(1)
    c = system.config
    return {
        "slot": torch.arange(size),
        "wav": (torch.rand(size, round(c.seconds * c.sample_rate), generator=draw) - 0.5).to(dtype),
        "image": torch.randint(256, (size, 3, c.image_size, c.image_size), dtype=torch.uint8, generator=draw),
        "weight": torch.ones(size, dtype=dtype),
    }


def trained(system: VoiceStyledFace | Baseline) -> dict[str, nn.Parameter]:
    modules = {"encoder": system.encoder, "mapping": system.mapping}
    return {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}


# ------------------------------------------------------------------------------------------------ the same function


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("generator", ["stand_in", "stylegan2"])
def test_the_baseline_has_our_losses_and_our_gradients(dtype: torch.dtype, apart: float, generator: str) -> None:
    """With all terms, except that there are codes for the stand-in only."""
    losses, frozen = SMALL["voice_styled_face"]["losses"], {}
    if generator == "stylegan2":
        losses, frozen = losses | {"style": 0.0}, {"generator": STYLEGAN2, "codes": None}
    system = small(frozen=frozen, losses=losses).to(dtype)
    baseline, batch = baseline_of(system).to(dtype), a_batch(system, dtype=dtype)
    ours = system.loss("supervised", batch, 0)
    theirs = baseline.losses(batch["wav"], to_picture(batch["image"], like=batch["wav"]))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name].item(), rel=apart), name
    ours["total"].backward()
    theirs["total"].backward()
    one, other = trained(system), trained(baseline)
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        mine, its = parameter.grad, other[name].grad
        assert mine is not None, name
        assert its is not None, name
        assert mine.abs().max() > 0, name
        torch.testing.assert_close(its, mine, rtol=apart, atol=apart * float(mine.abs().max()), msg=name)
    assert all(p.grad is None for p in baseline.generator.parameters())


def test_a_step_of_both_leaves_the_same_weights() -> None:
    """Clipped, with weight decay, at the rates of the modules."""
    optimizer = {"lr": {"encoder": 1e-3, "mapping": 5e-4}, "clip": 0.01, "weight_decay": 1e-2}
    system = small(optimizer=optimizer).to(torch.float64)
    baseline, batch = baseline_of(system).to(torch.float64), a_batch(system, dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in trained(system).items()}
    engine, (phase,) = Engine("fp64", "ddp"), system.phases()
    engine.wrap(system, share=4, micro_batch=None)
    result = engine.step(phase, batch, 0, micro_batch=None, seen=0, total=100)
    assert result.grad_norm > 0.01
    loss = Steps(baseline, CPU).step(batch["wav"], to_picture(batch["image"], like=batch["wav"]))
    assert loss == pytest.approx(float(result.losses["total"]), rel=1e-10)
    for name, parameter in trained(baseline).items():
        assert not torch.equal(parameter, before[name]), name
        torch.testing.assert_close(parameter, trained(system)[name], rtol=0, atol=1e-9, msg=name)


def test_judges_are_the_same_in_both_memory_layouts() -> None:
    torch.manual_seed(0)
    face, reference = (torch.rand(1, 3, 128, 128, dtype=torch.float64) * 2 - 1 for _ in range(2))
    face.requires_grad_()
    identity = FaceIdentity(IRSE50(), size=112, crop=True, channels="bgr").double().eval().requires_grad_(False)
    lpips = step_sizes._lpips(LPIPSWeights(net="lpips")).double().eval().requires_grad_(False)
    chosen = torch.randn(512, dtype=torch.float64)
    for ours, theirs in (
        (lambda: identity(face) @ chosen, lambda: Identity(identity)(face) @ chosen),
        (lambda: lpips.distance(face, reference), lambda: Perceptual(lpips)(face, reference)),
    ):
        values = [run().sum() for run in (ours, theirs)]
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-10)
        one, other = (torch.autograd.grad(value, face)[0] for value in values)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(one.abs().max()))


@pytest.mark.slow
def test_codes_are_the_same_in_both_memory_layouts() -> None:
    torch.manual_seed(0)
    encoder = GradualStyleEncoder(0)
    coarse, middle, fine = Map2Style(16), Map2Style(32), Map2Style(64)  # shared by the styles of a group, to be small
    encoder.styles = nn.ModuleList([coarse] * 3 + [middle] * 4 + [fine])
    codes = PSPCodeEncoder(PSP(encoder, nn.Module(), torch.randn(8, 512))).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        photo = torch.rand(1, 3, 256, 256) * 2 - 1
        torch.testing.assert_close(codes(photo), Codes(codes)(photo), rtol=1e-4, atol=1e-4)


def test_the_files_of_the_baseline_hold_the_samples_of_the_shards(tiny_shards: str, tmp_path: Path) -> None:
    system = small(seconds=0.5)  # as long as a clip, so that there is one window
    c = system.config
    files = Files(unpacked(Path(tiny_shards), tmp_path / "files"), c.seconds, c.image_size)
    split = open_dataset(tiny_shards).split("train")
    assert len(files) == split.samples
    (batch,) = read_split(split, system.transforms(), split.samples)
    numbers = {path.stem: number for number, path in enumerate(files.sounds)}
    for row in (0, split.samples - 1):
        wav_T, img_3HW = files[numbers[batch["key"][row]]]
        torch.testing.assert_close(img_3HW, to_picture(batch["image"][row]), rtol=0, atol=1e-6)
        assert torch.equal(wav_T, batch["wav"][row])
    waves, pictures = next(files.batches(4, workers=0, pinned=False))
    assert (waves.shape, pictures.shape) == ((4, 8000), (4, 3, c.image_size, c.image_size))


# ------------------------------------------------------------------------------------------------ counting


def work(run: Callable[[], Tensor]) -> tuple[Work, Work]:
    """Forward and backward."""
    with Counter(Parts({}, (nn.Module(), "forward"))) as counter:
        found = run()
        forward = replace(counter.work[("losses", "forward")])
        found.sum().backward()
    both = counter.work[("losses", "forward")]
    return forward, Work(both.flops - forward.flops, both.product_bytes - forward.product_bytes)


def test_flops_and_bytes_are_those_counted_by_hand() -> None:
    """Batch 2, 6 channels in, 10 out, 3x3, 8x8 pixels: 2 * 2 * 10 * 6 * 9 * 64 FLOPs; each gradient takes as many."""
    x, weight = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(10, 6, 3, 3, requires_grad=True)
    dense = 2 * 2 * 10 * 6 * 9 * 64
    forward, backward = work(lambda: F.conv2d(x, weight, padding=1))
    assert (forward.flops, backward.flops) == (dense, 2 * dense)
    numbers = x.numel() + weight.numel() + 2 * 10 * 64
    assert forward.product_bytes == 4 * numbers
    assert work(lambda: F.conv2d(x.detach(), weight, padding=1))[1].flops == dense
    for groups in (2, 6):  # a weight for each group: a share of the inputs each
        grouped = torch.randn(12, 6 // groups, 3, 3, requires_grad=True)
        once = 2 * 2 * 12 * (6 // groups) * 9 * 64
        forward, backward = work(lambda groups=groups, grouped=grouped: F.conv2d(x, grouped, padding=1, groups=groups))
        assert (forward.flops, backward.flops) == (once, 2 * once), groups
    up = torch.randn(6, 5, 3, 3, requires_grad=True)  # every input pixel meets every tap
    once = 2 * 2 * 6 * 5 * 9 * 64
    forward, backward = work(lambda: F.conv_transpose2d(x, up, stride=2, groups=2))
    assert (forward.flops, backward.flops) == (once, 2 * once)
    forward, backward = work(lambda: F.linear(x.reshape(32, 24), torch.randn(7, 24, requires_grad=True)))
    assert (forward.flops, backward.flops) == (2 * 32 * 24 * 7, 2 * 2 * 32 * 24 * 7)


@pytest.fixture(scope="module")
def twins() -> Twins:
    system = small(losses={"mse": 1.0, "lpips": 0.0, "id": 0.1, "style": 0.5})
    return Twins(system, baseline_of(system), a_batch(system))


def test_a_weight_for_each_sample_costs_more_on_the_way_back_alone(twins: Twins) -> None:
    ours, theirs = (twins.work(arm) for arm in (OURS, BASELINE))
    assert ours.keys() == theirs.keys()
    for part in ("encoder", "mapping"):
        for way in ("forward", "backward"):
            assert ours[f"{part} {way}"].flops == theirs[f"{part} {way}"].flops > 0
    assert theirs["generator forward"].flops == pytest.approx(ours["generator forward"].flops, rel=0.05)
    assert theirs["generator backward"].flops > 1.7 * ours["generator backward"].flops


def test_bf16_moves_half_the_bytes_in_as_many_products(twins: Twins) -> None:
    single, half = (twins.work(Arm(True, precision)) for precision in ("fp32", "bf16"))
    for label in ("encoder forward", "generator backward"):
        assert half[label].flops == single[label].flops
        assert half[label].product_bytes == pytest.approx(single[label].product_bytes / 2, rel=0.1)


def test_what_is_stored_is_not_computed(twins: Twins) -> None:
    computed, read = twins.work(OURS), twins.work(STORED)
    assert computed["codes forward"].flops > 0
    assert "codes forward" not in read
    assert read["identity forward"].flops == computed["identity forward"].flops / 2
    assert read["generator forward"] == computed["generator forward"]
    system = small()
    batch = a_batch(system)
    asked, told = (system.loss("supervised", each, 0)["total"] for each in (batch, batch | stored(system, batch)))
    assert asked.item() == pytest.approx(told.item(), rel=1e-6)


def test_utilisation_and_floor() -> None:
    assert step_report.utilisation(2e12, 100, 800e12) == pytest.approx(0.25)
    assert step_report.floor(1e12, 1e9, 5e9, 500e12, 4e12) == pytest.approx(2e-3)  # limited by its products
    assert step_report.floor(1e9, 8e9, 9e9, 500e12, 4e12) == pytest.approx(2e-3)  # limited by what they read
    assert step_report.floor(0, 0, 8e9, 500e12, 4e12) == pytest.approx(2e-3)  # has none


# ------------------------------------------------------------------------------------------------ timing


def test_the_parts_of_a_step_follow_one_another_and_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    system = small()
    batch = a_batch(system)
    runner = Runner(system, {None: batch}, Clock(CPU))
    plain = runner.losses()
    assert plain["apart"] < 1e-4
    runner.watch()
    for arm in (BASELINE, OURS):
        taken = runner.take(arm, untimed=0, timed=2)
        assert len(taken.seconds) == len(taken.parts) == 2
        for seconds, parts in zip(taken.seconds, taken.parts, strict=True):
            assert sum(parts.values()) == pytest.approx(seconds, rel=0.05)
            names = ("encoder", "mapping", "generator", "perceptual", "identity", "losses")
            both = {f"{name} {way}" for name in names for way in ("forward", "backward")}
            assert parts.keys() == both | {"codes forward", "optimizer"}
            assert all(value > 0 for value in parts.values())


def test_watching_changes_no_gradient_and_sleeps_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            clock[0] += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            clock[0] += 10
            return g

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    system = small(losses={"mse": 1.0, "id": 0.1})
    batch = a_batch(system)
    system.loss("supervised", batch, 0)["total"].backward()
    expected = {name: p.grad for name, p in trained(system).items()}
    mapping = system.mapping.forward
    system.mapping.forward = lambda maps: Slow.apply(mapping(maps))  # type: ignore[method-assign]
    parts = step_sizes.parts_of(system)
    system.zero_grad()
    with parts.recording(Clock(CPU)):
        system.loss("supervised", batch, 0)["total"].backward()
    assert {label: s for label, s in parts.spent.items() if s} == {
        ("mapping", "forward"): 1,
        ("mapping", "backward"): 10,
    }
    for name, parameter in trained(system).items():  # its contributions may add up in another order
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    system.loss("supervised", batch, 0)["total"].backward()  # outside, nothing is recorded
    assert sum(parts.spent.values()) == 11


def test_on_a_gpu_moments_are_events_that_are_read_after_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = len(told)
            told.append("recorded")

        def elapsed_time(self, other: "Event") -> float:
            assert told[-1] == "waited"
            return 1000.0 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("waited"))
    clock = Clock(torch.device("cuda"))
    begin, end = clock.now(), clock.now()
    clock.wait()
    assert clock.seconds(begin, end) == 1.0
    system = small(losses={"mse": 1.0})
    parts = step_sizes.parts_of(system)
    with parts.recording(clock):
        system.loss("supervised", a_batch(system), 0)["total"].backward()
    assert set(parts.spent) >= {("generator", "forward"), ("generator", "backward")}


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(step, "SIDE_N", {"cpu": 32})
    monkeypatch.setattr(step, "DATA_ROUNDS", 1)
    monkeypatch.setattr(step, "DATA_BATCHES", 1)
    monkeypatch.setattr(step.Bench, "_memory", lambda self: None)  # in processes of their own: the slow test
    tiny = replace(SIZES["tiny"], arms=(BASELINE, Arm(True, "tf32"), OURS), untimed=0)
    monkeypatch.setitem(SIZES, "tiny", tiny)


@pytest.mark.usefixtures("quick")
def test_it_measures_a_tiny_size_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One arm fails in the first round; the others go on, and the result says so."""
    real, written = Runner.take, []

    def take(self: Runner, arm: Arm, untimed: int, timed: int) -> Any:
        written.append(json.loads(out.read_text())["sizes"]["tiny"])
        if arm == Arm(True, "tf32"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")
        return real(self, arm, untimed, timed)

    monkeypatch.setattr(Runner, "take", take)
    out = tmp_path / "step.json"
    command = ["step.py", "--device", "cpu", "--sizes", "tiny", "--rounds", "2", "--busy"]
    monkeypatch.setattr("sys.argv", [*command, "--work", str(tmp_path), "--out", str(out)])
    threads = torch.get_num_threads()
    try:
        assert step.main() == 1
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    tiny = found["sizes"]["tiny"]
    assert tiny["failed"] == {"ours tf32": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"}
    assert [list(each["arms"]) for each in tiny["rounds"]] == [
        ["baseline fp32", "ours fp32"],
        ["ours fp32", "baseline fp32"],
    ]
    # When an arm begins, what was measured before it lies in the file.
    assert [len(each["rounds"][0]["arms"]) if each["rounds"] else 0 for each in written[:3]] == [0, 1, 1]
    assert tiny["loss"]["apart"] < 1e-4
    assert set(tiny["work"]) == {"baseline fp32", "ours fp32"}
    assert set(tiny["data"]) == {"baseline", "ours"}
    assert found["seconds"] == "computed by this process"
    summary = step_report.summary(tiny)
    first, second = (
        each["arms"]["baseline fp32"]["seconds"][0] / each["arms"]["ours fp32"]["seconds"][0] for each in tiny["rounds"]
    )
    assert summary["ours fp32"]["times baseline fp32"][1:] == pytest.approx([min(first, second), max(first, second)])
    assert "times baseline fp32" not in summary["baseline fp32"]
    row = next(row for row in step_report.roofline(tiny, "ours fp32") if row["part"] == "encoder backward")
    assert row["times the floor"] == pytest.approx(row["ms"] / row["floor ms"])
    printed = capsys.readouterr().out
    assert "FAILED ours tf32: OutOfMemoryError" in printed
    assert "tiny, ours fp32, a sample:" in printed
    assert [path.stat().st_size > 20_000 for path in (tmp_path / "step-bars.png", tmp_path / "step-roofline.png")] == [
        True,
        True,
    ]


def test_rounds_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    passed = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    monkeypatch.setattr(step.Bench, "_count", lambda self, twins: None)
    monkeypatch.setattr(step.Bench, "_data", lambda self, shards, transforms: None)
    rounds: list[int] = []

    def a_round(self: Any, runner: Runner, number: int) -> None:
        rounds.append(number)
        passed[0] += 100

    monkeypatch.setattr(step.Bench, "_round", a_round)
    found: dict[str, Any] = {"sizes": {}}
    bench = step.Bench("tiny", SIZES["tiny"], Clock(CPU), tmp_path, found, tmp_path / "step.json")
    bench.run(rounds=9, seconds=350)
    assert rounds == [0, 1, 2]


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["step.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        step.main()
    assert "there is no GPU here" in capsys.readouterr().err


def test_sizes_load_and_every_arm_has_its_own_name() -> None:
    for size in SIZES.values():
        assert size.config().data.batch % 2 == 0
        assert BASELINE in size.arms
    assert len({str(arm) for arm in ON_GPU}) == len(ON_GPU)
    assert {arm.precision for arm in ON_GPU} == {"fp32", "tf32", "bf16"}
    assert {arm.precision for arm in ON_CPU} == {"fp32", "bf16"}
    assert slug("NVIDIA H200 (141 GB)") == "nvidia-h200-141-gb"


@pytest.mark.slow
def test_a_dry_run_needs_no_gpu_and_derives_the_final_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    final = replace(SIZES["final"], arms=(Arm(True, "bf16"), BASELINE))
    monkeypatch.setitem(SIZES, "final", final)
    out = tmp_path / "derived.json"
    command = ["step.py", "--dry-run", "--device", "cuda", "--assume", "800", "4", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--work", str(tmp_path)])
    assert step.main() == 0
    printed = capsys.readouterr().out
    for arm in ON_GPU:
        assert f"tiny: round 1, {arm}: " in printed
    for kind in ("baseline", "ours", "ours, stored"):
        assert f"the forward pass of {kind} fits on one device" in printed
    derived = json.loads(out.read_text())["sizes"]["final"]
    assert derived["parameters"]["trained"] == 70_768_832
    assert step_report.needed_flops(derived, "ours bf16") == pytest.approx(1.33e12, rel=0.01)
    encoder = next(row for row in step_report.roofline(derived, "ours bf16") if row["part"] == "encoder forward")
    assert encoder["flops"] == pytest.approx(182e9, rel=0.01)  # as v2f/nn/waveform.py says
    assert encoder["floor ms"] == pytest.approx(encoder["flops"] / 800e9)
    assert encoder["ms"] is None


@pytest.mark.slow
def test_memory_is_told_by_a_process_of_its_own(tmp_path: Path) -> None:
    """The generator's activations at the least, and less than the imports take."""
    bench = step.Bench(
        "tiny", replace(SIZES["tiny"], arms=(BASELINE,)), Clock(CPU), tmp_path, {"sizes": {}}, tmp_path / "x"
    )
    bench._memory()
    assert bench.found["failed"] == {}
    told = bench.found["memory"]["baseline fp32"]
    assert 0 < told["weights and moments"] < told["peak bytes"] < 1e9
