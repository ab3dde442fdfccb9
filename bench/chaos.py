"""Kill -9 a training run at random moments, again and again; the final result must not show it.

    python bench/chaos.py                                       # 30 kills with 1 rank, 30 with 2, runs on a disk
    python bench/chaos.py --ranks 2 --kills 8 --kill agent exec restarted local      # of one process alone
    python bench/chaos.py --ranks 1 --kills 8 --s3              # runs in an object store on loopback (OpenStack Swift)

A kill of the ``ranks`` kills the launcher, its ranks and their decode workers at once. A kill of the ``agent``
(torchrun), of ``exec`` (v2f exec) or of ``local`` (launch/local) kills only that process, and the next start does not
wait for what it leaves behind; ``restarted`` is an exec that launch/local restarts by itself. Kills come while the run
starts, in its first step, after some steps, or in a save, while a file of a checkpoint is being written (or uploaded).
After each kill, every committed checkpoint is read, with all checksums verified. After the last one the run is left to
finish, and is compared with an undisturbed run of the same recipe. Equal must be: final weights, moments and averages,
bit for bit; the samples of all slots of all steps, and the points of metrics.jsonl, each exactly once. No process may
be left (promises 1, 4 and 5: order, checkpoints, repeatable numbers). Writes bench/results/chaos.json; exit code 1 if
anything differs.
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
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import cpus

from v2f.prepare.pack import load_recipe, pack
from v2f.runs import checkpoint
from v2f.runs.folder import RunFolder
from v2f.storage import store
from v2f.storage.local import SCRATCH, scratch
from v2f.tracking.spool import SPOOL
from v2f.training.slot_log import read_slots
from v2f.training.stopping import STOPPED

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "chaos.json"
MOMENTS = ("start", "first step", "step", "save", "save")
PATIENCE_S = 300.0
LEAVE_S = 15.0  # for processes that outlive a run
KILLS = ("ranks", "agent", "exec", "restarted", "local")
POINTS = ("loss/", "grad_norm/", "rate/", "skipped/", "valid/")  # independent of clock and machine
SMALL = [
    *("system.seconds=0.5", "system.encoder.channels=[8,12,16]", "system.encoder.blocks=[1,1,1]"),
    *("system.encoder.strides=[2,2,2]", "system.encoder.stem_stride=8", "system.encoder.out_channels=16"),
    *("system.encoder.bn_group=2", "data.batch=8", "data.workers=1", "data.window=8", "train.precision=fp32"),
    *("train.threads=1", "train.log_every=1", "train.validate_every=40", "train.validate_samples=8"),
    *("train.checkpoint_every=4", "train.sample_log=true", "tracking.uri=null"),
]


@dataclass
class Trial:
    """One run of the recipe, launched again and again: where it is stored, and how it is started."""

    out: str
    data: str
    ranks: int
    steps: int
    temporary: Path
    kill: str = "ranks"

    def start(self) -> "subprocess.Popen[bytes]":
        self.temporary.mkdir(parents=True, exist_ok=True)
        train = ["v2f/train.py", "--resume", "auto", "--config"]
        torchrun = ["torchrun", "--standalone", "--nproc-per-node", str(self.ranks), *train]
        command = {
            "ranks": torchrun if self.ranks > 1 else ["python", *train],
            "agent": torchrun,
            "exec": ["v2f", "exec", *torchrun],
        }.get(self.kill, ["launch/local"])
        command += ["launch/recipes/quickstart.yaml", f"out={self.out}", f"data.path={self.data}"]
        command += [f"train.steps={self.steps}", *SMALL]
        settings = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        settings |= {"V2F_RANKS": str(self.ranks), "V2F_PAUSE": "0", "V2F_RESTARTS": "1000"}
        settings |= {"TMPDIR": str(self.temporary), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with open(self.temporary / "log.txt", "ab") as log:
            return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | settings, stdout=log, stderr=log)

    def strike(self, process: "subprocess.Popen[bytes]") -> "subprocess.Popen[bytes]":
        """Kill, and return the process that was started next."""
        if self.kill == "restarted":
            while not (found := [each for each in psutil.Process(process.pid).children() if "exec" in each.cmdline()]):
                time.sleep(0.01)
            found[0].kill()
            return process
        if self.kill == "ranks":
            self.end()
        process.kill()
        process.wait()
        return self.start()

    def end(self) -> None:
        """Kill all of its processes."""
        while doomed := self.alive():
            for each in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()

    def alive(self) -> list[psutil.Process]:
        """Its processes from all starts: only they have its temporary folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("TMPDIR") == str(self.temporary) and process.status() != "zombie":
                    found.append(process)
        return found

    def said(self) -> str:
        return (self.temporary / "log.txt").read_text(errors="replace")[-3000:]

    @property
    def local(self) -> Path:
        return RunFolder(self.out).local

    @property
    def checkpoints(self) -> str:
        return store.join(self.out, "checkpoints")

    def starts(self) -> int:
        """How many starts reached their first step."""
        return len(list((self.local / "slots").glob("*-rank-00000.jsonl")))

    def steps_of_start(self) -> int:
        """How many steps the newest start has logged."""
        logs = sorted((self.local / "slots").glob("*-rank-00000.jsonl"))
        return logs[-1].read_bytes().count(b"\n") if logs else 0

    def writing(self) -> set[str]:
        """Files of a checkpoint (in a store, of the whole run) that are being written, or were cut by a kill."""
        folder = store.local_path(self.out)
        return set(glob.glob(f"{folder}/checkpoints/step-*/.writing-*" if folder else f"{scratch()}/.writing-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="data/bench-chaos", help="folder for data and runs; it is emptied first")
    parser.add_argument("--kill", choices=KILLS, nargs="+", default=["ranks"], help="which process to kill")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, help="of the run; default: 12 per kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="runs in an object store instead of on a disk")
    args = parser.parse_args()
    work = Path(args.work).resolve()
    shutil.rmtree(work, ignore_errors=True)
    os.environ[SCRATCH] = str(work / "scratch")
    data = str(work / "data")
    people = ["train.people=24", "valid.people=8", "test.people=0", "seen.people=0", "seconds=0.6"]
    pack(load_recipe(str(REPOSITORY / "shards/quickstart.yaml"), [f"out={data}", *(f"synthetic.{p}" for p in people)]))
    steps, wrong = args.steps or 12 * args.kills, 0
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(object_store(work / "swift")) if args.s3 else str(work / "runs")
        for ranks in args.ranks:
            runs = {
                name: Trial(store.join(prefix, f"{name}-{ranks}"), data, ranks, steps, work / f"tmp-{name}-{ranks}")
                for name in ("whole", *args.kill)
            }
            for run in runs.values():
                stack.callback(run.end)
            print(f"{ranks} ranks, {steps} steps: the undisturbed run", flush=True)
            started_s = undisturbed(runs["whole"])
            for kill in args.kill:
                runs[kill].kill = kill
                result = trial(runs["whole"], runs[kill], args.kills, args.seed, started_s)
                write(f"{'s3' if args.s3 else 'disk'}, {ranks} ranks, kill of {kill}", result)
                wrong += len(result["wrong"])
    return 1 if wrong else 0


def undisturbed(run: Trial) -> float:
    """Run to the end; returns the seconds to the first step."""
    start = time.monotonic()
    process = run.start()
    wait_for(lambda: run.starts() > 0, process, run)
    started_s = time.monotonic() - start
    if process.wait():
        sys.exit(run.said())
    return started_s


def trial(whole: Trial, killed: Trial, kills: int, seed: int, started_s: float) -> dict[str, Any]:
    """Kill a run ``kills`` times, and let it finish; returns what happened, and what is ``wrong``."""
    rng, start = random.Random(seed), time.monotonic()
    moments, wrong, committed, refused, number = Counter[str](), list[str](), 0, 0, 0
    process = killed.start()
    while number < kills:
        moment = rng.choice(MOMENTS)
        before, old, left = killed.starts(), uncommitted(killed), killed.writing()
        if wait_until(moment, rng, process, killed, before, left, started_s):
            process = killed.strike(process)
            number += 1
            # A store does not list an incomplete file.
            if uncommitted(killed) - old or killed.writing() - left:
                moment += f", in {'an upload' if store.local_path(killed.out) is None else 'a save'}"
            moments[moment] += 1
        elif process.returncode == STOPPED:
            refused += 1
            process = killed.start()
            continue
        elif process.returncode:
            sys.exit(killed.said())
        else:
            print(f"the run ended after {number} kills; give it more steps", flush=True)
            break
        folders = checkpoint.committed(killed.checkpoints)
        for folder in folders:
            try:
                checkpoint.load(folder)
            except Exception as error:
                if folder in checkpoint.committed(
                    killed.checkpoints
                ):  # else a process that outlived the kill has removed it
                    wrong.append(f"kill {number}: {error}")
        newest = checkpoint.step_of(folders[-1]) if folders else 0
        if newest < committed:
            wrong.append(f"kill {number}: the newest checkpoint went back from step {committed} to {newest}")
        committed = newest
        print(f"kill {number} of {kills} ({moment}): committed up to step {committed}", flush=True)
    while process.wait() == STOPPED:
        refused += 1
        process = killed.start()
    if process.returncode:
        sys.exit(killed.said())
    _, stayed = psutil.wait_procs(killed.alive(), LEAVE_S)
    wrong += [f"a process is left: {each}" for each in stayed]
    wrong += differences(whole, killed)
    for line in wrong:
        print(line, file=sys.stderr)
    seconds = round(time.monotonic() - start)
    facts = {"kills": dict(moments), "starts": killed.starts(), "refused": refused, "steps": killed.steps}
    return facts | {"seconds": seconds, "wrong": wrong}


def uncommitted(run: Trial) -> set[str]:
    """Folders of checkpoints that are not committed: saves in progress, or killed."""
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
    """Wait for the moment to kill; False if the process ended before. ``left`` are files of earlier kills."""
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
            sys.exit(f"nothing happened for {PATIENCE_S:.0f} s\n{run.said()}")
        time.sleep(0.0005)
    return True


def differences(whole: Trial, killed: Trial) -> list[str]:
    """How the two runs differ, a line each."""
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
    undisturbed, again = points(whole), points(killed)
    if [step for kind, step, _ in undisturbed if kind == "training"] != list(range(1, whole.steps + 1)):
        found.append("the undisturbed run did not log every step once")
    if again != undisturbed:
        first = next((pair for pair in zip(undisturbed, again, strict=False) if pair[0] != pair[1]), None)
        found.append(f"{len(again)} points, {len(undisturbed)} expected; the first that differs: {first}")
    return found


def points(run: Trial) -> list[tuple[str, int, dict[str, float]]]:
    """The logged points: kind, step, and the numbers that every start must reproduce."""
    lines = [json.loads(line) for line in (run.local / SPOOL).read_text().splitlines()]
    return [
        (each["kind"], each["step"], {k: v for k, v in each.get("metrics", {}).items() if k.startswith(POINTS)})
        for each in lines
        if each["kind"] != "system"
    ]


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[str]:
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from swift import serving

    folder.mkdir(parents=True)
    with serving(folder) as swift:
        os.environ.update(swift.environment())
        yield f"s3://{swift.bucket}/runs"


def write(name: str, result: dict[str, Any]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    facts = {"date": datetime.date.today().isoformat(), "device": cpus()}
    versions = {"python": platform.python_version(), **{p: version(p) for p in ("v2f", "torch")}}
    known[name] = facts | {"versions": versions} | result
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps({name: known[name]}, indent=1), flush=True)


if __name__ == "__main__":
    sys.exit(main())
