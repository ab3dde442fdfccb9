"""One backward pass under a launcher: rank 0 writes the gradients of the first global batch.

Arguments: configuration (JSON), output, micro-batch of a rank or ``none``.
"""

import json
import sys

import safetensors.torch
import torch
import torch.distributed as dist

from v2f.config import build
from v2f.run import RunConfig
from v2f.trainer import _prepare


def main(config: str, output: str, micro: str) -> None:
    with open(config) as file:
        job = _prepare(build(RunConfig, json.load(file), config), "none")
    phase = job.system.phases()[0]
    job.system.train()
    with job.loader:
        batch = next(iter(job.loader))
    losses = job.engine.backward(phase, batch, 0, None if micro == "none" else int(micro))
    total = losses["total"].reshape(1)
    if job.engine.world_size > 1:
        dist.all_reduce(total)
        total /= job.engine.world_size
    if job.engine.rank == 0:
        world = torch.tensor([job.engine.world_size])
        gradients = {name: g.clone() for name, g in job.engine.gradients(phase).items()}
        safetensors.torch.save_file(gradients | {"_total": total, "_world": world}, output)
    job.engine.close()


main(*sys.argv[1:])
