"""The split of the thesis's encoder is the only one with its count: bench/encoder_split.py looks through all."""

from itertools import pairwise

import pytest
import torch

from bench import encoder_split
from bench.encoder_split import BODY, FIRST_READING, WIDTHS, block, body, splits
from v2f.nn.resnet import Block
from v2f.nn.waveform import WaveformEncoder


@pytest.mark.parametrize("kernel", [7, 9])
def test_a_block_counts_as_it_is_built(kernel):
    config = WaveformEncoder.Config(kernel=kernel)
    for inputs, outputs in [*pairwise(WIDTHS), (64, 64), (512, 512)]:
        with torch.device("meta"):
            built = Block(inputs, outputs, 2, config)
        assert block(inputs, outputs, kernel, kernel, True) == sum(p.numel() for p in built.parameters())
    assert block(64, 128, 3, 5, True) - block(64, 128, 3, 5, False) == 127
    assert block(64, 128, 3, 5, True) - block(64, 128, 1, 1, True) == 2 * 64 * 128 + 4 * 128 * 128


def test_the_script_finds_the_defaults_and_nothing_else(capsys):
    assert encoder_split.main() == 0
    found, first = capsys.readouterr().out.splitlines()
    config = WaveformEncoder.Config()
    assert found.startswith(f"blocks {tuple(config.blocks)}, k1 {config.kernel}, k2 {config.kernel}, PReLU per channel")
    assert found.endswith("body 37,511,616 (+0), encoder 37,711,040, whole 101,138,892 (+0)")
    assert first.endswith("body 37,312,256 (-199,360), encoder 37,511,616, whole 100,939,468 (-199,424)")


def test_every_split_is_found_by_its_count():
    for split in (FIRST_READING, ((1, 1, 1, 29), 1, 25, False), ((29, 1, 1, 1), 25, 1, True)):
        found = list(splits(body(split)))
        assert split in found
        assert {body(each) for each in found} == {body(split)}


@pytest.mark.parametrize("wanted", [BODY + 1, body(((8, 9, 7, 8), 7, 7, True))])
def test_the_script_fails_unless_the_split_gives_both_counts(monkeypatch, capsys, wanted):
    monkeypatch.setattr(encoder_split, "splits", lambda: splits(wanted))
    assert encoder_split.main() == 1
    assert "not one that gives the text's count" in capsys.readouterr().err
