"""Tables of groups: which patient, lesion or the like each case belongs to."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from datasets.case_names import nfc, without_extension
from datasets.split_tables import case_at
from datasets.splits import Split, quoted
from utils.errors import UserError, listed

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
TAB_SUFFIXES = (".tab", ".tsv")
"""Of tables that may be separated by tabs in place of commas."""
_SWAPPED = "Are the columns swapped? The first names the case, the second its group"


def read_group_table(
    path: Path | None,
    columns: tuple[str, str] | None,
    or_first_two: bool = False,
    case_of_path: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Group (patient, lesion, ...) of each case name from a CSV with a header line; {} for None.

    `columns` are the headers of name and group. Without them, and `or_first_two` where the table begins with
    that of the name or has others, the first two columns are meant. A `.tab` or `.tsv` may be separated by
    tabs. Names may carry an image extension, with and without which they are returned, as a case may be
    called `scan.dcm`, and folders, which are left out, but for paths in `case_of_path`, joined by `_`. Names
    and groups are returned in Unicode NFC; rows without a group are left out. Raises UserError where the file
    cannot be read, has no such columns, or names one case in two groups.
    """
    if path is None:
        return {}
    expected = " and ".join(columns) if columns else "name and group first"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = file.readlines()
        by_tabs = path.suffix.lower() in TAB_SUFFIXES and "\t" in lines[0]
        header, *rows = csv.reader(lines, delimiter="\t" if by_tabs else ",")
        if len(header) == 1 or (rows and max(map(len, rows)) == 1):
            raise UserError(
                f"{path}: expected a CSV with the columns {expected}, but {_one_column(header[0])}"
            )
        if columns and not (
            or_first_two and (header[0] == columns[0] or set(columns) - set(header))
        ):
            name_at, group_at = (header.index(column) for column in columns)
        else:
            name_at, group_at = 0, 1
        pairs = [(nfc(row[name_at].strip()), nfc(row[group_at].strip())) for row in rows if row]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: save it as 'CSV UTF-8'") from None
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV with the columns {expected} ({error})") from None
    of_path = case_of_path or {}
    group_of: dict[str, str] = {}
    as_written: dict[str, str] = {}
    conflicts: list[str] = []
    for path_of_case, group in pairs:
        file_name = re.split(r"[/\\]", path_of_case)[-1]
        case = without_extension(file_name)
        if known := case_at(path_of_case, of_path):
            file_name = case = known
        if group and case != file_name:
            as_written[file_name] = group
        if group and group_of.setdefault(case, group) != group:
            conflicts.append(f"{case!r} in {group_of[case]!r} and in {group!r}")
    if conflicts:
        groups = [group for _, group in pairs if group]
        swapped = len(set(groups)) == len(groups)  # as the names of cases are
        raise UserError(
            f"{path} names a case in two groups: {listed(conflicts, 5)}. Give each case one group"
            + (
                f"; they are called {quoted(sorted(set(of_path.values())), 3)}, by their folders"
                if of_path
                else ""
            )
            + (f". {_SWAPPED}" if swapped else "")
        )
    return group_of | {name: group for name, group in as_written.items() if name not in group_of}


def _one_column(header: str) -> str:
    """What is wrong with a table whose lines, by commas, have one column; `header`: the first one's."""
    used = next((name for mark, name in _OTHER_SEPARATORS.items() if mark in header), None)
    this_one = f" (this one uses {used})" if used else ""
    return f"its lines have one column: separate them by commas{this_one}"


def cut_groups_note(data_set: str, group_of: Mapping[str, str], split: Split) -> str | None:
    """What to say of groups in two parts of the split; None where there are none."""
    cuts = []
    for part, names, train in (
        ("test", split.test, split.train),
        ("val", split.val, split.beside_val),
    ):
        in_train = {group_of[name] for name in train if name in group_of}
        if cut := [group_of[name] for name in names if group_of.get(name) in in_train]:
            cuts.append(
                f"{len(set(cut))} groups (patients, lesions) lie in both train and {part}, with {len(cut)} of "
                f"{len(names)} {part} cases, whose scores are optimistic"
            )
    if not cuts:
        return None
    how = f"python -m datasets.prepare {data_set} --group-split writes a split that cuts none"
    return "; ".join([*cuts, how])


def check_groups(table: Path | None, group_of: Mapping[str, str], split: Split) -> None:
    """UserError where the table of groups names no case of the split, a warning where not all."""
    names = sorted((*split.train, *split.test))
    missing = [name for name in names if name not in group_of]
    if table is None or not missing:
        return
    if len(missing) == len(names):
        named = dict.fromkeys(map(without_extension, group_of))
        cases = {without_extension(group) for group in group_of.values()}
        advice = "Write the case names into its column of names"
        raise UserError(
            f"{table} names none of the cases: it holds {quoted(named, 3) or 'no groups'}, "
            f"the cases are {quoted(names, 3)}. {advice if cases.isdisjoint(names) else _SWAPPED}"
        )
    print(
        f"warning: {table} has no group for {len(missing)} of {len(names)} cases, each of which is "
        f"taken as a group of its own: {quoted(missing, 5)}",
        file=sys.stderr,
    )
