"""In what two mappings differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Both values of each of the `keys`, or of those in `now`, that has another value in `before`.

    A key that is missing counts as None.
    """
    both = {key: (before.get(key), now.get(key)) for key in (now if keys is None else keys)}
    return {key: (old, new) for key, (old, new) in both.items() if old != new}
