"""The sizes of the network of sounds: bench/vq_audio_split.py counts as the network is built."""

import pytest
import torch

from bench.vq_audio_split import OURS, WHOLE, count, main
from v2f.nn.vq_audio import VQVAE2, LevelConfig, NetConfig


@pytest.mark.parametrize(("width", "kernel"), [(48, 2), (20, 5)])
def test_a_network_counts_as_it_is_built(width, kernel):
    levels = {"bottom": LevelConfig(channels=[width] * 3), "top": LevelConfig(channels=[width] * 2)}
    with torch.device("meta"):
        built = VQVAE2(NetConfig(kernel=kernel, **levels), 1)
    assert count(OURS._replace(width=width, kernel=kernel)) == sum(p.numel() for p in built.parameters())


def test_the_script_finds_the_defaults(capsys):
    assert count(OURS) == WHOLE
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert [line for line in lines if line.endswith("580,641 (v2f)")]
