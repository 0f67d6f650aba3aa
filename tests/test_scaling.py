"""Two processes learn what one learns with batches twice as large; they stop and resume alike.

Both score the statistics of batch normalisation that are kept.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import train
import valid
from engine.runs.saved_state import load_state
from scoring.results import read_results
from tests.cases_on_disk import write_data_set
from tests.small_run import ROOT, arguments
from tests.test_training import history, poison
from utils.errors import UserError

SETTINGS = (
    "val_fraction=0.23",  # 3 of 13: two processes do not share them evenly
    "accumulate=2",
    "clip_norm=1",
    "ema_decay=0.5",
    "skip_nonfinite=1",
    "lr=1e-4",  # at a larger one AdamW lifts rounding errors above the tolerance, in one process too
)


def test_two_processes_learn_like_one(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data_set(tmp_path, train=13, test=2, size=32)
    with monkeypatch.context() as patch:
        poison(patch, {2})
        train.main(arguments(tmp_path, vae, *SETTINGS, "batch_size=2", out="one"))
    command = arguments(tmp_path, vae, *SETTINGS, "batch_size=1", out="two")
    one, two = (tmp_path / name / "epochs_2" for name in ("one", "two"))
    launches = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "launched_train.py"), str(two), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    told = launches.stdout + launches.stderr
    assert launches.returncode == 0, told
    assert launches.stdout.splitlines()[-1] == "SIGTERM finished finished", told

    ours, expected = history(two), history(one)
    assert len(ours) == len(expected) == 2
    for row, other in zip(ours, expected, strict=True):
        for key, value in other.items():
            # a rounding error may move a pixel over the threshold, a case counted twice moves more
            tolerance = 1e-3 if key.startswith("val_") else 1e-5 * float(value)
            assert float(row[key]) == pytest.approx(float(value), abs=tolerance), key
    states = [load_state(folder) for folder in (one, two)]
    assert [state["progress"]["skipped"] for state in states if state] == [1, 1]

    log = (two / "logs" / "train.log").read_text()
    assert log.count("effective batch: 4 = 1 x 2 accumulated x 2 process(es)") == 2
    # four batches per epoch, of five that there are cases for; the stop comes in the second of the second
    assert log.count("resuming after epoch 1, batch 2") == 1
    assert [log.count(f"epoch {n}/2") for n in (1, 2)] == [1, 1]
    assert len(list(two.glob("logs/events*"))) == 2

    normalised = two.parent / "epochs_1"
    valid.main(["--run", str(normalised)])
    scores = read_results(normalised / "valid_results_blobs").values("DSC")
    (row,) = history(normalised)
    assert float(row["test_dice"]) == pytest.approx(scores.mean(), abs=2e-3), "but for rounding"

    with pytest.raises(UserError, match="processes: 2 in the saved run, 1 now"):
        train.main(command)
