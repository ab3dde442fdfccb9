"""How long `v2f --help` and `v2f generate` take: nearly all of the time goes into imports.

    python bench/startup.py                # under a minute

It times `v2f --help`, and `v2f generate` for a clip of 2 s with the untrained system of the quickstart, each in a new
process. Writes bench/results/startup.json; exit code 1 if the median help takes 0.5 s or more, or the median face 3 s
of CPU or more. On a busy machine the seconds mean nothing; the result includes the load.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from machine import cpus  # noqa: E402 - after the path
from served import speak  # noqa: E402
from untrained import export  # noqa: E402

HELP_S, FACE_CPU_S = 0.5, 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=9, help="runs of each, after one warm-up")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        run, voice = export(Path(folder)), Path(folder, "voice.wav")
        speak(voice, 2.0, 0)
        asked = _timed(["--help"], args.times)
        drawn = _timed(["generate", run, str(voice), "-o", f"{folder}/face.png"], args.times)
    found = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "load before it": round(load, 1),
        "versions": {name: version(name) for name in ("v2f", "torch", "numpy")} | {"python": platform.python_version()},
        "times": args.times,
        "v2f --help": asked,
        "v2f generate, a clip of 2 s": drawn,
    }
    out = REPOSITORY / "bench" / "results" / "startup.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    missed = [f"--help {HELP_S:g} s"] if asked["s"]["median"] >= HELP_S else []
    missed += [f"generate {FACE_CPU_S:g} s of CPU"] if drawn["CPU s"]["median"] >= FACE_CPU_S else []
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


def _timed(arguments: Sequence[str], times: int) -> dict[str, dict[str, float]]:
    """Median, smallest and largest wall-clock and CPU seconds of a command, over all its threads and processes."""
    walls, computed = [], []
    for _ in range(times + 1):
        begun, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "v2f.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        walls.append(time.perf_counter() - begun)
        computed.append(sum(after[2:4]) - sum(before[2:4]))
    spread = (("median", statistics.median), ("least", min), ("largest", max))
    return {
        name: {kind: round(of(values[1:]), 2) for kind, of in spread}
        for name, values in (("s", walls), ("CPU s", computed))
    }


if __name__ == "__main__":
    sys.exit(main())
