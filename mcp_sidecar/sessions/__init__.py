"""Everything that outlives a request; the one reader of answers, and the only one that speaks in a client's name."""
