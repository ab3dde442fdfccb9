"""A frozen net that is a module of another run.

It is configured here but built by code that knows runs and systems, which this layer does not: :func:`read_by` sets the
reader while a system is being built.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal

from pydantic import Field
from torch import nn

from v2f.config import Config, MayChange, Place
from v2f.errors import V2FError
from v2f.weights.catalogue import Published

MODULE = r"^[A-Za-z_]\w*(\.\w+)*$"
Which = Literal["latest", "best"] | int


class RunModule(Config):
    """A module that another run trained; its moving averages if the run keeps them."""

    net: Literal["run"]
    path: MayChange[Place] = Field(
        description="the run, or an export of it: a folder, an s3:// prefix or an MLflow run id"
    )
    module: str = Field(pattern=MODULE, description="its name in the run, such as decoder or decoder.synthesis")
    which: MayChange[Which] = Field("latest", description="which checkpoint: latest, best or a step")
    sha256: MayChange[str | None] = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the module's tensors, as `v2f weights` prints it; refuse others",
    )

    @property
    def published(self) -> Published:
        return Published(
            name=f"{self.module} of {self.path}",
            what=f"the module {self.module} of a run",
            files=(self.path,),
            page=self.path,
            licence="as the run's data and weights allow",
            sha256_source="of the module's tensors, by v2f",
        )


Reader = Callable[[RunModule], tuple[nn.Module, str]]
"""Returns the module and the SHA-256 of its tensors."""

_reader: ContextVar[Reader | None] = ContextVar("reader", default=None)


@contextlib.contextmanager
def read_by(reader: Reader) -> Iterator[None]:
    """Within this context, ``reader`` reads modules of runs."""
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)


def read_module(net: RunModule, role: str) -> tuple[nn.Module, str]:
    """The module that ``net`` names, in evaluation mode and with gradients off for its own parameters, and the SHA-256
    of its tensors. ``role``, its place in the configuration, begins the V2FError's message."""
    reader = _reader.get()
    assert reader is not None, "a system that names a run is built by v2f.runs.run.build_system"
    try:
        module, digest = reader(net)
        if net.sha256 not in (None, digest):
            raise V2FError(
                f"{net.path}: the SHA-256 of its {net.module} is {digest[:16]}..., but the configuration says "
                f"{str(net.sha256)[:16]}...; set `which` to the step, or use an export"
            )
    except V2FError as error:
        raise error.at(role) from error
    return module.eval().requires_grad_(False), digest
