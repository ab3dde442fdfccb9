"""Files of RANDOM weights in the layouts of the files that users bring, for measuring speed and memory, and for tests.

    python bench/random_weights.py DIR [NAME ...]

Nobody's weights are in them and nothing was trained: what comes out of such nets is noise. Names, shapes and number
formats are those of the authors' files, written down here from their description. A file is smaller than the real
one, because its tensors are views into a few shared pools of random numbers, which ``torch.save`` writes once; a net
that takes such tensors without a copy shares its memory likewise.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import facenet_pytorch
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
Shape = tuple[int, ...]
STEP = 16  # numbers between the beginnings of two tensors in a pool


class Weights:
    """A state_dict in the making: tensors of one deviation are views into one pool, drawn when all are known."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.plan: dict[str, tuple[Shape, tuple[float, float]]] = {}  # name: shape, (standard deviation, mean)
        self.fixed: State = {}

    def normal(self, name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        self.plan[name] = shape, (std, mean)

    def layer(self, name: str, *shape: int, bias: bool = False) -> None:
        """A convolution's or a linear layer's weight, and its bias; scaled by the number of inputs (He et al. 2015)."""
        self.normal(f"{name}.weight", *shape, std=math.sqrt(1 / math.prod(shape[1:])))
        if bias:
            self.normal(f"{name}.bias", shape[0], std=0.1)

    def batch_norm(self, name: str, channels: int) -> None:
        self.normal(f"{name}.weight", channels, std=0.1, mean=1.0)
        self.normal(f"{name}.bias", channels, std=0.1)
        self.normal(f"{name}.running_mean", channels, std=0.1)
        self.normal(f"{name}.running_var", channels, std=0.1, mean=1.0)
        self.constant(f"{name}.num_batches_tracked", torch.tensor(1))

    def equal_linear(self, name: str, inputs: int, outputs: int, bias: float = 0.0, lr_mul: float = 1.0) -> None:
        """StyleGAN's linear layer scales its weight when it is used, so here it has the same size everywhere."""
        self.normal(f"{name}.weight", outputs, inputs, std=1 / lr_mul)
        self.constant(f"{name}.bias", torch.full((outputs,), bias))

    def constant(self, name: str, value: Tensor) -> None:
        self.plan[name] = tuple(value.shape), (0.0, 0.0)
        self.fixed[name] = value

    def drawn(self) -> State:
        """The tensors, in the order in which they were asked for."""
        generator = torch.Generator().manual_seed(self.seed)
        offsets: dict[str, int] = {}
        sizes: dict[tuple[float, float], int] = {}
        for number, (name, (shape, kind)) in enumerate(self.plan.items()):
            offsets[name] = STEP * number  # so that no two layers are the same
            if name not in self.fixed:
                sizes[kind] = max(sizes.get(kind, 0), offsets[name] + _pooled(shape))
        pools = {}
        for (std, mean), size in sizes.items():
            pool = torch.randn(size, generator=generator).mul_(std).add_(mean)
            # running variances have to be positive, and a slope or gain of nearly zero would hide what is behind it
            pools[std, mean] = pool.clamp_(min=0.1) if mean else pool
        state = {}
        for name, (shape, kind) in self.plan.items():
            if name in self.fixed:
                state[name] = self.fixed[name]
            else:
                pool = pools[kind][offsets[name] :]
                state[name] = pool[: _pooled(shape)].view(-1, *shape[1:]).expand(shape)
        return state


def _pooled(shape: Shape) -> int:
    """Numbers of a tensor in the pool; the largest ones, classifiers that nobody runs, repeat one row."""
    return math.prod(shape) if math.prod(shape) < 1 << 24 else math.prod(shape[1:])


def ir_se50() -> State:
    """``model_ir_se50.pth``: a face identity net, 397 tensors, 43,797,696 parameters."""
    weights = Weights()
    _irse_body(weights, "")
    weights.batch_norm("output_layer.0", 512)
    weights.layer("output_layer.3", 512, 512 * 7 * 7, bias=True)
    weights.batch_norm("output_layer.4", 512)
    return weights.drawn()


def _irse_body(weights: Weights, prefix: str) -> None:
    weights.layer(f"{prefix}input_layer.0", 64, 3, 3, 3)
    weights.batch_norm(f"{prefix}input_layer.1", 64)
    weights.normal(f"{prefix}input_layer.2.weight", 64, std=0.05, mean=0.25)
    inputs = 64
    for unit, outputs in enumerate([64] * 3 + [128] * 4 + [256] * 14 + [512] * 3):
        at = f"{prefix}body.{unit}"
        if inputs != outputs:
            weights.layer(f"{at}.shortcut_layer.0", outputs, inputs, 1, 1)
            weights.batch_norm(f"{at}.shortcut_layer.1", outputs)
        weights.batch_norm(f"{at}.res_layer.0", inputs)
        weights.layer(f"{at}.res_layer.1", outputs, inputs, 3, 3)
        weights.normal(f"{at}.res_layer.2.weight", outputs, std=0.05, mean=0.25)
        weights.layer(f"{at}.res_layer.3", outputs, outputs, 3, 3)
        weights.batch_norm(f"{at}.res_layer.4", outputs)
        weights.layer(f"{at}.res_layer.5.fc1", outputs // 16, outputs, 1, 1)
        weights.layer(f"{at}.res_layer.5.fc2", outputs, outputs // 16, 1, 1)
        inputs = outputs


def psp(
    styles: int = 18, decoder_size: int = 1024, kind: Literal["ffhq_encode", "ffhq_frontalize"] = "ffhq_encode"
) -> dict[str, Any]:
    """``psp_ffhq_encode.pt``, ``psp_ffhq_frontalization.pt``: encoder (621 tensors at 18 styles), decoder and more."""
    weights = Weights()
    _irse_body(weights, "encoder.")
    for style in range(styles):
        halvings = 4 if style < 3 else 5 if style < 7 else 6
        for layer in range(halvings):
            weights.layer(f"encoder.styles.{style}.convs.{2 * layer}", 512, 512, 3, 3, bias=True)
        weights.equal_linear(f"encoder.styles.{style}.linear", 512, 512)
    weights.layer("encoder.latlayer1", 512, 256, 1, 1, bias=True)
    weights.layer("encoder.latlayer2", 512, 128, 1, 1, bias=True)
    _stylegan2(weights, "decoder.", decoder_size, channel_multiplier=2)
    state = weights.drawn()
    options = {
        "dataset_type": kind,
        "encoder_type": "GradualStyleEncoder",
        "input_nc": 3,
        "label_nc": 0,
        "learn_in_w": False,
        "start_from_latent_avg": True,
        "train_decoder": False,
        "device": "cuda:0",
    }
    return {"state_dict": state, "opts": options, "latent_avg": _mean_style().repeat(styles, 1)}


def stylegan2(size: int = 1024, channel_multiplier: int = 2) -> dict[str, Any]:
    """``stylegan2-ffhq-config-f.pt``: 171 tensors, 30,370,060 parameters at 1024 px and multiplier 2."""
    weights = Weights()
    _stylegan2(weights, "", size, channel_multiplier)
    return {"g_ema": weights.drawn(), "latent_avg": _mean_style()}


def _mean_style() -> Tensor:
    return torch.randn(512, generator=torch.Generator().manual_seed(1)) * 0.1


def _stylegan2(weights: Weights, prefix: str, size: int, channel_multiplier: int) -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 16

    def modulated(name: str, inputs: int, outputs: int, side: int, std: float = 1.0) -> None:
        weights.normal(f"{name}.weight", 1, outputs, inputs, side, side, std=std)
        weights.equal_linear(f"{name}.modulation", 512, inputs, bias=1.0)

    def styled(name: str, inputs: int, outputs: int, up: bool = False) -> None:
        if up:
            weights.constant(f"{prefix}{name}.conv.blur.kernel", kernel)
        modulated(f"{prefix}{name}.conv", inputs, outputs, 3)
        weights.constant(f"{prefix}{name}.noise.weight", torch.tensor([0.1]))
        weights.normal(f"{prefix}{name}.activate.bias", outputs, std=0.1)

    def to_rgb(name: str, inputs: int, up: bool = True) -> None:
        if up:
            weights.constant(f"{prefix}{name}.upsample.kernel", kernel)
        modulated(f"{prefix}{name}.conv", inputs, 3, 1, std=0.1)  # pictures of about [-1,1]
        weights.constant(f"{prefix}{name}.bias", torch.zeros(1, 3, 1, 1))

    def channels(side: int) -> int:
        return 512 if side <= 32 else 16384 * channel_multiplier // side

    sides = [2**i for i in range(3, size.bit_length())]
    for layer in range(1, 9):
        weights.equal_linear(f"{prefix}style.{layer}", 512, 512, lr_mul=0.01)
    weights.normal(f"{prefix}input.input", 1, 512, 4, 4, std=1.0)
    styled("conv1", 512, 512)
    to_rgb("to_rgb1", 512, up=False)
    for i, side in enumerate(sides):
        styled(f"convs.{2 * i}", channels(side // 2), channels(side), up=True)
        styled(f"convs.{2 * i + 1}", channels(side), channels(side))
    for i, side in enumerate(sides):
        to_rgb(f"to_rgbs.{i}", channels(side))
    weights.normal(f"{prefix}noises.noise_0", 1, 1, 4, 4, std=1.0)
    for i, side in enumerate(sides):
        for number in (2 * i + 1, 2 * i + 2):
            weights.normal(f"{prefix}noises.noise_{number}", 1, 1, side, side, std=1.0)


def facenet(classes: int = 8631) -> State:
    """``20180402-114759-vggface2.pt``: facenet-pytorch's InceptionResnetV1 with its classifier."""
    with torch.device("meta"):
        net = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=classes)
    return _like(net)


def alexnet() -> State:
    """``alexnet-owt-7be5be79.pth``: torchvision's."""
    return _like(_meta(torchvision.models.alexnet))


def vgg16() -> State:
    """``vgg16-397923af.pth``: torchvision's."""
    return _like(_meta(torchvision.models.vgg16))


def resnet50() -> State:
    """``resnet50-0676ba61.pth``: torchvision's."""
    return _like(_meta(torchvision.models.resnet50))


def squeezenet() -> State:
    """``squeezenet1_1-b8a52dc0.pth``: torchvision's."""
    return _like(_meta(torchvision.models.squeezenet1_1))


def ge2e() -> dict[str, Any]:
    """resemblyzer's ``pretrained.pt``: 1,423,616 parameters in 14 tensors, and what belongs to their training."""
    weights = Weights()
    for layer, inputs in enumerate((40, 256, 256)):
        for kind, width in (("ih", inputs), ("hh", 256)):
            weights.normal(f"lstm.weight_{kind}_l{layer}", 4 * 256, width, std=math.sqrt(1 / width))
            weights.normal(f"lstm.bias_{kind}_l{layer}", 4 * 256, std=0.1)
    weights.layer("linear", 256, 256, bias=True)
    scalars = {"similarity_weight": torch.tensor([10.0]), "similarity_bias": torch.tensor([-5.0])}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"step": 1, "model_state": scalars | weights.drawn(), "optimizer_state": optimizer}


def _meta(model: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return model()


def _like(net: nn.Module) -> State:
    """Random weights for a net of another package, of batch norms, convolutions and linear layers."""
    weights = Weights()
    for name, module in net.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            weights.batch_norm(name, module.num_features)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            weights.layer(name, *module.weight.shape, bias=module.bias is not None)
    return weights.drawn()


def ecapa() -> State:
    """``embedding_model.ckpt``: SpeechBrain's ECAPA-TDNN, 231 tensors, 20,767,552 parameters."""
    weights = Weights()

    def conv(name: str, inputs: int, outputs: int, taps: int = 1) -> None:
        weights.layer(f"{name}.conv", outputs, inputs, taps, bias=True)

    def tdnn(name: str, inputs: int, outputs: int, taps: int = 1) -> None:
        conv(f"{name}.conv", inputs, outputs, taps)
        weights.batch_norm(f"{name}.norm.norm", outputs)

    tdnn("blocks.0", 80, 1024, 5)
    for block in ("blocks.1", "blocks.2", "blocks.3"):
        tdnn(f"{block}.tdnn1", 1024, 1024)
        for part in range(7):
            tdnn(f"{block}.res2net_block.blocks.{part}", 128, 128, 3)
        tdnn(f"{block}.tdnn2", 1024, 1024)
        conv(f"{block}.se_block.conv1", 1024, 128)
        conv(f"{block}.se_block.conv2", 128, 1024)
    tdnn("mfa", 3072, 3072)
    tdnn("asp.tdnn", 9216, 128)
    conv("asp.conv", 128, 3072)
    weights.batch_norm("asp_bn.norm", 6144)
    conv("fc", 6144, 192)
    return weights.drawn()


def wen_embedding() -> State:
    """``voice_embedding.pth``: Wen's speaker embedding, 26 tensors, 2,670,720 parameters."""
    weights, inputs = Weights(), 64
    for layer, outputs in enumerate((256, 384, 576, 864)):
        weights.layer(f"model.{3 * layer}", outputs, inputs, 3)
        weights.batch_norm(f"model.{3 * layer + 1}", outputs)
        inputs = outputs
    weights.layer("model.12", 64, inputs, 3, bias=True)
    return weights.drawn()


def wen_generator() -> State:
    """``generator.pth``: Wen's generator, 12 tensors, 12,191,875 parameters."""
    weights, inputs = Weights(), 64
    for layer, (outputs, taps) in enumerate(((1024, 4), (512, 4), (256, 4), (128, 4), (64, 4), (3, 1))):
        name = f"model.{2 * layer}"
        weights.normal(f"{name}.weight", inputs, outputs, taps, taps, std=math.sqrt(1 / (inputs * taps)))
        weights.normal(f"{name}.bias", outputs, std=0.1)
        inputs = outputs
    return weights.drawn()


FILES: dict[str, Callable[[], Any]] = {
    "model_ir_se50.pth": ir_se50,
    "psp_ffhq_encode.pt": psp,
    "psp_ffhq_frontalization.pt": lambda: psp(kind="ffhq_frontalize"),
    "stylegan2-ffhq-config-f.pt": stylegan2,
    "20180402-114759-vggface2.pt": facenet,
    "alexnet-owt-7be5be79.pth": alexnet,
    "vgg16-397923af.pth": vgg16,
    "squeezenet1_1-b8a52dc0.pth": squeezenet,
    "resnet50-0676ba61.pth": resnet50,
    "embedding_model.ckpt": ecapa,
    "pretrained.pt": ge2e,
    "voice_embedding.pth": wen_embedding,
    "generator.pth": wen_generator,
}


def converted(content: dict[str, Any]) -> State:
    """A generator as ``v2f weights convert`` writes it: one flat state_dict, each tensor with memory of its own."""
    state = {**content["g_ema"], "latent_avg": content["latent_avg"]}
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


LARGE: dict[str, Callable[[], State]] = {  # safetensors shares no memory between tensors: 100 MB
    "stylegan2-ffhq-256x256.safetensors": lambda: converted(stylegan2(256, 1)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of {', '.join([*FILES, *LARGE])} unless named")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FILES and name not in LARGE]
    if unknown:
        parser.error(f"no layout is called {unknown[0]!r}; there are {', '.join([*FILES, *LARGE])}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or [*FILES, *LARGE]:
        path = args.folder / name
        if name in LARGE:
            save_file(LARGE[name](), path)
        else:
            torch.save(FILES[name](), path)
        print(f"{path}: RANDOM weights, {path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
