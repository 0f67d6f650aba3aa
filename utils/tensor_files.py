"""Files that `torch.save` writes: whole or not at all, and read as tensors and plain values only."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from utils.files import atomic_write


def save_tensors(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically; OSError with the system's reason if that fails.

    It is serialised in memory first: where torch itself writes to a full disk, its error says nothing
    of the disk.
    """
    import torch

    laid_out = io.BytesIO()
    torch.save(content, laid_out)
    atomic_write(path, laid_out.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read a file of tensors onto the CPU; code in it is refused, not run (`weights_only`).

    Raises OSError where the file cannot be read, and ValueError where its content is damaged or refused: also
    compressed records, which torch never writes but would inflate, a thousand times their size, and
    records whose checksum is wrong, which torch does not look at.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return _load(path, is_zip)
    except (OSError, ValueError):
        raise
    except Exception as error:  # torch and zipfile raise errors of every kind, and torch's words
        # advise to run what code is in the file
        raise ValueError("it is damaged, or no plain file of tensors") from error


def _load(path: Path, is_zip: bool) -> Any:
    import torch

    if is_zip:
        with zipfile.ZipFile(path) as records:
            for record in records.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{record.filename} in it is compressed, as no checkpoint is")
            if damaged := records.testzip():
                raise ValueError(f"the checksum of {damaged} in it is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)
