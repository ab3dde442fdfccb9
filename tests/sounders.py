"""Four tiny systems that make a sound for a picture, of which every answer is known beforehand, and their pipeline.

The label of a picture is the color of its upper third: red, green or blue. The codes of a label are drawn from four
numbers of its own, and the sound of a label is a tone of its own.

Shape letters: B samples, C channels, H W picture, K labels, S condition, T tokens or samples.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from v2f.config import build, dump_yaml
from v2f.data.transforms import Transform
from v2f.nn.sampling import Sampling
from v2f.roles import CodeSampler, FrameLabeler, SoundCoder
from v2f.runs import checkpoint
from v2f.runs.config import RunConfig
from v2f.runs.run import MODEL, NOTES, build_system
from v2f.runs.saver import write_tensors
from v2f.system import Batch, Kind, Label, Losses, Noise, Optimizer, Phase, Picture, Sound, System, SystemConfig, Tokens
from v2f.systems import SYSTEMS

COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
NAMES = tuple(COLORS)
RATE, SECONDS, SIDE = 4000, 0.4, 16
TOP, BOTTOM, VOCABULARY = 5, 20, 16
HERTZ = {"red": 300, "green": 500, "blue": 700}


class _Untrained(System):
    """One number that nobody trains, so that there is a checkpoint."""

    def __init__(self, config: SystemConfig) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Linear(1, 1)

    def phases(self) -> list[Phase]:
        return [Phase(name="all", modules={"net": self.net}, optimizer=Optimizer(lr={"net": 1e-3}))]

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        raise AssertionError("nothing is trained here")

    def meters(self, batches: Iterable[Batch]) -> dict[str, float]:
        raise AssertionError("nothing is trained here")

    def transforms(self) -> dict[str, Transform]:
        return {}


class ColorLabeler(_Untrained, FrameLabeler):
    class Config(SystemConfig):
        name: Literal["color_labeler"] = "color_labeler"
        names: list[str] = list(NAMES)

    config: Config
    looked_at: ClassVar[list[Tensor]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.config.names)

    def scores(self, img_BCHH: Tensor) -> Tensor:
        self.looked_at.append(img_BCHH)
        return 4 * img_BCHH[:, :, : SIDE // 3].mean((2, 3))[:, : len(self.names)]

    def asks(self) -> Mapping[str, Kind]:
        return {"image": Picture(SIDE)}

    def makes(self) -> Mapping[str, Kind]:
        return {"label": Label(self.names)}

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"label": self.scores(batch["image"] / 127.5 - 1)}


class FewCodes(_Untrained, CodeSampler):
    """``above`` 0: from a label; else from so many codes of the level above, each of which is repeated."""

    class Config(SystemConfig):
        name: Literal["few_codes"] = "few_codes"
        names: list[str] = list(NAMES)
        above: int = 0
        length: int = TOP
        vocabulary: int = VOCABULARY
        broken: bool = Field(False, description="draws codes that make no sound")

    config: Config
    rows: ClassVar[list[int]] = []

    @property
    def target(self) -> Tokens:
        return Tokens(self.config.length, self.config.vocabulary)

    def draw(self, condition_BS: Tensor, uniform_BT: Tensor, how: Sampling) -> Tensor:
        assert uniform_BT.shape == (len(condition_BS), self.config.length)
        assert float(uniform_BT.min()) >= 0
        assert float(uniform_BT.max()) < 1
        self.rows.append(len(condition_BS))
        if self.config.above:
            return condition_BS.repeat_interleave(self.config.length // self.config.above, 1)
        choice_BT = torch.zeros_like(uniform_BT) if how.kind == "greedy" else 4 * uniform_BT
        return 4 * condition_BS + choice_BT.long() - (100 if self.config.broken else 0)

    def asks(self) -> Mapping[str, Kind]:
        noise = {"noise": Noise(self.config.length)}
        if self.config.above:
            return {"codes": Tokens(self.config.above, self.config.vocabulary), **noise}
        return {"label": Label(tuple(self.config.names)), **noise}

    def makes(self) -> Mapping[str, Kind]:
        return {"codes": self.target}

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("a pipeline draws")


class ToneCoder(_Untrained, SoundCoder):
    class Config(SystemConfig):
        name: Literal["tone_coder"] = "tone_coder"
        flat: bool = False

    config: Config

    @property
    def sound(self) -> Sound:
        return Sound(RATE, SECONDS)

    @property
    def levels(self) -> Mapping[str, Tokens]:
        bottom = {"bottom": Tokens(BOTTOM, VOCABULARY)}
        return bottom if self.config.flat else {"top": Tokens(TOP, VOCABULARY), **bottom}

    def encode(self, wav_BT: Tensor) -> dict[str, Tensor]:
        raise AssertionError("a pipeline only decodes")

    def decode(self, codes: Mapping[str, Tensor]) -> Tensor:
        """The tone of the label, the phase of which moves with the first code."""
        bottom_BT = codes["bottom"]
        for level, kind in self.levels.items():
            assert codes[level].shape[1] == kind.length
        hertz_B1 = torch.tensor([*HERTZ.values()])[(bottom_BT[:, :1] // 4).clamp(min=0)].double()
        time_T = torch.arange(round(RATE * SECONDS)) / RATE
        wav_BT = 0.5 * torch.sin(2 * np.pi * hertz_B1 * time_T + bottom_BT[:, :1] % 4)
        return torch.where(bottom_BT[:, :1] < 0, torch.nan, wav_BT).float()[:, None]

    def asks(self) -> Mapping[str, Kind]:
        return {"wav": self.sound}

    def makes(self) -> Mapping[str, Kind]:
        return {"sound": self.sound}

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("a pipeline only decodes")


SOUNDERS: dict[str, type[System]] = {"color_labeler": ColorLabeler, "few_codes": FewCodes, "tone_coder": ToneCoder}
RUNS: dict[str, dict[str, Any]] = {
    "labels": {"name": "color_labeler"},
    "top": {"name": "few_codes"},
    "bottom": {"name": "few_codes", "above": TOP, "length": BOTTOM},
    "sound": {"name": "tone_coder"},
}


def register(monkeypatch: Any) -> None:
    """Make the tiny systems systems, for one test or module."""
    for name, system in SOUNDERS.items():
        monkeypatch.setitem(SYSTEMS, name, system)


def make_pipeline(folder: Path, changes: Mapping[str, Mapping[str, Any]] | None = None, **keys: Any) -> str:
    """Four exports and their pipeline file; ``changes`` of their systems, and other ``keys`` of the file (None: none).
    Needs :func:`register`."""
    values: dict[str, Any] = {}
    for number, (key, system) in enumerate(RUNS.items()):
        run = folder / f"a-{key}"
        write_export(run, f"a-{key}", {**system, **(changes or {}).get(key, {})}, step=10 + number)
        values[key] = str(run)
    values = {key: value for key, value in {**values, **keys}.items() if value is not None}
    (folder / "tones.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "tones.yaml")


def write_export(folder: Path, name: str, system: Mapping[str, Any], step: int) -> None:
    """An export of a system with its first weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"name": name, "system": dict(system), "data": {"path": "nowhere", "batch": 4}, "train": {"steps": 1}}
    config = build(RunConfig, values, "the test")
    tensors = checkpoint.module_tensors(build_system(config))
    weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items()}
    notes = {"format": "pt", NOTES: json.dumps({"step": step, "fingerprint": "", "stand_ins": "none"})}
    write_tensors(str(folder / MODEL), weights, notes)
    (folder / "README.md").write_text(f"# {name}\n")
    (folder / "config.yaml").write_text(dump_yaml(config))


def picture(color: str, below: str = "blue", size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A picture whose upper third, and a bit more, has one color, and the rest another."""
    image = Image.new("RGB", size, COLORS[below])
    image.paste(COLORS[color], (0, 0, size[0], size[1] * 2 // 5))
    return image


def hertz_of(wav_T: np.ndarray, rate: int) -> float:
    """The loudest frequency."""
    return float(np.abs(np.fft.rfft(wav_T * np.hanning(len(wav_T)))).argmax() * rate / len(wav_T))
