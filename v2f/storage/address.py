"""Paths and addresses as users write them, converted to the form that the rest of the package uses."""

import argparse
import os
import re

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs")
_STORES = (*_BUCKETS, "file", "memory", "http", "https", "hdfs", "az", "abfs")
# A shell variable at the start of a path component, which no shell has expanded: it was quoted, or in a file.
_VARIABLE = re.compile(r"(?:^|(?<=/))\$(?:[A-Za-z_]\w*|\{\w+\})")


def place(text: str) -> str:
    """A local path, or an address with a lower-case scheme; ``~`` is expanded and ``file://`` removed.

    ValueError for likely mistakes that would otherwise name an odd folder: ``s3:/lab/x``, ``$HOME/x``, ``~nobody/x``,
    an empty text.
    """
    if not text.strip() or "\0" in text:
        raise ValueError("a path has at least one character, and no NUL")
    if text.startswith("~"):
        whole = os.path.expanduser(text)
        if whole.startswith("~"):
            raise ValueError(f"there is no home folder {text.partition('/')[0]}; a file of this name is ./{text}")
        return whole
    found = _ADDRESS.fullmatch(text)
    scheme, slashes, rest = (found[1].lower(), found[2], found[3]) if found else ("", "", "")
    if not os.path.lexists(text):
        if len(slashes) == 1 or (not slashes and scheme in _STORES):
            right = f"{scheme}://{'/' * (scheme == 'file')}{rest}"
            raise ValueError(f"an address has two slashes after the colon: {right}; a folder of this name is ./{text}")
        variable = _VARIABLE.search(text)
        if variable:
            raise ValueError(
                f"{variable[0]} is not expanded here; write the path itself, or let the shell expand it (double quotes)"
            )
    if len(slashes) < 2:
        return text
    if scheme == "file":
        if len(slashes) == 2 and not rest.startswith("localhost/"):
            raise ValueError(f"a local file has three slashes: file:///{rest}")
        return f"/{rest.removeprefix('localhost/') if len(slashes) == 2 else rest}"
    if scheme in _BUCKETS and (len(slashes) > 2 or not rest):
        raise ValueError(f"it names no bucket; use {scheme}://bucket/{rest}")
    return f"{scheme}:{slashes}{rest}"


def argument(text: str) -> str:
    """Like :func:`place`, as an argparse type: errors are shown with the reason."""
    try:
        return place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
