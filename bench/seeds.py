"""Train and evaluate one recipe from several seeds: mean and spread of the scores, beside U1 of the same people.

    python bench/seeds.py launch/recipes/quickstart.yaml --seeds 0 1 2

The data set must be packed. Writes bench/results/NAME.json with date, device, versions and seconds; a seed whose run
is finished already is only evaluated. Exit code 1 if a floor given by --floor (R@10 over U1's) is missed.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import cpus

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHER = REPOSITORY / "launch" / "accelerate" / "one-process.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", help="a recipe of launch/recipes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--floor", type=float, help="smallest allowed mean of R@10 over U1's by the referee, unseen people"
    )
    args = parser.parse_args()
    name = Path(args.recipe).stem
    results = [one(args.recipe, name, seed) for seed in args.seeds]
    summary = {key: spread([r[key] for r in results]) for key in results[0] if key not in ("seed", "seconds")}
    found = {
        "recipe": args.recipe,
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "versions": json.loads(Path(f"runs/{name}-{args.seeds[0]}/eval.json").read_text())["versions"],
        "seeds": results,
        "summary": summary,
    }
    out = REPOSITORY / "bench" / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    for key, value in summary.items():
        print(f"{key:40s} {value['mean']:.3f}  ({value['least']:.3f} to {value['most']:.3f})")
    ratio = summary["test/referee/R@10 over U1"]["mean"]
    if args.floor is not None and ratio < args.floor:
        print(f"R@10 over U1's is {ratio:.3f} by the referee, below {args.floor}", file=sys.stderr)
        return 1
    return 0


def one(recipe: str, name: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one seed; its scores."""
    run = f"{name}-{seed}"
    start = time.monotonic()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCHER)]
    subprocess.run(
        [*launch, "v2f/train.py", "--config", recipe, "--resume", "auto", f"name={run}", f"seed={seed}"], check=True
    )
    trained = time.monotonic()
    subprocess.run([sys.executable, "-m", "v2f.cli", "eval", f"runs/{run}"], check=True)
    scores: dict[str, Any] = {"seed": seed, "seconds": [round(trained - start), round(time.monotonic() - trained)]}
    for split, found in json.loads(Path(f"runs/{run}/eval.json").read_text())["splits"].items():
        for by, told in found["by"].items():
            of, lines = f"{split}/{by}", told["lines"]
            voice, u1 = lines["voice"], lines["U1"]
            for k in ("R@1", "R@5", "R@10"):
                scores[f"{of}/{k}"] = voice[k]["value"]
                for bound in ("U1", "U2"):
                    scores[f"{of}/{bound} {k}"] = lines[bound][k]["value"]
            for bound in ("U1", "U2"):
                scores[f"{of}/R@10 over {bound}"] = voice["R@10"]["value"] / lines[bound]["R@10"]["value"]
            scores[f"{of}/identity distance"] = voice["identity_distance_ratio"]
            scores[f"{of}/distance over U1"] = voice["identity_distance_ratio"] / u1["identity_distance_ratio"]
            scores[f"{of}/energy"] = voice["picture"]["energy"]
            scores[f"{of}/U1 energy"] = u1["picture"]["energy"]
            scores[f"{of}/nearest"] = voice["picture"]["nearest"]
            scores[f"{of}/strongest factor R@10"] = lines["strongest"]["R@10"]["value"]
    return scores


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    sys.exit(main())
