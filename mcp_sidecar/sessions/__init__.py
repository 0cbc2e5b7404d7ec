"""Everything that outlives a request, and the only one that speaks in a client's name."""
