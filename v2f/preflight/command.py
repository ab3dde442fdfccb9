"""The command ``python -m v2f.preflight``: measure, compare, show."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version

import torch
import torch.distributed as dist

from v2f.errors import V2FError, entry_point, first_line, guarded
from v2f.preflight import workloads
from v2f.preflight.findings import judge, show
from v2f.preflight.meeting import Meeting
from v2f.preflight.network import REDUCED_MIB, reduce_all, rounds
from v2f.preflight.reports import Link, RankReport
from v2f.preflight.workloads import Workload
from v2f.storage import store


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 nothing to look at, 1 a finding, or a stage that did not end."""
    text = "Before a long run: measure every device and the network between them, and compare."
    parser = argparse.ArgumentParser(prog="v2f.preflight", description=text)
    parser.add_argument(
        "--recipe", metavar="RECIPE.yaml", help="train this system; default: the voice encoder of voice-styled faces"
    )
    parser.add_argument("--tolerance", type=float, default=0.15, help="how much slower than the median counts as slow")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of each measurement; overheating shows after a minute"
    )
    parser.add_argument("--least-gb-s", type=float, help="smallest acceptable bus bandwidth of all ranks, in GB/s")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds beyond --seconds that a stage may take")
    parser.add_argument("--json", metavar="FILE", help="write the measurements and findings to this file")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")
    args = parser.parse_args(arguments)
    return guarded(lambda: preflight(args), debug=False)


def preflight(args: argparse.Namespace) -> int:
    """Measure, compare, show; the exit code. Collective over the ranks of the launcher."""
    meeting = Meeting(args.limit, work_s=args.seconds)
    own, device = introduce(meeting.rank)
    _measure_device(meeting, own, device, args)
    ranks = _gathered(meeting, own)
    links: list[Link] = []
    if meeting.world_size > 1 and not any(each.faults.keys() - {"step"} for each in ranks):
        links = _measure_network(meeting, own, device, ranks, args)
        ranks = _gathered(meeting, own)
        dist.destroy_process_group()
    findings = judge(ranks, links, args.tolerance, args.least_gb_s)
    if meeting.rank == 0:
        show(ranks, links, findings)
        if args.json:
            found = {
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "tolerance": args.tolerance,
                "ranks": [asdict(each) for each in ranks],
                "all-reduce": [asdict(link) for link in links],
                "findings": findings,
            }
            store.write_bytes(args.json, json.dumps(found, indent=1).encode() + b"\n")
    meeting.close()
    return 1 if findings else 0


def _measure_device(meeting: Meeting, own: RankReport, device: torch.device, args: argparse.Namespace) -> None:
    """Run all workloads and add their rates, answers and faults to ``own``."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    makers: dict[str, Callable[[], Workload]] = {
        "matmul": lambda: workloads.matmul(device),
        "memory": lambda: workloads.memory(device),
    }
    if device.type == "cuda":
        makers["transfer"] = lambda: workloads.transfer(device)
    makers["step"] = lambda: (
        workloads.recipe_step(device, args.recipe, args.overrides, meeting.world_size)
        if args.recipe
        else workloads.encoder_step(device)
    )
    for name, make in makers.items():
        made: list[Workload] = []
        with meeting.stage(f"{name}, preparing", own.where), _noting(own, name):
            made.append(make())
        with meeting.stage(name, own.where), _noting(own, name):
            for workload in made:
                own.rates[workload.unit] = workloads.timed(workload, device, args.seconds)
                own.answers |= workload.answers


def _measure_network(
    meeting: Meeting, own: RankReport, device: torch.device, ranks: Sequence[RankReport], args: argparse.Namespace
) -> list[Link]:
    """The all-reduces with their rates; the process group stays open."""
    with meeting.stage("joining the network", own.where):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", meeting.store),
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=2 * datetime.timedelta(seconds=args.limit + args.seconds),  # a stage ends sooner, and says more
        )
    links: list[Link] = []
    for together in rounds(ranks):
        with meeting.stage(f"all-reduce, {together[0].scope}", own.where):
            try:
                mine = reduce_all(together, own, device, REDUCED_MIB[device.type])
            except Exception as error:  # no rank can continue; the launcher ends the others
                raise V2FError(f"{own.where}: all-reduce, {together[0].scope}: {error}") from error
            rates = meeting.gather(list(mine.items()))
            for link in together:
                for each in (dict(rates[rank]) for rank in link.ranks):
                    link.rates = {mib: min(rate, link.rates.get(mib, rate)) for mib, rate in each.items()}
                links.append(link)
    return links


def _gathered(meeting: Meeting, own: RankReport) -> list[RankReport]:
    with meeting.stage("comparing", own.where):
        return [RankReport(**values) for values in meeting.gather(asdict(own))]


@contextlib.contextmanager
def _noting(own: RankReport, stage: str) -> Iterator[None]:
    """Record an error of a measurement as this rank's fault, so that the others continue."""
    try:
        yield
    except V2FError as error:
        own.faults[stage] = str(error)
    except Exception as error:  # a broken driver, a full memory
        own.faults[stage] = f"{type(error).__name__}: {first_line(error)}"


def introduce(rank: int) -> tuple[RankReport, torch.device]:
    """The report of this rank, without measurements yet, and its device."""
    versions = {"python": platform.python_version(), "v2f": version("v2f"), "torch": torch.__version__}
    host, local = socket.gethostname(), int(os.environ.get("LOCAL_RANK", 0))
    if not torch.cuda.is_available():
        kind = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        return RankReport(rank, host, "cpu", kind, versions), torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise V2FError(
            f"{host}: the launcher started a process for GPU {local}, but there are {torch.cuda.device_count()}; "
            "start fewer"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    about = torch.cuda.get_device_properties(device)
    versions |= {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    return RankReport(rank, host, f"{device} {str(about.uuid)[:8]}", about.name, versions), device
