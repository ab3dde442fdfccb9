"""Credentials in texts and addresses: found, refused and blotted out before anything is shown or stored."""

import os
import re

_DATABASE = r"(?:postgres|postgresql|mysql|mssql|oracle)(?:\+\w+)?"
_HOST = r"(?:[^/\s:@\[]*|\[[^/\s@\]]*\])(?::\d+)?"
# Scheme, and what stands before the last @, whatever a password holds; but an @ in the path behind a host is of nobody.
# To SQLAlchemy a database's host:5432/x@y is the password 5432/x of a user.
_USER = re.compile(rf"((?i:{_DATABASE})(?=://[^/\s:]*:)|\w[\w+.-]*(?!://{_HOST}(?:[/\s]|$)))://(\S*)@")
_SECRET_KEY = re.compile(
    r"[?&]([\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)[\w.-]*)=", re.I
)
_SECRET_VARIABLE = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY")


def without_credentials(text: str) -> str:
    """A text of unknown origin as it may be shown: without users and queries of addresses, what a request is authorized
    by, and what the environment keeps as a password, key or token."""
    text = re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", _USER.sub(r"\1://***@", text))
    text = re.sub(r"\b(Basic|Bearer) [\w.~+/=-]+", r"\1 ***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "***")
    return text


def user_in(address: str) -> re.Match[str] | None:
    """The beginning of one address: its scheme and who it names before the host; None where it names nobody."""
    return _USER.match(re.sub(r"\s", "_", address))


def has_credentials(text: str) -> bool:
    """Whether a text is an address with a user or a secret in it. The user of a database may stand in its address, a
    password may not."""
    user = _USER.search(text)
    named = user is not None and not (re.fullmatch(_DATABASE, user[1], re.I) and ":" not in user[2])
    return named or ("://" in text and _SECRET_KEY.search(text) is not None)


def shown(path: str) -> str:
    """A path as it may be shown: without who may be named before its bucket, and without a query."""
    user = user_in(path)
    text = f"{user[1]}://***@{path[user.end() :]}" if user else path
    return text.split("?", 1)[0] if "://" in path else path
