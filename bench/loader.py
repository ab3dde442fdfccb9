"""The loader against decoding alone, webdataset, mosaicml-streaming and litdata, on the same samples.

    python bench/loader.py                   # local files; packs 3,000 samples and makes two environments first
    python bench/loader.py --swift           # the same through an object store on loopback (OpenStack Swift)
    python bench/loader.py --first --memory  # time to the first batch after a resume, and memory over 100,000 samples

Samples are 6 s of FLAC at 16 kHz and a 256 px JPEG of synthetic people; two worker processes decode; v2f checks each
sample's CRC-32, the others nothing. A round measures each reader once, one after the other, each in a process of its
own and the next round in another order (a reading of another library that fails is counted and made again); what counts
is the median over the rounds of a reader's rate over that of decoding alone in the same round. The store runs on the
same two cores and takes its part of them. The libraries that pin older packages than ours get environments of their
own, which take torch from this one. Writes bench/results/loader.json; exit code 1 if a target is missed.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import shutil
import site
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import cpus
from PIL import Image, ImageDraw, ImageFont

from v2f.prepare.pack import load_recipe, pack
from v2f.storage import store

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "loader.json"
PLOT = REPOSITORY / "docs" / "loader-memory.png"
PINNED = {"streaming": "mosaicml-streaming==0.13.0", "litdata": "litdata==0.2.76"}
READERS = ("alone", "v2f", "webdataset", *PINNED)
OURS = ("alone", "v2f")
SAMPLES, BATCH, SKIP, BATCHES = 3000, 32, 10, 77  # of the 93 batches of an epoch the last six are not timed
EPOCH_SHARES = {"fresh": 0.0, "10 %": 0.1, "90 %": 0.9}
FAR = 10_000  # epochs
# One thread a process. And glibc keeps what is freed: else it is chance whether an array of 400 KB is taken from the
# system anew for each sample, which costs a process that does nothing but decode a quarter of its time.
ALIKE = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 27)}
LEAST_OF_ALONE, MOST_OF_FRESH, MOST_GROWTH = 0.85, 1.5, 0.05
MOST_FAILED = 4  # of another library's readings: streaming 0.13.0 now and then reads a shard that is still coming
OWN = ("rank", "worker 1", "worker 2")  # whose own memory must not grow; of shared trays there are so many and no more

Spec = dict[str, Any]


class FailedError(Exception):
    """A task of bench/readers.py that ended with an error."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default="data/bench-loader", help="folder for samples and environments")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    parser.add_argument("--swift", action="store_true", help="through an object store instead of local files")
    parser.add_argument("--first", action="store_true", help="time to the first batch instead")
    parser.add_argument("--memory", action="store_true", help="memory over 100,000 samples instead")
    args = parser.parse_args()
    work = Path(args.work).resolve()
    pythons = {name: environment(work, name) if name in PINNED else sys.executable for name in args.readers}
    spec = prepared(work, pythons)
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if args.swift:
            spec |= stack.enter_context(uploaded(work, spec, pythons))
        if args.first:
            results["first through swift" if args.swift else "first"] = first_batch(spec)
        if args.memory:
            results["memory"] = memory(spec)
        if not results:
            where = "swift" if args.swift else "local"
            where += "" if set(READERS) <= set(args.readers) else ", some readers"
            results[where] = rates(spec, pythons, args.rounds)
    write(results)
    missed = [line for name, result in results.items() for line in show(name, result)]
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


# ------------------------------------------------------------------------------------------------ preparation


def environment(work: Path, name: str) -> str:
    """The interpreter of an environment that has one pinned library, and from this one what that does not bring."""
    folder = work / "environments" / PINNED[name]
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        print(f"installing {PINNED[name]}", flush=True)
        venv.create(folder, clear=True, symlinks=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "zz-ours.pth").write_text("\n".join(site.getsitepackages()) + "\n")  # after its own packages
        pip = [python, "-m", "pip", "install", PINNED[name]]
        done = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{PINNED[name]} cannot be installed\n{done.stdout[-3000:]}")
        (folder / "done").touch()
    return str(python)


def prepared(work: Path, pythons: dict[str, str]) -> Spec:
    """The samples in each reader's format."""
    root = work / "shards"
    options = {
        "train.people": SAMPLES,
        "train.clips": 1,
        "valid.people": 0,
        "test.people": 0,
        "seen.people": 0,
        "seconds": 6,
        "size": 256,
        "photo": "jpg",
    }
    overrides = [f"out={root}", *(f"synthetic.{name}={value}" for name, value in options.items())]
    pack(load_recipe(str(REPOSITORY / "shards" / "quickstart.yaml"), overrides))
    shards = [str(path) for path in sorted(root.glob("*.tar"))]
    spec: Spec = {"root": str(root), "shards": shards, "urls": shards, "batch": BATCH, "skip": SKIP, "batches": BATCHES}
    spec |= {"seconds": 6.0, "size": 256, "workers": len(OWN) - 1, "cache": str(work / "cache")}
    for name, python in pythons.items():
        if name in PINNED:
            folder = work / name
            spec[name] = str(folder)
            if not (folder / "index.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                run(python, f"write_{name}", spec)
    return spec


@contextlib.contextmanager
def uploaded(work: Path, spec: Spec, pythons: dict[str, str]) -> Iterator[Spec]:
    """A Swift that holds what is read, and where."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from botocore.config import Config
    from botocore.session import Session
    from swift import serving

    with tempfile.TemporaryDirectory(dir=work) as folder, serving(Path(folder)) as swift:
        os.environ.update(swift.environment())
        os.environ["S3_ENDPOINT_URL"] = swift.endpoint  # mosaicml-streaming's name for it
        remote = {name: f"s3://{swift.bucket}/{name}" for name in ("root", *PINNED) if name in spec}
        for name, prefix in remote.items():
            for path in sorted(Path(spec[name]).iterdir()):
                store.write_bytes(store.join(prefix, path.name), path.read_bytes())
        client = Session().create_client(
            "s3", endpoint_url=swift.endpoint, config=Config(signature_version="s3v4", s3={"addressing_style": "path"})
        )
        keys = [{"Bucket": swift.bucket, "Key": f"root/{Path(shard).name}"} for shard in spec["shards"]]
        urls = [client.generate_presigned_url("get_object", Params=key, ExpiresIn=86400) for key in keys]
        yield {
            "root": remote["root"],
            "urls": [f"pipe:curl --fail --silent --show-error '{url}'" for url in urls],  # webdataset knows no s3://
            **{f"{name}_remote": prefix for name, prefix in remote.items() if name in PINNED},
        }


def run(python: str, name: str, spec: Spec, environment: dict[str, str] = ALIKE) -> Spec:
    """One task of bench/readers.py, in a process of its own."""
    done = subprocess.run(
        [python, str(REPOSITORY / "bench" / "readers.py"), name, json.dumps(spec)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode:
        raise FailedError(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    found: Spec = json.loads(done.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------------------ measurements


def rates(spec: Spec, pythons: dict[str, str], rounds: int) -> dict[str, Any]:
    names = list(pythons)
    found: dict[str, list[Spec]] = {name: [] for name in names}
    failed = dict.fromkeys(names, 0)
    for at in range(rounds):
        for name in names[at % len(names) :] + names[: at % len(names)]:
            while len(found[name]) <= at:
                try:
                    found[name].append(run(pythons[name], name, spec))
                except FailedError as error:
                    failed[name] += 1
                    print(f"{name} failed, and is measured again: {str(error).splitlines()[-1]}", flush=True)
                    if name in OURS or failed[name] == MOST_FAILED:
                        raise
        print(f"round {at + 1}: " + ", ".join(f"{name} {found[name][-1]['rate']:.0f}/s" for name in names), flush=True)
    result: dict[str, Any] = {}
    for name, measured in found.items():
        result[name] = {
            "samples a second": spread([one["rate"] for one in measured]),
            "CPU microseconds a sample": spread([one["cpu_us"] for one in measured]),
        }
        if failed[name]:
            result[name]["failed"] = failed[name]  # readings that ended with an error and were made anew
        if "version" in measured[0]:
            result[name]["version"] = measured[0]["version"]
        for other in OURS:
            if other in found and other != name:
                pairs = zip(measured, found[other], strict=True)
                result[name][f"rate over {other}"] = spread([one["rate"] / two["rate"] for one, two in pairs])
    return {"rounds": rounds, "readers": result}


def first_batch(spec: Spec) -> dict[str, Any]:
    starts = {name: round(share * SAMPLES) // BATCH * BATCH for name, share in EPOCH_SHARES.items()}
    starts[f"after {FAR} epochs"] = FAR * SAMPLES // BATCH * BATCH
    found = run(sys.executable, "first", {**spec, "starts": list(starts.values()), "turns": 11})["seconds"]
    fresh = found[str(starts["fresh"])]
    rows = {}
    for name, start in starts.items():
        seconds = found[str(start)]
        over = spread([one / two for one, two in zip(seconds, fresh, strict=True)])
        rows[name] = {"slot": start, "seconds": spread(seconds), "over fresh": over}
    return {"starts": rows}


def memory(spec: Spec) -> dict[str, Any]:
    points = run(sys.executable, "memory", {**spec, "samples": 100_000}, environment={})["points"]
    plot(points, PLOT)
    names = [*OWN, "shared trays"]
    quarter = len(points) // 4
    result: dict[str, Any] = {}
    for column, name in enumerate(names, start=1):
        third = statistics.mean(point[column] for point in points[2 * quarter : 3 * quarter])
        last = statistics.mean(point[column] for point in points[3 * quarter :])
        result[name] = {"MB in the third quarter": round(third, 1), "MB in the last quarter": round(last, 1)}
    return {"samples": 100_000, "processes": result}


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {"median": round(middle, 4), "least": round(low, 4), "most": round(high, 4)}


# ------------------------------------------------------------------------------------------------ results


def write(results: dict[str, Any]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "python": platform.python_version(),
    }
    known |= {name: {**about, **result} for name, result in results.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def show(name: str, result: dict[str, Any]) -> list[str]:
    """Print a result; the targets that it misses."""
    missed = []
    if name.startswith("first"):
        for start, row in result["starts"].items():
            ratio = row["over fresh"]["median"]
            print(f"{name} batch, {start:20s} {row['seconds']['median']:.3f} s, {ratio:.2f} of a fresh start")
            if ratio > MOST_OF_FRESH:
                missed.append(f"the {name} batch at {start} takes {ratio:.2f} of a fresh start, over {MOST_OF_FRESH}")
    elif name == "memory":
        for process, row in result["processes"].items():
            third, last = row["MB in the third quarter"], row["MB in the last quarter"]
            print(f"memory of {process:12s} {third:.0f} MB in the third quarter, {last:.0f} MB in the last")
            if process in OWN and last - third > MOST_GROWTH * third:
                missed.append(f"the memory of {process} grew from {third:.0f} to {last:.0f} MB in the last quarter")
    else:
        readers = result["readers"]
        for reader, row in readers.items():
            seconds, cpu_us = row["samples a second"], row["CPU microseconds a sample"]["median"]
            line = f"{name} {reader:11s} {seconds['median']:5.0f} samples/s ({seconds['least']:.0f} to "
            line += f"{seconds['most']:.0f}), {cpu_us:4.0f} us of CPU a sample"
            for other in OURS:
                if f"rate over {other}" in row:
                    ratio = row[f"rate over {other}"]
                    line += f", {ratio['median']:.2f} of {other} ({ratio['least']:.2f} to {ratio['most']:.2f})"
            print(line)
        ratio = readers.get("v2f", {}).get("rate over alone", {}).get("median", 1.0)
        if ratio < LEAST_OF_ALONE:
            missed.append(f"{name}: the loader reaches {ratio:.3f} of decoding alone, below {LEAST_OF_ALONE}")
        for reader, row in readers.items():
            ahead = row.get("rate over v2f", {}).get("median", 0.0)
            if reader not in OURS and ahead > 1.0:
                missed.append(f"{name}: {reader} is faster, {ahead:.3f} of this loader's rate")
    return missed


def plot(points: Sequence[Sequence[float]], path: Path) -> None:
    """Memory over samples: a line for what each process has of its own, one for what they share."""
    width, height, left, top, bottom, right = 900, 360, 80, 20, 50, 20
    most = 1.15 * max(max(point[1:]) for point in points)
    step = next(s for s in (50, 100, 200, 500, 1000, 2000, 5000) if most / s <= 8)
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def at(samples: float, mb: float) -> tuple[float, float]:
        inner_width, inner_height = width - left - right, height - top - bottom
        return left + inner_width * samples / points[-1][0], top + inner_height * (1 - mb / most)

    for mb in range(0, int(most), step):
        draw.line([at(0, mb), at(points[-1][0], mb)], "#dddddd")
        draw.text((left - 8, at(0, mb)[1]), f"{mb} MB", "black", font, anchor="rm")
    for samples in range(0, int(points[-1][0]) + 1, 20_000):
        draw.text((at(samples, 0)[0], height - bottom + 8), f"{samples:,}", "black", font, anchor="ma")
    draw.text((width / 2, height - 6), "samples read", "black", font, anchor="mb")
    colors = ("#1f4e9c", "#c0392b", "#2e8b57", "#8e44ad")
    for column, color in zip(range(1, len(points[0])), colors, strict=False):
        dashes = column == 3  # one of two lines that lie on each other shows through the other
        for i, (one, two) in enumerate(itertools.pairwise(points)):
            if not dashes or i // 3 % 2:
                draw.line([at(one[0], one[column]), at(two[0], two[column])], color, 2)
        name = (*OWN, "shared trays")[column - 1]
        draw.text((left + 20 + 90 * (column - 1), top + 4), name, color, font)
    path.parent.mkdir(exist_ok=True)
    image.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
