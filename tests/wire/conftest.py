"""What is on the wire is judged without a wire: no test here may open a socket."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest
from hypothesis import settings

# How long one example takes says something about the machine only.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def _no_socket(*_: object, **__: object) -> NoReturn:
    raise AssertionError("the wire package is pure")


@pytest.fixture(autouse=True)
def _pure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_socket)
    monkeypatch.setattr(socket.socket, "bind", _no_socket)
