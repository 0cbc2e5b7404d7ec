"""Asking a server how it behaves."""
