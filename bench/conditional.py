"""The kinds of conditional pictures beside each other, over seeds, on both worlds: a table.

    python bench/conditional.py                       # packs, trains and evaluates; hours on 2 cores
    python bench/conditional.py --worlds shapes --seeds 0
    python bench/conditional.py --table               # only prints the table anew, from the results that are there

A classifier is trained once for each world; it judges the runs of every kind and seed. A run that is evaluated already
is not repeated, one that was stopped is resumed. Writes bench/results/conditional.json.
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

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.machine import cpus  # noqa: E402 - after the path
from bench.runs import evaluated, v2f, write  # noqa: E402

RESULTS = REPOSITORY / "bench" / "results" / "conditional.json"
WORLDS = {
    "shapes": ("shapes", ("cvae", "cgan", "cvae-gan", "gan-from-cvae")),
    "faces": ("labelled-faces", ("cvae", "cgan", "cvae-gan")),
}
"""World -> its recipe of shards, and its kinds; a kind starts from runs of those before it."""
COLUMNS = {
    "agreement": "label read, %",
    "recall": "recall, % of real's",
    "precision": "precision, % of real's",
    "restyled": "restyled: label read, %",
    "kept_labels": "other labels kept, %",
    "kept_factors": "correlation of other factors",
    "restored_error": "squared error of a restored pixel",
    "code_nats": "nats of a code",
}
_PERCENT = ("agreement", "recall", "precision", "restyled", "kept_labels")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=[*WORLDS])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are written")
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return 0
    runs = [each for world in args.worlds for each in of_world(world, args.seeds, args.together)]
    found = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "versions": evaluated(runs[0]["run"])["versions"],
        "runs": runs,
    }
    write(args.out, found)
    print(table(found))
    return 0


# ------------------------------------------------------------------------------------------------ runs


def of_world(world: str, seeds: list[int], together: int) -> list[dict[str, Any]]:
    """Train and evaluate the classifier of a world, then every kind and seed; their scores."""
    shards, kinds = WORLDS[world]
    if not (REPOSITORY / "data" / shards / "manifest.json").exists():
        v2f("shards", "pack", f"shards/{shards}.yaml")
    classifier = done(f"{world}-classifier", {"train.threads": str(together)})
    results = []
    with ThreadPoolExecutor(together) as pool:
        for kind in kinds:  # one after the other: a later kind may start from an earlier one
            asked = [(world, kind, seed, classifier) for seed in seeds]
            results += list(pool.map(lambda each: trained(*each), asked))
    return results


def trained(world: str, kind: str, seed: int, classifier: str) -> dict[str, Any]:
    """Train and evaluate one run; its scores."""
    changes = {"name": f"{world}-{kind}-seed-{seed}", "seed": str(seed), "train.threads": "1"}
    if kind == "gan-from-cvae":
        changes["init_from"] = f"[{{run: runs/{world}-cvae-seed-{seed}, module: decoder}}]"
    run = done(f"{world}-{kind}", changes, "--classifier", classifier)
    return {"world": world, "kind": kind, "seed": seed, "run": run, "scores": scores(evaluated(run))}


def done(recipe: str, changes: dict[str, str], *options: str) -> str:
    """Train a recipe to its last step, and evaluate it with these options; its folder."""
    run = REPOSITORY / "runs" / changes.get("name", recipe)
    if not (run / "eval.json").exists():
        values = [f"{key}={value}" for key, value in {**changes, "tracking.uri": "null"}.items()]
        v2f("train", "--config", f"launch/recipes/{recipe}.yaml", "--resume", "auto", *values)
        v2f("eval", str(run), *options)
    return str(run)


# ------------------------------------------------------------------------------------------------ numbers


def scores(result: dict[str, Any]) -> dict[str, float | None]:
    """The scores of one evaluation; precision and recall relative to those of training samples."""
    by = result["splits"]["test"]["by"]
    lines = by["classifier"]["lines"]
    own, real = lines["labelled"], lines["trained"]["picture"]
    found = {name: _value(own.get(name)) for name in ("agreement", "restyled", "kept_labels", "kept_factors")}
    for name in ("recall", "precision"):
        found[name] = own["picture"][name] / real[name]
    codes = by.get("codes", {"lines": {"labelled": {}}})["lines"]["labelled"]
    return found | {name: _value(codes.get(name)) for name in ("restored_error", "code_nats")}


def _value(number: dict[str, float] | None) -> float | None:
    return None if number is None else number["value"]


def table(found: dict[str, Any]) -> str:
    """The results as Markdown: the mean over seeds with minimum and maximum."""
    lines = [
        f"{found['date']}, {found['device']}, torch {found['versions']['torch']}; mean over seeds (least to most)",
        "",
        f"| world | kind | seeds | {' | '.join(COLUMNS.values())} |",
        f"|{' --- |' * (3 + len(COLUMNS))}",
    ]
    for world, kind in dict.fromkeys((run["world"], run["kind"]) for run in found["runs"]):
        own = [run["scores"] for run in found["runs"] if (run["world"], run["kind"]) == (world, kind)]
        cells = [_cell(name, [score[name] for score in own]) for name in COLUMNS]
        lines.append(f"| {world} | {kind} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    scale, digits = (100, 1) if name in _PERCENT else (1, 4 if name == "restored_error" else 2)
    mean, least, most = (f"{scale * each:.{digits}f}" for each in (statistics.mean(known), min(known), max(known)))
    return mean if len(known) == 1 else f"{mean} ({least} to {most})"


if __name__ == "__main__":
    sys.exit(main())
