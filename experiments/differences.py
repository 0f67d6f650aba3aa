"""Differences of Dice between runs that are paired, as cells of the reports' tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scoring.statistics import t_interval


def mean_with_interval(differences: Sequence[float]) -> str:
    """`+8.7 (5.8 to 11.6)`: points, with the 95 % interval by Student's t; `-` for none."""
    if not differences:
        return "-"
    low, high = (round(bound, 1) + 0.0 for bound in t_interval(differences))
    return f"{signed(statistics.fmean(differences))} ({low:.1f} to {high:.1f})"


def signed(points: float) -> str:
    """`+8.7`, and `0.0` for what rounds to 0."""
    rounded = round(points, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"
