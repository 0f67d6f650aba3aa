"""What lies in the folder of a prepared data set, besides images/ and masks/: names and readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets.catalogue import SPLIT_FILE_ENDING
from utils.errors import UserError

MANIFEST = "dataset.json"  # its entry max_megapixels is there if the limit is not 64
METADATA_GROUPS = "groups.json"
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
    if not isinstance(manifest, dict):
        raise UserError(
            f"{folder} exists, but is not a data set prepared here (no readable {MANIFEST}); "
            "move it away, or prepare into another place with --root DIR"
        )
    return manifest


def prepared_split_file(folder: Path) -> Path:
    """Where the split of the prepared data set `folder` lies."""
    return folder / f"{folder.name}{SPLIT_FILE_ENDING}.json"
