"""The network between ranks: which all-reduces are measured, and the bandwidth of each."""

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from v2f.preflight.reports import Link, RankReport
from v2f.preflight.workloads import wait_for

REDUCED_MIB = {"cuda": [1.0, 16.0, 256.0], "cpu": [0.0625, 1.0, 4.0]}
_REDUCTIONS = 10


def rounds(ranks: Sequence[RankReport]) -> list[list[Link]]:
    """The all-reduces to measure. Those of one round share no host and run at the same time."""
    hosts: dict[str, list[int]] = {}
    for each in ranks:
        hosts.setdefault(each.host, []).append(each.rank)
    names, found = list(hosts), [[Link("all ranks", list(hosts), [each.rank for each in ranks])]]
    if len(names) > 1:
        found.append([Link("within a host", [name], hosts[name]) for name in names if len(hosts[name]) > 1])
    if len(names) > 2:
        pairs = [(names[i], names[(i + 1) % len(names)]) for i in range(len(names))]
        odd = pairs[-1:] if len(names) % 2 else []
        for some in (pairs[: len(pairs) - len(odd) : 2], pairs[1 : len(pairs) - len(odd) : 2], odd):
            found.append(
                [Link("between two hosts", list(pair), sorted(hosts[pair[0]] + hosts[pair[1]])) for pair in some]
            )
    return [links for links in found if links and all(len(link.ranks) > 1 for link in links)]


def reduce_all(
    links: Sequence[Link], own: RankReport, device: torch.device, sizes_mib: Sequence[float]
) -> dict[float, float]:
    """This rank's bus bandwidth in GB/s by MiB, in the link that it is part of, if it is part of one. Collective."""
    groups = [dist.new_group(link.ranks) for link in links]
    rates = {}
    for link, group in zip(links, groups, strict=True):
        if own.rank not in link.ranks:
            continue
        n = len(link.ranks)
        for mib in sizes_mib:
            tensor, spent = torch.empty(round(mib * (1 << 20)) // 4, device=device), []
            for _ in range(_REDUCTIONS):
                tensor.fill_(own.rank + 1)
                wait_for(device)
                start = time.perf_counter()
                dist.all_reduce(tensor, group=group)
                wait_for(device)
                spent.append(time.perf_counter() - start)
                if not bool((tensor == sum(link.ranks) + n).all()):
                    own.faults["all-reduce"] = f"a sum over {n} ranks is wrong"
            rates[mib] = 2 * (n - 1) / n * 4e-9 * len(tensor) / statistics.median(spent)
    return rates
