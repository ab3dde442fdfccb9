"""Whether a file holds exactly one whole recording, judged by its container before it is decoded.

Decoders differ: from a truncated file, some return what is left and some nothing; from two concatenated files, some
return the first and some both. So one rule applies to all formats: such a file cannot be used. A stream that gives
neither its length nor its end (MP3 without a length, ADTS, MPEG-TS) is accepted as it is.
"""

import re
from collections.abc import Callable
from typing import Literal

_Walk = Callable[[bytes], int | None]
Wrong = Literal["", "is cut", "is more than one recording"]

_WAVE_64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # the GUID "riff"
_BOXES = rb"ftyp|styp|moov|moof|mdat|wide|free|skip"
_STARTS: list[tuple[str, bytes, int, bytes]] = [  # kind, bytes to search for, their offset, pattern of the whole header
    *(("wav", name, 0, name + b"....WAVE") for name in (b"RIFF", b"RIFX", b"RF64", b"BW64")),
    ("avi", b"RIFF", 0, rb"RIFF....AVI "),
    ("w64", _WAVE_64, 0, re.escape(_WAVE_64)),
    ("aiff", b"FORM", 0, rb"FORM....AIF[FC]"),
    ("au", b".snd", 0, rb"\.snd\0\0.{6}\0\0\0[\x01-\x1b]"),
    ("caf", b"caff", 0, rb"caff\0\x01\0\0desc"),
    ("flac", b"fLaC", 0, rb"fLaC[\x00\x80]\0\0\x22"),
    ("ogg", b"OggS", 0, rb"OggS\0[\x02\x06]\0{8}"),
    ("ebml", b"\x1a\x45\xdf\xa3", 0, rb"\x1a\x45\xdf\xa3.{1,40}\x42\x82.{1,8}(?:webm|matroska)"),
    ("mp4", b"ftyp", 4, rb"\0\0..ftyp(?:M4|mp4|iso|qt|3g|dash|avc|MSNV|f4)"),
]
_START = [(kind, anchor, ahead, re.compile(start, re.DOTALL)) for kind, anchor, ahead, start in _STARTS]

_ID3 = re.compile(rb"ID3[\x02-\x04]\0[\0\x10-\xf0][\0-\x7f]{4}")
_FRAME = re.compile(rb"\xff[\xe2-\xff]")
_LENGTH_FRAME = re.compile(rb"\xff[\xe2-\xff][\x10-\xef].(?:.{9}|.{17}|.{32})(Xing|Info)\0\0\0[\0-\x0f]", re.DOTALL)


class _CutError(Exception):
    """The file ends before its content does."""


class _JoinedError(Exception):
    """Another recording follows the first one."""


def wrong(content: bytes) -> Wrong:
    """Why ``content`` is not one whole recording; empty if it is, or if its container is unknown."""
    kind = _kind(content)
    if kind is None:
        return ""
    try:
        end = _WALKS[kind](content) if kind in _WALKS else None
        for other, anchor, ahead, start in _START:
            # within a recording, search for its own kind only: searching for all takes as long as decoding
            at = content.find(anchor, (end or 4) + ahead) if end is not None or other == kind else -1
            while at >= 0:
                if start.match(content, at - ahead):
                    return "is more than one recording"
                at = content.find(anchor, at + 1)
    except _CutError:
        return "is cut"
    except _JoinedError:
        return "is more than one recording"
    return ""


def _kind(content: bytes) -> str | None:
    for kind, _, _, start in _START:
        if start.match(content):
            return kind
    if re.fullmatch(_BOXES, content[4:8]):
        return "mp4"
    return "mp3" if _ID3.match(content) or _FRAME.match(content) else None


def _number(content: bytes, at: int, size: int, order: str) -> int:
    """The unsigned number at ``at``; the file is truncated if that is beyond its end."""
    if at + size > len(content):
        raise _CutError
    return int.from_bytes(content[at : at + size], "little" if order == "<" else "big")


def _known(size: int) -> bool:
    """Whether a 32-bit size is real: writers that cannot seek back leave zero, or about the largest number."""
    return size != 0 and not 0x7FFFF000 <= size <= 0xFFFFFFFF


def _wav(content: bytes) -> int | None:
    order = ">" if content[:4] == b"RIFX" else "<"
    at, long = 12, 0
    while at + 8 <= len(content):
        name, size = content[at : at + 4], _number(content, at + 4, 4, order)
        if name == b"ds64":
            long = _number(content, at + 16, 8, order)
        if name == b"data":
            size = long if size == 0xFFFFFFFF else size
            if not _known(size):
                return None
            if size > len(content):  # not at + 8 + size, because some writers count the header, too
                raise _CutError
            return at + 8 + size
        at += 8 + size + size % 2
    raise _CutError


def _sized(at: int, size: int, order: str, before: int) -> _Walk:
    """A walk over a file whose header has its length, without the first ``before`` bytes, at byte ``at``."""

    def walk(content: bytes) -> int | None:
        length = _number(content, at, size, order)
        if not _known(length):
            return None
        if length + before > len(content):
            raise _CutError
        return length + before

    return walk


def _au(content: bytes) -> int | None:
    begin, size = _number(content, 4, 4, ">"), _number(content, 8, 4, ">")
    if not _known(size):
        return None
    if begin + size > len(content):
        raise _CutError
    return begin + size


def _caf(content: bytes) -> int | None:
    at = 8
    while at + 12 <= len(content) and content[at : at + 4] != b"caff":
        size = _number(content, at + 4, 8, ">")
        if size >> 63:  # -1: up to the end of the file
            return None
        at += 12 + size
    if at > len(content):
        raise _CutError
    return at


def _ogg(content: bytes) -> int | None:
    """Ogg pages; a page that begins a stream after one that does not belongs to another file (RFC 3533, chaining)."""
    at, begun = 0, False
    while content.startswith(b"OggS", at):
        segments = _number(content, at + 26, 1, "<")
        table = content[at + 27 : at + 27 + segments]
        begins = bool(content[at + 5] & 2)
        if begins and begun:
            raise _JoinedError
        begun = not begins
        at += 27 + segments + sum(table)
        if len(table) < segments or at > len(content):
            raise _CutError
    if at < len(content) and b"OggS".startswith(content[at : at + 4]):
        raise _CutError
    return at


def _ebml(content: bytes) -> int | None:
    """EBML elements in sequence (RFC 8794); enters the segment, and every element of unknown length."""
    at, end = 0, None
    while at < len(content) and at != end:
        first = content[at]
        width = 9 - first.bit_length()
        if width > 4:
            return at  # not an element: the recording ends here
        name = _number(content, at, width, ">")
        at += width
        width = 9 - _number(content, at, 1, ">").bit_length()
        if width > 8:
            return at
        size = _number(content, at, width, ">") ^ (1 << 7 * width)
        at += width
        known = size != (1 << 7 * width) - 1
        if name == 0x18538067:
            end = at + size if known else None
        elif known:
            at += size
    if at > len(content) or (end or 0) > len(content):
        raise _CutError
    return at if end is not None else None


def _mp4(content: bytes) -> int | None:
    """MP4 boxes in sequence (ISO 14496-12), with a single ftyp and moov."""
    at, seen = 0, set()
    while at + 8 <= len(content):
        size, name = _number(content, at, 4, ">"), content[at + 4 : at + 8]
        if not re.fullmatch(rb"[ -~\xa9]{4}", name):
            return at  # not a box: the recording ends here
        if name in seen and name in (b"ftyp", b"moov"):
            raise _JoinedError
        seen.add(name)
        if size == 0:  # up to the end of the file
            return None
        at += max(16, _number(content, at + 8, 8, ">")) if size == 1 else max(8, size)
    if at > len(content):
        raise _CutError
    return at


_KBITS = {  # by whether it is MPEG version 1, and by layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3(content: bytes) -> int | None:
    """MPEG audio frames in sequence (ISO 11172-3); the first may give their number."""
    lengths = list(_LENGTH_FRAME.finditer(content))
    if len(lengths) > 1:
        raise _JoinedError
    begin = _behind_tags(content, 0)
    ends = _frames(content, begin)
    if len(ends) < 3:
        return None  # the first bytes only look like a frame
    count, end = len(ends), ends[-1]
    if end > len(content) or (end + 4 > len(content) > end and content[end] == 0xFF):
        raise _CutError
    behind = _behind_tags(content, end)
    if behind > end and _FRAME.match(content, behind):
        raise _JoinedError
    if lengths and lengths[0].start() == begin and end == len(content):
        tag = lengths[0].start(1)
        if content[tag + 7] & 1 and _number(content, tag + 8, 4, ">") >= count:  # the first frame itself does not count
            raise _CutError
    return end


def _behind_tags(content: bytes, at: int) -> int:
    """The position after the ID3v2 tags at ``at``."""
    while _ID3.match(content, at):
        a, b, c, d = content[at + 6 : at + 10]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if content[at + 5] & 0x10 else 0)
    return at


def _frames(content: bytes, at: int) -> list[int]:
    """The end of each MPEG audio frame from ``at`` on."""
    ends = []
    while at + 4 <= len(content) and _FRAME.match(content, at):
        version, layer = content[at + 1] >> 3 & 3, 4 - (content[at + 1] >> 1 & 3)
        bits, rate, padding = content[at + 2] >> 4, content[at + 2] >> 2 & 3, content[at + 2] >> 1 & 1
        if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
            break
        hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        bit_rate = _KBITS[version == 3, layer][bits - 1] * 1000
        if layer == 1:
            at += (12 * bit_rate // hertz + padding) * 4
        else:
            at += (144 if version == 3 or layer == 2 else 72) * bit_rate // hertz + padding
        ends.append(at)
    return ends


_WALKS: dict[str, _Walk] = {  # each returns the end of the first recording; None: unknown
    "wav": _wav,
    "avi": _sized(4, 4, "<", 8),
    "w64": _sized(16, 8, "<", 0),
    "aiff": _sized(4, 4, ">", 8),
    "au": _au,
    "caf": _caf,
    "ogg": _ogg,
    "ebml": _ebml,
    "mp4": _mp4,
    "mp3": _mp3,
}
