"""The embeddings that dlib computes of portraits of ours: to compare v2f's net with dlib's.

    pip install dlib-bin==20.0.1.post1; pip install --no-deps face_recognition_models==0.3.0
    python bench/dlib_vectors.py tests/nn/dlib_face.npz

Once with the weights that the package publishes, and once with random ones, which a test can write without the package.
The portraits are drawn anew wherever they are needed: the file has no picture in it. The script prints how far v2f's
embeddings are from them, and how far the box that v2f cuts out is from the one that dlib finds for its mean face.

Letters: N portraits, H/W pixels, E width of an embedding.
"""

import argparse
import datetime
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.dlib_file import NAME, random_file
from v2f.nn.dlib_face import CHIP, SIDE
from v2f.weights import DlibWeights, read
from v2f.weights.catalogue import CATALOGUE
from v2f.world.people import World
from v2f.world.portraits import render_portraits

PEOPLE = 4
LARGE = 100  # times 256 px: dlib's landmarks are whole pixels
BETWEEN_EYES, FFHQ = 0.52927, (0.49013, 0.27241)  # see v2f.nn.dlib_face.CHIP
CORNERS = ((0.85957, 0.21350), (0.64606, 0.22897), (0.12058, 0.21373), (0.33409, 0.22906), (0.49011, 0.62780))
"""dlib's mean face of five landmarks: outer and inner corner of both eyes, and the base of the nose."""


def portraits() -> npt.NDArray[np.uint8]:
    """Two portraits of each person: uint8 [N,H,W,3]."""
    world, ids = World(), np.repeat(np.arange(PEOPLE), 2)
    photo_NP = world.photo(ids, np.tile([0, 1], PEOPLE))
    return render_portraits(world.face(ids), photo_NP, SIDE)


def pictures() -> Tensor:
    """:func:`portraits` as nets take them: [N,3,H,W] in [-1,1]."""
    return torch.from_numpy(portraits()).permute(0, 3, 1, 2).float() / 127.5 - 1


def chip_of_dlib() -> list[float]:
    """What dlib cuts out of an FFHQ-aligned picture of its mean face, in pixels of 256, as ``CHIP``."""
    import dlib

    scale = 256 * LARGE
    places = [[(p - c) / (4 * BETWEEN_EYES) + 0.5 for p, c in zip(at, FFHQ, strict=True)] for at in CORNERS]
    points = [dlib.point(round(x * scale), round(y * scale)) for x, y in places]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, scale, scale), points)
    box = dlib.get_face_chip_details(face, size=SIDE, padding=0.25).rect
    return [edge / LARGE for edge in (box.top(), box.bottom(), box.left(), box.right())]


def embeddings(path: str) -> npt.NDArray[np.float32]:
    """dlib's own, with the weights in the file ``path``: [N,E]."""
    import dlib

    net: Any = dlib.face_recognition_model_v1(path)
    return np.stack([np.asarray(net.compute_face_descriptor(chip), np.float32) for chip in portraits()])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    out = parser.parse_args().out
    published = CATALOGUE["dlib-face"].installed()
    assert published is not None, "the package is not installed"
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / NAME
        own.write_bytes(random_file())
        for name, path in (("random", str(own)), ("published", published)):
            arrays[f"{name} NE"] = theirs_NE = embeddings(path)
            with torch.no_grad():
                ours_NE = read(DlibWeights(net="dlib"), path)[0].net(pictures()).numpy()
            far, long = np.abs(ours_NE - theirs_NE).max(), np.linalg.norm(theirs_NE, axis=1)
            apart = np.linalg.norm(theirs_NE[:, None] - theirs_NE, axis=2)
            same, other = apart[::2, 1::2].diagonal().mean(), apart[::2, ::2][np.triu_indices(PEOPLE, 1)].mean()
            print(f"{name}: v2f's differ by up to {far:.1e}; length {long.min():.2f} to {long.max():.2f}")
            print(f"{name}: distance of two photos of a person {same:.2f}, of two people {other:.2f}, means")
    print(f"dlib's chip of its mean face {chip_of_dlib()}, v2f's {CHIP}, in pixels of 256")
    versions = [f"{name} {version(name)}" for name in ("dlib-bin", "face_recognition_models", "torch", "numpy")]
    about = f"{datetime.date.today()}, Python {platform.python_version()}, {', '.join(versions)}"
    np.savez_compressed(out, about=np.array(about), **arrays)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB; {about}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
