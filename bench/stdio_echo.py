"""An MCP server on stdin and stdout, for proxies that have one behind them. Standard library only."""

from __future__ import annotations

import json
import os
import sys

from bench import work


def answer(rpc: dict[str, object]) -> bytes | None:
    """Return the response to one message, or None for a notification."""
    if "id" not in rpc or "method" not in rpc:
        return None
    method = rpc["method"]
    if method == "tools/call":
        return work.answer(rpc["id"])
    result = {"initialize": work.SERVER, "tools/list": work.tools()}.get(str(method), {})
    return json.dumps({"jsonrpc": "2.0", "id": rpc["id"], "result": result}).encode()


def main() -> None:
    """Answer until stdin ends, on the core given as the only argument: it stands for the upstream."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    for line in sys.stdin.buffer:
        if (response := answer(json.loads(line))) is not None:
            sys.stdout.buffer.write(response + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
