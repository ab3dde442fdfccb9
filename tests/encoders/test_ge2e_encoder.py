"""The voice encoder ge2e: where its weights come from, what a recipe may ask for, and what training changes of it."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from encoders.small import ENCODERS
from torch import Tensor

from bench.random_weights import ge2e
from v2f import encoders
from v2f.config import build
from v2f.encoders.ge2e import GE2EConfig, GE2EEncoder
from v2f.errors import V2FError
from v2f.nn.ge2e import RATE
from v2f.runs import checkpoint, graphs
from v2f.runs.config import RunConfig
from v2f.runs.run import build_system
from v2f.system import Exported, trained
from v2f.training.trainer import fit
from v2f.weights import GE2EWeights, Requirements, locate
from v2f.weights.catalogue import CATALOGUE

PUBLISHED = CATALOGUE["ge2e-resemblyzer"]


def config(**values: Any) -> GE2EConfig:
    return build(GE2EConfig, {"net": "ge2e", **values}, "test")


def small(**values: Any) -> GE2EEncoder:
    torch.manual_seed(0)
    encoder = encoders.build(config(**ENCODERS["ge2e"] | {"embedding": 6} | values), "weights").encoder
    assert isinstance(encoder, GE2EEncoder)
    return encoder


def waves(seconds: float = 0.5, count: int = 3) -> Tensor:
    return 0.1 * torch.randn(count, round(seconds * RATE), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with random weights, which cannot be imported."""
    folder = tmp_path / "installed" / "resemblyzer"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('librosa')\n")
    torch.save(ge2e(), folder / "pretrained.pt")
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    return folder


def test_its_file_is_named_or_in_the_folder_or_in_the_package_which_is_not_imported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, folder = GE2EWeights(net="ge2e"), tmp_path / "weights"
    assert locate(str(folder), net) == str(package / "pretrained.pt")
    built = encoders.build(config(), str(folder))
    assert built.sha256 is not None
    assert built.encoder(waves())[0].shape == (3, 256, 1)
    folder.mkdir()
    torch.save(ge2e(), folder / "pretrained.pt")
    assert locate(str(folder), net) == str(folder / "pretrained.pt")
    torch.save(ge2e(), folder / "mine.pt")
    assert locate(str(folder), GE2EWeights(net="ge2e", file="mine.pt")) == str(folder / "mine.pt")
    (folder / "pretrained.pt").unlink()
    (package / "pretrained.pt").unlink()
    with pytest.raises(V2FError, match=r"system\.encoder: .*`pip install --no-deps resemblyzer==0\.1\.4`, or get ge2e"):
        encoders.build(config(), str(folder))


def test_what_belongs_to_the_training_of_the_file_is_ignored_by_name_and_nothing_else(tmp_path: Path) -> None:
    path, content = tmp_path / "mine.pt", ge2e()
    state = content["model_state"]

    def load(content: Any) -> Tensor:
        torch.save(content, path)
        return encoders.build(config(file=str(path)), "weights").encoder(waves())[0]

    vector = load(content)
    bare = {"model_state": {name: t for name, t in state.items() if not name.startswith("similarity_")}}
    assert torch.equal(load(bare), vector)
    for unknown, message in (
        (bare | {"scheduler": {}}, "unknown part 'scheduler'"),
        ({"model_state": state | {"similarity_scale": torch.zeros(1)}}, "'model_state.similarity_scale' is unknown"),
        ({"model": state}, "has no 'model_state'; it contains model"),
    ):
        with pytest.raises(V2FError, match=message):
            load(unknown)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 8}, "published weights have a width and an embedding of 256"),
        ({"output": "frames", "depths": [2, 1]}, "name layers from 1 to 3 in ascending order, each once"),
        ({"output": "frames", "depths": [4]}, "depths"),
        ({"output": "frames", "depths": []}, "depths"),
        ({"weighted": True}, "weighted is a sum over several depths"),
        ({"level": 3.0}, "level"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(V2FError, match=message):
        config(**values)


def test_a_recipe_says_that_it_needs_the_weights_and_random_ones_are_none() -> None:
    (role, net), *more = encoders.with_encoder(Requirements(), config(sha256="0" * 64)).user_weights.items()
    assert (role, net.published, net.sha256, more) == ("encoder", PUBLISHED, "0" * 64, [])
    assert not encoders.with_encoder(Requirements(), config(random=True))
    with pytest.raises(ValueError, match="sample_rate is 8000, ge2e takes 16000 Hz"):
        encoders.check_rate(config(), 8000)


@pytest.mark.parametrize(
    ("values", "shapes"),
    [
        ({"output": "vector"}, [(3, 6, 1)]),
        ({}, [(3, 8, 51)] * 3),
        ({"depths": [1, 3]}, [(3, 8, 51)] * 2),
        ({"depths": [2, 3], "weighted": True}, [(3, 8, 51)] * 3),
    ],
)
def test_the_maps_are_the_vector_or_the_states_of_the_chosen_layers(
    values: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    encoder = small(**values)
    maps = encoder(waves())
    assert [tuple(each.shape) for each in maps] == shapes
    assert encoder.channels == tuple(shape[1] for shape in shapes)
    assert not encoder.net.training
    for own, of_batch in zip(encoder(waves()[1:2]), maps, strict=True):
        torch.testing.assert_close(own, of_batch[1:2])


def test_depths_are_layers_of_the_net_counted_from_one() -> None:
    for depth, all_three in enumerate(small()(waves()), 1):
        (own,) = small(depths=[depth])(waves())
        assert torch.equal(own, all_three)
    first, *_ = small(depths=[1, 2], weighted=True)(waves())
    torch.testing.assert_close(first, torch.stack(small(depths=[1, 2])(waves())).mean(dim=0))


def test_a_quiet_clip_is_heard_as_one_of_the_level() -> None:
    wav_BT = waves()
    at_level_BT = wav_BT * 10 ** (-30 / 20) / wav_BT.square().mean(dim=1, keepdim=True).sqrt()

    def heard(wav_BT: Tensor, **values: Any) -> Tensor:
        encoder = small(depths=[1], **values)
        with torch.no_grad():
            encoder.net.layers[0].weight_ih_l0.mul_(100)  # random weights hardly hear anything
        (map_BCT,) = encoder(wav_BT)
        return map_BCT

    torch.testing.assert_close(heard(0.001 * wav_BT), heard(at_level_BT))
    torch.testing.assert_close(heard(wav_BT), heard(wav_BT, level=None))
    for others in (heard(wav_BT), heard(0.001 * wav_BT, level=None)):
        assert (heard(0.001 * wav_BT) - others).abs().max() > 0.05


@pytest.mark.parametrize(
    ("values", "moved"),
    [
        ({"thaw": 0}, ""),
        ({"thaw": 1}, "layers.2"),
        ({"thaw": 2, "depths": [1, 2]}, "layers.0 layers.1"),
        ({"thaw": "all"}, "layers.0 layers.1 layers.2"),
        ({"thaw": 1, "output": "vector"}, "layers.2 linear"),
        ({"thaw": "all", "output": "vector"}, "layers.0 layers.1 layers.2 linear"),
    ],
)
def test_what_is_thawed_gets_a_gradient_and_every_part_of_it_does(values: dict[str, Any], moved: str) -> None:
    encoder = small(**values)
    maps = encoder(waves())
    assert any(each.requires_grad for each in maps) == bool(moved)
    if moved:
        sum(each.square().mean() for each in maps if each.requires_grad).backward()  # type: ignore[union-attr]
    found = {name.rpartition(".")[0] for name, p in encoder.net.named_parameters() if p.grad is not None}
    assert sorted(found) == moved.split()
    parts = encoder.trained()
    assert {id(p) for part in parts.values() for p in part.parameters()} == {
        id(p) for p in encoder.net.parameters() if p.requires_grad
    }


@pytest.mark.parametrize("thaw", [0, 1, "all"])
def test_layers_are_in_the_mode_that_their_backward_pass_on_a_gpu_needs(thaw: int | str) -> None:
    encoder = small(thaw=thaw)
    trained_layers = [False, False, False] if thaw == 0 else [thaw == "all", thaw == "all", True]
    for mode in (True, False):
        encoder.train(mode)
        for part in encoder.trained().values():
            part.train(mode)
        assert [layer.training for layer in encoder.net.layers] == trained_layers


def test_more_blocks_than_there_are_cannot_be_thawed() -> None:
    with pytest.raises(V2FError, match="thaw: 3, but ge2e has 2 blocks"):
        small(thaw=3, depths=[1, 2])


@pytest.mark.parametrize("thaw", [0, 1])
def test_a_run_trains_what_is_thawed_and_saves_nothing_else(
    run_values: Callable[..., dict[str, Any]], thaw: int
) -> None:
    values = run_values(steps=2)
    rates = {"mapping": 1e-3} | ({"thawed": 1e-3} if thaw else {})
    values["system"] |= {"encoder": ENCODERS["ge2e"] | {"thaw": thaw}, "optimizer": {"lr": rates}, "ema": None}
    run = build(RunConfig, values, "test")
    before = {name: t.clone() for name, t in build_system(run).state_dict().items()}
    tensors, _ = checkpoint.load(checkpoint.latest(f"{fit(run)}/checkpoints"))
    assert {name.split("/")[1].split(".")[0] for name in tensors if name.startswith("model/")} == set(rates)
    own = {name.removeprefix("model/thawed.0."): t for name, t in tensors.items() if name.startswith("model/thawed.")}
    assert len(own) == 4 * thaw
    for name, tensor in own.items():
        assert not torch.equal(tensor, before[f"encoder.net.layers.2.{name}"])
    system = build_system(run)
    assert set(trained(system)) == set(rates)


def test_its_graph_says_what_torch_says() -> None:
    import io

    encoder = small(depths=[1, 2])

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, wav_BT: Tensor) -> Tensor:
            last: Tensor = self.encoder(wav_BT)[-1]
            return last

    wav_BT = waves(0.1, 5)
    before = encoder(wav_BT)[-1]
    exported = Exported(graph=Last(), inputs={"wav": wav_BT[:2]}, makes="map", about="")
    graph = torch.export.load(io.BytesIO(graphs.content(exported, "torch-export"))).module()
    torch.testing.assert_close(graph(wav_BT), before)
    assert torch.equal(encoder(wav_BT)[-1], before)


def test_on_real_voices_most_pairs_of_one_person_are_more_alike_than_pairs_of_two(real_pairs: Path) -> None:
    """Of two people and clips of 1 s: it tells whether the way from a file to a vector is right, and nothing more."""
    if PUBLISHED.installed() is None:
        pytest.skip(f"no weights: pip install --no-deps {PUBLISHED.package}")
    encoder = encoders.build(config(), "weights").encoder
    files = sorted(real_pairs.glob("test/*/*.wav"))
    wav_BT = torch.from_numpy(np.stack([soundfile.read(path, dtype="float32")[0] for path in files]))
    (map_BE1,) = encoder(wav_BT)
    cosine_BB = (map_BE1[:, :, 0] @ map_BE1[:, :, 0].T).numpy()
    person_B = np.array([path.parent.name for path in files])
    same_BB = person_B[:, None] == person_B
    alike, different = cosine_BB[np.triu(same_BB, 1)], cosine_BB[~same_BB]
    assert (alike[:, None] > different).mean() > 0.75
