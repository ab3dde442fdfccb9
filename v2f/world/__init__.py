"""The synthetic world: people whose voices and faces share some factors, and what is known about them exactly.

``people`` holds the factors, ``portraits`` and ``voices`` render them, ``bounds`` says what retrieval can reach.
Nothing is tuned to a score: a version of the world is frozen by its hash.
"""

import ast
import functools
import hashlib
from pathlib import Path

from v2f.world.people import VERSION

WORLD_HASHES: dict[str, str] = {
    "1": "92e2ce40d7e98f212c0c68e5768734c2a69dd19b7ce6de9db6f1f6f08482a315",
}
"""The hash of each version's sources. A change to the world needs a new ``people.VERSION`` and a new line here."""

_SOURCES = ("people.py", "portraits.py", "voices.py")


@functools.cache
def world_hash() -> str:
    """SHA-256 (hex) of the version and of the syntax trees of the world's sources, made once: it takes a while.

    Comments, docstrings and layout do not count; every number and name does.
    """
    digest = hashlib.sha256(VERSION.encode())
    for name in _SOURCES:
        source = Path(__file__).with_name(name).read_text(encoding="utf-8")
        digest.update(f"\0{name}\0{normalised(source)}".encode())
    return digest.hexdigest()


def normalised(source: str) -> str:
    """A canonical text of what a Python source does, the same under every Python from 3.10 on."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_docstring(part)]
    return _dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dump(node: object) -> str:
    """``ast.dump`` without empty fields, which newer Pythons add (``type_params``) or leave out."""
    if isinstance(node, ast.AST):
        fields = ((name, _dump(value)) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={text}' for name, text in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    return repr(node)
