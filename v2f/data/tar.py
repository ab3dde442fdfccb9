"""The tar members of a sample: adjacent plain files of a USTAR archive, ``KEY.EXTENSION`` each, as webdataset writes
them."""

import io
from collections.abc import Mapping

from v2f.errors import V2FError

BLOCK = 512  # bytes of a tar block; headers and padded contents are multiples of it

Members = dict[str, bytes]
"""Extension -> content."""


def join_members(key: str, members: Mapping[str, bytes | memoryview]) -> bytes:
    """The adjacent USTAR members of a sample, as webdataset writes them and :func:`split_members` reads them; times and
    owners are fixed, so that equal samples give equal bytes."""
    from webdataset import TarWriter  # imported late: it imports torch, which readers do not need

    tar = io.BytesIO()
    with TarWriter(tar, encoder=False, mtime=0, user="v2f", group="v2f", keep_meta=True) as writer:
        writer.write({"__key__": key, **members})
    return tar.getvalue()[
        : sum(BLOCK + padded(len(content)) for content in members.values())
    ]  # without the end-of-archive blocks


def split_members(key: str, raw: bytes | bytearray | memoryview) -> dict[str, memoryview]:
    """Extension -> content of the adjacent USTAR members of ``key`` (POSIX.1-1988, "ustar" format); V2FError if they
    are anything else."""
    view = memoryview(raw)
    members: dict[str, memoryview] = {}
    at = 0
    while at < len(view):
        header = bytes(view[at : at + BLOCK])
        try:
            if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
                raise ValueError("no header of a plain file")
            name = header[:100].split(b"\0", 1)[0].decode("ascii")
            length = int(header[124:136].rstrip(b" \0"), 8)
        except ValueError as error:
            raise V2FError(f"sample {key}: its tar header at byte {at} cannot be read ({error})") from error
        owner, _, extension = name.partition(".")
        start, at = at + BLOCK, at + BLOCK + padded(length)
        if owner != key or extension in members or at > len(view):
            raise V2FError(f"sample {key}: the tar member {name!r} does not belong where it stands")
        members[extension] = view[start : start + length]
    return members


def padded(length: int) -> int:
    """``length`` bytes rounded up to whole tar blocks."""
    return -(-length // BLOCK) * BLOCK
