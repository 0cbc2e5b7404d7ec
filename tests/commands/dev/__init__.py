"""The development proxy."""
