"""Tables as text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ESCAPED_BAR = "\\|"
IN_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)")


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


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `tabular` with the rules of booktabs; its first column is aligned to the left, the others right."""

    def line(cells: Iterable[str]) -> str:
        escaped = ("".join(IN_LATEX.get(sign, sign) for sign in cell) for cell in cells)
        return " & ".join(NEGATIVE.sub("$-$", cell) for cell in escaped) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
