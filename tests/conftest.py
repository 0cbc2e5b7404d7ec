"""What holds for all tests; and that the pure packages are tested without a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NoReturn

import pytest
from hypothesis import settings

from tests.support.unhurried import PACKAGES, UnhurriedLoop

PURE: Final = tuple(Path(__file__).parent / name for name in ("wire", "healing"))
ALONE: Final = tuple(Path(__file__).parent / name for name in PACKAGES)

# How long one example takes says something about the machine only.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
settings.register_profile("quick", deadline=None, max_examples=15)  # `make check`


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """No timer runs out because the machine is slow, wherever that can be had."""
    is_alone = any(item.path.is_relative_to(package) for package in ALONE)
    return {"unhurried": UnhurriedLoop} if is_alone else {"real": asyncio.new_event_loop}


class _NoSocket:
    def __init__(self, *_: object, **__: object) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("this package is pure: no test of it may open a socket")


@pytest.fixture(autouse=True, scope="session")
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a sidecar that is a process of its own keeps, it keeps with the tests; those in this process have no such folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _purity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(request.path.is_relative_to(package) for package in PURE):
        monkeypatch.setattr(socket, "socket", _NoSocket)
