"""What the measurements mean: which ranks and hosts are faulty, different or slow; and how that is shown."""

import statistics
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from v2f.preflight.reports import Link, RankReport, named


def judge(ranks: Sequence[RankReport], links: Sequence[Link], tolerance: float, least_gb_s: float | None) -> list[str]:
    """One line for each problem to look into before a long run."""
    found: dict[str, list[str]] = {}
    for each in ranks:
        for stage, fault in each.faults.items():
            found.setdefault(f"{stage}: {fault}", []).append(each.where)
    for kind in sorted({each.kind for each in ranks}):
        for name in sorted({name for each in ranks for name in each.answers}):
            alike = {each.where: each.answers[name] for each in ranks if each.kind == kind and name in each.answers}
            _odd_ones(alike, f"computes a different {name} than the other {kind}", found)
    for name in sorted({name for each in ranks for name in each.versions}):
        _odd_ones(
            {each.where: f"{each.versions[name]}" for each in ranks}, f"has a different {name} than the others", found
        )
    for name in sorted({name for each in ranks for name in each.rates}):
        rates = {each.where: each.rates[name] for each in ranks if name in each.rates}
        _slow_ones(rates, name, tolerance, found)
    hosts = {name for link in links for name in link.hosts}
    within = {link.hosts[0]: link.rate for link in links if link.scope == "within a host"}
    _slow_ones(within, "all-reduce within the host, GB/s", tolerance, found)
    # A slow host slows down both of its pairs; each neighbor also has a pair without it, so take a host's best pair.
    pairs = [link for link in links if link.scope == "between two hosts"]
    between = {host: max(link.rate for link in pairs if host in link.hosts) for host in sorted(hosts) if pairs}
    _slow_ones(between, "all-reduce with its neighbors, GB/s", tolerance, found)
    for link in links:
        if link.scope == "all ranks" and least_gb_s is not None and link.rate < least_gb_s:
            found[f"all-reduce: {link.rate:.3g} GB/s, below the required {least_gb_s:g}"] = ["all ranks"]
    return [f"{named(places, len(ranks))}: {what}" for what, places in found.items()]


def _odd_ones(values: dict[str, str], what: str, found: dict[str, list[str]]) -> None:
    """Name those that differ from the most common value; all of them if there is a tie."""
    counts = Counter(values.values()).most_common()
    if len(counts) > 1:
        usual = counts[0][0] if counts[0][1] > counts[1][1] else None
        found[what] = [where for where, value in values.items() if value != usual]


def _slow_ones(rates: dict[str, float], what: str, tolerance: float, found: dict[str, list[str]]) -> None:
    if len(rates) > 1:
        median = statistics.median_high(rates.values())  # with two ranks, this is the faster one
        for where, rate in rates.items():
            if rate * (1 + tolerance) < median:
                line = f"slow: {what}: {rate:.3g}, the median is {median:.3g} ({median / rate - 1:.0%} more)"
                found.setdefault(line, []).append(where)


def show(ranks: Sequence[RankReport], links: Sequence[Link], findings: Sequence[str]) -> None:
    """Print the table of rates, the all-reduces and the findings."""
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    units = list(dict.fromkeys(unit for each in ranks for unit in each.rates))
    table = Table("rank", "host", "device", *units, title=f"{len(ranks)} ranks: {ranks[0].kind}")
    for each in ranks:
        rates = [f"{each.rates[unit]:.4g}" if unit in each.rates else "-" for unit in units]
        table.add_row(str(each.rank), each.host, each.device, *rates)
    console.print(table)
    for link in links:
        rates = [f"{mib:g} MiB {rate:.3g}" for mib, rate in link.rates.items()]
        console.print(
            f"all-reduce, {link.scope} ({', '.join(link.hosts[:4])}), bus GB/s: {', '.join(rates)}", highlight=False
        )
    if len(ranks) > 1 and not links:
        console.print("all-reduce: not measured, because a device is faulty")
    for line in findings:
        console.print(f"[bold red]look at[/] {line}", highlight=False)
    if not findings:
        console.print("nothing to look at: all ranks compute correctly and at similar speed", highlight=False)
