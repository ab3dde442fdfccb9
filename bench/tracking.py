"""What tracking costs the training thread, and whether every point arrives once, while MLflow's server is killed.

    python bench/tracking.py                 # about four minutes

A loop that trains a small net logs to a real ``mlflow server`` (HTTP, SQLite behind it) as the trainer does: points
and what the machine does every --every steps, a validation and a picture now and then. The server is killed with
SIGKILL, stays away for --away seconds and is started again. Before and after, the same loop runs without a tracker: a
step's time beside the tracked one's is what the delivering thread costs, for it shares the interpreter's lock.

Writes bench/results/tracking.json; exit code 1 if the training thread spent 1 % or more of its time in tracking calls,
or a point is missing or there twice.
"""

import argparse
import datetime
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402 - after the number of threads
from machine import cpus  # noqa: E402
from mlflow_server import MlflowServer  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

from v2f.tracking import mlflow_client  # noqa: E402
from v2f.tracking.mlflow_run import mlflow_name  # noqa: E402
from v2f.tracking.tracker import Tracker  # noqa: E402

MOST = 0.01  # of the training thread's time
NAMES = [f"loss/phase/{number}" for number in range(30)] + [f"speed/{number}" for number in range(10)]
Points = list[tuple[str, int, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=float, default=40.0, help="seconds with the server, before it is killed")
    parser.add_argument("--away", type=float, default=60.0, help="seconds without it")
    parser.add_argument("--after", type=float, default=40.0, help="seconds with it again")
    parser.add_argument("--alone", type=float, default=20.0, help="seconds without a tracker, before and afterwards")
    parser.add_argument("--every", type=int, default=10, help="steps between logged points, as train.log_every")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop = Loop()
    with tempfile.TemporaryDirectory() as folder:
        server = MlflowServer(Path(folder))
        server.start()
        try:
            found = measure(loop, server, Path(folder) / "run", args)
        finally:
            server.kill()
    found = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "versions": {name: version(name) for name in ("v2f", "torch", "mlflow")}
        | {"python": platform.python_version()},
        "seconds": {"before": args.before, "away": args.away, "after": args.after},
        **found,
    }
    out = REPOSITORY / "bench" / "results" / "tracking.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    wrong = [name for name in ("missing", "twice", "never sent") if found["points"][name]]
    if found["share of the training thread's time in tracking calls"] >= MOST:
        wrong.append("the share of time")
    if wrong:
        print(f"missed: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def measure(loop: "Loop", server: MlflowServer, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    alone = loop.run(args.alone)
    tracker = Tracker(
        str(folder), uri=server.uri, experiment="bench", name="bench", parameters={"a": 1}, tags={}, run_id=None
    )
    logged: Points = []

    def log(step: int) -> None:
        if step % args.every == 0:
            numbers = {name: math.sin(step + number) for number, name in enumerate(NAMES)}
            note(tracker.log, step, numbers, "training")
            before = tracker.seconds
            tracker.log_system(step, step * 16)
            longest[0] = max(longest[0], tracker.seconds - before)
        if step % (20 * args.every) == 0:
            note(tracker.log, step, {"valid/margin": math.cos(step)}, "validation")
            Image.new("RGB", (64, 64)).save(folder / f"{step}.png")
            tracker.picture(step, step * 16, str(folder / f"{step}.png"), "samples")

    def note(call: Callable[..., None], step: int, numbers: dict[str, float], kind: str) -> None:
        before = tracker.seconds
        call(step, step * 16, numbers, kind)
        longest[0] = max(longest[0], tracker.seconds - before)
        logged.extend((name, step * 16, value) for name, value in numbers.items())

    longest = [0.0]
    begun = time.perf_counter()
    steps = {"server there": loop.run(args.before, log)}
    server.kill()
    steps["server away"] = loop.run(args.away, log)
    starting = time.perf_counter()
    server.start()
    begun += time.perf_counter() - starting  # nothing is trained meanwhile
    steps["server back"] = loop.run(args.after, log)
    seconds = time.perf_counter() - begun
    in_calls = tracker.seconds
    closing = time.perf_counter()
    tracker.close()
    closing = time.perf_counter() - closing
    alone += loop.run(args.alone)

    client = mlflow_client.connect(server.uri)
    history = [
        (name, m.step, m.value)
        for name in [*NAMES, "valid/margin"]
        for m in client.get_metric_history(tracker.run_id, mlflow_name(name))
    ]
    steps_there = Counter(m.step for m in client.get_metric_history(tracker.run_id, "step"))
    there = Counter(history)
    pictures = Counter(
        file.path.split("+")[2]
        for file in client.list_artifacts(tracker.run_id, "images")
        if file.path.endswith("compressed.webp")
    )
    return {
        "steps": sum(map(len, steps.values())),
        "processes that wanted a core": round(os.getloadavg()[1], 1),
        "points": {
            "logged": len(logged),
            "missing": len(set(logged) - there.keys()),
            "twice": sum(count > 1 for counts in (there, steps_there, pictures) for count in counts.values()),
            "never sent": len(there.keys() - set(logged)),
            "pictures": sum(pictures.values()),
        },
        "share of the training thread's time in tracking calls": round(in_calls / seconds, 6),
        "longest tracking call, ms": round(1000 * longest[0], 3),
        "closing, s": round(closing, 2),
        "median step, ms": {
            name: round(1000 * statistics.median(times), 3) for name, times in {"no tracker": alone, **steps}.items()
        },
    }


class Loop:
    """Steps of a small net."""

    def __init__(self) -> None:
        self._net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
        self._optimizer = torch.optim.Adam(self._net.parameters())
        self._step = 0

    def run(self, seconds: float, log: Callable[[int], None] = lambda step: None) -> list[float]:
        """Train for so long; the seconds of each step, logging included."""
        times = []
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            self._step += 1
            loss = self._net(torch.randn(64, 512)).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            log(self._step)
            times.append(time.perf_counter() - begun)
        return times


if __name__ == "__main__":
    sys.exit(main())
