"""Which cases are for training and which for testing: split files, and drawing a split.

A split file holds `{"train": {"name_list": [...]}, "test": {"name_list": [...]}}`, as a pickle (the
form of the published splits) or as JSON; beside them may stand `"val": {"name_list": [...]}`. What
is drawn here, a split or cases to hold out of train, depends only on the set of names, their groups
and a seed.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from datasets.case_names import name_problem, nfc, without_extension
from datasets.safe_pickle import read_plain_pickle
from datasets.split_tables import TABLE_SUFFIXES, read_split_table
from utils.errors import UserError, listed
from utils.files import atomic_write

MAX_PICKLE_BYTES = 2 << 20  # about 120,000 names; the largest published split has 150 kB
MAX_TEXT_BYTES = 64 << 20
TEST_FRACTION = 0.2
"""Part of the cases that a split which is drawn here tests on."""
SEED = 2333
_ONE_FOLD = (
    "python -c \"import json; fold = json.load(open('splits_final.json'))[0]; "
    "json.dump({'train': fold['train'], 'test': fold['val']}, open('split.json', 'w'))\""
)
"""Command that makes a split of the first fold of nnU-Net."""


class SplitError(UserError):
    """A split file that cannot be used, and why."""


@dataclass(frozen=True)
class Split:
    """Case names for training and testing, in the order of the file."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] = ()
    """Those of train that are held out to choose the checkpoint, where the file names them."""

    @property
    def beside_val(self) -> tuple[str, ...]:
        """Those of train that are not held out."""
        held = set(self.val)
        return tuple(name for name in self.train if name not in held)


def quoted(names: Iterable[str], limit: int = 20) -> str:
    """Names for an error message, each in quotes: the first `limit`, then how many more."""
    return listed(map(repr, names), limit)


def read_split(
    path: Path, plain_lists: bool = False, case_of_path: Mapping[str, str] | None = None
) -> Split:
    """Read a `.pkl`, `.pickle` or `.json` split file.

    With `plain_lists` also `{"train": [...], ...}`, and a table as `datasets.split_tables` reads it, with
    `case_of_path`.

    Nothing in the file is ever executed. Raises SplitError where the file is missing, larger than
    2 MiB (pickle) or 64 MiB (JSON), hostile, damaged or malformed, where no case is for testing (none for
    training is allowed, but not beside val), where a name is repeated, is in two lists, or is
    not a plain file stem.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    is_table = plain_lists and suffix in TABLE_SUFFIXES
    if not is_table and suffix not in (".json", ".pkl", ".pickle"):
        endings = ".json, .pkl or .csv" if plain_lists else ".json or .pkl"
        raise SplitError(f"{path}: a split file ends in {endings}, got {path.suffix!r}")
    max_bytes = MAX_PICKLE_BYTES if suffix in (".pkl", ".pickle") else MAX_TEXT_BYTES
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise SplitError(f"{path}: cannot read the split file ({error.strerror})") from error
    if len(content) > max_bytes:
        raise SplitError(f"{path}: larger than {max_bytes:,} bytes, too large for a list of names")
    try:
        if is_table:
            data: object = read_split_table(content, case_of_path)
        else:
            data = _read_json(content) if suffix == ".json" else read_plain_pickle(content)
        return checked_split(data, plain_lists)
    except UserError as error:
        raise SplitError(f"{path}: {error}") from None


def read_split_for(
    path: Path, cases: Container[str], case_of_path: Mapping[str, str] | None = None
) -> Split:
    """`read_split` of a file that may hold plain lists, its names as those of `cases`.

    They are in NFC, and without an image extension where no case is called so. SplitError also where two of
    them are then one.
    """

    def name_of(name: str) -> str:
        return name if (name := nfc(name)) in cases else without_extension(name)

    split = read_split(path, plain_lists=True, case_of_path=case_of_path)
    try:
        return checked_split(_split_data(split, name_of))
    except SplitError as error:
        raise SplitError(
            f"{path}: with all names in Unicode NFC, {error} (image extensions are left out)"
        ) from None


def _split_data(
    split: Split, rename: Callable[[str], str] = str
) -> dict[str, dict[str, list[str]]]:
    """The split in the form of its files."""
    parts = {"train": split.beside_val, "test": split.test}
    if split.val:
        parts["val"] = split.val
    return {part: {"name_list": list(map(rename, names))} for part, names in parts.items()}


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON, whole or not at all. Raises SplitError as `read_split` does."""
    data = _split_data(split)
    checked_split(data)
    atomic_write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def random_split(names: Sequence[str], seed: int = SEED) -> Split:
    """Seeded split, the same whatever the order of `names`; both lists sorted and not empty."""
    if len(names) < 2:
        raise SplitError(f"a split needs at least 2 cases, got {len(names)}")
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    test = max(round(len(shuffled) * TEST_FRACTION), 1)
    return Split(train=tuple(sorted(shuffled[test:])), test=tuple(sorted(shuffled[:test])))


def grouped_split(group_of: Mapping[str, str], seed: int = SEED) -> Split:
    """Seeded split of the names in `group_of` in which no group is in both parts.

    Groups are drawn in random order, large ones as likely as small ones, until the test part has about
    TEST_FRACTION of the cases. Raises SplitError for a single group.
    """
    groups = cases_by_group(group_of, group_of)
    if len(groups) < 2:
        raise SplitError(f"a split by group needs at least 2 groups, got {len(groups)}")
    room = max(round(len(group_of) * TEST_FRACTION), 1)
    smallest = min(sorted(groups), key=len)
    test = _about(room, _shuffled(groups, seed)) or set(smallest)
    return Split(train=tuple(sorted(set(group_of) - test)), test=tuple(sorted(test)))


def hold_out(
    names: Sequence[str], fraction: float, seed: int, group_of: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Split `names` into what is trained on and a held-out part, at least one case if fraction > 0.

    Cases of one group (patient, lesion) in `group_of` stay together: whole groups are drawn, large ones as
    likely as small ones, until the part has about the fraction. The order of `names` changes nothing.
    """
    room = max(1, round(fraction * len(names))) if fraction > 0 else 0
    groups = _shuffled(sorted(cases_by_group(names, group_of or {})), f"validation {seed}")
    held = _about(room, groups)
    if room and not held:
        smallest = min(groups, key=len)
        held.update(smallest)
    return [n for n in names if n not in held], [n for n in names if n in held]


def hold_out_fold(
    names: Sequence[str],
    folds: int,
    fold: int,
    seed: int,
    group_of: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Split `names` into what is trained on and the held-out `fold` of `folds`, counted from 0.

    The folds of a seed are disjoint and cover `names`. Cases of one group in `group_of` stay together;
    without groups the folds differ by at most one case in size. The order of `names` changes nothing.
    UserError if a fold would be empty.
    """
    groups = sorted(cases_by_group(names, group_of or {}))
    if folds > len(groups):
        what = "groups of cases" if group_of else "cases"
        raise UserError(f"{len(groups)} {what} cannot be cut into {folds} folds: lower folds")
    held: list[set[str]] = [set() for _ in range(folds)]
    for group in _shuffled(groups, f"folds {seed}"):
        min(held, key=len).update(group)
    return [n for n in names if n not in held[fold]], [n for n in names if n in held[fold]]


def cases_by_group(names: Iterable[str], group_of: Mapping[str, str]) -> list[list[str]]:
    """The cases of each group, sorted, in the order of the groups' names.

    A case without a group is one of its own; these come first.
    """
    members: dict[tuple[bool, str], list[str]] = {}
    for name in sorted(names):
        key = (True, group_of[name]) if name in group_of else (False, name)
        members.setdefault(key, []).append(name)
    return [members[key] for key in sorted(members)]


def _shuffled(groups: Sequence[list[str]], seed: int | str) -> list[list[str]]:
    shuffled = list(groups)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _about(room: int, groups: Sequence[list[str]]) -> set[str]:
    """About `room` cases, of groups taken one after the other; groups of twice that size or more stay out.

    The first one that does not fit is taken where that comes nearer to `room`, and is the last once half of
    the room is taken. To go on to smaller groups would draw large ones less often, and is done for the last
    20th of the room alone.
    """
    taken: set[str] = set()
    everything = sum(map(len, groups))
    for group in groups:
        left = room - len(taken)
        if len(group) <= left:
            taken.update(group)
        elif left > room // 20 and len(group) < 2 * room:
            if len(group) < 2 * left and len(taken) + len(group) < everything:
                taken.update(group)
            if 2 * len(taken) >= room:
                break
    return taken


def checked_split(data: object, plain_lists: bool = False) -> Split:
    """The split in plain data of the published form; SplitError says what is wrong with it.

    With `plain_lists`, a list of names will do for a dict with `name_list`.
    """
    if isinstance(data, list) and data and all(_is_fold(each) for each in data):
        raise SplitError(
            f"a list of {len(data)} folds with 'train' and 'val', as nnU-Net's splits_final.json, expected one "
            f"split: a dict with 'train' and 'test'. Write that of a fold, with its 'val' for testing, by {_ONE_FOLD}"
        )
    if not isinstance(data, dict):
        raise SplitError(f"expected a dict with 'train' and 'test', got {type(data).__name__}")
    if set(data) - {"val"} != {"train", "test"}:
        got = quoted((str(key)[:40] for key in data), 5) or "none"
        raise SplitError(f"expected the keys 'train' and 'test', and perhaps 'val', got {got}")
    if plain_lists:
        data = {k: {"name_list": v} if isinstance(v, list | tuple) else v for k, v in data.items()}
    parts = {part: _names(data[part], part) for part in ("train", "val", "test") if part in data}
    for one, other in combinations(parts, 2):
        in_both = sorted(set(parts[one]) & set(parts[other]))
        if in_both:
            raise SplitError(
                f"{len(in_both)} names are in both {one} and {other}: {quoted(in_both)}"
            )
    val = parts.get("val", ())
    if val and not parts["train"]:
        raise SplitError(
            f"no case is left for training beside the {len(val)} of 'val': move some of these into 'train', "
            "or all into 'test'"
        )
    return Split(train=parts["train"] + val, test=parts["test"], val=val)


def _is_fold(data: object) -> bool:
    return isinstance(data, dict) and data.keys() == {"train", "val"}


def _names(part: object, which: str) -> tuple[str, ...]:
    if not isinstance(part, dict) or "name_list" not in part:
        raise SplitError(f"{which!r}: expected a dict with 'name_list', got {_shape(part)}")
    names = part["name_list"]
    if not isinstance(names, list | tuple | set):
        raise SplitError(f"{which!r}: 'name_list' is {type(names).__name__}, expected a list")
    if not names and which == "test":
        raise SplitError(
            f"{which!r}: the list of names is empty, and nothing could be scored: name some cases of 'train' there"
        )
    for name in names:
        problem = name_problem(name)
        if problem:
            got = f"{name[:60]!r} " if isinstance(name, str) else ""
            raise SplitError(
                f"{which!r}: a name {got}{problem}; expected a file name without extension"
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SplitError(f"{which!r}: {len(repeated)} names are repeated: {quoted(repeated)}")
    return tuple(sorted(names) if isinstance(names, set) else names)


def _shape(value: object) -> str:
    if isinstance(value, dict):
        return "a dict with " + (quoted((str(key)[:40] for key in value), 5) or "no keys")
    return type(value).__name__


def _read_json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SplitError(f"not valid JSON ({error})") from None
