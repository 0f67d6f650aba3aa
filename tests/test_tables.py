"""Tables as text."""

from __future__ import annotations

from utils.tables import latex_table, markdown_table


def test_a_markdown_table_aligns_its_numbers_and_keeps_its_columns() -> None:
    table = markdown_table(["name", "of", "n"], [["a|b", "c", "1"], ["d", "e", "22"]], left=2)
    assert table.splitlines() == [
        "| name | of | n |",
        "|---|---|---:|",
        "| a\\|b | c | 1 |",
        "| d | e | 22 |",
    ]


def test_a_latex_table_escapes_names_and_sets_negative_numbers() -> None:
    table = latex_table(["", "DSC (%)", "p"], [["a_b-1/x&y", "-0.12 [-1.00, 0.30]", "1e-3"]])
    assert table.splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & DSC (\%) & p \\",
        r"\midrule",
        r"a\_b-1/x\&y & $-$0.12 [$-$1.00, 0.30] & 1e-3 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"\textbackslash{}" in latex_table(["\\"], [])
