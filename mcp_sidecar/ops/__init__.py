"""Watching it: logs, metrics and the admin listener."""
