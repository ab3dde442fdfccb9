"""Speech transformers from files as ``transformers`` writes them: ``pytorch_model.bin`` or ``model.safetensors``.

    state_dict -> without prefix, heads and old names -> SpeechTransformer with exactly these weights
    config.json, preprocessor_config.json beside the file -> its architecture, whether waves are normalized

Both JSON files are optional and read as data: the keys of :class:`~v2f.nn.speech.Architecture`, ``model_type``,
``do_normalize`` and ``sampling_rate`` are used, all others are ignored, so nothing in them can name code.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from v2f.config import build
from v2f.errors import V2FError
from v2f.nn.speech import MASK, Architecture, Kind, SpeechTransformer, WavLMArchitecture
from v2f.nn.strict import fill
from v2f.storage import store
from v2f.weights import files
from v2f.weights.config import TransformerWeights

RATE = 16_000  # Hz, of all these nets
ARCHITECTURE, PREPROCESSING = BESIDE = ("config.json", "preprocessor_config.json")
LARGEST = 1 << 20  # bytes of a JSON file
MODEL_TYPES: dict[Kind, str] = {"unispeech_sat": "unispeech-sat", "wavlm": "wavlm"}
NAMES: dict[Kind, str] = {"unispeech_sat": "UniSpeech-SAT", "wavlm": "WavLM"}
PREFIXES: dict[Kind, str] = {"unispeech_sat": "unispeech_sat.", "wavlm": "wavlm."}
HEADS = frozenset(
    (
        *("classifier", "label_embeddings_concat", "layer_norm_for_extract", "layer_weights", "lm_head", "objective"),
        *("project_hid", "project_q", "projector", "quantizer", "speaker_proj", "tdnn"),
    )
)
"""Beside the net itself: the heads of pre-training and of transformers' classes for recognition and classification."""
_OLD = {
    f"encoder.pos_conv_embed.conv.weight_{letter}": f"encoder.pos_conv_embed.conv.parametrizations.weight.original{n}"
    for n, letter in enumerate("gv")
}  # torch's weight norm before 2.0 -> since then


def read_speech(net: TransformerWeights, content: Any, path: str) -> SpeechTransformer:
    """The net in the file ``path`` with this ``content``."""
    kind = net.net
    told = {name: _read_json(path, name) for name in BESIDE}
    architecture = net.architecture or _architecture(kind, told[ARCHITECTURE], path)
    normalizes = _normalizes(told[PREPROCESSING], path)
    with torch.device("meta"):
        model = SpeechTransformer(kind, architecture, normalizes)
    state, prefix = _own(kind, files.tensors(content, path), path)
    fill(model.net, state, path, NAMES[kind], prefix)
    return model


def _own(kind: Kind, state: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of the net itself under their names in it, and the prefix that they have in the file."""
    prefix = PREFIXES[kind] if any(name.startswith(PREFIXES[kind]) for name in state) else ""
    heads = HEADS | {"feature_extractor"} if prefix else HEADS  # transformers calls a layer of its x-vectors that
    own: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not (prefix and name.startswith(prefix)) and name.partition(".")[0] in heads:
            continue
        short = name.removeprefix(prefix)
        short = _OLD.get(short, short)
        if short in own:
            raise V2FError(f"{path}: these are not the weights of {NAMES[kind]}: the tensor {short!r} is in it twice")
        if short != MASK:
            own[short] = tensor
    return own, prefix


def _architecture(kind: Kind, told: Mapping[str, Any] | None, path: str) -> Architecture:
    """The architecture in a ``config.json``; that of the published base net if there is none."""
    known = WavLMArchitecture if kind == "wavlm" else Architecture
    if told is None:
        return known()
    where = _beside(path, ARCHITECTURE)
    found = told.get("model_type", MODEL_TYPES[kind])
    if found != MODEL_TYPES[kind]:
        raise V2FError(f"{where}: describes a net of the type {found!r}, {kind} is {MODEL_TYPES[kind]!r}")
    return build(known, {name: told[name] for name in known.model_fields if name in told}, where)


def _normalizes(told: Mapping[str, Any] | None, path: str) -> bool | None:
    """``do_normalize`` of a ``preprocessor_config.json``; None if it does not say."""
    where, values = _beside(path, PREPROCESSING), told or {}
    if values.get("sampling_rate", RATE) != RATE:
        raise V2FError(f"{where}: sampling_rate is {values['sampling_rate']!r}, v2f supports {RATE} only")
    found = values.get("do_normalize")
    if not (found is None or isinstance(found, bool)):
        raise V2FError(f"{where}: do_normalize is {found!r}, expected true or false")
    return found


def _read_json(path: str, name: str) -> dict[str, Any] | None:
    """The mapping in the JSON file ``name`` beside ``path``; None if there is no such file."""
    where = _beside(path, name)
    if not store.exists(where):
        return None
    if store.size(where) > LARGEST:
        raise V2FError(f"{where}: larger than {LARGEST} bytes; transformers writes far smaller ones")
    data = store.read_bytes(where)
    files.check(where, hashlib.sha256(data).hexdigest(), None)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise V2FError(f"{where}: not valid JSON; copy it again, or remove it") from error
    if not isinstance(values, dict):
        raise V2FError(f"{where}: expected an object, found {type(values).__name__}; copy it again, or remove it")
    return values


def _beside(path: str, name: str) -> str:
    return store.join(path.rpartition("/")[0] or ".", name)
