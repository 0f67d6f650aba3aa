"""Matplotlib figures as PNG and PDF files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, without the yellow: distinguishable with every kind of colour vision.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000")
BLUE, VERMILION = COLOURS[0], COLOURS[3]


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    with _boxes_for_missing_letters():
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as the content of a PDF file, in vectors and with text that can be searched and edited."""
    from matplotlib import rc_context

    content = io.BytesIO()
    # TrueType, which publishers ask for
    with _boxes_for_missing_letters(), rc_context({"pdf.fonttype": 42}):
        figure.savefig(content, format="pdf", metadata={"CreationDate": None})
    return content.getvalue()


@contextmanager
def _boxes_for_missing_letters() -> Iterator[None]:
    """Without a warning for each letter of a name that the font lacks, such as a Chinese one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield
