"""For notebooks and your own training loops: a trained run as a model, data as arrays, batches exactly once.

    v2f.load(RUN) -> Model --generate--> pictures, sounds, labels
    v2f.open_dataset(PATH) -> DataSet --sample--> arrays
    v2f.Loader(PATH, ...) -> batches; its ``state`` is one integer, from which another Loader resumes
    v2f.train(RECIPE) -> the run's folder

Shape letters: T audio frames, H height, W width, C channels.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from v2f import generate
from v2f.config import Config, build, override
from v2f.data import loader as data_loader
from v2f.data import manifest, media
from v2f.data.fetch import Reader
from v2f.data.order import Order
from v2f.data.quarantine import Bad
from v2f.data.sample import Sample
from v2f.data.transforms import Transform
from v2f.errors import V2FError
from v2f.given import Given, labeled
from v2f.pipeline import Pipeline, PipelineConfig
from v2f.pipeline import opened as open_run
from v2f.runs.config import RunConfig, load_config
from v2f.runs.run import Run
from v2f.system import Generative, Label, Picture, Sound

if TYPE_CHECKING:
    from PIL.Image import Image


def load(run: str, which: str | int = "latest", device: str | None = None) -> "Model":
    """A trained run as a model.

    ``run``: a folder, an ``s3://`` prefix, an MLflow run id (of the server in MLFLOW_TRACKING_URI), an export or the
    YAML file of a pipeline;
    ``which``: the checkpoint, ``latest``, ``best`` or a step; ``device``: None takes the GPU if there is one. V2FError
    if there is no such run or checkpoint.
    """
    opened = open_run(run)
    there = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Model(opened, opened.system(which=which).to(there).eval(), opened.step_of(which))


@dataclass(frozen=True)
class Model:
    """A trained system and its run, or the systems of a pipeline."""

    run: Run | Pipeline
    system: Generative
    """The torch module; the batch of ``system.sample(batch)`` holds what ``system.asks()`` declares."""
    step: int | str | None
    """Of a pipeline, in words: that of each run."""

    @property
    def config(self) -> RunConfig | PipelineConfig:
        return self.run.config

    def generate(
        self,
        *,
        voice: str | bytes | None = None,
        photo: str | bytes | None = None,
        video: str | bytes | None = None,
        label: str | None = None,
        seed: int = 0,
    ) -> Any:
        """The first output of the system for the given inputs; files are given by path or as bytes.

        Returns a picture as a Pillow image with its provenance in ``info``, a sound as float32 [T] in [-1, 1] (at the
        rate in ``system.makes()``), a label as a dict of shares, an embedding or tokens as an array. A V2FError of one
        line if an input is missing, not asked for or unusable.
        """
        given = Given(voice=voice, photo=photo, video=video, label=label, seed=seed)
        given, _ = labeled(self.system, given)
        name, kind = next(iter(self.system.makes().items()))
        notes = generate.provenance(self.run, self.system, given, step=self.step)
        with torch.no_grad():
            if generate.is_face_of_voice(self.system):
                wav_WT = generate.given_voice(self.run, self.system, given)[1]
                return _image(generate.face_of(self.system, torch.from_numpy(wav_WT), seed=seed), notes)
            made = generate.make(self.system, given)[name]
        if isinstance(kind, Picture):
            return _image(made, notes)
        if isinstance(kind, Label):
            return generate.shares(kind, made)
        array = made.float().cpu().numpy()
        return array.ravel() if isinstance(kind, Sound) else array


def _image(picture: torch.Tensor, notes: Mapping[str, str]) -> "Image":
    from PIL import Image

    image = Image.open(io.BytesIO(media.png(picture, notes)))
    image.load()
    return image


def open_dataset(path: str) -> "DataSet":
    """A packed data set in a folder or under an ``s3://`` prefix; V2FError if it is missing or damaged."""
    return DataSet(manifest.open_dataset(path))


class DataSet:
    """A packed data set: counts, splits, and its samples as arrays."""

    def __init__(self, dataset: manifest.Dataset) -> None:
        self._dataset = dataset
        self._numbers: dict[str, dict[str, int]] = {}

    @property
    def path(self) -> str:
        return self._dataset.root

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all the data: data sets with equal fingerprints are equal."""
        return self._dataset.fingerprint

    @property
    def splits(self) -> dict[str, int]:
        """Split -> samples."""
        return {name: self._dataset.split(name).samples for name in self._dataset.splits}

    @property
    def people(self) -> dict[str, int]:
        """Split -> people."""
        return {name: self._dataset.split(name).people for name in self._dataset.splits}

    def keys(self, split: str) -> list[str]:
        """The keys of a split's samples, by sample number."""
        found = self._dataset.split(split)
        return [found.key(number) for number in range(found.samples)]

    def sample(self, which: int | str, split: str = "train") -> dict[str, Any]:
        """A sample of a split by its number or its key.

        Returns ``key``, ``identity``, ``json`` (its metadata) and what the data set holds: ``audio`` float32 [T] in
        [-1, 1] with ``sample_rate``, ``photos`` uint8 [H, W, C] each, custom arrays by name. V2FError if the sample is
        missing or damaged.
        """
        found = self._dataset.split(split)
        number = self._number_of(which, split) if isinstance(which, str) else which
        if not 0 <= number < found.samples:
            raise V2FError(f"{self.path}: the split {split} has no sample {which!r}; it has {found.samples}")
        raw = Reader(found).read(np.array([number]))[number]
        if isinstance(raw, Bad):
            raise V2FError(f"{found.where(number)}: {raw.reason}")
        sample = Sample.from_tar(found.key(number), raw)
        holds: dict[str, Any] = {"key": found.key(number), "identity": sample.identity, "json": dict(sample.meta)}
        if sample.has_audio:
            holds |= {"audio": sample.waveform(), "sample_rate": sample.sample_rate}
        if sample.photo_count:
            holds["photos"] = [sample.photo(each) for each in range(sample.photo_count)]
        return holds | {name: sample.array(name) for name in self._dataset.manifest.arrays}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {samples:,}" for name, samples in self.splits.items())
        return f"DataSet({self.path!r}: {counts})"

    def _number_of(self, key: str, split: str) -> int:
        if split not in self._numbers:
            self._numbers[split] = {each: number for number, each in enumerate(self.keys(split))}
        return self._numbers[split].get(key, -1)


class Loader:
    """Endless batches of a split for any PyTorch loop: each sample once an epoch, in an order that is a function of the
    data, ``seed`` and ``batch`` alone.

    A batch is a dict: each transform's output [b, ...] by its name, ``slot``, ``weight`` (0 where a damaged sample was
    replaced), ``identity`` and ``key``. ``batch`` is the global batch size; each rank gets its share. ``state`` is the
    number of slots that all ranks together have handed out: a new Loader with this ``state`` resumes at the very next
    sample, on any number of ranks that divides the batch and with any number of ``workers`` (decoding processes; 0:
    decode in this process).
    """

    def __init__(
        self,
        path: str,
        transforms: Mapping[str, Transform],
        *,
        batch: int,
        split: str = "train",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        state: int = 0,
    ) -> None:
        if state % batch:
            raise V2FError(
                f"state {state} is not a multiple of the batch size {batch}; use the batch size that it was saved with"
            )
        dataset = manifest.open_dataset(path)
        found = dataset.split(split)
        order = Order.for_batches(found.shard_sizes, seed=seed, batch=batch, data=found.fingerprint)
        self.batch, self.state = batch, state
        self._loader = data_loader.Loader(
            found,
            order,
            transforms,
            batch=batch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start_slot=state,
            workers=workers,
        )
        self._batches: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            self._batches = iter(self._loader)
        batch = next(self._batches)
        self.state += self.batch
        return batch

    def close(self) -> None:
        """Stop the workers."""
        self._loader.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train(recipe: str | Mapping[str, Any] | RunConfig, *changes: str, resume: str = "auto") -> str:
    """Train a recipe, and return the run's folder: ``v2f train`` in this process, on this process's rank.

    ``recipe``: the path of a YAML, its content as a mapping, or a configuration; ``changes``: ``dotted.key=value``;
    ``resume``: ``auto`` resumes an existing run, ``none`` refuses it. Errors are V2FErrors of one line.
    """
    from v2f.training.trainer import fit

    if isinstance(recipe, str):
        config = load_config(recipe, changes)
    else:
        values = recipe.model_dump(mode="json") if isinstance(recipe, Config) else dict(recipe)
        config = build(RunConfig, override(values, list(changes)), "the recipe")
    return fit(config, resume=resume)


__all__: Sequence[str] = ("DataSet", "Loader", "Model", "load", "open_dataset", "train")
