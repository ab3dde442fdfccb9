"""DeepSpeed's ZeRO-1 and ZeRO-2: the moments, and under ZeRO-2 the gradients, are partitioned over the ranks.

Each phase has a DeepSpeed engine of its own, made by DeepSpeed's API: Accelerate's plugin wraps only one model per
process, and steps inside the backward pass. DeepSpeed computes in float32 with our Adam, and neither writes nor loads
checkpoints. Settings of a launcher's DeepSpeed file that would change what is trained are refused: they belong into
the recipe.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from v2f.engine.phase import MOMENTS, PhaseEngine, PhaseModule
from v2f.errors import V2FError
from v2f.storage.local import opened
from v2f.system import Batch, Losses, Phase

Stage = Literal[1, 2]

# What a launch file may set under zero_optimization: how data are sent, never what is computed. Buckets are in
# elements; DeepSpeed's defaults would allocate 2 GB per phase. round_robin_gradients is left out: with it, DeepSpeed's
# accessors of moments (0.19.8) silently return those of other parameters.
DEFAULTS: dict[str, Any] = {
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_scatter": True,
}
_IN_RECIPE = {
    "train_batch_size": "data.batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "system.optimizer.clip of each phase",
    "optimizer": "system.optimizer",
    "scheduler": "system.optimizer.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}


def options_of(path: str) -> tuple[int, dict[str, Any]]:
    """The stage and the options that a DeepSpeed file sets; V2FError for settings that belong into the recipe."""
    try:
        with opened(path) as file:
            values = dict(json.loads(file.read()))
        chosen = dict(values.pop("zero_optimization", {}))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a JSON object"
        raise V2FError(f"{path}: cannot read this DeepSpeed file ({reason})") from error
    values = {key: value for key, value in values.items() if value != "auto" and not _is_off(value)}
    for key in values:
        if key in _IN_RECIPE:
            raise V2FError(f'{path}: {key} is set in the recipe ({_IN_RECIPE[key]}); remove it here, or make it "auto"')
        raise V2FError(f"{path}: the key {key!r} is not one that v2f passes on to DeepSpeed; remove it")
    stage = chosen.pop("stage", 2)
    for key, value in chosen.items():
        if key not in DEFAULTS and value != "auto" and not _is_off(value):
            known = ", ".join(sorted(DEFAULTS))
            raise V2FError(f"{path}: zero_optimization.{key} is not one that v2f passes on ({known}); remove it")
    return stage, DEFAULTS | {key: value for key, value in chosen.items() if key in DEFAULTS and value != "auto"}


def settings(phase: Phase, stage: Stage, options: dict[str, Any], share: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a phase; ``share`` as in :class:`ZeroPhase`."""
    return {
        # We cut the share into micro-batches and say where a step ends, so DeepSpeed must not divide by anything.
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": (phase.optimizer.clip_by == "norm" and phase.optimizer.clip) or 0.0,  # DeepSpeed's is 1.0
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**options, "stage": stage},
        "timers": {"throughput": {"enabled": False}},  # it synchronizes with the GPU in every step
    }


def _is_off(value: Any) -> bool:
    """Whether a group of settings turns itself off, such as ``{"enabled": false}`` or ``{"device": "none"}``."""
    return isinstance(value, dict) and (value.get("enabled") is False or value.get("device") == "none")


class ZeroPhase(PhaseEngine):
    """A phase with its own DeepSpeed engine. ``share``: samples of a global batch on this rank."""

    def __init__(
        self, phase: Phase, module: PhaseModule, device: torch.device, stage: Stage, options: dict[str, Any], share: int
    ) -> None:
        super().__init__(phase, module)
        deepspeed = _deepspeed(device)
        self._get = deepspeed.utils.safe_get_full_optimizer_state
        self._set = deepspeed.utils.safe_set_full_optimizer_state
        self._set_weight = deepspeed.utils.safe_set_full_fp32_param
        self._gradient = deepspeed.utils.safe_get_full_grad
        self._set_gradient = deepspeed.utils.safe_set_full_grad
        self._engine: Any = deepspeed.initialize(
            model=module, optimizer=self.adam, config=settings(phase, stage, options, share)
        )[0]

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, batch: Batch | None, step: int) -> Losses:
        losses: Losses = self._engine(batch, step)
        return losses

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradients(self) -> dict[str, Tensor]:
        return {name: self._gradient(parameter) for name, parameter in self.parameters.items()}

    def norm(self) -> Tensor:
        norm: Tensor = self._engine.optimizer.scaled_global_norm()
        return norm

    def update(self, norm: Tensor) -> None:
        largest = self.phase.optimizer.clip
        if largest is not None and self.phase.optimizer.clip_by == "value":
            for parameter in self.parameters.values():
                self._set_gradient(parameter, self._gradient(parameter).clamp(-largest, largest))
        if not self.stepped:
            # Start the moments as Adam would. DeepSpeed's accessors know only the moments that exist once the first
            # group has stepped; they would never find those of the second group.
            for group in self.adam.param_groups:
                flat = group["params"][0]
                self.adam.state[flat] = {"step": torch.zeros(()), **{key: torch.zeros_like(flat) for key in MOMENTS}}
        self._engine.step()  # clips by the norm, which it computes again from this rank's part of the gradient

    def forget(self) -> None:
        # The next gradient overwrites the reduced one in DeepSpeed's own buffers.
        self._engine.optimizer.zero_grad(set_to_none=True)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        if self.stepped:
            step = self._flat_states()[0]["step"]
            for name, parameter in self.parameters.items():
                yield f"{name}/step", step
                for key in MOMENTS:
                    yield f"{name}/{key}", self._get(parameter, key)

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        for parameter in self.parameters.values():
            self._set_weight(parameter, parameter.data)
        if not moments:
            return
        if not self.stepped:
            self._prime()
        for name, parameter in self.parameters.items():
            for key in MOMENTS:
                self._set(parameter, moments[f"{name}/{key}"], key)
        steps = {float(moments[f"{name}/step"]) for name in self.parameters}
        if len(steps) != 1:
            raise V2FError(
                f"phase {self.phase.name!r}: its parameters were stepped {sorted(steps)} times, but ZeRO steps all "
                "of them together; resume with train.strategy=ddp"
            )
        for state in self._flat_states():
            state["step"].fill_(next(iter(steps)))

    def close(self) -> None:
        self._engine.destroy()

    def _flat_states(self) -> list[dict[str, Tensor]]:
        """Adam's state for this rank's part of each group, which DeepSpeed flattens into one tensor."""
        return [self.adam.state[group["params"][0]] for group in self.adam.param_groups]

    def _prime(self) -> None:
        """Create the moments: one step with a gradient of zero and a rate of zero, which changes nothing."""
        for group in self.adam.param_groups:
            group["lr"] = 0.0
        with self.micro_batch(last=True):
            self.backward(self.forward(None, 0)["total"])
        self.update(self.norm())


def leave() -> None:
    """Destroy the process group, for DeepSpeed, too, if it is in use: else a later engine would get the old one."""
    comm = sys.modules.get("deepspeed.comm")
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()
    else:
        dist.destroy_process_group()


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, set up for the device and the process group that exist already."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # else it logs which one it chose
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():  # one process that no launcher started
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    import deepspeed
    import deepspeed.ops

    # On a CPU it would compile its own all-reduce, for two minutes, and print that it did.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
