"""The names of data sets, and how split files tell them."""

from __future__ import annotations

from pathlib import Path

SPLIT_FILE_ENDING = "_train_test_names"
"""How the name of a split file ends, after that of its data set."""

ALIASES = {"kvasir": "kvasir-instrument"}
"""Other names that published split files and folders give to a data set."""


def canonical_name(name: str) -> str:
    """The name under which the data and the results of the data set `name` are stored."""
    stem = name.removesuffix("_grouped")
    return ALIASES.get(stem, stem) + name[len(stem) :]


def data_set_name(split_file: Path) -> str:
    """Canonical name of the data set that a split file belongs to, by the name of the file."""
    return canonical_name(split_file.stem.removesuffix(SPLIT_FILE_ENDING))


def names_of(name: str) -> list[str]:
    """`name`, and all other names of the same data set."""
    canonical = canonical_name(name)
    others = [alias for alias in ALIASES if canonical_name(alias) == canonical]
    return list(dict.fromkeys([name, canonical, *others]))
