"""The accuracy study: its settings, the scoring of a run, and the report."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

import study
from engine.runs.run_cases import RunCases, names_sha256
from experiments.studies import score_run
from experiments.studies.curves import draw_curves
from experiments.studies.report import write_study
from experiments.studies.score_run import training_and_scoring_steps
from experiments.studies.scores import (
    Score,
    digest,
    outdated_steps,
    runs_complete_in_table,
    scores_in_table,
    scores_of,
    to_csv,
    ways_of,
)
from experiments.studies.study import (
    PAGE,
    Run,
    Study,
    folder_name,
    load_study,
    trials_of,
)
from experiments.trials.earlier_runs import check_earlier_runs
from experiments.trials.records import Record, Status, write_record
from experiments.trials.runner import run_trials
from experiments.trials.trial import Outcome, Steps, Trial
from scoring.metrics import METRICS, SIZES
from scoring.results import write_results
from scoring.statistics import t_interval
from tests.cases_on_disk import write_data_set
from tests.drawn_figures import keep_figures
from utils.config import dump_config
from utils.errors import UserError
from utils.files import sha256
from utils.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RUN = Run("Wave-GMS", "published", 1)


def write(path: Path, **changes: object) -> Path:
    content = {
        "title": "blobs",
        "protocol": "two epochs",
        "config": str(ROOT / "configs" / "busi_train.yaml"),
        "settings": {"epochs": 2, "image_size": 32, "save_freq": 1},
        "seeds": [1, 2],
        "splits": {"published": str(path.parent / "blobs" / "blobs_train_test_names.json")},
        "systems": {"Wave-GMS": {}, "plain Tiny-VAE": {"vae_model": "tiny_vae"}},
        "folder": str(path.parent / "study"),
    } | changes
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=str)
def test_every_shipped_study_is_valid(path: Path) -> None:
    study = load_study(path)
    trials = trials_of(study).values()
    assert len({trial.folder for trial in trials}) == len(trials)
    assert {trial.config.seed for trial in trials} == {1, 2, 3}
    for trial in trials:  # without kept epochs there is no choice on test
        assert bool(trial.config.save_freq) == ("for the choice on test" in study.protocol)


def test_runs_are_systems_by_seeds_by_splits(tmp_path: Path) -> None:
    trials = list(trials_of(load_study(write(tmp_path / "s.yaml"))).values())
    assert [trial.folder.relative_to(tmp_path / "study").as_posix() for trial in trials] == [
        "wave-gms/published/seed_1/epochs_2",
        "plain_tiny-vae/published/seed_1/epochs_2",
        "wave-gms/published/seed_2/epochs_2",
        "plain_tiny-vae/published/seed_2/epochs_2",
    ]
    assert trials[1].config.vae_model == "tiny_vae" and trials[1].config.seed == 1
    assert trials[0].config.batch_size == 12, "the base config's"
    systems = {"a": {}, "b": {"batch_size": 8}}
    loaded = load_study(write(tmp_path / "s.yaml", settings={"batch_size": 4}, systems=systems))
    assert [trial.config.batch_size for trial in trials_of(loaded).values()] == [4, 8, 4, 8]


def test_runs_score_their_own_weights(tmp_path: Path) -> None:
    settings = {"epochs": 2, "model_weight": "published.pth", "save_seg_img_path": "masks"}
    for trial in trials_of(load_study(write(tmp_path / "s.yaml", settings=settings))).values():
        assert trial.config.model_weight is None and trial.config.save_seg_img_path is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "systems"),
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": None}, "seeds: .*got None"),
        ({"seeds": 3}, r"seeds is a list, such as \[1, 2, 3\], got 3"),
        ({"systems": {"a": None, "b": {}}}, r"systems\.a: `a:` is empty, write a: {}"),
        ({"seeds": [1, 1]}, "a seed is given twice: 1, 1"),
        ({"splits": {"mine": "x.json"}}, "splits are `published`.*got mine"),
        ({"config": "nowhere.yaml"}, "cannot read the config"),
        ({"systems": {"odd": {"vae_modle": "tiny_vae"}}}, "odd of the study.*did you mean"),
        ({"settings": {"epochs": 0}}, "epochs"),
        ({"settings": {"resume": "never"}}, "resume: never would lose"),
        ({"systems": {"a": {}, "b": {"resume": "never"}}}, "b, published.*resume: never"),
        ({"settings": {"seed": 7}}, "Wave-GMS, published.*seed cannot be set.*`seeds`"),
        (
            {"systems": {"a": {}, "b": {"snapshot_path": "x", "pickle_file_path": "y"}}},
            "b, published.*pickle_file_path, snapshot_path cannot be set",
        ),
        ({"settings": {"select_on": "test"}}, "Wave-GMS, published.*expected val.*own column"),
        ({"systems": {"a": {}, "b": {"select_on": "test"}}}, "b, published.*select_on is test"),
        ({"settings": {"select_on": "last"}}, "select_on is last, expected val"),
        ({"settings": {"tta": True}}, "Wave-GMS, published.*tta is true.*`tta` of the study"),
        ({"systems": {"a": {}, "b": {"tta": True}}}, "b, published.*tta is true"),
        (
            {"systems": {"a": {}, "b": {"image_size": 64}, "c": {"evaluation_size": "native"}}},
            r"different sizes \(a: 32; b: 64; c: native\).*set evaluation_size in settings",
        ),
        (
            {"systems": {"a": {}, "b": {"model": "smp/Unet", "w_tversky": 1, "ch": 16}}},
            "b of the study: model smp/Unet does not use ch, w_tversky, .*only where",
        ),
        (
            {"settings": {"model": "my:build"}, "systems": {"a": {}, "b": {"w_dice": 2}}},
            "b of the study: model my:build does not use w_dice,",
        ),
        ({"systems": {"SFT": {}, "SFT +": {}}}, "'SFT' and 'SFT \\+' would share the folder sft"),
        ({"systems": {"Wave-GMS": {}, "wave-gms": {}}}, "would share the folder wave-gms"),
        ({"systems": {"我们": {}}}, "'我们' has no letter or digit of ASCII"),
        ({"systems": {"..": {}}}, "has no letter or digit"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "s.yaml", **changes)
    with pytest.raises(UserError, match=f"(?s){message}"):
        trials_of(load_study(path))


def test_systems_of_different_image_sizes_are_scored_at_one_size(tmp_path: Path) -> None:
    settings = {"epochs": 2, "image_size": 32, "evaluation_size": 32}
    systems = {"a": {}, "b": {"image_size": 64}}
    loaded = load_study(write(tmp_path / "s.yaml", settings=settings, systems=systems, seeds=[1]))
    assert [trial.config.image_size for trial in trials_of(loaded).values()] == [32, 64]


def test_only_the_way_tta_has_test_time_augmentation(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"base: {ROOT / 'configs' / 'busi_train.yaml'}\ntta: true\n")
    loaded = load_study(write(tmp_path / "s.yaml", config=str(base)))
    assert not any(trial.config.tta for trial in trials_of(loaded).values())


def test_settings_may_hold_keys_that_one_of_the_models_does_not_use(tmp_path: Path) -> None:
    settings = {"vae_weights": "ckpt/tiny_vae", "w_tversky": 1}
    systems = {"Wave-GMS": {"w_dice": 2}, "U-Net": {"model": "smp/Unet", "w_tversky": None}}
    loaded = load_study(write(tmp_path / "s.yaml", settings=settings, systems=systems, seeds=[1]))
    assert [trial.config.w_tversky for trial in trials_of(loaded).values()] == [1, 0]


def test_folder_names() -> None:
    assert folder_name("Wave-GMS, no alignment") == "wave-gms_no_alignment"
    assert folder_name("U-Net, ResNet-18") == "u-net_resnet-18"


def test_a_run_is_scored_in_every_way_and_reported(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = {"by": "near-duplicates", "groups": [["case_0", "case_9"]]}
    check = tmp_path / "blobs" / "check" / "same_source_groups.json"
    check.parent.mkdir()
    check.write_text(json.dumps(groups))
    path = write(tmp_path / "s.yaml")
    with pytest.raises(UserError, match="no run of this study is scored yet"):
        study.main(["--config", str(path), "--report"])

    settings = yaml.safe_load((finished / "config.yaml").read_text())
    for key in ("pickle_file_path", "seed", "snapshot_path"):  # each run of a study has its own
        del settings[key]
    settings |= {"threshold": 0.45}
    loaded = load_study(write(path, settings=settings))
    trials, other = trials_of(loaded), Run("Wave-GMS", "published", 2)
    trial = trials[RUN]
    trial.folder.parent.mkdir(parents=True)
    finished.rename(trial.folder)
    trial.config_file.write_text(yaml.safe_dump(trial.config.model_dump(mode="json")))
    for step in ("score", "tta"):
        score_run.main(training_and_scoring_steps(trial, tta=True)[step][3:])

    on_test = json.loads((trial.folder / "chosen_on_test.json").read_text())
    assert set(on_test["dice"]) == {"1", "2"}
    best = on_test["dice"][str(on_test["best_epoch"])]
    assert best == max(on_test["dice"].values())
    results, by_case = "valid_results_blobs/summary.json", "valid_results_blobs/results.csv"
    chosen = json.loads((trial.folder / "chosen_on_test" / results).read_text())
    assert chosen["metrics"]["DSC"]["mean"] == pytest.approx(best, abs=1e-6)
    assert "chosen on the TEST split" in chosen["provenance"]["selection"]
    honest = json.loads((trial.folder / results).read_text())
    assert "held-out part of train" in honest["provenance"]["selection"]
    assert honest["without_leaked"]["dropped"] == ["case_9"]
    assert json.loads((trial.folder / "tta" / results).read_text())["provenance"]["tta"] is True

    config = trial.config.model_dump(mode="json")
    record = Record(trial.name, config, "finished", ["train", "score", "tta"])
    record.wall_seconds, record.cpu_seconds = {"train": 120.0}, {"train": 180.0}
    write_record(trial.folder, record)
    out = tmp_path / "report"
    study.main(["--config", str(path), "--report", "--out", str(out)])
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["validation", "tta", "chosen_on_test"]
    assert float(rows[0]["dice"]) == honest["metrics"]["DSC"]["mean"]
    assert (rows[0]["minutes"], rows[0]["cpu_minutes"]) == ("2.0", "3.0")
    (split,) = {row["split_sha256"] for row in rows}
    assert split == sha256(tmp_path / "blobs" / "blobs_train_test_names.json")
    table = (out / "results.md").read_text()
    assert f"| Wave-GMS | 2,600,668 | {100 * honest['metrics']['DSC']['mean']:.1f} (1) |" in table
    assert "| plain Tiny-VAE | - |" in table
    assert (out / "curves.png").stat().st_size > 0 and (out / "examples.png").stat().st_size > 0

    titles: list[str] = []

    def png(figure: Figure) -> bytes:
        titles.append(figure.get_suptitle())
        return b"drawn"

    monkeypatch.setattr("experiments.studies.curves.png", png)
    added = replace(scores_of(RUN, trial)[0], seed=2, settings=digest(trials[other].config))
    (out / "results.csv").write_text((out / "results.csv").read_text() + to_csv([added]))
    study.main(["--config", str(path), "--report", "--out", str(out)])
    assert titles == ["blobs (1 of 4 runs)"], "of two systems and two seeds"

    record.untimed_attempts, record.done = 1, ["train", "score"]
    write_record(trial.folder, record)
    scores = scores_of(RUN, trial)
    assert [score.checkpoint for score in scores] == ["validation", "chosen_on_test"]
    assert (scores[0].minutes, scores[0].cpu_minutes) == (None, None), "a part is not known"

    groups["groups"] = [["case_1", "case_10", "case_11"]]
    check.write_text(json.dumps(groups))
    (case_9,) = (
        r for r in csv.DictReader((trial.folder / by_case).open()) if r["Name"] == "case_9"
    )
    by_last_check = scores_of(RUN, trial)[0].dice_without_leaked
    assert by_last_check == float(case_9["DSC"]) != float(rows[0]["dice_without_leaked"])
    check.unlink()
    assert scores_of(RUN, trial)[0].dice_without_leaked == float(rows[0]["dice_without_leaked"])

    for changes in ({"threshold": 0.01}, {"evaluation_size": "native"}):
        summary = honest | {"provenance": honest["provenance"] | changes}
        (trial.folder / results).write_text(json.dumps(summary))
        assert [score.checkpoint for score in scores_of(RUN, trial)] == ["chosen_on_test"]
        assert outdated_steps(trial) == {"score"}
    started = ending(monkeypatch, "finished")
    capsys.readouterr()
    for arguments in (["--report"], []):
        study.main(["--config", str(path), "--out", str(out), *arguments])
        assert list(csv.DictReader((out / "results.csv").open()))[:3] == rows, (
            "as it was scored first"
        )
    assert "1 run(s) were scored in another way than the study asks" in capsys.readouterr().out
    assert RUN.name in started
    (trial.folder / results).write_text(json.dumps(honest))
    assert outdated_steps(trial) == set()

    copy = trial.folder / "chosen_on_test" / "best_model.pth"
    scored = copy.read_bytes()
    copy.write_bytes(scored + b"of another training")
    assert [score.checkpoint for score in scores_of(RUN, trial)] == ["validation"]
    assert outdated_steps(trial) == {"score"}
    copy.write_bytes(scored)

    split_file = tmp_path / "blobs" / "blobs_train_test_names.json"
    split = split_file.read_text()
    train, test = (part["name_list"] for part in json.loads(split).values())
    train[0], test[0] = test[0], train[0]
    split_file.write_text(json.dumps({"train": {"name_list": train}, "test": {"name_list": test}}))
    with pytest.raises(
        UserError, match=r"seed 1: trained on another split file than .*blobs_train"
    ):
        study.main(["--config", str(path), "--report", "--out", str(tmp_path / "new")])
    assert scores_of(RUN, trial) == []
    with pytest.raises(UserError, match="trained on another split file"):
        score_run.main(["--config", str(trial.config_file)])
    split_file.write_text(split)
    write(path, settings=settings | {"validate_every": 2})
    with pytest.raises(UserError, match="seed 1: validate_every: 1 in the finished run, 2 now"):
        study.main(["--config", str(path)])

    elsewhere = trial.config.model_copy(update={"num_workers": 7, "GPUs": (3,)})
    assert len(scores_of(RUN, Trial("a", elsewhere))) == 2
    otherwise = trial.config.model_copy(update={"threshold": 0.4})
    assert scores_of(RUN, Trial("a", otherwise)) == [], "they are those of other settings"
    environment = json.loads((trial.folder / "environment.json").read_text())
    environment["processes"] = 2
    (trial.folder / "environment.json").write_text(json.dumps(environment))
    assert scores_of(RUN, trial)[0].settings == digest(trial.config, 2) != digest(trial.config)


def test_each_column_has_the_score_of_its_name(tmp_path: Path) -> None:
    trial = trials_of(load_study(write(tmp_path / "s.yaml")))[RUN]
    missed = dict.fromkeys((*METRICS, *SIZES), 0.0)
    missed |= {"Height": 6.0, "Width": 8.0, "TruthPixels": 3.0, "HD95": 10.0}
    found = missed | {"DSC": 0.75, "IoU": 0.5, "HD95": 2.0, "PredictedPixels": 3.0}
    scores = {"found": found, "missed": missed}
    made_with = {"sha256": {"split file": "1" * 64}}
    write_results(trial.folder / "valid_results_blobs", scores, provenance=made_with)
    (trial.folder / "parameters.json").write_text('{"trainable": 7}')
    config = trial.config.model_dump(mode="json")
    write_record(trial.folder, Record(trial.name, config, "finished", ["train", "score"]))
    (score,) = scores_of(RUN, trial)
    assert (score.dice, score.iou, score.hd95) == (0.375, 0.25, 6.0)
    assert (score.hd95_misses_as_0, score.hd95_detected) == (1.0, 2.0)
    assert (score.misses, score.cases, score.parameters) == (1, 2, 7)
    assert score.split_sha256 == "1" * 64
    assert score.dice_without_leaked is None, "none is known to have leaked"


def test_a_run_that_is_not_trained_cannot_be_scored(tmp_path: Path) -> None:
    trial = trials_of(load_study(write(tmp_path / "s.yaml")))[RUN]
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(trial.config.model_dump(mode="json")))
    with pytest.raises(UserError, match=r"holds no best_model\.pth: train the run first"):
        score_run.main(["--config", str(path)])


def row(
    path: Path,
    system: str,
    seed: int,
    checkpoint: str = "validation",
    dice: float = 0.5,
    split_sha256: str = "0" * 64,
) -> Score:
    config = trials_of(load_study(path))[Run(system, "published", seed)].config
    return Score(
        system=system,
        split="published",
        seed=seed,
        checkpoint=checkpoint,
        dice=dice,
        dice_low=0.4,
        dice_high=0.6,
        dice_without_leaked=None,
        iou=0.3,
        hd95=9.0,
        hd95_misses_as_0=8.0,
        hd95_detected=None,
        misses=2,
        cases=26,
        parameters=7,
        minutes=1.5,
        cpu_minutes=3.0,
        settings=digest(config),
        split_sha256=split_sha256,
    )


def test_scores_of_runs_on_another_machine_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.yaml")
    rows = [
        row(path, "Wave-GMS", 1, dice=0.625),
        row(path, "Wave-GMS", 1, "tta", dice=0.75),
        row(path, "Wave-GMS", 2, dice=0.625),
        row(path, "plain Tiny-VAE", 2, dice=0.25),
    ]
    out = tmp_path / "report"
    out.mkdir()
    (out / "results.csv").write_text(to_csv(rows))
    (out / "curves.png").write_bytes(b"drawn there")
    table = write_study(load_study(path), out)
    assert "| Wave-GMS | 7 | 62.5 ± 0.0 | 30.0 ± 0.0 | 9.0 ± 0.0 |" in table
    assert "| 75.0 (1) | 1.5 ± 0.0 |" in table
    assert "| plain Tiny-VAE | 7 | 25.0 (1) |" in table
    assert (out / "results.csv").read_text() == to_csv(rows), "nothing is lost or changed"
    assert (out / "curves.png").read_bytes() == b"drawn there"

    place = {
        "num_workers": 3,
        "cache_mb": 1,
        "GPUs": [2],
        "compile": True,
        "drop_leaked": False,
        "channels_last": False,
    }
    place |= {"cuda_graphs": False}
    settings = {"epochs": 2, "image_size": 32, "save_freq": 1} | place
    splits = {"published": "/elsewhere/blobs_train_test_names.json"}
    elsewhere = write(path, settings=settings, splits=splits)
    assert write_study(load_study(elsewhere), out) == table, "the machine is no setting"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"epochs": 3}}, "other settings: Wave-GMS, published split, seed 1"),
        ({"splits": {"published": "bus_train_test_names.json"}}, "other settings: Wave-GMS"),
        ({"seeds": [2]}, "a run that the study does not name: Wave-GMS.*seed 1.*--out"),
    ],
)
def test_a_table_of_another_study_is_not_written_over(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "s.yaml")
    before = to_csv([row(path, "Wave-GMS", 1)])
    (tmp_path / "results.csv").write_text(before)
    write(path, **changes)
    with pytest.raises(UserError, match=message):
        study.main(["--config", str(path), "--out", str(tmp_path)])
    assert (tmp_path / "results.csv").read_text() == before


def test_scores_on_different_splits_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    rows = [row(path, "Wave-GMS", 1), row(path, "Wave-GMS", 2, split_sha256="1" * 64)]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    with pytest.raises(UserError, match="seed 2 was scored on another split file than that of oth"):
        write_study(load_study(path), tmp_path)

    (tmp_path / "results.csv").write_text(to_csv(rows[:1]))
    write_study(load_study(path), tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "blobs_train_test_names.json").write_text("{}")
    with pytest.raises(UserError, match="another split file than the one on this machine"):
        study.main(["--config", str(path), "--out", str(tmp_path)])


def test_the_number_of_processes_is_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", settings={"GPUs": [0, 1]})
    config = trials_of(load_study(path))[RUN].config
    one = row(path, "Wave-GMS", 1)
    two = replace(one, settings=digest(config, 2))
    runs = trials_of(load_study(path))
    for allowed in (one, two):
        (tmp_path / "results.csv").write_text(to_csv([allowed]))
        assert scores_in_table(tmp_path, runs) == {RUN: [allowed]}
    write(path, settings={"GPUs": [4]})
    with pytest.raises(UserError, match="other settings"):
        scores_in_table(tmp_path, trials_of(load_study(path)))


@pytest.mark.parametrize("table", sorted((ROOT / "docs").glob("results/*/results.csv")), ids=str)
def test_shipped_results_are_those_of_the_shipped_study(table: Path, tmp_path: Path) -> None:
    folder = table.parent
    shipped = load_study(ROOT / "configs" / "studies" / f"{folder.name}.yaml")
    here = shipped.model_copy(update={"folder": tmp_path})
    shutil.copyfile(folder / "results.csv", tmp_path / "results.csv")
    assert write_study(here, tmp_path) == (folder / "results.md").read_text()
    assert (tmp_path / "results.csv").read_text() == (folder / "results.csv").read_text()


def test_systems_are_compared_seed_by_seed(tmp_path: Path) -> None:
    systems = {
        "ours": {},
        "a": {"ema_decay": 0.5},
        "b": {"ema_decay": 0.6},
        "c": {"ema_decay": 0.7},
    }
    path = write(tmp_path / "s.yaml", seeds=[1, 2, 3, 4], systems=systems)
    dice = {
        "ours": {1: 0.6, 2: 0.7, 3: 0.65},
        "a": {1: 0.5, 2: 0.55, 3: 0.63, 4: 0.9},
        "b": {2: 0.6999, 3: 0.6502},
        "c": {3: 0.1, 4: 0.1},
    }
    rows = [
        row(path, name, seed, dice=value)
        for name, values in dice.items()
        for seed, value in values.items()
    ]
    rows.append(row(path, "c", 1, "tta", dice=0.1))
    (tmp_path / "results.csv").write_text(to_csv(rows))
    lines = write_study(load_study(path), tmp_path).splitlines()
    start = lines.index("| Dice of ours minus that of | seed 1 | seed 2 | seed 3 | mean |")
    low, high = t_interval([10.0, 15.0, 2.0])
    assert lines[start + 2] == f"| a | +10.0 | +15.0 | +2.0 | +9.0 ({low:.1f} to {high:.1f}) |"
    assert lines[start + 3] == "| b | - | 0.0 | 0.0 | 0.0 (-0.2 to 0.2) |"
    assert lines[start + 4] == "", "c has only one seed that ours has"
    assert "not adjusted for the 2 systems compared" in lines[start + 5]


def test_systems_are_also_compared_without_the_leaked_cases(tmp_path: Path) -> None:
    systems = {"ours": {}, "a": {"ema_decay": 0.5}, "b": {"ema_decay": 0.6}}
    path = write(tmp_path / "s.yaml", seeds=[1, 2], systems=systems)
    kept: dict[str, dict[int, float | None]]
    kept = {"ours": {1: 0.6, 2: 0.7}, "a": {1: 0.59, 2: 0.72}, "b": {1: 0.5, 2: None}}
    rows = [
        replace(row(path, name, seed, dice=0.5), dice_without_leaked=value)
        for name, values in kept.items()
        for seed, value in values.items()
    ]
    rows += [replace(row(path, "a", 1, "tta"), dice_without_leaked=0.1)]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    lines = write_study(load_study(path), tmp_path).splitlines()
    header = "| Dice of ours minus that of | seed 1 | seed 2 | mean | mean, no leaked cases |"
    start = lines.index(header)
    low, high = t_interval([1.0, -2.0])
    nothing = "0.0 | 0.0 | 0.0 (0.0 to 0.0)"
    assert lines[start + 2] == f"| a | {nothing} | -0.5 ({low:.1f} to {high:.1f}) |"
    assert lines[start + 3] == f"| b | {nothing} | - |", "one of its seeds does not have it"


def test_systems_without_different_cases_are_not_compared(tmp_path: Path) -> None:
    systems = {"ours": {}, "a": {"ema_decay": 0.5}, "b": {"ema_decay": 0.6}}
    path = write(tmp_path / "s.yaml", seeds=[1, 2], systems=systems)
    left_out = {"ours": "1" * 12, "a": "1" * 12, "b": "2" * 12}
    rows = [
        replace(row(path, name, seed), dice_without_leaked=0.4, leaked_cases=cases)
        for seed in (1, 2)
        for name, cases in left_out.items()
    ]
    rows[1] = replace(rows[1], leaked_cases=None)  # as in a table of an earlier version
    (tmp_path / "results.csv").write_text(to_csv(rows))
    table = write_study(load_study(path), tmp_path)
    assert (tmp_path / "results.csv").read_text() == to_csv(rows)
    nothing = "0.0 | 0.0 | 0.0 (0.0 to 0.0)"
    assert f"| a | {nothing} | 0.0 (0.0 to 0.0) |" in table
    assert f"| b | {nothing} | - |" in table
    told = "train. They are not the same for all systems"
    assert told in table

    (tmp_path / "results.csv").write_text(to_csv([each for each in rows if each.system != "b"]))
    assert told not in write_study(load_study(path), tmp_path)


def test_which_cases_leaked_is_recorded(tmp_path: Path) -> None:
    trial = trials_of(load_study(write(tmp_path / "s.yaml")))[RUN]
    trial.folder.mkdir(parents=True)
    (trial.folder / "parameters.json").write_text('{"trainable": 7}')
    config = trial.config.model_dump(mode="json")
    write_record(trial.folder, Record(trial.name, config, "finished", ["train", "score"]))
    sizes = {"Height": 6.0, "Width": 8.0, "TruthPixels": 3.0}
    found = {name: dict.fromkeys((*METRICS, *SIZES), 0.5) | sizes for name in "abc"}
    made_with = {"sha256": {"split file": "1" * 64}}

    def leaked_cases(*leaked: str) -> str | None:
        results = trial.folder / "valid_results_blobs"
        write_results(results, found, provenance=made_with, leaked=leaked)
        return scores_of(RUN, trial)[0].leaked_cases

    first, other = leaked_cases("a", "b"), leaked_cases("b", "c")
    assert first and other and first != other
    assert leaked_cases("b", "a") == first and leaked_cases() is None


def test_the_columns_that_need_it_are_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    rows = [row(path, "Wave-GMS", 1)]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    assert "*Dice, chosen on test*" not in write_study(load_study(path), tmp_path)
    rows.append(row(path, "Wave-GMS", 1, "chosen_on_test", dice=0.4))  # below the other choice
    (tmp_path / "results.csv").write_text(to_csv(rows))
    table = write_study(load_study(path), tmp_path)
    assert "the best on test of the epochs that were kept, which need not be all" in table


def test_one_seed_or_one_system_is_compared_with_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    (tmp_path / "results.csv").write_text(
        to_csv([row(path, s, 1) for s in ("Wave-GMS", "plain Tiny-VAE")])
    )
    assert "minus" not in write_study(load_study(path), tmp_path)
    write(path, systems={"Wave-GMS": {}})
    (tmp_path / "results.csv").write_text(to_csv([row(path, "Wave-GMS", s) for s in (1, 2)]))
    assert "minus" not in write_study(load_study(path), tmp_path)


def describe_study() -> str:
    """All keys of a study's file as the Markdown table of docs/studies.md."""
    defaults = {"settings": "`{}`", "tta": "`true`", "folder": "`ckpt/studies/<name of the file>`"}
    rows = [
        [f"`{name}`", defaults.get(name, "required"), field.description or ""]
        for name, field in Study.model_fields.items()
    ]
    return markdown_table(["key", "default", "meaning"], rows, left=3) + "\n"


def test_the_page_lists_the_keys_of_a_study(tmp_path: Path) -> None:
    page = ROOT / PAGE
    assert describe_study() in page.read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    assert yaml.safe_load(example).keys() < Study.model_fields.keys()
    with pytest.raises(UserError, match=rf"unknown key 'xyz'; see {PAGE} for all keys"):
        load_study(write(tmp_path / "s.yaml", xyz=1))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("system,dice\nWave-GMS,high\n")
    with pytest.raises(UserError, match=r"results\.csv is not the table of a study") as caught:
        scores_in_table(tmp_path, {})
    assert "line 2, split: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path: Path) -> None:
    """Those of Excel begin with a byte order mark."""
    path = write(tmp_path / "s.yaml")
    one = row(path, "Wave-GMS", 1)
    (tmp_path / "results.csv").write_text(to_csv([one]), encoding="utf-8-sig")
    assert scores_in_table(tmp_path, trials_of(load_study(path))) == {one.run: [one]}


def test_tables_can_be_put_together_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    loaded, table = load_study(path), tmp_path / "results.csv"
    one, other = row(path, "Wave-GMS", 1), row(path, "Wave-GMS", 2, dice=0.75)
    table.write_text(to_csv([one]) + to_csv([one, other]))
    assert scores_in_table(tmp_path, trials_of(loaded)) == {one.run: [one], other.run: [other]}
    assert "| Wave-GMS | 7 | 62.5 ± 17.7 |" in write_study(loaded, tmp_path)

    more = replace(other, dice_without_leaked=0.5, leaked_cases="1" * 12)
    for tables in (to_csv([one]) + to_csv([more]), to_csv([more]) + to_csv([one])):
        table.write_text(tables)
        read = scores_in_table(tmp_path, trials_of(loaded))
        assert read == {one.run: [one], more.run: [more]}, "one of them has a column more"
    older = to_csv([replace(more, leaked_cases=None)])
    for tables in (older + to_csv([more]), to_csv([more]) + older):
        table.write_text(tables)
        read = scores_in_table(tmp_path, trials_of(loaded))
        assert read == {more.run: [more]}, "an earlier version did not say which cases leaked"
    noted = [
        text.replace("\n", ",note\n", 1).replace("\n", ",mine\n").replace("note,mine", "note")
        for text in (to_csv([one]), to_csv([other]))
    ]
    table.write_text("".join(noted))
    read = scores_in_table(tmp_path, trials_of(loaded))
    assert read == {one.run: [one], other.run: [other]}, "each table has a column of one's own"

    table.write_text(to_csv([one, other]) + to_csv([replace(one, minutes=2.5)]))
    expected = (
        r"two different scores \(validation\) of Wave-GMS, .* seed 1: line 5.*remove the rows"
    )
    with pytest.raises(UserError, match=expected):
        study.main(["--config", str(path), "--out", str(tmp_path)])
    wrong = to_csv([one]) + to_csv([other]).replace("0.75", "high", 1)
    table.write_text(wrong)
    with pytest.raises(UserError, match=r"line 4, dice: .*number.*got 'high'\. Correct the line"):
        scores_in_table(tmp_path, trials_of(loaded))
    for damaged in (to_csv([one]).strip() + ",more\n", to_csv([one]).replace("dice_low,", "")):
        table.write_text(damaged)
        with pytest.raises(UserError, match=r"line 2, "):
            scores_in_table(tmp_path, trials_of(loaded))


def test_columns_without_numbers_are_left_out(tmp_path: Path) -> None:
    splits = {name: f"{name}_train_test_names.json" for name in ("published", "grouped")}
    path = write(tmp_path / "s.yaml", tta=False, splits=splits)
    (tmp_path / "results.csv").write_text(to_csv([row(path, "Wave-GMS", 1)]))
    table = write_study(load_study(path), tmp_path)
    header = "| system | parameters | Dice | IoU | HD95 | HD95, misses as 0 | missed | minutes |"
    assert header in table
    assert "leaked" not in table.lower() and "group split" not in table.lower()
    (tmp_path / "results.csv").write_text(
        to_csv([replace(row(path, "Wave-GMS", 1), dice_without_leaked=0.25)])
    )
    table = write_study(load_study(path), tmp_path)
    assert "| Dice | no leaked cases | IoU |" in table and "*No leaked cases* leaves" in table
    assert "tta" not in training_and_scoring_steps(trials_of(load_study(path))[RUN], tta=False)


def test_each_system_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "history.csv").write_text("epoch,val_dice\n1,0.5\n")
    names = [f"system {i}" for i in range(14)]
    study = load_study(write(tmp_path / "study.yaml", systems={name: {} for name in names}))
    drawn = keep_figures(monkeypatch, "experiments.studies.curves")
    runs = {Run(name, "published", 1): tmp_path / "history.csv" for name in names}
    draw_curves(tmp_path / "curves.png", study, runs, 14)
    (axis,) = drawn[0].axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 14
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == names


def test_curves_are_means_over_the_seeds_that_have_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_study(write(tmp_path / "s.yaml"))
    drawn = keep_figures(monkeypatch, "experiments.studies.curves")
    histories = {}
    for seed, rows in ((1, "1,0.5\n2,\n3,0.75\n4,0.5\n"), (2, "1,0.25\n2,0.5\n3,0.25\n")):
        histories[Run("Wave-GMS", "published", seed)] = tmp_path / f"{seed}.csv"
        (tmp_path / f"{seed}.csv").write_text(f"epoch,val_dice\n{rows}")
    draw_curves(tmp_path / "curves.png", loaded, histories, 2)
    (line,) = drawn[0].axes[0].lines
    assert np.array(line.get_xydata()).tolist() == [[1, 0.375], [3, 0.5]]


@pytest.mark.parametrize(("count", "bands"), [(4, 4), (5, 0)])
def test_curves_are_told_apart_where_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, bands: int
) -> None:
    """Bands of few systems alone; the best first; an early low is cut off, and no last value is."""
    names = [f"system {i}" for i in range(count)]
    study = load_study(write(tmp_path / "study.yaml", systems={name: {} for name in names}))
    runs = {}
    for i, name in enumerate(names):
        for seed in (1, 2):
            last = 0.3 if i == 1 else 0.7 + 0.01 * i  # the second system ends far below the others
            dice = [0.1, 0.6, *[last] * 8]
            rows = (f"{epoch},{value + 0.02 * seed}" for epoch, value in enumerate(dice, 1))
            runs[Run(name, "published", seed)] = tmp_path / f"{i}_{seed}.csv"
            runs[Run(name, "published", seed)].write_text("\n".join(["epoch,val_dice", *rows]))
    drawn = keep_figures(monkeypatch, "experiments.studies.curves")
    draw_curves(tmp_path / "curves.png", study, runs, 2 * count)
    (axis,) = drawn[0].axes
    assert len(axis.lines) == count and len(axis.collections) == bands
    best_first = [names[i] for i in [*range(count - 1, 1, -1), 0, 1]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == best_first
    told = "mean and range of the seeds" if bands else "mean of the seeds"
    assert drawn[0].legends[0].get_title().get_text() == told
    low, high = axis.get_ylim()
    assert 0.13 < low < 0.32 and high > 0.7 + 0.01 * (count - 1) + 0.03


def test_test_time_augmentation_can_be_added(tmp_path: Path) -> None:
    ways = ["validation", "chosen_on_test"]
    path = write(tmp_path / "s.yaml", tta=False)
    (tmp_path / "results.csv").write_text(to_csv([row(path, "Wave-GMS", 1, way) for way in ways]))

    def scored(path: Path) -> set[Run]:
        loaded = load_study(path)
        return runs_complete_in_table(loaded, tmp_path, trials_of(loaded))

    assert scored(path) == {RUN}
    assert scored(write(path, tta=True)) == set()
    trial = trials_of(load_study(path))[RUN]
    without, with_tta = (training_and_scoring_steps(trial, tta) for tta in (False, True))
    assert list(with_tta.items())[:-1] == list(without.items()), "what is done stays done"
    assert with_tta["tta"] == [*without["score"], "--tta"]


@pytest.mark.parametrize(("save_freq", "chosen"), [(None, False), (2, True), (3, False)])
def test_the_choice_on_test_is_among_kept_epochs(
    tmp_path: Path, save_freq: int | None, chosen: bool
) -> None:
    loaded = load_study(write(tmp_path / "s.yaml", settings={"epochs": 2, "save_freq": save_freq}))
    assert ("chosen_on_test" in ways_of(loaded, trials_of(loaded)[RUN].config)) == chosen


def test_scores_here_and_in_the_table_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stands in the table was trained there, the one in the folder here."""
    path = write(tmp_path / "s.yaml")
    whole = [row(path, "Wave-GMS", 1, way) for way in ("validation", "tta", "chosen_on_test")]
    part = [row(path, "Wave-GMS", 1, dice=0.75)]
    trial = trials_of(load_study(path))[RUN]
    shown = trial.folder / f"valid_results_{trial.config.dataset}" / "examples.png"
    shown.parent.mkdir(parents=True)
    shown.write_bytes(b"here")
    for here, there, picture in ((part, whole, b"there"), (whole, part, b"here")):
        (tmp_path / "results.csv").write_text(to_csv(there))
        (tmp_path / "examples.png").write_bytes(b"there")
        monkeypatch.setattr(
            "experiments.studies.report.scores_of", lambda run, _, h=here: h if run == RUN else []
        )
        write_study(load_study(path), tmp_path)
        assert (tmp_path / "results.csv").read_text() == to_csv(whole)
        assert (tmp_path / "examples.png").read_bytes() == picture


def test_minutes_that_are_not_known_are_left_out_of_the_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    rows = [row(path, "Wave-GMS", 1), replace(row(path, "Wave-GMS", 2), minutes=None)]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    table = write_study(load_study(path), tmp_path)
    assert "| 1.5 (1) | 3.0 ± 0.0 |" in table
    assert (tmp_path / "results.csv").read_text() == to_csv(rows)


def test_a_test_split_of_one_case_has_no_interval(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml")
    rows = [replace(row(path, "Wave-GMS", 1), cases=1, dice_low=None, dice_high=None)]
    (tmp_path / "results.csv").write_text(to_csv(rows))
    write_study(load_study(path), tmp_path)
    assert (tmp_path / "results.csv").read_text() == to_csv(rows)


@pytest.mark.parametrize("workers", ["0", "-2", "two"])
def test_workers_are_counted_from_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    with pytest.raises(SystemExit):
        study.main(["--config", str(write(tmp_path / "s.yaml")), "--workers", workers])
    assert "argument --workers" in capsys.readouterr().err


def test_runs_are_made_as_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.yaml")
    (tmp_path / "results.csv").write_text(to_csv([row(path, "Wave-GMS", 1)]))
    calls: list[list[Trial]] = []

    def run_trials(
        trials: list[Trial],
        workers: int = 1,
        *,
        steps: Callable[[Trial], Steps],
        retry_failed: bool = False,
        outdated: Callable[[Trial], Collection[str]] = lambda _: (),
        on_end: Callable[[Outcome], None] = lambda _: None,
    ) -> list[Outcome]:
        calls.append(trials)
        assert (workers, retry_failed) == (3, True)
        assert list(steps(trials[0])) == ["train", "score", "tta"]
        assert outdated(trials[0]) == {"score"}
        on_end(Outcome(trials[0], Record(trials[0].name, {}, "finished"), True))
        assert (tmp_path / "results.md").is_file(), "the report is written after each run"
        return []

    monkeypatch.setattr("experiments.trials.runner.run_trials", run_trials)
    monkeypatch.setattr("experiments.studies.scores.outdated_steps", lambda _: {"score"})
    arguments = ["--workers", "3", "--retry-failed", "--out", str(tmp_path)]
    assert study.main(["--config", str(path), *arguments]) == 0
    assert [len(trials) for trials in calls] == [4]


def ending(monkeypatch: pytest.MonkeyPatch, *statuses: Status) -> list[str]:
    """The runs end with these statuses, the last of which is that of all others.

    Returns a list that gets the names of the runs.
    """
    started: list[str] = []

    def run_trials(trials: list[Trial], *_: object, **__: object) -> list[Outcome]:
        started.extend(trial.name for trial in trials)
        by_trial = [*statuses, *[statuses[-1]] * len(trials)]
        return [
            Outcome(trial, Record(trial.name, {}, status), True)
            for trial, status in zip(trials, by_trial, strict=False)
        ]

    monkeypatch.setattr("experiments.trials.runner.run_trials", run_trials)
    return started


def test_runs_that_did_not_end_well_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "s.yaml")
    ending(monkeypatch, "failed")
    assert study.main(["--config", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "4 of 4 runs failed (see their trial.log; --retry-failed" in printed
    assert ": Wave-GMS, published split, seed 1; plain" in printed and "stopped" not in printed

    ending(monkeypatch, "failed", "interrupted")
    assert study.main(["--config", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 4 runs failed" in printed and "3 of 4 runs were stopped from outside" in printed

    ending(monkeypatch, "interrupted")
    many = write(tmp_path / "s.yaml", seeds=list(range(9)))
    assert study.main(["--config", str(many)]) == 1
    printed = capsys.readouterr().out
    assert (
        "18 of 18 runs were stopped from outside" in printed and "seed 1 and 14 more\n" in printed
    )


def test_a_run_of_other_settings_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.yaml")
    trial = trials_of(load_study(path))[RUN]
    trial.folder.mkdir(parents=True)
    config = trial.config.model_dump(mode="json")
    write_record(trial.folder, Record(trial.name, config, "finished", ["train", "score"]))
    before = (trial.folder / "trial.json").read_bytes()
    started = ending(monkeypatch, "finished")
    write(path, settings={"epochs": 2, "image_size": 40, "save_freq": 1})
    with pytest.raises(UserError, match="seed 1: image_size: 32 in the finished run, 40 now"):
        study.main(["--config", str(path)])
    assert not started and (trial.folder / "trial.json").read_bytes() == before


@pytest.mark.parametrize("val", [["case_4"], ["case_1"], []], ids=str)
def test_a_run_that_held_out_other_cases_is_refused(tmp_path: Path, val: list[str]) -> None:
    split = write_data_set(tmp_path, train=5, test=1, size=8)
    train, test = (part["name_list"] for part in json.loads(split.read_text()).values())

    def hold_out(names: list[str]) -> None:
        parts = {"train": [n for n in train if n not in names], "val": names, "test": test}
        named = {part: {"name_list": those} for part, those in parts.items() if those}
        split.write_text(json.dumps(named))

    hold_out(["case_4"])
    trial = trials_of(load_study(write(tmp_path / "s.yaml")))[RUN]
    trial.folder.mkdir(parents=True)
    (trial.folder / "best_model.pth").touch()
    (trial.folder / "config.yaml").write_text(dump_config(trial.config))
    inputs = {"training_cases": names_sha256(train)}
    (trial.folder / "environment.json").write_text(json.dumps(inputs))
    cases = RunCases(tuple(train[:4]), ("case_4",), tuple(test))
    (trial.folder / "cases.json").write_text(cases.to_json())
    hold_out(val)
    (tmp_path / "blobs" / "images" / "case_0.png").unlink()  # the data need not be at hand
    if val == ["case_4"]:
        check_earlier_runs([trial])
    else:
        with pytest.raises(UserError, match=r"trained on another split file than .*blobs_train"):
            check_earlier_runs([trial])


def test_other_initial_weights_need_another_folder_and_table(tmp_path: Path) -> None:
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"retrained")
    systems = {"Wave-GMS": {"init_weights": str(weights)}}
    trial = trials_of(load_study(write(tmp_path / "s.yaml", systems=systems)))[RUN]
    trial.folder.mkdir(parents=True)
    (trial.folder / "best_model.pth").touch()
    inputs = {"sha256": {"file of initial weights": "0" * 64}}
    (trial.folder / "environment.json").write_text(json.dumps(inputs))
    with pytest.raises(UserError, match=r"(?s)file of initial.* folder and --out of a study\)"):
        check_earlier_runs([trial])


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"epochs": 2, "image_size": 32, "vae_weights": "ckpt/tiny_vae"}
    path = write(tmp_path / "s.yaml", tta=False, settings=settings)
    command = ["--config", str(path), "--out", str(tmp_path), "--dry-run"]
    with pytest.raises(UserError, match="no split file for the data set 'blobs'"):
        study.main(command)
    write_data_set(tmp_path, train=8, test=2, size=32)
    split = sha256(tmp_path / "blobs" / "blobs_train_test_names.json")
    done = row(path, "Wave-GMS", 1, split_sha256=split)
    (tmp_path / "results.csv").write_text(to_csv([done]))
    before = sorted(tmp_path.rglob("*"))
    started = ending(monkeypatch, "finished")
    assert study.main(command) == 0
    told = capsys.readouterr().out
    assert "blobs: 4 run(s), 3 without all of their results:\n" in told
    assert "  Wave-GMS, published split, seed 1: has its results\n" in told
    assert "  plain Tiny-VAE, published split, seed 1: to be trained\n" in told
    assert not started and sorted(tmp_path.rglob("*")) == before
    systems = {"Wave-GMS": {}, "b": {"init_weights": "nowhere.pth"}}
    write(path, tta=False, settings=settings, systems=systems)
    with pytest.raises(UserError, match=r"b, published .*init_weights: there is no file nowhere"):
        study.main(command)


@pytest.mark.parametrize("command", [[], ["--dry-run"], ["--report"]], ids=str)
def test_a_report_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    path = write(tmp_path / "s.yaml", tta=False)
    started = ending(monkeypatch, "finished")
    (tmp_path / "a_file").touch()
    for out in (tmp_path / "a_file", tmp_path / "a_file" / "below", Path("/proc/x")):
        with pytest.raises(UserError, match=rf"report cannot be written to {out}: .*--out"):
            study.main(["--config", str(path), "--out", str(out), *command])
    assert not started


@pytest.mark.parametrize("name", ["results.md", "curves.png", "examples.png"])
def test_a_disk_that_fills_up_meanwhile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path / "s.yaml", systems={"Wave-GMS": {}}, seeds=[1])
    own = row(path, "Wave-GMS", 1)
    trial = trials_of(load_study(path))[RUN]
    results = trial.folder / "valid_results_blobs"
    results.mkdir(parents=True)
    (results / "examples.png").touch()
    (trial.folder / "history.csv").write_text("epoch,val_dice\n1,0.5\n")
    monkeypatch.setattr("experiments.studies.report.scores_of", lambda *_: [own])
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot write to .*{name}.*same command"):
        write_study(load_study(path), tmp_path)


def test_a_dry_run_tells_what_failed_and_that_there_is_nothing_to_choose_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"epochs": 2, "image_size": 32, "vae_weights": "ckpt/tiny_vae"}
    path = write(tmp_path / "s.yaml", tta=False, settings=settings)
    command = ["--config", str(path), "--out", str(tmp_path), "--dry-run"]
    write_data_set(tmp_path, train=8, test=2, size=32)
    trials = trials_of(load_study(path))
    statuses: dict[int, Status] = {1: "failed", 2: "finished"}
    for seed, status in statuses.items():
        trial = trials[Run("Wave-GMS", "published", seed)]
        trial.folder.mkdir(parents=True)
        config = trial.config.model_dump(mode="json")
        write_record(trial.folder, Record(trial.name, config, status, ["train"]))
    assert study.main(command) == 0
    told = capsys.readouterr().out
    assert "  Wave-GMS, published split, seed 1: failed\n" in told, "in its scoring"
    assert "  Wave-GMS, published split, seed 2: trained, to be scored\n" in told
    other = {"folder": str(tmp_path / "other"), "settings": settings | {"val_fraction": 0}}
    write(path, tta=False, **other)
    with pytest.raises(UserError, match="is held out to choose the checkpoint: raise val_fraction"):
        study.main(command)


def test_a_stopped_run_leaves_the_report_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.yaml", tta=False)
    ways = ("validation", "chosen_on_test")
    (tmp_path / "results.csv").write_text(to_csv([row(path, "Wave-GMS", 1, way) for way in ways]))
    ending(monkeypatch, "interrupted")
    assert study.main(["--config", str(path), "--out", str(tmp_path)]) == 1
    assert "| Wave-GMS | 7 | 50.0 (1) |" in (tmp_path / "results.md").read_text()


def test_a_study_can_be_run_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    trial = trials_of(load_study(write(tmp_path / "s.yaml")))[RUN]

    def only_score(trial: Trial) -> Steps:
        return {"score": training_and_scoring_steps(trial, tta=False)["score"]}

    (outcome,) = run_trials([trial], steps=only_score)
    assert "holds no best_model.pth: train the run first" in (outcome.record.error or "")


def test_runs_of_different_numbers_of_processes_are_not_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.yaml", settings={"GPUs": [0, 1], "epochs": 2})
    runs = trials_of(load_study(path))
    one = row(path, "Wave-GMS", 1)
    second = row(path, "Wave-GMS", 2)
    two = replace(second, settings=digest(runs[second.run].config, 2))
    (tmp_path / "results.csv").write_text(to_csv([one, two]))
    expected = r"seed 1 is trained by 1 process\(es\) and .* seed 2 by 2, each with batches"
    with pytest.raises(UserError, match=expected):
        write_study(load_study(path), tmp_path)
    (tmp_path / "results.csv").write_text(to_csv([one]))
    monkeypatch.setattr(
        "experiments.studies.report.scores_of", lambda run, _: [two] if run == two.run else []
    )
    with pytest.raises(UserError, match=expected):
        write_study(load_study(path), tmp_path)


def test_a_study_goes_on_with_as_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.yaml", settings={"GPUs": [0, 1], "epochs": 2}, tta=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = trials_of(load_study(path))[RUN].config
    two = replace(row(path, "Wave-GMS", 1), settings=digest(config, 2))
    (tmp_path / "results.csv").write_text(to_csv([two]))
    command = ["--config", str(path), "--out", str(tmp_path)]
    started = ending(monkeypatch, "finished")
    assert study.main(command) == 0 and len(started) == 3
    with pytest.raises(UserError, match=r"seed 1 is trained by 2 .* by 1, each.*workers"):
        study.main([*command, "--workers", "2"])
    assert study.main([*command, "--workers", "2", "--report"]) == 0, "it trains nothing"
