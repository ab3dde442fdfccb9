"""The model card of an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from v2f.runs import datacard
from v2f.runs.config import RunConfig, what_is
from v2f.runs.run import MODEL, source_line
from v2f.weights import RunModule, UserWeights

CARD = "README.md"
_FEW = 20  # people of a group
_LOADED = {
    "model.pt2": "`torch.export.load('model.pt2').module()` is the graph, for this torch or a newer one.",
    "model.onnx": "`onnxruntime.InferenceSession('model.onnx')` runs the graph.",
}


@dataclass(frozen=True)
class GraphFile:
    name: str
    content: bytes
    about: str


def card(
    config: RunConfig,
    about: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    digest: str,
    evaluated: dict[str, Any],
    graph: GraphFile | None = None,
) -> str:
    """The model card."""
    system = config.system.name
    numbers = sum(tensor.numel() for tensor in weights.values())
    required = config.system.requirements()
    brought: dict[str, UserWeights | RunModule] = {**required.user_weights, **required.run_modules}
    lines = [
        f"# {config.name}",
        "",
        what_is(system),
        "",
        f"- System `{system}` of v2f, step {about['step']:,} of {config.train.steps:,}"
        + (f" ({about['samples']:,} samples seen)." if about["samples"] is not None else "."),
        f"- `{MODEL}`: {len(weights)} tensors, {numbers:,} numbers, "
        + ("moving averages of the weights" if about["averaged"] else "the weights as they were trained")
        + f"; SHA-256 `{digest}`. It holds what was trained, and none of the frozen nets.",
        *([] if graph is None else [f"- `{graph.name}`: {graph.about}"]),
        f"- Trained on data with the fingerprint `{about.get('fingerprint', 'unknown')}`, by v2f at "
        f"`{about.get('code', 'unknown')}`; [{datacard.CARD}]({datacard.CARD}) tells of them.",
        *(f"- It started from trained weights: {source_line(record)}." for record in about["init_from"]),
        "",
        "## Numbers",
        "",
        *_numbers(about, evaluated),
        "",
        "## Frozen nets",
        "",
        *_nets(about, brought),
        "",
        "## What the pictures are not",
        "",
        "They are made by a program: none is a photograph, and none is meant to show a person who exists. A",
        "face that is estimated from a voice shows what voices of this kind go with in the training data, with all its",
        "biases; it is not a likeness of the speaker. Do not use it to identify, find, accuse, classify or judge",
        "anybody, to impersonate anybody, or with a voice whose owner did not agree. Whom the training data do not",
        "show (by age, origin, language, health), it estimates badly, and nothing in the picture says so. Keep the",
        "notes that v2f writes into every picture.",
        "",
        "## License",
        "",
        "v2f is under Apache-2.0. These weights were made from data and frozen nets whose own terms go on to hold for",
        "them; who publishes them states a license here that those terms allow.",
        "",
        "## How to load it",
        "",
        "```sh",
        "v2f generate THIS_FOLDER voice.wav -o face.png   # for a system that hears a voice",
        "```",
        "```python",
        "from v2f.runs.run import Run",
        "",
        'system = Run.open("THIS_FOLDER").system()  # in eval mode; pictures = system.sample(batch)',
        "```",
        f"Without v2f, `safetensors.torch.load_file` reads `{MODEL}`: names are `MODULE.PARAMETER`.",
        *([] if graph is None else [_LOADED[graph.name]]),
    ]
    return "\n".join(lines) + "\n"


def _numbers(about: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[str]:
    lines = []
    if about["metrics"]:
        lines += [
            f"The newest validation when step {about['step']:,} was saved:",
            "",
            "| meter | value |",
            "| --- | ---: |",
            *(f"| {name} | {_number(value)} |" for name, value in sorted(about["metrics"].items())),
        ]
    for name, split in evaluated.get("splits", {}).items():
        measured = {by: own["lines"].get("voice", {}) for by, own in split["by"].items()}
        shares = {by: {k: v for k, v in own.items() if k.startswith("R@") and v} for by, own in measured.items()}
        names = list(dict.fromkeys(k for own in shares.values() for k in own))
        if names:
            chance = split.get("chance") or {}
            data = evaluated.get("data", {}).get("fingerprint")
            where = "the same data" if data == about.get("fingerprint") else f"the data `{data}`"
            lines += [
                *([""] if lines else []),
                f"`v2f eval` of this step on {where}: {split.get('what', name)}, gallery of {split.get('gallery')}. "
                "No loss has seen the referee; the judge is what the losses look at.",
                "",
                f"| | {' | '.join(f'this run, by the {by}' for by in shares)} | chance |",
                f"| --- |{' ---: |' * (len(shares) + 1)}",
                *(
                    f"| {k} | {' | '.join(_percent(own.get(k)) for own in shares.values())} "
                    f"| {100 * chance.get(k, 0):.1f} % |"
                    for k in names
                ),
            ]
        lines += _groups(split)
    return lines or ["Nothing was measured before this checkpoint; measure it with `v2f eval`."]


def _groups(split: Mapping[str, Any]) -> list[str]:
    """The numbers of groups of real speakers, by the first observer; groups so small that single people would show
    through are not told."""
    by: dict[str, dict[str, Any]] = split["by"]
    told = next(iter(by), "")
    lines = []
    for name, own in by.get(told, {}).get("attributes", {}).items():
        if split["attributes"][name]["source"] == "world":
            continue
        for group, of in own["slices"].items():
            if of["people"] >= _FEW:
                shares = " | ".join(_percent(of.get(each)) for each in ("R@10", "agreement"))
                lines.append(f"| {name}: {group} | {of['people']} | {shares} | {100 * of['chance']:.1f} % |")
    if not lines:
        return []
    return [
        "",
        f"Groups of at least {_FEW} speakers, by the {told}. Agreement: the people nearest to a face belong to its",
        "speaker's group; its chance is that of the same faces, dealt at random.",
        "",
        "| | people | R@10 | agreement | chance |",
        "| --- | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _nets(about: Mapping[str, Any], brought: Mapping[str, UserWeights | RunModule]) -> list[str]:
    lines = []
    stand_ins = about.get("stand_ins", "none")
    if stand_ins != "none":
        lines.append(
            f"Stand-ins: {stand_ins}. These small nets come with v2f and know the synthetic world only, so that all "
            "numbers and pictures hold for that world."
        )
    for role, net in brought.items():
        digest = about.get("weights", {}).get(role, "unknown")
        lines.append(
            f"- {role}: {net.published.what}, not in this folder ({net.published.licence}). Put it where `config.yaml` "
            f"looks for it (`system.frozen`); SHA-256 `{digest}`."
        )
    return lines or ["None."]


def _percent(share: Mapping[str, float] | None) -> str:
    return "-" if share is None else f"{100 * share['value']:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
