"""What one GPU does: is it right, does a training run survive, and does the thesis run through the trainer.

    python bench/gpu.py                              # all parts, some five minutes; merges into bench/results/gpu.json
    python bench/gpu.py --parts numbers training     # see PARTS

A part is a process of its own, so that one that fails is named and leaves the others. The thesis's frozen nets have
RANDOM weights in the layouts of the real ones (bench/random_weights.py). Exit code 1 where a part fails or misses what
it must show. Speed and memory of a step: bench/step.py.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from systems.small import SMALL  # noqa: E402

from bench.packed import packed  # noqa: E402
from v2f.config import build  # noqa: E402
from v2f.data.loader import read_usable  # noqa: E402
from v2f.data.manifest import open_dataset  # noqa: E402
from v2f.data.transforms import Waveform  # noqa: E402
from v2f.engine import Engine  # noqa: E402
from v2f.runs.checkpoint import load  # noqa: E402
from v2f.runs.config import RunConfig  # noqa: E402
from v2f.runs.run import Run, build_system  # noqa: E402

RESULTS = REPOSITORY / "bench" / "results" / "gpu.json"
PARTS = ("preflight", "numbers", "training", "profile")
QUICKSTART = "launch/recipes/quickstart.yaml"
THESIS = "launch/recipes/thesis-final.yaml"
ALIKE = {"fp64": 1e-9, "fp32": 1e-4}  # gradient on the GPU against float64 on the CPU, in parts of the largest entry
NEAR = 1e-3  # weights after a stop, under another strategy, against the undisturbed run's, in parts of the largest


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--work", default="data/bench-gpu", help="folder for data, weights and runs")
    parser.add_argument("--timeout", type=float, default=240, help="seconds a part may take")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = Path(args.work).resolve()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](work)))
        return 0
    if not torch.cuda.is_available():
        sys.exit("no GPU here (torch.cuda.is_available() is false); this measures one")
    work.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: version(name) for name in ("torch", "accelerate", "deepspeed")},
    }
    failed = []
    for part in args.parts:
        begun = time.monotonic()
        try:
            found = measured(part, work, args.timeout)
        except (subprocess.SubprocessError, OSError, ValueError, AssertionError) as error:
            failed.append(part)
            print(f"{part}: {error}", flush=True)
            continue
        known[part] = about | {"seconds": round(time.monotonic() - begun)} | found
        print(f"{part}: {json.dumps(found)}", flush=True)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        missed = found.get("missed", [])
        failed += [part] if missed else []
    return 1 if failed else 0


def measured(part: str, work: Path, timeout: float) -> dict[str, Any]:
    """The results of one part, in a process of its own; under torchrun where ranks are to meet."""
    if part == "preflight":
        path = work / "preflight.json"
        run(["launch/preflight", "--", "--json", str(path)], timeout)
        return dict(json.loads(path.read_text()))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"] if part == "numbers" else []
    said = run([sys.executable, *launcher, "bench/gpu.py", "--work", str(work), "--worker", part], timeout)
    return dict(json.loads(said.splitlines()[-1]))


def run(command: list[str], timeout: float, codes: tuple[int, ...] = (0,), **environment: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode not in codes:
        raise ValueError(f"{' '.join(command[:6])} ... left with {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


# ------------------------------------------------------------------------------------------------ is it right?


def numbers(work: Path) -> dict[str, Any]:
    """Gradients of one batch on the GPU, in each precision, under each strategy, whole and accumulated, against
    float64 on the CPU: the largest difference in parts of the largest entry."""
    data = packed(work / "tiny", people=24, seconds=0.5)
    # As the tests' gradients in float32: the kinks of the frozen nets, where a rounding decides, stay out.
    small = SMALL["voice_styled_face"] | {"losses": {"mse": 1.0, "lpips": 0.0, "id": 0.0}}
    values = {"name": "gpu", "seed": 3, "system": small, "data": {"path": data, "batch": 16}, "train": {"steps": 4}}
    config = build(RunConfig, values, "gpu")
    system = build_system(config)
    batch = next(iter(read_usable(open_dataset(data).split("train"), system.transforms(), 16, [], limit=16)))
    system.to(torch.float64).train()
    doubled = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
    system.loss("supervised", doubled, 0)["total"].backward()
    exact = {n: p.grad for m in ("encoder", "mapping") for n, p in named(system, m) if p.grad is not None}
    largest = max(float(g.abs().max()) for g in exact.values())
    found: dict[str, float] = {}
    engine = Engine("fp32", "ddp")
    for precision in ("fp64", "fp32", "tf32", "bf16"):
        for strategy in ("ddp",) if precision == "fp64" else ("ddp", "zero1", "zero2"):
            for micro in (None, 4):
                own, fresh = Engine(precision, strategy), build_system(config)  # type: ignore[arg-type]
                own.wrap(fresh, share=16, micro_batch=micro)
                fresh.train()
                (phase,) = fresh.phases()
                own.backward(phase, batch, 0, micro)
                gradients = own.gradients(phase)
                apart = max(float((gradients[n].cpu().double() - g).abs().max()) for n, g in exact.items()) / largest
                found[f"{precision} {strategy}{' accumulated' if micro else ''}"] = apart
    engine.close()
    missed = [f"{n}: {apart:.1e}" for n, apart in found.items() if apart > ALIKE.get(n.split()[0], 1.0)]
    if not found["tf32 ddp"] > 3 * found["fp32 ddp"]:
        missed.append("tf32 is no coarser than fp32: one of the two is not what it is called")
    return {"apart from float64 on a CPU": found, "missed": missed}


def named(system: Any, module: str) -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"{module}.{name}", p) for name, p in getattr(system, module).named_parameters()]


# ------------------------------------------------------------------------------------------- does it survive?


def training(work: Path) -> dict[str, Any]:
    """40 steps of the quickstart's system undisturbed, twice; and stopped by SIGTERM under ZeRO-2, then gone on with
    under DDP. What its GPU trained draws the same face on a CPU."""
    data = packed(work / "people", people=400, seconds=2.0)
    runs = work / "runs"
    common = ["--config", QUICKSTART, "--resume", "auto", f"data.path={data}", "tracking.uri=null", "train.steps=40"]
    common += ["train.log_every=1", "train.precision=fp32", "train.sample_log=true", "train.validate_every=40"]
    accelerate = ["accelerate", "launch", "--quiet", "--config_file", "launch/accelerate/one-gpu.yaml", "v2f/train.py"]
    for name in ("first", "second"):
        run([*accelerate, *common, f"name={name}", f"out={runs / name}"], 200)
    folder = runs / "stopped"
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "1", "v2f/train.py", *common]
    torchrun += ["name=stopped", f"out={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "v2f.cli", "exec", *torchrun, "train.strategy=zero2"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 150
    while logged(folder) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    if process.returncode != 75:
        raise ValueError(f"SIGTERM: left with {process.returncode}, not 75\n{said[-3000:]}")
    stopped_at = Run.open(str(folder)).step
    run([sys.executable, "-m", "v2f.cli", "exec", *torchrun, "train.strategy=ddp"], 200)
    first, second, resumed = (load(Run.open(str(runs / name)).checkpoint())[0] for name in ("first", "second", folder))
    differing = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    largest = {n: max(float(t.float().abs().max()), 1e-8) for n, t in first.items()}
    apart = max(float((t - resumed[n]).abs().max()) / largest[n] for n, t in first.items() if n.startswith("model/"))
    voice = str(work / "voice.flac")
    read = {"wav": Waveform(2.0)}
    clip = next(iter(read_usable(open_dataset(data).split("test"), read, 1, [], limit=1)))["wav"][0]
    soundfile.write(voice, clip.numpy(), 16000)
    pictures = []
    for device, environment in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        path = str(work / f"{device}.png")
        command = [sys.executable, "-m", "v2f.cli", "generate", str(runs / "first"), voice, "-o", path]
        run(command, 100, **environment)
        pictures.append(np.asarray(Image.open(path), int))
    slots = [json.loads(line) for path in (folder / "slots").iterdir() for line in path.read_text().splitlines()]
    missed = [] if apart <= NEAR else [f"stopped and resumed: {apart:.1e} apart"]
    return {
        "undisturbed twice: tensors that differ in a bit": len(differing),
        "tensors": len(first),
        "stopped at step": stopped_at,
        "ZeRO-2, stopped, DDP: weights apart": apart,
        "lines of the slot log": len(slots),
        "face on a CPU: largest difference of 255": int(np.abs(pictures[0] - pictures[1]).max()),
        "missed": missed,
    }


def logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


# ----------------------------------------------------------------------------------- the thesis at full size


def profile(work: Path) -> dict[str, Any]:
    """thesis-final through trainer and loader in bf16, with a checkpoint of 849 MB on the way and SIGUSR2."""
    folder = work / "runs" / "thesis"
    command = [sys.executable, "v2f/train.py", "--config", THESIS, *thesis_overrides(work), f"out={folder}"]
    command += ["train.precision=bf16", "train.steps=120", "train.log_every=10", "train.validate_every=120"]
    command += ["train.checkpoint_every=40", "tracking.uri=null", "data.workers=8"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while logged(folder) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR2)
    _, said = process.communicate(timeout=200)
    if process.returncode:
        raise ValueError(f"left with {process.returncode}\n{said[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [line["metrics"] for line in lines if line["kind"] == "training"][2:]
    machine = [line["metrics"] for line in lines if line["kind"] == "system"][-1]
    profiles = {path.suffix: path.stat().st_size for path in sorted((folder / "profiles").iterdir())}
    return {
        "samples a second": round(statistics.median(p["speed/samples_per_second"] for p in points), 1),
        "share of waiting for data": round(statistics.median(p["speed/data_wait_share"] for p in points), 4),
        "system metrics": {name: round(value, 2) for name, value in machine.items()},
        "bytes of the profile": profiles,
        "missed": [] if {".gz", ".txt", ".pickle"} <= profiles.keys() else ["the profile is not whole"],
    }


def thesis_overrides(work: Path) -> list[str]:
    data = packed(work / "large", people=192, seconds=6.0, size=256, photo="jpg")
    weights = work / "weights"
    if not weights.exists():
        run([sys.executable, "bench/random_weights.py", str(weights)], 200)
    return [f"data.path={data}", f"system.frozen.path={weights}", "data.valid=null"]


WORKERS = {"numbers": numbers, "training": training, "profile": profile}

if __name__ == "__main__":
    sys.exit(main())
