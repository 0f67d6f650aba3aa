"""What lies in the folder of a prepared data set, besides images/ and masks/: names and readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.data_set_names import SPLIT_FILE_ENDING
from utils.errors import UserError

MANIFEST = "dataset.json"  # its entry max_megapixels is there if the limit is not 64
METADATA_GROUPS = "groups.json"
FOUND = "found"
"""Entry of the manifest: how many images and masks were in each source, and their bytes."""
WINDOW, LABEL = "window", "label"
PREPARED_WITH = {WINDOW: "images", LABEL: "masks"}
"""The options that decide what pixels hold, and of which files."""
_ANY_LABEL = "any"
NOTES = "notes.txt"


def read_metadata_groups(folder: Path) -> dict[str, str]:
    """Group (patient, lesion) of each case that the data set was prepared with; {} for none.

    UserError where the file is damaged.
    """
    path = folder / METADATA_GROUPS
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data set again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected case names with their groups; prepare the data set again"
        )
    return {str(name): str(group) for name, group in content.items()}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What `dataset.json` in a prepared folder says; None where the folder is not there.

    Raises UserError where the folder holds something else than a prepared data set.
    """
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        manifest = None
    counts = (
        [manifest.get(key) for key in ("train", "test")] if isinstance(manifest, dict) else [None]
    )
    if not all(isinstance(count, int) for count in counts):  # other tools have a dataset.json, too
        raise UserError(
            f"{folder} exists, but is not a data set prepared here (no readable {MANIFEST}); "
            "move it away, or prepare into another place with --root DIR"
        )
    return manifest


def prepared_name(folder: Path) -> str:
    """The name that a data set was prepared under; '' where it was not prepared here."""
    return str(_manifest_if_any(folder).get("name", ""))


def prepared_with(folder: Path) -> dict[str, str]:
    """The `--window` and `--label` of a data set, 'any' for `--any-label`, '' for none; {} where it was not
    prepared here.
    """
    manifest = _manifest_if_any(folder)
    if not manifest:
        return {}
    labels = ",".join(map(str, manifest.get("label", ())))  # only own data has them, and a window
    return {
        WINDOW: str(manifest.get("window", "")),
        LABEL: _ANY_LABEL if manifest.get("any_label") else labels,
    }


def _manifest_if_any(folder: Path) -> dict[str, Any]:
    """The manifest; {} where the data set was not prepared here."""
    try:
        return read_manifest(folder) or {}
    except UserError:
        return {}


def prepared_otherwise(
    before: Mapping[str, str], now: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """`images` or `masks`, and both options, where two `prepared_with` differ.

    What one of them lacks is not compared.
    """
    return [
        (files, _option(key, before[key]), _option(key, now[key]))
        for key, files in PREPARED_WITH.items()
        if key in before and key in now and before[key] != now[key]
    ]


def _option(key: str, value: str) -> str:
    if key == LABEL and value == _ANY_LABEL:
        return "--any-label"
    return f"--{key} {value}" if value else f"no --{key}"


def is_prepared(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether `folder` is a complete data set; UserError if it is another than is `asked` for.

    `asked` holds entries of the manifest; None means that any value will do. The order of lists does
    not matter.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    differences = [
        _difference(key, manifest.get(key), value)
        for key, value in asked.items()
        if value is not None and _comparable(manifest.get(key)) != _comparable(value)
    ]
    if differences:
        raise UserError(
            f"{folder} is complete, but was prepared otherwise: {'; '.join(differences)}. "
            "Delete it to prepare it anew, or use another place with --root DIR"
        )
    return True


def _comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value


def _difference(key: str, recorded: Any, asked: Any) -> str:
    if key.endswith("_sha256"):
        return f"with {'other' if recorded else 'no'} {key.removesuffix('_sha256')}"
    if isinstance(asked, list):
        recorded, asked = (", ".join(map(str, names or ())) for names in (recorded, asked))
    return f"{key} {_shown(recorded)}, asked for {_shown(asked)}"


def _shown(value: Any) -> Any:
    return "''" if value == "" else value


def prepared_split_file(folder: Path) -> Path:
    """Where the split of the prepared data set `folder` lies."""
    return folder / f"{folder.name}{SPLIT_FILE_ENDING}.json"
