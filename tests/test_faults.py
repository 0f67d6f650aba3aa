"""A run meets trouble: what the user reads, what is kept, and that resuming loses nothing.

Stops by signals, NaN losses, damaged states and the lock are in test_training.py.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import train
from datasets.loading import SegmentationDataset
from engine.runs.saved_state import load_state, save_state
from engine.training.step import TrainingStep
from engine.training.trainer import Trainer
from tests.kill_test import same_end
from tests.small_run import ROOT, arguments
from utils.errors import UserError
from utils.files import atomic_write, try_to_write
from utils.locks import locked
from utils.runs import create_run_folder, remove_leftovers

SETTINGS = ("ch=16",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """The run that met no trouble."""
    folder = tmp_path_factory.mktemp("whole")
    train.main(arguments(folder, vae, *SETTINGS))
    return folder / "run" / "epochs_2"


@contextmanager
def disk_takes_files_up_to(size: int) -> Iterator[None]:
    """Make the system refuse to write more into any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def in_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Call `action` before the given training step."""
    step, count = TrainingStep.__call__, itertools.count(1)

    def counted(self, batch):
        if next(count) == number:
            action()
        return step(self, batch)

    monkeypatch.setattr(TrainingStep, "__call__", counted)


def done(folder: Path) -> tuple[int, int]:
    """Epochs and batches of the next one in `last.pth`."""
    progress = torch.load(folder / "last.pth", weights_only=True)["progress"]
    return progress["epoch"], progress["batch"]


def no_space(*_: object) -> NoReturn:
    raise OSError(28, "No space left on device")


# last.pth is the largest file, best_model.pth and epoch_2.pth have a third of it
@pytest.mark.parametrize("fails", ["last.pth", "best_model.pth", "history.csv"])
def test_a_full_disk_keeps_the_last_state(
    whole: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    folder = tmp_path / "run" / "epochs_2"
    command = arguments(tmp_path, vae, *SETTINGS, "save_freq=1")
    with monkeypatch.context() as patch, ExitStack() as stack:

        def fill_disk() -> None:
            if fails == "history.csv":
                patch.setattr("engine.runs.history.atomic_write", no_space)
            else:
                size = (whole / fails).stat().st_size
                stack.enter_context(disk_takes_files_up_to(size - 100))

        in_step(patch, 4, fill_disk)
        with pytest.raises(UserError, match=rf"cannot write to {folder}.*(large|space).*kept"):
            train.main(command)
    assert done(folder) == (1, 0)
    assert not list(folder.glob("**/*.tmp"))
    assert len((folder / "history.csv").read_text().splitlines()) >= 2
    train.main(command)
    assert same_end(whole, folder)


def test_a_full_disk_at_the_start_is_told(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runs.run_folder.atomic_write", no_space)
    with pytest.raises(UserError, match=r"cannot write to.*No space left"):
        train.main(arguments(tmp_path, vae, *SETTINGS))


@pytest.mark.parametrize("refused", ["run.lock", "train.log"])
def test_a_disk_without_room_for_another_file_is_told(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    open_file = io.open

    def few_inodes(file: Any, *args: Any, **options: Any) -> Any:
        if Path(str(file)).name == refused:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return open_file(file, *args, **options)

    monkeypatch.setattr(Path, "open", few_inodes)
    monkeypatch.setattr("builtins.open", few_inodes)
    with pytest.raises(UserError, match=rf"cannot write to .*{refused}: No space left"):
        train.main(arguments(tmp_path, vae, *SETTINGS))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_mid_run_is_named(
    whole: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    command = arguments(tmp_path, vae, *SETTINGS, "cache_mb=0", f"num_workers={workers}")
    images = {path: path.read_bytes() for path in (tmp_path / "blobs" / "images").iterdir()}

    def damage() -> None:
        for path, content in images.items():
            path.write_bytes(content[: len(content) // 2])

    with monkeypatch.context() as patch:
        in_step(patch, 4, damage)
        with pytest.raises(UserError, match=r"case_\d+\.png") as caught:
            train.main(command)
    assert "Traceback" not in str(caught.value)
    folder = tmp_path / "run" / "epochs_2"
    # accelerate had read one batch ahead; a loader process may have read all of the epoch
    assert done(folder) == (1, 1) if workers == 0 else done(folder) >= (1, 0)
    with pytest.raises(UserError, match=r"case_\d+\.png"):
        train.main(command)
    for path, content in images.items():
        path.write_bytes(content)
    train.main(command)
    assert same_end(whole, folder)


def test_a_loader_process_that_dies_is_told(
    whole: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SegmentationDataset.__getitem__

    def deadly(self, key):
        if torch.utils.data.get_worker_info() and key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", deadly)
        with pytest.raises(UserError, match=r"worker.*killed.*num_workers=0"):
            train.main(arguments(tmp_path, vae, *SETTINGS, "num_workers=1"))
    folder = tmp_path / "run" / "epochs_2"
    assert done(folder) == (1, 0)
    train.main(arguments(tmp_path, vae, *SETTINGS))
    assert same_end(whole, folder)


def test_a_clock_that_jumps_changes_nothing(
    whole: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 86400)
        train.main(arguments(tmp_path, vae, *SETTINGS))
    assert same_end(whole, tmp_path / "run" / "epochs_2")


def test_a_folder_that_cannot_be_written_is_found_before_training(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("went on to train"))
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to the run folder.*set snapshot_path"):
        train.main(arguments(tmp_path, vae))


def test_a_read_only_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        create_run_folder(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = functools.partial(open, "/dev/full", "wb", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full())
    with pytest.raises(UserError, match="No space left"):
        create_run_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_probe_leaves_the_folders_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands that are started together make folders in the same new one."""
    temporary_file = tempfile.TemporaryFile

    def while_another_starts(**settings: Any) -> Any:
        (tmp_path / "new" / "other").mkdir(parents=True)
        return temporary_file(**settings)

    monkeypatch.setattr(tempfile, "TemporaryFile", while_another_starts)
    try_to_write(tmp_path / "new" / "own")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_leftovers_that_vanish_meanwhile_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".last.pth.1.tmp"
    left.touch()
    gone = tmp_path / ".write_test.2.tmp"  # of another process
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone, left]))
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_loader_processes_do_not_keep_the_lock(tmp_path: Path) -> None:
    started, child_started = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(child_started, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(started, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_state_of_something_else_is_refused(
    whole: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments(tmp_path, vae, *SETTINGS)
    with monkeypatch.context() as patch:
        in_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Exception, match="SIGTERM"):
            train.main(command)
    path = tmp_path / "run" / "epochs_2" / "last.pth"
    state = torch.load(path, weights_only=True)
    for broken in ({"format": 1}, state | {"weights": {}}, state | {"progress": {"steps": 1}}):
        torch.save(broken, path)
        with pytest.raises(UserError, match=r"not one of this run.*resume=never"):
            train.main(command)


@pytest.mark.parametrize("moment", ["flipped bit", "cut", "between the renames"])
def test_the_newest_whole_state_is_taken(tmp_path: Path, moment: str) -> None:
    for step in range(3):
        save_state(tmp_path, {"weights": torch.full((1000,), float(step))})
    last = tmp_path / "last.pth"
    if moment == "between the renames":
        (tmp_path / "last.pth.new").write_bytes(last.read_bytes())
        last.rename(tmp_path / "last.previous.pth")
    else:
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 1
        last.write_bytes(content if moment == "flipped bit" else content[:-20])
    state = load_state(tmp_path)
    assert state is not None
    assert state["weights"].eq(2 if moment == "between the renames" else 1).all()


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.yaml"
    atomic_write(path, "before\n")
    write = Path.write_bytes

    def half(target: Path, content: bytes) -> int:
        write(target, content[:3])
        return no_space()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space left"):
            atomic_write(path, "afterwards\n")
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_that_was_written_but_not_renamed_is_the_newest(tmp_path: Path) -> None:
    for step in range(3):
        save_state(tmp_path, {"weights": torch.full((2,), float(step))})
    (tmp_path / "last.previous.pth").replace(tmp_path / "before")
    (tmp_path / "last.pth").replace(tmp_path / "last.pth.new")
    (tmp_path / "before").replace(tmp_path / "last.previous.pth")
    state = load_state(tmp_path)
    assert state is not None and state["weights"].eq(2).all()


def test_a_file_system_that_cannot_sync_folders_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files_alone(descriptor: Any) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    save_state(tmp_path, {"epoch": 1})
    state = load_state(tmp_path)
    assert state is not None and state["epoch"] == 1


def test_a_run_that_cannot_be_deleted_is_told(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of another owner, or open on a network file system."""
    (finished / "valid_results_blobs").mkdir()

    def not_empty(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr("engine.runs.run_folder.shutil.rmtree", not_empty)
    with pytest.raises(UserError, match=r"cannot write to .*Directory not empty"):
        train.main(arguments(tmp_path, vae, "resume=never"))


def test_killed_again_and_again_it_ends_the_same() -> None:
    command = [sys.executable, str(ROOT / "tests" / "kill_test.py"), "--chain", "--kills=4"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["kills"] >= 3
    assert counts["bitwise_equal"] == counts["ends"] == 1
