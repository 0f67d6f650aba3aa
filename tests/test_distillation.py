"""What goes wrong in a distillation: divergence, damaged files, stops, bad arguments."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

import distill
from distillation.crops import Pool
from distillation.scores import decode, encode, r_squared
from distillation.student import make_student, start_student
from distillation.training import LONGEST_STEP, VALIDATION_SEED, Budget, Distiller
from models.tiny_vae import load_tiny_vae
from tests.test_tiny_vae import BUNDLED, random_start, random_vae, write_checkpoint
from utils.checkpoints import weights_sha256
from utils.errors import UserError
from utils.interruption import Interrupted

TEACHER = random_vae(8)


def noise_chunk(self: Pool, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops (48, 32, 32, 3) and latents (48, 4, 4, 4) that cost nothing to draw."""
    rng = np.random.default_rng(index)
    crops = rng.integers(0, 256, (48, 32, 32, 3), np.uint8)
    return crops, rng.standard_normal((48, 4, 4, 4), np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Noise in place of crops and latents, and a random first student."""
    if "real_pool" not in request.fixturenames:
        monkeypatch.setattr("distillation.training.start_student", random_start)
        monkeypatch.setattr(Pool, "latents", noise_chunk)


@pytest.fixture
def real_pool(tmp_path: Path) -> Pool:
    """Four crops of 16 px a chunk, answered by TEACHER."""
    return Pool(tmp_path / "pool", TEACHER, seed=1, size=16, chunk=4)


def encoder_in(folder: Path, steps: int = 1, **budget: Any) -> Distiller:
    """A distiller of the encoder; three steps make its first epoch, six the next."""
    pool = Pool(folder / "pool", TEACHER, seed=1, size=32, chunk=48)
    budget_of_run = Budget(minutes=1, steps=steps, window=2, **budget)
    return Distiller("encoder", pool, budget_of_run, folder / "encoder.pth")


def with_nan(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters())[0] = math.nan
    return module


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_run_that_diverges_leaves_the_last_good_checkpoint(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder_in(tmp_path, steps=1).run()
    good = (tmp_path / "encoder.pth").read_bytes()
    diverging = encoder_in(tmp_path, steps=5)
    loss = diverging.loss

    def diverged(batch: list[np.ndarray]) -> torch.Tensor:
        value = loss(batch)
        return value * math.inf if what == "loss" else value + (value - value.detach()).sqrt()

    monkeypatch.setattr(diverging, "loss", diverged)
    with pytest.raises(UserError, match=rf"diverged at step 2: .*{what} (inf|nan).*lower --lr"):
        diverging.run()
    assert (tmp_path / "encoder.pth").read_bytes() == good
    assert all(value.isfinite().all() for value in diverging.module.state_dict().values())


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    student = make_student()
    write_checkpoint(tmp_path / "encoder_tuned.pth", student.encoder)
    write_checkpoint(tmp_path / "decoder.pth", with_nan(student.decoder))
    with pytest.raises(UserError, match=r"decoder\.pth comes from a training that diverged"):
        distill.export(tmp_path, tmp_path / "out")
    with torch.no_grad():
        next(student.decoder.parameters())[:] = 1e5  # finite, but not in half precision
    write_checkpoint(tmp_path / "decoder.pth", student.decoder)
    with pytest.raises(UserError, match=r"decoder\.layers\.\S+ is beyond 65504"):
        distill.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_trained_further_since_its_tuning_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, tuned = (make_student() for _ in range(3))
    initial = weights_sha256(before.encoder)
    write_checkpoint(tmp_path / "encoder_tuned.pth", tuned.encoder, initial=initial)
    write_checkpoint(tmp_path / "decoder.pth", tuned.decoder, step=3)
    write_checkpoint(tmp_path / "encoder.pth", after.encoder, step=7, seconds=90.0)
    with pytest.raises(UserError, match=r"not tuned from \S+encoder\.pth \(step 7, 1\.5 minutes\)"):
        distill.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_checkpoint(tmp_path / "encoder.pth", before.encoder, step=5)
    distill.export(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "encoder: step 5, 1.0 minutes\nencoder_tuned: step 1, 1.0 minutes\n" in printed
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "the weights are kept from others"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (
            lambda path: path.write_text("words"),
            r"cannot be read \(it is damaged, or no plain file",
        ),
        (lambda path: torch.save({"model": {}}, path), "is no checkpoint of a distillation"),
        (lambda path: torch.save(torch.zeros(3), path), "is no checkpoint of a distillation"),
        (lambda path: write_checkpoint(path, make_student().decoder), "of another network"),
        (lambda path: write_checkpoint(path, make_student(16).encoder), "of another network"),
        (lambda path: write_checkpoint(path, with_nan(make_student().encoder)), "diverged"),
    ],
    ids=["truncated", "empty", "text", "foreign", "tensor", "other part", "other width", "nan"],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_name(
    damage: Any, message: str, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "encoder.pth", make_student().encoder)
    damage(path)
    with pytest.raises(UserError, match=rf"encoder\.pth {message}|encoder\.pth .* {message}"):
        encoder_in(tmp_path)
    write_checkpoint(tmp_path / "decoder.pth", make_student().decoder)
    path.rename(tmp_path / "encoder_tuned.pth")
    with pytest.raises(UserError, match=rf"encoder_tuned\.pth .*{message}"):
        distill.export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another shape", "without crops"])
def test_a_chunk_that_cannot_be_read_is_drawn_again(
    damage: str, real_pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    crops, latents = real_pool.latents(0)
    outputs = real_pool.outputs(0)
    paths = sorted(real_pool.folder.iterdir())
    for path in paths:
        if damage in ("truncated", "empty"):
            path.write_bytes(path.read_bytes()[:300] if damage == "truncated" else b"")
        else:
            name = "crops" if damage == "of another shape" else "other"
            with path.open("wb") as file:
                chunk = {name: crops[:2], "latents": latents, "outputs": outputs[:2]}
                np.savez(file, **chunk)  # type: ignore[arg-type]
    np.testing.assert_array_equal(real_pool.outputs(0), outputs)
    np.testing.assert_array_equal(real_pool.latents(0)[0], crops)
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in paths) and "drawn again" in printed
    real_pool.outputs(0)
    assert capsys.readouterr().out == ""  # and kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "inf"], "--lr must be a finite number above 0"),
        (["--lr", "nan"], "--lr must be a finite number above 0"),
        (["--minutes", "inf"], "--minutes must be a finite number above 0"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--seed", str(2**64)], "--seed must be below"),
        (["--seed", str(VALIDATION_SEED)], "--seed must be below 9,000,000 or from 10,000,020 on"),
        (["--work", "a_file"], "--work must be a folder, but a_file is a file"),
        (["--work", "a_file/in/it"], "--work must be a folder, but a_file is a file"),
        (["--out", "a_file"], "--out must be a folder, but a_file is a file"),
        (["--picture", "folder.png"], "--picture must be a file that ends in .png"),
        (["--picture", "picture.jpg"], "--picture must be a file that ends in .png"),
        (["--picture", "a_file/picture.png"], "--picture must be in a folder, but a_file"),
    ],
)
def test_arguments_that_would_fail_later_are_refused_at_once(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    Path("folder.png").mkdir()
    with pytest.raises(SystemExit):
        distill.parse_arguments(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_encoder_blocks": (1, 3, 3, 2)}, r"num_encoder_blocks \[1, 3, 3, 2\], .*--teacher"),
        ({"num_decoder_blocks": (2, 3, 3, 1)}, r"num_decoder_blocks \[2, 3, 3, 1\], .*--teacher"),
        ({"act_fn": "silu"}, "act_fn silu, the student relu"),
        (
            {"decoder_block_out_channels": (16,) * 4},
            r"\[16, 16, 16, 16\], expected one number from 32",
        ),
    ],
)
def test_a_teacher_of_another_layout_is_refused_before_crops_are_drawn(
    other: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "latents", lambda *_: pytest.fail("drew crops"))
    layout = {
        "encoder_block_out_channels": (32,) * 4,
        "decoder_block_out_channels": (32,) * 4,
        "num_encoder_blocks": (1, 3, 3, 3),
        "num_decoder_blocks": (3, 3, 3, 1),
    }
    teacher = AutoencoderTiny(**layout | other)
    teacher.save_pretrained(tmp_path / "teacher")
    command = ["--teacher", str(tmp_path / "teacher"), "--work", str(tmp_path / "work")]
    with pytest.raises(UserError, match=message):
        distill.main(["decoder", *command])
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("last", [3, 5], ids=["of an epoch", "of the budget"])
def test_a_stop_on_the_last_step_keeps_its_row(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Distiller.update

    def stopped(self: Distiller, batch: list[np.ndarray], rate: float) -> float:
        if self.step == last - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch, rate)

    monkeypatch.setattr(Distiller, "update", stopped)
    with pytest.raises(Interrupted):
        encoder_in(tmp_path, steps=5).run()
    resumed = encoder_in(tmp_path, steps=5)
    assert resumed.step == last
    resumed.run()
    assert [row["step"] for row in resumed.history] == [3, 5]
    assert all(math.isfinite(row["loss"]) for row in resumed.history)


def test_a_run_of_whole_epochs_is_trained_further_without_an_empty_row(tmp_path: Path) -> None:
    encoder_in(tmp_path, steps=3).run()
    further = encoder_in(tmp_path, steps=4)
    further.run()
    assert [row["step"] for row in further.history] == [3, 4]
    assert (further.epoch, further.position) == (1, 16)
    # as versions before this one left it
    further.epoch, further.position = 0, 48
    further.save()
    further = encoder_in(tmp_path, steps=5)
    further.run()
    assert [row["step"] for row in further.history] == [3, 4, 5]


def test_the_bar_of_a_complete_part_starts_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder_in(tmp_path, steps=1).run()
    capsys.readouterr()
    encoder_in(tmp_path, steps=1).run()
    shown = capsys.readouterr().err
    assert "encoder 100%" in shown and " 0%" not in shown


def test_a_suspended_run_keeps_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("distillation.training.time.monotonic", lambda: clock[0])
    update = Distiller.update

    def suspended(self: Distiller, batch: list[np.ndarray], rate: float) -> float:
        clock[0] += 3600 if self.step == 0 else 1
        return update(self, batch, rate)

    monkeypatch.setattr(Distiller, "update", suspended)
    distiller = encoder_in(tmp_path, steps=3)
    distiller.run()
    assert distiller.seconds == LONGEST_STEP + 2


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    distiller = encoder_in(tmp_path, ema=0.99)
    batch = [array[:4] for array in distiller.window()]
    for step, share in ((0, 9 / 11), (10_000, 0.01)):  # the first weights are soon forgotten
        distiller.step = step
        before = {name: value.clone() for name, value in distiller.average.items()}
        distiller.update(batch, rate=1e-2)
        for name, value in distiller.module.state_dict().items():
            expected = before[name] + share * (value - before[name])
            torch.testing.assert_close(distiller.average[name], expected)


def test_a_decoder_is_fitted_to_its_teacher_and_to_the_image(tmp_path: Path) -> None:
    pool = Pool(tmp_path, TEACHER, seed=1, size=32, chunk=48)
    decoder = Distiller("decoder", pool, Budget(minutes=1), tmp_path / "decoder.pth")
    crops, latents = (array[:2] for array in pool.latents(0))
    outputs = np.zeros((2, 3, 32, 32), np.float16)
    losses = {
        decoder.loss([images, latents, of_teacher]).item()
        for images in (crops, np.zeros_like(crops))
        for of_teacher in (outputs, outputs + 0.5)
    }
    assert len(losses) == 4


def test_masks_are_scored_apart_and_by_the_averaged_weights(tmp_path: Path) -> None:
    distiller = encoder_in(tmp_path)
    crops = noise_chunk(distiller.pool, 0)[0][:4]
    crops[2:] = crops[2:] // 128 * 255
    student = make_student()
    student.encoder.load_state_dict(distiller.average)
    latents = encode(student, crops)
    latents[:2] = -latents[:2]
    distiller.validation = crops, latents
    with torch.no_grad():
        for value in distiller.module.parameters():
            value.zero_()
    scores = distiller.validate()
    assert scores["r2_masks"] == pytest.approx(1, abs=1e-4) and scores["r2_images"] < 0


def test_each_epoch_has_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, latents = noise_chunk(Pool(tmp_path, TEACHER, seed=1), 0)
    crops[:, 0, 0, 0] = np.arange(48)
    order: list[int] = []

    def update(self: Distiller, batch: list[np.ndarray], rate: float) -> float:
        order.extend(batch[0][:, 0, 0, 0].tolist())
        self.step += 1
        return 0.0

    monkeypatch.setattr(Pool, "window", lambda *_: [crops, latents])
    monkeypatch.setattr(Distiller, "update", update)
    monkeypatch.setattr(Distiller, "validate", lambda _: {})
    encoder_in(tmp_path, steps=6).run()
    assert sorted(order[:48]) == sorted(order[48:]) == list(range(48))
    assert order[:48] != order[48:]


def test_a_window_is_of_the_newest_chunks(real_pool: Pool) -> None:
    chunks = [real_pool.latents(index)[0] for index in range(3)]
    assert (chunks[0] != chunks[1]).any()
    for last, newest in ((0, chunks[:1]), (2, chunks[1:])):
        columns = real_pool.window(last, 2, with_outputs=True)
        np.testing.assert_array_equal(columns[0], np.concatenate(newest))
        assert [len(column) for column in columns] == [4 * len(newest)] * 3


def test_held_out_crops_are_not_trained_on(
    tmp_path: Path, real_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    distiller = Distiller("encoder", real_pool, Budget(minutes=1), tmp_path / "encoder.pth")
    ((held,), _), trained = distiller.validation, real_pool.latents(0)[0]
    assert not (trained == held).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(("part", "bound"), [("encoder", 0.75), ("decoder", 0.45)])
def test_a_student_starts_close_to_its_teacher(
    part: str, bound: float, real_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as wide as its teacher; R² on crops that it was not fitted on.

    The encoder without the scaling to [0, 1] has 0.60. The latents are made ten times as large, so that
    they reach the limit of the decoder's tanh; a decoder without it has 0.12.
    """
    teacher, held_out = load_tiny_vae(BUNDLED), 32
    pool = Pool(real_pool.folder, teacher, seed=1, size=32, chunk=64 + held_out)
    crops, latents = pool.latents(0)
    if part == "decoder":
        latents = 10 * latents
        monkeypatch.setattr(pool, "latents", lambda index: (crops, latents))
    monkeypatch.setattr("distillation.student.EXAMPLES", 64)
    monkeypatch.setattr("distillation.student.make_student", lambda: make_student(16))
    student = start_student(pool, part)
    if part == "encoder":
        got, expected = encode(student, crops[-held_out:]), latents[-held_out:]
    else:
        got, expected = (decode(vae, latents[-held_out:]).numpy() for vae in (student, teacher))
    assert r_squared(got, expected) > bound
