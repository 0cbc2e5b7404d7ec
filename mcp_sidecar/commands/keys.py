"""``mcp-sidecar new-key``: one line for ``sessions.key_file`` on standard output, and nothing else."""

from __future__ import annotations

import sys

from mcp_sidecar.sessions.stores.keys import new_key


def print_new_key() -> bool:
    """Print it; false where that failed, for half a key is none."""
    try:
        sys.stdout.write(f"{new_key()}\n")
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"new-key: stdout cannot be written: {error.strerror}\n")
        return False
    return True
