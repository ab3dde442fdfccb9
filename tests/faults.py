"""A bad network before an HTTP server, on loopback: on a seeded share of the requests something goes wrong.

    client -> this proxy -> server;   request forwarded unchanged (a signature covers its Host), answer spoilt, or not

Whether and how a request fails is a function of (seed, what it asks for, how often that was asked before): threads may
come in any order. Each fault is one that stores and networks have: see KINDS.
"""

import asyncio
import collections
import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = (
    "drop",  # the answer's body breaks off in its middle; where it has none, the server acts and its answer is lost
    "slow_down",  # 503 SlowDown; the server is not asked
    "stall",  # half of the body, or nothing of an answer without one, and then silence
    "truncate",  # a whole answer of half the body; where it has none, the request breaks off in its middle
)

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class _Message:
    """One HTTP request or answer; ``body`` as it was on the wire."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def raw(self, length: int | None = None) -> bytes:
        """The whole, or one that says that it has ``length`` bytes of body and does."""
        headers = self.headers
        if length is not None:
            headers = tuple((k, str(length) if k.lower() == "content-length" else v) for k, v in headers)
        head = "\r\n".join([self.start, *(f"{key}: {value}" for key, value in headers), "", ""])
        return head.encode("latin-1") + (self.body if length is None else self.body[:length])


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    range: str  # "bytes=0-9", or empty
    fault: str | None


class Faults:
    """The proxy; ``share``, ``kinds`` and ``may`` (whether a request of this method and path may be spoilt) may be
    changed while it runs."""

    def __init__(self, target: str, seed: int, share: float, kinds: Sequence[str] = KINDS):
        parts = urlsplit(target)
        self._upstream = (parts.hostname, parts.port)
        self.seed, self.share, self.kinds = seed, share, kinds
        self.may: Callable[[str, str], bool] = lambda method, path: True
        self.asked: list[Asked] = []
        self.endpoint = ""
        self._before: collections.Counter[str] = collections.Counter()

    def happened(self) -> collections.Counter[str]:
        """How often each fault was."""
        return collections.Counter(asked.fault for asked in self.asked if asked.fault)

    def _fault(self, request: _Message) -> str | None:
        method, path, _ = request.start.split(" ", 2)
        what = (
            f"{method} {re.sub('uploadId=[^&]*', '', path)} {request.header('range')}"  # those are never twice the same
        )
        digest = hashlib.blake2b(f"{self.seed} {what} {self._before[what]}".encode(), digest_size=8).digest()
        self._before[what] += 1
        fault = None
        if self.may(method, path) and int.from_bytes(digest[:6], "big") < self.share * 2**48:
            fault = self.kinds[int.from_bytes(digest[6:], "big") % len(self.kinds)]
        self.asked.append(Asked(method, path, request.header("range"), fault))
        return fault

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with a connection of its own to the server."""
        server = None
        try:
            while True:
                request = await _message(reader, writer)
                fault = self._fault(request)
                if fault == "slow_down":
                    head = (
                        f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(_SLOW_DOWN)}"
                    )
                    writer.write(head.encode() + b"\r\n\r\n" + _SLOW_DOWN)
                    continue
                if server is None:
                    server = await asyncio.open_connection(*self._upstream)
                if fault == "truncate" and request.body:
                    server[1].write(request.raw()[: -(len(request.body) // 2)])
                    return
                server[1].write(request.raw())
                method = request.start.split(" ", 1)[0]
                answer = await _message(server[0], None, bodyless=method == "HEAD")
                whole = len(answer.raw())
                sent = whole - len(answer.body) + len(answer.body) // 2 if answer.body else 0
                if fault is None:
                    writer.write(answer.raw())
                elif fault == "truncate" and answer.header("content-length") and answer.body:
                    writer.write(answer.raw(len(answer.body) // 2))
                else:
                    writer.write(answer.raw()[:sent])
                    await writer.drain()
                    if fault == "stall":
                        await reader.read(1)  # until the client has had enough
                    return
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is done, or the test
        finally:
            for each in (writer, server[1] if server else None):
                if each is not None:
                    each.close()


async def _message(
    reader: asyncio.StreamReader, continue_to: asyncio.StreamWriter | None, bodyless: bool = False
) -> _Message:
    """Read one message. A client that waits for leave to send its body is given it here."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = tuple((key, value.strip()) for key, _, value in (line.partition(":") for line in lines[1:-2]))
    message = _Message(lines[0], headers, b"")
    if continue_to is not None and message.header("expect"):
        continue_to.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        headers = tuple((key, value) for key, value in headers if key.lower() != "expect")
    if bodyless or lines[0].split(" ")[1] in ("204", "304"):
        return message
    if message.header("transfer-encoding").lower() == "chunked":
        body = b""
        while True:
            size = await reader.readuntil(b"\r\n")
            body += size + await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            if int(size.split(b";")[0], 16) == 0:
                return _Message(lines[0], headers, body)
    return _Message(lines[0], headers, await reader.readexactly(int(message.header("content-length") or 0)))


@contextlib.contextmanager
def faulty(target: str, *, seed: int, share: float, kinds: Sequence[str] = KINDS) -> Iterator[Faults]:
    """Serve before ``target`` (http://HOST:PORT), in a thread, until the block ends."""
    faults = Faults(target, seed, share, kinds)
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(faults.serve, "127.0.0.1", 0, limit=1 << 20)
        faults.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await done.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="faults")
    thread.start()
    try:
        assert ready.wait(30)
        yield faults
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
