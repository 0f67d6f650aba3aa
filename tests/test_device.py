"""`GPUs` chooses devices and starts one process each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from engine.device import check_gpu, make_accelerator, use_gpus
from engine.out_of_memory import reporting_out_of_memory
from tests.run_on_disk import ROOT
from utils.config import load_config
from utils.errors import UserError

PASSES_ON = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10),
    reason="torchrun lets signals be chosen from torch 2.10 on",
)
SIGNALS_TO_HANDLE = ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE")


class Replaced(Exception):
    """Instead of the program that `os.execv` would start."""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs that nothing was set for; what `use_gpus` sets is undone."""

    def replace(program: str, arguments: list[str]) -> None:
        raise Replaced(program, arguments)

    def visible() -> int:
        """As CUDA counts: up to the first one that is not there."""
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = ["0", "1"] if chosen is None else chosen.split(",")
        return len(list(takewhile(lambda name: name in ("0", "1", "GPU-a", "GPU-b"), names)))

    monkeypatch.setattr(torch.cuda, "device_count", visible)
    monkeypatch.setattr(os, "execv", replace)
    for name in ("CUDA_VISIBLE_DEVICES", *SIGNALS_TO_HANDLE, "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_processes_share_data_where_another_package_is_called_datasets(tmp_path: Path) -> None:
    """Accelerate asks whether Hugging Face's `datasets` is installed, and would import ours."""
    installed = tmp_path / "datasets-3.0.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 3.0.0\n")
    program = """
import importlib.metadata
assert importlib.metadata.version("datasets") == "3.0.0"
from engine.device import make_accelerator
make_accelerator("fp32", 1, deterministic=False)
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
shards = [prepare_data_loader(DataLoader(range(4)), num_processes=2, process_index=i) for i in (0, 1)]
print([batch.item() for shard in shards for batch in shard])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[0, 2, 1, 3]\n", done.stderr


def test_one_gpu_is_made_the_only_one(two_gpus: pytest.MonkeyPatch) -> None:
    use_gpus([1])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_an_empty_list_hides_all_gpus(two_gpus: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs" / "base.yaml", ["GPUs=[]", "pickle_file_path=x.json"])
    use_gpus(config.GPUs)
    assert torch.cuda.device_count() == 0


def test_several_start_a_process_each(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(sys, "argv", ["train.py", "--config", "a.yaml"])
    with pytest.raises(Replaced) as caught:
        use_gpus([0, 1])
    program, arguments = caught.value.args
    assert program == arguments[0] == sys.executable
    assert arguments[1:3] == ["-m", "torch.distributed.run"]
    assert arguments[-4:] == ["--nproc-per-node=2", "train.py", "--config", "a.yaml"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert all("SIGUSR1" in os.environ[name] for name in SIGNALS_TO_HANDLE)


def launched_by_torchrun(tmp_path: Path, number: int, before: str = "") -> tuple[int, str]:
    """Start a torchrun as `use_gpus` does, send it a signal; its exit code, and what the worker got of it."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        """
import signal, sys, time
from itertools import takewhile
from pathlib import Path
folder = Path(sys.argv[1])
def stop(number, frame):
    (folder / "got").write_text(signal.Signals(number).name)
    sys.exit(3)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP): signal.signal(number, stop)
(folder / "ready").touch()
end = time.monotonic() + 60
while time.monotonic() < end and not (folder / "enough").exists(): time.sleep(0.05)
"""
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command = [sys.executable, *launch, str(worker), str(tmp_path)]
    program = f"""
import os, signal, sys
{before}
from engine.device import pass_on_signals
pass_on_signals()
os.execv(sys.executable, {command!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        if number == signal.SIGHUP:
            time.sleep(0.5)
            (tmp_path / "enough").touch()
        code = process.wait(60)
    finally:
        (tmp_path / "enough").touch()
        process.kill()
    got = tmp_path / "got"
    return code, got.read_text() if got.exists() else ""


@PASSES_ON
def test_torchrun_passes_on_what_schedulers_send(tmp_path: Path) -> None:
    code, got = launched_by_torchrun(tmp_path, signal.SIGUSR1)
    assert (code, got) == (1, "SIGUSR1")


@PASSES_ON
def test_torchrun_goes_on_under_nohup(tmp_path: Path) -> None:
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert launched_by_torchrun(tmp_path, signal.SIGHUP, ignored) == (0, "")


def test_a_launch_is_not_launched_again(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setenv("LOCAL_RANK", "0")
    use_gpus([0, 1])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_what_a_scheduler_chose_is_kept(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    use_gpus([0])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    with pytest.raises(UserError, match=r"names 3.*shows only 2"):
        use_gpus([0, 1, 2])


def test_the_gpus_that_a_scheduler_chose_are_counted(two_gpus: pytest.MonkeyPatch) -> None:
    for gpus, left in (([1], "GPU-b"), ([], ""), ([7], "GPU-a,GPU-b")):
        two_gpus.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
        use_gpus(gpus)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    two_gpus.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    with pytest.raises(Replaced):
        use_gpus([1, 0])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"


def test_gpus_that_are_not_there(two_gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"names \[2\].*GPUs 0 to 1"):
        use_gpus([0, 2])


def test_gpus_are_chosen_before_anything_can_touch_cuda(two_gpus: pytest.MonkeyPatch) -> None:
    """Where NVML is missing, counting the GPUs starts CUDA, which then keeps to those that it saw."""
    seen: list[str | None] = []

    def count() -> int:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return 1

    two_gpus.setattr(torch.cuda, "device_count", count)
    use_gpus([1])
    assert seen == ["1"]


def test_without_gpus_nothing_is_chosen(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(torch.cuda, "device_count", lambda: 0)
    use_gpus([0])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_reproducible_kernels_are_for_the_runs_that_ask_for_them() -> None:
    try:
        make_accelerator("fp32", 1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        make_accelerator("fp32", 1, deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_that_torch_has_no_kernels_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "zeros", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    message = "CUDA error: no kernel image is available for execution on the device"
    with pytest.raises(UserError, match=r"for Tesla V100, .* 7\.0; .*sm_75, sm_80\. .*GPUs=\[\]"):
        check_gpu(device)
    message = "CUDA error: unspecified launch failure"
    with pytest.raises(RuntimeError, match="launch failure"):
        check_gpu(device)
    check_gpu(torch.device("cpu"))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_whose_driver_is_too_old_is_told(
    gpus: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert make_accelerator("fp32", 1, deterministic=False).device.type == "cpu"
    assert ("PyTorch cannot use it" in caplog.text) == bool(gpus)


def test_running_out_of_memory_is_told_with_what_to_change() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ):
        with (
            pytest.raises(UserError, match=r"8 images of 224 px.*batch_size=N"),
            reporting_out_of_memory(8, 224),
        ):
            raise error
    with pytest.raises(RuntimeError, match="mat1 and mat2"), reporting_out_of_memory(8, 224):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("operation failed due to a previous error during capture", UserError),
        ("else", RuntimeError),
    ],
)
def test_memory_that_ran_out_in_a_capture_is_told(last: str, expected: type[Exception]) -> None:
    """Torch ends the capture while the first error passes, which raises another one."""
    with (
        pytest.raises(expected, match=r"out of memory with 8 images|^else$"),
        reporting_out_of_memory(8, 224),
    ):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError(last)
