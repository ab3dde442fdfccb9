"""A trained system in MLflow's model registry: a model that takes a table of inputs and returns a table of outputs.

    RUN -- register() --> an export of a checkpoint, and this package's source --> models:/NAME/VERSION
    models:/NAME/VERSION -- mlflow.pyfunc.load_model() --> predict({audio: bytes}) --> {picture: PNG, ...}

The columns follow from the inputs and outputs that the system declares (:data:`COLUMNS`, :class:`OfAnyKind`); a system
that makes a face from a voice has columns of its own (:class:`VoiceToFace`).

MLflow usually pickles a Python object, and loading a pickle executes whatever is in it. Here the model is what ``v2f
checkpoint export`` writes (safetensors, YAML, a model card), and the model's metadata names the module that loads it:
this one, with :func:`_load_pyfunc`. The package's source is included (``code/``), so that a server needs only the
pinned requirements.
"""

import base64
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from PIL import Image

import v2f
from v2f.data.audio import UnusableError, decode_voice, likeness
from v2f.data.media import png, wav
from v2f.errors import V2FError
from v2f.generate import DISCLAIMER, face_of, is_face_of_voice, make, provenance, shares, voice_input, windows
from v2f.given import GIVEN_AS, SHORTEST_S, Given, labeled
from v2f.pipeline import FILE, SOUND, Opened, Pipeline, opened
from v2f.pipeline import card as pipeline_card
from v2f.roles import Labeling
from v2f.runs import checkpoint, datacard
from v2f.runs.export import export
from v2f.runs.modelcard import CARD
from v2f.runs.run import MODEL, Run
from v2f.storage import store
from v2f.storage.local import scratch_folder
from v2f.system import Embedding, Generative, Kind, Label, Noise, Picture, Sound, System, Tokens, Video
from v2f.tracking.mlflow_client import experiment_id, fluent
from v2f.tracking.state import read_state
from v2f.world.people import World, WorldConfig
from v2f.world.voices import render_voices

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

AUDIO = "audio"
COLUMNS: dict[type[Kind], str] = GIVEN_AS | {Sound: AUDIO}
"""Column of each kind of input: a file as bytes or base64, a label by its name, noise by its seed."""
NEEDS = (
    *("torch", "torchvision", "torchaudio", "facenet-pytorch", "lpips", "safetensors", "numpy", "scipy", "pillow"),
    *("soundfile", "av", "s3fs", "fsspec", "isal", "pydantic", "pyyaml", "psutil", "tqdm", "rich", "mlflow"),
    "webrtcvad-wheels",
)
"""The dependencies that the model imports; those that only training needs are left out."""


class VoiceToFace:
    """The model that ``mlflow.pyfunc.load_model`` returns: a loaded export that answers tables of recordings."""

    def __init__(self, run: Run, system: System) -> None:
        self._run, self.system = run, system
        self._hears = voice_input(run, system)

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """A face for each row: ``picture`` (a PNG whose notes say what it is), ``seconds`` of voice, ``windows`` that
        were averaged, ``doubt`` (why it is hardly speech; empty if there is no reason), ``disclaimer``.

        ``audio`` holds whole files, in any format that libsndfile or FFmpeg reads, as bytes or base64. A row without a
        usable voice raises an MlflowException that names the row, and the whole table is refused.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        faces = []
        for row, content in enumerate(model_input[AUDIO]):
            try:
                faces.append(self._face(_bytes(content, "recording")))
            except (UnusableError, V2FError) as error:
                raise MlflowException.invalid_parameter_value(f"{AUDIO}, row {row}: {error}") from error
        return pd.DataFrame(faces, index=model_input.index)

    def _face(self, content: bytes) -> dict[str, Any]:
        rate = self._hears.sample_rate
        wav_T = decode_voice(content, sample_rate=rate, min_seconds=SHORTEST_S)
        wav_WT = windows(wav_T, self._hears.frames)
        seconds, count = len(wav_T) / rate, len(wav_WT)
        notes = provenance(self._run, self.system) | {"Voice": f"{seconds:.2f} s, {count} window(s)"}
        doubt = likeness(wav_T, rate).doubt
        notes |= {"Doubt": doubt} if doubt else {}
        picture = png(face_of(self.system, torch.from_numpy(wav_WT)), notes)
        return {"picture": picture, "seconds": seconds, "windows": count, "doubt": doubt, "disclaimer": DISCLAIMER}


class OfAnyKind:
    """The model that ``mlflow.pyfunc.load_model`` returns for any other system, and for a pipeline."""

    def __init__(self, run: Opened, system: Generative) -> None:
        """V2FError if an input of the system has no column, or if it has no input but noise, or no output."""
        self._run, self.system = run, system
        for name, kind in system.asks().items():
            if type(kind) not in COLUMNS:
                raise V2FError(f"{run.path}: its system asks for {name} ({type(kind).__name__}): no column gives that")
        if all(isinstance(kind, Noise) for kind in system.asks().values()):
            raise V2FError(f"{run.path}: its system does not hear a voice, and is given nothing else: noise alone")
        if not system.makes():
            raise V2FError(f"{run.path}: its system makes nothing that a column could hold")

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """The outputs for each row, under the names of :meth:`System.makes`: a picture as PNG and a sound as WAV, with
        provenance; the most likely label, and the share of each as JSON (``NAME_shares``); an embedding and tokens as
        a JSON list; and the ``disclaimer``. If the label may be given as a photo or a video, also the ``label``.

        A row that cannot be used raises an MlflowException that names the row, and the whole table is refused.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        made = []
        for row, values in enumerate(model_input.to_dict("records")):
            try:
                made.append(self._made(self._given(values)))
            except V2FError as error:
                raise MlflowException.invalid_parameter_value(f"row {row}: {error}") from error
        return pd.DataFrame(made, index=model_input.index)

    def _given(self, values: dict[Any, Any]) -> Given:
        import pandas as pd

        given: dict[str, Any] = {}
        for column, (kind, needed) in columns_of(self.system).items():
            value = values.get(column)
            if value is None or pd.isna(value):
                if needed:
                    raise V2FError(f"there is no {column}")
                continue
            if kind is Noise:
                value = int(value)
            elif kind is not Label:
                value = _bytes(value, column)
            given[GIVEN_AS[kind]] = value
        return Given(**given)

    def _made(self, given: Given) -> dict[str, Any]:
        given, _ = labeled(self.system, given)
        made, told = make(self.system, given), provenance(self._run, self.system, given)
        found: dict[str, Any] = {"label": given.label} if isinstance(self.system, Labeling) else {}
        for name, kind in self.system.makes().items():
            if isinstance(kind, Picture):
                found[name] = png(made[name], told)
            elif isinstance(kind, Sound):
                found[name] = wav(made[name].flatten().float().cpu().numpy(), kind.rate, told)
            elif isinstance(kind, Label):
                found[name] = kind.names[int(made[name].argmax())]
                found[f"{name}_shares"] = json.dumps(shares(kind, made[name]), ensure_ascii=False)
            else:
                found[name] = json.dumps(made[name].tolist())
        return found | {"disclaimer": told["Disclaimer"]}


def columns_of(system: Generative) -> dict[str, tuple[type[Kind], bool]]:
    """Column of each input -> its kind, and whether a row must have it: a photo, a video or a label may do."""
    asked = {COLUMNS[type(kind)]: (type(kind), True) for kind in system.asks().values()}
    if isinstance(system, Labeling):
        asked |= {COLUMNS[kind]: (kind, False) for kind in (Picture, Video, Label)}
    return asked


def _bytes(content: bytes | str, what: str) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except ValueError as error:
        raise V2FError(f"neither the bytes of a {what} nor their base64") from error


def _load_pyfunc(path: str) -> VoiceToFace | OfAnyKind:
    """Load an export; MLflow calls this, because the model's ``MLmodel`` file names this module."""
    run = opened(path)
    system = run.system()
    if isinstance(run, Run) and isinstance(system, System) and is_face_of_voice(system):
        return VoiceToFace(run, system)
    return OfAnyKind(run, system)


def register(name: str, model: str | None = None, uri: str | None = None, which: str | int = "latest") -> str:
    """Register a checkpoint of the run ``name``, or a pipeline, at MLflow as a new version of ``model``; returns
    models:/MODEL/VERSION.

    ``model``: default the run's name. ``uri``: MLflow's address; default MLFLOW_TRACKING_URI, then the run's own. The
    version is linked to the MLflow run that tracked ``name``, if this MLflow has it; a pipeline has none. V2FError if
    the system's inputs or outputs do not fit a table or are noise alone, if there is no checkpoint yet, and if MLflow
    cannot be reached.
    """
    run = opened(name, uri)
    tracking = (run if isinstance(run, Run) else run.runs[SOUND]).config.tracking
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri
    if uri is None:
        raise V2FError(f"{run.path}: it was trained without MLflow; name an address with --uri or MLFLOW_TRACKING_URI")
    model = model or run.name
    with scratch_folder() as scratch, fluent(uri) as client:
        exported = opened(_exported(run, which, os.path.join(scratch, "model")))
        system = _load_pyfunc(exported.path).system  # checks it before anything is sent
        about, card = exported.info, store.read_bytes(store.join(exported.path, CARD)).decode()
        found = _tracked(client, run, which) if isinstance(run, Run) and not run.exported else None
        experiment = found.experiment_id if found else experiment_id(client, uri, tracking.experiment)
        tags = {
            **{
                f"v2f.{key}": str(about[key]) for key in ("step", "samples", "fingerprint", "stand_ins") if key in about
            },
            "v2f.runs.run": run.name,
            "v2f.disclaimer": provenance(exported, system)["Disclaimer"],
            "mlflow.source.name": "v2f register",
        }
        code = _source(os.path.join(scratch, "v2f"))
        samples = about.get("samples") or 0
        version = _log(exported, system, code, model, experiment, found and found.run_id, samples, tags)
        client.update_model_version(model, version, card)
    where = f"models:/{model}/{version}"
    link = f"of the MLflow run {found.run_id}" if found else "of no MLflow run there"
    print(f"{where}: step {about.get('step', 'unknown')} of {run.path}, {link}; mlflow.pyfunc.load_model({where!r})")
    return where


def _exported(run: Run | Pipeline, which: str | int, folder: str) -> str:
    """A local folder with an export of ``run``, which may be an export itself."""
    if isinstance(run, Pipeline):
        run.step_of(which)  # raises if the choice of a checkpoint is meant for a run
        for key, one in run.runs.items():
            _exported(one, "latest", store.join(folder, key))
        store.write_bytes(store.join(folder, CARD), pipeline_card(run).encode())
        store.write_bytes(store.join(folder, FILE), run.portable().encode())
        return folder
    if not run.exported:
        with contextlib.redirect_stdout(io.StringIO()):  # it would print the path of a temporary folder
            export(run.path, folder, which)
        return folder
    if which != "latest":
        run.checkpoint(which)  # raises: an export has only one
    told = [name for name in (datacard.CARD,) if store.exists(store.join(run.path, name))]  # older exports lack it
    for name in (MODEL, CARD, "config.yaml", *told):
        store.write_bytes(store.join(folder, name), store.read_bytes(store.join(run.path, name)))
    return folder


def _tracked(client: Any, run: Run, which: str | int) -> Any:
    """The MLflow run that tracked ``run``; None if this MLflow does not have it."""
    from mlflow.exceptions import MlflowException

    run_id = read_state(run.path).get("run_id")
    run_id = run_id or checkpoint.read_state(run.checkpoint(which))["state"].get("run_id")
    if run_id is None:
        return None
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return info if info.lifecycle_stage == "active" else None


def _source(folder: str) -> str:
    """A copy of this package's source, without the recipes, which only training needs."""
    ignored = shutil.ignore_patterns("shipped", "__pycache__")
    return shutil.copytree(Path(v2f.__file__).parent, folder, ignore=ignored)


def _log(
    exported: Run | Pipeline,
    system: Generative,
    code: str,
    model: str,
    experiment: str,
    run_id: str | None,
    samples: int,
    tags: dict[str, str],
) -> str:
    """Send the model to MLflow and return its version. ``samples``: its position on the run's axis."""
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    mlflow.set_experiment(experiment_id=experiment)
    sent = Model.log(
        artifact_path=None,
        name=model,
        flavor=mlflow.pyfunc,
        registered_model_name=model,
        run_id=run_id,
        step=samples,
        tags=tags,
        loader_module=__name__,
        data_path=exported.path,
        code_paths=[code],
        signature=_signature(system),
        input_example=pd.DataFrame({name: [value] for name, value in _examples(system).items()}),
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in NEEDS],
        metadata={"v2f": json.dumps(exported.info)},
    )
    return str(sent.registered_model_version)


def _signature(system: Generative) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    types = {Label: DataType.string, Noise: DataType.long}
    given = [
        ColSpec(types.get(kind, DataType.binary), column, required=needed)
        for column, (kind, needed) in columns_of(system).items()
    ]
    if is_face_of_voice(system):
        made = {
            "picture": DataType.binary,
            "seconds": DataType.double,
            "windows": DataType.long,
            "doubt": DataType.string,
        }
    else:
        made = {"label": DataType.string} if isinstance(system, Labeling) else {}
        for name, kind in system.makes().items():
            made[name] = DataType.string if isinstance(kind, Label | Embedding | Tokens) else DataType.binary
            made |= {f"{name}_shares": DataType.string} if isinstance(kind, Label) else {}
    made["disclaimer"] = DataType.string
    outputs = Schema([ColSpec(kind, name) for name, kind in made.items()])
    return ModelSignature(inputs=Schema([*given]), outputs=outputs)


def _examples(system: Generative) -> dict[str, bytes | str | int]:
    """An example input for each column that a row must have; where a photo may show the label, that photo."""
    asked = {COLUMNS[type(kind)]: kind for kind in system.asks().values()}
    if isinstance(system, Labeling):
        asked = {name: kind for name, kind in asked.items() if not isinstance(kind, Label)}
        asked[COLUMNS[Picture]] = system.looks
    return {name: _example(kind) for name, kind in asked.items()}


def _example(kind: Kind) -> bytes | str | int:
    """An example input of a kind."""
    if isinstance(kind, Sound):
        return synthetic_voice()
    if isinstance(kind, Label):
        return kind.names[0]
    if isinstance(kind, Noise):
        return 0
    file = io.BytesIO()
    shades = [Image.new("RGB", (64, 64), (shade, 96, 160)) for shade in range(0, 256, 16)]
    if isinstance(kind, Picture):
        shades[8].save(file, format="PNG")
    else:
        shades[0].save(file, format="GIF", save_all=True, append_images=shades[1:], duration=100)
    return file.getvalue()


def synthetic_voice(seconds: float = 2.0, sample_rate: int = 16_000) -> bytes:
    """A WAV of the first person of the synthetic world, who speaks nonsense."""
    world, nobody = World(WorldConfig()), np.zeros(1, np.int64)
    wav_1T = render_voices(world.voice(nobody), world.clip(nobody, nobody), nobody, seconds, sample_rate)
    file = io.BytesIO()
    soundfile.write(file, wav_1T[0], sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
