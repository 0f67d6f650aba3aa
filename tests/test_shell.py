"""train.sh and valid.sh, with a `python` on the PATH that writes down what it is called with."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
[ "$1" = utils/requirements.py ] && exit 0
trap 'echo saved >> calls; exit 143' TERM
echo "$@" >> calls
case "$*" in
    *datasets.prepare*) mkdir -p "datasets/$3" && touch "datasets/$3/$3_train_test_names.json" ;;
    *slow=1*) while :; do sleep 0.05; done ;;
    *fail=1*) exit 3 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("train.sh", "valid.sh", "requirements.txt", "utils", "configs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def start(checkout: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(checkout),
    }
    return subprocess.Popen(
        ["sh", str(checkout / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell cannot trap what is ignored when it starts, as SIGINT is in background jobs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def calls(checkout: Path, script: str, *arguments: str) -> list[str]:
    process = start(checkout, script, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return (checkout / "calls").read_text().splitlines()


def prepare(checkout: Path, name: str) -> None:
    (checkout / "datasets" / name).mkdir(parents=True)
    (checkout / "datasets" / name / f"{name}_train_test_names.json").touch()


def test_a_fresh_clone_trains_on_the_phantom(checkout: Path) -> None:
    assert calls(checkout, "train.sh", "epochs=2") == [
        "-m datasets.prepare phantom",
        "train.py --config configs/phantom_train.yaml epochs=2",
        "valid.py --config configs/phantom_valid.yaml epochs=2",
    ]


def test_every_prepared_set_is_trained_and_no_other(checkout: Path) -> None:
    prepare(checkout, "busi")
    prepare(checkout, "my-set")
    prepare(checkout, "tests-only")
    (checkout / "datasets" / "tests-only" / "dataset.json").write_text(
        '{\n "train": 0,\n "test": 9\n}'
    )
    own = (
        "pickle_file_path=datasets/my-set/my-set_train_test_names.json "
        "snapshot_path=ckpt/wave_gms_my-set"
    )
    assert calls(checkout, "train.sh") == [
        "train.py --config configs/busi_train.yaml",
        "valid.py --config configs/busi_valid.yaml",
        f"train.py --config configs/own_train.yaml {own}",
        f"valid.py --config configs/own_valid.yaml {own}",
    ]


def test_a_named_phantom_is_drawn_beside_other_sets(checkout: Path) -> None:
    prepare(checkout, "busi")
    assert calls(checkout, "train.sh", "lr=1e-3", "phantom")[:2] == [
        "-m datasets.prepare phantom",
        "train.py --config configs/phantom_train.yaml lr=1e-3",
    ]


def test_another_named_set_draws_no_phantom(checkout: Path) -> None:
    assert calls(checkout, "train.sh", "glas")[0] == "train.py --config configs/glas_train.yaml"


def test_validation_alone(checkout: Path) -> None:
    process = start(checkout, "valid.sh")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "no data set is prepared" in output
    assert calls(checkout, "valid.sh", "busi", "epochs=3") == [
        "valid.py --config configs/busi_valid.yaml epochs=3"
    ]


def test_validation_of_all_leaves_out_what_has_no_weights(checkout: Path) -> None:
    for name in ("busi", "glas", "mine"):
        prepare(checkout, name)

    def validated(*arguments: str) -> list[str]:
        (checkout / "calls").unlink(missing_ok=True)
        return calls(checkout, "valid.sh", *arguments)

    every = validated()
    assert len(every) == 3, "without any run each one is asked for, and says what is missing"
    run = checkout / "ckpt" / "wave_gms_mine" / "epochs_4"
    provided = checkout / "ckpt" / "provided_models" / "busi"
    for folder, file in ((run, "best_model.pth"), (provided, "config.yaml")):
        folder.mkdir(parents=True)
        (folder / file).touch()
    assert validated() == [every[0], every[2]]
    assert len(validated("glas")) == 1
    assert len(validated("snapshot_path=elsewhere")) == 3


@pytest.mark.parametrize(
    ("script", "setting"),
    [
        ("train.sh", "snapshot_path=ckpt/train"),
        ("train.sh", "save_seg_img_path=masks"),
        ("valid.sh", "save_seg_img_path=masks"),
    ],
)
def test_one_folder_for_several_data_sets_is_refused(
    checkout: Path, script: str, setting: str
) -> None:
    """Named, or all that are prepared; of one alone it is the folder."""
    prepare(checkout, "busi")
    prepare(checkout, "glas")
    for named in ((), ("busi", "mine")):
        process = start(checkout, script, *named, "epochs=2", setting)
        output, _ = process.communicate(timeout=300)
        key, both = setting.split("=")[0], " ".join(named or ("busi", "glas"))
        assert process.returncode == 2
        assert f"error: {key} is one folder for all of {both}: start the script once for" in output
    assert not (checkout / "calls").exists()
    assert calls(checkout, script, "busi", setting)[-1].endswith(f"busi_valid.yaml {setting}")
    (checkout / "calls").unlink()
    assert len(calls(checkout, "valid.sh", "busi", "glas", "snapshot_path=train")) == 2


@pytest.mark.parametrize("script", ["train.sh", "valid.sh"])
def test_options_of_the_scripts_in_python_are_refused(checkout: Path, script: str) -> None:
    process = start(checkout, script, "phantom", "--dry-run")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "got --dry-run; options go to python train.py" in output
    assert not (checkout / "calls").exists()


def test_a_failure_stops_the_script_with_its_code(checkout: Path) -> None:
    process = start(checkout, "train.sh", "glas", "fail=1")
    process.communicate(timeout=300)
    assert process.returncode == 3
    assert len((checkout / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_which_saves_first(checkout: Path, number: signal.Signals) -> None:
    process = start(checkout, "train.sh", "glas", "slow=1")
    deadline = time.monotonic() + 300
    while not (checkout / "calls").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == 143
    assert (checkout / "calls").read_text().splitlines()[1:] == ["saved"]


def test_requirements_are_compared_with_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("numpy>=1.0  # arrays\n\n")
    (tmp_path / "more.txt").write_text("-r base.txt\npytest>=5,<900\n")
    (tmp_path / "unmet.txt").write_text("-r more.txt\nnumpy>=999\nno-such-package-here\n")

    def check(name: str) -> tuple[int, list[str]]:
        command = [sys.executable, "utils/requirements.py", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stderr.split("\n")[:-1]

    assert check("more.txt")[0] == 0
    assert check("unmet.txt") == (1, ["numpy>=999", "no-such-package-here"])


SYSTEM_PYTHON = """#!/bin/sh
case "$*" in
    *venv*) echo "$@" >> calls; rm -rf .venv; mkdir -p .venv/bin; cp bin/in_venv .venv/bin/python ;;
esac
"""
PYTHON_IN_VENV = """#!/bin/sh
case "$*" in
    "-m pip --version") [ -e .venv/pip ] || exit 1 ;;
    "-m ensurepip") echo "$@" >> calls; touch .venv/pip ;;
    "-m pip install"*) echo pip install >> calls ;;
    *valid.py*) echo valid.py >> calls ;;
esac
"""


@pytest.fixture
def without_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on a machine with a Python, in no environment."""
    for name, program in (("python3", SYSTEM_PYTHON), ("in_venv", PYTHON_IN_VENV)):
        (checkout / "bin" / name).write_text(program)
        (checkout / "bin" / name).chmod(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", "")
    monkeypatch.setenv("CONDA_PREFIX", "")
    return checkout


def run_valid(checkout: Path) -> subprocess.CompletedProcess[str]:
    (checkout / "calls").unlink(missing_ok=True)
    environment = os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", str(checkout / "valid.sh"), "busi"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def calls_anew(checkout: Path) -> list[str]:
    done = run_valid(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return (checkout / "calls").read_text().splitlines()


def test_an_environment_is_made_once_and_again_where_its_python_is_gone(
    without_environment: Path,
) -> None:
    made = ["-m venv --clear .venv", "-m ensurepip", "pip install", "valid.py"]
    assert calls_anew(without_environment) == made
    assert calls_anew(without_environment) == ["valid.py"]
    python = without_environment / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(without_environment / "python3.9_of_the_system")
    (without_environment / ".venv" / "pip").unlink()
    assert calls_anew(without_environment) == made


def test_the_environment_of_the_user_is_not_erased_where_it_lacks_pip(
    without_environment: Path,
) -> None:
    environment = without_environment / ".venv"
    (environment / "bin").mkdir(parents=True)
    shutil.copy(without_environment / "bin" / "in_venv", environment / "bin" / "python")
    assert calls_anew(without_environment) == ["-m ensurepip", "pip install", "valid.py"]


def test_an_environment_of_another_python_is_told(without_environment: Path) -> None:
    python = without_environment / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\ncase "$*" in *version_info*) exit 1 ;; --version) echo Python 3.9.6 ;; esac\n'
    )
    python.chmod(0o755)
    done = run_valid(without_environment)
    assert done.returncode == 2
    assert ".venv has Python 3.9.6, but Python 3.10 to 3.13 is needed: move" in done.stderr
    assert python.exists() and not (without_environment / "calls").exists()


@pytest.mark.parametrize(
    "script", [*ROOT.glob("*.sh"), ROOT / "utils" / "shell.sh"], ids=lambda path: path.name
)
def test_substitutions_hold_no_bare_pattern(script: Path) -> None:
    """The shell of macOS, bash 3.2, ends `$(` at the `)` of a pattern that no `(` precedes."""
    text = script.read_text()
    substitutions = re.findall(r"\$\((.*\bcase\b.*)\)", text)
    for patterns in (re.findall(r"(?:\bin|;;) (?!esac)(\S+)", each) for each in substitutions):
        assert all(pattern.startswith("(") for pattern in patterns), patterns
    assert script.name != "train.sh" or substitutions
