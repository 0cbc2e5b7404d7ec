"""Watching it: logs, metrics and the admin listener; nobody waits for it."""
