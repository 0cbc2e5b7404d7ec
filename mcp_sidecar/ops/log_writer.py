"""Log lines on their way to a file descriptor, written by a thread: nobody who logs waits for whoever reads.

The law of this file: ``write`` returns at once, whatever has become of the descriptor. A pipe that nobody reads fills a
queue with a bound; what does not fit is dropped and counted, and told as soon as lines can be written again. The thread
writes with ``os.write``: a lock of Python's own streams, held by a thread that waits for ever, would abort the process
at its end.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

MAX_QUEUED_BYTES = 4 * 1024 * 1024
MAX_BATCH_BYTES = 64 * 1024


class LogWriter:
    """A queue of at most ``max_queued_bytes`` before a descriptor, which may be a file, a terminal or a pipe.

    ``on_recovered`` is called in the writer's thread with the number of lines that were dropped before, once there is
    room again.
    """

    def __init__(
        self, descriptor: int, on_recovered: Callable[[int], None], *, max_queued_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        """Raises OSError where the descriptor is closed. What others do with theirs later has no effect on this one."""
        self._descriptor = os.dup(descriptor)
        self._on_recovered = on_recovered
        self._max_queued_bytes = max_queued_bytes
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._untold = 0
        self._is_cut = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def write(self, text: str) -> None:
        """Take one line, or drop it."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._is_closed or self._queued_bytes + len(line) > self._max_queued_bytes:
                self._count_dropped(1)
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: whoever logs does not wait. See ``close``."""

    def close(self, timeout_s: float) -> bool:
        """Let what is queued be written, for so many seconds at most; whether all of it was."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is None:
            os.close(self._descriptor)
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _count_dropped(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _run(self) -> None:
        while batch := self._batch():
            written = self._put(b"".join(batch))
            with self._changed:
                self._queued_bytes -= sum(map(len, batch))
                if not written:
                    self._count_dropped(len(batch))
                has_recovered = written and self._untold and self._queued_bytes * 2 <= self._max_queued_bytes
                untold, self._untold = (self._untold, 0) if has_recovered else (0, self._untold)
            if untold:
                self._on_recovered(untold)
        os.close(self._descriptor)

    def _batch(self) -> list[bytes]:
        """Wait for lines; none once this is closed and all were taken. They count as queued until they are written."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._is_closed)
            batch: list[bytes] = []
            size = 0
            while self._lines and (not batch or size + len(self._lines[0]) <= MAX_BATCH_BYTES):
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            return batch

    def _put(self, data: bytes) -> bool:
        """Write all of it, however long that takes; whether it could be written."""
        rest = memoryview(b"\n" + data if self._is_cut else data)
        whole = len(rest)
        try:
            while rest:
                rest = rest[self._write(rest) :]
        except OSError:  # a disk that is full, a reader that left
            self._is_cut = self._is_cut or len(rest) < whole
            return False
        self._is_cut = False
        return True

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody who shares the pipe has made it non-blocking
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            room.poll()
            return 0
