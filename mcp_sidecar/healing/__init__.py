"""Decides and does nothing: what becomes of a request, as typed steps. Pure; imports ``wire`` and ``verdicts`` only."""
