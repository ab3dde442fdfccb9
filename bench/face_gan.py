"""Do the recipes of the face GAN that are made to fail fail, and is the failure named? Do the others not fail?

    python bench/face_gan.py                       # packs, trains and evaluates: about an hour on 2 cores
    python bench/face_gan.py --recipes face-gan-collapse face-gan-diverge
    python bench/face_gan.py --table               # only prints the table anew, from the results that are there

Every recipe is trained from each seed as it is, on the portraits of the quickstart's synthetic world. Its verdict after
each validation is computed again from what the run logged. A run that is evaluated already is not repeated, one that
was stopped is resumed, and the results of recipes that are not asked for stay. Writes bench/results/face-gan.json.
Exit code 1 if a run made to fail is not named as such by its third validation, or another one is accused of anything.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.machine import cpus  # noqa: E402 - after the path
from bench.pretraining import spread  # noqa: E402
from bench.runs import evaluated, finished, v2f, write  # noqa: E402
from v2f.runs.config import load_config  # noqa: E402
from v2f.runs.run import Run  # noqa: E402
from v2f.system import System  # noqa: E402

PACK, DATA = "shards/quickstart.yaml", "data/face-gan"
LESS = ("train.clips=1", "test.clips=1", "seen.people=0", "seconds=0.1")
"""Of the pack's synthetic part: one photo of each person, and hardly any sound, which is not heard."""
RESULTS = REPOSITORY / "bench" / "results" / "face-gan.json"
RECIPES: dict[str, str | None] = {
    "face-gan-collapse": "MODE COLLAPSE",
    "face-gan-diverge": "NOT CONVERGING",
    "face-gan": None,
    "face-gan-r1": None,
    "face-gan-spectral": None,
}
"""Recipe -> the failure that it is made for, as its verdict names it."""
IN_TIME = 3  # validations until a failure must have been named
SPEED = "speed/samples_per_second"
_HISTORY = 200  # logged points that a verdict gets while training


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", default=DATA, help="a packed data set; packed here if there is none")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are written")
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    args = parser.parse_args()
    if not args.table:
        if not Path(args.data, "manifest.json").exists():
            v2f("shards", "pack", PACK, f"out={args.data}", *(f"synthetic.{each}" for each in LESS))
        wanted = [(recipe, seed) for recipe in args.recipes for seed in args.seeds]
        with ThreadPoolExecutor(args.together) as pool:
            runs = list(pool.map(lambda one: trained(*one, args.data), wanted))
        add(args.out, runs)
    found = json.loads(args.out.read_text())
    print(table(found))
    for wrong in (wrongs := [line for run in found["runs"] if (line := complaint(run))]):
        print(wrong, file=sys.stderr)
    return 1 if wrongs else 0


# ------------------------------------------------------------------------------------------------ runs


def trained(recipe: str, seed: int, data: str) -> dict[str, Any]:
    """Train and evaluate one recipe from one seed, as far as this was not done before; its verdicts and scores."""
    path = f"launch/recipes/{recipe}.yaml"
    config = load_config(str(REPOSITORY / path))
    run = Run.open(finished(path, f"{recipe}-{seed}", config.train.steps, {"seed": str(seed)}, data=data))
    result = evaluated(run.path)
    split = next(iter(result["splits"].values()))
    logged = [json.loads(line) for line in Path(run.path, "metrics.jsonl").read_text().splitlines()]
    points = [(point["step"], point["metrics"]) for point in logged if "metrics" in point]
    speeds = [numbers[SPEED] for _, numbers in points if SPEED in numbers]
    return {
        "recipe": recipe,
        "seed": seed,
        "steps": config.train.steps,
        "ms_a_step": 1000 * config.data.batch / statistics.median(speeds),
        "people": split["people"],
        "scores": {line: scores(split, line) for line in ("generated", "trained")},
        "verdicts": verdicts(run.system(), points),
        "versions": result["versions"],
    }


def scores(split: dict[str, Any], line: str) -> dict[str, float]:
    """A line of the evaluation, by the referee and in pixels."""
    seen = split["by"]["referee"]["lines"][line]
    keys = ("nearest", "energy", "precision", "recall")
    pixels = split["by"]["pixels"]["lines"][line]
    return {"frechet": seen["frechet"], **{key: seen["picture"][key] for key in keys}, **pixels}


def verdicts(system: System, points: Sequence[tuple[int, dict[str, float]]]) -> list[tuple[int, str | None]]:
    """Step and verdict of each validation, from what the run logged, as :mod:`v2f.training.rank_zero` says them."""
    history: dict[str, deque[float]] = {}
    found = []
    for step, numbers in points:
        meters = {name.removeprefix("valid/"): value for name, value in numbers.items() if name.startswith("valid/")}
        if meters:
            found.append((step, system.verdict(meters, history)))
        else:
            for name, value in numbers.items():
                history.setdefault(name, deque(maxlen=_HISTORY)).append(value)
    return found


def named_at(run: dict[str, Any]) -> int | None:
    """Which validation was the first to name the failure that the recipe is made for; of a healthy one, any failure."""
    failure = RECIPES[run["recipe"]]
    for number, (_, verdict) in enumerate(run["verdicts"], 1):
        if verdict and (failure is None or failure in verdict):
            return number
    return None


def complaint(run: dict[str, Any]) -> str | None:
    """What a run shows that its recipe does not promise, in a line."""
    failure, at, which = RECIPES[run["recipe"]], named_at(run), f"{run['recipe']}, seed {run['seed']}"
    if failure is None:
        return None if at is None else f"{which}: validation {at} says {run['verdicts'][at - 1][1]}"
    if at is None or at > IN_TIME:
        return f"{which}: {failure} was named {'never' if at is None else f'at validation {at}'}"
    return None


def add(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write the results, with the runs of other recipes and seeds that are in the file already."""
    done = {(run["recipe"], run["seed"]) for run in runs}
    before = json.loads(path.read_text())["runs"] if path.exists() else []
    kept = [run for run in before if (run["recipe"], run["seed"]) not in done]
    every = sorted([*kept, *runs], key=lambda run: ([*RECIPES].index(run["recipe"]), run["seed"]))
    found = {"date": datetime.date.today().isoformat(), "device": cpus(), "data": [PACK, *LESS], "runs": every}
    write(path, found)


# ------------------------------------------------------------------------------------------------ the table


def table(found: dict[str, Any]) -> str:
    """The results in Markdown, with one row for each recipe: means over the seeds, the least and the most."""
    columns = ["recipe", "named", "at validation", "precision, %", "recall, %", "Fréchet", "nearest", "energy"]
    columns += ["variety, to the nearest", "ms a step"]
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for recipe, failure in RECIPES.items():
        runs = [run for run in found["runs"] if run["recipe"] == recipe]
        if not runs:
            continue
        at = [number for run in runs if (number := named_at(run)) is not None]
        named = f"{failure or 'anything'}: {len(at)} of {len(runs)}"
        first = "–" if not at else f"{min(at)} to {max(at)}" if min(at) < max(at) else f"{at[0]}"
        speed = spread(runs, "ms_a_step", 1, 0)
        rows.append(
            f"| `{recipe}.yaml` | {named} | {first} | {cells([run['scores']['generated'] for run in runs])} | {speed} |"
        )
        real = cells([runs[0]["scores"]["trained"]])
        rows.append(f"| photos of people in its training | – | – | {real} | – |")
    people = found["runs"][0]["people"]
    seeds = sorted({run["seed"] for run in found["runs"]})
    versions = ", ".join(f"{name} {number}" for name, number in found["runs"][0]["versions"].items())
    rows += [
        "",
        f"{people} unseen people, by the referee. {found['date']}, seeds {', '.join(map(str, seeds))}, "
        f"{found['device']}, one thread, {versions}.",
    ]
    return "\n".join(rows)


def cells(of: Sequence[dict[str, float]]) -> str:
    columns = (("precision", 100, 0), ("recall", 100, 0), ("frechet", 1, 2), ("nearest", 1, 2), ("energy", 1, 3))
    numbers = [spread(of, *column) for column in columns]
    pair = f"{spread(of, 'variety', 1, 2)}, {spread(of, 'variety_nearest', 1, 2)}"
    return " | ".join([*numbers, pair])


if __name__ == "__main__":
    sys.exit(main())
