"""Matplotlib figures as PNG and PDF files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as the content of a PDF file, in vectors and with text that can be searched and edited."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):  # TrueType, which publishers ask for
        figure.savefig(content, format="pdf", metadata={"CreationDate": None})
    return content.getvalue()
