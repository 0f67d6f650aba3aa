"""Tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ESCAPED_BAR = "\\|"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """CSV with one line per row; what a row lacks stays empty. ValueError for an unknown column."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table; a `|` in a cell does not end it."""
    return f"| {' | '.join(cell.replace('|', ESCAPED_BAR) for cell in cells)} |"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; its first `left` columns are aligned to the left, the others to the right."""
    rule = "|" + "".join("---|" if column < left else "---:|" for column in range(len(header)))
    return "\n".join([markdown_row(header), rule, *(markdown_row(row) for row in rows)])
