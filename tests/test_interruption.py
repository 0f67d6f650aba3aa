"""Signals: what a run does at the first and at the second, and how it exits."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from engine.runs.saved_state import load_state
from tests.cases_on_disk import write_data_set
from tests.small_run import ROOT, arguments
from utils.entry import exit_from
from utils.interruption import NOTICE, STOP_SIGNALS, Interrupted, StopRequest


def exit_code_of(work: Callable[[], object]) -> int:
    """How a fork of this process that does `work` exits."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_noted_and_gives_the_exit_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal_number == number
    assert signal.signal(number, original) == signal.SIG_DFL

    def stopped() -> int:
        raise Interrupted(number)

    for rank, told in (
        (None, True),
        ("0", True),
        ("1", False),
    ):  # of a launcher's processes one tells it
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            exit_from(stopped)
        assert caught.value.code == 128 + number
        assert ("resumes from here" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("echo_seconds", "launched", "code"),
    [(60.0, False, 0), (-1.0, False, 128 + signal.SIGTERM), (-1.0, True, 0)],
    ids=["at the same moment", "later", "repeated by a launcher"],
)
def test_a_second_signal_exits_at_once_if_it_is_another_request(
    echo_seconds: float, launched: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.interruption.ECHO_SECONDS", echo_seconds)

    def twice() -> None:
        with StopRequest(second_exits=not launched):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    assert exit_code_of(twice) == code


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    def hang_up() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os._exit(int(stop.requested))

    assert exit_code_of(hang_up) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_program_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Also where it is repeated at once, as a script passes on what a batch system sends to both."""
    closed = tmp_path / "closed"

    def program() -> None:
        for each in (number, signal.SIGTERM):  # whatever nohup or an earlier test has left
            signal.signal(each, signal.SIG_DFL)

        def work() -> None:
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                closed.touch()

        try:
            exit_from(work)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    monkeypatch.setattr("utils.interruption.ECHO_SECONDS", 60)  # however slow this machine is
    monkeypatch.delenv("RANK", raising=False)
    assert exit_code_of(program) == 128 + number and closed.exists()
    closed.unlink()
    monkeypatch.setenv("RANK", "0")
    assert exit_code_of(program) == -number and not closed.exists()


SCORING = """
import sys
from itertools import count
from pathlib import Path
import numpy as np
from scoring.case_scores import score_cases
from utils.entry import exit_from

def cases():
    mask = np.zeros((8, 8), bool)
    for number in count():
        if number == 40:  # of batches of 16, so that a process has scored some
            Path(sys.argv[1], "scoring").touch()
        yield f"case_{number}", mask, mask

def work():
    try:
        score_cases(cases(), workers=1)
    finally:
        Path(sys.argv[1], "closed").touch()

exit_from(work)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_that_score_end_with_the_program(
    tmp_path: Path, number: signal.Signals
) -> None:
    scoring = subprocess.Popen(
        [sys.executable, "-c", SCORING, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while scoring.poll() is None and not (tmp_path / "scoring").exists():
            time.sleep(0.02)
        scoring.send_signal(number)
        _, told = scoring.communicate(timeout=120)  # until no process holds the pipe
    finally:
        with suppress(ProcessLookupError):
            os.killpg(scoring.pid, signal.SIGKILL)
    killed = number == signal.SIGKILL
    assert scoring.returncode == (-number if killed else 128 + number), told
    assert (tmp_path / "closed").exists() != killed


def test_a_closed_terminal_saves(tmp_path: Path, vae: Path) -> None:
    write_data_set(tmp_path, train=100, test=1, size=32)
    command = arguments(tmp_path, vae, "ch=16", "batch_size=1", "val_fraction=0.01", "epochs=1")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "train.py", *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    while b"loss=" not in shown:  # beside the progress bar
        shown += os.read(terminal, 1 << 16)  # fails where the child has ended
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    state = load_state(tmp_path / "run" / "epochs_1")
    assert state is not None and state["progress"]["batch"] > 0


def saving_run(tmp_path: Path, vae: Path, setting: str) -> tuple[subprocess.Popen[str], Path]:
    """train.py in a process group of its own, once it has saved or ended, and its run folder."""
    command = arguments(tmp_path, vae, "ch=16", "epochs=500", setting)
    run = subprocess.Popen(
        [sys.executable, "train.py", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "run" / "epochs_500"
    while run.poll() is None and not (folder / "last.pth").exists():
        time.sleep(0.1)
    return run, folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_loader_processes_too_saves(
    tmp_path: Path, vae: Path, number: signal.Signals
) -> None:
    run, folder = saving_run(tmp_path, vae, "num_workers=2")
    os.killpg(run.pid, number)
    _, told = run.communicate()  # until no loader process holds the pipe either
    assert run.returncode == 128 + number, told
    assert told.count(NOTICE) == 1
    assert f"stopped by {number.name}; the same command resumes from here" in told
    assert "Traceback" not in told
    assert load_state(folder) is not None


def test_ctrl_c_saves_and_exits_with_130(tmp_path: Path, vae: Path) -> None:
    run, folder = saving_run(tmp_path, vae, "save_minutes=1e-6")
    run.send_signal(signal.SIGINT)
    _, told = run.communicate()
    assert run.returncode == 130, told
    assert "stopped by SIGINT; the same command resumes from here" in told
    assert "Traceback" not in told
    assert load_state(folder) is not None
    assert not list(folder.glob("**/*.tmp"))
