"""Drawings of coded sounds: what is restored beside its original, and classes that the codes tell apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sounders
import torch
from sounders import _Untrained
from toys.data import make_data
from toys.toy import FRAMES, LABELS, RATE, SECONDS

from v2f.data.manifest import open_dataset
from v2f.roles import SoundCoder
from v2f.system import Sound, SystemConfig, Tokens
from v2f.web import sounds
from v2f.web.page import environment
from v2f.web.sounds import Coded, plane

CODES = 16


class Rounded(_Untrained, SoundCoder):
    """Each sample of a sound, rounded to one of 16 values, is a code."""

    @property
    def sound(self) -> Sound:
        return Sound(RATE, SECONDS)

    @property
    def levels(self) -> dict[str, Tokens]:
        return {"bottom": Tokens(FRAMES, CODES)}

    def encode(self, wav_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bottom": ((wav_BT + 1) / 2 * (CODES - 1)).round().long()}

    def decode(self, codes: Any) -> torch.Tensor:
        return (codes["bottom"] / (CODES - 1) * 2 - 1)[:, None].float()

    def asks(self) -> dict[str, Any]:
        return {"wav": self.sound}

    def makes(self) -> dict[str, Any]:
        return {"sound": self.sound}

    def sample(self, batch: Any) -> Any:
        raise AssertionError("nobody samples")


def fake(codes_NJ: np.ndarray, class_N: np.ndarray) -> Coded:
    wav_NT = np.zeros((len(class_N), 8), np.float32)
    return Coded([str(n) for n in range(len(class_N))], wav_NT, wav_NT, {"top": codes_NJ}, class_N, ("a", "b"), RATE)


def test_held_out_sounds_are_shown_beside_what_their_codes_restore(tmp_path: Path) -> None:
    make_data(str(tmp_path / "shards"))
    split = open_dataset(str(tmp_path / "shards")).split("valid")
    found = sounds.coded(Rounded(SystemConfig(name="rounded")), split, "label", LABELS)
    assert found.names == LABELS
    assert found.wav_NT.shape == found.restored_NT.shape == (len(found.key), FRAMES)
    assert np.abs(found.restored_NT - found.wav_NT).max() <= 1 / (CODES - 1) + 1e-6
    assert found.codes["bottom"].shape == (len(found.key), FRAMES)
    rows = sounds.restored(found, 1)
    assert [row.label for row in rows] == [LABELS[number] for number in sorted(set(found.class_N.tolist()))]
    page = (
        environment()
        .from_string(
            '{% from "sounds.html.j2" import restored_sounds, code_planes %}'
            "{{ restored_sounds(rows, 640, 60) }}{{ code_planes(planes, 300) }}"
        )
        .render(rows=rows, planes=sounds.planes(found, {"bottom": CODES}))
    )
    assert page.count("<audio controls") == 2 * len(rows)
    assert page.count('class="spectrogram"') == 2 * len(rows)
    assert page.count("<circle ") == len(found.key)


def test_codes_that_tell_classes_apart_lie_apart_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    class_N = np.arange(60) % 2
    apart = plane("top", rng.integers(0, 8, (60, 40)) + 8 * class_N[:, None], CODES, fake(np.empty(0), class_N))
    assert apart.alike == 1
    assert apart.chance == pytest.approx(29 / 59)
    left, right = ([x for x, _, number in apart.points if number == which] for which in (0, 1))
    assert max(left) < min(right) or max(right) < min(left)
    assert all(0 <= x <= sounds.SIDE and 0 <= y <= sounds.SIDE for x, y, _ in apart.points)
    mixed = plane("top", rng.integers(0, CODES, (60, 40)), CODES, fake(np.empty(0), class_N))
    assert mixed.alike == pytest.approx(0.5, abs=0.12)
    assert mixed.explained < apart.explained


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_equal_sounds_are_drawn_too(count: int) -> None:
    class_N = np.zeros(count, np.int64)
    drawn = plane("top", np.zeros((count, 4), np.int64), 4, fake(np.empty(0), class_N))
    assert len(drawn.points) == count
    assert drawn.explained == 0


def test_a_clip_is_played_at_a_rate_that_browsers_play() -> None:
    shown = sounds.clip("a tone", np.sin(np.arange(4000)).astype(np.float32), sounders.RATE)
    assert shown.sound.startswith("data:audio/flac;base64,")
    assert shown.drawn.seconds[-1][1] == "1"
