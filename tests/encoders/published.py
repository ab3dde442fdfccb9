"""Files of speech transformers as their authors publish them, with random numbers, written by transformers' classes."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from encoders.small import SPEECH
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIGS = {"unispeech_sat": transformers.UniSpeechSatConfig, "wavlm": transformers.WavLMConfig}
BARE = {"unispeech_sat": transformers.UniSpeechSatModel, "wavlm": transformers.WavLMModel}
WITH_HEADS = {"unispeech_sat": transformers.UniSpeechSatForPreTraining, "wavlm": transformers.WavLMForXVector}
FOLDERS = {"unispeech_sat": "unispeech-sat-base", "wavlm": "wavlm-base"}
HEADS = {  # of a small net
    "unispeech_sat": {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8, "num_clusters": 5},
    "wavlm": {"tdnn_dim": [8, 8, 8, 8, 12], "xvector_output_dim": 8},
}
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def net(kind: str, heads: bool, **settings: Any) -> nn.Module:
    """transformers' class with the settings that it has by itself, as when it is trained."""
    torch.manual_seed(0)
    created: nn.Module = (WITH_HEADS if heads else BARE)[kind](CONFIGS[kind](**settings))
    return created


def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with the names that torch's weight norm had before 2.0."""
    for new, before in WEIGHT_NORM.items():
        state = {name.replace(new, before): tensor for name, tensor in state.items()}
    return state


def small(kind: str, heads: bool = False) -> nn.Module:
    return net(kind, heads, **SPEECH, **HEADS[kind])


def write(folder: Path, kind: str, state: dict[str, Tensor], suffix: str = ".bin", described: bool = True) -> Path:
    """The file of a small net under its published name, and its ``config.json``."""
    where = folder / FOLDERS[kind]
    where.mkdir(parents=True, exist_ok=True)
    if described:
        config = CONFIGS[kind](**SPEECH, **HEADS[kind]).to_dict() | {"auto_map": {"AutoModel": "evil.py--Net"}}
        (where / "config.json").write_text(json.dumps(config))
    if suffix == ".bin":
        torch.save(state, path := where / "pytorch_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path := where / "model.safetensors")
    return path
