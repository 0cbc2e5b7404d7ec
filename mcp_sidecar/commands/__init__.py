"""What the command line runs beside the proxy itself; users of the sidecar, never a part of it."""
