"""Print ``config.example.toml``: ``python -m mcp_sidecar.settings > config.example.toml``."""

import sys

from mcp_sidecar.settings.toml import example

sys.stdout.write(example())
