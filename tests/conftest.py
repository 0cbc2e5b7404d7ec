"""What holds for all tests; and that the pure packages are tested without a socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, NoReturn

import pytest
from hypothesis import settings

PURE: Final = tuple(Path(__file__).parent / name for name in ("wire", "healing"))

# How long one example takes says something about the machine only.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
settings.register_profile("quick", deadline=None, max_examples=15)  # `make check`


class _NoSocket:
    def __init__(self, *_: object, **__: object) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("this package is pure: no test of it may open a socket")


@pytest.fixture(autouse=True)
def _purity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(request.path.is_relative_to(package) for package in PURE):
        monkeypatch.setattr(socket, "socket", _NoSocket)
