"""The golden losses: what the first steps of every recipe give, at a size that takes seconds.

    launch/recipes/NAME.yaml --shrunk--> a run of STEPS steps on a few drawn samples --> tests/golden/NAME.txt

``make golden`` (this file as a script) writes them anew and shows what changed: whoever changes the mathematics on
purpose commits the difference, and everybody else's must be empty.

All is in float64, initial weights included. Measured: PyTorch's kernels for another instruction set (a run under
ATEN_CPU_CAPABILITY=default and MKL_CBWR=COMPATIBLE) move a loss by 1e-15 of its value within these steps, and initial
weights that differ by 1e-12 move it by 2e-12. In float32 that other instruction set moves it by 1e-3, and a tolerance
for this would let real changes pass. The samples are drawn as integers, which are the same anywhere.
"""

import argparse
import difflib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from v2f.config import build, read_yaml
from v2f.data.codes import ARRAY
from v2f.data.encoding import encode
from v2f.data.manifest import ArrayKind
from v2f.data.shards import write_manifest, write_shard
from v2f.keyed import keyed_rng
from v2f.runs.config import RunConfig
from v2f.training.trainer import fit
from v2f.world import people, shapes, things

GOLDEN = Path(__file__).resolve().parent
RECIPES = GOLDEN.parents[1] / "launch" / "recipes"
STEPS, BATCH = 10, 4
PEOPLE, CLIPS = 6, 2
TOLERANCE = 1e-9  # of the value

# Whatever a recipe's system calls so becomes small; everything else (rates, coefficients, depths, kernels) stays.
SMALLER: dict[str, Callable[[Any], Any]] = {
    "seconds": lambda value: min(value, 0.5),
    "image_size": lambda value: min(value, 64),
    "channels": lambda value: value if isinstance(value, int) else [max(4, width // 16) for width in value],
    "blocks": lambda value: 1 if isinstance(value, int) else [1] * len(value),
    "out_channels": lambda value: min(value, 16),
    "width": lambda value: min(value, 8),
    "noise": lambda value: min(value, 16),
    "bn_group": lambda value: min(value, 2),
    "group": lambda value: min(value, 2),
    "components": lambda value: min(value, 6),
    "fit": lambda value: min(value, 2 * BATCH),
    "people": lambda value: min(value, PEOPLE),
    "length": lambda value: min(value, 24),
    "top": lambda value: min(value, 6),
    "vocabulary": lambda value: min(value, 32),
    "ff": lambda value: min(value, 16),
    "frozen": lambda value: {"codes": None} if value.get("codes", 0) is None else {},  # the stand-ins
}
_TIMES = {"system": ("ema",), "schedule": ("hold", "warmup", "every")}  # in samples: they shrink as the run does


def recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def shrunk(values: Mapping[str, Any], data: str, out: str) -> dict[str, Any]:
    """A recipe's values as a run of ``STEPS`` steps of ``BATCH`` samples on ``data``, written to ``out``."""
    from encoders.small import ENCODERS, MAPPINGS  # a module of the tests

    share = STEPS * BATCH / (values["train"]["steps"] * values["data"]["batch"])

    def small(key: str, value: Any) -> Any:
        net = value.get("net") if isinstance(value, Mapping) else None
        if key == "encoder" and net == "run":  # the run is not there
            return ENCODERS["wen"]
        if key == "head" and net == "run":
            return None
        if key == "encoder" and net in ENCODERS and net != "waveform":  # its keys are its own, and it needs no weights
            return {**ENCODERS[net], **{k: value[k] for k in ("output", "thaw") if k in value}}
        if key == "mapping" and net in MAPPINGS and net != "vec2style":
            return MAPPINGS[net]
        if net == "torchvision_resnet50":
            return {"net": net, "random": True}
        if isinstance(value, Mapping) and key != "frozen":
            in_samples = _TIMES.get(key, ())
            below = dict.fromkeys(value, "schedule") if key == "schedules" else {k: k for k in value}
            return {
                k: max(1, round(share * v)) if k in in_samples and v else small(below[k], v) for k, v in value.items()
            }
        return SMALLER[key](value) if key in SMALLER and value is not None else value

    train: dict[str, Any] = {"steps": STEPS, "precision": "fp64", "threads": 1, "log_every": 1}
    if values["train"].get("micro_batch"):
        train["micro_batch"] = BATCH // 2
    return {
        "name": values["name"],
        "out": out,
        "seed": values["seed"],
        "system": small("system", values["system"]),
        "data": {"path": data, "valid": None, "batch": BATCH, "workers": 0, "window": 8, "partitions": 4}
        | ({"streams": {name: {} for name in values["data"]["streams"]}} if "streams" in values["data"] else {}),
        "train": train,
        "tracking": {"uri": None},
    }


def labels_of(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label -> classes, of a recipe whose system reads labels of the samples."""
    system = values["system"]
    return {system["label"]: system["classes"]} if "classes" in system else system.get("labels", {})


def codes_of(values: Mapping[str, Any]) -> dict[str, int]:
    """Array of codes -> their number in a sample, of a recipe whose system reads codes; shrunk as the recipe is."""
    system = values["system"]
    levels = {"top": system.get("top"), system["level"]: system["length"]} if "level" in system else {}
    return {
        ARRAY.format(level=level): SMALLER["top" if level != system["level"] else "length"](count)
        for level, count in levels.items()
        if count
    }


def data_of(values: Mapping[str, Any], root: str) -> str:
    """The data set that a recipe is shrunk to: ``root``, or one beside it whose samples have the recipe's labels and
    codes."""
    labels, codes = labels_of(values), codes_of(values)
    return make_data(f"{root}-{values['name']}", labels, codes) if labels or codes else root


def make_data(root: str, labels: Mapping[str, list[str]] | None = None, codes: Mapping[str, int] | None = None) -> str:
    """A data set of drawn integers: colored squares and steps of sound; with labels, also these and all factors; with
    ``codes``, also arrays of so many codes."""
    samples = []
    for person in range(PEOPLE):
        for clip in range(CLIPS):
            rng = keyed_rng(0x60D, person, clip)
            wav_T = np.repeat(rng.integers(-8192, 8193, 1000), 8).astype(np.float32) / 32768
            photo_HWC = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((4, 4, 1), np.int64)).astype(np.uint8)
            key, identity = f"{person}-{clip}", f"id{person}"
            extra: dict[str, Any] = {each: names[len(samples) % len(names)] for each, names in (labels or {}).items()}
            if labels:
                groups = {"shape": shapes.NAMES, "face": people.FACE, "sound": things.SOUND}
                drawn = {group: rng.integers(-8, 9, len(names)).tolist() for group, names in groups.items()}
                extra["factors"] = {
                    group: dict(zip(names, [each / 8 for each in drawn[group]], strict=True))
                    for group, names in groups.items()
                }
            drawn_codes = {name: rng.integers(0, 32, count).astype(np.uint16) for name, count in (codes or {}).items()}
            about: dict[str, Any] = {"identity": identity, "split": "train", "source": "golden", "extra": extra}
            about |= {"arrays": drawn_codes} if codes else {}
            parts = encode(key, wav_T, 16_000, [photo_HWC], **about)
            samples.append((key, identity, parts))
    shard = write_shard(root, "train-00000.tar", "train", samples)
    arrays = {name: ArrayKind(dtype="uint16", shape=[count]) for name, count in (codes or {}).items()}
    return write_manifest(root, [shard], {"source": "golden"}, arrays=arrays).root


def losses(values: Mapping[str, Any]) -> list[dict[str, float]]:
    """Every loss of every phase, step by step."""
    torch.set_default_dtype(torch.float64)  # or the first weights would be drawn in float32
    try:
        folder = fit(build(RunConfig, values, values["name"]))
    finally:
        torch.set_default_dtype(torch.float32)
    rows: dict[int, dict[str, float]] = {}
    for line in Path(folder, "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        row = rows.setdefault(point["step"], {})
        row |= {k.removeprefix("loss/"): v for k, v in point["metrics"].items() if k.startswith("loss/")}
    return [rows[step] for step in sorted(rows)]


def text(name: str, rows: list[dict[str, float]]) -> str:
    """A golden file; a phase that has no turn in a step has a dash."""
    names = list(dict.fromkeys(column for row in rows for column in row))
    lines = [["step", *names]]
    lines += [[str(step), *(f"{row[c]:.12e}" if c in row else "-" for c in names)] for step, row in enumerate(rows, 1)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return f"# launch/recipes/{name}.yaml, shrunk by tests/golden/losses.py; `make golden` writes this anew\n{table}\n"


def parse(golden: str) -> list[dict[str, float]]:
    """The rows of a golden file."""
    head, *lines = [line.split() for line in golden.splitlines() if not line.startswith("#")]
    return [{n: float(v) for n, v in zip(head[1:], line[1:], strict=True) if v != "-"} for line in lines]


def differences(golden: list[dict[str, float]], found: list[dict[str, float]]) -> list[str]:
    """Where ``found`` is another function than ``golden``, a line each; a term that came or went is one, too."""
    lines = [f"{len(golden)} steps, now {len(found)}"] if len(golden) != len(found) else []
    for step, (was, now) in enumerate(zip(golden, found, strict=False), 1):
        lines += [f"step {step}: {name} came or went" for name in sorted(was.keys() ^ now.keys())]
        for name in was.keys() & now.keys():
            if not abs(now[name] - was[name]) <= TOLERANCE * max(abs(was[name]), 1e-6):
                lines.append(f"step {step}: {name} was {was[name]:.12g}, now {now[name]:.12g}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden losses anew and show what changed.")
    parser.add_argument("recipes", nargs="*", default=recipes(), help="names; all of launch/recipes if none is given")
    sys.path.insert(0, str(GOLDEN.parent))
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(f"{folder}/data")
        for name in parser.parse_args().recipes:
            path = GOLDEN / f"{name}.txt"
            before = path.read_text() if path.exists() else ""
            values = read_yaml(RECIPES / f"{name}.yaml")
            after = text(name, losses(shrunk(values, data_of(values, data), f"{folder}/{name}")))
            if before and not differences(parse(before), parse(after)):
                print(f"{path.name}: as before")
                continue
            path.write_text(after)
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), after.splitlines(True), "was", path.name)
            )


if __name__ == "__main__":
    main()
