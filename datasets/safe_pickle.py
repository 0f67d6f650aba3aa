"""Reading pickles from anywhere: plain data, without running anything.

The pickle format is a program, so split files in it are not given to `pickle`: `read_plain_pickle`
interprets the opcodes that build plain data and has no others.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from utils.errors import UserError


class PlainPickleError(UserError):
    """A pickle that is damaged or holds more than plain data, and why it is not read."""


_MARK = object()
_SCALAR = (str, bytes, int, float, bool, type(None))
_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_PUSH_NEW: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_TUPLE_SIZE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(content: bytes) -> object:
    """The dict, list, tuple, set, str, bytes, int, float, bool or None that a pickle describes.

    Interprets the data opcodes of all pickle protocols on a stack of its own. There is no opcode
    here that imports or calls anything, dict keys and set members must be scalars (hashing a
    deeply nested tuple overflows the C stack), and the memo grows only with what was built, so
    time and memory stay in proportion to the size of `content`.
    Raises PlainPickleError on anything else, naming the global or opcode it refused.
    """
    try:
        return _run(content)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PlainPickleError(f"not a whole pickle ({error})") from None


def _run(content: bytes) -> object:
    stack: list[Any] = []
    memo: dict[int, object] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _PUSH_NEW:
            stack.append(_PUSH_NEW[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = _top(stack)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _pop_mark(stack)
            _top(stack, list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _pop_mark(stack)
            _top(stack, dict).update(_pairs(pairs))
        elif name == "ADDITEMS":
            members = _pop_mark(stack)
            _top(stack, set).update(_hashable(member) for member in members)
        elif name in _TUPLE_SIZE:
            size = _TUPLE_SIZE[name]
            if len(stack) < size:
                raise ValueError("stack underflow")
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(_pop_mark(stack)))
        elif name == "LIST":
            stack.append(_pop_mark(stack))
        elif name == "DICT":
            stack.append(_pairs(_pop_mark(stack)))
        elif name == "STOP":
            return _top(stack)
        elif name not in ("PROTO", "FRAME"):
            raise PlainPickleError(_refusal(name, argument, stack))
    raise ValueError("no STOP opcode")


def _top(stack: list[Any], expected: type = object) -> Any:
    if stack[-1] is _MARK or not isinstance(stack[-1], expected):
        raise TypeError(f"expected a {expected.__name__} on the stack")
    return stack[-1]


def _pop_mark(stack: list[Any]) -> list[Any]:
    """Pop and return what lies above the last mark, and the mark."""
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _hashable(key: Any) -> Any:
    if not isinstance(key, _SCALAR):
        raise TypeError(f"a {type(key).__name__} as a dict key or set member")
    return key


def _refusal(opcode: str, argument: Any, stack: list[Any]) -> str:
    """What the pickle asked for that a list of names never needs."""
    wanted = f"the pickle opcode {opcode}"
    if opcode in ("GLOBAL", "INST"):
        wanted = "the global " + str(argument).replace(" ", ".")
    elif opcode == "STACK_GLOBAL" and all(isinstance(part, str) for part in stack[-2:]):
        wanted = "the global " + ".".join(stack[-2:])
    return (
        f"refused {wanted[:200]!r}: a split file holds names only, and nothing of it was run. "
        "Save the names as plain lists of str, best as JSON"
    )
