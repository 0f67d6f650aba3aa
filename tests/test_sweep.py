"""Sweeps: what their YAML may say, the trials that follow, resuming, and the reports."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import sweep
from datasets.splits import Split, read_split, write_split
from engine.runs.run_cases import names_sha256
from experiments.sweeps.plan import (
    check_sweep,
    describe_plan,
    make_plan,
    write_sweep_report,
)
from experiments.sweeps.report import find_best, plot_settings, to_csv, to_markdown, write_best
from experiments.sweeps.scores import (
    Repeat,
    SettingScores,
    best_validation,
    results_on_test,
    score_setting,
)
from experiments.sweeps.settings import Sweep, SweepSettings, load_sweep
from experiments.sweeps.slots import held_slot
from experiments.sweeps.trials import best_config, list_settings
from experiments.trials import runner
from experiments.trials.earlier_runs import fitting_results
from experiments.trials.records import Record
from experiments.trials.trial import (
    Outcome,
    Steps,
    Trial,
    training_and_validation_steps,
    training_steps,
)
from scoring.groups import named_groups
from scoring.metrics import METRICS, SIZES, EmptyRule
from scoring.results import write_results
from scoring.statistics import describe, t_interval
from tests.cases_on_disk import write_data_set
from tests.quick_training import make_sweeps_quick, quick_steps, starts
from tests.small_run import arguments
from utils.config import Config, dump_config, load_config, make_config
from utils.errors import UserError
from utils.files import joined_sha256, sha256
from utils.interruption import Interrupted
from utils.locks import FolderInUse
from utils.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
UNET = "smp/Unet"


def write_sweep(tmp_path: Path, settings: object, **values: object) -> Path:
    """A sweep's YAML in `tmp_path` that writes to `tmp_path/out`."""
    content: dict[str, Any] = {
        "pickle_file_path": "x_train_test_names.json",
        "snapshot_path": str(tmp_path / "out"),
        "epochs": 2,
    }
    content |= values | {"sweep": settings}
    path = tmp_path / "lr.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def told_before(loaded: Sweep) -> str:
    return describe_plan(loaded, check_sweep(loaded))


def run(path: Path, *arguments: str) -> int:
    return sweep.main(["--config", str(path), *arguments])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_sweeps_quick(monkeypatch)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path: Path) -> None:
    assert "writes to: ckpt/sweeps/" in told_before(load_sweep(path))


def test_there_are_shipped_sweeps() -> None:
    assert {"busi_lr", "phantom_search", "phantom_seeds"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to run"),
        (3, "no mapping under `sweep:`, got 3"),
        ({"grids": {"lr": [1]}}, "sweep: unknown key 'grids'; did you mean 'grid'"),
        ({"grid": {"lrr": [1]}}, "unknown key 'lrr'; did you mean 'lr'"),
        ({"grid": {"lr": []}}, "sweep.grid.lr: .*at least 1"),
        ({"grid": {"lr": ["fast"]}}, "lr: .*number.*'fast'"),
        ({"grid": {"lr": [0.1, 0.10]}}, "two settings are lr=0.1"),
        ({"grid": {"image_size": [64, 100]}}, "image_size is 100"),
        ({"grid": {"seed": [1, 2]}}, "seed cannot be swept: list the seeds"),
        (
            {"grid": {"select_on": ["val", "test"]}},
            "select_on cannot be swept: scores on different",
        ),
        ({"search": {"select_on": ["val", "test"]}, "trials": 3}, "select_on cannot be swept"),
        (
            {"grid": {"val_fraction": [0.1, 0.2]}},
            "val_fraction cannot be swept: scores on different",
        ),
        (
            {"search": {"val_fraction": {"low": 0.1, "high": 0.2}}, "trials": 3},
            "val_fraction cannot be swept",
        ),
        (
            {"variants": {"a": {}, "b": {"pickle_file_path": "y.json"}}},
            "pickle_file_path cannot be swept",
        ),
        (
            {"variants": {"a": {"model_weight": "w.pth"}}},
            "model_weight cannot be swept: each trial",
        ),
        ({"grid": {"lr": [1]}, "variants": {"a": {"lr": 2}}}, "lr is set by grid and by a variant"),
        ({"variants": {"a/b": {}}}, "sweep.variants: the name 'a/b': a name has letters, digits, "),
        ({"variants": {"my net": {}}}, r"the name 'my net': .*, \. _ \+ -, begins with"),
        ({"variants": {"a": None, "b": {}}}, "sweep.variants.a: `a:` is empty, write a: {}"),
        ({"seeds": 3}, r"sweep\.seeds: seeds is a list, such as \[1, 2, 3\], got 3"),
        ({"variants": {"best": {}}}, "cannot be called best"),
        ({"variants": {"a": {"guidance_method": "wavelet"}}}, "needs vae_model: tiny_vae"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"folds": 1}, "sweep.folds: .*2"),
        ({"grid": {"lr": [1]}, "trials": 3}, "belong together"),
        ({"search": {"lr": [1]}}, "belong together"),
        ({"search": {"lr": [1]}, "trials": 3, "grid": {"epochs": [1]}}, "make two sweeps"),
        ({"search": {"lr": {"lo": 1, "high": 2}}, "trials": 3}, "did you mean 'low'"),
        ({"search": {"lr": {"low": 2, "high": 1}}, "trials": 3}, "sweep.search.lr: low is 2"),
        ({"search": {"lr": {"low": 0, "high": 1, "log": True}}, "trials": 3}, "low above 0"),
        ({"search": {"lr": {"low": -1, "high": 1}}, "trials": 3}, "lr: .*greater than 0"),
        ({"search": {"lrr": {"low": 1, "high": 2}}, "trials": 3}, "did you mean 'lr'"),
        ({"search": {"vae_model": ["litevae", "x"]}, "trials": 3}, "vae_model: .*litevae"),
        (
            {"search": {"batch_size": {"low": 4, "high": 16, "step": 0.5}}, "trials": 3},
            "sweep.search.batch_size: step is 0.5, expected a whole number",
        ),
        (
            {"search": {"batch_size": {"low": 2, "high": 8, "step": 4}}, "trials": 3},
            "steps of 4 from 2 end at 6, so high: 8 is never tried: set high: 6, or another step",
        ),
        (
            {"search": {"batch_size": {"low": 4, "high": 8, "step": 16}}, "trials": 3},
            "step is 16, larger than the range: set a step of at most 4",
        ),
        (
            {"search": {"image_size": {"low": 32, "high": 64}}, "trials": 3},
            "sweep.search.image_size: 33 is in the range, which image_size cannot be: set step: 8, or list",
        ),
        (
            {"search": {"image_size": {"low": 32, "high": 64, "step": 4}}, "trials": 3},
            "36 is in the range, which image_size cannot be: set step: 8, or",
        ),
        (
            {"search": {"ch": {"low": 16, "high": 64, "log": True}}, "trials": 3},
            "17 is in the range, which ch cannot be: set step: 16 in place of log: true, or list",
        ),
        ({"grid": None, "seeds": [1]}, "`grid:` is empty: give it values, or leave it out"),
        (
            {"grid": {"GPUs": [[0], [0, 1]]}, "workers": 2},
            "would train the same network: GPUs only changes where",
        ),
        (
            {"search": {"w_dice": {"low": 0, "high": 1, "step": 0.3}}, "trials": 3},
            "sweep.search.w_dice: steps of 0.3 from 0 end at 0.9",
        ),
        ({"search": {"lr": [0.1, 0.10000001]}, "trials": 3}, "lr: two choices are 0.1; list each"),
        (
            {"search": {"GPUs": {"low": 0, "high": 3}}, "trials": 3},
            "GPUs: a range is one of numbers",
        ),
        (
            {"search": {"epochs": [1, 2], "lr": [1]}, "trials": 3},
            "where epochs is searched: set prune: false",
        ),
        (
            {"search": {"validate_every": {"low": 1, "high": 2}}, "trials": 3, "prune": True},
            "where validate_every is searched",
        ),
        (
            {"grid": {"model": ["wave-gms", UNET], "w_tversky": [0, 1]}},
            r"setting model=smp-Unet_w_tversky=0: model smp/Unet does not use w_tversky, .*only where",
        ),
        ({"variants": {"a": {"model": "my:build", "ch": 16}, "b": {}}}, "setting a: .* use ch,"),
        (
            {"grid": {"w_kl": [0, 1e-6]}},
            "model wave-gms does not use w_kl, .*would be the same: leave it out",
        ),
        (
            {"variants": {"a": {}, "b": {"model": UNET}}, "grid": {"vae_weights": ["x", "y"]}},
            "setting b_vae_weights=x: model smp/Unet does not use vae_weights,",
        ),
        (
            {"search": {"model": ["wave-gms", UNET], "latent_loss": ["l1", "mse"]}, "trials": 3},
            "sweep.search: model smp/Unet does not use latent_loss,",
        ),
        (
            {
                "search": {
                    "model": ["wave-gms", UNET],
                    "w_rec": {"low": 0, "high": 1},
                    "lr": [n / 1000 for n in range(1, 400)],
                },
                "trials": 3,
            },
            "sweep.search: model smp/Unet does not use w_rec,",
        ),
        (
            {"grid": {"tta": [False, True]}, "seeds": [1]},
            "tta=False and tta=True would train the same network: tta only .* scored.*valid.py",
        ),
        (
            {"grid": {"num_workers": [0, 2], "lr": [0.1, 0.2]}},
            "num_workers=0_lr=0.1 and .* the same network: num_workers only changes where and how",
        ),
        ({"variants": {"a": {}, "b": {}}, "folds": 3}, "a and b would .*: they are equal, leave"),
        ({"variants": {"a": {"lr": 0.002}, "b": {}}}, "a and b would train the same network: they"),
        (
            {"search": {"lr": [0.1], "save_freq": {"low": 1, "high": 3}}, "trials": 3},
            "sweep.search.save_freq: all settings would .*: save_freq only changes what is scored",
        ),
        ({"seeds": [1], "storage": "sqlite:///x"}, "storage is only for search"),
        ({"seeds": [1], "workers": 0}, "sweep.workers: .*greater than or equal to 1, got 0"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(
    tmp_path: Path, settings: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(write_sweep(tmp_path, settings))
    assert not (tmp_path / "out").exists()


def test_options_of_an_own_network_are_swept(tmp_path: Path) -> None:
    models = [f"tests.own_networks:of_width?width={width}&depth=2" for width in (4, 8)]
    path = write_sweep(tmp_path, {"grid": {"model": models}, "seeds": [1]})
    settings = list_settings(load_sweep(path))
    names = [f"model=tests.own_networks-of_width-width={width}-depth=2" for width in (4, 8)]
    assert [setting.name for setting in settings] == names
    assert [setting.trials[0].config.model for setting in settings] == models
    assert [setting.trials[0].folder.parent.name for setting in settings] == [
        f"{name}_seed=1" for name in names
    ]
    for setting in settings:
        setting.trials[0].config_file.parent.mkdir(parents=True)
        setting.trials[0].config_file.write_text(dump_config(setting.trials[0].config))
        assert load_config(setting.trials[0].config_file) == setting.trials[0].config
    assert run(path, "--dry-run") == 0
    search = {"search": {"model": models, "lr": [0.1, 0.2]}, "trials": 2}
    assert run(write_sweep(tmp_path, search), "--dry-run") == 0


def test_keys_that_only_the_model_of_other_trials_uses(tmp_path: Path) -> None:
    """Those of the whole sweep, those set back to their default, and those of Wave-GMS's own variants."""
    variants = {"a": {"w_dice": 2}, "unet": {"model": UNET, "ch": None, "lr": 0.1}}
    path = write_sweep(tmp_path, {"variants": variants, "seeds": [1, 2]}, w_tversky=1, ch=16)
    assert [setting.name for setting in list_settings(load_sweep(path))] == ["a", "unet"]
    for model in ("wave-gms", UNET):
        grid = {"lr": [0.1, 0.2]} | ({"w_tversky": [0, 1]} if model == "wave-gms" else {})
        path = write_sweep(tmp_path, {"grid": grid}, model=model, w_tversky=1)
        assert run(path, "--dry-run") == 0
    with pytest.raises(UserError, match="model smp/Unet does not use w_tversky"):
        run(write_sweep(tmp_path, {"grid": {"w_tversky": [0, 1]}}, model=UNET), "--dry-run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"vae_weights": "/nowhere/vae"},
            "vae_weights: there is no folder /nowhere/vae here or in",
        ),
        ({"vae_weights": "taesd"}, "vae_weights: there is no folder taesd"),
        ({"vae_weights": "ckpt/tiny_vea"}, "vae_weights: there is no folder ckpt/tiny_vea"),
        ({"init_weights": "nowhere.pth"}, "init_weights: there is no file nowhere.pth"),
    ],
)
@pytest.mark.parametrize("kind", ["values", "grid", "search"])
def test_missing_weights_are_told_before_anything_runs(
    tmp_path: Path, kind: str, values: dict[str, str], message: str
) -> None:
    settings: dict[str, Any] = {"seeds": [1]}
    if kind != "values":
        settings |= {kind: {key: [value] for key, value in values.items()}}
        settings |= {"trials": 1} if kind == "search" else {}
        values = {}
    with pytest.raises(UserError, match=message):
        run(write_sweep(tmp_path, settings, **values))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"vae_weights": "owner/not-downloaded"},
        {"vae_weights": "ckpt/tiny_vae"},
        {"vae_weights": "unused", "model": "smp/Unet?encoder=resnet18"},
    ],
)
def test_weights_that_may_be_there_are_left_to_the_trials(tmp_path: Path, values: dict) -> None:
    assert run(write_sweep(tmp_path, {"seeds": [1]}, **values), "--dry-run") == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resume": "never"}, "resume: never would lose"),
        ({"select_on": "test"}, "set select_on: val"),
        ({"select_on": "last"}, "select_on is last, but a sweep compares"),
    ],
)
def test_values_that_no_sweep_can_have(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sweep(write_sweep(tmp_path, {"folds": 3}, **values))


@pytest.mark.parametrize(
    ("settings", "override"),
    [
        ({"grid": {"lr": [0.1, 0.2]}}, "lr=0.5"),
        ({"search": {"lr": {"low": 0.1, "high": 0.2}}, "trials": 3}, "lr=0.5"),
        ({"variants": {"a": {"lr": 0.1}, "b": {"lr": 0.2, "ch": 16}}}, "lr=0.5"),
        ({"seeds": [1, 2]}, "seed=5"),
        ({"folds": 5}, "fold=2"),
        ({"folds": 5}, "folds=3"),
        ({"seeds": [1]}, "model_weight=w.pth"),
        ({"seeds": [1]}, "save_seg_img_path=masks"),
    ],
)
def test_an_override_that_no_trial_would_have_is_refused(
    tmp_path: Path, settings: dict, override: str
) -> None:
    path = write_sweep(tmp_path, settings)
    with pytest.raises(UserError, match=f"{override.split('=')[0]} would have no effect"):
        load_sweep(path, [override])
    assert load_sweep(path, ["epochs=3"]).base.epochs == 3


def test_lengths_of_training_are_searched_without_pruning(tmp_path: Path) -> None:
    search = {"epochs": [1, 2], "warmup_epochs": [0, 1]}
    settings = {"search": search, "trials": 3, "prune": False}
    assert not load_sweep(write_sweep(tmp_path, settings)).settings.prune


def test_an_override_counts_in_the_variants_that_leave_its_key_out(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"variants": {"a": {"lr": 0.1}, "b": {}}})
    trials = list_settings(load_sweep(path, ["lr=0.5"]))
    assert [setting.trials[0].config.lr for setting in trials] == [0.1, 0.5]


def test_trials_combine_variants_grid_seeds_and_folds(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        {
            "variants": {"wave-gms": {}, "sft": {"vae_model": "tiny_vae", "w_dice": 2}},
            "grid": {"lr": ["1e-3", 0.01], "ch_mult": [[1, 1, 2, 2]]},
            "seeds": [5, 6],
            "folds": 3,
        },
    )
    settings = list_settings(load_sweep(path, ["epochs=7"]))
    assert [setting.name for setting in settings] == [
        f"{variant}_lr={lr}_ch_mult=1-1-2-2"
        for variant in ("wave-gms", "sft")
        for lr in ("0.001", "0.01")
    ]
    assert [len(setting.trials) for setting in settings] == [6] * 4
    trial = settings[2].trials[5]
    assert trial.name == "sft_lr=0.001_ch_mult=1-1-2-2_seed=6_fold=2"
    config = trial.config
    assert (config.vae_model, config.w_dice, config.lr) == ("tiny_vae", 2, 0.001)
    assert (config.seed, config.folds, config.fold, config.epochs) == (6, 3, 2, 7)
    assert trial.folder == tmp_path / "out" / trial.name / "epochs_7"
    assert score_setting(settings[2], []).across_folds


def test_folds_do_not_cut_a_split_that_names_its_validation_cases(tmp_path: Path) -> None:
    split_file = tmp_path / "x_train_test_names.json"
    split = {part: {"name_list": [part]} for part in ("train", "val", "test")}
    split_file.write_text(json.dumps(split))
    vae = {"vae_weights": "ckpt/tiny_vae"}
    path = write_sweep(tmp_path, {"folds": 3}, pickle_file_path=str(split_file), **vae)
    with pytest.raises(UserError, match=r"names 1 cases to choose the checkpoint by .*folds"):
        run(path, "--dry-run")
    run(write_sweep(tmp_path, {"seeds": [1]}, pickle_file_path=str(split_file), **vae), "--dry-run")


def test_more_folds_than_cases_are_told_where_the_data_is_prepared(tmp_path: Path) -> None:
    values = {"pickle_file_path": str(write_data_set(tmp_path, train=4, test=1))}
    values |= {"vae_weights": "ckpt/tiny_vae"}
    with pytest.raises(UserError, match=r"sweep\.folds: 4 cases cannot be cut into 5 folds"):
        run(write_sweep(tmp_path, {"folds": 5}, **values), "--dry-run")
    assert run(write_sweep(tmp_path, {"folds": 4}, **values), "--dry-run") == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": {"GPUs": [[0], [0, 1]]}, "seeds": [1, 2]},
        {"grid": {"batch_size": [4, 8], "num_workers": [2]}, "folds": 2},
        {"variants": {"a": {"lr": 0.1, "tta": True}, "b": {}}},
    ],
)
def test_settings_that_train_different_networks_may_differ_in_other_keys_too(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert run(write_sweep(tmp_path, settings), "--dry-run") == 0


@pytest.mark.parametrize("kind", [{}, {"search": {"lr": [1.0e-3, 2.0e-3]}, "trials": 2}])
def test_a_start_that_knows_held_out_cases_is_told(
    tmp_path: Path, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, object] = {
        "pickle_file_path": str(write_data_set(tmp_path, train=20, test=3)),
        "vae_weights": "ckpt/tiny_vae",
    }
    (tmp_path / "start").mkdir()
    start = make_config(values | {"seed": 1})
    (tmp_path / "start" / "config.yaml").write_text(dump_config(start))
    (tmp_path / "start" / "best_model.pth").touch()
    values |= {"init_weights": str(tmp_path / "start" / "best_model.pth")}
    run(write_sweep(tmp_path, kind | {"seeds": [1]}, **values), "--dry-run")
    assert "warning" not in capsys.readouterr().out
    run(write_sweep(tmp_path, kind | {"seeds": [1, 2]}, **values), "--dry-run")
    assert "warning: in 1 of 2 trial(s), as seed=2, the initial weights" in capsys.readouterr().out
    values["teachers"] = [values.pop("init_weights")]
    run(write_sweep(tmp_path, kind | {"seeds": [1, 2]}, **values), "--dry-run")
    assert "1 of 2 trial(s), as seed=2, the initial weights, or teach" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": {"image_size": [64, 128]}},
        {"variants": {"small": {"image_size": 64}, "large": {}}},
        {"search": {"image_size": {"low": 64, "high": 128, "step": 64}}, "trials": 2},
    ],
)
def test_a_ranking_across_image_sizes_is_told(tmp_path: Path, settings: dict[str, Any]) -> None:
    told = told_before(load_sweep(write_sweep(tmp_path, settings, vae_weights="me/vae")))
    assert "warning: the settings are ranked by Dice at their own image_size" in told
    same = write_sweep(tmp_path, {"seeds": [1]}, image_size=64, vae_weights="me/vae")
    assert "warning" not in told_before(load_sweep(same))


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"grid": {"vae_weights": ["a/" + "b" * 120]}})
    with pytest.raises(UserError, match="too long for a folder; name the settings by `variants:`"):
        list_settings(load_sweep(path))


def test_names_of_paths_stay_in_the_folder(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"grid": {"vae_weights": ["../a b", "hub/taesd"]}})
    names = [setting.name for setting in list_settings(load_sweep(path))]
    assert names == ["vae_weights=..-a-b", "vae_weights=hub-taesd"]


def test_keys_of_the_sweep_can_be_overridden(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"seeds": [1]})
    loaded = load_sweep(path, ["sweep.workers=3", "sweep.seeds=[4, 5]", "lr=0.5"])
    assert (loaded.settings.workers, loaded.settings.seeds, loaded.base.lr) == (3, (4, 5), 0.5)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert run(write_sweep(tmp_path, {"seeds": [1, 2]}), "--dry-run") == 0
    assert not (tmp_path / "out").exists()


def test_a_sweep_leaves_tables_and_the_best_config(tmp_path: Path, quick: None) -> None:
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}, "seeds": [1, 2, 3], "workers": 2})
    assert run(path) == 0
    folder = tmp_path / "out"
    with (folder / "sweep.csv").open() as file:
        slow, best = list(csv.DictReader(file))
    expected = np.array([0.8, 0.81, 0.82])
    assert (best["setting"], best["lr"], best["finished"]) == ("lr=0.003", "0.003", "3")
    assert float(best["val_dice_mean"]) == pytest.approx(expected.mean())
    assert float(best["val_dice_std"]) == pytest.approx(0.01)
    low_high = [float(best[f"val_dice_runs_{bound}"]) for bound in ("low", "high")]
    assert low_high == pytest.approx(t_interval(expected))
    assert float(slow["val_dice_mean"]) == pytest.approx(expected.mean() - 0.2)
    assert (slow["best"], best["best"]) == ("0", "1")
    assert "**lr=0.003** (best)" in (folder / "sweep.md").read_text()
    assert (folder / "sweep.png").is_file()

    chosen = list_settings(load_sweep(path))[1].trials[0].config
    config = load_config(folder / "best.yaml")
    assert config == chosen.model_copy(update={"snapshot_path": folder / "best"})


@pytest.mark.parametrize(("workers", "processes"), [(2, 1), (1, 2)])
def test_the_best_config_trains_as_its_trials_were(
    tmp_path: Path, workers: int, processes: int
) -> None:
    """By one process or several: as recorded here, or where they ran on another machine as the sweep says."""
    path = write_sweep(tmp_path, {"seeds": [1, 2], "workers": workers}, GPUs=[2, 3])
    (setting,) = list_settings(loaded := load_sweep(path))
    assert len(best_config(loaded, setting).GPUs) == processes
    folder = setting.trials[0].folder
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"processes": processes}))
    for command in ([], ["sweep.workers=1"], ["sweep.workers=2"]):
        config = best_config(load_sweep(path, command), setting)
        assert config.GPUs == (2, 3)[:processes]


def test_the_best_config_of_folds_holds_none_out(tmp_path: Path) -> None:
    own_fold = {"folds": 5, "fold": 4}
    for settings, folds in (({"folds": 3}, (0, 0)), ({"seeds": [7]}, (5, 4))):
        loaded = load_sweep(write_sweep(tmp_path, settings, **own_fold))
        config = best_config(loaded, list_settings(loaded)[0])
        assert (config.folds, config.fold) == folds


def test_the_same_command_goes_on(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}, "seeds": [1, 2]})
    trials = [trial for setting in list_settings(load_sweep(path)) for trial in setting.trials]
    with monkeypatch.context() as patch:

        def interrupt(outcome: Outcome) -> str:
            os.kill(os.getpid(), signal.SIGINT)
            return ""

        patch.setattr(sweep, "describe_outcome", interrupt)
        with pytest.raises(Interrupted) as caught:
            run(path)
    assert caught.value.exit_code == 130
    assert "1 finished, 3 waiting" in (tmp_path / "out" / "sweep.md").read_text()
    assert not (tmp_path / "out" / "best.yaml").exists()
    for _ in range(2):
        assert run(path) == 0
        assert [starts(trial) for trial in trials] == [1, 1, 1, 1]


def test_a_best_config_goes_when_its_setting_is_no_longer_complete(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture
) -> None:
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}, "seeds": [1]})
    assert run(path) == 0
    assert "sweep.png, best.yaml" in capsys.readouterr().out
    added = load_sweep(path, ["sweep.seeds=[1, 2]"])
    write_sweep_report(added, make_plan(added, "me", retry_failed=False))
    assert not (tmp_path / "out" / "best.yaml").exists()
    assert run(path) == 0 and (tmp_path / "out" / "best.yaml").is_file()


def test_only_what_was_written_is_listed(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture
) -> None:
    assert run(write_sweep(tmp_path, {"seeds": [1]}, save_minutes=13)) == 1
    printed = capsys.readouterr().out
    assert "sweep.csv, sweep.png; best.yaml follows the first complete setting" in printed
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_scores_of_other_settings_are_not_reported(tmp_path: Path, quick: None) -> None:
    """After a change of the shared keys, the trials of before are waiting."""
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}})
    assert run(path) == 0
    changed = load_sweep(write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}}, w_dice=2))
    rows = write_sweep_report(changed, make_plan(changed, "me", retry_failed=False))
    assert [row.statuses["waiting"] for row in rows] == [1, 1]
    assert find_best(rows) is None and not (tmp_path / "out" / "best.yaml").exists()

    place = {"num_workers": 7, "cache_mb": 0, "GPUs": []}
    moved = load_sweep(write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}}, **place))
    rows = write_sweep_report(moved, make_plan(moved, "me", retry_failed=False))
    assert [row.statuses["finished"] for row in rows] == [1, 1]


def test_runs_that_were_trained_otherwise_are_refused(tmp_path: Path, quick: None) -> None:
    split = tmp_path / "x_train_test_names.json"
    write_split(split, Split(train=("a", "b"), test=("c",)))
    settings = {"grid": {"lr": [0.03, 0.003]}, "seeds": [1]}
    path = write_sweep(tmp_path, settings, pickle_file_path=str(split))
    assert run(path) == 0
    record_splits(tmp_path / "out", split)
    assert run(path) == 0
    best = (tmp_path / "out" / "best.yaml").read_text()

    write_split(split, Split(train=("a", "c"), test=("b",)))
    for dry in ([], ["--dry-run"]):
        with pytest.raises(
            UserError, match=r"(?s)lr=0\.03_seed=1: trained on another split file.*Restore"
        ):
            run(path, *dry, "sweep.seeds=[1, 2]")
    _, rows = zip(*make_plan(load_sweep(path), "me", False).scores(), strict=True)
    assert [row.statuses["waiting"] for row in rows] == [1, 1], "their scores are not shown either"
    split.unlink()
    assert run(path) == 0, "where the data is not at hand, the split is not known"
    assert (tmp_path / "out" / "best.yaml").read_text() == best

    for change in ("validate_every", "save_freq"):
        with pytest.raises(UserError, match=rf"{change}: \w+ in the finished run, 2 now"):
            run(path, f"{change}=2")
    assert run(path, "tta=true") == 0, "that does not affect the training"


VARIANTS = {"variants": {"a": {"lr": 0.03}, "b": {"lr": 0.003}}, "seeds": [1, 2]}


@pytest.mark.parametrize("trained", [True, False])
def test_a_key_that_cannot_change_on_resume_is_refused_before_anything_runs(
    tmp_path: Path, quick: None, trained: bool
) -> None:
    path = write_sweep(tmp_path, VARIANTS)
    assert run(path) == 0
    trials = [trial for setting in list_settings(load_sweep(path)) for trial in setting.trials]
    if not trained:  # as one that was stopped after its first epoch
        (trials[1].folder / "last.pth").touch()
        (trials[1].folder / "config.yaml").write_text(dump_config(trials[1].config))
        for trial in trials:
            (trial.folder / "trial.json").unlink()
    folder = tmp_path / "out"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    expected = "a_seed=2: threshold: 0.5 in the {} run, 0.3 now".format(
        "finished" if trained else "saved"
    )
    for dry in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=rf"(?s){expected}.*Restore") as caught:
            run(path, "threshold=0.3", *dry)
        assert "resume=never" not in str(caught.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert run(path, "log_every=5") == 0, "a key that can change"


@pytest.mark.parametrize("state", ["finished", "saved"])
def test_another_precision_is_refused_before_anything_runs(
    tmp_path: Path, quick: None, state: str
) -> None:
    path = write_sweep(tmp_path, {"seeds": [1]})
    assert run(path) == 0
    (trial,) = list_settings(load_sweep(path))[0].trials
    (trial.folder / "environment.json").write_text('{"precision": "fp32"}')
    if state == "saved":
        (trial.folder / "last.pth").touch()
        (trial.folder / "config.yaml").write_text(dump_config(trial.config))
        (trial.folder / "trial.json").unlink()
    for dry in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=f"precision: 'auto' in the {state} run, 'bf16' now"):
            run(path, "precision=bf16", *dry)
    assert run(path, "precision=fp32") == 0, "what auto has meant"


def test_finished_trials_outlast_a_training_that_fails(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}})
    trials = [setting.trials[0] for setting in list_settings(load_sweep(path))]
    assert run(path) == 0
    reports = [tmp_path / "out" / name for name in ("sweep.md", "sweep.csv", "best.yaml")]
    before = [report.read_text() for report in reports]
    fails = "save_minutes=13"
    assert run(path, fails) == 0, "of the machine: the training is not started"
    assert [starts(trial) for trial in trials] == [1, 1]
    assert [report.read_text() for report in reports[:2]] == before[:2]

    assert run(path, fails, "skip_nonfinite=2") == 1
    assert "2 trial(s) failed" in capsys.readouterr().out
    assert "2 waiting" in reports[0].read_text(), "for those settings"
    assert run(path) == 0
    assert [report.read_text() for report in reports] == before
    assert [starts(trial) for trial in trials] == [2, 2]


def test_a_report_is_not_written_over_by_one_of_other_settings(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, VARIANTS)
    assert run(path) == 0
    reports = [tmp_path / "out" / name for name in ("sweep.md", "sweep.csv", "best.yaml")]
    before = [report.read_text() for report in reports]
    expected = r"(?s)a_seed=1: trained with w_dice 1.0, asked 2.0\n.*left as it is"
    with pytest.raises(UserError, match=expected):
        run(path, "--report", "w_dice=2")
    with pytest.raises(UserError, match=r"(?s)a_seed=1: scored with tta False.*nothing is trained"):
        run(path, "--report", "tta=true")
    with pytest.raises(UserError, match=r"a_seed=1: trained with precision 'auto', asked 'bf16'"):
        run(path, "--report", "precision=bf16")
    assert [report.read_text() for report in reports] == before

    capsys.readouterr()
    other = VARIANTS | {"variants": {"a": {"lr": 0.05}, "b": {"lr": 0.003}, "c": {}}}
    path = write_sweep(tmp_path, other | {"seeds": [2, 3]})
    assert run(path, "--report") == 0
    table = reports[0].read_text()
    assert "- `a_seed=2`: trained with lr 0.03, asked 0.05" in table
    assert "b_seed" not in table and "a_seed=3" not in table, "those fit, or were never begun"
    left_out = (
        "warning: 2 trial(s) in {} are not of this sweep, so that its report leaves them out: "
    )
    left_out = left_out.format(tmp_path / "out") + "a_seed=1/epochs_2, b_seed=1/epochs_2"
    assert f"\n{left_out}" in f"\n{capsys.readouterr().out}", "one `warning: `"
    path = write_sweep(tmp_path, VARIANTS | {"seeds": [2, 3]})
    assert left_out in told_before(load_sweep(path, ["vae_weights=me/vae"]))


@pytest.mark.parametrize(
    "name", ["file of initial weights", "file of groups", "file of one of the teachers"]
)
def test_runs_from_other_files_are_refused(tmp_path: Path, quick: None, name: str) -> None:
    split, weights, groups, teacher = (
        tmp_path / file
        for file in ("x_train_test_names.json", "w.pth", "groups.json", "teacher.pth")
    )
    for file in (split, weights, groups, teacher):
        file.write_text("{}")
    settings = {"grid": {"lr": [0.03, 0.003]}}
    files = {
        "pickle_file_path": str(split),
        "init_weights": str(weights),
        "teachers": [str(teacher)],
    }
    path = write_sweep(tmp_path, settings, **files)
    changed = {"weights": weights, "groups": groups, "teachers": teacher}[name.split()[-1]]
    assert run(path) == 0
    for trial in (tmp_path / "out").glob("*/epochs_2"):
        (trial / "best_model.pth").touch()
        recorded = joined_sha256([sha256(changed)]) if changed is teacher else sha256(changed)
        hashes = {"sha256": {name: recorded, "vae": "as it was loaded"}}
        (trial / "environment.json").write_text(json.dumps(hashes))
    assert run(path) == 0

    changed.write_text("another")
    more = "sweep.grid={lr: [0.03, 0.003, 0.001]}"
    with pytest.raises(
        UserError, match=rf"lr=0\.03: trained with another {name} than .*{changed.name} is"
    ):
        run(path, more)
    _, rows = zip(*make_plan(load_sweep(path), "me", False).scores(), strict=True)
    assert [row.statuses["waiting"] for row in rows] == [1, 1], "their scores are not shown either"
    changed.unlink()
    if changed is groups:
        assert run(path) == 0, "where the data is not at hand, its groups are not known"
    if changed is teacher:
        with pytest.raises(UserError, match=r"teachers: there is no file .*teacher\.pth"):
            run(path)


@pytest.mark.parametrize(
    ("recorded", "now", "told"),
    [
        (
            {"window": ""},
            {"window": "0,4000"},
            "images prepared with no --window, with --window 0,4000",
        ),
        ({"label": "1"}, {"label": [1, 2]}, "masks prepared with --label 1, with --label 1,2"),
    ],
)
def test_runs_on_data_prepared_otherwise_are_refused(
    tmp_path: Path,
    quick: None,
    recorded: dict[str, str],
    now: dict[str, object],
    told: str,
) -> None:
    split, manifest = (tmp_path / name for name in ("x_train_test_names.json", "dataset.json"))
    split.write_text("{}")
    before = {"train": 1, "test": 1, "window": "", "label": [1]}
    manifest.write_text(json.dumps(before))
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}}, pickle_file_path=str(split))
    assert run(path) == 0
    for trial in (tmp_path / "out").glob("*/epochs_2"):
        (trial / "best_model.pth").touch()
        (trial / "environment.json").write_text(json.dumps(recorded))
    assert run(path) == 0

    manifest.write_text(json.dumps(before | now))
    expected = rf"lr=0\.03: trained on {told} now"
    for given in (["--dry-run"], ["--report"], ["sweep.grid={lr: [0.03, 0.003, 0.001]}"]):
        with pytest.raises(UserError, match=expected):
            run(path, *given)
    _, rows = zip(*make_plan(load_sweep(path), "me", False).scores(), strict=True)
    assert [row.statuses["waiting"] for row in rows] == [1, 1], "their scores are not shown either"


def test_runs_from_another_vae_are_refused(tmp_path: Path, quick: None) -> None:
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    weights.write_text("one")
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03]}}, vae_weights=str(weights.parent))
    (trial,) = list_settings(load_sweep(path))[0].trials
    assert run(path) == 0
    for file in ("last.pth", "best_model.pth"):
        (trial.folder / file).touch()
    assert run(path) == 0
    weights.write_text("a third")
    expected = r"lr=0\.03: trained with another file of the VAE's weights than .*vae/diffusion"
    with pytest.raises(UserError, match=expected):
        run(path)


def test_runs_of_different_numbers_of_processes_are_refused(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}}, GPUs=[0, 1])
    assert run(path) == 0
    for trial in (tmp_path / "out").glob("*/epochs_2"):
        (trial / "environment.json").write_text('{"processes": 2}')
    assert run(path, "sweep.workers=2") == 0, "nothing is left to train"
    more = "sweep.grid={lr: [0.03, 0.003, 0.001]}"
    expected = (
        r"lr=0\.03 is trained by 2 process\(es\) and lr=0\.001 by 1, each with batches.*workers"
    )
    with pytest.raises(UserError, match=expected):
        run(path, more, "sweep.workers=2")
    assert run(path, more) == 0
    with pytest.raises(UserError, match=r"lr=0\.03 is trained by 2 .* lr=0\.001 by 1"):
        run(path, more)  # as quick runs leave no record of theirs


def record_splits(folder: Path, split: Path) -> None:
    """Add to the trials of a quick sweep in `folder` what tells on which split they were trained."""
    for trial in folder.glob("*/epochs_2"):
        (trial / "best_model.pth").touch()
        cases = names_sha256(read_split(split).train)
        (trial / "environment.json").write_text(json.dumps({"training_cases": cases}))


def test_a_failed_trial_is_told_and_stops_no_other(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture
) -> None:
    variants = {"bad": {"save_minutes": 13}, "good": {"lr": 0.003}}
    path = write_sweep(tmp_path, {"variants": variants})
    bad, good = (setting.trials[0] for setting in list_settings(load_sweep(path)))
    assert run(path) == 1
    assert "error: thirteen" in capsys.readouterr().out
    table = (tmp_path / "out" / "sweep.md").read_text()
    assert "1 finished, 1 failed" in table
    assert "`bad`: train: exit code 1 error: thirteen" in table
    assert run(path) == 1
    assert (starts(bad), starts(good)) == (1, 1)
    (bad.folder / "mended").touch()
    assert run(path, "--retry-failed") == 0
    assert (starts(bad), starts(good)) == (2, 1)


def test_a_sweep_in_which_nothing_works_stops(tmp_path: Path, quick: None) -> None:
    seeds = {"seeds": [1, 2, 3, 4, 5]}
    path = write_sweep(tmp_path, seeds, save_minutes=13)
    trials = list_settings(load_sweep(path))[0].trials
    expected = (
        r"(?s)3 trials have failed.* none was trained.*seed=3:.*error: thirteen.*--retry-failed"
    )
    with pytest.raises(UserError, match=expected):
        run(path)
    assert [starts(trial) for trial in trials] == [1, 1, 1, 0, 0]
    assert "3 failed, 2 waiting" in (tmp_path / "out" / "sweep.md").read_text()
    assert run(path) == 1, "two are not three"
    assert [starts(trial) for trial in trials] == [1, 1, 1, 1, 1]

    (trials[0].folder / "mended").touch()
    assert run(path, "--retry-failed") == 1, (
        "one works, so the others fail for a reason of their own"
    )
    assert [starts(trial) for trial in trials] == [2, 2, 2, 2, 2]


def test_stopped_trials_are_told_and_workers_are_those_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def run_trials(trials: Any, workers: int = 1, **_: object) -> list[Outcome]:
        asked.append(workers)
        return [Outcome(t, Record(t.name, {}, "interrupted"), ran=True) for t in trials]

    monkeypatch.setattr(runner, "run_trials", run_trials)
    assert run(write_sweep(tmp_path, {"seeds": [1, 2], "workers": 3})) == 1
    assert asked == [3]
    assert "2 trial(s) were stopped from outside" in capsys.readouterr().out


def test_a_report_trains_nothing_and_takes_no_slot(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, {"grid": {"lr": [0.03, 0.003]}, "seeds": [1]})
    with pytest.raises(UserError, match=r"no trial of this sweep lies in .*without --report"):
        run(path, "--report")
    assert not (tmp_path / "out").exists()
    assert run(path) == 0
    (tmp_path / "out" / "sweep.md").unlink()
    capsys.readouterr()
    more = ["--report", "sweep.seeds=[1, 2]"]
    with held_slot(tmp_path / "out", shared=False):
        assert run(path, *more) == 0
    assert "2 finished, 2 waiting" in (tmp_path / "out" / "sweep.md").read_text()
    assert "written to" in capsys.readouterr().out
    trials = [trial for setting in list_settings(load_sweep(path)) for trial in setting.trials]
    assert [starts(trial) for trial in trials] == [1, 1]


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path, quick: None) -> None:
    path = write_sweep(tmp_path, {"seeds": [1]})
    with (
        held_slot(tmp_path / "out", shared=False),
        pytest.raises(UserError, match="in use by process"),
    ):
        run(path)


def test_sweeps_with_and_without_a_shared_study_are_kept_apart(tmp_path: Path) -> None:
    for holds_shared in (True, False):
        message = rf"in use by process {os.getpid()} on \S+{' or others' if holds_shared else ':'}"
        with (
            held_slot(tmp_path, holds_shared),
            pytest.raises(FolderInUse, match=message),
            held_slot(tmp_path, not holds_shared),
        ):
            pass


def test_sweeps_that_share_a_study_hold_slots_that_outlive_them(tmp_path: Path) -> None:
    with held_slot(tmp_path, shared=True) as first, held_slot(tmp_path, shared=True) as second:
        assert first != second
    with held_slot(tmp_path, shared=True) as again:
        assert again == first


@pytest.mark.parametrize("shared", [True, False])
def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        assert len(asked) == 1, "it tries one slot after the other"
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("utils.locks.fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"run\.lock cannot be locked"), held_slot(tmp_path, shared):
        pass


def scores(name: str, val: list[float], planned: int = 2, **more: Any) -> SettingScores:
    statuses = Counter({"finished": len(val), "waiting": planned - len(val)})
    return SettingScores(name, {"lr": name}, planned, statuses, val, **more)  # type: ignore[arg-type]


def test_a_setting_with_runs_left_is_not_yet_the_best() -> None:
    rows = [scores("a", [0.9]), scores("b", [0.7, 0.8]), scores("c", [0.7, 0.7])]
    best = find_best(rows)
    assert best is not None and best.name == "b"
    assert find_best(rows[:1]) is None
    table = to_markdown("t", rows, "val")
    assert table.index("| **b** (best)") < table.index("| c |") < table.index("| a |")


def test_the_best_epoch_of_a_run_counts_and_not_its_last(tmp_path: Path) -> None:
    (setting,) = list_settings(load_sweep(write_sweep(tmp_path, {"seeds": [1]})))
    (trial,) = setting.trials
    assert best_validation(trial) is None
    trial.folder.mkdir(parents=True)
    (trial.folder / "history.csv").write_text("epoch,val_dice\n1,0.5\n2,0.75\n3,\n4,0.625\n")
    assert best_validation(trial) == 0.75


def test_ties_with_the_best_are_told() -> None:
    rows = [scores("a", [0.7, 0.8]), scores("b", [0.8, 0.7]), scores("c", [0.75]), scores("d", [])]
    assert "| **a** (best, tied with b) |" in to_markdown("t", rows, "val")
    assert "| **a** (best) |" in to_markdown("t", [rows[0], *rows[2:]], "val")


def test_settings_are_compared_with_the_best_run_by_run() -> None:
    def of(name: str, val: list[float], test: list[float]) -> SettingScores:
        runs = [Repeat(seed, 0) for seed in range(len(val))]
        val_of = dict(zip(runs, val, strict=True))
        test_of = dict(zip(runs, test, strict=False))  # of a run that is not scored there yet
        return scores(name, val, planned=3, test=test, val_of=val_of, test_of=test_of)

    rows = [of("a", [0.5, 0.625, 0.75], [0.7, 0.8]), of("b", [0.75, 0.75, 0.75], [0.6, 0.8])]
    table = to_markdown("t", [*rows, scores("c", [0.1])], "val")
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    }
    assert [i for i, head in enumerate(cells["setting"]) if head == "minus the best"] == [6, 11]
    assert (
        cells["a"][6] == "-12.5 (-43.6 to 18.6)"
    )  # -25, -12.5, 0: sd 12.5, 4.303 * 12.5 / sqrt(3)
    assert cells["a"][11] == "+5.0 (-58.5 to 68.5)"  # 10, 0: 12.706 * 7.071 / sqrt(2)
    assert cells["**b** (best)"][6] == cells["**b** (best)"][11] == cells["c"][6] == ""
    assert "chosen by its val Dice, so that differences in this are rather too large" in table
    alone = to_markdown("t", [of("a", [0.5], [0.7]), of("b", [0.6], [0.7])], "val")
    assert "minus the best" not in alone


def test_intervals_across_runs_hold_no_impossible_dice() -> None:
    row = scores("a", [0.0, 1 / 3], test=[0.7, 0.9])
    table = to_markdown("t", [row], "val")
    assert "| 16.67 | 23.57 | 0.00 to 100.00 | 80.00 | 14.14 | 0.00 to 100.00 |" in table
    assert "degrees of freedom, cut off at 0 and 100." in table
    (line,) = csv.DictReader(to_csv([row], "val").splitlines())
    assert float(line["val_dice_runs_high"]) == pytest.approx(t_interval([0, 1 / 3])[1])


def test_intervals_across_runs_and_across_cases_are_kept_apart() -> None:
    cases = np.random.default_rng(0).beta(8, 2, 50)
    row = scores("a", [0.8, 0.9], test=[0.7, 0.9], cases=cases)
    (line,) = csv.DictReader(to_csv([row], "val").splitlines())
    across_cases, (low, high) = describe(cases), t_interval([0.7, 0.9])
    assert line["test_cases"] == "50"
    assert float(line["test_dice_cases_low"]) == pytest.approx(across_cases.low)
    assert float(line["test_dice_cases_high"]) == pytest.approx(across_cases.high)
    assert float(line["test_dice_runs_low"]) == pytest.approx(low)
    assert float(line["test_dice_runs_high"]) == pytest.approx(high)
    table = to_markdown("t", [row], "val")
    assert "95 % across runs" in table and "95 % across cases" in table
    assert f"{100 * across_cases.low:.2f} to {100 * across_cases.high:.2f}" in table
    assert "TEST" not in table and "chosen by val Dice, not by test Dice" in table
    assert "bootstrap over 50 cases, taken as independent; each case's Dice is averaged" in table


def test_folds_are_told_to_share_training_cases(tmp_path: Path) -> None:
    caveat = "Folds share training cases, so with folds it is rather too narrow"
    of_differences = "With folds these intervals, too, are rather too narrow"
    folds, seeds = (scores("a", [0.8, 0.9], across_folds=given) for given in (True, False))
    assert caveat in to_markdown("t", [seeds, folds], "val")
    assert caveat not in to_markdown("t", [seeds], "val")
    for across_folds in (True, False):
        paired = [
            scores(name, val, val_of=dict(enumerate(val)), across_folds=across_folds)
            for name, val in (("a", [0.8, 0.9]), ("b", [0.6, 0.8]))
        ]
        assert (of_differences in to_markdown("t", paired, "val")) == across_folds
    (setting,) = list_settings(load_sweep(write_sweep(tmp_path, {"seeds": [1, 2]})))
    assert not score_setting(setting, []).across_folds


def test_each_row_is_bootstrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(values: Any, groups: Any = None) -> Any:
        seen.append(len(values))
        return describe(values, groups)

    monkeypatch.setattr("experiments.sweeps.report.describe", counting)
    first, second = (np.random.default_rng(seed).beta(8, 2, 51) for seed in (11, 12))
    for rows in ([first], [first, second]):  # as after one trial, and after another one
        of_settings = [scores("a", [0.8, 0.9], test=[0.7, 0.9], cases=cases) for cases in rows]
        to_csv(of_settings, "val")
        to_markdown("t", of_settings, "val")
    assert seen.count(51) == 2


def test_a_choice_on_the_test_split_is_called_that_everywhere(tmp_path: Path) -> None:
    row = scores("a", [0.8, 0.9], test=[0.7, 0.9])
    config = load_sweep(write_sweep(tmp_path, {"seeds": [1, 2]}, select_on="test")).base
    write_best(tmp_path, row, config)
    chosen, tested = (axes.get_xlabel() for axes in plot_settings("t", [row], "test").axes)
    assert (chosen, tested) == ("best test Dice, %", "test Dice, %")
    table = to_markdown("t", [row], "test")
    assert "| best test Dice | SD |" in table and "chosen on the TEST split" in table
    (line,) = csv.DictReader(to_csv([row], "test").splitlines())
    assert float(line["best_test_dice_mean"]) == pytest.approx(0.85)
    assert float(line["test_dice_mean"]) == pytest.approx(0.8)
    header = (tmp_path / "best.yaml").read_text().splitlines()[0]
    assert header == "# a: mean best test Dice 0.8500 over 2 run(s)"
    assert not any("val" in text for text in (table, header, *line))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("noise\n  File x\n    build()\n    ^^^^^^^\nKeyError: 'x'", "KeyError: 'x'"),
        ("error: no weights in x:\n  one\n  two", "error: no weights in x: one two"),
        ("", ""),
    ],
)
def test_an_error_is_told_in_a_line(said: str, told: str) -> None:
    row = scores("a", [0.7], errors={"a_seed=2": f"train: exit code 1\n{said}"})
    line = f"- `a_seed=2`: train: exit code 1 {told}".rstrip()
    assert f"\n{line}\n" in to_markdown("t", [row], "val")


def test_missing_seconds_are_marked() -> None:
    row = scores("a", [0.7, 0.8], wall_seconds=12.0, cpu_seconds=7.0, untimed_attempts=1)
    table = to_markdown("t", [row], "val")
    assert "| 12+ | 7+ |" in table and "+: without the seconds" in table
    (line,) = csv.DictReader(to_csv([row], "val").splitlines())
    seconds = [line[key] for key in ("wall_seconds", "cpu_seconds", "untimed_attempts")]
    assert seconds == ["12.0", "7.0", "1"]


def test_the_drawing_shows_runs_means_and_intervals() -> None:
    rows = [scores("a", [0.7, 0.8]), scores("b", [0.9, 0.8]), scores("c", [])]
    (axes,) = plot_settings("title", rows, "val").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    dots, interval, mean = (list(line.get_xdata()) for line in axes.lines[:3])
    assert dots == [90, 80] and mean == pytest.approx([85])
    assert interval == pytest.approx([100 * bound for bound in t_interval([0.9, 0.8])])
    assert axes.get_xlim() == pytest.approx((66, 94)), "the range of the runs"


def test_ticks_of_equal_scores_do_not_touch() -> None:
    rows = [scores(name, [0.125, 0.125], test=[0.125, 0.125]) for name in ("narrow", "wide")]
    figure = plot_settings("title", rows, "val")
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(boxes)]
        assert gaps and min(gaps) > 10, "pixels between their labels"


def test_the_drawing_says_what_it_leaves_out_and_wraps_long_names() -> None:
    rows = [scores(f"{i:03}_" * 25, [0.999 - i / 1000]) for i in range(45)]
    figure = plot_settings("title", [*rows, scores("untrained", [])], "val")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.replace("\n", "") for name in names] == [row.name for row in rows[:40]]
    assert max(len(line) for line in names[0].splitlines()) <= 40
    assert "best 40 of 45" in figure.get_suptitle()
    assert axes.get_xlim()[1] == 100


def test_what_one_run_cannot_tell_is_left_empty() -> None:
    (line,) = csv.DictReader(to_csv([scores("a", [0.8], planned=1)], "val").splitlines())
    assert line["val_dice_mean"] == "0.8"
    assert line["val_dice_std"] == line["val_dice_runs_low"] == line["test_dice_mean"] == ""


def describe_settings() -> str:
    """All keys under `sweep:` as the Markdown table of docs/sweeps.md."""
    rows = []
    for name, field in SweepSettings.model_fields.items():
        default = field.default
        written = "`none`" if default in (None, (), {}) else f"`{str(default).lower()}`"
        rows.append([f"`{field.alias or name}`", written, field.description or ""])
    return markdown_table(["key", "default", "meaning"], rows, left=3) + "\n"


def test_the_page_lists_the_keys() -> None:
    assert all(field.description for field in SweepSettings.model_fields.values())
    assert describe_settings() in (ROOT / "docs" / "sweeps.md").read_text()


def write_scores(
    folder: Path, config: Config, *, rule: EmptyRule = "diagonal", **made_with: object
) -> None:
    """Scores of two cases, as of a validation with the config's settings, or with those given."""
    shift = 0.1 * config.seed
    dice = {"c1": 0.2 + shift, "c2": 0.6 + shift}
    scores = {name: dict.fromkeys((*METRICS, *SIZES), value) for name, value in dice.items()}
    made_with = {"tta": config.tta, "threshold": config.threshold} | made_with
    write_results(folder, scores, provenance=made_with, hd95_empty=rule)


def validated_steps(trial: Trial) -> Steps:
    """Quick training and validation; the latter leaves `write_scores`."""
    write_scores(trial.folder / "scores", trial.config, rule=trial.config.hd95_empty)
    code = (
        f"import os, shutil; os.chdir({str(trial.folder)!r}); open('validated', 'a').write('x')\n"
    )
    code += "shutil.copytree('scores', 'valid_results_x', dirs_exist_ok=True)"
    return {**quick_steps(trial), "valid": [sys.executable, "-I", "-S", "-c", code]}


def read_table(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_validated_trials_are_scored_by_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", validated_steps)
    path = write_sweep(tmp_path, {"seeds": [1, 2], "validate": True})
    run(path)
    (row,) = read_table(tmp_path)
    assert row["test_runs"] == "2"
    expected = describe([0.35, 0.75])
    assert float(row["test_dice_mean"]) == pytest.approx(0.55)
    assert float(row["test_dice_std"]) == pytest.approx(describe([0.5, 0.6]).std)
    assert float(row["test_dice_cases_low"]) == pytest.approx(expected.low)
    assert float(row["test_dice_cases_high"]) == pytest.approx(expected.high)

    (setting,) = list_settings(load_sweep(path))
    assert score_setting(setting, []).cases is not None
    table = setting.trials[1].folder / "valid_results_x" / "results.csv"
    table.write_text(table.read_text().replace("c2", "c3"))
    assert score_setting(setting, []).cases is None, "the runs scored different cases"


def test_cases_of_one_source_are_one_in_the_interval_across_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = named_groups("near-duplicates", [["c1", "c2"]])
    monkeypatch.setattr(f"{__name__}.write_results", partial(write_results, known=known))
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", validated_steps)
    run(write_sweep(tmp_path, {"seeds": [1, 2], "validate": True}))
    (row,) = read_table(tmp_path)
    assert row["test_cases"] == "2" and float(row["test_dice_mean"]) == pytest.approx(0.55)
    assert row["test_dice_cases_low"] == row["test_dice_cases_high"] == "", "of one source"
    unit = (
        "95 % across cases: none, as all 2 cases are of one group (by near-duplicates); each case"
    )
    assert unit in (tmp_path / "out" / "sweep.md").read_text()

    cases = np.random.default_rng(0).beta(8, 2, 25).repeat(2)
    groups = [f"lesion {index // 2}" for index in range(50)]
    grouped = scores("a", [0.8, 0.9], test=[0.7, 0.9], cases=cases, groups=groups)
    (line,) = csv.DictReader(to_csv([grouped], "val").splitlines())
    assert float(line["test_dice_cases_low"]) == pytest.approx(describe(cases[::2]).low)
    assert float(line["test_dice_cases_high"]) == pytest.approx(describe(cases[::2]).high)


def test_scores_of_another_way_of_scoring_are_not_reported(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", validated_steps)
    path = write_sweep(tmp_path, {"seeds": [1, 2], "validate": True})
    assert run(path) == 0
    first, second = list_settings(load_sweep(path))[0].trials
    others: list[dict[str, Any]] = [
        {"threshold": 0.01},
        {"tta": True},
        {"evaluation_size": "native"},
    ]
    for other in others:
        write_scores(first.folder / "valid_results_x", first.config, **other)
        assert run(path, "sweep.validate=false") == 0
        (row,) = read_table(tmp_path)
        assert (row["test_runs"], row["test_dice_mean"]) == ("1", "0.6000000000000001"), other
        assert "| 60.00 (1) |" in (tmp_path / "out" / "sweep.md").read_text()
    assert run(path) == 0 and read_table(tmp_path)[0]["test_runs"] == "2"
    validations = [(trial.folder / "validated").read_text() for trial in (first, second)]
    assert validations == ["xx", "x"] and starts(first) == 1

    write_scores(first.folder / "valid_results_x", first.config, sha256={"checkpoint": "0" * 64})
    (first.folder / "best_model.pth").touch()
    assert results_on_test(first) is None and results_on_test(second) is not None
    assert run(path, "sweep.validate=false", "tta=true") == 0
    assert read_table(tmp_path)[0]["test_runs"] == "0", "those are without augmentation"


@pytest.mark.parametrize(
    ("config", "made_with", "fit"),
    [
        ({}, {}, True),
        ({}, {"image_size": 99}, False),
        ({}, {"vae_weights": "me/other"}, False),
        ({"model": "smp/Unet?encoder=resnet18"}, {"vae_weights": None}, True),
        ({}, {"evaluation_size": 224}, True),
        ({"evaluation_size": "native"}, {"evaluation_size": "native"}, True),
        ({"evaluation_size": "native"}, {"evaluation_size": 224}, False),
        ({"hd95_empty": "zero"}, {}, False),
        ({"tta": True}, {"tta": True, "keep_upright": True}, False),
        ({"tta": True, "keep_upright": True}, {"tta": True, "keep_upright": True}, True),
        ({"keep_upright": True}, {"keep_upright": False}, True),  # the same without augmentation
        ({"precision": "bf16"}, {"precision": "bf16"}, True),
        ({"precision": "bf16"}, {"precision": "fp32"}, False),
        ({}, {"precision": "fp32", "environment": {"device": "CPU"}}, True),
        ({}, {"precision": "bf16", "environment": {"device": "CPU"}}, False),
        ({}, {"precision": "bf16", "environment": {"device": "NVIDIA H200"}}, True),
        ({}, {"precision": "bf16"}, True),  # auto may have meant it
    ],
)
def test_scores_fit_where_they_were_made_as_the_config_says(
    tmp_path: Path, config: dict[str, Any], made_with: dict[str, Any], fit: bool
) -> None:
    asked = load_sweep(write_sweep(tmp_path, {"seeds": [1]}, **config)).base
    write_scores(tmp_path, asked, **made_with)
    assert (fitting_results(tmp_path, asked, tmp_path / "none.pth") is not None) == fit


def test_a_trained_run_counts_though_its_validation_failed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_seed_1(trial: Trial) -> Steps:
        steps = validated_steps(trial)
        failing = [sys.executable, "-c", "raise SystemExit('error: no such case')"]
        return {**steps, "valid": failing} if trial.config.seed == 1 else steps

    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", fail_for_seed_1)
    path = write_sweep(tmp_path, {"seeds": [1, 2], "validate": True})
    assert run(path) == 1
    (row,) = read_table(tmp_path)
    assert (row["finished"], row["failed"], row["test_runs"], row["best"]) == ("1", "1", "1", "1")
    assert row["test_cases"] == "0", "there is no mean over all runs"
    (setting,) = list_settings(load_sweep(path))
    failed = setting.trials[0]
    write_scores(failed.folder / "valid_results_x", failed.config)
    assert len(score_setting(setting, []).test) == 1, "nor do scores that a failed validation left"
    assert float(row["val_dice_mean"]) == pytest.approx(0.7697817)
    table = (tmp_path / "out" / "sweep.md").read_text()
    assert "| 2 | 76.98 |" in table and "(k): only k of the n runs" in table


def test_validation_follows_training_with_the_same_config(tmp_path: Path) -> None:
    (trial,) = list_settings(load_sweep(write_sweep(tmp_path, {"seeds": [1]})))[0].trials
    steps = training_and_validation_steps(trial)
    assert list(steps) == ["train", "valid"]
    assert steps["train"] == training_steps(trial)["train"]
    for step, (_, script, *rest) in steps.items():
        assert Path(script) == ROOT / f"{step}.py"
        assert rest == ["--config", str(trial.config_file)]


def test_a_sweep_of_real_runs(tmp_path: Path, vae: Path) -> None:
    """Two folds by train.py itself: the scores are those that the runs left."""
    values = arguments(tmp_path, vae, "epochs=1")[2:]
    path = write_sweep(tmp_path, {"folds": 2, "workers": 2})
    assert run(path, *values) == 0
    folder = tmp_path / "run"
    dice = []
    for fold in range(2):
        trial = folder / f"fold={fold}" / "epochs_1"
        with (trial / "history.csv").open() as file:
            dice.append(float(list(csv.DictReader(file))[-1]["val_dice"]))
        assert load_config(trial / "config.yaml").fold == fold
        assert (trial / "best_model.pth").is_file()
    with (folder / "sweep.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["finished"], row["best"]) == ("2", "1")
    assert float(row["val_dice_mean"]) == pytest.approx(np.mean(dice))
    assert load_config(folder / "best.yaml").folds == 0
