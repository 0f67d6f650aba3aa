"""Running named trials: each is an ordinary training run in its own process.

    trials = [Trial("wave-gms_seed=1", config), ...]
    outcomes = run_trials(trials, workers=2, steps=training_steps)

The same call again resumes: finished trials are skipped, interrupted ones resumed by train.py,
failed ones left alone unless `retry_failed`. A finished trial that is asked for with other settings is
scored again where these only affect that, otherwise train.py decides if its run counts. A trial's run
folder (`config.run_folder`) then also has

    trial.yaml  the config that the commands are given
    trial.log   what the commands printed
    trial.json  the record, see `experiments.trials.records`
    trial.lock  held by the running command, which it names, also when its runner was killed
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import IO

from engine.runs.saved_state import LAST_STATE
from experiments.trials.hardware import Hardware, hardware_of
from experiments.trials.inputs import vae_sha256
from experiments.trials.records import (
    Record,
    Status,
    is_of_same_training,
    is_record_of,
    read_record,
    write_record,
)
from experiments.trials.trial import Outcome, Steps, Trial
from utils.config import dump_config
from utils.config_keys import IDLE
from utils.errors import UserError
from utils.files import atomic_write
from utils.interruption import STOP_SIGNALS, StopRequest
from utils.locks import holder_of, name_holder, try_lock
from utils.runs import create_run_folder, writing_to

log = logging.getLogger("wavegms")

POLL_SECONDS = 0.2
LAST_LINES = 5  # of the log, recorded as the error where there is no message
MAX_ERROR = 2000  # characters of an error that are recorded
NOTICE = "waiting for the running trials to save; a second signal exits without waiting"

STOPPED_CODES = {code for number in STOP_SIGNALS for code in (-number, 128 + number)}


def run_trials(
    trials: Iterable[Trial],
    workers: int = 1,
    *,
    steps: Callable[[Trial], Steps],
    retry_failed: bool = False,
    outdated: Callable[[Trial], Collection[str]] = lambda trial: (),
    should_prune: Callable[[Trial], bool] | None = None,
    on_end: Callable[[Outcome], None] | None = None,
    in_order: bool = False,
) -> list[Outcome]:
    """Run each trial's steps one after the other, up to `workers` trials at a time.

    `trials` is read lazily: the next one when a worker is free. A trial that another process is running is
    left for later, unless they are to start `in_order`: then its worker waits. The steps that `outdated`
    names run again, though they are done. Several times a second, `should_prune` is asked about every
    trial that is in its first step; one that it is true of is stopped (SIGTERM) and counts as pruned.
    `on_end` is called with every outcome, also those of skipped trials. The failure of a trial stops no
    other one. With several workers, each gets one of the config's GPUs, in turn.

    On SIGINT, SIGTERM or SIGUSR1 the running commands get a SIGTERM; when they have saved and ended,
    Interrupted is raised. A second signal ends this process at once; the commands still save.
    """
    if workers < 1:
        raise UserError(f"{workers} workers run nothing; expected at least 1")
    pool = _Workers(trials, workers, steps, outdated, retry_failed, in_order)
    outcomes: list[Outcome] = []
    with StopRequest(NOTICE) as stop:
        try:
            while pool.busy or not (pool.exhausted or stop.requested):
                while not stop.requested and pool.start_next():
                    pass
                if should_prune is not None and not stop.requested:
                    pool.prune(should_prune)
                if stop.requested:
                    pool.interrupt()
                ended = pool.take_ended()
                for outcome in ended:
                    outcomes.append(outcome)
                    if on_end is not None:
                        on_end(outcome)
                if pool.busy and not ended:
                    time.sleep(POLL_SECONDS)
        finally:  # only an error leaves jobs behind
            pool.interrupt()
            pool.wait()
        stop.raise_if_requested()
    return outcomes


class _Workers:
    """Each worker runs one job at a time; `trials` is read when one is free."""

    def __init__(
        self,
        trials: Iterable[Trial],
        count: int,
        steps: Callable[[Trial], Steps],
        outdated: Callable[[Trial], Collection[str]],
        retry_failed: bool,
        in_order: bool,
    ) -> None:
        self.count, self.steps = count, steps
        self.outdated, self.retry_failed, self.in_order = outdated, retry_failed, in_order
        self.exhausted = False  # whether all trials are read
        self._trials = iter(trials)
        self._jobs: dict[int, _Job] = {}  # by worker
        self._locked: list[_Job] = []  # whose trials other processes are running

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self._locked)

    def start_next(self) -> bool:
        """Give the next trial to a free worker; False where there is no worker or none that can start."""
        free = next((worker for worker in range(self.count) if worker not in self._jobs), None)
        job = None if free is None else self._next_job()
        if free is None or job is None:
            return False
        job.hardware = hardware_of(job.trial.config, free, self.count)
        self._jobs[free] = job
        return True

    def _next_job(self) -> _Job | None:
        """The first job whose trial no other process is running, or just the first one if `in_order`."""
        for job in self._locked:
            if job.take_lock():
                self._locked.remove(job)
                return job
        while (trial := next(self._trials, None)) is not None:
            job = _Job(trial, self.steps(trial), self.outdated, self.retry_failed)
            if job.take_lock() or self.in_order:
                return job
            self._locked.append(job)
        self.exhausted = True
        return None

    def prune(self, should_prune: Callable[[Trial], bool]) -> None:
        """Stop the trials in their first step of which `should_prune` says so."""
        for job in self._jobs.values():
            if job.in_first_step and should_prune(job.trial):
                job.stop("pruned")

    def interrupt(self) -> None:
        """Ask all trials to save and stop; those that wait for another process do not start."""
        self._locked.clear()
        for job in self._jobs.values():
            job.stop("interrupted")

    def take_ended(self) -> list[Outcome]:
        """Advance all jobs; those that have ended leave their workers free."""
        ended = [worker for worker, job in self._jobs.items() if job.advance()]
        jobs = [self._jobs.pop(worker) for worker in ended]
        return [Outcome(job.trial, job.record, job.ran) for job in jobs]

    def wait(self) -> None:
        """Wait until all jobs have ended."""
        while self._jobs:
            if not self.take_ended():
                time.sleep(POLL_SECONDS)


class _Job:
    """A trial on a worker, from taking its lock to the end of its last step.

    Its `hardware` is set when it is given to a worker.
    """

    hardware: Hardware

    def __init__(
        self,
        trial: Trial,
        steps: Steps,
        outdated: Callable[[Trial], Collection[str]],
        retry_failed: bool,
    ) -> None:
        self.trial, self.steps, self.outdated = trial, steps, outdated
        self.retry_failed = retry_failed
        self.record = Record(trial.name, trial.config.model_dump(mode="json"))
        self._keeps_old = False  # whether the record on disk stays until this one is trained
        self._lock: IO[bytes] | None = None
        self._told = False  # that another process is running the trial
        self._begun = False
        self._process: subprocess.Popen[bytes] | None = None
        self._step = ""
        self._started = 0.0
        self._history = 0  # when the history was written, as far as there is one
        self._log_start = 0
        self._stopped_as: Status | None = None
        self.ran = False

    @property
    def in_first_step(self) -> bool:
        """Whether its first command is running and was not asked to stop."""
        running = self._process is not None and self._stopped_as is None
        return running and self._step == next(iter(self.steps))

    def stop(self, status: Status) -> None:
        """Ask the running command to save and stop, once; the trial then ends with `status`."""
        if self._stopped_as is None:
            self._stopped_as = status
            if self._process is not None:
                # `terminate` would reap a command that has just ended, which is for `wait4` to do;
                # SIGINT may be ignored, as it is by a shell's `&`
                os.kill(self._process.pid, signal.SIGTERM)

    def advance(self) -> bool:
        """Do what can be done without blocking; True when the trial has ended. Called every POLL_SECONDS.

        A job waits for the trial's lock, then runs the steps that are not done, one command after the
        other. It has ended when none is left, when one has failed, or when it was asked to stop.
        """
        if not self._begun:
            if self._stopped_as is not None:
                self._release_lock()
                return True
            if not self.take_lock():
                return False
            self._begun = True
            self._resume_record()
        if self._process is not None and not self._command_ended():
            return False
        record = self.record
        if record.status == "running":
            todo = [step for step in self.steps if step not in record.done]
            if todo and self._stopped_as is None:
                self._start(todo[0])
                return False
            record.status = self._stopped_as if todo and self._stopped_as else "finished"
            self._save()
        self._release_lock()
        return True

    def take_lock(self) -> bool:
        """Take the trial's lock, or have it already; False while another process runs the trial, such as
        the command of a killed runner.
        """
        if self._lock is not None:
            return True
        if not self._told:  # that is, the first time
            create_run_folder(self.trial.folder)
        file = (self.trial.folder / "trial.lock").open("ab+", buffering=0)
        try:
            if try_lock(file):
                self._lock = file
                self._name_holder(os.getpid())
            elif not self._told:
                self._told = True
                holder = holder_of(file)
                log.info("%s is run by %s: waiting for that to end", self.trial.name, holder)
        finally:
            if self._lock is None:
                file.close()
        return self._lock is not None

    def _name_holder(self, process: int) -> None:
        """Write into the lock's file which process runs the trial."""
        assert self._lock is not None
        with writing_to(self.trial.folder):
            name_holder(self._lock, process)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _resume_record(self) -> None:
        """Take over the record on disk. The status is "running" if there is something to do."""
        on_disk = read_record(self.trial.folder)
        if on_disk is not None:
            self._take_over(on_disk)
        record = self.record
        if all(step in record.done for step in self.steps):
            if record.status != "finished":  # a step that is no longer wanted has not succeeded
                record.status = "finished"
                self._save()
            return
        if record.status == "pruned" or (record.status == "failed" and not self.retry_failed):
            return
        if record.status == "running":  # its runner was killed
            record.untimed_attempts += 1
        record.status = "running"
        record.attempts += 1
        record.exit_code = record.error = None
        if "train" not in record.done and not (self.trial.folder / LAST_STATE).exists():
            record.vae_sha256 = vae_sha256(self.trial.config)
        config = self.trial.config.model_copy(update={"GPUs": self.hardware.gpus})
        with writing_to(self.trial.folder):
            atomic_write(self.trial.config_file, dump_config(config))
        self._save()

    def _take_over(self, on_disk: Record) -> None:
        config, outdated = self.trial.config, self.outdated(self.trial)
        if not is_record_of(on_disk, config):
            if is_of_same_training(on_disk, config, IDLE):
                done = [step for step in on_disk.done if step == "train"]
            else:  # train.py decides if it can resume
                done = []
                self._keeps_old = on_disk.trained and is_of_same_training(on_disk, config)
            on_disk = replace(on_disk, status="waiting", done=done)
        done = [step for step in on_disk.done if step not in outdated]
        self.record = replace(on_disk, config=self.record.config, done=done)

    def _start(self, step: str) -> None:
        assert self._lock is not None
        self._step, self._history = step, self._history_stamp()
        with self.trial.log_file.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                self.steps[step],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.hardware.environment,
                start_new_session=True,  # Ctrl-C reaches it only through `stop`, once
                pass_fds=[self._lock.fileno()],
            )
        self._started = time.monotonic()
        self.ran = True
        self._name_holder(self._process.pid)  # which goes on where this runner is killed

    def _command_ended(self) -> bool:
        """Whether the command has ended; if so, its cost and how it ended are recorded."""
        process, record, step = self._process, self.record, self._step
        assert process is not None
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid == 0:
            return False
        code = process.returncode = os.waitstatus_to_exitcode(status)
        self._process = None
        wall, cpu = time.monotonic() - self._started, usage.ru_utime + usage.ru_stime
        found_complete = (
            step == "train" and code == 0 and 0 < self._history == self._history_stamp()
        )
        if not found_complete:
            record.wall_seconds[step] = round(record.wall_seconds.get(step, 0) + wall, 2)
            record.cpu_seconds[step] = round(record.cpu_seconds.get(step, 0) + cpu, 2)
        record.exit_code = code
        if code == 0:
            record.done.append(step)
        elif self._stopped_as is not None:
            record.status = self._stopped_as
        elif code in STOPPED_CODES:
            record.status = "interrupted"
        else:
            record.status = "failed"
            record.error = self._failure_reason(code)
        self._save()
        return True

    def _history_stamp(self) -> int:
        """When the history of the training was last written, 0 where there is none."""
        path = self.trial.folder / "history.csv"
        return path.stat().st_mtime_ns if path.is_file() else 0

    def _failure_reason(self, code: int) -> str:
        """Why the command failed: its error message, or the last lines that it printed."""
        with self.trial.log_file.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - MAX_ERROR))
            lines = file.read().decode(errors="replace").strip().splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        lines = lines[starts[-1] :] if starts else lines[-LAST_LINES:]
        ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "\n".join([f"{self._step}: {ending}", *lines])

    def _save(self) -> None:
        if self._keeps_old and not self.record.trained:
            return
        with writing_to(self.trial.folder):
            write_record(self.trial.folder, self.record)
