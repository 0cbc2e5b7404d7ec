"""What standing in the way costs: the sidecar beside nginx, a plain proxy and the MCP proxies that users would pick.

Run it with ``make bench`` or ``python -m bench --help``. It is a user of the sidecar: it starts one and never reaches
into it.
"""
