"""Decoding raw tar bytes to stacked arrays, in the rank's process or in a worker process.

A worker is a ``python -c`` with one socket, started without multiprocessing: so it imports neither the parent's
``__main__`` nor torch, and it exits when its parent's end of the socket closes, however the parent died.

The bytes go through *trays*, memory that both processes map; the socket carries only the messages about them::

    parent                                                          worker
    {trays}, pickled transforms                              -->    {ready}, or {failure}
    tray <- raw members of a batch
    {tray, keys, lengths, slots, seed, tolerant}             -->    decodes into the same tray, behind the raw members
    arrays <- tray                                           <--    {arrays: {name: [shape, dtype, offset]}, size, bad}
                                                                    or {error, row}, {failure}

Answers come in the order of the requests. A message is a JSON header and binary payloads (see :func:`send`).
"""

import json
import math
import mmap
import os
import pickle
import queue
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from v2f.data.sample import Sample
from v2f.data.transforms import Following, Transform
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

Buffer = bytes | bytearray | memoryview
Array = npt.NDArray[Any]
Arrays = dict[str, Array]

_LENGTHS = struct.Struct("<II")
_TRANSFORM = 0x7F04  # what a key draws, so that no two draws of one seed share a stream
_ALIGN = 64  # bytes of a cache line


class DecodeError(V2FError):
    """A sample of a batch cannot be decoded; ``row`` says which."""

    def __init__(self, message: str, row: int):
        super().__init__(message)
        self.row = row


def decode(
    keys: Sequence[str],
    raws: Sequence[Buffer | None],
    slots: Sequence[int],
    seed: int | None,
    transforms: Mapping[str, Transform],
    tolerant: bool = False,
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array] = np.empty,
) -> tuple[Arrays, dict[int, str]]:
    """Each transform's results for the samples, stacked to [len(keys), ...]; and the rows that could not be decoded,
    with their reasons.

    The randomness of a transform is a function of (seed, slot, its name), or the name in its ``draws_as``; with
    ``seed`` None there is none. A row without raw members (None) is skipped. A row that cannot be decoded is skipped if
    ``tolerant``, and otherwise a :class:`DecodeError`. Skipped rows are left unwritten; if all rows are skipped, there
    are no arrays. ``allocate`` makes the stacks.
    """
    named = {name: each.draws_as if isinstance(each, Following) else name for name, each in transforms.items()}
    streams = [crc32(name.encode()) for name in named.values()]

    def rngs(slot: int) -> list[np.random.Generator | None]:
        return [None if seed is None else keyed_rng(_TRANSFORM, seed, slot, stream) for stream in streams]

    drawn = [rngs(slot) for slot in slots]  # all at once, which is twice as fast as between samples
    arrays: Arrays = {}
    bad: dict[int, str] = {}
    for row, (key, raw, own) in enumerate(zip(keys, raws, drawn, strict=True)):
        if raw is None:
            continue
        try:
            sample = Sample.from_tar(key, raw)
            values = {
                name: transform(sample, rng) for (name, transform), rng in zip(transforms.items(), own, strict=True)
            }
        except V2FError as error:
            if not tolerant:
                raise DecodeError(str(error), row) from error
            bad[row] = str(error)
            continue
        put(values, key, row, len(keys), arrays, allocate)
    return arrays, bad


def put(
    values: Arrays,
    key: str,
    row: int,
    rows: int,
    arrays: Arrays,
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array] = np.empty,
) -> None:
    """Copy the transforms' results for the sample ``key`` into its row of the stacks ``arrays``, which the first sample
    of a batch of ``rows`` creates; :class:`DecodeError` if shape or type differ from those of the stack."""
    for name, value in values.items():
        if name not in arrays:
            arrays[name] = allocate((rows, *value.shape), value.dtype)
        stack = arrays[name]
        if value.shape != stack.shape[1:] or value.dtype != stack.dtype:
            raise DecodeError(
                f"sample {key}: the transform {name!r} gives {value.dtype} {list(value.shape)}, "
                f"of the batch's first sample it gave {stack.dtype} {list(stack.shape[1:])}",
                row,
            )
        stack[row] = value


# ------------------------------------------------------------------------------------------------ trays


class Tray:
    """Memory shared by parent and worker: it holds a batch's raw members and, after them, the arrays decoded from them.

    It belongs to the side that received the last message. ``descriptor`` refers to an anonymous file, which is empty
    until something is put in; parts that are never written take no memory.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self._view = memoryview(b"")

    def view(self, size: int) -> memoryview:
        """At least the first ``size`` bytes. Earlier views stay valid."""
        if self._view.nbytes < size:
            try:
                if os.fstat(self.descriptor).st_size < size:
                    os.ftruncate(self.descriptor, 1 << (size - 1).bit_length())
                self._view = memoryview(mmap.mmap(self.descriptor, 0))
            except (OSError, ValueError) as error:
                raise V2FError(
                    f"no memory of {size} bytes can be shared with decode workers ({error}); "
                    "lower the batch, or decode with 0 workers"
                ) from error
        return self._view

    def put(self, raws: Sequence[Buffer]) -> None:
        """Copy ``raws`` into the tray, one after the other."""
        view, at = self.view(sum(len(raw) for raw in raws)), 0
        for raw in raws:
            view[at : at + len(raw)] = raw
            at += len(raw)

    def whole(self, size: int) -> npt.NDArray[np.uint8]:
        """The first ``size`` bytes as a new array, which stays alive as long as any view of it."""
        return np.frombuffer(self.view(size), np.uint8)


def array_in(whole: npt.NDArray[np.uint8], shape: Sequence[int], dtype: npt.DTypeLike, offset: int) -> Array:
    """The array at byte ``offset`` of ``whole``."""
    end = offset + math.prod(shape) * np.dtype(dtype).itemsize
    return whole[offset:end].view(dtype).reshape(shape)


class _Stacks:
    """Allocates arrays in a tray, one after the other; ``end`` is the end of the last one, ``offsets`` their
    offsets."""

    def __init__(self, tray: Tray, end: int):
        self._tray, self.end = tray, end
        self.offsets: list[int] = []

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if dtype.hasobject:
            raise TypeError(f"a transform gives {dtype}, numbers are required")
        offset = -(-self.end // _ALIGN) * _ALIGN
        self.end = offset + math.prod(shape) * dtype.itemsize
        self.offsets.append(offset)
        return array_in(self._tray.whole(self.end), shape, dtype, offset)


# ---------------------------------------------------------------------------------------------- messages


def send(sock: socket.socket, header: Mapping[str, Any], payloads: Sequence[Buffer] = ()) -> None:
    """Send a header and payloads; blocks while the receiver's buffer is full."""
    text = json.dumps({**header, "bytes": [len(payload) for payload in payloads]}).encode()
    sock.sendall(_LENGTHS.pack(len(text), len(payloads)) + text)
    for payload in payloads:
        sock.sendall(payload)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[memoryview]] | None:
    """The next header and its payloads; None if the other side has closed the socket."""
    start = _exactly(sock, _LENGTHS.size)
    text = start and _exactly(sock, _LENGTHS.unpack(start)[0])
    if not text:
        return None
    header: dict[str, Any] = json.loads(bytes(text))
    payloads = []
    for length in header["bytes"]:
        payload = _exactly(sock, length)
        if payload is None:
            return None
        payloads.append(payload)
    return header, payloads


def _exactly(sock: socket.socket, length: int) -> memoryview | None:
    view, at = memoryview(bytearray(length)), 0
    while at < length:
        count = sock.recv_into(view[at:])
        if not count:
            return None
        at += count
    return view


# ---------------------------------------------------------------------------------------------- the worker


def main(descriptor: int) -> None:
    """Serve decode requests on a connected socket until the parent closes it."""
    sock = socket.socket(fileno=descriptor)
    try:
        greeting = receive(sock)
        if greeting is None:
            return
        header, (pickled,) = greeting
        trays = {number: Tray(number) for number in header["trays"]}  # inherited: the same numbers as the parent's
        try:
            transforms: dict[str, Transform] = pickle.loads(pickled)  # noqa: S301
        except Exception:
            send(sock, {"failure": f"a decode worker cannot load the transforms:\n{traceback.format_exc()}"})
            return
        send(sock, {"ready": os.getpid()})
        messages: queue.SimpleQueue[tuple[dict[str, Any], list[memoryview]] | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sock, messages), daemon=True).start()
        while (message := messages.get()) is not None:
            header, _ = message
            send(sock, _answer(header, trays[header["tray"]], transforms))
    except (ConnectionError, EOFError):
        pass  # the parent is gone
    finally:
        sys.stdout.flush()
        os._exit(0)  # the listening thread may be blocked in a system call


def _listen(sock: socket.socket, messages: "queue.SimpleQueue[tuple[dict[str, Any], list[memoryview]] | None]") -> None:
    """Receive messages while the main thread decodes, so that the parent never blocks on sending for long."""
    try:
        while (message := receive(sock)) is not None:
            messages.put(message)
    except (ConnectionError, EOFError):
        pass
    finally:
        messages.put(None)


def _answer(request: dict[str, Any], tray: Tray, transforms: Mapping[str, Transform]) -> dict[str, Any]:
    raws: list[Buffer | None] = []
    at = 0
    for length in request["lengths"]:
        raws.append(None if length is None else tray.view(at + length)[at : at + length])
        at += length or 0
    stacks = _Stacks(tray, at)
    try:
        arrays, bad = decode(
            request["keys"],
            raws,
            request["slots"],
            request["seed"],
            transforms,
            request["tolerant"],
            stacks,
        )
    except DecodeError as error:
        return {"error": str(error), "row": error.row}
    except V2FError as error:
        return {"error": str(error), "row": None}
    except Exception:
        return {"failure": f"a transform failed in a decode worker:\n{traceback.format_exc()}"}
    described = {
        name: [list(array.shape), array.dtype.str, offset]
        for (name, array), offset in zip(arrays.items(), stacks.offsets, strict=True)
    }
    return {"arrays": described, "size": stacks.end, "bad": bad}
