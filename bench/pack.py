"""How fast `v2f shards pack` is beside decoding and encoding alone, on the same samples and cores, in one run.

    python bench/pack.py                     # about two minutes on two cores
    python bench/pack.py --photo png --samples 2000

Samples are pairs of a WAV (6 s, 16 kHz) and a JPEG (256 px) of the synthetic world, packed as FLAC and JPEG: of what
packing can encode that is the fastest, so that everything else weighs most.

*Alone*: one process a core decodes what lies in its memory and encodes it as packing does. Nothing is read, sent,
written or checked, and the start of the processes is not counted. *Pack*: the whole command, from the start of the
program to the committed manifest. Both are done in turn, `--rounds` times. Writes bench/results/pack.json; exit code 1
if the median of pack's speed over that alone is below --floor.
"""

import argparse
import csv
import datetime
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import cpus

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS, SIDE, DIFFERENT = 6.0, 256, 64  # so many different people are drawn; the others repeat them
sys.path.insert(0, str(REPOSITORY))
os.environ["OMP_NUM_THREADS"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default: one for each core")
    parser.add_argument("--photo", choices=("png", "jpg", "webp"), default="jpg", help="what photos are encoded as")
    parser.add_argument("--floor", type=float, default=0.8)
    parser.add_argument("--output", default=str(REPOSITORY / "bench" / "results" / "pack.json"))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="v2f-bench-pack-"))
    rounds = []
    try:
        write_corpus(folder, args.samples)
        group = {"csv": str(folder / "pairs.csv"), "align": "none", "size": SIDE, "photo": args.photo}
        for number in range(args.rounds):
            alone, alone_cpu = measure_alone(group, args.workers)
            whole, whole_cpu = measure_pack(group, args.workers, folder / "out", args.samples)
            rounds.append(
                {
                    "alone, samples/s": args.samples / alone,
                    "pack, samples/s": args.samples / whole,
                    "pack over alone": alone / whole,
                    "processor time, alone over pack": alone_cpu / whole_cpu,
                }
            )
            said = ", ".join(f"{name} {value:.3g}" for name, value in rounds[-1].items())
            print(f"round {number + 1}: {said}", flush=True)
    finally:
        shutil.rmtree(folder)
    summary = {name: spread([each[name] for each in rounds]) for name in rounds[0]}
    result = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "samples": args.samples,
        "photo": args.photo,
        "processes": args.workers,
        "summary": summary,
    }
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    ratio = summary["pack over alone"]["median"]
    print(f"packing has {ratio:.2f} of the speed of decoding and encoding alone; expected at least {args.floor}")
    return 0 if ratio >= args.floor else 1


def spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def write_corpus(folder: Path, samples: int) -> None:
    import numpy as np
    import soundfile
    from PIL import Image

    from v2f.world.people import World, WorldConfig
    from v2f.world.portraits import render_portraits
    from v2f.world.voices import render_voices

    world, ids = World(WorldConfig()), np.arange(DIFFERENT)
    wav_NT = render_voices(world.voice(ids), world.clip(ids, ids), ids, SECONDS, 16000)
    photo_NHWC = render_portraits(world.face(ids), world.photo(ids, ids), SIDE)
    for n, (wav_T, photo_HWC) in enumerate(zip(wav_NT, photo_NHWC, strict=True)):
        soundfile.write(folder / f"{n}.wav", wav_T, 16000, subtype="PCM_16")
        Image.fromarray(photo_HWC).save(folder / f"{n}.jpg", quality=95)
    with open(folder / "pairs.csv", "w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["audio", "image", "identity", "split"])
        for n in range(samples):
            names = f"{n}.wav", f"{n}.jpg"
            for name in names if n >= DIFFERENT else ():
                os.link(folder / f"{n % DIFFERENT}{Path(name).suffix}", folder / name)
            rows.writerow([*names, f"p{n % DIFFERENT}", "train"])


# ------------------------------------------------------------------------------------------------- pack


def measure_pack(group: dict[str, Any], workers: int, out: Path, samples: int) -> tuple[float, float]:
    """Seconds of the whole command, and of the processors in all its processes."""
    from v2f.data.manifest import open_dataset

    recipe = out.with_suffix(".yaml")
    values = {"out": str(out), "source": "pairs", "pairs": group, "workers": workers, "shard_mb": 32}
    recipe.write_text(json.dumps(values))
    before, start = processor_time(), time.monotonic()
    command = [sys.executable, "-m", "v2f.cli", "shards", "pack", str(recipe)]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    assert len(open_dataset(str(out)).index.key) == samples
    shutil.rmtree(out)
    return seconds, processor_time() - before


def processor_time() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ------------------------------------------------------------------------------------------------ alone


def measure_alone(group: dict[str, Any], workers: int) -> tuple[float, float]:
    """Decoding and encoding by ``workers`` processes that begin together: seconds of the slowest, and of the
    processors."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(workers), context.SimpleQueue()
    processes = [
        context.Process(target=alone, args=(group, number, workers, together, answers)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds for seconds, _ in found), sum(used for _, used in found)


def alone(group: dict[str, Any], number: int, workers: int, together: Any, answers: Any) -> None:
    from v2f.prepare import Item, Made, steps
    from v2f.prepare.pairs import Pairs, PairsConfig

    pairs = Pairs(PairsConfig(**group))
    items = pairs.plan().items[number::workers]
    folder = Path(group["csv"]).parent
    content = {name: (folder / name).read_bytes() for item in items for name in (item.what.audio, item.what.image)}
    steps.read_file = lambda path, what: content[Path(path).name]

    def make(some: Sequence[Item]) -> None:
        for at in range(0, len(some), 32):
            assert all(isinstance(made, Made) for made in pairs.make(some[at : at + 32]))

    make(items[:8])  # imports, tables, memory
    together.wait()
    start, used = time.monotonic(), time.process_time()
    make(items)
    answers.put((time.monotonic() - start, time.process_time() - used))


if __name__ == "__main__":
    sys.exit(main())
