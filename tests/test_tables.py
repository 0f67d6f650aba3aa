"""Tables as text."""

from __future__ import annotations

from utils.tables import markdown_table


def test_a_markdown_table_aligns_its_numbers_and_keeps_its_columns() -> None:
    table = markdown_table(["name", "of", "n"], [["a|b", "c", "1"], ["d", "e", "22"]], left=2)
    assert table.splitlines() == [
        "| name | of | n |",
        "|---|---|---:|",
        "| a\\|b | c | 1 |",
        "| d | e | 22 |",
    ]
