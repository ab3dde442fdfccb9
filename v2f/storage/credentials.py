"""Detecting credentials in texts and addresses, and removing them before anything is shown or stored."""

import os
import re

_DATABASE = r"(?:postgres|postgresql|mysql|mssql|oracle)(?:\+\w+)?"
_HOST = r"(?:[^/\s:@\[]*|\[[^/\s@\]]*\])(?::\d+)?"
# The scheme, and everything before the last @, because a password may contain any character. An @ in the path after a
# host does not end a user; except that SQLAlchemy reads a database's host:5432/x@y as the password 5432/x of a user.
_USER = re.compile(rf"((?i:{_DATABASE})(?=://[^/\s:]*:)|\w[\w+.-]*(?!://{_HOST}(?:[/\s]|$)))://(\S*)@")
_SECRET_KEY = re.compile(
    r"[?&]([\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)[\w.-]*)=", re.I
)
_SECRET_VARIABLE = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY")


def without_credentials(text: str) -> str:
    """A text of unknown origin, made safe to show: without users and queries in addresses, authorization headers, and
    the values of environment variables that hold a password, key or token."""
    text = re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", _USER.sub(r"\1://***@", text))
    text = re.sub(r"\b(Basic|Bearer) [\w.~+/=-]+", r"\1 ***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "***")
    return text


def user_in(address: str) -> re.Match[str] | None:
    """The match of an address's scheme and of the user before its host; None if it has no user."""
    return _USER.match(re.sub(r"\s", "_", address))


def has_credentials(text: str) -> bool:
    """Whether a text is an address that contains a user or a secret. A database's address may contain a user without a
    password."""
    user = _USER.search(text)
    named = user is not None and not (re.fullmatch(_DATABASE, user[1], re.I) and ":" not in user[2])
    return named or ("://" in text and _SECRET_KEY.search(text) is not None)


def redacted(path: str) -> str:
    """A path, made safe to show: without a user before its bucket and without a query."""
    user = user_in(path)
    text = f"{user[1]}://***@{path[user.end() :]}" if user else path
    return text.split("?", 1)[0] if "://" in path else path
