"""Run the command line as ``python -m mcp_sidecar``."""

import sys

from mcp_sidecar.cli import main

sys.exit(main())
