"""Before a long run: does every device compute right, as fast as the others, and does the network carry what it should?

    torchrun ... -m v2f.preflight [--recipe RECIPE.yaml]      (launch/preflight says how; docs/scaling.md, what to read)

Each rank measures its own device, all at the same time as in training, without a word between them::

    matmul      a product of small whole numbers, which bfloat16 gives exactly too: its rate, and whether it is right
    memory      a large copy on the device: its rate, and whether the bytes are the same
    transfer    from pinned memory to the GPU: what a bad PCIe slot slows
    step        forward, backward and Adam at rate 0: its rate, and whether the same batch gives the same loss

Only then they meet in all-reduces: of all ranks, within each host, between neighbouring hosts. So a slow card shows as
one slow card and not as 63 others that wait for it. What the ranks tell each other goes through the launcher's store,
not through the devices under test, and a stage that does not end names the ranks that are still behind.

A rate is the work over the median time. It is *slow* where the median rank's is higher by more than the tolerance.
Bus bandwidth is that of NVIDIA's nccl-tests: 2 (n - 1) / n times the bytes over the time.

Letters: N side of a square matrix.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from v2f.console import say
from v2f.data.loader import micro_batch_of, read_usable
from v2f.data.manifest import open_dataset
from v2f.data.streams import side_by_side
from v2f.errors import V2FError, guarded, spoken
from v2f.nn import computes_bf16, float32_products
from v2f.nn.batchnorm import common_group
from v2f.nn.statistics import discard
from v2f.nn.waveform import WaveformEncoder
from v2f.runs.config import DataConfig, load_config
from v2f.runs.run import build_system, streams_of
from v2f.storage import store
from v2f.system import Batch, Transform, by_stream, trained

MIB = 1 << 20
# A GPU gets work that is large enough to be bound by it, a CPU what takes a fraction of a second.
SIDE_N = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 1024 * MIB, "cpu": 64 * MIB}
REDUCED_MIB = {"cuda": [1.0, 16.0, 256.0], "cpu": [0.0625, 1.0, 4.0]}
_LEAST_REPEATS, _REDUCTIONS = 5, 10
_ROWS = 1024  # of a matrix that are float64 at once
_NAMED = 8  # places in a finding, before "and so many more"
_POLL_S = 0.02
_START = 3  # times the limit for the first stage: machines do not start alike


@dataclass
class Measured:
    """What one rank found. ``kind`` is its device's model: equal kinds must give equal ``answers``."""

    rank: int
    host: str
    device: str
    kind: str
    versions: dict[str, str]
    rates: dict[str, float] = field(default_factory=dict)
    """By what and unit; more is better."""
    answers: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """By stage: what went wrong here, whatever the others did."""

    @property
    def where(self) -> str:
        return f"{self.host} {self.device} (rank {self.rank})"


@dataclass
class Link:
    """An all-reduce of some ranks: bus bandwidth in GB/s by MiB, that of the slowest of them."""

    scope: str
    hosts: list[str]
    ranks: list[int]
    rates: dict[float, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.rates[max(self.rates)]


@dataclass(frozen=True)
class Task:
    """What is timed. ``run`` returns bits that must be those of every other call; ``amount`` of ``unit`` a call."""

    unit: str
    amount: float
    run: Callable[[], Any]
    same: Callable[[Any], bool]
    answers: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ one device


def matmul(device: torch.device) -> Task:
    """A product whose entries are exact in bfloat16, checked against the CPU's in float64 (Freivalds 1977)."""
    side = SIDE_N[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = torch.Generator().manual_seed(0)
    # -1, 0 and 1, two thirds of them 0: sums of 8,192 products stay far below 256, where bfloat16 loses whole numbers.
    dice = [torch.randint(6, (side, side), dtype=torch.int8, generator=draw) for _ in range(2)]
    a_NN, b_NN = ((die == 0).to(torch.int8) - (die == 5).to(torch.int8) for die in dice)
    sign_N = torch.randint(2, (side,), generator=draw).double() * 2 - 1
    right_N = _times(a_NN, _times(b_NN, sign_N))
    a_NN, b_NN = a_NN.to(device, dtype), b_NN.to(device, dtype)
    first_NN = a_NN @ b_NN
    if not torch.equal(_times(first_NN, sign_N), right_N):
        raise V2FError("the product of two matrices of whole numbers is wrong")
    return Task("matmul TFLOP/s", 2e-12 * side**3, lambda: a_NN @ b_NN, lambda c_NN: torch.equal(c_NN, first_NN))


def _times(matrix_NN: Tensor, vector_N: Tensor) -> Tensor:
    """The product in float64 on the CPU, some rows at a time."""
    return torch.cat([rows.to("cpu", torch.float64) @ vector_N for rows in matrix_NN.split(_ROWS)])


def memory(device: torch.device) -> Task:
    """A copy from one half of the device's buffer to the other: read once, written once."""
    source = torch.arange(COPIED[device.type] // 4, dtype=torch.int32, device=device)
    target = torch.zeros_like(source)
    return Task(
        "memory GB/s", 2e-9 * COPIED[device.type], lambda: target.copy_(source), lambda _: torch.equal(target, source)
    )


def transfer(device: torch.device) -> Task:
    """A copy from pinned memory to the GPU."""
    source = torch.arange(COPIED[device.type] // 16, dtype=torch.int32).pin_memory()
    target = torch.zeros_like(source, device=device)
    total = source.sum(dtype=torch.int64).item()
    return Task(
        "transfer GB/s",
        1e-9 * 4 * len(source),
        lambda: target.copy_(source, non_blocking=True),
        lambda _: target.sum(dtype=torch.int64).item() == total,
    )


def encoder_step(device: torch.device) -> Task:
    """A step of S1's voice encoder on noise (on a CPU a small one): it needs no data set and no weights."""
    small = {"channels": [16, 32, 64], "blocks": [1, 1, 1], "strides": [2, 2, 2], "stem_stride": 8}
    config = WaveformEncoder.Config() if device.type == "cuda" else WaveformEncoder.Config(**small, out_channels=32)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, wav_BT = WaveformEncoder(config).to(device), torch.randn(8, 96_000 if device.type == "cuda" else 8_000)
    wav_BT = wav_BT.to(device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return torch.stack([map_BCT.float().square().mean() for map_BCT in encoder(wav_BT)]).sum()

    return _stepping(encoder, [(loss, list(encoder.parameters()))], len(wav_BT))


def recipe_step(device: torch.device, recipe: str, overrides: Sequence[str], world_size: int) -> Task:
    """A step of a recipe's system, all its phases, on the first samples of its data: one rank's micro-batch."""
    config = load_config(recipe, overrides)
    for data in config.data.by_stream().values():
        if data.batch % world_size:
            raise V2FError(f"data.batch: {data.batch} is not a multiple of {world_size} ranks")
    system = build_system(config)
    streams = streams_of(config, system)
    share, *others = [data.batch // world_size for data in streams.values()]
    size = micro_batch_of(share, config.train.micro_batch, common_group(trained(system).values()), others) or share
    parts = {
        name: _first(data, system.streams()[name], size * data.batch // config.data.batch)
        for name, data in streams.items()
    }
    batch = next(side_by_side(parts))
    precision = config.train.precision
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    dtype = torch.float64 if precision == "fp64" else torch.float32
    float32_products(tf32=precision == "tf32")
    system.to(device, dtype).train()
    for own in by_stream(batch).values():
        for key, value in own.items():
            if isinstance(value, Tensor):
                own[key] = value.to(device, dtype if value.is_floating_point() else value.dtype)

    def loss(phase: str) -> Callable[[], Tensor]:
        def total() -> Tensor:
            torch.manual_seed(config.seed)  # a dropout must not look like a broken device
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return system.loss(phase, batch, 0)["total"]

        return total

    phases = [
        (loss(phase.name), [p for module in phase.modules.values() for p in module.parameters()])
        for phase in system.phases()
    ]
    return _stepping(system, phases, size)


def _first(data: DataConfig, reads: Mapping[str, Transform], size: int) -> list[Batch]:
    """One batch of the first samples of a stream's data."""
    left_out: list[str] = []
    split = open_dataset(data.home).split(data.split)
    batches = list(read_usable(split, reads, size, left_out, limit=size))
    if not batches or left_out or len(batches[0]["slot"]) < size:
        reason = left_out[0] if left_out else f"the split {split.name} has fewer"
        raise V2FError(f"the first {size} samples of {data.home} cannot be used: {reason}")
    return batches


def _stepping(
    module: nn.Module, phases: Sequence[tuple[Callable[[], Tensor], list[nn.Parameter]]], samples: int
) -> Task:
    """Each phase's forward, backward and Adam. At rate 0 the weights stay, so that every call must give the same."""
    optimizers = [torch.optim.Adam(parameters, lr=0.0) for _, parameters in phases]

    def step() -> list[float]:
        totals = []
        for (loss, _), optimizer in zip(phases, optimizers, strict=True):
            total = loss()
            total.backward()
            optimizer.step()
            module.zero_grad(set_to_none=True)
            discard(module)
            totals.append(total.detach())
        return [float(total) for total in totals]

    first = step()
    if not all(torch.isfinite(torch.tensor(first))):
        raise V2FError(f"the loss is not finite: {first}")
    bits = hashlib.sha256(json.dumps([value.hex() for value in first]).encode()).hexdigest()
    return Task("step samples/s", samples, step, lambda found: found == first, {"loss of the same batch": bits})


def timed(task: Task, device: torch.device, seconds: float) -> float:
    """The rate of a task that is run for ``seconds``; V2FError where one run gives other bits than the first."""
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < _LEAST_REPEATS or time.perf_counter() < end:
        _wait_for(device)
        start = time.perf_counter()
        found = task.run()
        _wait_for(device)
        spent.append(time.perf_counter() - start)
        if not task.same(found):
            raise V2FError(f"the same work gave another result the {len(spent)}th time")
    return task.amount / statistics.median(spent)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ------------------------------------------------------------------------------------------------ all together


class Meeting:
    """What the ranks tell each other, through the launcher's store; and who is behind, where a stage does not end.

    ``limit_s`` comes on top of ``work_s``, for which a rank may be asked to work before the others see it again.
    """

    def __init__(self, limit_s: float, work_s: float = 0.0) -> None:
        self.store: Any = dist.HashStore()
        self.rank, self.world_size = 0, 1
        if "RANK" in os.environ:
            self.store, self.rank, self.world_size = next(dist.rendezvous("env://"))
        self._alarm_store = self.store.clone()  # a client answers one thread at a time, and may be stuck in a stage
        self._limit_s, self._work_s = limit_s, work_s
        self._stage = 0

    @contextlib.contextmanager
    def stage(self, name: str, where: str) -> Iterator[None]:
        """Begin a stage together, in the same order on all ranks. One that outlasts the limit ends the process."""
        self._stage += 1
        self.store.set(f"at/{self.rank}", f"{self._stage:04d}|{name}|{where}")
        # With the work in every stage: whose own measurement failed waits in the next one for the others' to end.
        limit_s = self._limit_s * (_START if self._stage == 1 else 1) + self._work_s
        alarm = threading.Timer(limit_s, self._give_up, [limit_s])
        alarm.daemon = True
        alarm.start()
        try:
            self._all_here(f"begin/{self._stage}")
            yield
        finally:
            alarm.cancel()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that JSON holds), on all of them; within a stage."""
        self.store.set(f"value/{self._stage}/{self.rank}", json.dumps(value))
        self._all_here(f"values/{self._stage}")
        return [json.loads(self.store.get(f"value/{self._stage}/{rank}")) for rank in range(self.world_size)]

    def close(self) -> None:
        """Rank 0 may hold the store: it leaves last."""
        self.store.add("left", 1)
        while self.rank == 0 and self.store.add("left", 0) < self.world_size:
            time.sleep(_POLL_S)

    def _all_here(self, key: str) -> None:
        """Polls instead of waiting in the store, whose own limit is not ours."""
        if self.store.add(key, 1) == self.world_size:
            self.store.set(f"{key}/all", "")
        while not self.store.check([f"{key}/all"]):
            time.sleep(_POLL_S)

    def _give_up(self, waited_s: float) -> None:
        marks = {}
        for rank in range(self.world_size):
            here = self._alarm_store.check([f"at/{rank}"])
            marks[rank] = self._alarm_store.get(f"at/{rank}").decode() if here else f"0000|the start|rank {rank}"
        number, name, _ = max(marks.values()).split("|")
        behind = {rank: mark.split("|") for rank, mark in marks.items() if not mark.startswith(number)}
        if self._alarm_store.add("given up", 1) == 1:  # one rank speaks for all
            who = _places([f"{where} in {stage}" for _, stage, where in behind.values()], self.world_size)
            say(
                f"preflight: {name} does not end, waited {waited_s:.0f} s: "
                + (f"behind: {who}" if behind else "all ranks are in it; look at the network, with NCCL_DEBUG=INFO")
            )
        os._exit(1)


def rounds(ranks: Sequence[Measured]) -> list[list[Link]]:
    """The all-reduces to measure; those of one round share no host, and run at the same time."""
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
    links: Sequence[Link], own: Measured, device: torch.device, sizes_mib: Sequence[float]
) -> dict[float, float]:
    """This rank's bus bandwidth by size, in the one of these links that it is in (or in none); collective."""
    groups = [dist.new_group(link.ranks) for link in links]
    rates = {}
    for link, group in zip(links, groups, strict=True):
        if own.rank not in link.ranks:
            continue
        n = len(link.ranks)
        for mib in sizes_mib:
            tensor, spent = torch.empty(round(mib * MIB) // 4, device=device), []
            for _ in range(_REDUCTIONS):
                tensor.fill_(own.rank + 1)
                _wait_for(device)
                start = time.perf_counter()
                dist.all_reduce(tensor, group=group)
                _wait_for(device)
                spent.append(time.perf_counter() - start)
                if not bool((tensor == sum(link.ranks) + n).all()):
                    own.faults["all-reduce"] = f"a sum over {n} ranks is wrong"
            rates[mib] = 2 * (n - 1) / n * 4e-9 * len(tensor) / statistics.median(spent)
    return rates


# ------------------------------------------------------------------------------------------------ what it means


def judge(ranks: Sequence[Measured], links: Sequence[Link], tolerance: float, least_gb_s: float | None) -> list[str]:
    """A line for everything that should be looked at before a long run."""
    found: dict[str, list[str]] = {}
    for each in ranks:
        for stage, fault in each.faults.items():
            found.setdefault(f"{stage}: {fault}", []).append(each.where)
    for kind in sorted({each.kind for each in ranks}):
        for name in sorted({name for each in ranks for name in each.answers}):
            alike = {each.where: each.answers[name] for each in ranks if each.kind == kind and name in each.answers}
            _odd_ones(alike, f"gives another {name} than the other {kind}", found)
    for name in sorted({name for each in ranks for name in each.versions}):
        _odd_ones(
            {each.where: f"{each.versions[name]}" for each in ranks}, f"has another {name} than the others", found
        )
    for name in sorted({name for each in ranks for name in each.rates}):
        rates = {each.where: each.rates[name] for each in ranks if name in each.rates}
        _slow_ones(rates, name, tolerance, found)
    hosts = {name for link in links for name in link.hosts}
    within = {link.hosts[0]: link.rate for link in links if link.scope == "within a host"}
    _slow_ones(within, "all-reduce within the host, GB/s", tolerance, found)
    # A slow host slows both pairs that it is in, a fast one has a pair without it.
    pairs = [link for link in links if link.scope == "between two hosts"]
    between = {host: max(link.rate for link in pairs if host in link.hosts) for host in sorted(hosts) if pairs}
    _slow_ones(between, "all-reduce with its neighbours, GB/s", tolerance, found)
    for link in links:
        if link.scope == "all ranks" and least_gb_s is not None and link.rate < least_gb_s:
            found[f"all-reduce: {link.rate:.3g} GB/s, below the {least_gb_s:g} that were asked for"] = ["all ranks"]
    return [f"{_places(places, len(ranks))}: {what}" for what, places in found.items()]


def _odd_ones(values: dict[str, str], what: str, found: dict[str, list[str]]) -> None:
    """Name the minority; where there is no majority, all."""
    counts = Counter(values.values()).most_common()
    if len(counts) > 1:
        usual = counts[0][0] if counts[0][1] > counts[1][1] else None
        found[what] = [where for where, value in values.items() if value != usual]


def _slow_ones(rates: dict[str, float], what: str, tolerance: float, found: dict[str, list[str]]) -> None:
    if len(rates) > 1:
        middle = statistics.median_high(rates.values())  # of two ranks the faster is the measure
        for where, rate in rates.items():
            if rate * (1 + tolerance) < middle:
                line = f"slow: {what}: {rate:.3g}, the median is {middle:.3g} ({middle / rate - 1:.0%} more)"
                found.setdefault(line, []).append(where)


def _places(places: Sequence[str], ranks: int) -> str:
    if len(places) == ranks > 1:
        return f"all {ranks} ranks"
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return "; ".join(places[:_NAMED]) + more


def show(ranks: Sequence[Measured], links: Sequence[Link], findings: Sequence[str]) -> None:
    """The table, the all-reduces and the findings, on stdout."""
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
        console.print("all-reduce: not measured, since a device is at fault")
    for line in findings:
        console.print(f"[bold red]look at[/] {line}", highlight=False)
    if not findings:
        console.print("nothing to look at: all ranks are right, and alike in speed", highlight=False)


# ------------------------------------------------------------------------------------------------ the command


@spoken
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: nothing to look at; 1: something is, or a stage did not end."""
    parser = argparse.ArgumentParser(prog="v2f.preflight", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", metavar="RECIPE.yaml", help="step through this system; default: S1's voice encoder")
    parser.add_argument(
        "--tolerance", type=float, default=0.15, help="slower than the median by more than this is slow"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement; heat shows after a minute")
    parser.add_argument("--least-gb-s", type=float, help="smallest bus bandwidth of all ranks that is right here")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds beyond --seconds that a stage may take")
    parser.add_argument("--json", metavar="FILE", help="write what was measured and found")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="change one key of the recipe")
    args = parser.parse_args(arguments)
    return guarded(lambda: preflight(args), debug=False)


def preflight(args: argparse.Namespace) -> int:
    """Measure, compare, show; the exit code. Collective over the ranks of the launcher."""
    meeting = Meeting(args.limit, work_s=args.seconds)
    own, device = introduce(meeting.rank)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    makers: dict[str, Callable[[], Task]] = {"matmul": lambda: matmul(device), "memory": lambda: memory(device)}
    if device.type == "cuda":
        makers["transfer"] = lambda: transfer(device)
    makers["step"] = lambda: (
        recipe_step(device, args.recipe, args.overrides, meeting.world_size) if args.recipe else encoder_step(device)
    )
    for name, make in makers.items():
        tasks: list[Task] = []
        with meeting.stage(f"{name}, preparing", own.where), _noting(own, name):
            tasks.append(make())
        with meeting.stage(name, own.where), _noting(own, name):
            for task in tasks:
                own.rates[task.unit] = timed(task, device, args.seconds)
                own.answers |= task.answers
    with meeting.stage("comparing", own.where):
        ranks = [Measured(**values) for values in meeting.gather(asdict(own))]
    links: list[Link] = []
    if meeting.world_size > 1 and not any(each.faults.keys() - {"step"} for each in ranks):
        with meeting.stage("joining the network", own.where):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", meeting.store),
                rank=meeting.rank,
                world_size=meeting.world_size,
                timeout=2 * datetime.timedelta(seconds=args.limit + args.seconds),  # ours is over sooner, and says more
            )
        for together in rounds(ranks):
            with meeting.stage(f"all-reduce, {together[0].scope}", own.where):
                try:
                    mine = reduce_all(together, own, device, REDUCED_MIB[device.type])
                except Exception as error:  # nobody can go on; the launcher ends the others
                    raise V2FError(f"{own.where}: all-reduce, {together[0].scope}: {error}") from error
                rates = meeting.gather(list(mine.items()))
                for link in together:
                    for each in (dict(rates[rank]) for rank in link.ranks):
                        link.rates = {mib: min(rate, link.rates.get(mib, rate)) for mib, rate in each.items()}
                    links.append(link)
        with meeting.stage("comparing", own.where):
            ranks = [Measured(**values) for values in meeting.gather(asdict(own))]
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


@contextlib.contextmanager
def _noting(own: Measured, stage: str) -> Iterator[None]:
    """What a measurement raises is this device's fault, and the others go on."""
    try:
        yield
    except V2FError as error:
        own.faults[stage] = str(error)
    except Exception as error:  # a broken driver, a full memory
        own.faults[stage] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def introduce(rank: int) -> tuple[Measured, torch.device]:
    """Who this rank is, and its device."""
    versions = {"python": platform.python_version(), "v2f": version("v2f"), "torch": torch.__version__}
    host, local = socket.gethostname(), int(os.environ.get("LOCAL_RANK", 0))
    if not torch.cuda.is_available():
        kind = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        return Measured(rank, host, "cpu", kind, versions), torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise V2FError(f"{host}: the launcher starts a process for GPU {local}, there are {torch.cuda.device_count()}")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    about = torch.cuda.get_device_properties(device)
    versions |= {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    return Measured(rank, host, f"{device} {str(about.uuid)[:8]}", about.name, versions), device
