"""The figures behind pictures that the code writes."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from utils import figures


def keep_figures(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Figure]:
    """A list that every figure is added to which `module` turns into a PNG from here on."""
    drawn: list[Figure] = []
    png = figures.png

    def keep(figure: Figure, dpi: int = 110) -> bytes:
        drawn.append(figure)
        return png(figure, dpi)

    monkeypatch.setattr(f"{module}.png", keep)
    return drawn
