"""Training in bf16 on a CPU, for processors that have units for it; all of them can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train
import valid
from tests.small_run import arguments
from tests.test_training import stop_and_resume
from tests.test_training_on_gpu import check_step_near_float32

AMX = {"amx_bf16": True, "avx512_bf16": True}
AVX2 = {"amx_bf16": False, "avx512_bf16": False}
FASTER_IN_BF16 = (
    "this processor has units for bf16: precision=bf16 may be faster, see docs/performance.md"
)
SLOWER_IN_BF16 = (
    "warning: this processor has no instructions for bf16: precision=fp32 is likely faster"
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs go to the GPU here")


@pytest.mark.parametrize(
    ("processor", "precision", "note"),
    [
        (AMX, "auto", FASTER_IN_BF16),
        (AMX, "fp32", ""),
        (AMX, "bf16", ""),
        (AVX2, "auto", ""),
        (AVX2, "bf16", SLOWER_IN_BF16),
        (AVX2 | {"avx512_bf16": True}, "bf16", ""),
        ({"architecture": "aarch64"}, "auto", ""),
        ({"architecture": "aarch64"}, "bf16", ""),
    ],
)
def test_the_plan_says_which_precision_is_faster(
    processor: dict[str, object], precision: str, note: str, tmp_path: Path, vae: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    train.main([*arguments(tmp_path, vae, f"precision={precision}"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    (device,) = (i for i, line in enumerate(lines) if line.startswith("device: CPU, "))
    assert lines[device].endswith(", bf16" if precision == "bf16" else ", fp32")
    assert lines[device + 1].startswith(note or "checkpoint chosen on ")


def test_a_step_is_near_that_in_float32(vae: Path) -> None:
    check_step_near_float32(False, "bf16", of_loss=2e-2, cosine=0.95, vae=vae)


def test_a_stopped_run_goes_on_exactly_and_is_scored_in_bf16(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, differs = stop_and_resume(tmp_path, vae, monkeypatch, "precision=bf16")
    assert moved > 0
    assert differs == 0
    valid.main(["--run", str(tmp_path / "parts" / "epochs_2")])
    (summary,) = tmp_path.glob("parts/epochs_2/valid_results_*/summary.json")
    assert json.loads(summary.read_text())["provenance"]["precision"] == "bf16"
