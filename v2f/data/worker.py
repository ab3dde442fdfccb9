"""Decoding: raw tar bytes in, stacked arrays out; in the rank's process or in a worker process.

A worker is ``python -c`` with one socket, started without multiprocessing: so it imports neither the parent's
``__main__`` nor torch, and it ends by itself when its parent's end of the socket closes, however the parent died.

A message is a JSON header and binary payloads (see :func:`send`). Parent to worker: first the pickled transforms
(our own process's objects, over a private socket), then batches. Worker to parent: arrays or an error.
"""

import json
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from v2f.data.sample import Sample
from v2f.data.transforms import Transform
from v2f.errors import V2FError
from v2f.keyed import keyed_rng

Buffer = bytes | bytearray | memoryview
Arrays = dict[str, npt.NDArray[Any]]

_LENGTHS = struct.Struct("<II")
_TRANSFORM = 0x7F04  # what a key draws, so that no two draws of one seed share a stream


class DecodeError(V2FError):
    """A sample of a batch cannot be decoded; ``row`` says which."""

    def __init__(self, message: str, row: int):
        super().__init__(message)
        self.row = row


def decode(
    keys: Sequence[str],
    raws: Sequence[Buffer],
    slots: Sequence[int],
    seed: int | None,
    transforms: Mapping[str, Transform],
) -> Arrays:
    """Each transform's results for the samples, stacked to [len(keys), ...].

    The randomness of a transform is a function of (seed, slot, its name), or where it says ``draws_as`` of the name
    of that other transform; with ``seed`` None there is none.
    """
    arrays: Arrays = {}
    draws_as = {name: getattr(transform, "draws_as", name) for name, transform in transforms.items()}
    for row, (key, raw, slot) in enumerate(zip(keys, raws, slots, strict=True)):
        try:
            sample = Sample.from_tar(key, raw)
            for name, transform in transforms.items():
                rng = None if seed is None else keyed_rng(_TRANSFORM, seed, slot, crc32(draws_as[name].encode()))
                value = transform(sample, rng)
                if row == 0:
                    arrays[name] = np.empty((len(keys), *value.shape), value.dtype)
                stack = arrays[name]
                if value.shape != stack.shape[1:] or value.dtype != stack.dtype:
                    raise V2FError(
                        f"sample {key}: the transform {name!r} gives {value.dtype} {list(value.shape)}, "
                        f"of the batch's first sample it gave {stack.dtype} {list(stack.shape[1:])}"
                    )
                stack[row] = value
        except V2FError as error:
            raise DecodeError(str(error), row) from error
    return arrays


# ---------------------------------------------------------------------------------------------- messages


def send(sock: socket.socket, header: Mapping[str, Any], payloads: Sequence[Buffer | npt.NDArray[Any]] = ()) -> None:
    """Send a header and payloads; blocks while the other side's buffer is full."""
    views = [as_bytes(payload) for payload in payloads]
    text = json.dumps({**header, "bytes": [view.nbytes for view in views]}).encode()
    sock.sendall(_LENGTHS.pack(len(text), len(views)) + text)
    for view in views:
        sock.sendall(view)


def as_bytes(payload: Buffer | npt.NDArray[Any]) -> memoryview:
    """The bytes of a buffer or of a contiguous array, without a copy."""
    view: memoryview = memoryview(payload)  # type: ignore[arg-type]  # numpy's stubs before 3.12 know no Buffer
    return view.cast("B") if view.nbytes else memoryview(b"")


def receive_header(sock: socket.socket) -> dict[str, Any] | None:
    """The next header, or None where the other side has closed."""
    start = bytearray(_LENGTHS.size)
    if not _fill(sock, memoryview(start)):
        return None
    text = bytearray(_LENGTHS.unpack(start)[0])
    if not _fill(sock, memoryview(text)):
        return None
    header: dict[str, Any] = json.loads(text)
    return header


def receive_payload(sock: socket.socket, length: int, into: memoryview | None = None) -> memoryview:
    """The next payload, straight into ``into`` where it is given; EOFError where the other side has closed."""
    view = memoryview(bytearray(length)) if into is None else into
    if not _fill(sock, view):
        raise EOFError
    return view


def _fill(sock: socket.socket, view: memoryview) -> bool:
    at = 0
    while at < view.nbytes:
        count = sock.recv_into(view[at:])
        if not count:
            return False
        at += count
    return True


# ---------------------------------------------------------------------------------------------- the worker


def main(descriptor: int) -> None:
    """Serve decode requests on a connected socket until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which then closes the socket
    sock = socket.socket(fileno=descriptor)
    try:
        header = receive_header(sock)
        if header is None:
            return
        try:
            transforms: dict[str, Transform] = pickle.loads(receive_payload(sock, header["bytes"][0]))  # noqa: S301
        except Exception:
            send(sock, {"failure": f"a decode worker cannot load the transforms:\n{traceback.format_exc()}"})
            return
        send(sock, {"ready": os.getpid()})
        requests: queue.SimpleQueue[tuple[dict[str, Any], list[memoryview]] | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sock, requests), daemon=True).start()
        while (request := requests.get()) is not None:
            _answer(sock, *request, transforms)
    except (ConnectionError, EOFError):
        pass  # the parent is gone: so is the reason to be here
    finally:
        sys.stdout.flush()
        os._exit(0)  # the listening thread may be in a system call


def _listen(sock: socket.socket, requests: "queue.SimpleQueue[tuple[dict[str, Any], list[memoryview]] | None]") -> None:
    """Take requests off the socket while the main thread decodes, so that the parent's send never waits long."""
    try:
        while (header := receive_header(sock)) is not None:
            requests.put((header, [receive_payload(sock, length) for length in header["bytes"]]))
    except (ConnectionError, EOFError):
        pass
    finally:
        requests.put(None)


def _answer(
    sock: socket.socket, header: dict[str, Any], raws: list[memoryview], transforms: Mapping[str, Transform]
) -> None:
    try:
        arrays = decode(header["keys"], raws, header["slots"], header["seed"], transforms)
    except DecodeError as error:
        send(sock, {"error": str(error), "row": error.row})
    except Exception:
        send(sock, {"failure": f"a transform failed in a decode worker:\n{traceback.format_exc()}"})
    else:
        described = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
        send(sock, {"arrays": described}, list(arrays.values()))
