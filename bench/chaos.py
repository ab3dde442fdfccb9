"""Kill -9 a training at random moments, again and again; in the end nothing may show it (promises 1, 4, 5).

    python bench/chaos.py                        # 30 kills with 1 rank, 30 with 4, runs on a disk: about 15 minutes
    python bench/chaos.py --s3 --ranks 1         # runs in an object store on loopback (OpenStack Swift)

Each kill takes the launcher, its ranks and their decode workers at once, while the run starts, in its first step, after
some steps, or in a save: there once a file of a checkpoint is being written (or uploaded). After each kill every
committed checkpoint is read, all checksums verified. After the last one the run is left to end, and then compared with
a run of the same recipe that nobody disturbed: final weights, moments and averages bit for bit, and the samples of all
slots of all steps, each once. Writes bench/results/chaos.json; exit code 1 where anything differs.
"""

import argparse
import contextlib
import datetime
import glob
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from v2f import checkpoint, store
from v2f.folder import SCRATCH, RunFolder
from v2f.prepare.pack import load_recipe, pack
from v2f.window import read_slots

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "chaos.json"
MOMENTS = ("start", "first step", "step", "save", "save")
PATIENCE_S = 300.0
SMALL = [
    *("system.seconds=0.5", "system.encoder.channels=[8,12,16]", "system.encoder.blocks=[1,1,1]"),
    *("system.encoder.strides=[2,2,2]", "system.encoder.stem_stride=8", "system.encoder.out_channels=16"),
    *("system.encoder.bn_group=2", "data.batch=8", "data.workers=1", "data.window=8", "train.precision=fp32"),
    *("train.threads=1", "train.log_every=5", "train.validate_every=40", "train.validate_samples=8"),
    *("train.checkpoint_every=4", "train.sample_log=true", "tracking.uri=null"),
]


@dataclass
class Trial:
    """One run of the recipe, launched again and again: where it lies, and how it is started."""

    out: str
    data: str
    ranks: int
    steps: int
    temporary: Path

    def start(self) -> "subprocess.Popen[bytes]":
        self.temporary.mkdir(parents=True, exist_ok=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        recipe = str(REPOSITORY / "launch" / "recipes" / "quickstart.yaml")
        command = [sys.executable, *(launcher if self.ranks > 1 else []), str(REPOSITORY / "v2f" / "train.py")]
        command += ["--config", recipe, "--resume", "auto", f"out={self.out}", f"data.path={self.data}"]
        command += [f"train.steps={self.steps}", *SMALL]
        settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}
        with open(self.temporary / "log.txt", "ab") as log:
            return subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)

    @property
    def local(self) -> Path:
        return RunFolder(self.out).local

    @property
    def checkpoints(self) -> str:
        return store.join(self.out, "checkpoints")

    def starts(self) -> int:
        """How often it came as far as its first step."""
        return len(list((self.local / "slots").glob("*-rank-00000.jsonl")))

    def steps_of_start(self) -> int:
        """Steps that the newest start has logged."""
        logs = sorted((self.local / "slots").glob("*-rank-00000.jsonl"))
        return logs[-1].read_bytes().count(b"\n") if logs else 0

    def writing(self) -> set[str]:
        """Files of a checkpoint, or in a store of the run's folder, that are being written, or that a kill left so."""
        folder = store.local_path(self.out)
        return set(glob.glob(f"{folder}/checkpoints/step-*/.writing-*" if folder else f"{self.temporary}/.writing-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="data/bench-chaos", help="folder for data and runs; emptied")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="runs in an object store instead of on a disk")
    args = parser.parse_args()
    work = Path(args.work).resolve()
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(object_store(work / "swift")) if args.s3 else str(work / "runs")
        found = {ranks: trial(work, prefix, ranks, args.kills, args.seed) for ranks in args.ranks}
    write("s3" if args.s3 else "disk", found)
    return 1 if any(result["wrong"] for result in found.values()) else 0


def trial(work: Path, prefix: str, ranks: int, kills: int, seed: int, steps: int | None = None) -> dict[str, Any]:
    """An undisturbed run and one that is killed ``kills`` times; what happened, and what is ``wrong``."""
    data = str(work / "data")
    people = ["train.people=24", "valid.people=8", "test.people=0", "seen.people=0", "seconds=0.6"]
    pack(load_recipe(str(REPOSITORY / "shards/quickstart.yaml"), [f"out={data}", *(f"synthetic.{p}" for p in people)]))
    os.environ[SCRATCH] = str(work / "scratch")
    total = steps or 12 * kills
    whole, killed = (
        Trial(store.join(prefix, f"{name}-{ranks}"), data, ranks, total, work / f"tmp-{name}-{ranks}")
        for name in ("whole", "killed")
    )
    print(f"{ranks} ranks, {total} steps: the run that nobody disturbs", flush=True)
    start = time.monotonic()
    process = whole.start()
    wait_for(lambda: whole.starts() > 0, process, whole)
    started_s = time.monotonic() - start
    if process.wait():
        sys.exit((whole.temporary / "log.txt").read_text()[-3000:])

    rng = random.Random(seed)
    moments, wrong, committed = Counter[str](), list[str](), 0
    for number in range(kills):
        moment = rng.choice(MOMENTS)
        before, old, left = killed.starts(), uncommitted(killed), killed.writing()
        process = killed.start()
        alive = wait_until(moment, rng, process, killed, before, left, started_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not alive:
            if process.returncode == 0:
                print(f"the run ended after {number} kills; give it more steps", flush=True)
                break
            sys.exit((killed.temporary / "log.txt").read_text()[-3000:])
        folders = checkpoint.committed(killed.checkpoints)
        if uncommitted(killed) - old or killed.writing() - left:  # a store shows nothing of a file that is not whole
            moment += f", which cut {'an upload' if store.local_path(killed.out) is None else 'a save'}"
        moments[moment] += 1
        for folder in folders:
            try:
                checkpoint.load(folder)
            except Exception as error:
                wrong.append(f"kill {number + 1}: {error}")
        newest = checkpoint.step_of(folders[-1]) if folders else 0
        if newest < committed:
            wrong.append(f"kill {number + 1}: the newest checkpoint went back from step {committed} to {newest}")
        committed = newest
        print(f"kill {number + 1} of {kills} ({moment}): committed up to step {committed}", flush=True)
    if killed.start().wait():
        sys.exit((killed.temporary / "log.txt").read_text()[-3000:])
    wrong += differences(whole, killed)
    for line in wrong:
        print(line, file=sys.stderr)
    seconds = round(time.monotonic() - start)
    return {"kills": dict(moments), "starts": killed.starts(), "steps": total, "seconds": seconds, "wrong": wrong}


def uncommitted(run: Trial) -> set[str]:
    """Folders of checkpoints that are none: saves under way, or cut."""
    folders = {store.join(run.checkpoints, name) for name in store.names(run.checkpoints) if name.startswith("step-")}
    return folders - set(checkpoint.committed(run.checkpoints))


def wait_until(
    moment: str,
    rng: random.Random,
    process: "subprocess.Popen[bytes]",
    run: Trial,
    starts: int,
    left: set[str],
    started_s: float,
) -> bool:
    """Return at the moment to kill; False if the process was over before. ``left`` are files of earlier kills."""
    if moment == "start":
        end = time.monotonic() + rng.uniform(0, started_s)
        return wait_for(lambda: time.monotonic() >= end, process, run)
    alive = wait_for(lambda: run.starts() > starts, process, run)
    if moment == "first step":
        end = time.monotonic() + rng.uniform(0, 0.3)
        return alive and wait_for(lambda: time.monotonic() >= end, process, run)
    steps = rng.randrange(1, 16)
    alive = alive and wait_for(lambda: run.steps_of_start() >= steps, process, run)
    if moment == "step":
        return alive
    alive = alive and wait_for(lambda: bool(run.writing() - left), process, run)
    time.sleep(rng.uniform(0, 0.02))
    return alive


def wait_for(reached: Callable[[], bool], process: "subprocess.Popen[bytes]", run: Trial) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"nothing happens for {PATIENCE_S:.0f} s\n{(run.temporary / 'log.txt').read_text()[-3000:]}")
        time.sleep(0.0005)
    return True


def differences(whole: Trial, killed: Trial) -> list[str]:
    """What the two runs do not have in common."""
    found = []
    one, other = (checkpoint.load(checkpoint.committed(run.checkpoints)[-1])[0] for run in (whole, killed))
    if one.keys() != other.keys():
        found.append(f"tensors: {sorted(one.keys() ^ other.keys())[:4]}")
    unequal = [name for name in one if name in other and not torch.equal(one[name], other[name])]
    if unequal:
        found.append(f"{len(unequal)} of {len(one)} tensors differ, the first: {unequal[0]}")
    expected, slots = read_slots(str(whole.local)), read_slots(str(killed.local))
    batch = len(expected) // whole.steps
    if [(step, slot) for step, slot, _ in expected] != [(i // batch, i) for i in range(batch * whole.steps)]:
        found.append("the undisturbed run did not use every slot of every step once")
    if slots != expected:
        first = next((pair for pair in zip(expected, slots, strict=False) if pair[0] != pair[1]), None)
        found.append(f"{len(slots)} slots, {len(expected)} expected; the first that differs: {first}")
    return found


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[str]:
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from swift import serving

    folder.mkdir(parents=True)
    with serving(folder) as swift:
        os.environ.update(swift.environment())
        yield f"s3://{swift.bucket}/runs"


def write(where: str, found: dict[int, dict[str, Any]]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for ranks, result in found.items():
        facts = {"date": datetime.date.today().isoformat(), "device": f"{os.cpu_count()} x {platform.machine()}"}
        known[f"{where}, {ranks} ranks"] = facts | {"torch": torch.__version__} | result
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(known, indent=1))


if __name__ == "__main__":
    sys.exit(main())
