from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PosixPath

import pytest

from tests.small_run import arguments

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read once, at the first product on a GPU
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("WAVEGMS_TEST_GPU", "")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With WAVEGMS_TEST_GPU only the tests for a GPU run; some of the others cannot pass on one."""
    if os.environ["CUDA_VISIBLE_DEVICES"]:
        for item in items:
            if item.get_closest_marker("gpu") is None:
                item.add_marker(pytest.mark.skip(reason="is for the CPU: unset WAVEGMS_TEST_GPU"))


class ReferenceData(PosixPath):
    """A folder of reference data; a test that asks it (by `/`) for a part that it lacks is skipped."""

    def __truediv__(self, part: str) -> Path:  # type: ignore[override]
        folder = Path(self) / part
        if not folder.is_dir():
            pytest.skip(
                f"needs the reference data in {self.name}/{part} beside the checkout, absent here"
            )
        return folder


@pytest.fixture
def shared() -> Path:
    """Folder of reference data beside the checkout; tests that use it are skipped without it."""
    return ReferenceData(SHARED)


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Tiny-VAE with random weights: enough for everything but accuracy."""
    from tests.autoencoders import save_tiny_vae

    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """Folder of a finished run of two epochs and its data; tests copy it by `finished`."""
    import train

    folder = tmp_path_factory.mktemp("a_run")
    train.main(arguments(folder, vae, "save_freq=1"))
    return folder


@pytest.fixture
def finished(tmp_path: Path, a_run: Path) -> Path:
    """A copy of `a_run` in `tmp_path`; returns the folder of the run."""
    shutil.copytree(a_run / "blobs", tmp_path / "blobs")
    shutil.copytree(a_run / "run", tmp_path / "run")
    return tmp_path / "run" / "epochs_2"


@pytest.fixture(autouse=True)
def fresh_engine() -> Iterator[None]:
    """What the engine sets in the process, a test must not see from another.

    That is Accelerate's state, the choice of kernels, and the processor's flushing of denormal numbers,
    without which Hypothesis refuses to draw floats.
    """
    yield
    if "torch" in sys.modules:
        import torch

        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
