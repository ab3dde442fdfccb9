"""One rank: takes one real step, then prints its launcher's strategy, and how long a rank waits for the others."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from two_phases import TwoPhases, batches  # noqa: E402

from v2f.engine import Engine  # noqa: E402


def main() -> None:
    engine, system = Engine("fp32", patience_minutes=90), TwoPhases()
    engine.wrap(system, share=8 // engine.world_size, micro_batch=None)
    system.train()
    batch = next(batches(8, engine.rank, engine.world_size))
    result = engine.step(system.phases()[0], batch, 0, micro_batch=None, seen=0, total=80)
    everywhere = engine.gather((engine.strategy, engine.rank, result.skipped))
    if engine.rank == 0:
        waits = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        print(f"{engine.device.type} {everywhere}, others are given up after {waits}", flush=True)
    engine.close()


main()
