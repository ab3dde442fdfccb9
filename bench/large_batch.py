"""Does a run learn alike at batches of 16, 256 and 1,024? The rule of docs/scaling.md, and what happens without it.

    python bench/large_batch.py                                         # trains and evaluates: hours on 2 cores
    python bench/large_batch.py --seeds 0 1 2 --together 12             # on a GPU
    python bench/large_batch.py --derive launch/recipes/thesis-final.yaml --batch 1024    # prints overrides, no run

All runs see the same number of samples of the quickstart's world. Arms: ``rule`` multiplies the rate by the square
root of the batch's ratio; ``linear`` by the ratio; ``unscaled`` leaves it. ``rule``, which is what is claimed, runs
with every seed, the others with the first. A run that is finished is only evaluated.
Writes bench/results/large_batch.json and docs/large-batch.png; exit code 1 where the batches do not learn alike under
the rule, or where leaving it out costs nothing.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from v2f.config import Config
from v2f.runs.config import RunConfig, load_config
from v2f.system import Optimizer

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.machine import cpus  # noqa: E402 - after the path

RECIPE = "launch/recipes/large-batch.yaml"
DATA = "data/large-batch"  # the quickstart's people, their voices as WAV: reading FLAC is a third of such a step's work
CODES = "data/large-batch-codes"  # the same with the targets of the loss, so that no step computes them anew
RESULTS = REPOSITORY / "bench" / "results" / "large_batch.json"
PLOT = REPOSITORY / "docs" / "large-batch.png"
BASE = 16  # where the arms meet
RUNS = [(16, "rule"), (1024, "rule"), (256, "rule"), (1024, "unscaled"), (256, "unscaled"), (1024, "linear")]
EXPONENT = {"rule": 0.5, "linear": 1.0, "unscaled": 0.0}
LEAST_WARMUP_STEPS = 16
POINTS, VALIDATIONS, SAVES = 64, 8, 2  # of a run
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # else 15 % slower on a CPU
MOST_APART = 0.05  # of R@10, about the 95 % interval of one
COLORS = {"rule": "#1f4e9c", "linear": "#8e44ad", "unscaled": "#c0392b"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samples", type=int, help="of each run; default: as many as the recipe sees")
    parser.add_argument("--together", type=int, help="runs at a time; default: one for each core that there is, or GPU")
    parser.add_argument("--derive", metavar="RECIPE.yaml", help="only print the overrides for another batch")
    parser.add_argument("--batch", type=int, help="the batch that --derive is for")
    parser.add_argument("--draw", action="store_true", help="only draw the plot anew, from the results that are there")
    args = parser.parse_args()
    if args.draw:
        plot(json.loads(RESULTS.read_text())["runs"], PLOT)
        return 0
    if args.derive:
        if args.batch is None:
            parser.error("--derive wants --batch")
        print("\n".join(f"{key}={value}" for key, value in derived(load_config(args.derive), args.batch).items()))
        return 0
    recipe = load_config(RECIPE)
    samples = args.samples or recipe.train.steps * recipe.data.batch
    v2f("shards", "pack", "shards/quickstart.yaml", f"out={DATA}", "synthetic.audio=wav")
    v2f("shards", "precompute", DATA, "--out", CODES, "codes.net=stand_in")
    # One thread a run, and so a run a core, is a third faster than one run on all cores: its layers are small.
    together = args.together or (1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(together) as pool:
        results = list(pool.map(lambda run: one(recipe, samples, *run), wanted(args.seeds)))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpus()
    found = {
        "recipe": RECIPE,
        "samples": samples,
        "date": datetime.date.today().isoformat(),
        "device": device,
        "runs at a time": together,
        "versions": results[0].pop("versions"),
        "runs": [{key: value for key, value in result.items() if key != "versions"} for result in results],
        "summary": {f"{batch} {arm}": summary(results, batch, arm) for batch, arm in RUNS},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    plot(results, PLOT)
    missed = show(found["summary"])
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


# ------------------------------------------------------------------------------------------------ the rule


def derived(config: RunConfig, batch: int, arm: str = "rule", samples: int | None = None) -> dict[str, str]:
    """Overrides that take a recipe to another global batch, for as many samples as before.

    The rate of every optimizer goes with a power of the ratio, the square root for Adam (Malladi et al. 2022, arXiv
    2205.10287, definition 4.1). What the recipe says in samples stays: warm-up, decay, the average's half-life; a
    warm-up of fewer than 16 steps is stretched to them. What it says in steps is divided by the ratio.
    """
    ratio = batch / config.data.batch
    total = samples or config.train.steps * config.data.batch
    train = config.train
    overrides = {"data.batch": str(batch), "train.steps": str(max(1, round(total / batch)))}
    if train.micro_batch is None and ratio > 1:
        overrides["train.micro_batch"] = str(config.data.batch)  # for one process; each of many has less
    for name in ("log_every", "validate_every", "checkpoint_every"):
        overrides[f"train.{name}"] = str(max(1, round(getattr(train, name) / ratio)))
    for where, optimizer in optimizers(config.system, "system"):
        rates = {name: float(f"{rate * ratio ** EXPONENT[arm]:.4g}") for name, rate in optimizer.lr.items()}
        overrides[f"{where}.lr"] = "{" + ", ".join(f"{name}: {rate:.4g}" for name, rate in rates.items()) + "}"
        schedules = {f"schedules.{name}": schedule for name, schedule in optimizer.schedules.items()}
        for key, schedule in {"schedule": optimizer.schedule, **schedules}.items():
            warmup = max(schedule.warmup, LEAST_WARMUP_STEPS * batch)
            if warmup != schedule.warmup:
                overrides[f"{where}.{key}.warmup"] = str(warmup)
    return overrides


def optimizers(config: Config, where: str) -> Iterator[tuple[str, Optimizer]]:
    """Every optimizer of a system's configuration, with its dotted key."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Optimizer):
            yield f"{where}.{name}", value
        elif isinstance(value, Config):
            yield from optimizers(value, f"{where}.{name}")


# ------------------------------------------------------------------------------------------------ the measurement


def wanted(seeds: list[int]) -> list[tuple[int, str, int]]:
    """Batch, arm and seed of every run."""
    return [(batch, arm, seed) for seed in seeds for batch, arm in RUNS if arm == "rule" or seed == seeds[0]]


def one(recipe: RunConfig, samples: int, batch: int, arm: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one run; its scores and its curve."""
    base = load_config(RECIPE, [f"{key}={value}" for key, value in derived(recipe, BASE, samples=samples).items()])
    most = 1024 if torch.cuda.is_available() else 64  # changes nothing but time
    changes = derived(base, batch, arm, samples) | {"train.micro_batch": str(min(batch, most)), "tracking.uri": "null"}
    changes |= {"data.path": CODES, "system.frozen.codes.net": "precomputed", "train.threads": "1"}
    steps = int(changes["train.steps"])
    for name, times in {"log_every": POINTS, "validate_every": VALIDATIONS, "checkpoint_every": SAVES}.items():
        changes[f"train.{name}"] = str(max(1, steps // times))
    name = f"large-batch-{samples}-{batch}-{arm}-{seed}"
    overrides = [f"name={name}", f"seed={seed}", *(f"{key}={value}" for key, value in changes.items())]
    v2f("train", "--config", RECIPE, "--resume", "auto", *overrides)
    v2f("eval", f"runs/{name}")
    folder = REPOSITORY / "runs" / name
    evaluated = json.loads((folder / "eval.json").read_text())
    scores: dict[str, Any] = {"batch": batch, "arm": arm, "seed": seed, "steps": steps}
    scores["rate"] = load_config(RECIPE, [f"{key}={value}" for key, value in changes.items()]).model_dump()["system"][
        "optimizer"
    ]["lr"]
    for split, found in evaluated["splits"].items():
        voice = found["by"]["judge"]["lines"]["voice"]  # this recipe's loss is of codes alone: it saw no identity net
        scores[f"{split}/R@10"] = voice["R@10"]["value"]
        scores[f"{split}/R@10 interval"] = [voice["R@10"]["low"], voice["R@10"]["high"]]
        scores[f"{split}/identity distance"] = voice["identity_distance_ratio"]
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [
        (p["samples"], p["metrics"]["loss/supervised/style"])
        for p in points
        if "loss/supervised/style" in p.get("metrics", {})
    ]
    scores["curve"] = [[seen, round(loss, 4)] for seen, loss in curve]
    tail = [loss for _, loss in curve[-max(1, len(curve) // 8) :]]
    scores["loss at the end"] = round(statistics.mean(tail), 4)
    return scores | {"versions": evaluated["versions"]}


def v2f(*arguments: str) -> None:
    command = [sys.executable, "-m", "v2f.cli", *arguments]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=KEEPS_MEMORY | os.environ)


def summary(results: list[dict[str, Any]], batch: int, arm: str) -> dict[str, Any]:
    runs = [result for result in results if result["batch"] == batch and result["arm"] == arm]
    found: dict[str, Any] = {"steps": runs[0]["steps"], "rate": runs[0]["rate"], "runs": len(runs)}
    for key in ("test/R@10", "seen/R@10", "test/identity distance", "loss at the end"):
        values = [run[key] for run in runs]
        found[key] = {"mean": statistics.mean(values), "least": min(values), "most": max(values)}
    return found


def show(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """Print the table, of each arm the mean and the spread of its runs; what is missed."""
    print(
        f"{'batch, arm':15s} {'steps':>6s} {'runs':>4s}  {'R@10 unseen':22s} {'seen':>5s} {'distance':>9s} {'loss':>7s}"
    )
    for name, row in summaries.items():
        r10 = row["test/R@10"]
        spread = f"{r10['mean']:.3f} ({r10['least']:.3f} to {r10['most']:.3f})"
        seen, apart, loss = (row[key]["mean"] for key in ("seen/R@10", "test/identity distance", "loss at the end"))
        print(f"{name:15s} {row['steps']:6d} {row['runs']:4d}  {spread:22s} {seen:5.3f} {apart:9.3f} {loss:7.4f}")
    reached = {name: row["test/R@10"]["mean"] for name, row in summaries.items()}
    missed = []
    for batch in (256, 1024):
        apart = reached[f"{batch} rule"] - reached[f"{BASE} rule"]
        if abs(apart) > MOST_APART:
            missed.append(f"under the rule, R@10 at {batch} is {apart:+.3f} from that at {BASE}; at most {MOST_APART}")
    gain = reached["1024 rule"] - reached["1024 unscaled"]
    if gain < MOST_APART:
        missed.append(f"at 1,024 the rule gains {gain:+.3f} of R@10 over an unscaled rate, less than {MOST_APART}")
    return missed


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Training loss over samples, a line for each run of the first seed; what lies above the rule's runs is cut off."""
    width, height, left, top, bottom, right = 1000, 520, 70, 20, 60, 150
    runs = [run for run in results if run["seed"] == results[0]["seed"]]
    most = max(seen for run in runs for seen, _ in run["curve"])
    low = min(loss for run in runs for _, loss in run["curve"])
    high = max(loss for run in runs if run["arm"] == "rule" for seen, loss in run["curve"] if seen > most / 50)
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def at(seen: float, loss: float) -> tuple[float, float]:
        down = (high - min(loss, high)) / (high - low)
        return left + (width - left - right) * seen / most, top + (height - top - bottom) * down

    for part in range(6):
        loss = low + (high - low) * part / 5
        draw.line([at(0, loss), at(most, loss)], "#dddddd")
        draw.text((left - 8, at(0, loss)[1]), f"{loss:.3f}", "black", font, anchor="rm")
    unit = 10 ** math.floor(math.log10(most))
    for seen in range(0, most + 1, unit if most >= 3 * unit else max(1, unit // 4)):
        draw.text((at(seen, low)[0], height - bottom + 8), f"{seen:,}", "black", font, anchor="ma")
    middle = (width + left - right) / 2
    draw.text((middle, height - 8), "training loss (style) over samples seen", "black", font, anchor="mb")
    ends: list[tuple[float, str, str]] = []
    for run in runs:
        points = [at(seen, loss) for seen, loss in run["curve"]]
        thick = {16: 3, 256: 2, 1024: 1}[run["batch"]]
        for line in [points] if run["arm"] == "rule" else dashes(points):
            draw.line(line, COLORS[run["arm"]], thick)
        ends.append((points[-1][1], f"{run['batch']:,} {run['arm']}", COLORS[run["arm"]]))
    next_up = float(height - bottom) + 16
    for y, label, color in sorted(ends, reverse=True):  # labels do not lie on one another, nor below the axis
        next_up = min(y, next_up - 16)
        draw.text((width - right + 8, next_up), label, color, font, anchor="lm")
    image.save(path, optimize=True)


def dashes(points: list[tuple[float, float]], length: int = 6) -> Iterator[list[tuple[float, float]]]:
    """Every other stretch of a line that goes through ``points``, each ``length`` pixels to the right."""
    xs, ys = zip(*points, strict=True)
    for start in range(round(xs[0]), round(xs[-1]), 2 * length):
        end = min(start + length, xs[-1])
        between = [point for point in points if start < point[0] < end]
        yield [(start, float(np.interp(start, xs, ys))), *between, (end, float(np.interp(end, xs, ys)))]


if __name__ == "__main__":
    sys.exit(main())
