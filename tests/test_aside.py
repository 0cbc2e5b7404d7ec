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


def test_whoever_ignores_the_ends_of_children_gets_the_value_all_the_same() -> None:
    """A process inherits that from the one that has started it; there is no exit status then, to anybody."""
    program = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(made_aside(os.getpid) == os.getpid(), made_aside(lambda: "made"))
"""
    assert _said(program) == "False made\n"


def test_half_an_answer_counts_for_nothing() -> None:
    """It may end in the middle of a large one, and nobody may be told how it ended."""
    program = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
here = os.getpid()

class Fatal:
    def __reduce__(self):
        os._exit(0)

print(made_aside(lambda: [b"." * 1_000_000, Fatal()] if os.getpid() != here else "made here"))
"""
    assert _said(program) == "made here\n"


def test_whoever_has_threads_makes_it_here() -> None:
    """One that some tool has begun may hold a lock at the fork, which nobody would ever give back there."""
    program = """
import threading
over = threading.Event()
thread = threading.Thread(target=over.wait)
thread.start()
print(made_aside(os.getpid) == os.getpid())
over.set()
thread.join()
"""
    assert _said(program) == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_nobody_is_left_where_the_process_is_ended_meanwhile() -> None:
    """Such as one that waits for a file which another program is to write, a pipe with a name."""
    program = """
from mcp_sidecar.aside import made_aside

def make():
    print("waits", flush=True)
    signal.pause()

made_aside(make)
"""
    with subprocess.Popen(
        [sys.executable, "-c", f"import signal\n{program}"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.terminate()
        assert process.stdout.read() == "", "it has ended where nobody holds its output any more"
