"""Plain requests as bytes, ahead of everything else; the proxy works without it."""
