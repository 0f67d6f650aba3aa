from __future__ import annotations

from utils.mappings import differing


def test_the_keys_that_differ_are_those_of_now_unless_others_are_given() -> None:
    before, now = {"lr": 0.1, "seed": 1, "gone": 2}, {"lr": 0.2, "seed": 1, "new": 3}
    assert differing(before, now) == {"lr": (0.1, 0.2), "new": (None, 3)}
    assert differing(before, now, ["gone", "seed"]) == {"gone": (2, None)}
    assert differing(now, now) == {}
