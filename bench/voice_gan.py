"""Does the voice-to-face GAN draw faces of the speakers? In the synthetic world, people who were not in training.

    python bench/voice_gan.py                         # packs, trains and evaluates, from each seed
    python bench/voice_gan.py --table                 # only prints the table anew, from the results that are there

For each seed, voice-embedding.yaml trains the encoder, and voice-gan.yaml the GAN with it. A run that is evaluated
already is not repeated, one that was stopped is resumed. Writes bench/results/voice_gan.json. Exit code 1 if the mean
over the seeds misses one of :data:`ENDS`.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.machine import cpus  # noqa: E402 - after the path
from bench.pretraining import one, scores_of_speakers  # noqa: E402
from bench.runs import evaluated, v2f, write  # noqa: E402
from v2f.runs.config import load_config  # noqa: E402

SPEAKERS, FACES = "launch/recipes/voice-embedding.yaml", "launch/recipes/voice-gan.yaml"
DATA = "data/speaker-synthetic"
RESULTS = REPOSITORY / "bench" / "results" / "voice_gan.json"
Scores = dict[str, float]
ENDS: dict[str, Callable[[Scores], bool]] = {
    "R@10 is at least 3 times chance": lambda s: s["R@10"] >= 3 * s["chance R@10"],
    "R@10 is above that of the strongest factor alone": lambda s: s["R@10"] > s["strongest R@10"],
    "R@1 with that factor held equal is at least 2 times chance": lambda s: s["held R@1"] >= 2 * s["held chance"],
    "the precision of the faces is at least 0.5": lambda s: s["precision"] >= 0.5,
    "clips of one speaker give more similar faces than clips of different ones": lambda s: s["consistency low"] > 0,
}
"""What is asked of the mean over the seeds, by the referee, of unseen people."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default=DATA, help="a packed data set; packed here if there is none")
    parser.add_argument("--steps", type=int, help="of the GAN; the recipe's unless given")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are written")
    parser.add_argument("--together", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return 0
    if not Path(args.data, "manifest.json").exists():
        v2f("shards", "pack", "shards/speaker-synthetic.yaml", f"out={args.data}")
    with ThreadPoolExecutor(args.together) as pool:
        runs = list(pool.map(lambda seed: trained(seed, args.data, args.steps), args.seeds))
    found = {
        "recipes": [SPEAKERS, FACES],
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "versions": evaluated(runs[0]["run"])["versions"],
        "runs": runs,
    }
    write(args.out, found)
    print(table(found))
    return 0 if all(met(found).values()) else 1


def trained(seed: int, data: str, steps: int | None) -> dict[str, Any]:
    """Train and evaluate the encoder and the GAN of a seed, as far as this was not done before; their scores."""
    first, then = (load_config(str(REPOSITORY / recipe)) for recipe in (SPEAKERS, FACES))
    speakers = one(SPEAKERS, f"voice-embedding-{seed}", seed, first.train.steps, data, {})
    encoder = {"system.encoder": f"{{net: run, path: runs/voice-embedding-{seed}, module: encoder}}"}
    run = one(FACES, f"voice-gan-{seed}", seed, steps or then.train.steps, data, encoder)
    return {"seed": seed, "run": run, "speakers": scores_of_speakers(speakers), "scores": scores_of(run)}


def scores_of(run: str) -> dict[str, Scores]:
    """Split/observer -> the numbers of the run, and what to compare them with."""
    scores: dict[str, Scores] = {}
    for split, found in evaluated(run)["splits"].items():
        for by, told in found["by"].items():
            voice, lines, held = told["lines"]["voice"], told["lines"], told["held_equal"]
            own = {key: voice[key]["value"] for key in ("R@1", "R@10")}
            own |= {f"chance {key}": found["chance"][key] for key in own}
            for line in ("strongest", "U1", "U2"):
                own[f"{line} R@10"] = lines[line]["R@10"]["value"]
            own["held R@1"], own["held chance"] = held["lines"]["voice"]["R@1"]["value"], held["chance"]["R@1"]
            own |= {key: voice["picture"][key] for key in ("precision", "recall", "energy")}
            own["identity distance"] = voice["identity_distance_ratio"]
            margin = told["consistency"]["margin"]
            own |= {"consistency": margin["value"], "consistency low": margin["low"]}
            scores[f"{split}/{by}"] = own
    return scores


def mean_of(found: dict[str, Any], where: str) -> Scores:
    """The mean of each number over the seeds; ``where``: SPLIT/OBSERVER."""
    runs = [run["scores"][where] for run in found["runs"]]
    return {key: statistics.mean(run[key] for run in runs) for key in runs[0]}


def met(found: dict[str, Any]) -> dict[str, bool]:
    """Each of :data:`ENDS`, and whether it is met."""
    mean = mean_of(found, "test/referee")
    return {end: bool(test(mean)) for end, test in ENDS.items()}


def table(found: dict[str, Any]) -> str:
    """The results in Markdown: means over the seeds, the least and the most."""
    shown = {"R@1": 100, "R@10": 100, "strongest R@10": 100, "U1 R@10": 100, "held R@1": 100, "precision": 100}
    shown |= {"recall": 100, "identity distance": 1, "consistency": 1}
    rows = ["| |" + "|".join(f" {key} " for key in shown) + "|", "| --- |" + " --- |" * len(shown)]
    for where in found["runs"][0]["scores"]:
        cells = []
        for key, scale in shown.items():
            values = [scale * run["scores"][where][key] for run in found["runs"]]
            digits = 1 if scale == 100 else 2
            span = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{span}")
        rows.append(f"| {where} | {' | '.join(cells)} |")
    mean = mean_of(found, "test/referee")
    speakers = [run["speakers"] for run in found["runs"]]
    eer = ", ".join(f"{100 * own['EER']:.1f} %" for own in speakers if own["EER"] is not None)
    rows += [
        "",
        f"Chance: R@10 {100 * mean['chance R@10']:.1f} %, R@1 with the strongest factor held equal "
        f"{100 * mean['held chance']:.1f} %. The encoders' equal error rate: {eer}.",
        "",
        *(f"- {'met' if is_met else 'MISSED'}: {end}" for end, is_met in met(found).items()),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    seeds = ", ".join(str(run["seed"]) for run in found["runs"])
    rows += ["", f"{found['date']}, seeds {seeds}, {found['device']}, {versions}."]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
