"""Trains the stand-ins on the synthetic world: ``python -m v2f.standins.train all`` (about 40 minutes on two cores).

- *generator*: StyleGAN2, trained by reconstruction; the latent is all factors of a portrait. The loss compares pixels
  at first, then also features of the perceptual net;
- *codes*: pictures to styles, trained by reconstruction through the frozen generator and on the styles themselves;
- *identity*: InfoNCE over two photos of a person, plus regression of the face's factors, so that faint ones count too;
- *perceptual*: regression of all factors of a portrait, including those of the photo;
- *referee*: InfoNCE over two photos of a person with random light, place and noise, and nothing else: it is trained as
  a user's identity net would be, and no loss ever sees it.

The people come from worlds with separate seeds, the referee's from a third one, so no recipe trains or evaluates on
them. ``all`` runs two lanes in parallel, (perceptual, generator, codes) and (identity, referee), each with half of the
cores: small networks gain little from more threads.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from v2f.errors import V2FError
from v2f.standins import KINDS, WEIGHTS, Kind
from v2f.standins.portraits import HELD_OUT, Portraits, render, seed_of
from v2f.standins.trainings import TRAIN

MINUTES: dict[Kind, float] = {"perceptual": 6.0, "generator": 26.0, "codes": 5.0, "identity": 6.5, "referee": 10.0}
LANES: tuple[tuple[Kind, ...], ...] = (("perceptual", "generator", "codes"), ("identity", "referee"))


def run_lane(kinds: Sequence[Kind], minutes: float, folder: Path, photos: int, out: Path, threads: int) -> None:
    """Train ``kinds`` one after another on the portraits in ``folder``; ``minutes`` scales each one's training time."""
    torch.set_num_threads(threads)
    for kind in kinds:
        own = folder / str(seed_of(kind))
        data, held_out = Portraits.load(own / "train", photos), Portraits.load(own / "held_out", photos)
        torch.manual_seed(seed_of(kind))
        TRAIN[kind](data, held_out, MINUTES[kind] * minutes, out)


def train(kinds: Sequence[Kind], minutes: float | None, out: Path, count: int, held_out: int, photos: int) -> None:
    """Render the portraits once and train ``kinds``; ``minutes``: the training time of the longest lane."""
    cores = os.cpu_count() or 1
    lanes = [lane for lane in (tuple(k for k in lane if k in kinds) for lane in LANES) if lane]
    longest = max(sum(MINUTES[kind] for kind in lane) for lane in lanes)
    scale = 1.0 if minutes is None else minutes / longest
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"portraits  {count} people, {photos} photos each", flush=True)
        for seed in sorted({seed_of(kind) for kind in kinds}):
            for part, first, people_in_it in (("train", 0, count), ("held_out", HELD_OUT, held_out)):
                own = folder / str(seed) / part
                own.mkdir(parents=True)
                render(first, people_in_it, photos, cores if people_in_it > 512 else 1, seed).save(own)
        if len(lanes) == 1:
            run_lane(lanes[0], scale, folder, photos, out, cores)
            return
        spawn = multiprocessing.get_context("spawn")
        threads = max(1, cores // len(lanes))
        with ProcessPoolExecutor(len(lanes), spawn) as pool:
            for lane in [pool.submit(run_lane, lane, scale, folder, photos, out, threads) for lane in lanes]:
                lane.result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m v2f.standins.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=["all"], metavar="KIND", help=f"all, or some of {', '.join(KINDS)}")
    parser.add_argument("--minutes", type=float, help="training time of the longer lane (without it: 37 for all)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights (default: %(default)s)")
    parser.add_argument("--people", type=int, default=8000, help="people to train on (default: %(default)s)")
    given = parser.parse_args(arguments)
    unknown = [kind for kind in given.kinds if kind not in (*KINDS, "all")]
    try:
        if unknown:
            raise V2FError(f"no stand-in is named {unknown[0]!r}; choose all, {', '.join(KINDS)}")
        if given.people < 96:
            raise V2FError(f"--people {given.people}: the identity net compares 96 people at a time; use at least 96")
        kinds = KINDS if "all" in given.kinds else tuple(k for k in KINDS if k in given.kinds)
        train(kinds, given.minutes, given.out, given.people, held_out=256, photos=4)
    except V2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
