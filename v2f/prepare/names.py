"""Names as people type them and as disks store them: identities, files, and fields of a CSV.

Unicode has several spellings of one name (é: one character, or e and a combining accent; operating systems differ).
They are the same name here: names are compared and stored in NFC. Names that differ in case are different.
"""

import contextlib
import functools
import os
import re
import time
import unicodedata

from v2f.errors import V2FError
from v2f.storage import store

# zero-width characters, which spreadsheets and web pages add
_UNSEEN = "\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
_AROUND = re.compile(rf"^[\s{_UNSEEN}]+|[\s{_UNSEEN}]+$")
_FOLDERS = 64  # number of folders whose listings are cached
_SETTLED_NS = 2_000_000_000  # a folder that changed more recently may change again with the same modification time


def same(name: str) -> str:
    """The canonical form of a name, NFC, for comparisons. ASCII is unchanged."""
    with contextlib.suppress(UnicodeEncodeError):  # in an ASCII locale, Python represents other letters as surrogates
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", name)


def tidy(field: str) -> str:
    """A field without surrounding blanks and invisible characters."""
    return _AROUND.sub("", field)


def person(identity: str) -> str:
    """The canonical form of an identity, for comparisons."""
    return same(tidy(identity))


def is_text(name: str) -> bool:
    """Whether a file's name is valid text; one whose bytes are not UTF-8 is not."""
    return printable(same(name)) == same(name)


def printable(text: str) -> str:
    """``text`` with escapes for the bytes of a file's name that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def on_disk(path: str) -> str:
    """``path``, or if it does not exist, the existing path with another spelling of the same names."""
    if path.isascii() or store.exists(path):
        return path
    local = store.local_path(path)
    if local is None:
        scheme, _, rest = path.partition("://")
        bucket, *parts = rest.split("/")
        found = f"{scheme}://{bucket}"
    else:
        found, parts = "/" if local.startswith("/") else ".", local.split("/")
    with contextlib.suppress(V2FError, OSError):  # if a folder cannot be listed, reading the file reports it
        for part in filter(None, parts):
            found = store.join(found, part if part.isascii() else _listed(found).get(same(part), part))
        return found if store.exists(found) else path
    return path


def _listed(folder: str) -> dict[str, str]:
    local = store.local_path(folder)
    changed = os.stat(local).st_mtime_ns if local is not None else None
    settled = changed is None or time.time_ns() - changed > _SETTLED_NS
    return (_spellings if settled else _spellings.__wrapped__)(folder, changed)


@functools.lru_cache(_FOLDERS)
def _spellings(folder: str, changed: int | None) -> dict[str, str]:
    """NFC -> stored name, of the names in ``folder`` that are not ASCII; ``changed`` is part of the cache's key."""
    return {same(name): name for name in store.names(folder) if not name.isascii()}
