"""Which cases are for training and which for testing: reading and writing split files.

A split is `{"train": {"name_list": [...]}, "test": {"name_list": [...]}}`, as a pickle (the form of
the published splits) or as JSON. Pickles come from anywhere and the pickle format is a program, so
they are not given to `pickle`: `read_plain_pickle` interprets the opcodes that build plain data
and has no others.
"""

from __future__ import annotations

import json
import pickletools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic_write

MAX_SPLIT_BYTES = 2 << 20  # about 120,000 names; the largest published split has 150 kB


class SplitError(UserError):
    """A split file that cannot be used, and why."""


@dataclass(frozen=True)
class Split:
    """Case names for training and testing, in the order of the file."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def some_of(names: Iterable[str], limit: int = 20) -> str:
    """Names for an error message: the first `limit`, then how many more."""
    listed = [repr(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def name_problem(name: object) -> str | None:
    """Why `name` is not a plain file stem, or None if it is one."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name:
        return "is empty"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "is a path, not a file name"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "holds a control character"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return "is longer than 200 bytes" if len(encoded) > 200 else None


def read_split(path: Path, max_bytes: int = MAX_SPLIT_BYTES) -> Split:
    """Read a `.pkl`, `.pickle` or `.json` split file.

    Nothing in the file is ever executed. Raises SplitError where the file is missing, larger than
    `max_bytes`, hostile, damaged or malformed, where a list is empty, where a name is repeated,
    stands in both lists, or is not a plain file stem.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".pkl", ".pickle"):
        raise SplitError(f"{path}: a split file ends in .json or .pkl, got {path.suffix!r}")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise SplitError(f"{path}: cannot read the split file ({error.strerror})") from error
    if len(content) > max_bytes:
        raise SplitError(f"{path}: larger than {max_bytes:,} bytes, too large for a list of names")
    try:
        data = _read_json(content) if suffix == ".json" else read_plain_pickle(content)
        return checked_split(data)
    except SplitError as error:
        raise SplitError(f"{path}: {error}") from None


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON, whole or not at all. Raises SplitError as `read_split` does."""
    data = {
        "train": {"name_list": list(split.train)},
        "test": {"name_list": list(split.test)},
    }
    checked_split(data)
    atomic_write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def random_split(names: Sequence[str], seed: int = 2333, test_fraction: float = 0.2) -> Split:
    """Seeded split, the same whatever the order of `names`; both lists sorted and not empty."""
    if len(names) < 2:
        raise SplitError(f"a split needs at least 2 cases, got {len(names)}")
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    test = min(max(round(len(shuffled) * test_fraction), 1), len(shuffled) - 1)
    return Split(train=tuple(sorted(shuffled[test:])), test=tuple(sorted(shuffled[:test])))


def grouped_split(
    group_of: Mapping[str, str], seed: int = 2333, test_fraction: float = 0.2
) -> Split:
    """Seeded split of the names in `group_of` in which no group is in both parts.

    Groups are drawn in random order and go to the test part while they fit into it, so that it
    comes as near to `test_fraction` as whole groups allow. Raises SplitError for a single group.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(group_of):
        members.setdefault(group_of[name], []).append(name)
    if len(members) < 2:
        raise SplitError(f"a split by group needs at least 2 groups, got {len(members)}")
    drawn = sorted(members)
    random.Random(seed).shuffle(drawn)
    room = max(round(len(group_of) * test_fraction), 1)
    test: list[str] = []
    for group in drawn:
        if len(members[group]) <= room - len(test):
            test += members[group]
    if not test:
        test = min(members.values(), key=len)
    train = set(group_of) - set(test)
    return Split(train=tuple(sorted(train)), test=tuple(sorted(test)))


def checked_split(data: object) -> Split:
    """The split in plain data of the published form; SplitError says what is wrong with it."""
    if not isinstance(data, dict):
        raise SplitError(f"expected a dict with 'train' and 'test', got {type(data).__name__}")
    if set(data) != {"train", "test"}:
        got = some_of((str(key)[:40] for key in data), 5) or "none"
        raise SplitError(f"expected the keys 'train' and 'test', got {got}")
    split = Split(train=_names(data["train"], "train"), test=_names(data["test"], "test"))
    in_both = sorted(set(split.train) & set(split.test))
    if in_both:
        raise SplitError(f"{len(in_both)} names stand in both train and test: {some_of(in_both)}")
    return split


def _names(part: object, which: str) -> tuple[str, ...]:
    if not isinstance(part, dict) or "name_list" not in part:
        raise SplitError(f"{which!r}: expected a dict with 'name_list', got {_shape(part)}")
    names = part["name_list"]
    if not isinstance(names, list | tuple | set):
        raise SplitError(f"{which!r}: 'name_list' is {type(names).__name__}, expected a list")
    if not names:
        raise SplitError(f"{which!r}: the list of names is empty")
    for name in names:
        problem = name_problem(name)
        if problem:
            got = f"{name[:60]!r} " if isinstance(name, str) else ""
            raise SplitError(f"{which!r}: a name {got}{problem}; expected a file name without end")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SplitError(f"{which!r}: {len(repeated)} names are repeated: {some_of(repeated)}")
    return tuple(sorted(names) if isinstance(names, set) else names)


def _shape(value: object) -> str:
    if isinstance(value, dict):
        return "a dict with " + (some_of((str(key)[:40] for key in value), 5) or "no keys")
    return type(value).__name__


def _read_json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SplitError(f"not valid JSON ({error})") from None


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
    Raises SplitError on anything else, naming the global or opcode it refused.
    """
    try:
        return _run(content)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise SplitError(f"not a whole pickle ({error})") from None


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
            raise SplitError(_refusal(name, argument, stack))
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
