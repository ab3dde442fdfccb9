"""The stand-ins that ship: they load, they are those of this world, and they do what they are for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from v2f import standins
from v2f.errors import V2FError
from v2f.standins import KINDS, WEIGHTS, Kind, factor_latent
from v2f.standins.measures import explained, psnr
from v2f.standins.portraits import HELD_OUT, Portraits, render
from v2f.world import world_hash


@pytest.fixture(scope="module")
def unseen() -> Portraits:
    return render(HELD_OUT, 64, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_loads_frozen_and_knows_this_world(kind: Kind) -> None:
    module = standins.load(kind)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert standins.info(kind).world_hash == world_hash()


def test_together_they_are_small() -> None:
    assert sum((WEIGHTS / f"{kind}.safetensors").stat().st_size for kind in KINDS) < 12_000_000


def test_the_generator_draws_unseen_portraits(unseen: Portraits) -> None:
    generator = standins.load("generator")
    with torch.no_grad():
        picture = generator(factor_latent(unseen.face, unseen.photo, generator.style_dim))
    assert psnr(picture, unseen.images(slice(None))) > standins.info("generator").quality["psnr_db"] - 1
    assert generator.latent_avg.any()


def test_the_mean_style_is_a_face_and_other_than_people(unseen: Portraits) -> None:
    generator = standins.load("generator")
    with torch.no_grad():
        w_ND = generator.mapping(factor_latent(unseen.face, unseen.photo, generator.style_dim))
    spread = (w_ND - generator.latent_avg).square().mean()
    assert (w_ND.mean(dim=0) - generator.latent_avg).square().mean() < 0.1 * spread


@pytest.mark.parametrize("kind", ["identity", "referee"])
def test_an_identity_net_finds_unseen_people_again(unseen: Portraits, kind: Kind) -> None:
    net = standins.load(kind)
    with torch.no_grad():
        embedding = net(unseen.images(slice(None)))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(128), rtol=0, atol=1e-5)
    found = (embedding[::2] @ embedding[1::2].T).argmax(dim=1)
    assert (found == torch.arange(64)).float().mean() > 0.9


def test_the_perceptual_net_sees_every_factor(unseen: Portraits) -> None:
    net = standins.load("perceptual")
    with torch.no_grad():
        maps, factors = net(unseen.images(slice(0, 2))), net.factors(unseen.images(slice(None)))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    r2 = explained(factors, unseen.factors(slice(None)))
    assert r2.mean() > standins.info("perceptual").quality["r2_mean"] - 0.05


def test_codes_bring_a_picture_back(unseen: Portraits) -> None:
    generator, encoder = standins.load("generator"), standins.load("codes")
    reference = unseen.images(slice(None))
    with torch.no_grad():
        codes = encoder(reference)
        picture = generator.synthesis(codes)
    assert codes.shape == (128, generator.n_latent, generator.style_dim)
    assert psnr(picture, reference) > standins.info("codes").quality["psnr_db"] - 1


@pytest.mark.parametrize("kind", ["identity", "perceptual", "codes", "referee"])
def test_pictures_of_other_sizes_are_seen_at_64_pixels(kind: Kind) -> None:
    net, small = standins.load(kind), torch.rand(1, 3, 64, 64) * 2 - 1
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():
        seen, wanted = net(large), net(small)
    pairs = zip(seen, wanted, strict=True) if isinstance(seen, list) else [(seen, wanted)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


# --- files that do not fit ---------------------------------------------------------------------------------------


def copy_with(folder: Path, metadata: dict[str, str | None], drop: str | None = None) -> Path:
    source = WEIGHTS / "identity.safetensors"
    with safe_open(source, framework="pt") as file:
        old = file.metadata()
    state = {name: value for name, value in load_file(source).items() if name != drop}
    new = {name: value for name, value in {**old, **metadata}.items() if value is not None}
    save_file(state, folder / "identity.safetensors", new)
    return folder


@pytest.mark.parametrize(
    ("metadata", "drop", "message"),
    [
        ({"world_hash": "0" * 64}, None, "was trained on world .* train the stand-ins for it: python -m"),
        ({"kind": "codes"}, None, "contains the stand-in 'codes', not 'identity'"),
        ({"world_hash": None}, None, "not a stand-in's file"),
        ({"config": "{"}, None, "not a stand-in's file"),
        ({"config": json.dumps({"chanels": [1]})}, None, "cannot be loaded .*chanels"),
        ({}, "head.bias", "these are not the weights of the stand-in identity: the tensor 'head.bias' is missing"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, metadata: dict[str, str | None], drop: str | None, message: str
) -> None:
    with pytest.raises(V2FError, match=message) as error:
        standins.load("identity", copy_with(tmp_path, metadata, drop))
    assert "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(V2FError, match=r"codes.safetensors: the stand-in's weights are missing; train them: python -m"):
        standins.load("codes", tmp_path)
    (tmp_path / "codes.safetensors").write_bytes(b"not weights")
    with pytest.raises(V2FError, match="not a stand-in's file"):
        standins.load("codes", tmp_path)
    with pytest.raises(V2FError, match="no stand-in is named 'voice'"):
        standins.load("voice")  # type: ignore[arg-type]
