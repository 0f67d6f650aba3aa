"""Scheduling, resuming, failures and signals of many runs, with quick commands instead of train.py."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.trials import runner
from experiments.trials.records import read_record
from experiments.trials.runner import run_trials
from experiments.trials.trial import Outcome, Steps, Trial
from utils.config import load_config, make_config
from utils.errors import UserError
from utils.interruption import Interrupted
from utils.locks import try_lock
from utils.runs import create_run_folder

ROOT = Path(__file__).resolve().parents[1]


def make_trial(tmp_path: Path, name: str, **values: object) -> Trial:
    values = {"pickle_file_path": "x", "epochs": 1, "snapshot_path": tmp_path / name} | values
    return Trial(name, make_config(values))


def commands(code: str) -> Callable[[Trial], Steps]:
    """A step that runs `code`, which finds the run folder as `folder`."""
    start = "import os, sys, time, signal; from pathlib import Path; folder = Path(sys.argv[1])\n"
    wait = "def wait(path):\n    while not path.exists(): time.sleep(0.01)\n"
    program = [sys.executable, "-I", "-S", "-c", start + wait + code]
    return lambda trial: {"train": [*program, str(trial.folder)]}


COUNT = "(folder / 'runs').open('a').write('x')\n"
STOPPABLE = (  # the first time it runs until it is told to stop, then it ends well
    COUNT
    + """
def save(number, frame):
    (folder / 'saved').write_text(str(number))
    sys.exit(128 + number)
if not (folder / 'saved').exists():
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, save)
    (folder / 'ready').touch()
    time.sleep(60)
"""
)


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.trial.name: outcome.record.status for outcome in outcomes}


def runs(trial: Trial) -> int:
    """How often the command of a trial was started."""
    path = trial.folder / "runs"
    return len(path.read_text()) if path.exists() else 0


def test_as_many_run_at_a_time_as_there_are_workers(tmp_path: Path) -> None:
    meet = """
here = folder.parent.parent / 'here'
here.mkdir(exist_ok=True)
(here / folder.parent.name).touch()
while len(list(here.iterdir())) < 2 and not (here.parent / 'met').exists(): time.sleep(0.01)
(here.parent / 'met').touch()
(folder / 'count').write_text(str(len(list(here.iterdir()))))
(here / folder.parent.name).unlink()
"""
    trials = [make_trial(tmp_path, name) for name in "abcd"]
    outcomes = run_trials(trials, workers=2, steps=commands(meet))
    assert statuses(outcomes) == dict.fromkeys("abcd", "finished")
    counts = [int((trial.folder / "count").read_text()) for trial in trials]
    assert max(counts) == 2


def test_a_finished_trial_is_skipped_and_its_cost_is_on_record(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a", lr=0.1)
    steps = commands(COUNT + "sum(range(10**6))\ntime.sleep(0.05)")
    for _ in range(2):
        ended: list[Outcome] = []
        assert statuses(run_trials([trial], steps=steps, on_end=ended.append)) == {"a": "finished"}
        assert len(ended) == 1
    assert runs(trial) == 1
    record = read_record(trial.folder)
    assert record is not None and record.attempts == 1 and record.exit_code == 0
    assert record.wall_seconds["train"] >= 0.05 and record.cpu_seconds["train"] > 0
    assert load_config(trial.config_file) == trial.config


def test_a_training_that_finds_its_run_complete_costs_nothing(tmp_path: Path) -> None:
    train = "path = folder / 'history.csv'\nif not path.exists(): path.touch(); time.sleep(0.05)"
    seconds = []
    for skipped in (0, 1):  # a key that train.py lets a finished run change
        trial = make_trial(tmp_path, "a", skip_nonfinite=skipped)
        (outcome,) = run_trials([trial], steps=commands(COUNT + train))
        seconds.append((outcome.record.wall_seconds, outcome.record.cpu_seconds))
    assert runs(trial) == 2 and seconds[0] == seconds[1] and seconds[0][0]["train"] >= 0.05


def test_an_outdated_step_runs_again(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")
    for times in (1, 2, 2):
        outdated = {"train", "unknown"} if times == 2 and runs(trial) < 2 else set[str]()
        run_trials([trial], steps=commands(COUNT), outdated={trial: outdated}.__getitem__)
        assert runs(trial) == times


def test_steps_run_in_order_and_only_those_that_are_missing(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")

    def both(trial: Trial) -> Steps:
        valid = commands("(folder / 'order').open('a').write('valid ')")(trial)["train"]
        train = commands("(folder / 'order').open('a').write('train ')")(trial)["train"]
        return {"train": train, "valid": valid}

    run_trials([trial], steps=lambda trial: {"train": both(trial)["train"]})
    run_trials([trial], steps=both)
    assert (trial.folder / "order").read_text() == "train valid "
    record = read_record(trial.folder)
    assert record is not None and set(record.wall_seconds) == {"train", "valid"}


def test_a_failure_is_recorded_and_stops_no_other(tmp_path: Path) -> None:
    fail = COUNT + "if 'bad' in str(folder) and not (folder / 'mended').exists():\n"
    fail += "    print('noise\\nerror: no such weights'); sys.exit(2)"
    trials = [make_trial(tmp_path, name) for name in ("bad", "good")]
    wanted = {"bad": "failed", "good": "finished"}
    outcomes = run_trials(trials, steps=commands(fail))
    assert statuses(outcomes) == wanted
    assert outcomes[0].record.error == "train: exit code 2\nerror: no such weights"
    assert statuses(run_trials(trials, steps=commands(fail))) == wanted
    assert runs(trials[0]) == 1
    (trials[0].folder / "mended").touch()
    outcomes = run_trials(trials, steps=commands(fail), retry_failed=True)
    assert statuses(outcomes) == {"bad": "finished", "good": "finished"}
    assert (runs(trials[0]), runs(trials[1])) == (2, 1)
    assert outcomes[0].record.error is None


def test_the_last_error_of_a_command_is_why_it_failed(tmp_path: Path) -> None:
    said = "error: no picture drawn\\ngoing on\\nerror: disk full\\nfree some space"
    outcomes = run_trials([make_trial(tmp_path, "a")], steps=commands(f"sys.exit('{said}')"))
    assert outcomes[0].record.error == "train: exit code 1\nerror: disk full\nfree some space"


def test_a_command_that_is_killed_has_failed(tmp_path: Path) -> None:
    steps = commands("print('last line', flush=True); os.kill(os.getpid(), 9)")
    outcomes = run_trials([make_trial(tmp_path, "a")], steps=steps)
    assert outcomes[0].record.error == "train: ended by SIGKILL\nlast line"


def test_settings_of_the_machine_start_no_finished_trial_again(tmp_path: Path) -> None:
    fail = COUNT + "sys.exit(not (folder / 'mended').exists() and 'bad' in str(folder))"
    for place in ({}, {"num_workers": 7, "cache_mb": 1, "GPUs": [], "save_minutes": 3}):
        good, bad = (make_trial(tmp_path, name, **place) for name in ("good", "bad"))
        outcomes = run_trials([good, bad], steps=commands(fail))
        assert statuses(outcomes) == {"good": "finished", "bad": "failed"}
    assert (runs(good), runs(bad)) == (1, 1)
    (bad.folder / "mended").touch()
    run_trials([bad], steps=commands(fail), retry_failed=True)
    assert runs(bad) == 2 and load_config(bad.config_file) == bad.config
    record = read_record(bad.folder)
    assert record is not None and record.config["num_workers"] == 7


def test_a_finished_trial_is_scored_otherwise_without_a_training(tmp_path: Path) -> None:
    write = "(folder / 'order').open('a').write('{} ')"

    def both(trial: Trial) -> Steps:
        return {step: commands(write.format(step))(trial)["train"] for step in ("train", "valid")}

    for tta in (False, True, True):
        trial = make_trial(tmp_path, "a", tta=tta)
        assert statuses(run_trials([trial], steps=both)) == {"a": "finished"}
    assert (trial.folder / "order").read_text() == "train valid valid "
    trial = make_trial(tmp_path, "a", tta=True, evaluation_size="native")
    run_trials([trial], steps=lambda trial: {"train": both(trial)["train"]})
    record = read_record(trial.folder)
    assert record is not None and record.done == ["train"]
    assert record.config["evaluation_size"] == "native" and record.status == "finished"


@pytest.mark.parametrize("end", ["sys.exit('error: no')", "os.kill(os.getpid(), 15)"])
def test_a_finished_trial_stays_until_another_training_of_it_has_ended(
    tmp_path: Path, end: str
) -> None:
    trial, changed = make_trial(tmp_path, "a"), make_trial(tmp_path, "a", skip_nonfinite=5)
    run_trials([trial], steps=commands(COUNT))
    before = (trial.folder / "trial.json").read_text()
    for number in (2, 3):
        (outcome,) = run_trials([changed], steps=commands(COUNT + end))
        assert outcome.record.status in ("failed", "interrupted") and runs(trial) == number
        assert (trial.folder / "trial.json").read_text() == before
    assert statuses(run_trials([trial], steps=commands(COUNT + end))) == {"a": "finished"}
    run_trials([changed], steps=commands(COUNT))
    record = read_record(trial.folder)
    assert record is not None and record.config["skip_nonfinite"] == 5 and record.trained
    assert runs(trial) == 4


def test_a_trial_whose_config_changed_is_run_again(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        trial = make_trial(tmp_path, "a", lr=rate)
        run_trials([trial], steps=commands(COUNT))
        assert load_config(trial.config_file).lr == rate
    assert runs(trial) == 2


def test_the_vae_is_recorded_until_there_is_something_to_resume(tmp_path: Path) -> None:
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    recorded = []
    for number, state in enumerate((False, True, True)):
        weights.write_text(f"{number}")
        trial = make_trial(tmp_path, "a", vae_weights=str(weights.parent))
        save = "(folder / 'last.pth').touch()\n" if state else ""
        (outcome,) = run_trials(
            [trial], steps=commands(save + "sys.exit('error: x')"), retry_failed=True
        )
        recorded.append(outcome.record.vae_sha256)
    assert recorded[0] != recorded[1] == recorded[2]
    other = make_trial(tmp_path, "b", model="smp/Unet?encoder=resnet18")
    assert run_trials([other], steps=commands(""))[0].record.vae_sha256 is None


def test_a_key_that_is_new_in_the_config_starts_no_finished_trial_again(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")
    run_trials([trial], steps=commands(COUNT))
    path = trial.folder / "trial.json"
    record = json.loads(path.read_text())
    del record["config"]["val_fraction"]
    path.write_text(json.dumps(record))
    run_trials([trial], steps=commands(COUNT))
    assert runs(trial) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_running_trials_and_nothing_is_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    trials = [make_trial(tmp_path, name) for name in "abc"]

    def signal_when_both_run(asked: Trial) -> bool:
        if asked is trials[0] and all((trial.folder / "ready").exists() for trial in trials[:2]):
            os.kill(os.getpid(), number)
        return False

    with pytest.raises(Interrupted) as caught:
        run_trials(trials, 2, steps=commands(STOPPABLE), should_prune=signal_when_both_run)
    assert caught.value.exit_code == 128 + number
    for trial in trials[:2]:
        record = read_record(trial.folder)
        assert record is not None and record.status == "interrupted"
        assert (trial.folder / "saved").exists()
    assert not trials[2].folder.exists()
    for trial in trials:
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / "saved").touch()
    assert set(statuses(run_trials(trials, 2, steps=commands(STOPPABLE))).values()) == {"finished"}
    assert [runs(trial) for trial in trials] == [2, 2, 1]


def test_a_trial_that_has_just_ended_can_be_stopped(tmp_path: Path) -> None:
    """As where every process of a job gets the signal, and a trial is gone before its runner looks."""
    trials = [make_trial(tmp_path, name) for name in "ab"]

    def ended_meanwhile(asked: Trial) -> bool:
        pid = asked.folder / "pid"
        if asked is not trials[0] or not pid.exists():
            return False
        os.waitid(os.P_PID, int(pid.read_text()), os.WEXITED | os.WNOWAIT)
        return True

    steps = commands(COUNT + "(folder / 'pid').write_text(str(os.getpid()))")
    outcomes = run_trials(trials, steps=steps, should_prune=ended_meanwhile)
    assert statuses(outcomes) == {"a": "finished", "b": "finished"}


def test_an_error_of_the_caller_stops_the_running_trials(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")

    def full_disk(trial: Trial) -> bool:
        if (trial.folder / "ready").exists():
            raise UserError("disk full")
        return False

    with pytest.raises(UserError, match="disk full"):
        run_trials([trial], steps=commands(STOPPABLE), should_prune=full_disk)
    record = read_record(trial.folder)
    assert record is not None and record.status == "interrupted"


def test_a_hopeless_trial_is_stopped_and_stays_so(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path, name) for name in "ab"]
    steps = commands("if 'a' == folder.parent.name:\n  (folder / 'ready').touch(); time.sleep(60)")
    wanted = {"a": "pruned", "b": "finished"}
    for _ in range(2):
        outcomes = run_trials(
            trials, steps=steps, should_prune=lambda trial: (trial.folder / "ready").exists()
        )
        assert statuses(outcomes) == wanted
    assert outcomes[0].record.attempts == 1


def test_trials_are_taken_when_a_worker_is_free(tmp_path: Path) -> None:
    ended: list[str] = []

    def lazily():
        for name in "abc":
            assert ended == list("abc"[: ord(name) - ord("a")])
            yield make_trial(tmp_path, name)

    run_trials(
        lazily(), steps=commands(""), on_end=lambda outcome: ended.append(outcome.trial.name)
    )
    assert ended == list("abc")


def test_what_a_killed_runner_left_running_is_waited_for(tmp_path: Path) -> None:
    """The command keeps running without its runner; a second one is never started beside it."""
    code = COUNT + "(folder / 'ready').touch(); wait(folder / 'go'); (folder / 'ended').touch()"
    script = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from test_runner import commands, make_trial, run_trials
run_trials([make_trial(Path({str(tmp_path)!r}), "a")], steps=commands({code!r}))
"""
    runner = subprocess.Popen([sys.executable, "-c", script])
    trial = make_trial(tmp_path, "a")
    while not (trial.folder / "ready").exists():
        assert runner.poll() is None
        time.sleep(0.02)
    runner.kill()
    runner.wait()

    def let_go(outcome: Outcome) -> None:
        if outcome.trial.name == "b":
            assert runs(trial) == 1 and not (trial.folder / "ended").exists()
            (trial.folder / "go").touch()

    # the second command of "a" sees 'go' at once
    trials = [trial, make_trial(tmp_path, "b")]
    check = COUNT + "assert 'b' == folder.parent.name or (folder / 'ended').exists()"
    outcomes = run_trials(trials, 2, steps=commands(check), on_end=let_go)
    assert set(statuses(outcomes).values()) == {"finished"}
    record = read_record(trial.folder)
    assert runs(trial) == 2 and record is not None
    assert (record.attempts, record.untimed_attempts) == (2, 1)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_trial_that_another_process_runs_is_left_for_later(
    tmp_path: Path, in_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trials = [make_trial(tmp_path, name) for name in "abc"]
    trials[0].folder.mkdir(parents=True)
    lock = (trials[0].folder / "trial.lock").open("a+")
    assert try_lock(lock)
    lock.write("process 7 on host\n")
    lock.flush()
    ended: list[str] = []

    def release(outcome: Outcome) -> None:
        ended.append(outcome.trial.name)
        if len(ended) == 2:
            lock.close()

    caplog.set_level("INFO", logger="wavegms")
    if in_order:
        timer = threading.Timer(0.5, lock.close)
        timer.start()
    outcomes = run_trials(trials, steps=commands(COUNT), on_end=release, in_order=in_order)
    assert ended == (list("abc") if in_order else list("bca"))
    assert set(statuses(outcomes).values()) == {"finished"} and runs(trials[0]) == 1
    told = [record.getMessage() for record in caplog.records if record.name == "wavegms"]
    assert told == ["a is run by process 7 on host: waiting for that to end"]
    assert "process 7 " not in (trials[0].folder / "trial.lock").read_text()


def test_waiting_for_a_trial_writes_nothing_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, made = make_trial(tmp_path, "a"), []

    def create(folder: Path) -> None:
        made.append(folder)
        create_run_folder(folder)

    monkeypatch.setattr(runner, "create_run_folder", create)
    create_run_folder(trial.folder)
    job = runner._Job(trial, {}, lambda _: (), retry_failed=False)
    with (trial.folder / "trial.lock").open("a") as lock:
        assert try_lock(lock)
        assert not any(job.take_lock() for _ in range(3))
    assert job.take_lock() and made == [trial.folder]
    job._release_lock()


def test_a_signal_ends_the_wait_for_another_process(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")
    trial.folder.mkdir(parents=True)
    with (trial.folder / "trial.lock").open("a") as lock:
        assert try_lock(lock)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            run_trials([trial], steps=commands(COUNT))
    assert runs(trial) == 0


@pytest.mark.parametrize(
    ("outer", "workers", "expected"),
    [
        (None, 2, {"a": "1", "b": "3"}),
        ("6,7,8,9", 2, {"a": "7", "b": "9"}),
        ("6,7,8,9", 1, {"a": "6,7,8,9", "b": "6,7,8,9"}),
        ("6,7", 2, {"a": "6", "b": "7"}),
        ("1,3", 2, {"a": "1", "b": "3"}),
        ("", 2, {"a": "", "b": ""}),
    ],
)
def test_workers_share_out_the_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outer: str | None,
    workers: int,
    expected: dict[str, str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outer is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outer)
    trials = [make_trial(tmp_path, name, GPUs=[1, 3]) for name in "ab"]
    see = "(folder / 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    run_trials(trials, workers, steps=commands(see))
    seen = {trial.name: (trial.folder / "seen").read_text() for trial in trials}
    assert seen == expected
    for trial in trials:
        assert len(load_config(trial.config_file).GPUs) == (1 if workers == 2 else 2)


@pytest.mark.parametrize(("outer", "expected"), [(None, "4"), ("3", "3")])
def test_workers_share_out_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outer: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if outer is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", outer)
    monkeypatch.setattr("experiments.trials.hardware.available_cores", lambda: 8)
    trials = [make_trial(tmp_path, "a"), make_trial(tmp_path, "b", GPUs=[])]
    see = "(folder / 'seen').write_text(os.environ['OMP_NUM_THREADS'])"
    run_trials(trials, 2, steps=commands(see))
    assert [(trial.folder / "seen").read_text() for trial in trials] == [expected, expected]


@pytest.mark.parametrize("workers", [0, -1])
def test_without_workers_nothing_can_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match="expected at least 1"):
        run_trials([make_trial(tmp_path, "a")], workers, steps=commands(""))


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("utils.locks.fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"trial\.lock cannot be locked.*another disk"):
        run_trials([make_trial(tmp_path, "a")], steps=commands(""))


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "a")
    trial.folder.mkdir(parents=True)
    (trial.folder / "trial.json").write_text('{"name"')
    with pytest.raises(UserError, match=r"trial\.json is not a trial's record.*Delete it"):
        run_trials([trial], steps=commands(""))
