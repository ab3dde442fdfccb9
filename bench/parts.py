"""Which part of a training step works when, how long, and how many operations and bytes that takes.

    Parts(watched, loss)                        the parts of a system: the methods that are their forward passes
    with parts.recording(clock): a step         parts.spent: seconds by (part, direction)
    counted(parts, mode, total, bf16)           Work by (part, direction), on tensors that have a shape but no memory

A part's backward pass begins when the gradient of its output is known and ends with the gradient of its input. Autograd
runs the newest operation first, so that parts follow one another as they did forward, in reverse.
"""

import contextlib
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

Label = tuple[str, str]
FORWARD, BACKWARD = "forward", "backward"
LOSS_FORWARD, LOSS_BACKWARD, UPDATE = ("losses", FORWARD), ("losses", BACKWARD), ("optimizer", "")
Watched = Mapping[str, tuple[Any, str]]  # part: its owner and the name of its method
M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class Clock:
    """Moments on the device's own time line; on a GPU a moment is an event, which nobody waits for.

    ``busy``: on a CPU, count the seconds that this process computes, on all its threads, and not those in which others
    have the processor.
    """

    def __init__(self, device: torch.device, busy: bool = False) -> None:
        self.device, self.cuda, self.busy = device, device.type == "cuda", busy
        self._read = time.process_time if busy else time.perf_counter

    def now(self) -> Any:
        if not self.cuda:
            return self._read()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two moments, after :meth:`wait`."""
        return float(begin.elapsed_time(end) / 1000 if self.cuda else end - begin)


class Parts:
    """The parts of one system. ``loss``: the owner and the name of the method that returns ``{"total": ...}``."""

    def __init__(self, watched: Watched, loss: tuple[Any, str]) -> None:
        self.label: Label = LOSS_FORWARD
        self.spent: dict[Label, float] = {}
        self._marks: list[tuple[Label, Any]] | None = None
        self._active, self._clock = False, Clock(torch.device("cpu"))
        for part, (owner, method) in watched.items():
            setattr(owner, method, self._forward(part, getattr(owner, method)))
        owner, method = loss
        setattr(owner, method, self._loss(getattr(owner, method)))

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Inside, :attr:`label` says what works."""
        self._active = True
        self._turn(LOSS_FORWARD)
        try:
            yield
        finally:
            self._active = False

    @contextlib.contextmanager
    def recording(self, clock: Clock) -> Iterator[None]:
        """Around one step, whose seconds by part are then in :attr:`spent`; their sum is the whole step."""
        self._clock, self._marks = clock, []
        try:
            with self.following():
                yield
            self._turn(("", ""))
            clock.wait()
            self.spent = {}
            for (label, begin), (_, end) in zip(self._marks[:-1], self._marks[1:], strict=True):
                self.spent[label] = self.spent.get(label, 0.0) + clock.seconds(begin, end)
        finally:
            self._marks = None

    def _turn(self, label: Label) -> None:
        self.label = label
        if self._marks is not None:
            self._marks.append((label, self._clock.now()))

    def _turning(self, label: Label) -> Callable[[Tensor], None]:
        def turn(gradient: Tensor) -> None:
            if self._active and self.label != label:
                self._turn(label)

        return turn

    def _forward(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            if not self._active:
                return run(*arguments)
            before = self.label
            self._turn((part, FORWARD))
            if torch.is_grad_enabled():
                arguments = tree_map_only(Tensor, self._entry, arguments)
            found = run(*arguments)
            for each in tree_leaves(found):
                if isinstance(each, Tensor) and each.requires_grad:
                    each.register_hook(self._turning((part, BACKWARD)))
            self._turn(before)
            return found

        return watched

    def _entry(self, x: Tensor) -> Tensor:
        """The input under a name of its own, whose gradient ends the part's backward pass."""
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._turning(LOSS_BACKWARD))
        return x

    def _loss(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            found = run(*arguments)
            if self._active and found["total"].requires_grad:
                found["total"].register_hook(self._begin_backward)
            return found

        return watched

    def _begin_backward(self, gradient: Tensor) -> None:
        if self._active:
            self._turn(LOSS_BACKWARD)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._turn(UPDATE))


# ------------------------------------------------------------------------------------------------ counting


@dataclass
class Work:
    """What a part does in one step."""

    flops: int = 0
    """Of matrix products and convolutions; a multiply-add counts as 2."""
    product_bytes: int = 0
    """Read and written by these, each tensor once: what remains if everything between them is fused into them."""
    bytes: int = 0
    """Read and written by all operations, each on its own, as eager execution does without a cache."""
    operations: int = 0

    def add(self, other: "Work") -> None:
        self.flops += other.flops
        self.product_bytes += other.product_bytes
        self.bytes += other.bytes
        self.operations += other.operations


def flops_of(operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Any) -> int:
    """Torch's own formulas, but for the gradients of a convolution: each costs what the convolution does. Torch counts
    the gradient of a grouped convolution's weight once too often for each group."""
    if operation is aten.convolution_backward:
        gradient, x, weight = arguments[:3]
        transposed, wanted = arguments[7], arguments[10]
        places = (x if transposed else gradient).shape
        return 2 * places[0] * prod(places[2:]) * prod(weight.shape) * sum(wanted[:2])
    formula = flop_registry.get(operation)
    return 0 if formula is None else int(formula(*arguments, **keywords, out_val=found))


def bytes_of(x: Tensor) -> int:
    """Bytes that an operation on ``x`` touches: an expanded axis counts once."""
    sizes = (size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or size < 2)
    return prod(sizes) * x.element_size()


class Counter(TorchDispatchMode):
    """Adds up the work of the operations inside, by the label that ``parts`` has at the time."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.work: dict[Label, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func.namespace == "aten" and not func.is_view:
            packet = func._overloadpacket
            tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
            moved = sum(map(bytes_of, tensors))
            flops = flops_of(packet, args, kwargs, found)
            self.work[self.parts.label].add(Work(flops, moved * (packet in PRODUCTS), moved, 1))
        return found


def fake(module: M, mode: FakeTensorMode, device: str = "cpu") -> M:
    """A copy whose parameters and buffers are fake: shapes without memory."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        like = _faked(tensor.detach(), mode, device)
        memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    return copy.deepcopy(module, memo)


def _faked(tensor: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def fake_batch(batch: Mapping[str, Any], mode: FakeTensorMode, device: str = "cpu") -> dict[str, Any]:
    return {k: _faked(v, mode, device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def counted(parts: Parts, mode: FakeTensorMode, total: Callable[[], Tensor], bf16: bool) -> dict[Label, Work]:
    """The work of a forward pass, ``total``, and its backward pass."""
    counter = Counter(parts)
    with mode, counter, parts.following():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = total()
        loss.backward()  # type: ignore[no-untyped-call]
    return dict(counter.work)
