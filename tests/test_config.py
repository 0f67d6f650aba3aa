from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine.runs.network_settings import NETWORK_KEYS
from experiments.folds import CHOOSES_THE_EPOCH
from experiments.sweeps.optuna_study import KEPT_IN_SEARCH
from experiments.sweeps.settings import NOT_SWEPT, SCHEDULE_KEYS, load_sweep
from experiments.trials.earlier_runs import CHANGED_IN_VAIN
from scoring.in_words import SETTINGS_OF_SCORES
from utils import config_keys
from utils.config import Config, check_used, dump_config, load_config, make_config
from utils.config_keys import CHANGEABLE_ON_RESUME, IGNORED_KEYS, MACHINE_SETTINGS, WAVE_GMS_KEYS
from utils.config_page import describe_fields
from utils.config_problems import NO_KEY, OTHER_NAMES
from utils.errors import UserError
from utils.yaml_files import parse_overrides

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))

# the key names of the published GMS and Wave-GMS files, with values as they have them
PUBLISHED = """\
phase: {phase}
guidance_method: False
vae_model: litevae
pickle_file_path: ./Dataset/busi/busi_train_test_names.pkl
snapshot_path: ./ckpt/busi
save_seg_img_path: ./ckpt/busi/masks
model_weight: {weight}
epochs: 1000
GPUs: [0]
num_workers: 4
batch_size: 12
save_freq: 200
seed: 2333
in_channel: 4
out_channels: 4
num_res_blocks: 2
ch: 32
ch_mult: [1, 2, 4, 4]
lr: 2e-3
w_rec: 1.0
w_dice: 1.0
w_kl: 1e-6
align_loss: True
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_there_are_shipped_configs() -> None:
    assert {"base", "busi_train", "busi_valid", "phantom_train"} <= {p.stem for p in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_config_is_valid(path: Path) -> None:
    overrides = ["pickle_file_path=x_train_test_names.json"] if path.stem == "base" else []
    config = load_config(path, overrides)
    if path.stem.endswith("_valid"):
        train = load_config(path.with_name(path.name.replace("_valid", "_train")))
        assert config.run_folder == train.run_folder


@pytest.mark.parametrize("phase", ["train", "valid", "test"])
def test_published_file_is_accepted_unchanged(tmp_path: Path, phase: str) -> None:
    text = PUBLISHED.format(phase=phase, weight="./ckpt/busi/best_model.pth")
    config = load_config(write(tmp_path / "busi.yaml", text))
    assert config.dataset == "busi"
    assert config.align_loss == 1.0
    assert config.lr == 2e-3
    assert config.guidance_method is None
    assert config.GPUs == (0,)


def test_an_older_published_file_is_accepted(tmp_path: Path) -> None:
    text = PUBLISHED.format(phase="train", weight="").replace("litevae", "litevae-s")
    older = load_config(write(tmp_path / "older.yaml", text + "tiny_mode: 'tiny'\n"))
    assert older == load_config(write(tmp_path / "a.yaml", text.replace("litevae-s", "litevae")))
    with pytest.raises(UserError, match="tiny_mode"):
        load_config(write(tmp_path / "other.yaml", text + "tiny_mode: sd\n"))


def test_a_file_of_gms_names_no_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = ("guidance_method", "vae_model", "w_kl", "align_loss")
    lines = PUBLISHED.format(phase="train", weight="").splitlines()
    text = "\n".join(line for line in lines if not line.startswith(others))
    path = write(tmp_path / "gms.yaml", text)
    assert load_config(path).vae_model == "litevae"
    assert "names no network" in caplog.text and "vae_model=sd_vae" in caplog.text
    caplog.clear()
    assert load_config(path, ["vae_model=sd_vae"]).vae_model == "sd_vae"
    for shipped in SHIPPED:
        load_config(shipped, ["pickle_file_path=x_train_test_names.json"])
    assert not caplog.text


RECIPE = {
    "image_size": 224,
    "batch_size": 12,
    "lr": 2e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 5,
    "seed": 2333,
    "w_rec": 1,
    "w_dice": 1,
    "align_loss": 1,
    "threshold": 0.5,
    "select_on": "val",
    "vae_model": "litevae",
    "vae_weights": "madebyollin/taesd",
}


@pytest.mark.parametrize("name", ["bus", "busi", "glas", "ham10000", "kvasir-instrument", "own"])
def test_the_configs_of_the_data_sets_hold_the_published_recipe(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}_train.yaml").model_dump()
    assert {key: config[key] for key in RECIPE} == RECIPE
    assert config["epochs"] == (300 if name == "ham10000" else 1000)


def test_inherits_and_overrides(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "pickle_file_path: a\nepochs: 7\nlr: 0.1\n")
    write(tmp_path / "b.yaml", "base: a.yaml\nepochs: 8\n")
    path = write(tmp_path / "c.yaml", "base: b.yaml\nbatch_size: 3\n")
    config = load_config(path, ["lr=0.5", "GPUs=[1, 2]"])
    assert (config.epochs, config.batch_size, config.lr, config.GPUs) == (8, 3, 0.5, (1, 2))


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    config = make_config({"pickle_file_path": "x", "ch_mult": [1, 1, 2, 2], "evaluation_size": 64})
    assert load_config(write(tmp_path / "c.yaml", dump_config(config))) == config


def test_the_page_of_all_keys_is_current() -> None:
    assert all(field.description for field in Config.model_fields.values())
    assert (ROOT / "docs" / "config.md").read_text() == describe_fields()


def test_a_base_that_is_missing_is_told_with_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(UserError, match=r"gone\.yaml.*, which .*mine\.yaml names as its base"):
        load_config(tmp_path / "mine.yaml")


def test_a_wrong_override_is_shown_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pickle_file_path: x\n")
    with pytest.raises(UserError, match=r"mine\.yaml epochs=many:\n.*got 'many'"):
        load_config(tmp_path / "mine.yaml", ["epochs=many"])


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = make_config({"pickle_file_path": "~/data/x_train_test_names.json"})
    assert config.pickle_file_path == Path("/home/ann/data/x_train_test_names.json")
    values = {"pickle_file_path": "x", "snapshot_path": "~/runs", "init_weights": "~/a.pth"}
    assert make_config(values).run_folder == Path("/home/ann/runs/epochs_1000")
    assert make_config(values).init_weights == Path("/home/ann/a.pth")
    with pytest.raises(UserError, match=r"nobody-of-this-name.*home directory"):
        make_config({"pickle_file_path": "x", "snapshot_path": "~nobody-of-this-name/runs"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"batchsize": None}, "did you mean 'batch_size'"),
        ({"learning_rate": 1e-3}, "did you mean 'lr'"),
        ({"augmentation": "strong"}, "did you mean 'augment'"),
        ({"loss": "dice"}, "unknown key 'loss': .*w_rec, w_dice and w_tversky"),
        ({"early_stopping": 10}, "unknown key 'early_stopping': .*the best epoch are kept"),
        ({"patience": 10}, "does not stop early"),
        ({"scheduler": "step"}, "warmup_epochs"),
        ({"num_classes": 2}, "foreground or not"),
        ({"sweep": {"grid": {}}}, "it has a `sweep:` section, so it is run by sweep.py"),
        ({"head_weights": "1 1 1"}, r"head_weights: expected a list, as \[1, 1, 1\], got '1 1 1'"),
        ({"epochs": "many"}, "epochs: .*integer.*'many'"),
        ({"epochs": True}, "epochs: .*number, got True"),
        ({"evaluation_size": True}, "evaluation_size"),
        ({"image_size": 100}, "image_size is 100.*96 or 104"),
        ({"image_size": 4}, "use 8$"),
        ({"lr": -1}, "lr: .*greater than 0"),
        ({"vae_model": "taesd"}, "vae_model: .*litevae"),
        ({"guidance_method": "wavelet"}, "needs vae_model: tiny_vae"),
        ({"folds": 5, "fold": 5}, "fold is 5 of folds: 5"),
        ({"fold": 1}, "fold is 1 of folds: 0"),
        ({"folds": 1}, "at least 2 folds"),
        ({"folds": 5, "select_on": "test"}, "set select_on: val"),
        ({"threshold": 1}, "threshold"),
        ({"GPUs": "0,0"}, r"GPUs is \[0, 0\], but each GPU can be named once"),
        ({"head_weights": [1, 1, 0]}, r"head_weights is \[1.0, 1.0, 0.0\].*must be above 0"),
        ({"head_weights": [1, 1]}, "head_weights"),
        ({"ch": 20}, "ch: .*multiple of 16, got 20"),
        ({"ch_mult": [1, 2, 4]}, r"ch_mult: .*4 items.*got \[1, 2, 4\]"),
        ({"in_channel": 3}, "in_channel: .*should be 4, got 3"),
        ({"latent_loss": "l2"}, "latent_loss: .*'mse' or 'l1'"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({"pickle_file_path": "x"} | values)


def test_names_of_elsewhere_mean_keys_that_are_here() -> None:
    assert set(OTHER_NAMES.values()) <= Config.model_fields.keys()
    assert not Config.model_fields.keys() & (OTHER_NAMES.keys() | NO_KEY)
    assert not OTHER_NAMES.keys() & NO_KEY


def test_all_problems_come_together() -> None:
    with pytest.raises(UserError) as caught:
        make_config({"batchsize": 3, "epochs": "many"})
    assert all(key in str(caught.value) for key in ("batchsize", "epochs", "pickle_file_path"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "key: value"),
        ("a: [1, 2", "not plain YAML"),
        ("epochs: 1\nepochs: 2", "given twice"),
        ("epochs: !!python/object/apply:os.system [touch hacked]", "not plain YAML"),
        ("base: missing.yaml", "cannot read.*missing.yaml"),
        ("base: self.yaml", "circle"),
        ("base: [1]", "base must be"),
        ("1: 2", "key: value"),
        ("epochs: 1\non: 2", "with text as keys, got True: put it in quotes"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "self.yaml", text)
    with pytest.raises(UserError, match=message):
        load_config(path)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs=[1"])
def test_bad_overrides_are_refused(tmp_path: Path, override: str) -> None:
    path = write(tmp_path / "c.yaml", "pickle_file_path: x")
    with pytest.raises(UserError, match=r"epochs|key=value"):
        load_config(path, [override])


@pytest.mark.parametrize("text", ["ckpt/run #2", "#2", "[1, 2] # two"])
def test_a_value_that_yaml_would_cut_off_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"'# ?(2|two)' is a comment.*in quotes"):
        parse_overrides([f"snapshot_path={text}"])


def test_a_value_in_quotes_is_taken_whole() -> None:
    values = parse_overrides(['a="ckpt/run #2"', "b=run#2", "c=", "d={e: 1}"])
    assert values == {"a": "ckpt/run #2", "b": "run#2", "c": None, "d": {"e": 1}}


@pytest.mark.parametrize("override", ["batch_size=", "snapshot_path= ", "augment=", "teachers="])
def test_an_override_without_a_value_is_refused(tmp_path: Path, override: str) -> None:
    """As from an unset variable of a shell. It would mean the default, not the value of the file."""
    path = write(tmp_path / "c.yaml", "pickle_file_path: x\nbatch_size: 4\naugment: false")
    with pytest.raises(UserError, match=rf"{override}' has no value.*=null takes the default"):
        load_config(path, [override])
    with pytest.raises(UserError, match=f"{override}' has no value"):
        load_sweep(write(tmp_path / "s.yaml", "base: c.yaml\nsweep: {seeds: [1]}"), [override])
    assert load_config(path, ["save_freq=", "batch_size=null"]).batch_size == 12


def test_teachers_are_listed_with_commas_or_in_brackets() -> None:
    values = {"pickle_file_path": "x"}
    for written in ("a.pth,b.pth", ["a.pth", "b.pth"]):
        config = make_config(values | {"teachers": written})
        assert config.teachers == (Path("a.pth"), Path("b.pth"))


@pytest.mark.parametrize("model", [{}, {"vae_model": "tiny_vae", "align_loss": 1}])
def test_losses_that_all_weigh_nothing_are_refused(model: dict[str, Any]) -> None:
    values = {"pickle_file_path": "x", "w_rec": 0, "w_dice": 0, "align_loss": 0} | model
    with pytest.raises(UserError, match="nothing would be learned"):
        make_config(values)
    assert make_config(values | {"w_tversky": 1}).w_tversky == 1
    assert make_config(values | {"model": "smp/Unet"}).w_dice == 0


OF_WAVE_GMS = {
    "align_loss": 0,
    "ch": 64,
    "ch_mult": [1, 1, 2, 2],
    "checkpoint_decoder": True,
    "guidance_method": "wavelet",
    "head_weights": [0, 0, 1],
    "latent_loss": "l1",
    "vae_model": "tiny_vae",
    "vae_weights": "ckpt/tiny_vae",
    "w_dice": 2,
    "w_rec": 2,
    "w_tversky": 1,
}


SETS_OF_KEYS = {
    **{name: keys for name, keys in vars(config_keys).items() if name.isupper()},
    "CHANGED_IN_VAIN": CHANGED_IN_VAIN,
    "CHOOSES_THE_EPOCH": [CHOOSES_THE_EPOCH],
    "KEPT_IN_SEARCH": KEPT_IN_SEARCH,
    "NETWORK_KEYS": NETWORK_KEYS,
    "NOT_SWEPT": NOT_SWEPT,
    "SCHEDULE_KEYS": SCHEDULE_KEYS,
    "SETTINGS_OF_SCORES": SETTINGS_OF_SCORES,
}


@pytest.mark.parametrize("name", SETS_OF_KEYS)
def test_sets_of_keys_name_keys_of_the_config(name: str) -> None:
    assert Config.model_fields.keys() >= set(SETS_OF_KEYS[name])


@pytest.mark.parametrize("model", ["smp/Unet?encoder=resnet18", "my_package.nets:build"])
def test_keys_that_another_model_does_not_use(model: str) -> None:
    values = {"pickle_file_path": "x", "lr": 0.1}
    assert set(OF_WAVE_GMS) == WAVE_GMS_KEYS
    assert make_config(values | OF_WAVE_GMS).changed_and_unused == []
    assert make_config(values | {"model": model}).changed_and_unused == []
    changed = make_config(values | OF_WAVE_GMS | {"model": model}).changed_and_unused
    assert changed == sorted(set(OF_WAVE_GMS) - {"vae_weights"})


@pytest.mark.parametrize("model", ["wave-gms", "smp/Unet?encoder=resnet18"])
def test_keys_that_no_model_uses(model: str) -> None:
    """Published files have them; a resume takes any, and runs that differ only in them are refused."""
    ignored = {
        "in_channel": 4,
        "num_res_blocks": 3,
        "out_channels": 4,
        "phase": "test",
        "w_kl": 1e-6,
    }
    config = make_config({"pickle_file_path": "x", "model": model} | ignored)
    assert config.unused(ignored) == sorted(ignored) == sorted(IGNORED_KEYS)
    assert config.changed_and_unused == [], "a published file is no reason for a warning"
    assert MACHINE_SETTINGS >= IGNORED_KEYS and CHANGEABLE_ON_RESUME >= IGNORED_KEYS
    with pytest.raises(
        UserError, match=rf"model {re.escape(model)} does not use w_kl, .*leave it out$"
    ):
        check_used(config, {"w_kl": 0.1, "lr": 0.1}, "the sweep")


def test_no_path_can_be_said_in_words() -> None:
    values = {"pickle_file_path": "x", "model_weight": "none", "save_seg_img_path": ""}
    config = make_config(values)
    assert config.model_weight is None and config.save_seg_img_path is None
