"""Names as people type them and disks keep them: of identities, of files, of the fields of a CSV.

Unicode can spell one name in several ways (é: one character, or e and an accent; macOS, Windows and Linux differ).
They are one name here: compared, and stored, in the form NFC. Upper and lower case are two.
"""

import contextlib
import functools
import os
import re
import time
import unicodedata

from v2f.errors import V2FError
from v2f.storage import store

_UNSEEN = (
    "\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"  # of no width; a spreadsheet or a page leaves them
)
_AROUND = re.compile(rf"^[\s{_UNSEEN}]+|[\s{_UNSEEN}]+$")
_FOLDERS = 64  # whose names are kept, where many files of a folder are looked for
_SETTLED_NS = 2_000_000_000  # a folder that changed less than this ago may change again without a newer time


def same(name: str) -> str:
    """A name as it compares with others: in NFC. ASCII stays as it is."""
    with contextlib.suppress(UnicodeEncodeError):  # under a locale of ASCII Python keeps other letters as bytes
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", name)


def tidy(field: str) -> str:
    """A field without the blanks and the invisible characters around it."""
    return _AROUND.sub("", field)


def person(identity: str) -> str:
    """An identity as it compares with others."""
    return same(tidy(identity))


def is_text(name: str) -> bool:
    """Whether a file's name can be written anywhere: the bytes of one that is no UTF-8 cannot."""
    return printable(same(name)) == same(name)


def printable(text: str) -> str:
    """``text`` with escapes for the bytes of a file's name that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def on_disk(path: str) -> str:
    """``path``; or, where nothing is there, what is there under another spelling of the same names."""
    if path.isascii() or store.exists(path):
        return path
    local = store.local_path(path)
    if local is None:
        scheme, _, rest = path.partition("://")
        bucket, *parts = rest.split("/")
        found = f"{scheme}://{bucket}"
    else:
        found, parts = "/" if local.startswith("/") else ".", local.split("/")
    with contextlib.suppress(V2FError, OSError):  # a folder that cannot be listed: who reads the file says so
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
    """NFC -> the name as ``folder``, last ``changed`` then, has it; of those that are not ASCII."""
    return {same(name): name for name in store.names(folder) if not name.isascii()}
