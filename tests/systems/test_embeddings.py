"""The identity loss takes the references' embeddings of the shards as it takes those of the net, of no other net."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from systems.small import SMALL

from v2f.config import build
from v2f.data.loader import Loader, read_split, read_usable
from v2f.data.manifest import Dataset, open_dataset
from v2f.data.mix import MixOrder, Union
from v2f.data.order import Order
from v2f.errors import V2FError
from v2f.prepare.pack import load_recipe, pack
from v2f.prepare.precompute import load, precompute
from v2f.runs.config import RunConfig
from v2f.runs.run import build_system
from v2f.system import Batch, to_picture
from v2f.systems.voice_styled_face import VoiceStyledFace
from v2f.weights import FaceNetWeights, IRSE50Weights, described

BATCH = 8
Values = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """16 samples with three photos each, and a few to validate."""
    out = tmp_path_factory.mktemp("photos") / "shards"
    people = ["train.people=8", "valid.people=2", "test.people=2", "seen.people=2", "seconds=0.5", "photos=3"]
    recipe = Path(__file__).parents[2] / "shards" / "quickstart.yaml"
    return pack(load_recipe(str(recipe), [f"out={out}", *(f"synthetic.{p}" for p in people)]))


@pytest.fixture(scope="module")
def embedded(plain: Dataset) -> Dataset:
    dataset = precompute(plain.root, f"{plain.root}-embedded", load(["identity.net=stand_in", "workers=1"]))
    assert dataset is not None
    return dataset


def system(run_values: Values, **frozen: Any) -> VoiceStyledFace:
    values = run_values()
    values["system"] = SMALL["voice_styled_face"] | {"frozen": frozen}
    built = build_system(build(RunConfig, values, "test"))
    assert isinstance(built, VoiceStyledFace)
    return built.eval()


@pytest.fixture
def reading(run_values: Values) -> VoiceStyledFace:
    return system(run_values, embeddings={"net": "precomputed"})


def batches(system: VoiceStyledFace, dataset: Dataset, count: int = 3) -> list[Batch]:
    split = dataset.split("train")
    order = Order.for_batches(split.shard_sizes, seed=0, batch=BATCH, data="the same of both", window=8)
    with Loader(split, order, system.transforms(), batch=BATCH, seed=5) as loader:
        return [batch for batch, _ in zip(loader, range(count), strict=False)]


def test_the_loss_is_that_of_the_net_whichever_photo_is_drawn(
    run_values: Values, reading: VoiceStyledFace, plain: Dataset, embedded: Dataset
) -> None:
    asking = system(run_values)
    asking.load_state_dict(reading.state_dict())
    asked: list[int] = []
    reading.identity.register_forward_hook(lambda *_: asked.append(1))
    for with_embeddings, without in zip(batches(reading, embedded), batches(asking, plain), strict=True):
        assert torch.equal(with_embeddings["image"], without["image"])
        assert with_embeddings.keys() - without.keys() == {"embedding"}
        embedding_BE = asking.reference_embedding(without, to_picture(without["image"]))
        torch.testing.assert_close(with_embeddings["embedding"], embedding_BE, rtol=0, atol=1e-3)
        assert (embedding_BE @ embedding_BE.T).min() < 0.5  # which another photo's would not be
        told, known = (s.loss("supervised", batch, 0) for s, batch in ((reading, with_embeddings), (asking, without)))
        for name in told.keys() - {"id", "total"}:
            assert torch.equal(told[name], known[name]), name
        torch.testing.assert_close(told["id"], known["id"], rtol=0, atol=1e-3)  # the shards hold float16
        gradient, expected = (
            torch.cat([g.flatten() for g in torch.autograd.grad(losses["id"], list(s.mapping.parameters()))])
            for s, losses in ((reading, told), (asking, known))
        )
        assert (gradient - expected).norm() < 2e-3 * expected.norm()
    assert len(asked) == 3  # of the made face only


def test_where_the_identity_loss_is_off_nothing_is_read(run_values: Values, plain: Dataset) -> None:
    values = run_values()
    losses = SMALL["voice_styled_face"]["losses"] | {"id": 0.0}
    frozen = {"embeddings": {"net": "precomputed"}}
    values["system"] = SMALL["voice_styled_face"] | {"frozen": frozen, "losses": losses}
    off = build_system(build(RunConfig, values, "test"))
    assert "embedding" not in batches(off, plain, 1)[0]  # type: ignore[arg-type]


def test_a_data_set_without_embeddings_is_refused_in_one_line(
    reading: VoiceStyledFace, plain: Dataset, embedded: Dataset
) -> None:
    line = (
        rf"^{plain.root}: it holds no identity embeddings; write them with .*, or set system\.frozen\.embeddings=null$"
    )
    for read in (
        lambda: batches(reading, plain),
        lambda: read_split(plain.split("valid"), reading.transforms(), 2),
        lambda: list(read_usable(plain.split("valid"), reading.transforms(), 2, [])),
    ):
        with pytest.raises(V2FError, match=line):
            read()
    splits = [embedded.split("train"), plain.split("train")]
    order = MixOrder([split.shard_sizes for split in splits], [1, 1], seed=0, batch=BATCH)
    with pytest.raises(V2FError, match=line):
        Loader(Union(splits), order, reading.transforms(), batch=BATCH, seed=0)


@pytest.mark.parametrize("other", [{"net": "ir_se50", "channels": "rgb"}, {"net": "stand_in", "sha256": "0" * 64}])
def test_embeddings_of_another_net_are_refused_in_one_line(
    reading: VoiceStyledFace, embedded: Dataset, other: dict[str, str]
) -> None:
    provenance = embedded.manifest.provenance | {"precomputed": {"identity": other}}
    foreign = replace(embedded, manifest=embedded.manifest.model_copy(update={"provenance": provenance}))
    line = rf"its identity embeddings are of another net \(net {other['net']}, .*\) than system\.frozen\.identity"
    with pytest.raises(V2FError, match=line) as caught:
        batches(reading, foreign)
    assert "\n" not in str(caught.value)


def test_a_net_is_known_by_its_options_and_its_file_not_by_where_that_lies() -> None:
    net = IRSE50Weights(net="ir_se50", channels="rgb")
    elsewhere = net.model_copy(update={"file": "s3://lab/net.pth", "sha256": "a" * 64})
    about = described("identity", net, "a" * 64)
    assert described("identity", elsewhere, "a" * 64) == about
    turned = net.model_copy(update={"channels": "bgr"})
    for other in ((net, "b" * 64), (turned, "a" * 64), (FaceNetWeights(net="facenet"), "a" * 64)):
        assert described("identity", *other) != about


def test_a_manifest_keeps_the_description(reading: VoiceStyledFace, embedded: Dataset) -> None:
    (batch,) = read_split(open_dataset(embedded.root).split("valid"), reading.transforms(), 8)
    lengths = batch["embedding"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-3)
