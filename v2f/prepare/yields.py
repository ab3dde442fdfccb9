"""The yield of a corpus: how many samples were kept, and what was left out for which reasons, in total and by person.

    {"kept": {"samples", "people", "splits"}, "left_out": {"samples", "reasons"}, "rejected_photos": {reason: photos},
     "people": {identity: {"kept": samples, "left_out": {reason: samples}}}}

The counts depend on the recipe alone, not on the number of processes or parts.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from v2f.errors import V2FError
from v2f.prepare import LeftOut
from v2f.storage import store

YIELD = "yield.json"
LEFT_OUT = "left_out.jsonl"
_SHOWN = 20  # lines printed per reason; left_out.jsonl has all


def yield_report(
    kept: Mapping[tuple[str, str], int], left_out: Sequence[LeftOut], rejected: Iterable[LeftOut] = ()
) -> dict[str, Any]:
    """The report. ``kept``: samples by (split, identity). A photo ``rejected`` for several samples counts once."""
    people: dict[str, dict[str, Any]] = defaultdict(lambda: {"kept": 0, "left_out": Counter()})
    splits: Counter[str] = Counter()
    for (split, identity), samples in kept.items():
        people[identity]["kept"] += samples
        splits[split] += samples
    reasons: Counter[str] = Counter()
    photos = Counter(reason for _, _, reason in {(each.identity, each.name, each.reason) for each in rejected})
    for each in left_out:
        photos[each.reason] += each.photos
        if each.photos and not each.samples:
            continue
        reasons[each.reason] += each.samples
        if each.identity:
            people[each.identity]["left_out"][each.reason] += each.samples
    return {
        "kept": {
            "samples": splits.total(),
            "people": sum(bool(person["kept"]) for person in people.values()),
            "splits": dict(sorted(splits.items())),
        },
        "left_out": {"samples": reasons.total(), "reasons": _ranked(reasons)},
        "rejected_photos": _ranked(+photos),
        "people": {
            identity: {"kept": person["kept"], "left_out": _ranked(person["left_out"])}
            for identity, person in sorted(people.items())
        },
    }


def to_json(report: Mapping[str, Any]) -> bytes:
    return (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode()


def write_left_out(
    root: str, left_out: Iterable[LeftOut], put: Callable[[str, bytes], None] = store.write_bytes
) -> None:
    """Write one line of JSON for each input that was left out; ``put`` writes a file."""
    said = "".join(json.dumps(vars(each), ensure_ascii=False) + "\n" for each in left_out)
    put(store.join(root, LEFT_OUT), said.encode())


def read_left_out(root: str) -> list[LeftOut]:
    """Read the list that :func:`write_left_out` wrote; empty if there is none."""
    path = store.join(root, LEFT_OUT)
    if not store.exists(path):
        return []
    try:
        # not splitlines: a name may contain line separators that JSON does not escape
        return [LeftOut(**json.loads(line)) for line in store.read_bytes(path).decode().split("\n") if line]
    except (ValueError, TypeError) as error:
        raise V2FError(f"{path}: not a list of left-out inputs ({error}); restore or remove it") from error


def why(left_out: Sequence[LeftOut]) -> str:
    """One line on why inputs were left out: the reasons with their counts, and the first input of the most frequent
    one."""
    counts = Counter(each.reason for each in left_out).most_common()
    first = next((f"; the first: {each}" for each in left_out if each.reason == counts[0][0]), "")
    return ", ".join(f"{count} x {reason}" for reason, count in counts) + first


def lines(report: Mapping[str, Any], worst: int = 5) -> list[str]:
    """The report as text; ``worst``: how many of the people with the most losses to name."""
    kept, lost = report["kept"], report["left_out"]
    everything = kept["samples"] + lost["samples"]
    share = f" ({kept['samples'] / everything:.1%})" if everything else ""
    said = [f"yield: {kept['samples']} of {everything} samples{share}, of {kept['people']} people"]
    said += [f"  left out: {samples} {reason}" for reason, samples in lost["reasons"].items() if samples]
    said += [f"  photos rejected: {count} {reason}" for reason, count in report["rejected_photos"].items()]
    losses = {identity: sum(person["left_out"].values()) for identity, person in report["people"].items()}
    without = sum(losses[identity] > 0 and not person["kept"] for identity, person in report["people"].items())
    if without:
        said.append(f"  people of whom nothing is left: {without}")
    most = sorted((identity for identity in losses if losses[identity]), key=lambda identity: -losses[identity])
    if most[:worst]:
        named = ", ".join(
            f"{identity} {losses[identity]} of {losses[identity] + report['people'][identity]['kept']}"
            for identity in most[:worst]
        )
        said.append(f"  most left out of: {named}")
    return said


def examples(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each input that was left out; of many with the same reason, the first ones and the number of
    others."""
    by_reason: dict[str, list[LeftOut]] = defaultdict(list)
    for each in left_out:
        by_reason[each.reason].append(each)
    said = []
    for reason, alike in by_reason.items():
        said += [f"left out: {each}" for each in alike[:_SHOWN]]
        if len(alike) > _SHOWN:
            said.append(f"left out: {len(alike) - _SHOWN} more: {reason}")
    return said


def _ranked(counts: "Counter[str]") -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
