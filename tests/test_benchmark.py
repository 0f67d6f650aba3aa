from __future__ import annotations

import csv
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from benchmarks import comparison
from benchmarks.candidate import Candidate, Workload, vae_labels
from benchmarks.growth import MappingRun, Point, case_growth, free_bytes, mapping_growth
from benchmarks.ours import Ours
from benchmarks.reference import Reference
from benchmarks.report import (
    BenchmarkResults,
    Rates,
    Step,
    drawn_name,
    format_results,
    write_benchmark,
    write_growth,
)
from benchmarks.separate_process import SeparateProcess
from benchmarks.single_changes import CONTIGUOUS, KEPT, MERGED, Measured, decoder_pass
from benchmarks.step_parts import REST
from datasets.cases import open_data_set
from engine.training.optimizers import Muon
from tests.cases_on_disk import write_data_set
from tests.drawn_figures import keep_figures
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"encode, frozen", "encoder", "mapping", "decode"}


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Two batches of two cases to train on, three to test, 32 px."""
    data = open_data_set(write_data_set(tmp_path_factory.mktemp("data"), train=4, test=3, size=40))
    return Workload(32, 2, "fp32", 1, data.train, data.test)


@pytest.fixture
def candidates(vae: Path, workload: Workload) -> tuple[Reference, Ours]:
    return Reference(workload, str(vae)), Ours(workload, str(vae))


def trained(candidate: Candidate) -> torch.nn.Module:
    return candidate.system  # type: ignore[attr-defined]


def test_the_reference_computes_our_losses_and_gradients(
    candidates: tuple[Reference, Ours],
) -> None:
    gradients = []
    losses = []
    for candidate in candidates:
        losses.append(candidate.first_losses())
        candidate.backward(candidate.losses(candidate.image, candidate.mask, candidate.noise))
        weights = trained(candidate).named_parameters()
        gradients.append({name: p.grad for name, p in weights if p.grad is not None})
    comparison.check_agreement(*losses)
    assert set(losses[0]) == {"loss", "lm", "seg", "align"}
    assert gradients[0].keys() == gradients[1].keys()
    theirs, mine = (torch.cat([g.flatten() for g in each.values()]) for each in gradients)
    assert (mine - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("other", [1.001, float("nan")])
def test_disagreement_is_noticed(other: float) -> None:
    with pytest.raises(UserError, match=r"'loss' is 1\.0 in the reference loop"):
        comparison.check_agreement({"loss": 1.0}, {"loss": other})


def test_both_predict_the_same(candidates: tuple[Reference, Ours]) -> None:
    reference, ours = candidates
    trained(ours).load_state_dict(trained(reference).state_dict())
    torch.testing.assert_close(
        reference.predict(reference.image), ours.predict(ours.image), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("which", [0, 1])
def test_every_task_handles_every_image(candidates: tuple[Reference, Ours], which: int) -> None:
    candidate = candidates[which]
    handled = {
        task: candidate.timed(task, *arguments)
        for task, arguments in {
            "train_steps": (2,),
            "validate_batch": (),
            "predict_one": (3,),
            "train_epoch": (),
            "validate_cases": (),
            "predict_files": (),
        }.items()
    }
    assert [timing.images for timing in handled.values()] == [4, 2, 3, 4, 3, 3]
    assert 0 < handled["train_epoch"].waited < handled["train_epoch"].seconds
    assert handled["train_steps"].waited == 0


@pytest.mark.parametrize("look", ["step_arithmetic", "step_seconds"])
def test_a_replayed_step_is_taken_apart(candidates: tuple[Reference, Ours], look: str) -> None:
    _, ours = candidates

    def replay(*_: torch.Tensor) -> None:
        raise AssertionError("replayed as a whole")

    ours.system.forward = replay  # type: ignore[method-assign, assignment]
    ours.training_pass.to_capture = True
    parts = ours.step_seconds(1) if look == "step_seconds" else ours.step_arithmetic()
    assert set(parts) >= PARTS


def test_the_parts_of_a_step(candidates: tuple[Reference, Ours]) -> None:
    counts = []
    for candidate in candidates:
        weights = [p.clone() for p in trained(candidate).parameters()]
        seconds = candidate.step_seconds(1)
        assert set(seconds) == PARTS | {"backward", "optimiser", REST}
        assert all(value > 0 for value in seconds.values())
        after = trained(candidate).parameters()
        assert any(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))

        count = candidate.step_arithmetic()
        assert set(count) == PARTS
        assert count["encode, frozen"][1] == 0  # no gradient
        assert count["decode"][1] == pytest.approx(count["decode"][0], rel=0.2)  # its input's
        with FlopCounterMode(display=False) as counter:
            candidate.dummy_step()
        # the head level3 takes no part in the losses
        whole = counter.get_total_flops() / 2
        assert sum(map(sum, count.values())) == pytest.approx(whole, rel=0.02)
        counts.append(count)
    reference, ours = counts
    assert ours["decode"][0] < 0.95 * reference["decode"][0]  # upsampling is merged
    assert ours["encoder"] == reference["encoder"]


def test_an_object_in_a_process_of_its_own() -> None:
    process = SeparateProcess(Fraction, 22, 7)
    try:
        assert process.call("limit_denominator", 1) == 3
        with pytest.raises(AttributeError):
            process.call("limits")
    finally:
        process.close()
    with pytest.raises(UserError, match="no split file for the data set 'absent'"):
        SeparateProcess(open_data_set, Path("absent_train_test_names.json"))
    with pytest.raises(UserError, match="died, most likely for lack of memory"):
        SeparateProcess(os._exit, 9)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "import os\n"
        "from benchmarks.separate_process import SeparateProcess\n"
        "if __name__ == '__main__':\n"
        "    print(SeparateProcess(os.getppid).call('__int__'), flush=True)\n"
        "    os._exit(9)"
    )
    # the child inherits the pipe, so that its end is only seen once both processes are gone
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 9
    assert int(done.stdout) > 0


@pytest.mark.parametrize("kernel", ["fused", "math"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_mapping_runs_by_either_kernel(
    kernel: str, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.growth.TIMED_SECONDS", 0.05)
    seconds, peak = MappingRun(32, kernel, backward, "fp32").measure()
    assert seconds > 0 and peak > 1 << 20


def test_a_disturbed_run_of_the_mapping_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([3.0, 0.2, 0.6, 0.2, 0.2])  # the first one also builds kernels
    monkeypatch.setattr(MappingRun, "_timed_run", lambda _: next(seconds))
    assert MappingRun(32, "fused", False, "fp32").measure()[0] == 0.2


def test_growth_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Instead:
        def __init__(self, build: object, size: int, *_: object) -> None:
            self.size = size

        def call(self, _: str) -> tuple[float, int]:
            return self.size / 1000, self.size << 20

        def close(self) -> None:
            pass

    monkeypatch.setattr("benchmarks.growth.SeparateProcess", Instead)
    monkeypatch.setattr("benchmarks.growth.free_bytes", lambda: 3 << 30)
    points = list(mapping_growth([128, 1024], "fp32"))
    left_out = [(p.series, p.x) for p in points if p.seconds is None]
    assert left_out == [("forward, math", 1024), ("forward and backward, math", 1024)]
    assert "not run: about" in next(p.note for p in points if p.note)
    assert len(points) == 8


def test_free_memory_is_that_of_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.growth.available_bytes", lambda: 3 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 << 30, 9 << 30))
    for on_gpu, free in ((False, 3 << 30), (True, 5 << 30)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        assert free_bytes() == free


def test_growth_continues_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(SameProcess):
        def __init__(self, *_: object) -> None:
            pass

        def call(self, method: str, *_: object) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("benchmarks.growth.SeparateProcess", Full)
    points = list(mapping_growth([128], "fp32"))
    assert [p.note for p in points] == ["not run: out of memory"] * 4


def test_arithmetic_is_counted_in_low_precision(vae: Path) -> None:
    counts = Ours(Workload(32, 2, "bf16", 0), str(vae)).step_arithmetic()
    assert all(forward > 0 for forward, _ in counts.values())
    assert {"encode, frozen", "encoder", "mapping", "decode"} == counts.keys()


class SameProcess(SeparateProcess):
    """The object in this process: importing torch anew takes seconds."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        self.held = build(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.held, method)(*arguments)

    def close(self) -> None:
        pass


def test_growth_in_cases(vae: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.growth.SeparateProcess", SameProcess)
    points = list(case_growth([2, 5], workload, str(vae)))
    assert [(p.series, p.x) for p in points] == [
        ("validation", 2),
        ("validation", 5),
        ("prediction", 2),
        ("prediction", 5),
    ]
    assert all(p.seconds and p.peak_bytes for p in points)


def test_the_tables_say_what_was_measured(tmp_path: Path) -> None:
    results = BenchmarkResults("two cores", batch=2, peak=100e9)
    task = "training step, dummy"
    results.rates = [
        Rates(task, "reference", [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]),
        Rates(task, "ours", [5.0, 6.0, 7.0], [0.1, 0.2, 0.3]),
    ]
    results.steps = [
        Step("reference", {"decode": 0.5}, {"decode": (10e9, 20e9)}, 1 << 30),
        Step("ours", {"decode": 0.25, "rest": 0.01}, {"decode": (4e9, 8e9)}, 3 << 29),
    ]
    page = format_results(results)
    assert f"| {task} | reference | 2.00 (1.00 to 4.00) | 1.00 |  |" in page
    assert f"| {task} | ours | 6.00 (5.00 to 7.00) | 3.00 | 20 % |" in page
    assert "| decode | 250.0 | 125.0 |" in page
    assert "| decode | 5.00 + 10.00 | 2.00 + 4.00 |" in page
    assert "| share of the peak | 30 % | 36 % |" in page  # 15e9 x 2 and 6e9 x 6 of 100e9
    assert "| ours | 1.50 |" in page
    write_benchmark(tmp_path, results)
    with (tmp_path / "benchmark.csv").open() as file:
        assert [row["images_per_second"] for row in csv.DictReader(file)][3:] == [
            "5.0",
            "6.0",
            "7.0",
        ]
    with (tmp_path / "step_parts.csv").open() as file:
        assert [row["part"] for row in csv.DictReader(file)] == ["decode", "decode", "rest"]
    assert (tmp_path / "benchmark.png").stat().st_size > 0


def test_bars_have_ranges_and_names_that_explain_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn_name("ours, mine/tiny_vae") == "ours, mine/tiny_vae", "not the bundled one"
    drawn = keep_figures(monkeypatch, "benchmarks.report")
    results = BenchmarkResults("two cores", batch=2, peak=1e9)
    step, one = "training step, dummy", "prediction, one dummy image"
    for task, way in (
        (step, "reference, taesd"),
        (step, "ours, tiny_vae"),
        (one, "ours, tiny_vae"),
        (one, "U-Net, ResNet-34"),
    ):
        results.rates.append(Rates(task, way, [4.0, 1.0, 2.0], [0.0] * 3))
    seconds = {"encode, frozen": 0.1, "encoder": 0.2, "mapping": 0.1, "decode": 0.3}
    results.steps = [Step("ours, tiny_vae", seconds, {}, 1)]
    write_benchmark(tmp_path, results)
    (figure,) = drawn
    training, prediction, steps = figure.axes
    ways = ["reference, TAESD", "ours, bundled Tiny-VAE", "U-Net, ResNet-34"]
    assert [label.get_text() for label in training.get_yticklabels()] == ways
    assert training.get_title() == "training step, random images"
    assert prediction.get_title() == "prediction, one random image"
    for axis, places in ((training, [0, 1]), (prediction, [1, 2])):
        assert [bar.get_y() + bar.get_height() / 2 for bar in axis.patches] == places
        assert [bar.get_width() for bar in axis.patches] == [2.0, 2.0]
        (ranges,) = axis.collections
        assert [segment[:, 0].tolist() for segment in ranges.get_segments()] == [[1.0, 4.0]] * 2
    (legend,) = figure.legends
    parts = ["frozen encoder", "Haar encoder", "latent mapping", "frozen decoder"]
    assert [text.get_text() for text in legend.get_texts()] == parts
    boxes = [axis.get_window_extent() for axis in figure.axes]
    assert not any(box.overlaps(legend.get_window_extent()) for box in boxes)
    assert steps.get_position().width > 2 * training.get_position().width, "no column is left empty"


def test_what_was_measured_is_kept_when_a_task_fails(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise UserError("killed")

    monkeypatch.setattr(comparison, "SeparateProcess", SameProcess)
    monkeypatch.setattr(comparison, "UNET", "smp/none")
    monkeypatch.setattr(Ours, "predict_one", fail)
    settings = ["--image-size", "32", "--batch-size", "2", "--rounds", "1", "--workers", "0"]
    with pytest.raises(UserError, match="killed"):
        benchmark.main(["--vae", str(vae), *settings, "--out", str(tmp_path)])
    page = (tmp_path / "benchmark.md").read_text()
    assert "training step, dummy" in page and "validation, dummy" in page
    assert "prediction" not in page and "share of the peak" not in page
    with (tmp_path / "benchmark.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "benchmark.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "expected"), [([], torch.optim.AdamW), (["--optimizer", "muon"], Muon)]
)
def test_the_optimiser_is_the_one_asked_for(vae: Path, options: list[str], expected: type) -> None:
    arguments = benchmark.parse_arguments(["--image-size", "32", "--batch-size", "2", *options])
    ours = Ours(benchmark.workload_from(arguments), str(vae))
    assert type(ours.optimizer.optimizer) is expected
    before = [p.clone() for p in ours.system.parameters() if p.requires_grad]
    ours.train_steps(1)
    trained = [p for p in ours.system.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


@pytest.mark.parametrize("options", [[], ["--compile"]])
def test_compile_reaches_the_training_pass(
    vae: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr("benchmarks.ours.compile_losses", compiled.append)
    arguments = benchmark.parse_arguments(["--image-size", "32", "--batch-size", "2", *options])
    ours = Ours(benchmark.workload_from(arguments), str(vae))
    assert compiled == ([ours.system] if options else [])


def test_growth_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_figures(monkeypatch, "benchmarks.report")
    sides = [
        *(Point("forward, math", side, 0.02, 1 << 29) for side in (224, 256)),
        Point("forward, math", 128, 0.5, 1 << 30),
        Point("forward, math", 1024, note="not run"),
    ]
    cases = [Point("validation", 8, 1.25, 3 << 29)]
    page = write_growth(tmp_path, "two cores", {"side in px": sides, "cases": cases})
    assert page.startswith("two cores\n")
    by_side, by_cases = page.split("| what | cases |")
    assert "| forward, math | 128 | 0.500 | 1.00 |" in by_side
    assert "| forward, math | 1024 | not run |  |" in by_side
    assert "| validation | 8 | 1.250 | 1.50 |" in by_cases
    with (tmp_path / "growth.csv").open() as file:
        assert [row["x_is"] for row in csv.DictReader(file)] == [
            *["side in px"] * 4,
            "cases",
        ]
    assert (tmp_path / "growth.png").stat().st_size > 0
    for axis in drawn[0].axes:
        labels = axis.get_xticklabels()
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), "labels lie over each other"
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == [
        "128",
        "224",
        "1024",
    ]
    (legend,) = drawn[0].legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["forward, plain attention", "validation"]
    assert not any(axis.get_legend() for axis in drawn[0].axes)


def test_a_small_benchmark(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SeparateProcess", SameProcess)
    monkeypatch.setattr(comparison, "UNET", "smp/none")  # says so and continues
    monkeypatch.chdir(tmp_path)
    write_data_set(tmp_path / "datasets", train=4, test=3, size=32)
    same_name = tmp_path / vae.name
    same_name.symlink_to(vae)
    other = tmp_path / "other_vae"
    other.symlink_to(vae)
    vaes = [word for path in (vae, same_name, other) for word in ("--vae", str(path))]
    settings = ["--image-size", "32", "--batch-size", "2", "--rounds", "1", "--workers", "0"]
    data = ["--dataset", "blobs", "--out", "out"]
    benchmark.main([*vaes, *settings, *data])
    page = (tmp_path / "out" / "benchmark.md").read_text()
    first, second = (f"{path.parent.name}/{path.name}" for path in (vae, same_name))
    for task in (
        "training step, dummy",
        "validation, dummy",
        "prediction, one dummy image",
        "training epoch, blobs",
        "validation epoch, blobs",
        "prediction from files, blobs",
    ):
        for way in (f"reference, {first}", f"ours, {first}", f"ours, {second}", "ours, other_vae"):
            assert f"| {task} | {way} |" in page


def test_the_decoder_gives_the_same_gradient_before_and_after(vae: Path) -> None:
    gradients = []
    for merged in (False, True):
        torch.manual_seed(0)
        gradients.append(decoder_pass(merged, str(vae), image_size=32, batch_size=1)())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_every_change_is_measured_alone(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.single_changes.SeparateProcess", SameProcess)
    monkeypatch.setattr("engine.device.keep_freed_memory", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    settings = ["--image-size", "32", "--batch-size", "2", "--rounds", "2"]
    same_name = tmp_path / vae.name
    same_name.symlink_to(vae)
    vaes = ["--vae", str(vae), "--vae", str(same_name)]
    benchmark.main(["--single-changes", *vaes, *settings, "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    page = (tmp_path / "changes.md").read_text()
    assert page.startswith("CPU, 1 thread, fp32; 32 px, batch 2; 2 rounds.")
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    changes = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert changes == [MERGED, MERGED, KEPT, CONTIGUOUS]
    for line, path in zip(lines, (vae, same_name), strict=False):
        assert f", {path.parent.name}/{path.name} |" in line
    with (tmp_path / "changes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 2 * 2


def test_medians_of_a_change() -> None:
    measured = Measured(KEPT, "step", [(3.0, 1.0), (5.0, 2.0), (4.0, 9.0)], [(1.0, 0.5)])
    assert measured.medians() == ((4.0, 2.0), (1.0, 0.5))


def test_the_label_of_a_vae_tells_it_from_the_others() -> None:
    assert vae_labels(["madebyollin/taesd", "/data/weights/taesd", "taesd", "ckpt/tiny_vae"]) == {
        "madebyollin/taesd": "madebyollin/taesd",
        "/data/weights/taesd": "weights/taesd",
        "taesd": "taesd",
        "ckpt/tiny_vae": "tiny_vae",
    }
    assert len(set(vae_labels(["a/b", "./a/b", "a/b/"]).values())) == 3


@pytest.mark.parametrize(
    "words",
    [
        "--rounds 0",
        "--steps 0",
        "--batch-size 0",
        "--cases 0",
        "--counts 8 0",
        "--workers -1",
        "--vae one --vae one",
    ],
)
def test_what_measures_nothing_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.parse_arguments(words.split())
    assert caught.value.code == 2
    assert re.search(f"{words.split()[0]}( must be|: expected) ", capsys.readouterr().err)


def test_too_few_cases_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data_set(tmp_path / "datasets", train=3, test=1, size=32)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="3 training cases of blobs do not fill a batch of 12"):
        benchmark.main(["--dataset", "blobs"])
