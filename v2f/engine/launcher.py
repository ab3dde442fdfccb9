"""What the launcher requests in Accelerate's environment variables: a strategy, and a DeepSpeed file."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from v2f.engine import zero
from v2f.errors import V2FError

RequestedStrategy = Literal["auto", "ddp", "zero1", "zero2"]
Strategy = Literal["ddp", "zero1", "zero2"]

_STAGES: dict[int, Strategy] = {0: "ddp", 1: "zero1", 2: "zero2"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """The strategy, and for ZeRO, DeepSpeed's options for sending data."""

    strategy: Strategy
    options: dict[str, Any] = field(default_factory=lambda: dict(zero.DEFAULTS))


def read(requested: RequestedStrategy, precision: str) -> Launch:
    """The strategy to train under: for ``auto`` the launcher's, else DDP; any other ``requested`` one overrides it."""
    if _set("ACCELERATE_USE_FSDP") or _set("ACCELERATE_USE_MEGATRON_LM"):
        raise V2FError(
            "the launcher requests FSDP or Megatron-LM; v2f supports DDP and DeepSpeed's ZeRO 1 and 2; use one of them"
        )
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", precision) and os.environ.get("RANK", "0") == "0":
        log.warning("the launcher requests %s; the recipe's train.precision overrides it: %s", mixed, precision)
    if requested == "ddp" or (requested == "auto" and not _set("ACCELERATE_USE_DEEPSPEED")):
        return Launch("ddp")
    options, path = dict(zero.DEFAULTS), os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if path and _set("ACCELERATE_USE_DEEPSPEED"):
        stage, options = zero.options_of(path)
    strategy = _STAGES.get(int(stage)) if requested == "auto" and str(stage).isdigit() else requested
    if strategy is None or strategy == "auto":
        raise V2FError(
            f"{path or 'the launcher'}: ZeRO stage {stage} is not supported; use stage 1 or 2, or train.strategy=ddp"
        )
    if strategy != "ddp":
        if precision == "fp64":
            raise V2FError("train.precision fp64: ZeRO computes in fp32; use train.strategy=ddp, or fp32")
        _check_environment()
    return Launch(strategy, options)


def _check_environment() -> None:
    """Refuse an accelerate file (one without a DeepSpeed file) that sets what the recipe decides."""
    clip = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clip not in ("none", "auto"):
        raise V2FError(
            f"the launcher's gradient_clipping is {clip}, but each phase's system.optimizer.clip decides it; remove it"
        )
    accumulated = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulated not in ("1", "auto"):
        raise V2FError(
            f"the launcher's gradient_accumulation_steps is {accumulated}, but data.batch and train.micro_batch decide "
            "that; remove it"
        )
    for name in ("OPTIMIZER", "PARAM"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name}_DEVICE", "none")
        if device != "none":
            key = f"offload_{name.lower()}_device"
            raise V2FError(f"the launcher's {key} is {device}, but v2f does not offload; remove it")


@contextlib.contextmanager
def without_deepspeed() -> Iterator[None]:
    """Inside, Accelerate does not see that the launcher requests DeepSpeed, else it would set up its own plugin."""
    name = "ACCELERATE_USE_DEEPSPEED"
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
