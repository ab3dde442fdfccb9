"""The data card of a run: what the manifests say about its data sets, without names, places or addresses."""

import re
from collections.abc import Iterator

from v2f.data.manifest import Manifest, read_manifest
from v2f.errors import V2FError
from v2f.runs.config import RunConfig, SourceConfig

CARD = "DATA.md"

_SOURCES = {
    "synthetic": "the synthetic world of v2f: its people, voices and portraits are made by a program, nobody is real",
    "shapes": "primitive monochrome pictures: digits, drawn by a program",
    "things": "sounding things (dogs, cats, bells, engines), their pictures and sounds made by a program",
    "pairs": "pairs of recordings and photos that a table names",
    "folder": "a folder of pictures or sounds",
    "voxceleb": "VoxCeleb with VGGFace, as these corpora are published",
    "avspeech": "AVSpeech, as this corpus is published",
}


def card(config: RunConfig, fingerprint: str | None) -> str:
    """Markdown about every data set that ``config`` trains on; the card says which ones cannot be opened.

    ``fingerprint``: of all data that the run was trained on; with several data sets, it is not that of any one.
    """
    sources = config.data.sources
    lines = [f"# The data of {config.name}", ""]
    for source in sources:
        lines += [*_about(source, fingerprint if len(sources) == 1 else None), ""]
    lines += [
        "## What a manifest does not know",
        "",
        "Who publishes the weights adds it here: where the data come from and under which terms, whether the people",
        "agreed and to what, their languages, ages and origins, and who is missing. A model has its data's biases.",
        "`v2f shards remove` takes a person out of a data set; weights that were trained before still carry traces.",
    ]
    return "\n".join(lines) + "\n"


def _about(source: SourceConfig, fingerprint: str | None) -> Iterator[str]:
    yield f"## {re.split(r'[/@]', source.path.rstrip('/'))[-1] or 'data'}"
    yield ""
    try:
        manifest = read_manifest(source.path)
    except V2FError:
        yield "This data set could not be opened when the card was written" + (
            f"; its fingerprint is `{fingerprint}`." if fingerprint else "."
        )
        return
    found = manifest.fingerprint
    yield f"- Fingerprint `{found}`, schema {manifest.schema_version}, made by {manifest.created_by}."
    if fingerprint not in (None, found):
        yield f"- It has changed: the run was trained on data with the fingerprint `{fingerprint}`."
    recipe = manifest.provenance.get("recipe")
    kind = recipe.get("source") if isinstance(recipe, dict) else None
    if isinstance(kind, str) and kind in _SOURCES:
        yield f"- Packed from {_SOURCES[kind]}."
    yield f"- Every sample holds {', '.join([*manifest.holds, *(f'`{n}` {k}' for n, k in manifest.arrays.items())])}."
    yield f"- The split `{source.split}` was trained on."
    yield ""
    yield from _splits(manifest)


def _splits(manifest: Manifest) -> Iterator[str]:
    yield "| split | samples | people | shards | size |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, size in manifest.splits.items():
        own = [shard for shard in manifest.shards if shard.split == name]
        megabytes = sum(shard.bytes for shard in own) / 1e6
        yield f"| {name} | {size.samples:,} | {size.people:,} | {len(own):,} | {megabytes:,.1f} MB |"
