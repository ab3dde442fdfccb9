"""Speech transformers as transformers writes them: loaded strictly, with old names, a prefix and heads, or refused."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import transformers
from encoders import published
from encoders.small import SPEECH
from torch import Tensor
from weights.test_layouts import BREAKS

from v2f.config import build
from v2f.errors import V2FError
from v2f.nn.speech import Architecture, SpeechTransformer, WavLMArchitecture
from v2f.storage import store
from v2f.weights import Requirements, TransformerWeights, UniSpeechSATWeights, WavLMWeights, commands, locate, read
from v2f.weights.files import SUMS, sha256_of

KIND = pytest.mark.parametrize("kind", ["unispeech_sat", "wavlm"])
SIZES = {"unispeech_sat": (94_371_712, 211), "wavlm": (94_381_936, 248)}
MASK = ("masked_spec_embed", 768)  # SpecAugment's: the only tensor that is not loaded
TENSOR = "encoder.layers.1.attention.k_proj.weight"


def weights_of(kind: str, **values: Any) -> TransformerWeights:
    own = {"unispeech_sat": UniSpeechSATWeights, "wavlm": WavLMWeights}[kind]
    return build(own, {"net": kind, **values}, "test")


def loaded(folder: Path, kind: str, **values: Any) -> SpeechTransformer:
    net = weights_of(kind, **values)
    model, digest = read(net, locate(str(folder), net))
    assert isinstance(model, SpeechTransformer)
    assert len(digest) == 64
    return model


@KIND
def test_the_published_base_nets_have_their_sizes_and_load(tmp_path: Path, kind: str) -> None:
    """Of the file with the heads, the names of an old torch, and without a config.json."""
    with torch.device("meta"):
        bare, whole = published.net(kind, heads=False), published.net(kind, heads=True)
        ours = SpeechTransformer(kind, WavLMArchitecture() if kind == "wavlm" else Architecture())  # type: ignore[arg-type]
    names = bare.state_dict()
    assert (sum(each.numel() for each in names.values()), len(names)) == SIZES[kind]
    sizes = {name: tensor.shape for name, tensor in ours.net.state_dict().items()}
    assert sizes == {name: tensor.shape for name, tensor in names.items() if name != MASK[0]}
    assert sum(each.numel() for each in ours.parameters()) == SIZES[kind][0] - MASK[1]
    numbers = {name: torch.tensor(float(n)).expand(t.shape) for n, (name, t) in enumerate(whole.state_dict().items())}
    state = published.old(numbers)
    assert {"weight_g", "weight_v"} <= {name.rpartition(".")[2] for name in state}
    published.write(tmp_path, kind, state, described=False)
    net = loaded(tmp_path, kind).net
    prefix = {"unispeech_sat": "unispeech_sat.", "wavlm": "wavlm."}[kind]
    assert all((tensor == numbers[prefix + name].flatten()[0]).all() for name, tensor in net.state_dict().items())
    assert not net.training


@KIND
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_each_form_of_a_file_is_the_same_net(tmp_path: Path, kind: str, suffix: str, heads: bool, old: bool) -> None:
    theirs = published.small(kind, heads).eval()
    state = theirs.state_dict()
    published.write(tmp_path, kind, published.old(state) if old else state, suffix)
    ours = loaded(tmp_path, kind)
    body = getattr(theirs, kind) if heads else theirs
    wav_BT = torch.randn(2, 2000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = body(wav_BT, output_hidden_states=True).hidden_states
        for found, wanted in zip(ours(wav_BT), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert ours.architecture.hidden_size == SPEECH["hidden_size"]


@KIND
@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("heads", [False, True])
def test_a_broken_file_is_refused_in_one_line_and_nothing_runs(
    tmp_path: Path, kind: str, heads: bool, damage: Callable[[dict[str, Any], str, Path], None]
) -> None:
    tensor = f"{kind}.{TENSOR}" if heads else TENSOR
    state: dict[str, Any] = dict(published.small(kind, heads).state_dict())
    damage(state, tensor, tmp_path / "ran")
    path = published.write(tmp_path, kind, state)
    with pytest.raises(V2FError, match=BREAKS[damage].format(tensor.replace(".", r"\."))) as caught:
        loaded(tmp_path, kind)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@KIND
def test_nothing_but_heads_is_left_out(tmp_path: Path, kind: str) -> None:
    for name in ("head.weight", f"{kind}.lm_head.weight", "encoder.layers.9.layer_norm.bias", "adapter.proj.weight"):
        published.write(tmp_path, kind, {**published.small(kind, heads=True).state_dict(), name: torch.zeros(3)})
        with pytest.raises(V2FError, match=rf"the tensor '\S*{name.removeprefix(kind + '.')}' is unknown"):
            loaded(tmp_path, kind)
    twice = published.small(kind, heads=True).state_dict()
    published.write(tmp_path, kind, {**twice, TENSOR: torch.zeros(3)})
    with pytest.raises(V2FError, match=rf"the tensor '{TENSOR}' is in it twice"):
        loaded(tmp_path, kind)


def test_a_large_net_is_described_by_its_files(tmp_path: Path) -> None:
    """The large nets normalize the wave, and have layer norms after each convolution and before each layer's parts."""
    large = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    theirs = published.net("wavlm", heads=False, **SPEECH, **large).eval()
    path = published.write(tmp_path, "wavlm", theirs.state_dict())
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps(config | large))
    assert loaded(tmp_path, "wavlm").normalizes  # as such nets were trained
    (path.parent / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    assert not loaded(tmp_path, "wavlm").normalizes
    (path.parent / "preprocessor_config.json").write_text('{"do_normalize": true}')
    ours = loaded(tmp_path, "wavlm")
    wav_BT = torch.randn(2, 2000).double() * 3 + 1
    prepared = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(
        list(wav_BT.numpy()), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(prepared["input_values"], output_hidden_states=True).hidden_states
        for found, wanted in zip(ours.double()(wav_BT), expected, strict=True):
            torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"model_type": "hubert"}', r"describes a net of the type 'hubert', wavlm is 'wavlm'"),
        ("config.json", "{", r"not valid JSON; copy it again, or remove it"),
        ("config.json", "[]", r"expected an object, found list"),
        ("config.json", '{"hidden_size": "16"}', r"hidden_size"),
        (
            "config.json",
            '{"hidden_size": 15, "num_attention_heads": 2}',
            r"hidden_size 15 is not a multiple of num_att",
        ),
        (
            "config.json",
            '{"conv_dim": [8, 8]}',
            r"conv_dim, conv_stride and conv_kernel need one entry per convolution",
        ),
        ("config.json", '{"hidden_act": "os.system"}', r"hidden_act"),
        ("config.json", " " * (1 << 20) + "{}", r"larger than 1048576 bytes"),
        ("preprocessor_config.json", '{"do_normalize": "yes"}', r"do_normalize is 'yes', expected true or false"),
        ("preprocessor_config.json", '{"sampling_rate": 8000}', r"sampling_rate is 8000, v2f supports 16000 only"),
    ],
    ids=lambda value: value[:40],
)
def test_an_unusable_description_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = published.write(tmp_path, "wavlm", published.small("wavlm").state_dict())
    (path.parent / name).write_text(text)
    with pytest.raises(V2FError, match=message) as caught:
        loaded(tmp_path, "wavlm")
    assert str(caught.value).startswith(str(path.parent / name))
    assert "\n" not in str(caught.value)


def test_the_recipe_says_the_architecture_before_the_files_do(tmp_path: Path) -> None:
    path = published.write(tmp_path, "wavlm", published.small("wavlm").state_dict())
    (path.parent / "config.json").write_text('{"model_type": "hubert"}')
    model = loaded(tmp_path, "wavlm", architecture=SPEECH, file=str(path))
    assert model.architecture.num_hidden_layers == SPEECH["num_hidden_layers"]
    with pytest.raises(V2FError, match="these are not the weights of WavLM"):
        loaded(tmp_path, "wavlm", architecture=SPEECH | {"num_hidden_layers": 2})


@pytest.fixture(params=["plain", "memory://"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, and fsspec's memory file system in the place of a remote mirror."""
    if request.param == "plain":
        yield str(tmp_path / "mirror")
    else:
        yield "memory://mirror/weights"
        fsspec.filesystem("memory").store.clear()


def test_a_mirror_keeps_each_net_in_its_folder_with_what_describes_it(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are published as pytorch_model.bin."""
    have = tmp_path / "have"
    states: dict[str, dict[str, Tensor]] = {}
    for kind in ("unispeech_sat", "wavlm"):
        states[kind] = published.small(kind).state_dict()
        published.write(have, kind, states[kind])
    nets = {kind: weights_of(kind) for kind in states}
    needs = {"a": Requirements(str(have), {"encoder": nets["wavlm"]})}
    assert [row.state for row in commands.required_weights(needs, load=True)] == [
        "no checksum is known; loaded strictly"
    ]
    assert commands.mirror(target, needs, str(have)) == 0
    assert "wavlm-base/pytorch_model.bin: wavlm-base, loaded strictly" in capsys.readouterr().out
    assert "CC BY-SA 3.0" in store.read_bytes(store.join(target, commands.LICENCES)).decode()
    for kind, folder in published.FOLDERS.items():  # what is known is taken along
        assert {*store.names(store.join(target, folder))} == {"pytorch_model.bin", "config.json", SUMS}
        model = read(nets[kind], locate(target, nets[kind]))[0]
        assert torch.equal(model.net.state_dict()[TENSOR], states[kind][TENSOR])
    shutil.rmtree(have / "wavlm-base")  # a mirror stands alone
    assert commands.mirror(target, needs, str(have)) == 0
    changed = store.join(target, "wavlm-base", "config.json")
    store.write_bytes(changed, store.read_bytes(changed) + b" ")
    with pytest.raises(V2FError, match=rf"{changed}: its SHA-256 is .* but SHA256SUMS says"):
        read(nets["wavlm"], locate(target, nets["wavlm"]))


def test_a_net_that_a_recipe_names_keeps_its_folder_in_a_mirror(tmp_path: Path) -> None:
    path = published.write(tmp_path / "have", "wavlm", published.small("wavlm").state_dict())
    path.parent.rename(own := tmp_path / "have" / "wavlm-large")
    net = weights_of("wavlm", file=str(own / path.name))
    assert commands.mirror(str(tmp_path / "mirror"), {"a": Requirements("x", {"encoder": net})}, str(tmp_path)) == 0
    there = tmp_path / "mirror" / "wavlm-large"
    lines = dict(reversed(line.split("  ")) for line in (there / SUMS).read_text().splitlines())
    assert lines == {name: sha256_of(str(there / name)) for name in ("config.json", "pytorch_model.bin")}
    assert hashlib.sha256((own / path.name).read_bytes()).hexdigest() == lines["pytorch_model.bin"]
