"""A long sound from pieces: nothing is lost, the joints neither click nor dip."""

import numpy as np
import pytest

from v2f.data.pieces import count_of, joined, overlap_of

RATE, PIECE = 4000, 1600


def noise(pieces: int, piece: int = PIECE) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((pieces, piece)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 100, PIECE, PIECE + 1, 2799, 2800, 2801, 24000])
def test_as_many_pieces_as_the_length_needs(length: int) -> None:
    count, overlap = count_of(length, PIECE, RATE), overlap_of(PIECE, RATE)
    assert overlap == 400
    reach = [number * (PIECE - overlap) + overlap for number in (count - 1, count)]
    assert reach[1] >= length
    assert count == 1 or reach[0] < length
    assert joined(noise(count), length, RATE).shape == (length,)


def test_a_whole_piece_is_left_as_it_is_and_a_cut_one_ends_softly() -> None:
    (piece_T,) = noise(1)
    assert np.array_equal(joined(piece_T[None], PIECE, RATE), piece_T)
    cut_T = joined(piece_T[None], 1000, RATE)
    assert np.array_equal(cut_T[:900], piece_T[:900])
    assert cut_T[-1] == 0


def test_the_joints_of_unrelated_pieces_have_their_power() -> None:
    count = count_of(200_000, PIECE, RATE)
    sound_T = joined(noise(count), 200_000, RATE)
    step, overlap = PIECE - overlap_of(PIECE, RATE), overlap_of(PIECE, RATE)
    inside = [sound_T[n * step + overlap : (n + 1) * step] for n in range(1, count - 2)]
    joints = [sound_T[n * step : n * step + overlap] for n in range(1, count - 2)]
    power = [float(np.concatenate(each).var()) for each in (inside, joints)]
    assert power[1] == pytest.approx(power[0], rel=0.04)
    jumps = np.abs(np.diff(joined(np.full((3, PIECE), 0.5, np.float32), 4000, RATE)[:3900]))
    assert jumps.max() < 0.01  # no step anywhere, though alike pieces are a little louder where they overlap


def test_a_sound_stays_within_full_scale() -> None:
    sound_T = joined(np.ones((3, PIECE), np.float32), 4000, RATE)
    assert sound_T.max() == 1
