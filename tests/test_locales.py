"""What is written as UTF-8 is read as UTF-8, whatever the locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.runs.run_cases import RunCases
from tests.small_run import ROOT

READS = """
import sys
from pathlib import Path

import sweep
from engine.runs.run_cases import RunCases
from utils.logs import log_to

folder = Path(sys.argv[1])
log_to(folder / "sweep.log")
cases = RunCases.read(folder / "cases.json")
assert cases is not None and cases.train == ("gr\\u00f6\\u00dfe_1",), cases
sweep.tell_report(folder, [])
"""


def test_a_terminal_that_lacks_letters_shows_others_in_their_place() -> None:
    program = (
        "from utils.entry import exit_from; exit_from(lambda: print('Dice \u2191 gr\u00f6\u00dfe'))"
    )
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="latin-1")
    assert (done.returncode, done.stdout) == (0, "Dice ? größe\n"), done.stderr


def test_bytes_of_a_name_that_are_not_text_reach_the_terminal_as_they_are() -> None:
    program = (
        "import os, sys; from utils.entry import exit_from; "
        "exit_from(lambda: [print(os.fsdecode(b'\\xe4'), file=f) for f in (sys.stdout, sys.stderr)] and 0)"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHON"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=env | {"LC_ALL": "C.UTF-8"}, capture_output=True)
    assert (done.stdout, done.stderr) == (b"\xe4\n", b"\\udce4\n")


def test_files_of_a_run_and_of_a_sweep_are_read_in_a_locale_of_ascii(tmp_path: Path) -> None:
    cases = RunCases(train=("größe_1",), held_out=(), test=())
    (tmp_path / "cases.json").write_text(cases.to_json(), encoding="utf-8")
    (tmp_path / "sweep.md").write_text("Dice 70 ± 2\n", encoding="utf-8")
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env = {**os.environ, **ascii_locale, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", READS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "Dice 70 ± 2" in done.stdout
    assert "Dice 70 ± 2" in (tmp_path / "sweep.log").read_text(encoding="utf-8")
