"""What it costs to feed a face identity net the other channel order: blue, green, red instead of red, green, blue.

    python bench/channels.py --data data/quickstart
    python bench/channels.py --data DATASET --identity 'net: ir_se50, file: weights/model_ir_se50.pth'

    photos of people with two or more -> embeddings of both orders -> pairs -> cosine, AUC, EER, each with an interval

A net is trained on one order. All photos are fed in that order ("trained"), all in the other ("other"), and one photo
of each pair in each ("mixed"). Writes --out with date, device and versions. The data set must be packed.

Shape letters: N photos, D embedding width, P people, G genuine pairs, I impostor pairs.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpus
from numpy.typing import NDArray
from torch import Tensor, nn

from v2f import standins, weights
from v2f.config import build, parse_yaml
from v2f.data.loader import read_split, read_usable
from v2f.data.manifest import Split, open_dataset
from v2f.data.sample import Sample
from v2f.data.transforms import Photo
from v2f.errors import V2FError, guarded
from v2f.evaluation.clips import OtherPhoto
from v2f.evaluation.observers import in_batches
from v2f.keyed import keyed_rng
from v2f.system import to_picture

Floats = NDArray[np.float64]
DRAWS = 1000  # of the bootstrap over people
LARGEST = 256  # side of the photos in pixels; smaller ones keep theirs
ORDERS = {"trained": (0, 0), "other": (1, 1), "mixed": (0, 1)}
ROWS = ("AUC", "EER", "genuine cosine", "impostor cosine")


@dataclass(frozen=True)
class Side:
    """The shorter side of the sample's first photo in pixels, as [1]."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> NDArray[np.int64]:
        return np.array([min(sample.photo(0).shape[:2])])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="a packed data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--identity", default="net: stand_in", help="as system.frozen.identity of a recipe")
    parser.add_argument("--samples", type=int, default=1000, help="the first so many samples of the split")
    parser.add_argument("--out", default="bench/results/channels.json")
    args = parser.parse_args()
    return guarded(lambda: measure(args.data, args.split, args.identity, args.samples, args.out), debug=False)


def measure(data: str, split_name: str, spec: str, samples: int, out: str) -> None:
    """Embed, compare, print the table and write ``out``."""
    start = time.monotonic()
    dataset = open_dataset(data)
    net, about = identity_net(spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    photo_N3HW, person_N, left_out = photos(dataset.split(split_name), samples)
    both_N2D = embed(net.to(device), photo_N3HW, device)
    cosine_N = (both_N2D[:, 0] * both_N2D[:, 1]).sum(1)
    found = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpus(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy")}},
        "identity": about,
        "data": {"path": data, "fingerprint": dataset.fingerprint, "split": split_name},
        "people": len(np.unique(person_N)),
        "photos": len(person_N),
        "side": photo_N3HW.shape[-1],
        "samples_left_out": left_out,
        "one photo, both orders: cosine": over_people(cosine_N, person_N),
        "orders": {
            name: verification(both_N2D[:, first], both_N2D[:, second], person_N)
            for name, (first, second) in ORDERS.items()
        },
    }
    found["seconds"] = round(time.monotonic() - start, 1)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    show(found)
    print(f"written: {out}")


def identity_net(spec: str) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a recipe's ``system.frozen.identity``; it takes RGB and turns it to the order it was trained on.

    Picture [B,3,H,W] in [-1,1] -> embedding [B,D] of length one; and what to write down about it.
    """
    values = parse_yaml(f"{{{spec}}}", "--identity")
    if values.get("net") == "ir_se50":
        values["channels"] = "bgr"  # trained so, whatever the recipe feeds it
    frozen = build(weights.FrozenConfig, {"identity": values}, "--identity")
    about: dict[str, Any] = {"net": frozen.identity.net, "trained": values.get("channels", "rgb")}
    if isinstance(frozen.identity, weights.StandInWeights):
        return standins.load("identity"), about
    net, about["sha256"] = weights.read(frozen.identity, weights.locate(frozen.path, frozen.identity))
    return net.eval().requires_grad_(False), about


def photos(split: Split, samples: int) -> tuple[Tensor, NDArray[np.int64], int]:
    """uint8 [N,3,H,W] of people with two photos or more, whose they are [N] in [0, P), and samples left out.

    The first and the last photo of each sample; a photo that a person's samples share is taken once, because a
    photo compared with itself says nothing.
    """
    side = min(LARGEST, int(next(read_split(split, {"side": Side()}, 1, limit=1))["side"]))
    left_out: list[str] = []
    known: dict[int, dict[bytes, Tensor]] = {}
    for batch in read_usable(split, {"image": Photo(side), "other": OtherPhoto(side)}, 32, left_out, limit=samples):
        for row, person in enumerate(batch["identity"].tolist()):
            for photo in (batch["image"][row], batch["other"][row]):
                known.setdefault(person, {})[photo.numpy().tobytes()] = photo
    several = [list(of.values()) for of in known.values() if len(of) > 1]
    if len(several) < 2:
        raise V2FError(f"the split {split.name} has {len(several)} people with two different photos; 2 are needed")
    person_N = np.repeat(np.arange(len(several)), [len(of) for of in several])
    return torch.stack([photo for of in several for photo in of]), person_N, len(left_out)


def embed(net: nn.Module, photo_N3HW: Tensor, device: torch.device) -> Floats:
    """Embeddings [N,2,D] of length one: of each photo in the trained order and in the other."""

    def both(img_B3HW: Tensor) -> tuple[Tensor, ...]:
        img_B3HW = to_picture(img_B3HW)
        return (torch.stack([net(img_B3HW), net(img_B3HW.flip(1))], 1),)

    both_N2D = in_batches(both, photo_N3HW, device)[0].astype(np.float64)
    return both_N2D / np.linalg.norm(both_N2D, axis=2, keepdims=True)


# ---------------------------------------------------------------------------------------------- the numbers


def verification(first_ND: Floats, second_ND: Floats, person_N: NDArray[np.int64]) -> dict[str, Any]:
    """How well the cosine of two photos tells the same person from two people.

    Pairs are (i, j), i's embedding from ``first_ND``, j's from ``second_ND``, i and j different photos: genuine where
    they are one person's. AUC = P[genuine > impostor] + P[genuine = impostor] / 2 over all pairs of pairs. EER: the
    mean of the false accepts and the false rejects at the genuine cosine, taken as the threshold, where these are
    nearest to each other. Intervals: 2.5 and 97.5 % of bootstrap samples of people; who was drawn m times weighs m in
    genuine pairs, and m n in impostor pairs with who was drawn n times.
    """
    cosine_NN = first_ND @ second_ND.T
    same_NN = person_N[:, None] == person_N[None, :]
    genuine_NN = same_NN & ~np.eye(len(person_N), dtype=bool)
    row, column = np.nonzero(genuine_NN)
    order = np.argsort(cosine_NN[row, column])
    genuine_G, owner_G = cosine_NN[row, column][order], person_N[row][order]
    row, column = np.nonzero(~same_NN)
    order = np.argsort(cosine_NN[row, column])
    impostor_I, pair_I = cosine_NN[row, column][order], (person_N[row][order], person_N[column][order])
    below_G, upto_G = np.searchsorted(impostor_I, genuine_G, "left"), np.searchsorted(impostor_I, genuine_G, "right")

    def values(drawn_P: Floats) -> list[float]:
        weight_G, weight_I = drawn_P[owner_G], drawn_P[pair_I[0]] * drawn_P[pair_I[1]]
        less = np.concatenate([[0.0], np.cumsum(weight_I)]) / weight_I.sum()
        auc = np.average((less[below_G] + less[upto_G]) / 2, weights=weight_G)
        accepted_G = 1 - less[below_G]
        rejected_G = (np.cumsum(weight_G) - weight_G) / weight_G.sum()
        at = np.argmin(np.abs(accepted_G - rejected_G))
        return [
            float(auc),
            float(accepted_G[at] + rejected_G[at]) / 2,
            float(np.average(genuine_G, weights=weight_G)),
            float(np.average(impostor_I, weights=weight_I)),
        ]

    people = int(person_N.max()) + 1
    drawn = np.array([values(drawn_P) for drawn_P in bootstrap(people)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    numbers = zip(ROWS, values(np.ones(people)), low, high, strict=True)
    pairs = {"genuine pairs": len(genuine_G), "impostor pairs": len(impostor_I)}
    return {name: {"value": value, "low": float(lo), "high": float(hi)} for name, value, lo, hi in numbers} | pairs


def over_people(value_N: Floats, person_N: NDArray[np.int64]) -> dict[str, float]:
    """The mean over photos, its bootstrap interval over people, and the least."""
    count_P, sum_P = np.bincount(person_N), np.bincount(person_N, value_N)
    means = [float(drawn_P @ sum_P / (drawn_P @ count_P)) for drawn_P in bootstrap(len(count_P))]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(value_N.mean()), "low": float(low), "high": float(high), "least": float(value_N.min())}


def bootstrap(people: int) -> list[Floats]:
    """How often each of P people is drawn, [P] for each of ``DRAWS`` samples of P people."""
    rng = keyed_rng(0, 0x4368616E)
    return [np.bincount(rng.integers(people, size=people), minlength=people).astype(np.float64) for _ in range(DRAWS)]


def show(found: dict[str, Any]) -> None:
    """A small table."""
    net, same = found["identity"], found["one photo, both orders: cosine"]
    print(f"{net['net']}, trained on {net['trained']}: {found['photos']} photos of {found['people']} people")
    print(f"one photo in both orders: cosine {shown(same)}, at the least {same['least']:.3f}")
    print(f"{'':18s}" + "".join(f"{name:24s}" for name in ROWS))
    for name, numbers in found["orders"].items():
        print(f"{name:18s}" + "".join(f"{shown(numbers[row]):24s}" for row in ROWS))


def shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:.4f} ({interval['low']:.4f}-{interval['high']:.4f})"


if __name__ == "__main__":
    sys.exit(main())
