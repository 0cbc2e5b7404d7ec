"""Run the command line: `mcp-sidecar`, and ``python -m mcp_sidecar``. While it loads, too, Ctrl-C is no traceback."""

import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line and return the exit status; 130 where Ctrl-C came before there was anything to end."""
    try:
        from mcp_sidecar import cli

        return cli.main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
