"""The training of each stand-in, from portraits to a file of weights."""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from v2f import standins
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.nn import computes_bf16, feature_distance
from v2f.nn.standin_nets import CodeEncoder, IdentityNet, PerceptualNet, RefereeNet
from v2f.nn.stylegan2 import Generator
from v2f.standins import Kind
from v2f.standins.measures import (
    by_factor,
    disturbed,
    explained,
    in_parts,
    info_nce,
    picture_loss,
    psnr,
    tells_apart,
)
from v2f.standins.portraits import REFEREE_SEED, SEED, SIZE, STYLE_DIM, Portraits, batches, two_photos
from v2f.storage import store
from v2f.world import people, world_hash

GENERATOR = {
    "size": SIZE,
    "style_dim": STYLE_DIM,
    "n_mlp": 2,
    "channel_multiplier": 1 / 16,
    "channel_max": 128,
    "lr_mlp": 1.0,
}
TRUNK = [32, 64, 96, 128]


def fit(
    kind: Kind, module: nn.Module, loss: Callable[[nn.Module], Tensor], minutes: float, lr: float
) -> tuple[nn.Module, int]:
    """Minimize ``loss`` with Adam for ``minutes``, with a warm-up and a cosine decay.

    Returns the moving average of the weights, and the number of steps. V2FError if the loss is not finite.
    """
    average = copy.deepcopy(module).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(module.parameters(), lr, betas=(0.9, 0.99))
    start = time.monotonic()
    done, reported, steps = 0.0, 0.0, 0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16(torch.device("cpu"))):
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
        if done - reported >= 0.05 or done >= 1:
            reported = done
            print(
                f"{kind:10s} {min(done, 1):4.0%} {seconds:4.0f} s  step {steps:5d}  loss {value.item():.4f}", flush=True
            )
    return average, steps


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
        # pixels alone miss small and pale features: lips, lines, brows
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
    save("perceptual", average.state_dict(), config, {**by_factor(r2), "steps": steps}, out)


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
        # without it the net ignores factors that separate few people, which limits what a generated face can show
        regression = (factors(e_BE * e_BE.shape[1] ** 0.5) - torch.from_numpy(data.face[both])).square().mean()
        return match + regression

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


def save(kind: Kind, state: dict[str, Tensor], config: dict[str, Any], quality: dict[str, float], out: Path) -> None:
    """Write the weights in float16 with their metadata, and print the quality."""
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
