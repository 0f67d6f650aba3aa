"""The folder of a run: created, checked, locked, and described by what it was made with."""

from __future__ import annotations

import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import REPOSITORY
from utils.locks import try_lock

log = logging.getLogger("wavegms")

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "safetensors",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "opencv-python-headless",
    "scipy",
)


class FolderInUse(UserError):
    """Another process holds the folder's lock."""


def create_run_folder(folder: Path) -> None:
    """Make `folder` and make sure that it can be written to; UserError otherwise."""
    probe = folder / f".write_test.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder}: {error.strerror}. "
            "Free the space, change its permissions, or set snapshot_path to another folder"
        ) from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a write that fails (disk full, quota, gone read-only) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}. What was saved before is kept: "
            "free space or fix the permissions there, then resume by the same command"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writes that a kill cut short; call it under the lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second run in the same folder gets a FolderInUse naming the first.

    UserError where the file system has no locks. The operating system frees the lock with the
    process, however that ends.
    """
    path = folder / "run.lock"
    with ExitStack() as stack:
        with writing_to(folder):
            file = stack.enter_context(path.open("ab+", buffering=0))
        # loader processes outlive a killed run by seconds and must not hold its lock for so long
        os.register_at_fork(after_in_child=file.close)
        if not try_lock(file):
            file.seek(0)
            holder = file.read().decode().strip() or "another process"
            raise FolderInUse(
                f"{folder} is in use by {holder}: wait for that run, stop it, "
                "or set another snapshot_path"
            )
        with writing_to(folder):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def log_to(file: Path | None = None, level: int = logging.INFO) -> None:
    """Send the project's log lines to the terminal and, if given, append them to a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = (
        False  # a full disk is reported where the state is saved, not here too
    )
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for noisy in ("matplotlib", "PIL", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with `+changes` where tracked files differ; None outside of git."""
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(REPOSITORY),
                "describe",
                "--always",
                "--abbrev=40",
                "--dirty=+changes",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def describe_environment() -> dict[str, Any]:
    """Versions, commit and hardware: what else a result depends on."""
    import torch

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }
