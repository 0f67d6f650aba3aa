"""Stopping on request: a training finishes its step and saves, other programs exit in order; the exit code is
that of the signal.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
NOTICE = "stopping after this step; a second signal stops at once, without saving"
ECHO_SECONDS = 1.0


class Interrupted(Exception):
    """A run stopped after saving, because a signal asked for it; `advice` says how to go on."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number
        self.advice = "the same command resumes from here"


class StopRequest:
    """While entered, the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP is only noted; a later one exits at once.

    What comes within ECHO_SECONDS of the first is taken for the same request: Ctrl-C in a terminal
    reaches a script's child twice, from the terminal and from the script. The first one prints
    `notice`. SIGTERM and SIGUSR1 are what Slurm sends before it takes a machine back
    (`--signal=USR1@60`); SIGHUP comes when a terminal is closed, and stays ignored under `nohup`.
    `second_exits=False` is for the processes of a launcher: it passes on a signal that they may have had
    already, ends them all when the first one leaves, and kills those that take too long; they print
    nothing.
    """

    def __init__(self, notice: str = NOTICE, second_exits: bool = True) -> None:
        self.notice = notice
        self.second_exits = second_exits
        self.signal_number: int | None = None
        self._noted_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            self._noted_at = time.monotonic()
            if self.second_exits:
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, f"\n{self.notice}\n".encode())
        elif self.second_exits and time.monotonic() - self._noted_at > ECHO_SECONDS:
            os._exit(128 + number)

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """While entered, those STOP_SIGNALS that would end this process on the spot exit in order: what is open
    is closed, and the processes of a pool end.

    What comes within ECHO_SECONDS of the first is the same request; a later one exits at once.
    """
    left_at: float | None = None

    def leave(number: int, _: FrameType | None) -> None:
        nonlocal left_at
        if left_at is None:
            left_at = time.monotonic()
            raise SystemExit(128 + number)
        if time.monotonic() - left_at > ECHO_SECONDS:
            os._exit(128 + number)

    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
