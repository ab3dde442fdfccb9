"""Trains the stand-ins on the synthetic world: ``python -m v2f.standins.train all`` (about 40 minutes on two cores).

- *generator*: StyleGAN2 by reconstruction, from all factors of a portrait as its latent: pixels first, then also the
  features of the perceptual net;
- *codes*: pictures to styles, by reconstruction through the frozen generator and by the styles themselves;
- *identity*: InfoNCE over two photos of a person, and the factors of the face, so that faint ones count too;
- *perceptual*: all factors of a portrait, those of the photo included;
- *referee*: InfoNCE over two photos of a person in other light, place and noise, and nothing else: a net that was made
  as a user's would be, and that no loss ever sees.

The people are those of worlds with seeds of their own, the referee's of another one than the others', so no recipe
trains or evaluates on them. ``all`` runs two lanes side by side, (perceptual, generator, codes) and (identity,
referee), each with half of the cores: small networks gain little from more threads.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from v2f import standins
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.nn import feature_distance
from v2f.nn.standin_nets import CodeEncoder, IdentityNet, PerceptualNet, RefereeNet
from v2f.nn.stylegan2 import Generator
from v2f.standins import KINDS, WEIGHTS, Kind, factor_latent
from v2f.storage import store
from v2f.world import people, world_hash
from v2f.world.people import World, WorldConfig
from v2f.world.portraits import render_portraits

SEED = 1000  # of the world whose people the stand-ins know
REFEREE_SEED = 2000  # of the referee's: it shares nobody with them
SIZE = 64
HELD_OUT = 1_000_000  # the first person that no training sees
MINUTES: dict[Kind, float] = {"perceptual": 6.0, "generator": 26.0, "codes": 5.0, "identity": 6.5, "referee": 10.0}
LANES: tuple[tuple[Kind, ...], ...] = (("perceptual", "generator", "codes"), ("identity", "referee"))

STYLE_DIM = 128
GENERATOR = {
    "size": SIZE,
    "style_dim": STYLE_DIM,
    "n_mlp": 2,
    "channel_multiplier": 1 / 16,
    "channel_max": 128,
    "lr_mlp": 1.0,
}
TRUNK = [32, 64, 96, 128]


@dataclass(frozen=True)
class Portraits:
    """Rendered photos, those of a person side by side: person = row // photos."""

    pictures: np.ndarray  # uint8 [N,64,64,3]
    face: np.ndarray  # float32 [N,F]
    photo: np.ndarray  # float32 [N,P]
    photos: int

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self, rows: Any) -> Tensor:
        """Pictures [B,3,64,64] in [-1,1], channels last."""
        return torch.tensor(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def factors(self, rows: Any) -> Tensor:
        """All factors [B,F+P]: those of the face first."""
        return torch.from_numpy(np.concatenate([self.face[rows], self.photo[rows]], axis=1))

    def latents(self, rows: Any) -> Tensor:
        return factor_latent(self.face[rows], self.photo[rows], STYLE_DIM)

    def save(self, folder: Path) -> None:
        for name in ("pictures", "face", "photo"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path, photos: int) -> "Portraits":
        pictures, face, photo = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "face", "photo")
        )
        return cls(pictures, np.array(face), np.array(photo), photos)


def render(first: int, count: int, photos: int, processes: int = 1, seed: int = SEED) -> Portraits:
    """The first ``photos`` photos of ``count`` people from person ``first`` on, of the world with ``seed``."""
    step = 128
    jobs = [(seed, start, min(step, first + count - start), photos) for start in range(first, first + count, step)]
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(_render, jobs))
    else:
        parts = [_render(job) for job in jobs]
    pictures, face, photo = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Portraits(pictures, face, photo, photos)


def _render(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, first, count, photos = job
    world = World(WorldConfig(seed=seed))
    ids = np.repeat(np.arange(first, first + count), photos)
    face, photo = world.face(ids), world.photo(ids, np.tile(np.arange(photos), count))
    return render_portraits(face, photo, SIZE), face, photo


def fit(
    kind: Kind, module: nn.Module, loss: Callable[[nn.Module], Tensor], minutes: float, lr: float
) -> tuple[nn.Module, int]:
    """Adam on ``loss`` for ``minutes``, with a warm-up and a cosine decay; the weights' average and the steps."""
    average = copy.deepcopy(module).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(module.parameters(), lr, betas=(0.9, 0.99))
    start = time.monotonic()
    done, told, steps = 0.0, 0.0, 0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            value = loss(module)
        if not torch.isfinite(value):
            raise V2FError(f"stand-in {kind}: the loss is {value.item()} at step {steps}; lower its learning rate")
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        with torch.no_grad():
            keep = min(0.998, steps / (steps + 10))
            for mean, now in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        seconds = time.monotonic() - start
        done = seconds / (60 * minutes)
        if done - told >= 0.05 or done >= 1:
            told = done
            print(
                f"{kind:10s} {min(done, 1):4.0%} {seconds:4.0f} s  step {steps:5d}  loss {value.item():.4f}", flush=True
            )
    return average, steps


def fast_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16; elsewhere autocast would only slow it down."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def batches(rows: int, batch: int, key: int) -> Iterator[np.ndarray]:
    """Endless batches of rows, epoch after epoch in another order."""
    if rows < batch:
        raise V2FError(f"stand-ins: {rows} portraits are fewer than a batch of {batch}; render more people")
    epoch = 0
    while True:
        order = keyed_rng(SEED, key, epoch).permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            yield order[start : start + batch]
        epoch += 1


def picture_loss(output: Tensor, reference: Tensor) -> Tensor:
    """4 MSE + L1 + L1 of the differences of neighbours, which keeps edges sharp."""
    error = output.float() - reference
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return 4 * error.square().mean() + error.abs().mean() + across + down


@torch.no_grad()
def in_parts(function: Callable[[Any], Tensor], rows: int, part: int = 128) -> Tensor:
    """``function`` of ``slice`` after ``slice`` of the rows, joined."""
    return torch.cat([function(slice(start, min(start + part, rows))) for start in range(0, rows, part)])


def psnr(output: Tensor, reference: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in [-1,1]."""
    return -10 * math.log10(((output.clamp(-1, 1) - reference) / 2).square().mean().item())


def explained(estimate: Tensor, truth: Tensor) -> Tensor:
    """R^2 of each column."""
    return 1 - (estimate - truth).square().mean(dim=0) / truth.var(dim=0, correction=0)


def train_generator(data: Portraits, held_out: Portraits, minutes: float, out: Path) -> None:
    generator = Generator(**GENERATOR)  # type: ignore[arg-type]
    net = standins.load("perceptual", out)
    rows = batches(len(data), 16, key=1)

    def pixels(module: nn.Module) -> Tensor:
        now = next(rows)
        return picture_loss(module(data.latents(now)), data.images(now))

    def features(module: nn.Module) -> Tensor:
        now = next(rows)
        output, reference = module(data.latents(now)), data.images(now)
        # pixels alone leave out what is small and pale: lips, lines, brows
        return picture_loss(output, reference) + 0.2 * feature_distance(net(output), net(reference)).mean()

    rough, first = fit("generator", generator, pixels, minutes * 0.6, lr=0.08)
    average, steps = fit("generator", rough.requires_grad_(True), features, minutes * 0.4, lr=0.03)
    steps += first
    assert isinstance(average, Generator)
    w_ND = in_parts(lambda part: average.mapping(data.latents(part)), len(data))
    average.latent_avg.copy_(w_ND.mean(dim=0))
    output = in_parts(lambda part: average(held_out.latents(part)), len(held_out))
    quality = {
        "psnr_db": psnr(output, held_out.images(slice(None))),
        "steps": steps,
        "w_std": w_ND.std(dim=0).mean().item(),
    }
    state = {**average.state_dict(), "latent_avg": average.latent_avg}
    save("generator", state, GENERATOR, quality, out)


def train_codes(data: Portraits, held_out: Portraits, minutes: float, out: Path) -> None:
    generator = standins.load("generator", out)
    config = {"channels": TRUNK, "n_styles": generator.n_latent, "style_dim": generator.style_dim}
    encoder = CodeEncoder(**config)
    encoder.latent_avg.copy_(generator.latent_avg)
    w_ND = in_parts(lambda part: generator.mapping(data.latents(part)), len(data))
    spread = w_ND.var(dim=0).mean()
    rows = batches(len(data), 32, key=2)

    def loss(module: nn.Module) -> Tensor:
        now = next(rows)
        reference = data.images(now)
        w_BLD = module(reference)
        code = (w_BLD - w_ND[now][:, None]).square().mean() / spread
        return picture_loss(generator.synthesis(w_BLD), reference) + code

    average, steps = fit("codes", encoder, loss, minutes, lr=1e-3)
    assert isinstance(average, CodeEncoder)
    reference = held_out.images(slice(None))
    w_BLD = in_parts(lambda part: average(reference[part]), len(held_out))
    output = in_parts(lambda part: generator.synthesis(w_BLD[part]), len(held_out))
    truth = generator.mapping(held_out.latents(slice(None)))[:, None]
    error = ((w_BLD - truth).square().mean() / spread).item()
    save(
        "codes",
        average.state_dict(),
        config,
        {"psnr_db": psnr(output, reference), "w_error": error, "steps": steps},
        out,
    )


def train_perceptual(data: Portraits, held_out: Portraits, minutes: float, out: Path) -> None:
    config = {"channels": TRUNK, "factors": data.face.shape[1] + data.photo.shape[1]}
    rows = batches(len(data), 64, key=3)

    def loss(module: nn.Module) -> Tensor:
        assert isinstance(module, PerceptualNet)
        now = next(rows)
        return (module.factors(data.images(now)) - data.factors(now)).square().mean()

    average, steps = fit("perceptual", PerceptualNet(**config), loss, minutes, lr=1e-3)  # type: ignore[arg-type]
    assert isinstance(average, PerceptualNet)
    estimate = in_parts(lambda part: average.factors(held_out.images(part)), len(held_out))
    r2 = explained(estimate, held_out.factors(slice(None)))
    save("perceptual", average.state_dict(), config, {**_by_factor(r2), "steps": steps}, out)


def train_identity(data: Portraits, held_out: Portraits, minutes: float, out: Path) -> None:
    config = {"channels": TRUNK, "embedding": 128}
    module = nn.ModuleDict({"net": IdentityNet(**config), "factors": nn.Linear(128, data.face.shape[1])})  # type: ignore[arg-type]
    module.register_parameter("scale", nn.Parameter(torch.tensor(math.log(10.0))))
    rows = batches(len(data) // data.photos, 96, key=4)
    rng = keyed_rng(SEED, 5)

    def loss(module: nn.Module) -> Tensor:
        net, factors = module.get_submodule("net"), module.get_submodule("factors")
        scale = module.get_parameter("scale")
        assert isinstance(net, IdentityNet)
        both = two_photos(data, next(rows), rng)
        e_BE = F.normalize(net.raw(data.images(both)), dim=1)
        match = info_nce(e_BE, scale)
        # without it the net leaves out what tells few people apart, and so caps what a generated face can show
        told = (factors(e_BE * e_BE.shape[1] ** 0.5) - torch.from_numpy(data.face[both])).square().mean()
        return match + told

    fitted, steps = fit("identity", module, loss, minutes, lr=1e-3)
    average = fitted.get_submodule("net")
    save("identity", average.state_dict(), config, tells_apart(average, data, held_out) | {"steps": steps}, out)


def train_referee(data: Portraits, held_out: Portraits, minutes: float, out: Path) -> None:
    config = {"channels": [32, 64, 128, 192], "embedding": 128}
    module = nn.ModuleDict({"net": RefereeNet(**config)})  # type: ignore[arg-type]
    module.register_parameter("scale", nn.Parameter(torch.tensor(math.log(10.0))))
    rows = batches(len(data) // data.photos, 64, key=6)
    rng = keyed_rng(REFEREE_SEED, 7)

    def loss(module: nn.Module) -> Tensor:
        net, scale = module.get_submodule("net"), module.get_parameter("scale")
        assert isinstance(net, RefereeNet)
        both = two_photos(data, next(rows), rng)
        return info_nce(net(disturbed(data.images(both), rng)), scale)

    fitted, steps = fit("referee", module, loss, minutes, lr=2e-3)
    average = fitted.get_submodule("net")
    save("referee", average.state_dict(), config, tells_apart(average, data, held_out) | {"steps": steps}, out)


def two_photos(data: Portraits, person_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows [2P] of two different photos of each person: all first ones, then all second ones."""
    first = rng.integers(data.photos, size=len(person_P))
    second = (first + rng.integers(1, data.photos, size=len(person_P))) % data.photos
    return np.concatenate([person_P * data.photos + first, person_P * data.photos + second])


def info_nce(e_BE: Tensor, scale: Tensor) -> Tensor:
    """Which of the second halves of embeddings is the person of which of the first; ``scale``: log of the factor."""
    a, b = e_BE.chunk(2)
    logits = scale.clamp(max=math.log(30.0)).exp() * (a.float() @ b.float().T)
    label = torch.arange(len(a))
    return (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2


def disturbed(img_B3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures as other cameras would take them: colour, contrast, place, size, tilt, blur and noise drawn anew."""
    count = len(img_B3HW)

    def drawn(*shape: int, scale: float) -> Tensor:
        return torch.from_numpy(scale * rng.standard_normal(shape, dtype=np.float32))

    turn, size = drawn(count, scale=0.05), torch.exp(drawn(count, scale=0.05))
    row = [size * turn.cos(), -size * turn.sin(), drawn(count, scale=0.06)]
    next_row = [size * turn.sin(), size * turn.cos(), drawn(count, scale=0.06)]
    grid = F.affine_grid(torch.stack([*row, *next_row], 1).view(-1, 2, 3), list(img_B3HW.shape), align_corners=False)
    moved = F.grid_sample(img_B3HW, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    moved = torch.lerp(moved, soft, torch.from_numpy(rng.random((count, 1, 1, 1), dtype=np.float32)))
    coloured = moved * torch.exp(drawn(count, 3, 1, 1, scale=0.08)) * torch.exp(drawn(count, 1, 1, 1, scale=0.12))
    coloured = coloured + drawn(count, 3, 1, 1, scale=0.06) + drawn(count, 1, 1, 1, scale=0.08)
    return (coloured + drawn(*img_B3HW.shape, scale=1.0) * drawn(count, 1, 1, 1, scale=0.08).abs()).clamp(-1, 1)


def tells_apart(net: nn.Module, data: Portraits, held_out: Portraits) -> dict[str, float]:
    """How an identity net finds people again that it never saw, and which factors of a face its embedding holds."""
    known = in_parts(lambda part: net(data.images(part)), min(len(data), 8192))
    unseen = in_parts(lambda part: net(held_out.images(part)), len(held_out))
    a, b = unseen[:: held_out.photos], unseen[1 :: held_out.photos]
    cosine = a @ b.T
    own = cosine.diagonal()
    others = (cosine.sum() - own.sum()) / (cosine.numel() - len(own))
    estimate = _linear(known, torch.from_numpy(data.face[: len(known)]), unseen)
    return {
        "recall_at_1": (cosine.argmax(dim=1) == torch.arange(len(own))).float().mean().item(),
        "gallery": len(own),
        "own_cosine": own.mean().item(),
        "other_cosine": others.item(),
        **_by_factor(explained(estimate, torch.from_numpy(held_out.face))),
    }


def _linear(inputs: Tensor, targets: Tensor, at: Tensor) -> Tensor:
    """A ridge regression from ``inputs`` to ``targets``, used on ``at``."""
    mean, middle = inputs.mean(dim=0), targets.mean(dim=0)
    x = (inputs - mean).double()
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype) * x.var()
    weight = torch.linalg.solve(gram, x.T @ (targets - middle).double())
    return ((at - mean).double() @ weight).float() + middle


def _by_factor(r2: Tensor) -> dict[str, float]:
    names = [*people.FACE, *people.PHOTO][: len(r2)]
    by_name = {f"r2_{name}": value.item() for name, value in zip(names, r2, strict=True)}
    return {"r2_mean": r2.mean().item(), "r2_least": r2.min().item(), **by_name}


def save(kind: Kind, state: dict[str, Tensor], config: dict[str, Any], quality: dict[str, float], out: Path) -> None:
    """Writes the weights in float16 and what is known of them; says the quality."""
    metadata = {
        "kind": kind,
        "world_version": people.VERSION,
        "world_hash": world_hash(),
        "torch_version": torch.__version__,
        "config": json.dumps(config),
        "quality": json.dumps({name: round(value, 4) for name, value in quality.items()}),
    }
    tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in state.items()}
    path = out / f"{kind}.safetensors"
    with store.replacing(str(path)) as temporary:
        save_file(tensors, temporary, metadata)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in quality.items())
    print(f"{kind:10s} done: {path} ({path.stat().st_size / 1e6:.2f} MB)  {shown}", flush=True)


TRAIN: dict[Kind, Callable[[Portraits, Portraits, float, Path], None]] = {
    "generator": train_generator,
    "codes": train_codes,
    "perceptual": train_perceptual,
    "identity": train_identity,
    "referee": train_referee,
}


def run_lane(kinds: Sequence[Kind], minutes: float, folder: Path, photos: int, out: Path, threads: int) -> None:
    """One stand-in after the other on the portraits of ``folder``; ``minutes`` multiplies each one's share."""
    torch.set_num_threads(threads)
    for kind in kinds:
        own = folder / str(seed_of(kind))
        data, held_out = Portraits.load(own / "train", photos), Portraits.load(own / "held_out", photos)
        torch.manual_seed(seed_of(kind))
        TRAIN[kind](data, held_out, MINUTES[kind] * minutes, out)


def seed_of(kind: Kind) -> int:
    """Of the world whose people a stand-in knows."""
    return REFEREE_SEED if kind == "referee" else SEED


def train(kinds: Sequence[Kind], minutes: float | None, out: Path, count: int, held_out: int, photos: int) -> None:
    """Renders the portraits once and trains ``kinds``; ``minutes`` is the length of the longest lane."""
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
            raise V2FError(f"no stand-in is called {unknown[0]!r}; there are all, {', '.join(KINDS)}")
        if given.people < 96:
            raise V2FError(f"--people {given.people}: the identity net compares 96 people at a time; give at least 96")
        kinds = KINDS if "all" in given.kinds else tuple(k for k in KINDS if k in given.kinds)
        train(kinds, given.minutes, given.out, given.people, held_out=256, photos=4)
    except V2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
