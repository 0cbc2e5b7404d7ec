"""Bounded waits for what is away or busy."""
