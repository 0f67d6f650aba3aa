"""The cases of a run, as its cases.json names them, and whether a name is that of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from datasets.cases import Case, DataSet
from utils.data_set_names import SPLIT_FILE_ENDING, canonical_name
from utils.files import json_object

CASES_FILE = "cases.json"


@dataclass(frozen=True)
class RunCases:
    """Names of a run's cases: trained on, held out of train, and for testing."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> RunCases | None:
        """The cases in a file of `to_json`; None where there is none that can be read."""
        content = json_object(path)
        parts = [content.get(field.name) for field in fields(cls)]
        if not all(isinstance(names, list) for names in parts):
            return None
        return cls(*(tuple(names) for names in parts if names is not None))

    @classmethod
    def of(cls, data_set: DataSet, trained_on: Iterable[Case]) -> RunCases:
        """Those of a run that trains on `trained_on`, a part of the data set's training cases."""
        train = tuple(case.name for case in trained_on)
        known = set(train)
        held_out = tuple(case.name for case in data_set.train if case.name not in known)
        return cls(train, held_out, tuple(case.name for case in data_set.test))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def names_sha256(names: Iterable[str]) -> str:
    """SHA-256 of the names, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def names_data_set(name: str, data_set: DataSet) -> bool:
    """Whether `name` is that of the data set, of its folder, or of another split file in it.

    The split by groups, `<name>_grouped`, is of the same data as `<name>`.
    """
    ungrouped = name.removesuffix("_grouped")
    if ungrouped in (data_set.name.removesuffix("_grouped"), canonical_name(data_set.folder.name)):
        return True
    others = data_set.folder.glob(f"*{SPLIT_FILE_ENDING}.*")
    return name in {path.stem.removesuffix(SPLIT_FILE_ENDING) for path in others}
