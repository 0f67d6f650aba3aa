"""Tables of splits: a CSV with the name and the part of each case."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping

from datasets.case_names import joined_path, without_extension
from utils.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What tables and folders call the parts of a split, in lower case."""
_COLUMNS = ("name", "split")
_SEPARATORS = ",;\t"


def case_at(path: str, case_of_path: Mapping[str, str]) -> str | None:
    """The case that `case_of_path`, whose keys are `joined_path`s without extension, has for a path."""
    joined = joined_path(path)
    return case_of_path.get(joined) or case_of_path.get(without_extension(joined))


def read_split_table(
    content: bytes, case_of_path: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """The names of each part from a table with a header line, separated by commas, semicolons or tabs.

    The columns are those called name and split, or else the first two. Names may be paths: those of
    `case_of_path` become cases, of others the folders are left out, or joined to the names where these
    repeat. Rows without any entry are skipped. UserError, which names no path, where the table has no header,
    no such columns or another part.
    """
    expected = "expected a CSV with the columns name and split (train, val or test)"
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError("not UTF-8: save it as 'CSV UTF-8'") from None
    separator = max(_SEPARATORS, key=lines[0].count) if lines else ","
    try:
        rows = csv.reader(lines, delimiter=separator)
        header, *rest = (row for row in rows if any(map(str.strip, row)))
        called = [column.strip().casefold() for column in header]
        name_at, part_at = map(called.index, _COLUMNS) if {*_COLUMNS} <= {*called} else (0, 1)
        if called[part_at] in PART_NAMES:
            raise UserError(
                f"{expected}: the first line, {','.join(header)[:60]!r}, is a case; write name,split above it"
            )
        cases = [(row[name_at].strip(), row[part_at].strip()) for row in rest]
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{expected} ({error})") from None
    last = [re.split(r"[/\\]", name)[-1] for name, _ in cases]
    repeat = len(set(last)) < len(last)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for (name, called_part), without_folders in zip(cases, last, strict=True):
        part = PART_NAMES.get(called_part.casefold())
        if part is None:
            raise UserError(f"{expected}, got {called_part[:40]!r} for {name[:60]!r}")
        names.setdefault(part, []).append(
            case_at(name, case_of_path or {}) or (joined_path(name) if repeat else without_folders)
        )
    return names
