"""``v2f shards precompute``: a copy of a data set that stores the outputs of frozen networks for each sample.

    photos uint8 --identity net--> KEY.identity.npy, float16 [P, E]
                 --pSp's encoder-> KEY.codes.npy, float16 [P, L, D]
    clip ---------voice encoder--> KEY.voice.npy, float16 [K, C, T'], for one window of the clip (voice_features.py)
         ---------sound coder----> KEY.codes_LEVEL.npy, uint16 [N], for one window of the clip (token_arrays.py)

So outputs that never change are computed once, not in every training step. The unit of work is a shard: ``--part i/n``
on any number of machines gives the same bytes, even if it is killed and restarted. Without ``--part``, the same command
computes the missing shards and commits the new data set.

Shape letters: N photos of a shard, B photos at once, P photos of a sample, H height, W width, E embedding, L styles, D
style width, K depths, C channels, T' frames.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from typing import Annotated, Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn
from tqdm import tqdm

from v2f import encoders, standins
from v2f.config import Config, Place, build, override
from v2f.data.encoding import encode_array, encode_codes, encode_embedding
from v2f.data.manifest import MANIFEST, ArrayKind, Dataset, open_dataset, read_manifest
from v2f.data.sample import AUDIO, CODES, EMBEDDING, PHOTOS, VOICE, Sample
from v2f.data.shards import write_shard
from v2f.data.tar import Members, split_members
from v2f.data.transforms import square, to_rgb
from v2f.encoders import EncoderConfig, ForeignEncoder
from v2f.encoders.foreign import ForeignConfig
from v2f.errors import V2FError
from v2f.nn.psp import PSP, PSPCodeEncoder
from v2f.prepare import parts, token_arrays, voice_features
from v2f.prepare.parts import WHOLE, Packing, Part, ShardRecord
from v2f.prepare.processes import cores, inference, one_thread, pool, torch_device
from v2f.prepare.yields import LEFT_OUT, YIELD
from v2f.roles import SoundCoder
from v2f.storage import store
from v2f.storage.lease import Lease
from v2f.system import to_picture
from v2f.weights import (
    DlibWeights,
    FaceNetWeights,
    IRSE50Weights,
    PSPEncoderWeights,
    StandInWeights,
    described,
    locate,
    read,
)

_MOST_WITH_WEIGHTS = 4  # processes by default: each holds the networks, with pSp 1.2 GB

Role = Literal["identity", "codes", "voice", "tokens"]


class PrecomputeConfig(Config):
    """Which networks, named as in a run's recipe (``system.frozen``, ``system.encoder``), and how to run them."""

    path: Place = Field("weights", description="folder or s3:// mirror with the files, which are found by name")
    identity: (
        Annotated[StandInWeights | IRSE50Weights | FaceNetWeights | DlibWeights, Field(discriminator="net")] | None
    ) = None
    codes: Annotated[StandInWeights | PSPEncoderWeights, Field(discriminator="net")] | None = None
    encoder: EncoderConfig | None = Field(None, description="a voice encoder that is frozen, of a file")
    tokens: Place | None = Field(None, description="a run that codes sounds, as --tokens")
    seconds: float = Field(6.0, gt=0, description="of a clip that the voice encoder hears, as system.seconds")
    batch: int = Field(32, ge=1, description="photos or clips at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    workers: int | None = Field(None, ge=1, description="processes on a CPU; null: one for each core, at most 4")

    @model_validator(mode="after")
    def _computes_something(self) -> "PrecomputeConfig":
        if not _networks_by_role(self):
            raise ValueError(
                "name at least one net: identity.net=ir_se50 identity.channels=rgb, codes.net=psp, "
                "encoder.net=unispeech_sat, ..., or a run that codes sounds: --tokens RUN"
            )
        if self.encoder is not None:
            if not isinstance(self.encoder, ForeignConfig):
                raise ValueError(f"encoder: {self.encoder.net} is trained in the run, so its features change")
            if self.encoder.thaw or self.encoder.random:
                raise ValueError("encoder: thaw and random change the features, set them to 0 and false")
        return self


def load(
    assignments: Sequence[str], recipe: str | None = None, voice: bool = False, tokens: str | None = None
) -> PrecomputeConfig:
    """The configuration from ``dotted.key=value`` assignments, based on a run's recipe if given: on its
    ``system.frozen``, or with ``voice`` on its ``system.encoder`` and ``system.seconds``. ``tokens``: a run that codes
    sounds."""
    values: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    if recipe is not None:
        # imported late: it imports all systems, which packing processes do not need
        from v2f.runs.config import load_config

        system = load_config(recipe).system.model_dump(mode="json")
        if "frozen" not in system or (voice and "encoder" not in system):
            lacks = "voice encoder" if voice else "frozen nets"
            raise V2FError(f"{recipe}: its system has no {lacks}, so there is nothing to compute; name the nets")
        wanted = ("path",) if voice else ("path", "identity", "codes")
        values |= {name: system["frozen"][name] for name in wanted}
        values |= {name: system[name] for name in ("encoder", "seconds") if voice}
        if not voice and values["codes"] is not None and values["codes"]["net"] == "precomputed":
            values["codes"] = {"net": "psp"}  # the network whose codes are to be stored
    values = override(values, assignments)
    if voice and values.get("encoder") is None:
        raise V2FError("--voice: name the encoder, encoder.net=unispeech_sat for example, or a --recipe that has one")
    return build(PrecomputeConfig, values, recipe or "precompute")


def precompute(
    data: str, out: str, config: PrecomputeConfig, part: Part = WHOLE, despite: bool = False
) -> Dataset | None:
    """Write the shards of ``data`` that belong to ``part`` to ``out``, with the outputs of ``config``'s networks added
    to each sample; for the whole, commit and open the new data set. ``despite``: also on a disk that is too small for
    voice features."""
    source = open_dataset(data)
    source.check_own("v2f shards precompute")
    if PHOTOS not in source.manifest.holds and _networks_by_role(config).keys() & {"identity", "codes"}:
        raise V2FError(f"{data}: not every sample has a photo, but precompute needs one; choose another data set")
    heard = {"voice": "a voice encoder", "tokens": "a sound coder"}
    for role in _networks_by_role(config).keys() & heard.keys():
        if AUDIO not in source.manifest.holds:
            raise V2FError(f"{data}: not every sample has audio, but {heard[role]} needs it; choose another data set")
    device = torch_device(config.device, "device")
    before = source.manifest.provenance.get("precomputed", {})  # outputs of other networks, which stay
    computed = {**before, "of": source.fingerprint, **_network_ids(config, device)}
    provenance = {**source.manifest.provenance, "precomputed": computed}
    # Packed in several parts, since other machines may be writing here: a different packing is an error, never removed.
    packing = Packing(parts=max(2, len(_shard_names(source))), plan=source.fingerprint, provenance=provenance)
    dataset = _existing(out, computed)
    if dataset is not None:
        return dataset
    kinds = _kinds(config, device)
    if VOICE in kinds:
        missing = [source.manifest.shards[number] for number in _missing(source, out, part)]
        clips, held = sum(shard.samples for shard in missing), sum(shard.bytes for shard in missing)
        voice_features.tell_cost(kinds[VOICE], config.seconds, clips, held, out, despite)
    parts.enter(None, out, packing)
    what = "v2f shards precompute" + (f" --part {part}" if part.of > 1 else "")
    with parts.leased(out, what, packing, part) as owner:
        dataset = _existing(out, computed, owner)  # another process may have committed it while this one waited
        if dataset is not None:
            return dataset
        parts.enter(owner, out, packing)
        _fill(owner, source, out, config, part, device)
        if part.of > 1:
            print(f"{out}: part {part} is computed; when all are, the same command without --part commits them")
            return None
        return _commit(owner, source, out, provenance, source.manifest.arrays | kinds)


def _existing(out: str, computed: dict[str, Any], owner: Lease | None = None) -> Dataset | None:
    """The data set in ``out``, or None if there is none; V2FError if it holds other outputs than ``computed``."""
    if not store.exists(store.join(out, MANIFEST)):
        return None
    dataset = open_dataset(out)
    if dataset.manifest.provenance.get("precomputed") != computed:
        raise V2FError(f"{out}: another data set is there; choose another --out, or remove this folder")
    parts.finish(owner, dataset, "v2f shards precompute")
    print(f"{out}: computed already by these nets, nothing to do; fingerprint {dataset.fingerprint}")
    return dataset


def _fill(owner: Lease, source: Dataset, out: str, config: PrecomputeConfig, part: Part, device: str) -> None:
    """Write the missing shards of a part."""
    missing = _missing(source, out, part)
    samples = [shard.samples for shard in source.manifest.shards]
    mine = sum(samples[part.number :: part.of])
    left = sum(samples[n] for n in missing)
    what = out if part.of == 1 else f"part {part} of {out}"
    workers, begun = _workers(config, device, len(missing)), time.monotonic()
    bar = tqdm(total=mine, unit="sample", desc=f"computing {what}", disable=None)
    with bar:
        bar.update(mine - left)
        for done, number in enumerate(_work(owner, source, out, config, device, missing, workers)):
            bar.update(samples[number])
            if not done and config.encoder is not None and left > samples[number]:
                took = time.monotonic() - begun
                bar.write(voice_features.tell_time(out, samples[number], took, left - samples[number], workers))


def _missing(source: Dataset, out: str, part: Part) -> list[int]:
    """The numbers of a part's shards that are not in ``out`` yet."""
    shards = _shard_names(source)
    return [n for n in range(part.number, len(shards), part.of) if parts.read_shard_record(out, shards[n]) is None]


def _shard_names(source: Dataset) -> list[str]:
    """The new name of each shard, numbered consecutively in each split."""
    count: dict[str, int] = defaultdict(int)
    found = []
    for shard in source.manifest.shards:
        found.append(WHOLE.shard(shard.split, count[shard.split]))
        count[shard.split] += 1
    return found


def _commit(
    owner: Lease, source: Dataset, out: str, provenance: dict[str, Any], arrays: dict[str, ArrayKind]
) -> Dataset:
    records = [parts.read_shard_record(out, name) for name in _shard_names(source)]
    rows = [record.rows for record in records if record is not None]
    if len(rows) < len(records):
        raise V2FError(f"{out}: a finished shard has disappeared; run the same command again")
    for name in (LEFT_OUT, YIELD):
        if store.exists(store.join(source.root, name)):
            owner.put(store.join(out, name), store.read_bytes(store.join(source.root, name)))
    if read_manifest(source.root) != source.manifest:  # a person may have been removed from it meanwhile
        raise V2FError(f"{source.root}: the data set changed during this command; remove {out} and start again")
    dataset = parts.commit(owner, out, rows, provenance, arrays)
    size, before = (sum(shard.bytes for shard in each.manifest.shards) / 1e6 for each in (dataset, source))
    print(
        f"{out}: {len(dataset.index.key)} samples, {size:.0f} MB ({before:.0f} MB before) in {len(rows)} shards; "
        f"fingerprint {dataset.fingerprint}"
    )
    return dataset


# --------------------------------------------------------------------------------------------- computing


def _workers(config: PrecomputeConfig, device: str, shards: int) -> int:
    """The number of processes that compute so many shards."""
    most = 1 if device == "cuda" else cores()
    if not all(isinstance(named, StandInWeights) for named in _networks_by_role(config).values()):
        most = min(most, _MOST_WITH_WEIGHTS)
    return max(1, min(config.workers or most, shards))


def _work(
    owner: Lease,
    source: Dataset,
    out: str,
    config: PrecomputeConfig,
    device: str,
    numbers: Sequence[int],
    workers: int,
) -> Iterator[int]:
    """Write the shards with these numbers; yields each number when its shard is written."""
    what = (owner, source.root, source.fingerprint, out, config, device)
    if workers == 1:
        with one_thread():
            yield from (_compute(*what, number) for number in numbers)
        return
    with pool(workers) as processes:
        for done in as_completed([processes.submit(_compute, *what, number) for number in numbers]):
            yield done.result()


def _compute(
    owner: Lease, data: str, fingerprint: str, out: str, config: PrecomputeConfig, device: str, number: int
) -> int:
    """Write one shard and its record; returns its number."""
    source = _opened(data, fingerprint)
    shard, name, index = source.manifest.shards[number], _shard_names(source)[number], source.index
    content = memoryview(store.read_bytes(store.join(data, shard.name)))
    rows = np.flatnonzero(index.shard == number)
    keys = [bytes(key).decode("ascii") for key in index.key[rows]]
    members: list[Members] = []
    for key, row in zip(keys, rows, strict=True):
        raw = content[int(index.offset[row]) : int(index.offset[row] + index.length[row])]
        if crc32(raw) != index.crc32[row]:
            raise V2FError(
                f"{store.join(data, shard.name)}: sample {key}: its checksum differs; `v2f shards verify` lists all "
                "damage; restore the shard first"
            )
        members.append({extension: bytes(member) for extension, member in split_members(key, raw).items()})
    samples = [Sample(key, each) for key, each in zip(keys, members, strict=True)]
    for role, (net, _) in _loaded(config.model_dump_json(), device).items():
        for sample, each, new in zip(samples, members, _encoded(role, net, samples, config, device), strict=True):
            for member in new.keys() & each.keys():
                setting = "encoder" if role == "voice" else role
                raise V2FError(f"{data}: sample {sample.key} has its {member} already; set {setting}=null to keep it")
            each.update(new)
    identities = [source.manifest.identities[identity] for identity in index.identity[rows]]
    with owner.holding():
        written = write_shard(out, name, shard.split, list(zip(keys, identities, members, strict=True)))
    parts.write_record(owner, out, parts.rows_name(name), ShardRecord.of(written, [], len(keys), []))
    return number


def _encoded(
    role: Role, net: nn.Module, samples: Sequence[Sample], config: PrecomputeConfig, device: str
) -> list[Members]:
    """The members of each sample with the outputs of the net of a role."""
    if role in ("voice", "tokens"):
        if role == "voice":
            assert isinstance(net, ForeignEncoder)
            features = voice_features.compute(net, samples, config.seconds, config.batch, device)
            arrays: list[dict[str, npt.NDArray[Any]]] = [{VOICE: each} for each in features]
        else:
            assert isinstance(net, SoundCoder)
            arrays = [*token_arrays.compute(net, samples, config.batch, device)]
        return [
            {f"{name}.npy": encode_array(sample.key, name, values) for name, values in each.items()}
            for sample, each in zip(samples, arrays, strict=True)
        ]
    member, encode = (EMBEDDING, encode_embedding) if role == "identity" else (CODES, encode_codes)
    outputs = _outputs(net, samples, config.batch, device)
    return [{member: encode(sample.key, each, len(each))} for sample, each in zip(samples, outputs, strict=True)]


def _outputs(net: nn.Module, samples: Sequence[Sample], batch: int, device: str) -> list[npt.NDArray[np.float32]]:
    """The outputs of ``net`` for the photos of each sample, [P, ...]; photos are cropped to their central square."""
    photos = [(at, to_rgb(sample.photo(p))) for at, sample in enumerate(samples) for p in range(sample.photo_count)]
    by_side: dict[int, list[int]] = defaultdict(list)
    for n, (_, photo_HWC) in enumerate(photos):
        by_side[min(photo_HWC.shape[:2])].append(n)
    found: dict[int, npt.NDArray[np.float32]] = {}
    with inference(batch, "batch"):
        for side, numbers in by_side.items():
            for at in range(0, len(numbers), batch):
                some = numbers[at : at + batch]
                photo_BHWC = torch.from_numpy(np.stack([square(photos[n][1], side) for n in some]))
                values_B = net(to_picture(photo_BHWC.permute(0, 3, 1, 2).to(device))).float().cpu().numpy()
                found.update(zip(some, values_B, strict=True))
    of_sample: list[list[npt.NDArray[np.float32]]] = [[] for _ in samples]
    for n, (at, _) in enumerate(photos):
        of_sample[at].append(found[n])
    return [np.stack(values) for values in of_sample]


# ------------------------------------------------------------------------------------------------- nets


def _networks_by_role(config: PrecomputeConfig) -> dict[Role, Any]:
    """Role -> its configured network."""
    roles: dict[Role, Any] = {"identity": config.identity, "codes": config.codes, "voice": config.encoder}
    roles |= {"tokens": config.tokens}
    return {role: named for role, named in roles.items() if named is not None}


def _network_ids(config: PrecomputeConfig, device: str) -> dict[Role, dict[str, Any]]:
    """Role -> what identifies the network; unsuitable files are refused here, before work starts."""
    _loaded.cache_clear()  # a file may have been replaced since an earlier call in this process
    found: dict[Role, dict[str, Any]] = {}
    for role, (net, digest) in _loaded(config.model_dump_json(), device).items():
        if role == "voice":
            assert isinstance(net, ForeignEncoder)
            found[role] = encoders.described(net, digest, config.seconds)
        elif role == "tokens":
            assert isinstance(net, SoundCoder)
            assert digest is not None
            found[role] = token_arrays.described(net, digest)
        else:
            found[role] = described(role, _networks_by_role(config)[role], digest)
    return found


def _kinds(config: PrecomputeConfig, device: str) -> dict[str, ArrayKind]:
    """Type and shape of the arrays with a clip's voice features and codes."""
    found = {}
    for role, (net, _) in _loaded(config.model_dump_json(), device).items():
        if role == "voice":
            assert isinstance(net, ForeignEncoder)
            found[VOICE] = voice_features.kind(net, config.seconds, device)
        elif role == "tokens":
            assert isinstance(net, SoundCoder)
            found |= token_arrays.kinds(net)
    return found


@functools.lru_cache(maxsize=1)
def _loaded(config_json: str, device: str) -> dict[Role, tuple[nn.Module, str | None]]:
    """Role -> network and the SHA-256 of its file; loaded once per process."""
    config = PrecomputeConfig.model_validate_json(config_json)
    found: dict[Role, tuple[nn.Module, str | None]] = {}
    for role, named in _networks_by_role(config).items():
        digest: str | None = None
        net: nn.Module
        if isinstance(named, ForeignConfig):
            net, digest = named.load(config.path)
        elif isinstance(named, str):
            net, digest = token_arrays.load(named)
        elif isinstance(named, StandInWeights):
            net = standins.load("identity" if role == "identity" else "codes")
        else:
            net, digest = read(named, locate(config.path, named))
            net = PSPCodeEncoder(net) if isinstance(net, PSP) else net
        found[role] = (net.eval().requires_grad_(False).to(device), digest)
    return found


@functools.lru_cache(maxsize=1)
def _opened(data: str, fingerprint: str) -> Dataset:
    """The source, opened once per process."""
    dataset = open_dataset(data)
    if dataset.fingerprint != fingerprint:
        raise V2FError(f"{data}: a different data set replaced it during this command; start again")
    return dataset
