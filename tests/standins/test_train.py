"""The training scripts, on a few portraits for a moment each: they run, learn and write what can be loaded."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from v2f import standins
from v2f.errors import V2FError
from v2f.standins import KINDS, factor_latent
from v2f.standins.measures import explained, picture_loss, psnr
from v2f.standins.portraits import HELD_OUT, Portraits, batches, render
from v2f.standins.train import LANES, main
from v2f.standins.trainings import TRAIN
from v2f.world import world_hash


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("weights")
    data, held_out = render(0, 100, 2), render(HELD_OUT, 8, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in (kind for lane in LANES for kind in lane):  # a lane's later ones build on its earlier ones
        torch.manual_seed(0)
        TRAIN[kind](data, held_out, 0.015, out)
    yield out
    torch.set_num_threads(threads)


def test_each_training_writes_a_stand_in(weights: Path) -> None:
    for kind in KINDS:
        about = standins.info(kind, weights)
        assert about.world_hash == world_hash()
        assert about.quality["steps"] >= 1
        assert standins.load(kind, weights)
        with safe_open(weights / f"{kind}.safetensors", framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
            assert json.loads(file.metadata()["config"]) == about.config


def test_portraits_are_a_function_of_person_and_photo() -> None:
    whole, part = render(10, 4, 3), render(12, 2, 3)
    assert whole.pictures.shape == (12, 64, 64, 3)
    np.testing.assert_array_equal(whole.pictures[6:], part.pictures)
    np.testing.assert_array_equal(whole.face[6:], part.face)
    np.testing.assert_array_equal(whole.face[0], whole.face[2])  # the same person
    assert not np.array_equal(whole.photo[0], whole.photo[2])  # another photo
    images = whole.images(slice(0, 2))
    assert images.shape == (2, 3, 64, 64)
    assert images.abs().max() <= 1
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_saved_portraits_come_back(tmp_path: Path) -> None:
    data = render(0, 2, 2)
    data.save(tmp_path)
    again = Portraits.load(tmp_path, 2)
    np.testing.assert_array_equal(again.pictures, data.pictures)
    np.testing.assert_array_equal(again.photo, data.photo)


def test_latents_keep_factors_apart_and_their_length() -> None:
    face, photo = np.ones((1, 16), np.float32), np.full((1, 17), 2, np.float32)
    z = factor_latent(face, photo, 64)
    assert z.shape == (1, 64)
    assert z[0, :33].tolist() == [1.0] * 16 + [2.0] * 17
    assert not z[0, 34:].any()
    twice = factor_latent(2 * face, 2 * photo, 64)
    length = [x / x.norm() for x in (z, twice)]
    assert (length[0] - length[1]).abs().max() > 0.01


def test_batches_cover_an_epoch_and_repeat_by_key() -> None:
    first, again, other = batches(20, 5, key=1), batches(20, 5, key=1), batches(20, 5, key=2)
    epoch = np.concatenate([next(first) for _ in range(4)])
    assert sorted(epoch) == list(range(20))
    np.testing.assert_array_equal(epoch[:5], next(again))
    assert not np.array_equal(epoch[:5], next(other))
    with pytest.raises(V2FError, match="3 portraits are fewer than a batch of 5"):
        next(batches(3, 5, key=1))


def test_measures_by_hand() -> None:
    flat = torch.zeros(1, 3, 4, 4)
    assert psnr(flat + 0.2, flat) == pytest.approx(20.0, abs=1e-4)
    assert psnr(flat + 5, flat + 0.8) == pytest.approx(20.0, abs=1e-4)  # what a screen would show of it
    edge = torch.zeros(1, 1, 2, 2)
    edge[..., 1] = 1.0  # error 1 in half of the pixels, one step of 1 in each row, none down
    assert picture_loss(edge, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(4 * 0.5 + 0.5 + 1 + 0)
    truth = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    assert explained(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), truth).tolist() == [1.0, 0.0]


def test_arguments_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["face"]) == 1
    assert "no stand-in is named 'face'" in capsys.readouterr().err
    assert main(["identity", "--people", "5"]) == 1
    assert "use at least 96" in capsys.readouterr().err
