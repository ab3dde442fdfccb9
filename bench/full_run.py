"""What the full run of docs/full-run.md takes: people, pairs, bytes and hours, as its tables.

    python bench/full_run.py        # seconds; prints Markdown

Counts of the corpora are their authors'. FLOPs are counted here, on tensors without values. Everything else is derived
from the constants below, each with its source: no GPU was measured.
"""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from v2f.nn.irse import IRSE50
from v2f.nn.mapping import StyleMapping
from v2f.nn.psp import GradualStyleEncoder
from v2f.nn.stylegan2 import Generator
from v2f.nn.waveform import WaveformEncoder

# Corpus: people (AVSpeech: videos), clips, hours of sound. VoxCeleb: Nagrani et al. 2020 (Computer Speech & Language
# 60), tables 1 and 2. AVSpeech: Ephrat et al. 2018 (arXiv 1804.03619), section 4, and the lines of its two CSV files.
CORPORA = {
    "VoxCeleb1": (1_251, 153_516, 352),
    "VoxCeleb2": (6_112, 1_128_246, 2_442),
    "AVSpeech": (290_000, 2_805_118, 4_700),
}
FLAC = 59.3e9 / (
    960.9 * 3600
)  # bytes a second of read speech, 16 kHz, 16 bits: LibriSpeech's train parts, as published
KEPT = 0.85  # of a clip's sound, after the voice activity detector: assumed
PHOTO = 40e3  # bytes of a face of 256 px as JPEG at quality 95: assumed
CODES, EMBEDDING = 18 * 512 * 2, 512 * 2  # bytes, float16
SAMPLES = 43_750 * 128  # of launch/recipes/thesis-full.yaml
# Dense bf16 and TF32 products of an A100, fp32 of a T4: NVIDIA's data sheets. 0.3 of a peak is assumed; 9.6 samples a
# second are the thesis's own, with its smaller first encoder, on one A100 in fp32: 520,000 clips in 15 hours.
A100_BF16, T4_FP32, SHARE, THESIS = 312e12, 8.1e12, 0.3, 9.6


def flops(net: nn.Module, *inputs: Tensor) -> float:
    """FLOPs of a forward pass; a multiply-add counts as 2."""
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops())


def of_the_nets() -> dict[str, float]:
    """FLOPs of a forward pass of each large net of the run, for one sample of 6 s."""
    with FakeTensorMode():
        encoder, mapping = (
            WaveformEncoder(WaveformEncoder.Config()),
            StyleMapping(StyleMapping.Config(), [512] * 3, 18, 512),
        )
        generator = Generator(1024)
        wav_BT, styles_BLD = torch.empty(1, 96_000), torch.empty(1, 18, 512)
        generator.forward = generator.synthesis  # type: ignore[method-assign]
        return {
            "encoder": flops(encoder.eval(), wav_BT),
            "mapping": flops(mapping.eval(), encoder(wav_BT)),
            "generator": flops(generator.eval(), styles_BLD),
            "identity net": flops(IRSE50().eval(), torch.empty(1, 3, 112, 112)),
            "pSp's encoder": flops(GradualStyleEncoder(18).eval(), torch.empty(1, 3, 256, 256)),
        }


def step_flops(nets: dict[str, float]) -> float:
    """FLOPs of a training step for one sample. A backward pass costs one forward pass for the gradient of the inputs,
    and another for that of the weights; frozen nets have none of the latter."""
    return 3 * (nets["encoder"] + nets["mapping"]) + 2 * (nets["generator"] + nets["identity net"])


def main() -> None:
    print("| corpus | people | clips | hours | sound | faces | codes and embeddings | packed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (people, clips, hours) in CORPORA.items():
        sound, faces, arrays = hours * 3600 * KEPT * FLAC, clips * PHOTO, clips * (CODES + EMBEDDING)
        whole = sound + faces + arrays
        sizes = " | ".join(f"{part / 1e9:.0f} GB" for part in (sound, faces, arrays, whole))
        print(f"| {name} | {people:,} | {clips:,} | {hours:,} | {sizes} |")
    nets = of_the_nets()
    step = step_flops(nets)
    print()
    print(", ".join(f"{name} {each / 1e9:.0f}" for name, each in nets.items()), "GFLOP forward")
    print(f"a training step: {step / 1e12:.2f} TFLOP a sample")
    clips = sum(clips for _, clips, _ in CORPORA.values())
    face = nets["pSp's encoder"] + nets["generator"]
    print(f"frontalization: {face / 1e9:.0f} GFLOP a face")
    for device, peak in (("T4, fp32", T4_FP32), ("A100, bf16", A100_BF16)):
        rate = SHARE * peak / face
        print(
            f"- {device} at {SHARE:.0%} of its peak: {rate:.0f} faces/s, {clips / rate / 3600:.0f} hours for {clips:,}"
        )
    for gpus in (8, 64):
        fast, slow = SHARE * A100_BF16 / step, THESIS
        hours = [SAMPLES / (gpus * rate) / 3600 for rate in (fast, slow)]
        print(
            f"- training, {gpus} x A100: {hours[0]:.1f} h at {SHARE:.0%} of bf16's peak ({fast:.0f} samples/s each), "
            f"{hours[1]:.0f} h at the thesis's {slow} samples/s each"
        )


if __name__ == "__main__":
    main()
