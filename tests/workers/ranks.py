"""One rank of tests/engine/test_zero.py: trains under every strategy in one process group; rank 0 writes what came out.

Arguments: folder of the results, data set. Starting ranks is expensive, so one start does everything for a world size.
A result is FOLDER/NAME.safetensors: a checkpoint's tensors, or gradients; ``skips-...json`` tells what was decided.
"""

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from codebook import trained as trained_codebook  # noqa: E402
from systems.reading import training  # noqa: E402
from systems.small import SMALL  # noqa: E402
from two_phases import BY_VALUE, GROUP, TwoPhases, batches  # noqa: E402

from v2f.config import build  # noqa: E402
from v2f.data.manifest import open_dataset  # noqa: E402
from v2f.engine import Engine, StepResult, ranks  # noqa: E402
from v2f.errors import V2FError  # noqa: E402
from v2f.runs import checkpoint  # noqa: E402
from v2f.runs.config import RunConfig  # noqa: E402
from v2f.runs.run import build_system  # noqa: E402
from v2f.runs.saver import Saver, deal  # noqa: E402
from v2f.storage import store  # noqa: E402
from v2f.system import Batch, System, trained  # noqa: E402

SYSTEMS = ["two_phases", *sorted(SMALL)]
# A global batch, and the micro-batch of the ranks that accumulate: a group of batch norm.
BATCH = dict.fromkeys(SYSTEMS, 8) | {"two_phases": 16}
MICRO = dict.fromkeys(SYSTEMS, 2) | {"two_phases": GROUP}
# In float32 and of many steps: without the frozen nets of the losses, whose kinks float32 meets at random.
LIGHT: dict[str, dict[str, Any]] = {"voice_styled_face": {"losses": {"mse": 1.0, "lpips": 0.0, "id": 0.0}}}
FOLDER, DATA = (Path(a) for a in sys.argv[1:3])


class Job:
    """A system on this rank, at some step."""

    def __init__(
        self,
        system: str,
        strategy: Any,
        accumulate: bool,
        precision: Any = "fp32",
        batch: int = 0,
        light: bool = True,
        by_value: float | None = None,
    ) -> None:
        self.engine = Engine(precision, strategy)
        self.micro, self.batch, self.done = MICRO[system] if accumulate else None, batch or BATCH[system], 0
        self.system: System
        if system == "two_phases":
            self.system = TwoPhases(by_value=by_value)
        else:
            data = {"path": str(DATA), "batch": self.batch}
            small = SMALL[system] | (LIGHT.get(system, {}) if light else {})
            values = {"name": "ranks", "seed": 3, "system": small, "data": data, "train": {"steps": 40}}
            self.system = build_system(build(RunConfig, values, "ranks"))
        self.name = system
        self.engine.wrap(self.system, share=self.batch // self.engine.world_size, micro_batch=self.micro)
        self.system.train()

    def batches(self) -> Generator[Batch, None, None]:
        engine, start = self.engine, self.done
        if self.name == "two_phases":
            yield from batches(self.batch, engine.rank, engine.world_size, start)
        split = open_dataset(str(DATA)).split("train")
        place = {"rank": engine.rank, "world_size": engine.world_size, "start_slot": start * self.batch}
        with training(split, self.system, self.batch, seed=3, partitions=4, **place) as streams:
            yield from streams

    def train(self, steps: int, **options: Any) -> list[StepResult]:
        results: list[StepResult] = []
        stream = self.batches()
        for _ in range(steps):
            batch = next(stream)
            for phase in self.system.phases():
                if self.done % phase.every == 0:
                    seen, total = self.done * self.batch, 40 * self.batch
                    result = self.engine.step(
                        phase, batch, self.done, micro_batch=self.micro, seen=seen, total=total, **options
                    )
                    results.append(result)
            self.done += 1
        stream.close()
        return results

    def gradients(self, name: str) -> None:
        """Write the gradients of every phase for the first global batch, whole."""
        batch = next(self.batches())
        found = {}
        for phase in self.system.phases():
            self.engine.backward(phase, batch, 0, self.micro)
            found |= {f"{phase.name}/{key}": g.clone() for key, g in self.engine.gradients(phase).items()}
        write(self.engine, name, found)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds, on every rank."""
        sizes = self.engine.sizes(self.system)
        found = self.engine.copy(self.system, sizes)
        assert {key: t.numel() * t.element_size() for key, t in found.items()} == sizes
        return found

    def save(self, name: str) -> None:
        write(self.engine, name, self.tensors())

    def load(self, name: str, step: int) -> None:
        self.engine.load(self.system, safetensors.torch.load_file(FOLDER / f"{name}.safetensors"), name)
        self.done = step


def write(engine: Engine, name: str, tensors: dict[str, torch.Tensor]) -> None:
    if engine.rank == 0:
        safetensors.torch.save_file({key: t.contiguous() for key, t in tensors.items()}, FOLDER / f"{name}.safetensors")
    engine.barrier()


def gradients(world_size: int) -> None:
    for system in SYSTEMS:
        for strategy in ("ddp", "zero1", "zero2"):
            job = Job(system, strategy, False, batch=16)
            for accumulate in (False, True):
                job.micro = MICRO[system] if accumulate else None
                job.gradients(f"gradients-{system}-{strategy}-{world_size}-{accumulate}")
        if world_size == 2:
            for strategy in ("ddp", "zero2"):
                Job(system, strategy, True, "bf16", batch=16).gradients(f"bf16-{system}-{strategy}")
        job = Job(system, "ddp", world_size == 2, "fp64", light=False)
        job.gradients(f"fp64-{system}-{world_size}")


def fifty_steps(world_size: int) -> None:
    """In float64: the gradients of the step after 50 others, and what they left; two ranks accumulate."""
    for system in SYSTEMS:
        if world_size == 4 and system == "voice_styled_face":
            continue  # 15 seconds
        job = Job(system, "ddp", world_size == 2, "fp64")
        job.train(50)
        job.save(f"fifty-{system}-{world_size}")
        job.gradients(f"fifty-gradients-{system}-{world_size}")


def moved(world_size: int) -> None:
    """20 steps on two ranks, 20 on four, and back to one, between DDP and ZeRO; on one rank, what rounding does."""
    for system in SYSTEMS:
        if world_size == 2:
            for strategy, accumulate in (("ddp", False), ("zero1", False), ("zero2", True)):
                job = Job(system, strategy, accumulate)
                job.train(20)
                job.save(f"twenty-{system}-{strategy}")
        if world_size == 4:
            for before, after in (("ddp", "zero2"), ("zero2", "ddp")):
                job = Job(system, after, False)
                job.load(f"twenty-{system}-{before}", 20)
                job.save(f"loaded-4-{system}-{before}")
                job.train(20)
                job.save(f"forty-{system}-{before}")
        if world_size == 1:
            for before, after in (("ddp", "zero1"), ("zero2", "ddp")):
                job = Job(system, after, False)
                job.load(f"forty-{system}-{before}", 40)
                job.save(f"loaded-1-{system}-{before}")
            for name in ("whole", "accumulated", "nudged"):
                job = Job(system, "ddp", name == "accumulated")
                if name == "nudged":
                    nudge(job.system)
                job.train(20)
                job.save(f"twenty-{system}-{name}")
                job.train(20)
                job.save(f"forty-{system}-{name}")


@torch.no_grad()
def nudge(system: System) -> None:
    """Move every trained weight by one rounding of float32, up or down."""
    rng = torch.Generator().manual_seed(1)
    for module in trained(system).values():
        for parameter in module.parameters():
            parameter.mul_(1 + 6e-8 * (torch.randint(0, 2, parameter.shape, generator=rng) * 2 - 1))


def resumed(world_size: int) -> None:
    """ZeRO-2: six steps, and three with a save, a load and three more."""
    job = Job("two_phases", "zero2", False)
    job.train(3)
    job.save(f"three-{world_size}")
    job.train(3)
    job.save(f"six-{world_size}")
    job = Job("two_phases", "zero2", False)
    job.load(f"three-{world_size}", 3)
    job.train(3)
    job.save(f"resumed-{world_size}")


def restored(world_size: int) -> None:
    """Read together what two ranks saved: the bytes each rank reads, and whether it gets all; then a damaged one."""
    root, job = str(FOLDER / "checkpoints"), Job("two_phases", "zero2", False)
    engine = job.engine
    if world_size == 2:
        job.train(3)
        tensors = job.tensors()
        shares = deal(engine.sizes(job.system), world_size)
        place: dict[str, Any] = {"rank": engine.rank, "world_size": world_size, "attempt": "a", "keep": 2}
        with Saver(root, **place) as saver:
            saver.start(3, shares, {name: tensors[name] for name in shares[engine.rank]}, {"step": 3})
            saver.wait()
            assert saver.take_failures() == []
        write(engine, "saved", tensors)
    folder = checkpoint.latest(root) or ""
    record = checkpoint.read_state(folder)
    size = store.size(store.join(folder, checkpoint.COMMIT)) + sum(part["bytes"] for part in record["parts"])

    before, ranks._BUCKET = store.statistics().bytes_read, 1000  # so that some tensors go in pieces
    tensors, state = checkpoint.load(folder, peers=engine)
    read = store.statistics().bytes_read - before
    engine.load(job.system, dict(tensors), folder)
    odd = {"flag": torch.tensor([True, False]), "half": torch.ones(3).bfloat16(), "none": torch.empty(0)}
    sent = {name: t.clone() if engine.rank == world_size - 1 else torch.zeros_like(t) for name, t in odd.items()}
    engine.broadcast(list(sent.values()), world_size - 1)
    saved = safetensors.torch.load_file(FOLDER / "saved.safetensors")
    whole = same(tensors, saved) and same(job.tensors(), saved) and same(sent, odd)
    told = engine.gather([read, whole, state["step"]])

    part = Path(folder, record["parts"][-1]["name"])
    content = part.read_bytes()
    engine.barrier()
    if engine.rank == 0:
        part.write_bytes(content[:-1])
    engine.barrier()
    try:
        checkpoint.load(folder, peers=engine)
        damage = ""
    except V2FError as error:
        damage = str(error)
    found = {"told": told, "size": size, "damage": engine.gather(damage)}
    if engine.rank == 0:
        part.write_bytes(content)
        (FOLDER / f"restored-{world_size}.json").write_text(json.dumps(found))
    engine.barrier()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], t) for name, t in other.items())


def skips(world_size: int) -> None:
    """What every rank decides if the last one has a bad loss, if all have a bad gradient, and at a spike."""
    told = {}
    for strategy in ("ddp", "zero1", "zero2"):
        for steps in (0, 3):  # moments, or none yet
            job = Job("two_phases", strategy, True)
            job.train(steps)
            before = job.tensors()
            engine, phase = job.engine, job.system.phases()[0]
            batch = next(job.batches())
            last = engine.rank == world_size - 1
            spoiled = batch | {"weight": batch["weight"] * (float("nan") if last else 1.0)}
            huge = batch | {"weight": batch["weight"] * 1e37}  # a finite loss; the norm's square is not
            rest: dict[str, Any] = {"micro_batch": GROUP, "seen": 0, "total": 320}
            results = [
                engine.step(phase, spoiled, 0, **rest, stop=engine.rank),
                engine.step(phase, huge, 0, **rest),
                engine.step(phase, batch, 0, **rest, limit=1e-9, stop=2 if last else 0),
            ]
            after = job.tensors()
            same = after.keys() == before.keys() and all(torch.equal(before[key], t) for key, t in after.items())
            taken = engine.step(phase, batch, 0, **rest, limit=1e9)
            own = [[r.skipped for r in results], [r.stop for r in results], same, taken.skipped, taken.grad_norm]
            told[f"{strategy}-{steps}"] = engine.gather(own)
    if engine.rank == 0:
        (FOLDER / f"skips-{world_size}.json").write_text(json.dumps(told))


def clipped(world_size: int) -> None:
    """The first gradient of a phase that clips each number, and what one step and three make of it."""
    for strategy in ("ddp", "zero1", "zero2"):
        job, name = Job("two_phases", strategy, world_size == 2, by_value=BY_VALUE), f"{strategy}-{world_size}"
        job.save(f"clipped-0-{name}")
        job.gradients(f"clipped-gradient-{name}")
        job.train(1)
        job.save(f"clipped-1-{name}")
        job.train(2)
        job.save(f"clipped-3-{name}")


def kept(world_size: int) -> None:
    """A codebook's steps, and what ``after_step`` received on each rank."""
    if world_size == 4:
        return
    for strategy, precision, micro in (
        ("ddp", "fp64", None),
        ("ddp", "fp64", 4),
        ("ddp", "fp32", None),
        ("zero1", "fp32", 4),
    ):
        engine, system = trained_codebook(strategy, precision, micro)
        write(engine, f"kept-{strategy}-{precision}-{micro}-{world_size}", engine.copy(system, engine.sizes(system)))
        everywhere = engine.gather(
            [[s.seed, s.step, s.slot, s.slots, {n: t.tolist() for n, t in s.statistics.items()}] for s in system.told]
        )
        if engine.rank == 0 and (precision, micro) == ("fp64", None):
            (FOLDER / f"told-{world_size}.json").write_text(json.dumps(everywhere))


def main() -> None:
    engine = Engine("fp32", "ddp")
    wanted = sys.argv[3:]
    for act in (gradients, fifty_steps, moved, resumed, restored, skips, clipped, kept):
        if wanted and act.__name__ not in wanted:
            continue
        act(engine.world_size)
    engine.close()


main()
