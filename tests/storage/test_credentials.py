"""Passwords and tokens in addresses and arguments are found, and left out of messages."""

import time
from typing import Any

import pytest

from storage.credentials import credential_key, has_credential, is_plain_address, without_credentials
from storage.errors import FloodlitError, one_line

HIDDEN = "hunter2"
WITH = {
    f"http://user:{HIDDEN}@host:5000/x": "http://***@host:5000/x",
    f"s3://KEY:{HIDDEN}/more@bucket/p": "s3://***@bucket/p",
    f"s3:/KEY:{HIDDEN}@bucket/p": "s3:/***@bucket/p",  # as pathlib writes it
    f"https://{HIDDEN}@host": "https://***@host",
    f"postgresql+psycopg2://me:{HIDDEN}@@host/db": "postgresql+psycopg2://***@host/db",
    f"https://host/x?a=1&token={HIDDEN}&b=2": "https://host/x?a=1&token=***&b=2",
    f"https://host/x?X-Amz-Signature={HIDDEN}": "https://host/x?X-Amz-Signature=***",
    f"cannot reach 'http://a:{HIDDEN}@b', nor http://c:{HIDDEN}@d": "cannot reach 'http://***@b', nor http://***@d",
}
WITHOUT = [
    "http://host:5000/a/b",
    "postgresql://user@host/db",
    "s3://bucket/run:1@noon",
    "/home/me@work:x/file",
    "https://host/?max_tokens=3",
    "me@host: no such user",
    "sqlite:////tmp/a.db",
]


@pytest.mark.parametrize(("text", "told"), WITH.items())
def test_credentials_are_found_and_hidden_and_the_rest_of_the_text_stays(text: str, told: str) -> None:
    assert has_credential(text)
    assert without_credentials(text) == told
    assert HIDDEN not in str(FloodlitError(text))
    assert HIDDEN not in one_line(OSError(text))


def test_a_password_with_blanks_is_found() -> None:
    assert has_credential(f"s3://KEY:{HIDDEN} {HIDDEN} @bucket/p")


@pytest.mark.parametrize("text", WITHOUT)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert not has_credential(text)
    assert without_credentials(text) == text
    assert is_plain_address(text) or "?" in text


@pytest.mark.parametrize(
    "uri", ["http://u:p@h", "http://u@h", "http://h/?a=b", "http://h/#x", "postgresql://u:p@h/d"]
)
def test_an_address_of_mlflow_with_more_than_a_place_is_not_plain(uri: str) -> None:
    assert not is_plain_address(uri)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"a": 1, "password": HIDDEN}, "password"),
        ({"env": {"X": 1, "AWS_SECRET_ACCESS_KEY": HIDDEN}}, "env.AWS_SECRET_ACCESS_KEY"),
        ({"tokens": [HIDDEN], "api-key": 12345}, "api-key"),
        ({"lines": [["a", f"export MY_TOKEN={HIDDEN}"]]}, "lines"),
        ({"lines": ["export MY_TOKEN=$MY_TOKEN"], "token": "", "secret": True}, None),
        ({"url": f"http://a:{HIDDEN}@b"}, "url"),
        ({"queue": "gpu", "tokenizer": "bert", "max_tokens": 5, "key_name": "mine"}, None),
    ],
)
def test_the_key_of_a_credential_in_nested_arguments_is_named(
    values: dict[str, Any], key: str | None
) -> None:
    assert credential_key(values) == key


def test_a_message_is_one_line_without_control_characters_and_not_endless() -> None:
    assert str(FloodlitError("a\nb\x1b[31m")) == "a\\nb\\x1b[31m"
    assert len(str(FloodlitError("x" * 10**6))) == 200  # one value, of which beginning and end are quoted
    assert len(str(FloodlitError("word " * 10**6))) == 4000
    assert one_line(ValueError("a\n  b\x1b")) == "a b\\x1b"


@pytest.mark.parametrize(
    "text", ["a:/" * 3300, "token" * 2000, "http://x?" + "token" * 2000, "-" * 10000, "http://a:bcccc" * 700]
)
def test_no_text_takes_long(text: str) -> None:
    start = time.process_time()
    has_credential(text)
    without_credentials(text)
    credential_key({"x": text})
    assert time.process_time() - start < 1
