"""Files of keys: what is taken, and what is refused without a word of it."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_sidecar.sessions.stores.keys import KEY_BYTES, MAX_KEYS, BadKeys, new_key, read_keys

ONE, TWO = new_key(), new_key()


def test_a_new_key() -> None:
    """Each is another, and one line of the file."""
    assert ONE != TWO
    assert "\n" not in ONE
    assert len(read_keys(ONE).first.secret) == KEY_BYTES


def test_the_first_seals_and_all_open() -> None:
    """In the order of the file; comments, empty lines and a Windows editor's line ends say nothing."""
    keys = read_keys(f"# rotated in May\r\n\r\n  {TWO}  \r\n{ONE}\n")
    assert [key.id for key in keys] == [read_keys(TWO).first.id, read_keys(ONE).first.id]


def test_nothing_of_a_key_is_shown() -> None:
    """Neither by its name nor where it is printed; purposes do not help with each other."""
    key = read_keys(ONE).first
    assert ONE not in repr(read_keys(ONE)) and key.secret.hex() not in repr(key)
    assert key.id not in key.secret
    assert len({key.subkey(b"one"), key.subkey(b"two"), key.secret}) == 3
    assert len(key.subkey(b"three", 32)) == 32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "no key", id="empty"),
        pytest.param("# nothing\n", "no key", id="a comment"),
        pytest.param("password", "line 1", id="a password"),
        pytest.param(f"{ONE}\nnot base64!", "line 2", id="not base64"),
        pytest.param(f"{ONE}é", "line 1", id="not ASCII"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 32).decode(), "32 bytes", id="too short"),
        pytest.param(base64.urlsafe_b64encode(bytes(64)).decode(), "not random", id="zeros"),
        pytest.param(f"{ONE}\n{ONE}", "twice", id="the same"),
        pytest.param("\n".join(new_key() for _ in range(MAX_KEYS + 1)), "more than", id="too many"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    """The line is named and nothing of it quoted."""
    with pytest.raises(BadKeys, match=reason) as caught:
        read_keys(text)
    assert not any(line and line in str(caught.value) for line in text.splitlines() if not line.startswith("#"))


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """There is no other exception."""
    with contextlib.suppress(BadKeys):
        assert read_keys(text).first
