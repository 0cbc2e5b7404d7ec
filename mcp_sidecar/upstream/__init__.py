"""One request out, one answer in: HTTP towards the server; never sends twice, types its faults."""
