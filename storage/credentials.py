"""Passwords and tokens in texts: found, so that they can be refused, and left out of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

_WORDS = r"passw(?:or)?d|passphrase|secret|token(?!s|iz)|(?:api|access|private)[_-]?key|credential|signature"
_WORD = re.compile(_WORDS, re.IGNORECASE)
# Every part has a largest length, so that no text takes long.
_URL = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}:/{1,9}"
# A user with a password. A password may hold slashes, so the part up to the last @ belongs to it.
_USER_AND_PASSWORD = re.compile(rf"({_URL})[^/\s@:]{{0,200}}:[^\s\"']{{0,500}}@")
# A password with blanks in it. In a message it could be the words between an address and an @, so that it is
# only refused, and not replaced.
_WITH_BLANKS = re.compile(rf"{_URL}[^/\s@:]{{0,200}}:[^/@\"'\n]{{0,200}}@")
_USER = re.compile(r"((?<![A-Za-z0-9+.-])(?:https?|s3|tcp|tls|ftp):/{1,9})[^/\s@]{1,500}@", re.IGNORECASE)
_NAMED = rf"(?:{_WORDS}|sig)"
_IN_QUERY = re.compile(
    rf"([?&;](?=[\w.-]{{1,60}}=)[\w.-]{{0,30}}?{_NAMED}[\w.-]{{0,30}}=)[^\s&;\"']+", re.IGNORECASE
)
# NAME=value or --name value, as in a line of a shell; a value that begins with $ is a variable's name.
_ASSIGNED = re.compile(
    rf"(?<![\w-])(?:[\w-]{{0,30}}?(?:{_WORDS})[\w-]{{0,30}}[\"']?\s{{0,9}}=|"
    rf"--[\w-]{{0,30}}?(?:{_WORDS})[\w-]{{0,30}}\s)\s{{0,9}}[\"']?[^\s\"'$]",
    re.IGNORECASE,
)


def has_credential(address: str) -> bool:
    """Whether a text holds a URL with a user's name and password, or with a token."""
    return any(pattern.search(address) for pattern in (_USER_AND_PASSWORD, _WITH_BLANKS, _USER, _IN_QUERY))


def without_credentials(text: str) -> str:
    """Return a text in which the passwords and tokens of URLs are replaced by ``***``, to be shown."""
    for pattern in (_USER_AND_PASSWORD, _USER):
        text = pattern.sub(r"\1***@", text)
    return _IN_QUERY.sub(r"\1***", text)


def credential_key(values: Mapping[str, Any]) -> str | None:
    """Return the first key of nested tables and lists that names a password or a token, or holds one.

    Truth values and empty texts are no credentials, whatever their keys are.

    Returns
    -------
    str or None
        The key with the keys of the tables around it, such as ``env.MY_TOKEN``; None if there is none.
    """
    for key, value in values.items():
        named = bool(_WORD.search(key))
        for each in _items(value):
            if named and each and not isinstance(each, bool):
                return key
            if isinstance(each, Mapping) and (inner := credential_key(each)) is not None:
                return f"{key}.{inner}"
            if isinstance(each, str) and (has_credential(each) or _ASSIGNED.search(each)):
                return key
    return None


def _items(value: Any) -> Iterator[Any]:
    """Yield the items of a list, and of lists in it; any other value is its own only item."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _items(each)
    else:
        yield value


def is_plain_address(uri: str) -> bool:
    """Whether an address of MLflow has neither a password nor a token.

    An address of a web server has no ``@``, ``?`` or ``#`` at all. That of a database may name its user.
    """
    if uri.lower().startswith(("http:", "https:")):
        return not re.search(r"[@?#]", uri)
    try:
        password = urlsplit(uri).password
    except ValueError:  # no address, which is reported when it is used
        password = None
    return password is None and not has_credential(uri)
