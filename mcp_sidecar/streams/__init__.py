"""One client's listening stream, both ends."""
