"""Real recordings through the real pipeline. What they look like is not judged here; that nothing is lost is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.transforms import Photo, Waveform
from v2f.prepare.align import find_faces
from v2f.prepare.pack import PackConfig, pack
from v2f.prepare.verify import verify

EVERY = 6  # of 240 pairs, so that the test stays short


def test_real_pairs_are_aligned_and_packed(
    real_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people, train and held-out clips; a photo without a face and a clip without sound are put among them."""
    rows = [
        f"{photo.with_suffix('.wav')},{photo},{photo.parent.name},{split}"
        for folder, split in (("train", "train"), ("test", "seen"))
        for photo in sorted((real_pairs / folder).glob("*/*.png"))[::EVERY]
    ]
    kept = {split: sum(row.endswith(split) for row in rows) for split in ("train", "seen")}
    audio, image, person, _ = rows[0].split(",")
    Image.new("RGB", (220, 220), "gray").save(tmp_path / "wall.png")
    (tmp_path / "broken.wav").write_bytes(Path(audio).read_bytes()[:30])
    rows += [f"{audio},wall.png,{person},train", f"broken.wav,{image},{person},train"]
    (tmp_path / "pairs.csv").write_text("\n".join(["audio,image,identity,split", *rows]))
    pairs = {"csv": str(tmp_path / "pairs.csv"), "align": "mtcnn", "size": 128}
    recipe = {"out": str(tmp_path / "out"), "source": "pairs", "pairs": pairs, "workers": 1}
    dataset = pack(build(PackConfig, recipe, "the test"))

    said = capsys.readouterr().out
    assert {name: size.samples for name, size in dataset.manifest.splits.items()} == kept
    assert dataset.manifest.identities == ["speaker_a", "speaker_b"]
    assert f"yield: {sum(kept.values())} of {sum(kept.values()) + 2} samples" in said
    assert f"({audio}, wall.png): no face was found (photo of 220 x 220 pixels)" in said
    assert f"(broken.wav, {image}): audio is cut" in said
    assert verify(dataset.root) == []

    (batch,) = read_split(dataset.split("seen"), {"wav": Waveform(2.0), "photo": Photo(128)}, 64)
    wav_BT = batch["wav"].numpy()
    assert np.array_equal(wav_BT[:, :16000], wav_BT[:, 16000:])  # clips of one second, repeated
    assert wav_BT.std(axis=1).min() > 1e-3
    for photo_CHW in batch["photo"].numpy()[:8]:
        faces = find_faces(Image.fromarray(photo_CHW.transpose(1, 2, 0)), 0.5)
        left, right = faces[0].landmarks[:2] / 128
        assert abs(left[1] - right[1]) < 0.06  # the eyes are level, and where FFHQ has them
        assert abs((left[1] + right[1]) / 2 - 0.47) < 0.06
        assert abs((left[0] + right[0]) / 2 - 0.5) < 0.08
