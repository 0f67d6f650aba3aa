from __future__ import annotations

from utils.errors import listed


def test_a_long_list_ends_in_how_many_more() -> None:
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed("abcd", 2, separator="; ") == "a; b and 2 more"
    assert listed("abcd", 2, separator="\n  ") == "a\n  b\n  and 2 more"
