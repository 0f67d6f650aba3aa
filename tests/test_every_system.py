"""Each system trains, resumes after a stop, validates and predicts, through the same entry points."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest

import predict
import train
import valid
from tests.small_run import arguments
from utils.errors import UserError

SYSTEMS = {
    "litevae": ("vae_model=litevae",),
    "without alignment": ("vae_model=litevae", "align_loss=false"),
    "tiny_vae": ("vae_model=tiny_vae",),
    "sft": ("vae_model=tiny_vae", "guidance_method=wavelet"),
    "gms": ("vae_model=sd_vae",),
    "unet": ("model=smp/Unet?encoder=resnet18",),
    "own network": ("model=tests.own_networks:build",),
    "own loss": ("model=tests.own_networks:with_own_loss",),
}
needs_smp = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None,
    reason="segmentation-models-pytorch is not installed",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_smp) if n == "unet" else n for n in SYSTEMS]
)
def test_trains_goes_on_and_validates(
    name: str, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.autoencoders import save_sd_vae

    weights = save_sd_vae(tmp_path / "sd") if name == "gms" else vae
    command = arguments(tmp_path, weights, *SYSTEMS[name])
    with monkeypatch.context() as patch:
        from engine.training.trainer import Trainer

        finish = Trainer._finish_epoch

        def fail_in_second_epoch(self, *args):
            if self.progress.epoch == 1:
                raise UserError("stopped here")
            finish(self, *args)

        patch.setattr(Trainer, "_finish_epoch", fail_in_second_epoch)
        with pytest.raises(UserError, match="stopped here"):
            train.main(command)
    train.main(command)
    folder = tmp_path / "run" / "epochs_2"
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert ("align" in rows[0]) == (name == "litevae")
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    valid.main(command)
    summary = json.loads((folder / "valid_results_blobs" / "summary.json").read_text())
    assert summary["count"] == 3
    if name == "unet":  # whose config names a VAE that it does not have
        report = (folder / "valid_results_blobs" / "report.html").read_text()
        assert "smp/Unet?encoder=resnet18 on blobs" in report and "litevae" not in report
    predict.main(
        ["--run", str(folder), str(tmp_path / "blobs" / "images"), "--out", str(tmp_path / "out")]
    )
    assert len(list((tmp_path / "out").glob("**/masks/*.png"))) == 12
