"""Medians, percentiles and ratios. A figure that could not be measured is None and stays None."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which this share (0 to 1) of the values lies, interpolated; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what was measured."""
    return percentile([value for value in values if value is not None], 0.5)


def noise(values: Iterable[float | None]) -> float | None:
    """Return half the distance between the largest and the least, in percent of the median; None for less than two."""
    measured = [value for value in values if value is not None]
    middle = median(measured)
    if len(measured) < 2 or not middle:
        return None
    return (max(measured) - min(measured)) / 2 / middle * 100


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return how many times the reference this is; None where either is missing or the reference is nothing."""
    if value is None or not reference:
        return None
    return value / reference


def difference(value: float | None, reference: float | None) -> float | None:
    """Return how much more than the reference this is."""
    return None if value is None or reference is None else value - reference
