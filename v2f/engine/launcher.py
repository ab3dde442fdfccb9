"""What the launcher asks for, in Accelerate's environment variables: a strategy, and a file for DeepSpeed."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from v2f.engine import zero
from v2f.errors import V2FError

Asked = Literal["auto", "ddp", "zero1", "zero2"]
Strategy = Literal["ddp", "zero1", "zero2"]

_STAGES: dict[int, Strategy] = {0: "ddp", 1: "zero1", 2: "zero2"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """The strategy, and how DeepSpeed's bytes travel where it is ZeRO."""

    strategy: Strategy
    options: dict[str, Any] = field(default_factory=lambda: dict(zero.DEFAULTS))


def read(asked: Asked, precision: str) -> Launch:
    """``auto`` is what the launcher asks for, else DDP; a strategy that is named wins over the launcher's."""
    if _set("ACCELERATE_USE_FSDP") or _set("ACCELERATE_USE_MEGATRON_LM"):
        raise V2FError("the launcher asks for FSDP or Megatron-LM; v2f trains under DDP, or DeepSpeed's ZeRO 1 or 2")
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", precision) and os.environ.get("RANK", "0") == "0":
        log.warning("the launcher asks for %s; the recipe's train.precision decides: %s", mixed, precision)
    if asked == "ddp" or (asked == "auto" and not _set("ACCELERATE_USE_DEEPSPEED")):
        return Launch("ddp")
    options, path = dict(zero.DEFAULTS), os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if path and _set("ACCELERATE_USE_DEEPSPEED"):
        stage, options = zero.options_of(path)
    strategy = _STAGES.get(int(stage)) if asked == "auto" and str(stage).isdigit() else asked
    if strategy is None or strategy == "auto":
        raise V2FError(
            f"{path or 'the launcher'}: ZeRO stage {stage}; v2f trains under stage 1 or 2, or train.strategy=ddp"
        )
    if strategy != "ddp":
        if precision == "fp64":
            raise V2FError("train.precision fp64: ZeRO computes in fp32; take train.strategy=ddp, or fp32")
        _check_environment()
    return Launch(strategy, options)


def _check_environment() -> None:
    """Refuse what an accelerate file without a DeepSpeed file says about the recipe's business."""
    clip = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clip not in ("none", "auto"):
        raise V2FError(
            f"the launcher's gradient_clipping is {clip}; system.optimizer.clip of each phase decides that: remove it"
        )
    accumulated = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulated not in ("1", "auto"):
        raise V2FError(
            f"the launcher's gradient_accumulation_steps is {accumulated}; data.batch and train.micro_batch decide "
            "that: remove it"
        )
    for name in ("OPTIMIZER", "PARAM"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name}_DEVICE", "none")
        if device != "none":
            key = f"offload_{name.lower()}_device"
            raise V2FError(f"the launcher's {key} is {device}; v2f keeps all on the training device: remove it")


@contextlib.contextmanager
def without_deepspeed() -> Iterator[None]:
    """Inside, Accelerate does not see that the launcher asks for DeepSpeed: it would set up its own plugin."""
    name = "ACCELERATE_USE_DEEPSPEED"
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
