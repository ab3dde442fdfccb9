"""The layouts of published weight files: a checked state_dict -> a net with exactly these weights."""

import argparse
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn import picture_resnet
from v2f.nn.dlib_face import CHIP, DlibFace
from v2f.nn.dlib_face import SIDE as DLIB_SIDE
from v2f.nn.ecapa import ECAPA
from v2f.nn.ge2e import GE2E
from v2f.nn.irse import IRSE50
from v2f.nn.psp import PSP, GradualStyleEncoder
from v2f.nn.strict import check, fill
from v2f.nn.stylegan2 import Generator
from v2f.nn.wen import FaceGenerator, VoiceEmbedding
from v2f.weights import files
from v2f.weights.config import (
    DlibWeights,
    ECAPAWeights,
    FaceNetWeights,
    GE2EWeights,
    IRSE50Weights,
    LPIPSWeights,
    PSPDecoderWeights,
    PSPEncoderWeights,
    ResNet50Weights,
    StyleGAN2Weights,
    UniSpeechSATWeights,
    UserWeights,
    WavLMWeights,
    WenGeneratorWeights,
    WenWeights,
)
from v2f.weights.speech import read_speech

if TYPE_CHECKING:  # imports torchvision and lpips, a second that runs with stand-ins need not spend
    from v2f.nn.frozen import LPIPS, FaceIdentity

MEAN_W_SAMPLES = 20_000  # for a file without a mean style: the error is a hundredth of w's standard deviation


def read(net: UserWeights, path: str) -> tuple[nn.Module, str]:
    """The net in the file ``path``, and the file's SHA-256; every misfit is a one-line V2FError."""
    content, digest = files.read(path, net.sha256)
    return _READERS[type(net)](net, content, path), digest


def read_stylegan2(content: Any, path: str) -> Generator:
    """A generator from rosinality's ``{"g_ema": state_dict, "latent_avg": [512]}``, or from the flat safetensors of
    ``v2f weights convert``; size and widths are read off the tensors."""
    if isinstance(content, Mapping) and "g_ema" in content:
        state, mean, prefix = files.tensors(content["g_ema"], path), content.get("latent_avg"), "g_ema."
    elif isinstance(content, Mapping) and "state_dict" in content:
        raise V2FError(f"{path}: not a StyleGAN2 file; if it is a pSp file, set generator.net to psp")
    else:
        state, prefix = files.tensors(content, path), ""
        mean = state.pop("latent_avg", None)
    generator = Generator.fitting(state, path, prefix)
    if mean is None:
        mean = generator.mean_w(MEAN_W_SAMPLES, torch.Generator().manual_seed(0))
    _copy_mean_style(generator.latent_avg, mean, path)
    return generator


def _copy_mean_style(target: Tensor, value: Any, path: str) -> None:
    """Copy the mean style, which a file keeps beside its state_dict: [D], or for pSp [L, D] or one [D] for all
    styles."""
    shapes = (target.shape, target.shape[-1:])
    if not isinstance(value, Tensor) or value.shape not in shapes or value.dtype != target.dtype:
        shown = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise V2FError(f"{path}: latent_avg is {shown}, expected {list(target.shape)} {target.dtype}")
    if value.is_meta or value.layout != torch.strided or not value.isfinite().all():
        raise V2FError(f"{path}: latent_avg is not an array of finite numbers; copy the file again")
    target.data.copy_(value)


def _stylegan2(net: StyleGAN2Weights, content: Any, path: str) -> Generator:
    generator = read_stylegan2(content, path)
    if generator.size != net.size:
        raise V2FError(
            f"{path}: holds a generator of {generator.size} px, but system.frozen.generator.size is {net.size}; "
            "set it to the file's"
        )
    return generator


def _ir_se50(net: IRSE50Weights, content: Any, path: str) -> "FaceIdentity":
    from v2f.nn.frozen import FaceIdentity

    with torch.device("meta"):
        body = IRSE50()
    fill(body, files.tensors(content, path), path, "IR-SE50 (model_ir_se50.pth)")
    stages = ("body.2", "body.6", "body.20", "body.23")
    return FaceIdentity(body, size=112, crop=net.crop, channels=net.channels, taps=stages)


def _facenet(net: FaceNetWeights, content: Any, path: str) -> "FaceIdentity":
    from facenet_pytorch import InceptionResnetV1

    from v2f.nn.frozen import FaceIdentity

    state = files.tensors(content, path)
    classes = {"vggface2": 8631, "casia-webface": 10575}[net.trained_on]
    with torch.device("meta"):  # with the classifier: the file has it, though the embedding does not need it
        body = InceptionResnetV1(classify=True, num_classes=classes)
    fill(body, state, path, f"InceptionResnetV1 on {net.trained_on}")
    body.classify = False
    del body.logits
    stages = ("conv2d_4b", "repeat_1", "repeat_2", "repeat_3")
    return FaceIdentity(body, size=160, crop=net.crop, channels="rgb", scale=127.5 / 128, taps=stages)


def _dlib(net: DlibWeights, content: Any, path: str) -> "FaceIdentity":
    from v2f.nn.frozen import FaceIdentity

    body = fill(DlibFace(), files.tensors(content, path), path, "dlib's face recognition net")
    stages = ("blocks.2", "blocks.6", "blocks.9", "blocks.12")
    return FaceIdentity(body, size=DLIB_SIDE, crop=net.crop, channels="rgb", taps=stages, box=CHIP)


def _lpips(net: LPIPSWeights, content: Any, path: str) -> "LPIPS":
    from v2f.nn.frozen import LPIPS

    lpips = LPIPS(net.backbone)
    lpips.load_backbone(files.tensors(content, path), path)
    return lpips


def _ecapa(net: ECAPAWeights, content: Any, path: str) -> ECAPA:
    with torch.device("meta"):
        ecapa = ECAPA(net)
    return fill(ecapa, files.tensors(content, path), path, "SpeechBrain's ECAPA-TDNN (embedding_model.ckpt)")


def _psp(net: UserWeights, content: Any, path: str) -> PSP:
    state = files.tensors(files.part(content, "state_dict", path), path)
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in state.items():
        owner, _, rest = name.partition(".")
        if owner not in parts or not rest:
            raise V2FError(f"{path}: these are not the weights of pSp: unknown tensor {name!r}")
        parts[owner][rest] = tensor
    _check_options(content.get("opts"), path)
    decoder = Generator.fitting(parts["decoder"], path, "decoder.")
    with torch.device("meta"):
        body = GradualStyleEncoder(decoder.n_latent)
    fill(body, parts["encoder"], path, f"pSp's encoder of {decoder.n_latent} styles", "encoder.")
    psp = PSP(body, decoder, torch.zeros(decoder.n_latent, decoder.style_dim))
    _copy_mean_style(psp.latent_avg, files.part(content, "latent_avg", path), path)
    decoder.latent_avg.copy_(psp.latent_avg.mean(dim=0))  # pSp repeats the one mean style for every layer
    return psp


def _check_options(options: Any, path: str) -> None:
    """V2FError if a pSp file says that it was trained with other options than the net here has."""
    values = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(values, Mapping):
        return
    expected = {"encoder_type": "GradualStyleEncoder", "start_from_latent_avg": True, "learn_in_w": False}
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise V2FError(
                f"{path}: this pSp was trained with {name}={values[name]!r}, v2f supports {value!r} only; use another"
            )


def _ge2e(net: GE2EWeights, content: Any, path: str) -> GE2E:
    ignored = {"similarity_weight", "similarity_bias"}  # scale and offset of the training loss, GE2E's eq. 5
    state = files.tensors(files.part(content, "model_state", path), path)
    unknown = sorted(map(str, content.keys() - {"model_state", "optimizer_state", "step"}))
    if unknown:
        raise V2FError(f"{path}: these are not the weights of GE2E: unknown part {unknown[0]!r}")
    loaded = GE2E()
    own = loaded.state_dict()
    theirs = {name: re.sub(r"^layers\.(\d)\.(\w+)_l0$", r"lstm.\2_l\1", name) for name in own}
    found = {name: tensor for name, tensor in state.items() if name not in ignored}
    check({theirs[name]: own[name] for name in own}, found, path, "GE2E (resemblyzer's pretrained.pt)", "model_state.")
    loaded.load_state_dict({name: state[theirs[name]] for name in own})
    return loaded


def _wen(net: WenWeights, content: Any, path: str) -> VoiceEmbedding:
    with torch.device("meta"):
        embedding = VoiceEmbedding(net)
    return fill(embedding, files.tensors(content, path), path, "Wen's speaker embedding (voice_embedding.pth)")


def _wen_generator(net: WenGeneratorWeights, content: Any, path: str) -> FaceGenerator:
    with torch.device("meta"):
        generator = FaceGenerator(VoiceEmbedding.Config().embedding)
    return fill(generator, files.tensors(content, path), path, "Wen's generator (generator.pth)")


def _resnet50(net: ResNet50Weights, content: Any, path: str) -> nn.Module:
    return picture_resnet.published(files.tensors(content, path), path)


_READERS: dict[type[UserWeights], Callable[[Any, Any, str], nn.Module]] = {
    StyleGAN2Weights: _stylegan2,
    PSPDecoderWeights: _psp,
    PSPEncoderWeights: _psp,
    IRSE50Weights: _ir_se50,
    FaceNetWeights: _facenet,
    DlibWeights: _dlib,
    LPIPSWeights: _lpips,
    ECAPAWeights: _ecapa,
    UniSpeechSATWeights: read_speech,
    WavLMWeights: read_speech,
    GE2EWeights: _ge2e,
    WenWeights: _wen,
    ResNet50Weights: _resnet50,
    WenGeneratorWeights: _wen_generator,
}
