"""Trainings that learn from the predictions of trained models beside the masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import export
import train
import valid
from datasets.cases import open_data_set
from engine.device import make_accelerator
from engine.runs.seen_cases import cases_trained_on
from engine.runs.training_record import TrainingRecord
from engine.training.teachers import Teachers
from models.base import SegmentationModel
from scoring.in_words import how_scored
from scoring.results import read_results
from tests.cases_on_disk import write_data_set
from tests.run_on_disk import write_run
from tests.small_run import arguments
from utils.config import dump_config, load_config, make_config
from utils.errors import UserError


class Constant(SegmentationModel):
    """Predicts one probability everywhere."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(probability))

    def parts(self) -> dict[str, torch.nn.Module]:
        return {}

    def forward(self, image: torch.Tensor, mask: Any = None, noise: Any = None) -> torch.Tensor:
        assert not self.training
        return self.value.expand(len(image), 1, *image.shape[-2:])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_mask_is_the_mean_of_the_teachers(share: float) -> None:
    accelerator = make_accelerator("fp32", 1, False)
    teachers = Teachers([Constant(0.2), Constant(0.6)], share, accelerator)
    mask = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    mixed = teachers.mixed_into(mask, torch.rand(2, 3, 8, 8))
    assert mixed.shape == mask.shape and not mixed.requires_grad
    torch.testing.assert_close(mixed, (1 - share) * mask + share * 0.4)
    assert not any(parameter.requires_grad for parameter in teachers.ensemble.parameters())


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the last epoch, by part and name."""
    parts = torch.load(folder / "epoch_2.pth", weights_only=True)
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def test_with_all_of_the_share_the_masks_change_nothing(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    """The teacher has another width, so that it is built by the config beside it."""
    teacher = f"teachers={finished / 'best_model.pth'}"
    learned = {}
    for masks in ("as they are", "turned over"):
        if masks == "turned over":
            for path in (tmp_path / "blobs" / "masks").iterdir():
                mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
                cv2.imwrite(str(path), np.flipud(255 - mask))
        for share in ("1", "0.5"):
            out = f"{masks} {share}".replace(" ", "_")
            settings = ("ch=16", "save_freq=2", teacher, f"teacher_share={share}")
            train.main(arguments(tmp_path, vae, *settings, out=out))
            learned[masks, share] = trained_weights(tmp_path / out / "epochs_2")
    assert equal(learned["as they are", "1"], learned["turned over", "1"])
    assert not equal(learned["as they are", "0.5"], learned["turned over", "0.5"])
    assert not equal(learned["as they are", "0.5"], learned["as they are", "1"])


def test_plan_record_and_scores_name_the_teachers(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = finished / "best_model.pth"
    train.main(arguments(tmp_path, vae, f"teachers=[{teacher}]", "epochs=1", out="taught"))
    run = tmp_path / "taught" / "epochs_1"
    plan = capsys.readouterr().out
    assert f"masks, of which 50 % are the mean prediction of {teacher}" in plan
    assert "starts from: random weights" in plan
    hashes = json.loads((run / "environment.json").read_text())["sha256"]
    assert len(hashes["file of one of the teachers"]) == 64
    valid.main(["--run", str(run)])
    summary = read_results(run / "valid_results_blobs").summary
    assert summary["provenance"]["teachers"] == [str(teacher)]
    assert f"learned from the predictions of {teacher}" in how_scored(summary)
    assert "file of one of the teachers" not in TrainingRecord.read(run / "best_model.pth").frozen


def test_a_teacher_of_other_images_is_told(
    finished: Path,
    tmp_path: Path,
    vae: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is written, and by --dry-run, too."""
    teacher = finished / "best_model.pth"
    run = arguments(tmp_path, vae, f"teachers={teacher}", "image_size=40", out="taught")
    train.main([*run, "--dry-run"])
    assert f"the teacher {teacher} was trained at 32 px, and is given images of 40 px" in "".join(
        capsys.readouterr()
    )

    def refuse(image: torch.Tensor) -> torch.Tensor:
        raise UserError(f"image size {image.shape[-1]} is not divisible by 32")

    monkeypatch.setattr("engine.training.teachers.load_system", lambda *_: refuse)
    message = rf"teachers: {teacher} cannot predict images of 40 px \(image size 40"
    with pytest.raises(UserError, match=message):
        train.main([*run, "--dry-run"])


def test_a_run_is_not_resumed_with_another_teacher(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    teacher = finished / "best_model.pth"
    run = arguments(tmp_path, vae, f"teachers={teacher}", "epochs=1", out="taught")
    train.main(run)
    teacher.write_bytes((finished / "epoch_1.pth").read_bytes())
    with pytest.raises(UserError, match="the file of one of the teachers is another file"):
        train.main(run)
    with pytest.raises(UserError, match=r"teacher_share: 0\.5 in the saved run, 0\.4 now"):
        train.main([*run, "teacher_share=0.4"])


def test_what_a_teacher_was_trained_on_counts_as_seen(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    """On another split of the data it is refused; through a run on other data it is remembered."""
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    config = load_config(finished / "config.yaml").model_copy(update={"pickle_file_path": split})
    (finished / "config.yaml").write_text(dump_config(config))
    names = json.loads(split.read_text())
    moved = names["train"]["name_list"].pop(0)
    names["test"]["name_list"].append(moved)
    other = split.with_name("other_train_test_names.json")
    other.write_text(json.dumps(names))
    teacher = f"teachers={finished / 'best_model.pth'}"
    refused = rf"teachers: .*trained on 1 of the 4 test cases.*{moved}"
    with pytest.raises(UserError, match=refused):
        train.main(arguments(tmp_path, vae, f"pickle_file_path={other}", teacher, out="next"))
    assert not (tmp_path / "next").exists()

    (tmp_path / "elsewhere").mkdir()
    spots = write_data_set(tmp_path / "elsewhere", train=9, test=3, size=32, name="spots")
    between = (f"pickle_file_path={spots}", teacher, "epochs=1")
    train.main(arguments(tmp_path, vae, *between, out="between"))
    taught = tmp_path / "between" / "epochs_1" / "best_model.pth"
    data_set = open_data_set(split)
    assert set(cases_trained_on(taught, data_set)) == {case.name for case in data_set.train}
    with pytest.raises(UserError, match="trained on 1 of the 4 test cases"):
        train.main(
            arguments(tmp_path, vae, f"pickle_file_path={other}", f"init_weights={taught}", out="n")
        )


def test_a_teacher_that_was_chosen_on_test_is_told(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"pickle_file_path": "blobs_train_test_names.json"}
    for name, more in (
        ("teacher", {"select_on": "test"}),
        ("taught", {"teachers": [str(tmp_path / "teacher" / "best_model.pth")]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_config(make_config(keys | more)))
    said = TrainingRecord.read(tmp_path / "taught" / "best_model.pth").selection()
    assert said.endswith("; it learned from weights that were chosen on the TEST split")


def test_a_teacher_that_knows_the_held_out_cases_is_warned_of(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = finished / "best_model.pth"
    for seed, warned in (("2333", False), ("5", True)):
        run = arguments(tmp_path, vae, f"teachers={teacher}", f"seed={seed}", out="taught")
        train.main([*run, "--dry-run"])
        assert (f"warning: {teacher} was trained on" in capsys.readouterr().out) == warned


def test_an_ensemble_knows_the_cases_that_its_first_run_held_out(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = write_data_set(tmp_path, train=9, test=3, size=32)
    folders = [tmp_path / f"seed_{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        write_run(folder, vae, f"pickle_file_path={split}", f"seed={seed}", "val_fraction=0.2")
    ensemble = tmp_path / "all" / "best_model.safetensors"
    first, *others = map(str, folders)
    export.main(["--run", first, "--ensemble", *others, "--out", str(ensemble)])
    for seed in (1, 2):
        settings = (f"teachers={ensemble}", f"seed={seed}")
        train.main([*arguments(tmp_path, vae, *settings, out="taught"), "--dry-run"])
        assert f"warning: {ensemble} was trained on" in capsys.readouterr().out


def test_a_teacher_of_upright_images_is_not_shown_turned_ones(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(finished / "config.yaml").model_copy(update={"keep_upright": True})
    (finished / "config.yaml").write_text(dump_config(config))
    run = arguments(tmp_path, vae, f"teachers={finished / 'best_model.pth'}", out="taught")
    said = "has only seen upright images, and this training turns them"
    for settings, warned in (
        ((), True),
        (("keep_upright=true",), False),
        (("augment=false",), False),
    ):
        train.main([*run, *settings, "--dry-run"])
        assert (said in capsys.readouterr().out) == warned


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run/epochs_2/gone.pth", "teachers: no checkpoint at .*gone.pth"),
        ("alone/best_model.pth", "not the folder of a run: it has no config.yaml"),
        ("taught/epochs_2/best_model.pth", "one of the teachers, lies in .*another snapshot_path"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(
    finished: Path, tmp_path: Path, vae: Path, name: str, message: str
) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "best_model.pth").write_bytes((finished / "best_model.pth").read_bytes())
    run = arguments(tmp_path, vae, f"teachers={tmp_path / name}", out="taught")
    with pytest.raises(UserError, match=message):
        train.main([*run, "--dry-run"])
