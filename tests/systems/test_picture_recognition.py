"""Picture recognition: its loss by hand, the ResNet-50 that it may take, and what its protocol says of a run."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from v2f.cli import main
from v2f.config import build
from v2f.data.loader import read_split
from v2f.data.manifest import open_dataset
from v2f.errors import V2FError
from v2f.evaluation.evaluate import evaluate
from v2f.evaluation.readings import correlations
from v2f.nn import picture_resnet, statistics
from v2f.nn.picture_resnet import ResNet50
from v2f.roles import FrameLabeler
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import Run, build_system
from v2f.system import Batch, to_picture
from v2f.systems.picture_recognition import PictureRecognition
from v2f.training.trainer import fit

Values = Callable[..., dict[str, Any]]


def made(run_values: Values, **changes: Any) -> PictureRecognition:
    values = run_values("picture_recognition")
    system = build_system(build(RunConfig, values | {"system": values["system"] | changes}, "test"))
    assert isinstance(system, PictureRecognition)
    return system.eval()


def batch_of(system: PictureRecognition, root: str) -> Batch:
    return next(iter(read_split(open_dataset(root).split("valid"), system.transforms(), 6)))


def test_the_loss_is_the_cross_entropies_and_the_squared_error(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values)
    batch = batch_of(system, tiny_shards)
    found = system.loss("supervised", batch, 0)
    features = system.backbone(to_picture(batch["image"]))
    glasses, hair, factors = (head(features) for head in system.heads)
    torch.testing.assert_close(found["glasses"], F.cross_entropy(glasses, batch["label_glasses"]))
    torch.testing.assert_close(found["hair"], F.cross_entropy(hair, batch["label_hair"]))
    torch.testing.assert_close(found["factors"], F.mse_loss(factors, batch["factors"]))
    torch.testing.assert_close(found["total"], found["glasses"] + found["hair"] + 0.5 * found["factors"])
    right = [(s.argmax(1) == batch[f"label_{n}"]).float().mean() for s, n in ((glasses, "glasses"), (hair, "hair"))]
    torch.testing.assert_close(found["accuracy"], torch.stack(right).mean())


def test_without_factors_none_are_estimated(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values, factors=None)
    batch = batch_of(system, tiny_shards)
    assert "factors" not in batch
    assert system.read(to_picture(batch["image"])).factors.shape == (6, 0)
    assert system.meters([batch]).keys() == {"accuracy", "accuracy_glasses", "accuracy_hair"}


def test_meters_and_the_verdict_are_of_what_was_read(run_values: Values, tiny_shards: str) -> None:
    system = made(run_values)
    batch = batch_of(system, tiny_shards)
    meters = system.meters([batch])
    assert meters["accuracy"] == pytest.approx((meters["accuracy_glasses"] + meters["accuracy_hair"]) / 2)
    factors = system.read(to_picture(batch["image"])).factors.detach().double()
    true = batch["factors"].double()
    rest = ((factors - true) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()
    assert meters["factors_explained"] == pytest.approx(1 - rest.item())
    history = {"loss/supervised/accuracy": [0.42] * 10}
    assert system.verdict(meters, history).startswith("NOT LEARNING: the labels are right in 42 %")  # type: ignore[union-attr]
    assert system.verdict(meters, {"loss/supervised/accuracy": [0.42] * 9}) is None
    assert system.verdict(meters, {"loss/supervised/accuracy": [0.42] * 9 + [0.9]}) is None


def test_the_resnet50_is_torchvisions() -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs, ours = resnet50(num_classes=2).eval(), picture_resnet.build(ResNet50(net="resnet50"), 3, 2).eval()
    assert sum(p.numel() for p in ours.parameters()) + 2 * 2048 + 2 == 23_512_130
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing, unexpected = ours.body.load_state_dict(state, strict=False)
    assert missing == []
    assert unexpected == ["fc.weight", "fc.bias"]
    img = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.fc(ours(img)), theirs(img))
    gray = picture_resnet.build(ResNet50(net="resnet50"), 1, 2).eval()
    assert gray(img[:, :1]).shape == (2, ours.features)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes it, with random numbers."""
    from bench.random_weights import resnet50

    path = tmp_path_factory.mktemp("resnet") / "resnet50-0676ba61.pth"
    torch.save(resnet50(), path)
    return path


def labeler(run_values: Values, path: Path, trains: str, **train: Any) -> dict[str, Any]:
    values = run_values("picture_recognition", **train)
    lr = {"heads": 1e-2} | ({"backbone": 1e-4} if trains == "all" else {})
    values["system"] = {
        "name": "picture_recognition",
        "image_size": 32,
        "labels": {"glasses": ["none", "worn"]},
        "backbone": {"net": "torchvision_resnet50"},
        "path": str(path.parent),
        "trains": trains,
        "optimizer": {"lr": lr},
    }
    return values


def test_frame_labels_of_two_classes_have_the_parameters_of_the_document() -> None:
    values = {
        "name": "picture_recognition",
        "image_size": 224,
        "labels": {"label": ["cat", "dog"]},
        "backbone": {"net": "torchvision_resnet50", "random": True},
    }
    with torch.device("meta"):
        system = PictureRecognition(build(PictureRecognition.Config, values, "test"))
    assert sum(p.numel() for p in system.parameters()) == 23_512_130


def test_published_weights_are_read_strictly_and_their_head_is_not(
    run_values: Values, resnet_file: Path, tmp_path: Path
) -> None:
    from torchvision.models import resnet50

    system = build_system(build(RunConfig, labeler(run_values, resnet_file, "heads"), "test"))
    assert isinstance(system, PictureRecognition)
    assert system.weights["backbone"] == hashlib.sha256(resnet_file.read_bytes()).hexdigest()
    theirs = resnet50()
    theirs.load_state_dict(torch.load(resnet_file, weights_only=True))
    theirs.fc = torch.nn.Identity()
    img = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    scaled = torchvision.transforms.functional.normalize(img / 2 + 0.5, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        torch.testing.assert_close(system.backbone.double()(img), theirs.double().eval()(scaled))
    whole = torch.load(resnet_file, weights_only=True)
    picture_resnet.published({name: tensor for name, tensor in whole.items() if not name.startswith("fc.")})
    with pytest.raises(V2FError, match=r"system\.backbone: .*get resnet50 from torchvision\.models"):
        build_system(build(RunConfig, labeler(run_values, tmp_path / "x.pth", "heads"), "test"))


def test_only_the_head_is_trained_and_saved(run_values: Values, resnet_file: Path) -> None:
    published = torch.load(resnet_file, weights_only=True)
    folder = fit(build(RunConfig, labeler(run_values, resnet_file, "heads", steps=2), "test"))
    tensors, _ = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))
    assert {n for n in tensors if n.startswith("model/")} == {"model/heads.0.weight", "model/heads.0.bias"}
    for name, tensor in Run.open(folder).system().backbone.body[1].state_dict().items():
        assert torch.equal(tensor, published[name]), name


def test_where_all_is_trained_the_statistics_stay_as_published(
    run_values: Values, resnet_file: Path, tiny_shards: str
) -> None:
    system = build_system(build(RunConfig, labeler(run_values, resnet_file, "all"), "test")).train()
    assert isinstance(system, PictureRecognition)
    before = {name: tensor.clone() for name, tensor in system.backbone.state_dict().items()}
    batch = batch_of(system, tiny_shards)
    loss = system.loss("supervised", batch, 0)["total"]
    loss.backward()
    assert all(p.grad is not None for p in system.parameters())
    statistics.commit(system, statistics.collect(system))
    for name, tensor in system.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    torch.testing.assert_close(system.eval().loss("supervised", batch, 0)["total"], loss)


def test_the_label_of_a_video_is_the_median_of_two_classes_and_the_most_frequent_of_more(run_values: Values) -> None:
    system = made(run_values, labels={"hair": ["black", "brown", "fair"]}, factors=None)
    assert isinstance(system, FrameLabeler)
    assert system.names == ("black", "brown", "fair")
    system.scores = lambda img: F.one_hot(img[:, 0, 0, 0].long(), 3).float()  # type: ignore[method-assign]

    def label(*frames: int) -> int:
        return system.label_of(torch.tensor(frames).float()[:, None, None, None].expand(-1, 3, 4, 4))

    for number in range(1, 2**5):
        frames = [number >> bit & 1 for bit in range(5)]
        assert label(*frames) == int(np.median(frames))
    assert label(1, 0) == 0  # equally frequent: the first
    assert label(0, 0, 1, 2, 2, 2) == 2  # the median would be a class of one frame


def test_what_cannot_be_a_labeler_is_one_clear_line(run_values: Values, resnet_file: Path) -> None:
    with pytest.raises(V2FError, match="this backbone has no weights before training: set trains to all"):
        made(run_values, trains="heads", optimizer={"lr": {"heads": 1e-3}})
    values = labeler(run_values, resnet_file, "heads")
    values["system"]["optimizer"] = {"lr": {"backbone": 1e-3, "heads": 1e-3}}
    with pytest.raises(V2FError, match=r"optimizer\.lr names backbone, which this configuration does not train"):
        build(RunConfig, values, "test")
    with pytest.raises(V2FError, match="which sees RGB: set channels to 3"):
        made(run_values, backbone={"net": "torchvision_resnet50"}, channels=1)


def test_classes_that_are_none_or_twice_there_are_one_clear_line(run_values: Values) -> None:
    for names in (["one"], ["one", "one"]):
        with pytest.raises(V2FError, match=r"labels\.hair needs at least two classes, each once; got one"):
            made(run_values, labels={"hair": names})


def test_a_run_is_measured_and_says_what_it_reads(
    run_values: Values, tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(build(RunConfig, run_values("picture_recognition", steps=4, validate_every=4), "test"))
    split = evaluate(Run.open(folder), device="cpu")["splits"]["test"]
    printed = capsys.readouterr().out
    system = Run.open(folder).system()
    batch = next(iter(read_split(open_dataset(tiny_shards).split("test"), system.transforms(), 64)))
    found = system.sample(batch)
    line = split["by"]["labels"]["lines"]["recognized"]
    for label in ("glasses", "hair"):
        right = (found[label].argmax(1) == batch[f"label_{label}"]).double().mean()
        assert line[f"accuracy_{label}"]["value"] == pytest.approx(float(right))
        table = np.array(split["confusion"][label])
        assert np.trace(table) / table.sum() == pytest.approx(float(right))
        assert table.sum(1).tolist() == np.bincount(batch[f"label_{label}"], minlength=len(table)).tolist()
    assert len(split["correlations"]) == 16
    assert "hair: rows are true" in printed
    Image.new("RGB", (20, 20), (90, 120, 30)).save(tmp_path / "p.png")
    assert main(["generate", folder, "--photo", str(tmp_path / "p.png"), "-o", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["shares"].keys() == {"none", "worn"}
    assert sum(told["shares"].values()) == pytest.approx(1)


def test_correlations_are_pearsons() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 30, 3))
    wanted = [np.corrcoef(one[:, n], other[:, n])[0, 1] for n in range(3)]
    np.testing.assert_allclose(correlations(one, other), wanted)
    assert np.isnan(correlations(one * 0, other)).all()
