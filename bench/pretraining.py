"""Does speaker pre-training of the encoder make better faces? The thesis's question, in the synthetic world.

    python bench/pretraining.py                       # packs, trains and evaluates: about 40 minutes on 2 cores
    python bench/pretraining.py --table               # only prints the table anew, from the results that are there

Every arm trains the faces of quickstart.yaml on shards/speaker-synthetic.yaml, from each seed:

    alone     for STEPS steps
    longer    for 2 x STEPS steps: as many samples as the next two arms
    last      for STEPS steps, from an encoder that learned speakers for STEPS steps with a head at its last depth
    all       likewise, with a head at each of its three depths

A run that is evaluated already is not repeated, one that was stopped is resumed. Writes bench/results/pretraining.json.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from v2f.evaluation.significance import with_training
from v2f.evaluation.subjects import METRICS, Subject
from v2f.runs.run import Run

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.machine import cpus  # noqa: E402 - after the path
from bench.runs import evaluated, finished, v2f, write  # noqa: E402

SPEAKERS, FACES = "launch/recipes/speaker-synthetic.yaml", "launch/recipes/quickstart.yaml"
DATA = "data/speaker-synthetic"
RESULTS = REPOSITORY / "bench" / "results" / "pretraining.json"
ARMS = {
    "alone": "faces alone",
    "longer": "faces alone, twice as long",
    "last": "speakers first, a head at the last depth",
    "all": "speakers first, a head at all three depths",
}
BASE = "longer"  # what the others are compared with: it has seen as many samples
R10 = next(metric for metric in METRICS["voice"] if (metric.key, metric.by) == ("R@10", "referee"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=350, help="of the speakers, and of the faces after them")
    parser.add_argument("--data", default=DATA, help="a packed data set; packed here if there is none")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are written")
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return 0
    if not Path(args.data, "manifest.json").exists():
        v2f("shards", "pack", "shards/speaker-synthetic.yaml", f"out={args.data}")
    arms = [(arm, seed) for seed in args.seeds for arm in ("longer", "all", "last", "alone")]  # long ones first
    with ThreadPoolExecutor(args.together) as pool:
        runs = list(pool.map(lambda one: trained(*one, args.steps, args.data), arms))
    batch = Run.open(runs[0]["run"]).config.data.batch
    found = {
        "recipes": [SPEAKERS, FACES],
        "steps": args.steps,
        "batch": batch,
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "versions": evaluated(runs[0]["run"])["versions"],
        "bounds": bounds(runs[0]["run"]),
        "runs": runs,
        "differences": {arm: difference(runs, arm) for arm in ARMS if arm != BASE},
    }
    write(args.out, found)
    print(table(found))
    return 0


# ------------------------------------------------------------------------------------------------ runs


def trained(arm: str, seed: int, steps: int, data: str) -> dict[str, Any]:
    """Train and evaluate one run, and the speaker run before it, if there is one; their scores."""
    result: dict[str, Any] = {"arm": arm, "seed": seed}
    changes = {}
    if arm in ("last", "all"):
        speakers = f"pretraining-{steps}-speakers-{arm}-{seed}"
        result |= {"speakers": scores_of_speakers(one(SPEAKERS, speakers, seed, steps, data, {"system.heads": arm}))}
        changes["init_from"] = f"[{{run: runs/{speakers}, module: encoder}}]"
    name = f"pretraining-{steps}-{arm}-{seed}"
    run = one(FACES, name, seed, 2 * steps if arm == "longer" else steps, data, changes)
    return result | {"run": run, "scores": scores_of_faces(run)}


def one(recipe: str, name: str, seed: int, steps: int, data: str, changes: dict[str, str]) -> str:
    """Train a run to its last step and evaluate it; its folder."""
    often = {"train.validate_every": str(max(1, steps // 4)), "train.checkpoint_every": str(max(1, steps // 2))}
    return finished(recipe, name, steps, {"seed": str(seed), **changes, **often}, data=data)


# ------------------------------------------------------------------------------------------------ numbers


def scores_of_faces(run: str) -> dict[str, Any]:
    """Of both splits, by both nets: R@10, nearest, energy, identity distance."""
    scores = {}
    for split, found in evaluated(run)["splits"].items():
        for by, told in found["by"].items():
            voice = told["lines"]["voice"]
            values = {"R@10": voice["R@10"]["value"], "identity distance": voice["identity_distance_ratio"]}
            values |= {key: voice["picture"][key] for key in ("nearest", "energy")}
            scores |= {f"{split}/{by}/{key}": value for key, value in values.items()}
    return scores


def scores_of_speakers(run: str) -> dict[str, Any]:
    splits = evaluated(run)["splits"]
    eer, accuracy = splits["test"]["by"]["trials"], splits["seen"]["by"]["classes"]
    return {
        "run": run,
        "EER": (eer["lines"]["speaker"]["eer"] or {}).get("value"),
        "accuracy": accuracy["lines"]["speaker"]["accuracy"]["value"],
        "chance": splits["seen"]["chance"]["accuracy"],
    }


def bounds(run: str) -> dict[str, float]:
    """R@10 of unseen people by chance and of U1, by the referee."""
    test = evaluated(run)["splits"]["test"]
    return {"chance": test["chance"]["R@10"], "U1": test["by"]["referee"]["lines"]["U1"]["R@10"]["value"]}


def difference(runs: list[dict[str, Any]], arm: str) -> dict[str, float]:
    """R@10 of unseen people by the referee, ``arm`` minus the base: the mean and its 95 % interval, which includes the
    noise of people and that of training (the variance between seeds, pooled over the arms)."""
    shares = {each: np.stack([shares_of(run["run"]) for run in runs if run["arm"] == each]) for each in ARMS}
    seeds, freedom = len(shares[arm]), sum(len(own) - 1 for own in shares.values())
    squares = sum(float(np.var(own.mean(1)) * len(own)) for own in shares.values())
    apart_N = shares[arm].mean(0) - shares[BASE].mean(0)
    interval, p = with_training(apart_N, (seeds, seeds), squares / freedom if freedom else 0.0, max(1, freedom))
    return interval.as_dict() | {"p": p}


def shares_of(run: str) -> np.ndarray:
    shares_N = Subject("A", Run.open(run)).shares("test", R10)
    assert shares_N is not None, f"{run}: eval-people.json does not belong to eval.json"
    return shares_N


# ------------------------------------------------------------------------------------------------ the table


def table(found: dict[str, Any]) -> str:
    """The results in Markdown, with one row for each arm: means over the seeds, the least and the most."""
    batch, steps = found["batch"], found["steps"]
    seeds = sorted({run["seed"] for run in found["runs"]})
    rows = [
        "| | samples: speakers, faces | EER, identified | R@10 by the referee | by the judge | nearest | energy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, title in ARMS.items():
        runs = [run for run in found["runs"] if run["arm"] == arm]
        first = [run["speakers"] for run in runs if "speakers" in run]
        samples = f"{steps * batch if first else 0:,}, {steps * batch * (2 if arm == 'longer' else 1):,}"
        heard = f"{spread(first, 'EER', 100)}, {spread(first, 'accuracy', 100)}" if first else "–"
        scores = [run["scores"] for run in runs]
        cells = [spread(scores, f"test/{by}/R@10", 100) for by in ("referee", "judge")]
        cells += [spread(scores, "test/referee/nearest", 1, 2), spread(scores, "test/referee/energy", 1, 3)]
        rows.append(f"| {title} | {samples} | {heard} | {' | '.join(cells)} |")
    chance, u1 = (100 * found["bounds"][key] for key in ("chance", "U1"))
    rows += ["", f"Unseen people, in percent; by chance R@10 is {chance:.1f}, of U1 {u1:.1f} (referee).", ""]
    for arm, apart in found["differences"].items():
        low, high = (100 * apart[key] for key in ("low", "high"))
        rows.append(
            f"- {ARMS[arm]}, minus {ARMS[BASE]}: R@10 {100 * apart['value']:+.1f} ({low:+.1f} to {high:+.1f}), "
            f"p {apart['p']:.2g}"
        )
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    rows += ["", f"{found['date']}, seeds {', '.join(map(str, seeds))}, {found['device']}, {versions}."]
    return "\n".join(rows)


def spread(scores: list[dict[str, Any]], key: str, scale: float, digits: int = 1) -> str:
    """The mean over runs, and the least and the most if there are several."""
    values = [scale * score[key] for score in scores if score[key] is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
