"""Is our ECAPA-TDNN SpeechBrain's? Compares net and front end on random weights; keeps numbers for the tests.

    python bench/ecapa_reference.py             # compares; needs `pip install speechbrain==1.1.2`; a minute
    python bench/ecapa_reference.py --write     # and writes tests/nn/ecapa_reference.npz

Weights and waves are numbers of a seeded bit generator, so a test makes the same without SpeechBrain. Exit code 1 if
something differs by more than 1e-5 of its largest number. SpeechBrain's front end is compared in float64: in float32
its own rounding reaches 0.003 dB where a tone leaves most bands almost empty.
"""

import argparse
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2f.nn.ecapa import ECAPA
from v2f.nn.fbank import RATE, LogMel

REFERENCE = Path(__file__).parents[1] / "tests" / "nn" / "ecapa_reference.npz"
TOLERANCE = 1e-5
SMALL = ECAPA.Config(channels=16, mfa=24, attention=8, scale=4, se=8, outputs=12)


def uniform(seed: int, *shape: int) -> Tensor:
    """Numbers in [-1,1), float64; the raw bits of the generator are the same in every version of numpy."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return torch.from_numpy(bits / 2.0**63 - 1).reshape(shape)


def waves(seconds: float) -> Tensor:
    """Noise in bursts, a rising tone, silence and then noise: [3,T] in [-1,1], float64."""
    noise_T = uniform(1, round(seconds * RATE))
    t = torch.arange(len(noise_T), dtype=torch.float64) / RATE
    tone_T = 0.5 * torch.sin(2 * torch.pi * (200 + 300 * t) * t)
    return torch.stack([0.3 * noise_T * torch.sin(40 * t).square(), tone_T, noise_T * (t > seconds / 2)])


def state(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A state_dict of random weights; batch norms have statistics and gains as different as a trained net's."""
    drawn = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        numbers = uniform(seed, *shape)
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(1)
        elif name.endswith("running_var") or (".norm." in name and name.endswith("weight")):
            drawn[name] = (1 + numbers / 2).float()
        elif len(shape) > 1:
            drawn[name] = (numbers * (3 / numbers[0].numel()) ** 0.5).float()
        else:
            drawn[name] = (numbers / 2).float()
    return drawn


def ours(config: ECAPA.Config) -> ECAPA:
    """Our net with the weights of :func:`state`, in evaluation mode."""
    net = ECAPA(config)
    net.load_state_dict(state({name: tensor.shape for name, tensor in net.state_dict().items()}))
    return net.eval().requires_grad_(False)


def theirs(config: ECAPA.Config) -> Any:
    """SpeechBrain's net with the same weights."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    net = ECAPA_TDNN(
        input_size=80,
        lin_neurons=config.outputs,
        channels=[config.channels] * (len(config.kernels) - 1) + [config.mfa],
        kernel_sizes=config.kernels,
        dilations=config.dilations,
        attention_channels=config.attention,
        res2net_scale=config.scale,
        se_channels=config.se,
    )
    net.load_state_dict(state({name: tensor.shape for name, tensor in net.state_dict().items()}))
    return net.eval().requires_grad_(False)


def their_log_mel(wav_BT: Tensor) -> Tensor:
    """[B,80,F], by SpeechBrain in the precision of the wave."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    before = torch.get_default_dtype()
    torch.set_default_dtype(wav_BT.dtype)
    try:
        normalize = InputNormalization(norm_type="sentence", std_norm=False)
        level: Tensor = normalize(Fbank(n_mels=80)(wav_BT), torch.ones(len(wav_BT)))
    finally:
        torch.set_default_dtype(before)
    return level.transpose(1, 2)


def their_outputs(net: Any, level_BMF: Tensor) -> dict[str, Tensor]:
    """Of SpeechBrain's net: ``maps`` [K,B,C,F] after each block, and ``vector`` [B,E]."""
    maps: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: maps.append(output)) for block in net.blocks]
    vector_BE = net(level_BMF.transpose(1, 2))[:, 0]
    for hook in hooks:
        hook.remove()
    return {"maps": torch.stack(maps), "vector": vector_BE}


def our_outputs(net: ECAPA, level_BMF: Tensor) -> dict[str, Tensor]:
    """The same of our net."""
    return {"maps": torch.stack(net.blocks.maps(level_BMF)), "vector": net(level_BMF)}


def compared(what: str, own: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal within the tolerance; prints by how much they differ."""
    largest = float((own - other).abs().max() / other.abs().max())
    print(f"{what}: {largest:.1e} of the largest number")
    return largest <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {REFERENCE.name}")
    args = parser.parse_args()
    try:
        version = metadata.version("speechbrain")
    except metadata.PackageNotFoundError:
        parser.error("the package speechbrain is not installed: pip install speechbrain==1.1.2")
    print(f"speechbrain {version}, torch {torch.__version__}")
    wav = waves(2.0)
    level = LogMel()(wav)
    good = [compared("front end, float64", level, their_log_mel(wav))]
    for size, config in (("small", SMALL), ("published size", ECAPA.Config())):
        own, other = ours(config), theirs(config)
        for dtype in (torch.float32, torch.float64):
            expected = their_outputs(other.to(dtype), level.to(dtype))
            for name, found in our_outputs(own.to(dtype), level.to(dtype)).items():
                good.append(compared(f"{size}, {name}, {dtype}", found, expected[name]))
    if args.write:
        wav = waves(0.1)
        level = their_log_mel(wav)
        kept = {"level": level, **their_outputs(theirs(SMALL).double(), level)}
        np.savez_compressed(REFERENCE, **{name: tensor.float().numpy() for name, tensor in kept.items()})
        print(f"{REFERENCE}: {REFERENCE.stat().st_size} bytes")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
