"""Weights written to be passed on: 16 bits, in a folder that stands for a run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

import export
import predict
from tests.cases_on_disk import blob_case
from tests.run_on_disk import write_run, write_vae
from utils.config import load_config
from utils.errors import UserError


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


def test_exported_weights_stand_for_the_run(tmp_path: Path, vae: Path) -> None:
    run, shared = tmp_path / "run" / "epochs_1", tmp_path / "shared"
    write_run(run, vae, "threshold=0.45")
    export.main(["--run", str(run), "--out", str(shared / "best_model.safetensors")])
    assert {file.name for file in shared.iterdir()} == {"best_model.safetensors", "config.yaml"}
    assert len({file.stat().st_mode for file in shared.iterdir()}) == 1, "one is kept from others"
    with safe_open(shared / "best_model.safetensors", "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    original = torch.load(run / "best_model.pth", weights_only=True)
    assert {f"{part}.{key}" for part, state in original.items() for key in state} == set(kept)
    assert {value.dtype for value in kept.values()} == {torch.float16}

    image, _ = blob_case(0)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    for folder, out in ((run, "original"), (shared, "passed_on")):
        predict.main(["--run", str(folder), str(tmp_path / "images"), "--out", str(tmp_path / out)])
    found = [
        cv2.imread(str(tmp_path / out / "probabilities" / "a.png"), cv2.IMREAD_UNCHANGED) / 65535.0
        for out in ("original", "passed_on")
    ]
    assert found[0].std() > 0.01
    np.testing.assert_allclose(found[1], found[0], atol=0.02)


def test_a_runs_own_weights_come_first(tmp_path: Path, vae: Path) -> None:
    from engine.runs.trained_run import find_run

    run = tmp_path / "run" / "epochs_1"
    write_run(run, vae)
    export.main(["--run", str(run), "--out", str(run / "best_model.safetensors")])
    assert find_run(run)[1] == run / "best_model.pth"
    (run / "best_model.pth").unlink()
    assert find_run(run)[1] == run / "best_model.safetensors"


def test_weights_beyond_16_bits_are_refused(tmp_path: Path, vae: Path) -> None:
    run = tmp_path / "run" / "epochs_1"
    write_run(run, vae)
    parts = torch.load(run / "best_model.pth", weights_only=True)
    next(iter(parts["model"].values())).mul_(1e9)
    torch.save(parts, run / "best_model.pth")
    with pytest.raises(UserError, match=r"the weight 'model\..*16 bits hold at most 65504"):
        export.main(["--run", str(run), "--out", str(tmp_path / "best_model.safetensors")])
    next(iter(parts["model"].values())).fill_(float("nan"))
    torch.save(parts, run / "best_model.pth")
    with pytest.raises(UserError, match=r"the weight 'model\..*no numbers: .* damaged"):
        export.main(["--run", str(run), "--out", str(tmp_path / "best_model.safetensors")])
    assert not (tmp_path / "best_model.safetensors").exists()


def test_the_config_of_another_run_is_kept(tmp_path: Path, vae: Path) -> None:
    run, other = tmp_path / "run" / "epochs_1", tmp_path / "other" / "epochs_1"
    write_run(run, vae)
    write_run(other, vae, "threshold=0.3")
    before = (other / "config.yaml").read_text()
    with pytest.raises(UserError, match="is the config of another run"):
        export.main(["--run", str(run), "--out", str(other / "best_model.safetensors")])
    assert (other / "config.yaml").read_text() == before
    assert not (other / "best_model.safetensors").exists()

    content = yaml.safe_load((run / "config.yaml").read_text())
    reordered = tmp_path / "shared" / "config.yaml"  # the same config, as another version wrote it
    reordered.parent.mkdir()
    reordered.write_text(yaml.safe_dump(content, sort_keys=True))
    export.main(["--run", str(run), "--out", str(reordered.parent / "best_model.safetensors")])


@pytest.mark.parametrize("beside", [True, False], ids=["a run", "a config elsewhere"])
def test_settings_for_loading_do_not_change_the_record(
    tmp_path: Path, vae: Path, beside: bool
) -> None:
    run, out = tmp_path / "run" / "epochs_1", tmp_path / "shared" / "best_model.safetensors"
    write_run(run, vae, "threshold=0.45")
    config = run / "config.yaml"
    trained = load_config(config)
    model = ["--run", str(run)]
    if not beside:
        config = config.rename(tmp_path / "config.yaml")
        model = ["--config", str(config), "--weights", str(run / "best_model.pth")]
    settings = ["--set", "threshold=0.3", "--set", "epochs=7"]
    export.main([*model, *settings, "--out", str(out)])
    written = load_config(out.with_name("config.yaml"))
    changed = {"threshold": 0.3, "epochs": 7}
    expected = trained if beside else trained.model_copy(update=changed)
    assert written == expected.model_copy(update={"model_weight": None})


@pytest.mark.parametrize("name", ["model.onnx", "best_model.safetensors"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, vae: Path, name: str) -> None:
    run = tmp_path / "run" / "epochs_1"
    write_run(run, vae, "vae_model=tiny_vae")
    (tmp_path / "file").write_text("no folder")
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime", reason="exporting needs onnxruntime (optional)")
    with pytest.raises(UserError, match=r"cannot write .*name another file by --out"):
        export.main(["--run", str(run), "--out", str(tmp_path / "file" / name)])


@pytest.mark.parametrize("name", ["best_model.pth", "model.txt", "model"])
def test_other_names_are_refused(tmp_path: Path, vae: Path, name: str) -> None:
    run = tmp_path / "run" / "epochs_1"
    write_run(run, vae)
    before = (run / "best_model.pth").read_bytes()
    with pytest.raises(SystemExit):
        export.main(["--run", str(run), "--out", str(run / name)])
    assert (run / "best_model.pth").read_bytes() == before
    assert {file.name for file in run.iterdir()} == {"best_model.pth", "config.yaml"}


def test_the_checkpoint_itself_is_not_replaced(tmp_path: Path, vae: Path) -> None:
    run, shared = tmp_path / "run" / "epochs_1", tmp_path / "shared" / "best_model.safetensors"
    write_run(run, vae)
    export.main(["--run", str(run), "--out", str(shared)])
    before = shared.read_bytes()
    with pytest.raises(UserError, match="is the checkpoint itself"):
        export.main(["--run", str(shared.parent), "--out", str(shared)])
    assert shared.read_bytes() == before
