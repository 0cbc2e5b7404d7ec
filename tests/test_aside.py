"""What is made in a process of its own, and what becomes of that process. Forks belong into programs without threads."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _said(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys; from mcp_sidecar.aside import made_aside\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_value_comes_back_and_what_was_loaded_for_it_does_not() -> None:
    """However large it is; and nobody is left to be waited for."""
    program = """
def make():
    import wave
    return b"." * 1_000_000, wave.__name__, os.getpid()

made, name, process = made_aside(make)
print(len(made), name, process == os.getpid(), "wave" in sys.modules)
try:
    os.wait()
except ChildProcessError:
    print("nobody")
"""
    assert _said(program) == "1000000 wave False False\nnobody\n"


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param("raise LookupError", id="an-exception"),
        pytest.param("os.kill(os.getpid(), 9)", id="killed"),
        pytest.param("raise SystemExit(0)", id="leaves"),
        pytest.param("return lambda: None", id="nothing-to-hand-over"),
    ],
)
def test_what_comes_to_nothing_is_made_here(fails: str) -> None:
    """Without a word of the one that failed."""
    program = f"""
here = os.getpid()

def make():
    if os.getpid() != here:
        {fails}
    return "made here"

print(made_aside(make))
"""
    assert _said(program) == "made here\n"


def test_a_mistake_is_raised_here() -> None:
    """As if there were no other process."""
    program = """
try:
    made_aside(lambda: {}["key"])
except KeyError as error:
    print("raised", error)
"""
    assert _said(program) == "raised 'key'\n"


@pytest.mark.parametrize(
    "lacks",
    [
        pytest.param("del os.fork", id="a-platform-without-forks"),
        pytest.param(
            "import resource; os.open('/', os.O_RDONLY); resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
            id="no-descriptor-left",
        ),
    ],
)
def test_it_needs_no_other_process(lacks: str) -> None:
    """Where there can be none, it is made here."""
    assert _said(f"{lacks}\nprint(made_aside(os.getpid) == os.getpid())") == "True\n"
