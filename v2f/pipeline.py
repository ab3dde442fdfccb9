"""A pipeline: four runs that make a sound for a picture, a video or a label together.

    photo, or frames of a video --labels--> label --top--> top codes --bottom--> bottom codes --sound--> sound

A pipeline file is a YAML that names the runs, which were trained apart; here they are joined and checked against each
other. :func:`opened` opens a run or a pipeline, so that what makes outputs need not know which of the two it has.

Shape letters: B sounds, F frames, C channels, H W picture, K labels, N numbers of noise, S condition, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from v2f.config import Config, Place, build, dump_yaml, parse_yaml
from v2f.data.manifest import read_manifest
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.nn.sampling import Sampling
from v2f.roles import CodeSampler, FrameLabeler, Labeling, SoundCoder, most_frequent
from v2f.runs.config import system_class
from v2f.runs.pretrained import digest_of
from v2f.runs.run import Run
from v2f.storage import store
from v2f.system import Batch, Generative, Kind, Label, Noise, Picture, System, Tokens, of_kind

FILE = "pipeline.yaml"
"""The pipeline file in an exported pipeline, whose runs are the folders beside it."""
LABELS, SOUND = "labels", "sound"
LABEL, NOISE = "label", "noise"  # what the joined system asks for
_SEED_KEY = 0x6E02  # first part of the random key, so that no two uses share a stream
_BELOW_1 = 1 - 2**-24  # the largest float32 below 1
_NO_CHOICE = "a pipeline uses the newest checkpoint of each run; to use another one, export it and name the export"


class Opened(Protocol):
    """A run or a pipeline that exists, as code sees it that makes outputs with it."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """The name of its system; that of a pipeline is ``pipeline``."""

    @property
    def step(self) -> int | str | None:
        """The step of its newest checkpoint; of a pipeline, in words, that of each run."""

    def step_of(self, which: str | int = "latest") -> int | str | None:
        """The step of a checkpoint."""

    def system(self, ema: bool = True, which: str | int = "latest") -> Generative:
        """What makes the outputs, in eval mode."""


class PipelineConfig(Config):
    """A pipeline file."""

    name: str | None = Field(None, min_length=1, description="in the metadata of what it makes; default: the file's")
    labels: Place = Field(description="the run that labels pictures")
    top: Place | None = Field(None, description="the run that draws top codes from a label; none for a flat coder")
    bottom: Place = Field(description="the run that draws bottom codes from top codes, or from a label without `top`")
    sound: Place = Field(description="the run whose coder turns the codes into sound")
    sampling: Sampling = Field(Sampling(), description="how the codes are drawn")
    frames: int = Field(9, gt=0, le=256, description="frames of a video that are labeled, spread evenly")
    seed: int = Field(0, ge=0, description="another number gives other sounds for the same --seed")

    @property
    def runs(self) -> dict[str, str]:
        """Key -> run, in the order in which they work."""
        named = {LABELS: self.labels, "top": self.top, "bottom": self.bottom, SOUND: self.sound}
        return {key: run for key, run in named.items() if run is not None}

    @property
    def levels(self) -> list[str]:
        """The keys of the runs that draw codes, coarse to fine."""
        return [key for key in self.runs if key not in (LABELS, SOUND)]


def opened(path: str, tracking_uri: str | None = None) -> "Run | Pipeline":
    """The run or the pipeline that ``path`` names: a pipeline file ends in ``.yaml`` or ``.yml``, an exported pipeline
    is a folder with a ``pipeline.yaml``, and anything else is a run (:meth:`Run.open`). V2FError if there is none."""
    if PurePosixPath(path).suffix.lower() in (".yaml", ".yml"):
        return Pipeline(path, tracking_uri)
    inside = store.join(path, FILE)
    return Pipeline(path) if store.exists(inside) else Run.open(path, tracking_uri)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that exists: a file, or the folder of an export."""

    path: str
    tracking_uri: str | None = None

    @cached_property
    def config(self) -> PipelineConfig:
        try:
            text = store.read_bytes(self._file).decode()
        except UnicodeDecodeError:
            raise V2FError(f"{self._file}: it is not a UTF-8 text; a pipeline file is a YAML") from None
        values = parse_yaml(text, self._file)
        if not isinstance(values, dict):
            raise V2FError(
                f"{self._file}: it holds no keys; a pipeline file names four runs: labels, top, bottom, sound"
            )
        return build(PipelineConfig, values, self._file)

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Key -> run; V2FError if one is missing or cannot do what its key says."""
        found = {}
        for key, path in self.config.runs.items():
            try:
                found[key] = Run.open(store.join(self.path, path) if self.exported else path, self.tracking_uri)
                can, words = _CAN[key]
                if not issubclass(system_class(found[key].config.system.name), can):
                    name = found[key].config.system.name
                    raise V2FError(f"{path}: its system {name} does not {words}; name a run whose system does")
            except V2FError as error:
                raise error.at(f"{self._file}: {key}") from error
        return found

    @property
    def exported(self) -> bool:
        return self._file != self.path

    @property
    def name(self) -> str:
        return self.config.name or PurePosixPath(self.path.rstrip("/")).stem

    @property
    def kind(self) -> str:
        return "pipeline"

    @property
    def step(self) -> str:
        return ", ".join(f"{key} {'unknown' if run.step is None else run.step}" for key, run in self.runs.items())

    def step_of(self, which: str | int = "latest") -> str:
        if which != "latest":
            raise V2FError(f"{self.path}: {_NO_CHOICE}")
        return self.step

    def system(self, ema: bool = True, which: str | int = "latest") -> "SoundOfPicture":
        """The joined system; V2FError if its runs do not fit together."""
        if which != "latest":
            raise V2FError(f"{self.path}: {_NO_CHOICE}")
        systems = {key: run.system(ema) for key, run in self.runs.items()}
        try:
            joined = SoundOfPicture(self.config, systems).eval()
            self._check_codes(joined.coder)
        except V2FError as error:
            raise error.at(self._file) from error
        return joined

    def _check_codes(self, coder: SoundCoder) -> None:
        """V2FError if a run was trained on the codes of another coder, where its shards are at hand to tell."""
        for level in self.config.levels:
            data = self.runs[level].config.data.home
            if _coder_of(data) not in (None, digest_of(coder)):
                run, sound = self.config.runs[level], self.config.sound
                raise V2FError(
                    f"{level}: {run} was trained on the codes in {data}, which are not those of {sound}; train it on "
                    f"codes of that run (v2f shards precompute --tokens {sound}), or name the run that made its codes"
                )

    @property
    def info(self) -> dict[str, Any]:
        """What identifies the pipeline: its steps in words, and what identifies each run."""
        stand_ins = sorted({run.info.get("stand_ins") or "none" for run in self.runs.values()} - {"none"})
        return {
            "step": self.step,
            "stand_ins": ", ".join(stand_ins) or "none",
            "runs": {key: run.info for key, run in self.runs.items()},
        }

    def portable(self) -> str:
        """The pipeline file of an export, in whose folder each run is in a folder with the name of its key."""
        return dump_yaml(self.config.model_copy(update={"name": self.name, **{key: key for key in self.runs}}))

    @cached_property
    def _file(self) -> str:
        named = PurePosixPath(self.path).suffix.lower() in (".yaml", ".yml")
        return self.path if named else store.join(self.path, FILE)


def _coder_of(data: str) -> str | None:
    """The SHA-256 of the coder that made the codes in a data set; None if the data set is not there, or tells none."""
    try:
        found = read_manifest(data).provenance
    except V2FError:
        return None
    sha256: str | None = found.get("precomputed", {}).get("tokens", {}).get("sha256")
    return sha256


_CAN: dict[str, tuple[type[System], str]] = {
    LABELS: (FrameLabeler, "label pictures"),
    "top": (CodeSampler, "draw codes"),
    "bottom": (CodeSampler, "draw codes"),
    SOUND: (SoundCoder, "turn codes into sound"),
}
"""Key -> what its system must be, and that in words."""


class SoundOfPicture(Labeling):
    """The systems of a pipeline as one: a label and noise in, a sound out; a picture or frames may stand for the label.

    The noise from N(0,1) has a number for each token that is drawn; its normal distribution function makes it uniform.
    """

    def __init__(self, config: PipelineConfig, systems: Mapping[str, System]) -> None:
        """``systems``: by the keys of ``config``. V2FError, which begins with a key, if they do not fit together."""
        super().__init__()
        self.config = config
        labeler, coder = systems[LABELS], systems[SOUND]
        assert isinstance(labeler, FrameLabeler)
        assert isinstance(coder, SoundCoder)
        self.labeler, self.coder = labeler, coder
        self.samplers = nn.ModuleDict({level: systems[level] for level in config.levels})
        self.names = _fitting(config, self.labeler, self._drawn(), self.coder)
        self.stand_ins = sorted({name for system in systems.values() for name in system.stand_ins})
        shift_N = keyed_rng(_SEED_KEY, config.seed).random(self._tokens, dtype="float64")
        self.register_buffer("shift_N", torch.from_numpy(shift_N), persistent=False)

    def asks(self) -> dict[str, Kind]:
        return {LABEL: Label(self.names), NOISE: Noise(self._tokens)}

    def makes(self) -> dict[str, Kind]:
        return {"sound": self.coder.sound}

    @property
    def looks(self) -> Picture:
        ((_, kind),) = of_kind(self.labeler.asks(), Picture)
        return kind

    @property
    def frames(self) -> int:
        return self.config.frames

    @torch.no_grad()
    def label_of(self, img_FCHW: Tensor) -> tuple[int, Tensor]:
        """The label that most frames have, as in :meth:`v2f.roles.FrameLabeler.label_of`, and the mean over the frames
        of each label's softmax."""
        score_FK = self.labeler.scores(img_FCHW).float()
        share_K = score_FK.new_zeros(len(self.names))
        at_K = [self.names.index(name) for name in self.labeler.names]
        share_K[at_K] = score_FK.softmax(1).mean(0)
        return at_K[most_frequent(score_FK)], share_K

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        uniform_BN = torch.special.ndtr(batch[NOISE].double())
        uniform_BN = ((uniform_BN + self.get_buffer("shift_N")) % 1.0).float().clamp(max=_BELOW_1)
        condition_BS, codes, start = batch[LABEL][:, None], {}, 0
        for level, sampler in self._drawn().items():
            stop = start + sampler.target.length
            condition_BS = sampler.draw(condition_BS, uniform_BN[:, start:stop], self.config.sampling)
            codes[level], start = condition_BS, stop
        return {"sound": self.coder.decode(codes)}

    @property
    def _tokens(self) -> int:
        """All tokens of a sound."""
        return sum(sampler.target.length for sampler in self._drawn().values())

    def _drawn(self) -> dict[str, CodeSampler]:
        found = {}
        for level, sampler in self.samplers.items():
            assert isinstance(sampler, CodeSampler)
            found[level] = sampler
        return found


def _fitting(
    config: PipelineConfig, labeler: FrameLabeler, samplers: Mapping[str, CodeSampler], coder: SoundCoder
) -> tuple[str, ...]:
    """The labels that the first sampler knows; V2FError, which begins with a key, if a system does not fit the next."""
    levels = dict(coder.levels)
    for level in levels.keys() - samplers.keys():
        raise V2FError(f"{level}: the key is missing; the sounds of {config.sound} have {level} codes as well")
    for level in samplers.keys() - levels.keys():
        raise V2FError(f"{level}: the sounds of {config.sound} have no {level} codes; remove the key")
    names: tuple[str, ...] | None = None
    above: tuple[str, Tokens] | None = None
    for level, drawn in levels.items():
        run, sampler = config.runs[level], samplers[level]
        asked = [kind for kind in sampler.asks().values() if isinstance(kind, Label | Tokens)]
        given = asked[0] if len(asked) == 1 else None
        if above is None:
            if not isinstance(given, Label):
                raise V2FError(f"{level}: {run} draws codes from codes; name a run that draws them from a label")
            names = given.names
        elif not isinstance(given, Tokens):
            raise V2FError(f"{level}: {run} draws codes from a label; name a run that draws them from {above[0]} codes")
        elif given != above[1]:
            raise V2FError(_misfit(level, f"{run} expects", given, f"{config.runs[above[0]]} draws", above[1]))
        if sampler.target != drawn:
            raise V2FError(_misfit(level, f"{run} draws", sampler.target, f"{config.sound} decodes", drawn))
        above = (level, drawn)
    assert names is not None, "a coder has a level"
    unknown = [name for name in labeler.names if name not in names]
    if unknown:
        raise V2FError(
            f"{LABELS}: {config.labels} finds the label {unknown[0]!r}, which {config.runs[next(iter(levels))]} does "
            f"not know: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; train both on the same labels"
        )
    return names


def _misfit(level: str, one: str, kind: Tokens, other: str, kind2: Tokens) -> str:
    def words(kind: Tokens) -> str:
        return f"{kind.length} codes of a vocabulary of {kind.vocabulary}"

    return f"{level}: {one} {words(kind)}, but {other} {words(kind2)}; name runs of the same code shards"


def card(pipeline: Pipeline) -> str:
    """The model card of an exported pipeline, as Markdown; each run has its own in its folder."""
    lines = [
        f"# {pipeline.name}: a sound for a picture, a video or a label",
        "",
        "Four runs of v2f, joined by `pipeline.yaml`. A sound that they make is no recording of anything; every file",
        "says so in its metadata.",
        "",
        "| key | run | step | what it does |",
        "| --- | --- | ---: | --- |",
        *(f"| {key} | {run.name} | {run.step} | {_CAN[key][1]} |" for key, run in pipeline.runs.items()),
        "",
        "```sh",
        "v2f generate THIS_FOLDER --photo dog.jpg -o bark.wav",
        "v2f generate THIS_FOLDER --video clip.mp4 -o clip-with-sound.mp4",
        "```",
    ]
    return "\n".join(lines) + "\n"
