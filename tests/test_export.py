from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import export
import predict
from tests.autoencoders import save_sd_vae
from tests.cases_on_disk import blob_case
from tests.run_on_disk import ROOT, write_run, write_vae
from utils.errors import UserError

onnx = pytest.importorskip("onnx", reason="exporting needs onnx (optional)")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (optional)")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    folder = tmp_path_factory.mktemp("experiment") / "epochs_1"
    write_run(folder, vae, "threshold=0.45")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    export.main(["--run", str(run)])
    return run / "model.onnx"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """A run that exports in a second."""
    folder = tmp_path_factory.mktemp("small") / "epochs_1"
    write_run(folder, vae, "vae_model=tiny_vae", "ch_mult=[1, 1, 1, 1]")
    return folder


def test_the_file_says_what_it_is(model: Path, run: Path) -> None:
    from utils.files import sha256

    session = onnxruntime.InferenceSession(str(model))
    (image,), (probability,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["B", 3, 32, 32], "tensor(float)")
    assert (probability.name, probability.shape[1:]) == ("probability", [1, 32, 32])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["image_size"] == "32" and metadata["threshold"] == "0.45"
    assert metadata["input"].startswith("RGB in [0, 1], resized to 32 x 32")
    assert metadata["sha256 checkpoint"] == sha256(run / "best_model.pth")
    assert len(metadata["sha256 Tiny-VAE decoder"]) == 64
    assert str(run) not in model.read_bytes().decode("latin-1")
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    "settings",
    [
        ("vae_model=litevae",),
        ("vae_model=tiny_vae", "channels_last=true", "image_size=40"),
        ("vae_model=tiny_vae", "guidance_method=wavelet"),
    ],
)
def test_any_batch_agrees_with_pytorch(tmp_path: Path, vae: Path, settings: tuple[str]) -> None:
    import torch

    from engine.prediction.backends import OnnxBackend
    from engine.prediction.onnx_export import example_images
    from engine.runs.trained_run import load_system

    folder = tmp_path / "epochs_1"
    config = write_run(folder, vae, *settings)
    export.main(["--run", str(folder), "--out", str(tmp_path / "model.onnx")])
    backend = OnnxBackend(tmp_path / "model.onnx")
    system = load_system(config, folder / "best_model.pth")
    for count in (1, 4, 7):
        images = example_images(count, config.image_size)
        with torch.inference_mode():
            expected = system(torch.from_numpy(images)).numpy()[:, 0]
        assert expected.std() > 0.01
        np.testing.assert_allclose(backend(images), expected, atol=1e-4)


def test_a_baseline_exports_too(tmp_path: Path, vae: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="baselines need it (optional)")
    folder = tmp_path / "epochs_1"
    write_run(folder, vae, "model=smp/Unet?encoder=resnet18")
    export.main(["--run", str(folder)])
    assert (folder / "model.onnx").is_file()


def test_a_file_is_named_after_the_weights_that_it_holds(small: Path, tmp_path: Path) -> None:
    from utils.files import sha256

    folder = tmp_path / "epochs_1"
    shutil.copytree(small, folder)
    other = folder / "epoch_1.pth"
    shutil.copy(folder / "best_model.pth", other)
    (folder / "model.onnx").write_bytes(b"of the best model")
    export.main(["--run", str(folder), "--weights", str(other)])
    assert (folder / "model.onnx").read_bytes() == b"of the best model"
    metadata = onnxruntime.InferenceSession(str(folder / "epoch_1.onnx")).get_modelmeta()
    assert metadata.custom_metadata_map["sha256 checkpoint"] == sha256(other)


def test_gms_exports_too(tmp_path: Path) -> None:
    folder = tmp_path / "epochs_1"
    write_run(folder, save_sd_vae(tmp_path / "sd"), "vae_model=sd_vae")
    export.main(["--run", str(folder)])
    assert (folder / "model.onnx").is_file()


def test_a_graph_that_differs_is_not_kept(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"an older one")
    session = onnxruntime.InferenceSession

    class Differing:
        def __init__(self, *args: object, **options: object) -> None:
            self.session = session(*args, **options)

        def run(self, outputs: object, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            (probability,) = self.session.run(outputs, feeds)
            probability[-1, 0, 0, 0] += 2e-4 if len(probability) == 5 else 0
            return [probability]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Differing)
    with pytest.raises(UserError, match=r"by 0\.0002 for a batch of 5, over 0\.0001"):
        export.main(["--run", str(small), "--out", str(out)])
    assert out.read_bytes() == b"an older one" and list(tmp_path.iterdir()) == [out]
    export.main(["--run", str(small), "--out", str(out), "--tolerance", "0.001"])
    assert out.stat().st_size > 100_000


def test_a_model_that_says_nothing_is_not_kept(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.runs import trained_run

    load = trained_run.load_system

    def blank(*args: Any) -> Any:
        system: Any = load(*args)
        system.vae.grey_bias.fill_(-1000)
        return system

    monkeypatch.setattr(trained_run, "load_system", blank)
    with pytest.raises(UserError, match="0 or 1 everywhere"):
        export.main(["--run", str(small), "--out", str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
def test_a_target_that_cannot_be_written_is_told_first(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("engine.runs.trained_run.load_system", never)
    (tmp_path / f"folder.{ending}").mkdir()
    (tmp_path / "file").touch()
    for name in (f"folder.{ending}", f"file/model.{ending}", f"/proc/q/model.{ending}"):
        with pytest.raises(
            UserError, match=rf"cannot write .*{name}: .*; name another file by --out"
        ):
            export.main(["--run", str(small), "--out", str(tmp_path / name)])
    with pytest.raises(AssertionError, match="loaded"):
        export.main(["--run", str(small), "--out", str(tmp_path / "new" / f"model.{ending}")])
    assert not (tmp_path / "new").exists(), "what was tried is not left behind"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install .*{package}"):
        export.main(["--run", str(small), "--out", str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


def test_prediction_without_torch(model: Path, run: Path, tmp_path: Path) -> None:
    import cv2

    pictures = tmp_path / "in"
    pictures.mkdir()
    for index in range(3):
        cv2.imwrite(str(pictures / f"scan_{index}.png"), blob_case(index, 50)[0])
    options = ["--tta", "--tiles"]
    assert (
        predict.main(["--run", str(run), str(pictures), "--out", str(tmp_path / "a"), *options])
        == 0
    )

    arguments = ["--onnx", str(model), str(pictures), "--out", str(tmp_path / "b"), *options]
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'accelerate', 'pydantic'): sys.modules[name] = None\n"
        f"import predict\n"
        f"sys.exit(predict.main({arguments!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for index in range(3):
        torch_map, onnx_map = (
            cv2.imread(str(tmp_path / out / "probabilities" / f"scan_{index}.png"), -1)
            for out in "ab"
        )
        assert torch_map is not None and onnx_map is not None
        np.testing.assert_allclose(torch_map / 65535, onnx_map / 65535, atol=1e-4)
    assert '"threshold": 0.45' in (tmp_path / "b" / "settings.json").read_text()


def test_a_model_for_upright_images_stays_one(tmp_path: Path, vae: Path, model: Path) -> None:
    from engine.prediction.backends import OnnxBackend

    tiny = ("vae_model=tiny_vae", "ch_mult=[1, 1, 1, 1]")
    write_run(tmp_path / "epochs_1", vae, *tiny, "keep_upright=true")
    export.main(["--run", str(tmp_path / "epochs_1")])
    assert OnnxBackend(tmp_path / "epochs_1" / "model.onnx").orientations == 2
    assert OnnxBackend(model).orientations == 8

    scan = tmp_path / "scan.png"
    cv2.imwrite(str(scan), np.full((20, 30, 3), 99, np.uint8))
    arguments = ["--run", str(tmp_path / "epochs_1"), str(scan), "--out", str(tmp_path / "out")]
    assert predict.main([*arguments, "--tta"]) == 0
    assert '"orientations": 2' in (tmp_path / "out" / "settings.json").read_text()


def test_other_files_are_refused(tmp_path: Path, model: Path) -> None:
    from engine.prediction.backends import OnnxBackend

    path = tmp_path / "other.onnx"
    with pytest.raises(UserError, match="no ONNX file"):
        OnnxBackend(path)
    path.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        OnnxBackend(path)
    foreign = onnx.load(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    with pytest.raises(UserError, match="was not written by this export"):
        OnnxBackend(path)


def test_predicting_by_onnx_without_the_package(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.prediction.backends import OnnxBackend

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install 'onnxruntime"):
        OnnxBackend(model)
