"""A training step of the voice-styled face, ours beside the thesis's (bench/baseline.py), in paired rounds of one run.

    python bench/step.py                             # on a GPU thesis-final, on a CPU two smaller sizes; ~ 6 minutes
    python bench/step.py --busy                      # on a CPU that others use as well
    python bench/step.py --dry-run --device cuda     # no GPU: the GPU's plan, tiny; and thesis-final on shapes alone
    python bench/step.py --draw bench/results/step-NAME.json      # the tables and the pictures anew

Each round times a matrix product, a copy, and then one after the other some steps of every arm (in the other order
every second round): ours and the baseline, in fp32, TF32 and bf16, by part, with their memory. FLOPs and bytes are
counted on tensors without memory. ``stored``: the codes and the embedding of the reference come from the shards.
Writes bench/results/step-DEVICE.json after everything that it measures, so that a run that is killed leaves what it
has, and two PNGs beside it. Exit code 1 if an arm failed.
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench import step_report  # noqa: E402 - after the path
from bench.baseline import Files, unpacked  # noqa: E402
from bench.machine import bf16_unit, cpus, slug  # noqa: E402
from bench.packed import packed  # noqa: E402
from bench.parts import Clock  # noqa: E402
from bench.step_sizes import ON_CPU, ON_GPU, SIZES, Arm, Runner, Size, Twins, baseline_of, build  # noqa: E402
from v2f.data.loader import Loader, read_usable  # noqa: E402
from v2f.data.manifest import open_dataset  # noqa: E402
from v2f.data.order import Order  # noqa: E402
from v2f.nn import float32_products  # noqa: E402
from v2f.preflight.workloads import memory  # noqa: E402
from v2f.runs.config import RunConfig  # noqa: E402
from v2f.system import Batch, Transform  # noqa: E402
from v2f.systems.voice_styled_face import VoiceStyledFace  # noqa: E402

Found = dict[str, Any]
SIDE_N = {"cuda": 8192, "cpu": 2048}  # of the matrices whose product is timed
PEAK_SECONDS = 0.3  # that a product, or a copy, is repeated for
DATA_ROUNDS, DATA_BATCHES = 3, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), help="default: final on a GPU, else both smaller ones"
    )
    parser.add_argument("--minutes", type=float, default=5, help="no round begins that would end later")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="for a CPU that others use, too: one thread, and the seconds that it computes instead of those that pass",
    )
    parser.add_argument("--work", default="data/bench-step", help="folder for the data sets")
    parser.add_argument("--out", type=Path, help="the result; default: bench/results/step-DEVICE.json")
    parser.add_argument("--dry-run", action="store_true", help="the plan of the device at a tiny size, on this CPU")
    parser.add_argument(
        "--assume",
        nargs=2,
        type=float,
        metavar=("TFLOP/s", "TB/s"),
        help="dry run: the floors on such a device, in bf16",
    )
    parser.add_argument("--draw", type=Path, metavar="RESULT.json", help="only show and draw what is there")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = Path(args.work).resolve()
    if args.worker:
        print(json.dumps(memory_of(*args.worker, work=work)))
        return 0
    if args.draw:
        return shown(json.loads(args.draw.read_text()), args.draw)
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    if args.dry_run:
        return dry_run("cuda" if cuda else "cpu", work, args.out, args.assume)
    if cuda and not torch.cuda.is_available():
        parser.error("there is no GPU here (torch.cuda.is_available() is false); --dry-run needs none")
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engine takes a GPU where it sees one
    if args.busy:
        torch.set_num_threads(1)
    clock = Clock(torch.device("cuda" if cuda else "cpu"), busy=args.busy)
    found = about(clock)
    out = args.out or REPOSITORY / "bench" / "results" / f"step-{slug(found['device'])}.json"
    names = args.sizes or (["final"] if cuda else ["quickstart", "middle"])
    now = time.process_time if args.busy else time.monotonic
    deadline = now() + 60 * args.minutes
    for name in names:
        left = (deadline - now()) / (len(names) - names.index(name))
        Bench(name, SIZES[name], clock, work, found, out).run(args.rounds, left)
    return shown(found, out)


def about(clock: Clock) -> Found:
    cuda = clock.cuda
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else cpus(),
        "processor": cpus(),
        "bf16 unit of the processor": bf16_unit(),
        "threads": torch.get_num_threads(),
        "seconds": "computed by this process" if clock.busy and not cuda else "passed",
        "load before it": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("v2f", "torch", "numpy")}
        | {"python": platform.python_version()}
        | ({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),
        "sizes": {},
    }


def shown(found: Found, out: Path) -> int:
    print(step_report.tables(found))
    for path in step_report.draw(found, out.parent, out.stem):
        print(path)
    return 1 if any(size.get("failed") for size in found["sizes"].values()) else 0


class Bench:
    """One size on one device; what is known is in ``found`` and in the file ``out``."""

    def __init__(
        self, name: str, size: Size, clock: Clock, work: Path, found: Found, out: Path, in_processes: bool = True
    ) -> None:
        """``in_processes``: also run each arm in a process of its own, which tells the memory where there is no GPU."""
        self.name, self.size, self.work, self.all, self.out = name, size, work, found, out
        self.clock, self.device = clock, clock.device
        self.in_processes = in_processes
        self.config = size.config()
        self.found: Found = {"rounds": [], "failed": {}, "arms": {}}
        found["sizes"][name] = self.found

    def run(self, rounds: int, seconds: float) -> None:
        now = time.process_time if self.clock.busy else time.monotonic
        end = now() + seconds
        shards = data_of(self.name, self.size, self.config, self.work)
        system = build(self.config, self.device, self.size.channel_max)
        batches = {each: first_batch(shards, system, each or self.config.data.batch) for each in self._batches()}
        runner = Runner(system, batches, self.clock)
        self._describe(system)
        twins, transforms = Twins(system, runner.baseline, batches[None]), system.transforms()
        runner.watch()
        for arm in self.size.arms:
            self.found["arms"][str(arm)]["weights and moments"] = runner.owned(arm)
        self.found["loss"] = runner.losses()
        self.write("the loss of both")
        longest = 0.0
        for number in range(rounds):
            if number and now() + longest > end:
                break
            begun = now()
            self._round(runner, number)
            if not number:
                self._count(twins)
            longest = max(longest, now() - begun)
        del runner, twins, system
        gc.collect()
        self._data(shards, transforms)
        if self.in_processes and self.device.type == "cpu":
            self._memory()

    def write(self, what: str) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.out.with_suffix(".part")
        fresh.write_text(json.dumps(self.all, indent=1) + "\n")
        fresh.replace(self.out)
        print(f"{self.name}: {what}", flush=True)

    def _batches(self) -> list[int | None]:
        return list(dict.fromkeys([None, *(arm.batch for arm in self.size.arms)]))

    def _describe(self, system: VoiceStyledFace) -> None:
        c, batch = system.config, self.config.data.batch
        trained = sum(p.numel() for module in (system.encoder, system.mapping) for p in module.parameters())
        self.found["parameters"] = {"trained": trained, "all": sum(p.numel() for p in system.parameters())}
        px = f"{system.generator.size} px" + (f" to {c.image_size}" if c.image_size != system.generator.size else "")
        self.found["about"] = {
            "recipe": self.size.recipe,
            "overrides": " ".join(self.size.overrides) or "none",
            "in short": f"{c.seconds:g} s of voice, {px}, batch {batch}",
        }
        self.found["arms"] = {
            str(arm): {"kind": arm.kind, "precision": arm.precision, "batch": arm.batch or batch}
            for arm in self.size.arms
        }

    # ------------------------------------------------------------------------------------------------ rounds

    def _round(self, runner: Runner, number: int) -> None:
        found: Found = {"FLOP/s": {}, "arms": {}}
        for precision in dict.fromkeys(arm.precision for arm in self.size.arms):
            found["FLOP/s"][precision] = product_rate(self.clock, precision)
        found["bytes/s"] = bandwidth(self.clock)
        self.found["rounds"].append(found)
        arms = [arm for arm in self.size.arms if str(arm) not in self.found["failed"]]
        for arm in arms if number % 2 == 0 else reversed(arms):
            try:
                taken = runner.take(arm, self.size.untimed, self.size.timed)
            except (RuntimeError, AssertionError) as error:  # torch.OutOfMemoryError among them
                self.found["failed"][str(arm)] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                self.write(f"round {number + 1}, {arm}: failed")
                continue
            found["arms"][str(arm)] = {
                "seconds": taken.seconds,
                "parts": taken.parts,
                "peak bytes": taken.peak_bytes,
            }
            rate = step_report.summary(self.found)[str(arm)]["samples a second"][0]
            self.write(f"round {number + 1}, {arm}: {rate:.3g} samples/s")

    def _count(self, twins: Twins) -> None:
        """FLOPs and bytes of every kind of arm, a sample."""
        batch = self.config.data.batch
        work = {}
        for arm in self.size.arms:
            key = f"{arm.kind} {'bf16' if arm.bf16 else 'fp32'}"
            if key not in work:
                parts = twins.work(arm)
                work[key] = {
                    label: {
                        "flops": w.flops / batch,
                        "product bytes": w.product_bytes / batch,
                        "bytes": w.bytes / batch,
                    }
                    for label, w in parts.items()
                }
        self.found["work"] = work
        self.write("FLOPs and bytes")

    # ------------------------------------------------------------------------------------------------ data

    def _data(self, shards: str, transforms: dict[str, Transform]) -> None:
        """Reading and decoding alone: a file a sample through a DataLoader, and shards through our loader."""
        c, batch = self.config.system, self.config.data.batch
        workers = 0 if self.clock.busy else self.size.workers  # else others would compute than this process
        assert isinstance(c, VoiceStyledFace.Config)
        files = Files(unpacked(Path(shards), self.work / f"{self.name}-files"), c.seconds, c.image_size, c.sample_rate)
        split = open_dataset(shards).split("train")
        order = Order.for_batches(split.shard_sizes, seed=0, batch=batch)
        pinned = self.device.type == "cuda"
        with contextlib.ExitStack() as stack:
            loader = stack.enter_context(Loader(split, order, transforms, batch=batch, seed=0, workers=workers))
            readers: dict[str, Iterator[Any]] = {
                "baseline": files.batches(batch, workers, pinned),
                "ours": iter(loader),
            }
            clock = Clock(torch.device("cpu"), self.clock.busy)
            spent: dict[str, list[float]] = {name: [] for name in readers}
            for _ in range(DATA_ROUNDS):
                for name, batches in readers.items():
                    for _ in range(4 * workers):  # that may lie ready
                        next(batches)
                    begun = clock.now()
                    for _ in range(DATA_BATCHES):
                        next(batches)
                    spent[name].append(clock.seconds(begun, clock.now()) / DATA_BATCHES / batch)
        self.found["data"] = {
            name: {"workers": workers, "ms a sample": step_report.spread(1000 * s for s in each)}
            for name, each in spent.items()
        }
        self.write("data")

    # ------------------------------------------------------------------------------------------------ memory

    def _memory(self) -> None:
        """A step of each arm in a process of its own, which tells its largest resident memory."""
        self.found["memory"] = {}
        for arm in self.size.arms:
            command = [sys.executable, str(Path(__file__)), "--work", str(self.work), "--worker", self.name]
            command += [str(arm), str(self.size.arms.index(arm))]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode:
                self.found["failed"][str(arm)] = f"memory: {done.stderr.strip().splitlines()[-1]}"
            else:
                self.found["memory"][str(arm)] = json.loads(done.stdout.splitlines()[-1])
            self.write(f"memory of {arm}")


def product_rate(clock: Clock, precision: str) -> float:
    """FLOP/s of a product of two square matrices in a precision."""
    float32_products(tf32=precision == "tf32")
    device = clock.device
    side, dtype = SIDE_N[device.type], torch.bfloat16 if precision == "bf16" else torch.float32
    a_NN, b_NN = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / repeated(clock, lambda: a_NN @ b_NN)


def bandwidth(clock: Clock) -> float:
    """Bytes a second of a copy within the device's memory: read and written."""
    copy = memory(clock.device)
    return 1e9 * copy.amount / repeated(clock, copy.run)


def repeated(clock: Clock, run: Callable[[], Any]) -> float:
    """The median of the seconds that ``run`` takes."""
    spent: list[float] = []
    while len(spent) < 5 or sum(spent) < PEAK_SECONDS:
        clock.wait()
        begun = clock.now()
        run()
        ended = clock.now()
        clock.wait()
        spent.append(clock.seconds(begun, ended))
    return statistics.median(spent)


def data_of(name: str, size: Size, config: RunConfig, work: Path) -> str:
    c = config.system
    assert isinstance(c, VoiceStyledFace.Config)
    return packed(work / name, size.people, c.seconds, c.image_size, size.photo)


def first_batch(shards: str, system: VoiceStyledFace, batch: int) -> Batch:
    split = open_dataset(shards).split("train")
    return next(iter(read_usable(split, system.transforms(), batch, [], limit=batch)))


def memory_of(name: str, label: str, number: str, work: Path) -> Found:
    """In a process of its own: the peak of a step, Adam's moments being there, above what the imports took."""
    size, config = SIZES[name], SIZES[name].config()
    arm = size.arms[int(number)]
    assert str(arm) == label
    device = torch.device("cpu")
    imports = resident("VmRSS")
    system = build(config, device, size.channel_max)
    batch = first_batch(data_of(name, size, config, work), system, arm.batch or config.data.batch)
    runner = Runner(system, {None: batch, arm.batch: batch}, Clock(device))
    if arm.ours:
        del runner.baseline
    else:
        del system, runner.system.encoder, runner.system.mapping, runner.system.generator
    runner.prime(arm)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory is counted from here on
    runner.take(arm, untimed=0, timed=1)
    return {"peak bytes": resident("VmHWM") - imports, "weights and moments": runner.owned(arm)}


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"^{field}:\s*(\d+)", status, re.MULTILINE)[0])


# ------------------------------------------------------------------------------------------------ without the device


def dry_run(kind: str, work: Path, out: Path | None, assumed: list[float] | None) -> int:
    """All that the command does on a device of this kind, on this CPU: its arms at a tiny size, and thesis-final on
    tensors that have a shape and a device, but no memory."""
    size = Size(**{**vars(SIZES["tiny"]), "arms": ON_GPU if kind == "cuda" else ON_CPU})
    final, config = SIZES["final"], SIZES["final"].config()
    system, batch = build(config, torch.device("meta")), shapes_of(config)
    baseline = baseline_of(system)
    cpu = Clock(torch.device("cpu"))
    if kind == "cuda":
        twins = Twins(system, baseline, batch, "cuda")
        for arm in (Arm(False, "fp32"), Arm(True, "fp32"), Arm(True, "fp32", stored=True)):
            twins.run(arm)
            print(f"final: the forward pass of {arm.kind} fits on one device", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = about(cpu)
        path = Path(folder) / "step.json"
        tiny = Bench("tiny", size, cpu, work, found, path, in_processes=kind == "cpu")
        tiny.run(rounds=1, seconds=60)
        code = shown(found, tiny.out)
    derived: Found = {"date": found["date"], "versions": found["versions"], "sizes": {}}
    counting = Bench("final", final, cpu, work, derived, out or work / "step-derived.json")
    counting._describe(system)
    if assumed:
        counting.found["assumed"] = {"FLOP/s": {"bf16": 1e12 * assumed[0]}, "bytes/s": 1e12 * assumed[1]}
    counting._count(Twins(system, baseline, batch))
    print(step_report.tables(derived))
    return code


def shapes_of(config: RunConfig) -> Batch:
    c, batch = config.system, config.data.batch
    assert isinstance(c, VoiceStyledFace.Config)
    with torch.device("meta"):
        return {
            "wav": torch.empty(batch, round(c.seconds * c.sample_rate)),
            "image": torch.empty(batch, 3, c.image_size, c.image_size, dtype=torch.uint8),
            "weight": torch.empty(batch),
        }


if __name__ == "__main__":
    sys.exit(main())
