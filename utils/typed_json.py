"""What was read from JSON, against the type that it should have."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

MISSING = object()


def misfits(value: Any, kind: Any, where: str = "") -> list[str]:
    """The parts of `value` that are missing or not of the type `kind`, such as `metrics.DSC.mean`.

    `kind` is a type as JSON has, a `TypedDict`, or a list, a dict with keys of text, a `Literal` or a union.
    """
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return min((misfits(value, each, where) for each in arguments), key=len)
    within = f"{where}." if where else ""
    if isinstance(value, dict) and is_typeddict(kind):
        parts = [
            (value.get(key, MISSING), of, within + key)
            for key, of in get_type_hints(kind).items()
            if key in value or key in kind.__required_keys__
        ]
    elif isinstance(value, dict) and origin is dict:
        parts = [(each, arguments[1], within + key) for key, each in value.items()]
    elif isinstance(value, list) and origin is list:
        parts = [(each, arguments[0], f"{where}[{n}]") for n, each in enumerate(value)]
    else:
        return [] if _fits(value, kind, origin, arguments) else [where]
    return [misfit for part in parts for misfit in misfits(*part)]


def _fits(value: Any, kind: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value without parts is of the type."""
    if kind is Any:
        return value is not MISSING
    if origin is Literal:
        return value in arguments
    return not is_typeddict(kind) and isinstance(value, (int, float) if kind is float else origin)
