"""Networks of the user's own; that they train and predict is in test_every_system.py."""

from __future__ import annotations

import csv
import html
import json
import random
import re
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import compare
import train
import valid
from engine.build import system_from
from engine.device import make_accelerator
from engine.training.options import TrainingOptions
from engine.training.step import TrainingStep
from models.base import SegmentationModel
from models.baseline import Baseline
from models.build import build_system
from models.losses import LossWeights
from models.own_network import check_training
from tests.own_networks import RECEIVED, SquaredError
from tests.small_run import arguments
from tests.test_config import OF_WAVE_GMS
from utils.checkpoints import load_weights, save_weights
from utils.config import load_config, make_config, part_of
from utils.errors import UserError


def build(model: str) -> torch.nn.Module:
    return build_system(
        model=model,
        vae_model="litevae",
        guidance_method=None,
        vae_weights="not/read",
        image_size=32,
        loss_weights=LossWeights(),
    )


def test_running_statistics_and_averaged_weights_do_not_go_together(
    tmp_path: Path, vae: Path
) -> None:
    command = arguments(tmp_path, vae, "model=tests.own_networks:build", "ema_decay=0.9")
    with pytest.raises(UserError, match=r"batch normalisation, whose .* set ema_decay=0"):
        train.main([*command, "--dry-run"])


def test_it_becomes_a_baseline_with_its_own_weights() -> None:
    system = build("tests.own_networks:build")
    assert isinstance(system, Baseline) and system.training
    assert next(iter(system.parts()["model"].state_dict())) == "0.weight"
    assert system.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


def test_a_model_with_its_own_loss_is_taken_as_it_is() -> None:
    system = build("tests.own_networks:with_own_loss")
    result = system(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32))
    assert set(result) == {"loss", "squares", "dice"}
    assert result["loss"] == 2 * result["squares"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:build", "no module 'no_such_module'.*beside train.py.*PYTHONPATH"),
        ("models.no_such:build", r"no module 'models\.no_such'"),
        ("tests.own_networks:bild", r"a function in .*own_networks\.py, found no such name"),
        ("tests.own_networks:NUMBER", "found a float"),
        (
            "tests.own_networks:without_settings",
            "image_size=32.*: the function cannot be called so",
        ),
        (
            "tests.own_networks:of_width?width=8&deph=2",
            r"of_width\?width=8&deph=2': the function has no option 'deph'; did you mean 'depth'",
        ),
        ("tests.own_networks:of_width?encoder=a", "no option 'encoder'; it takes width, depth$"),
        ("tests.own_networks:build?width=8", "the function has no option 'width'; it takes none"),
        ("tests.own_networks:build?image_size=8", "image_size cannot be an option"),
        ("tests.own_networks:of_width?width=8&width=9", "the option 'width' is given twice"),
        ("tests.own_networks:of_width?width=[8,9]", r"'width' is \[8, 9\], expected a number"),
        ("tests.own_networks:of_width?width=@8", "width=@8' is not plain YAML"),
        ("tests.own_networks:of_width?width=2020-01-01", "is datetime.*quote text"),
        (
            "tests.own_networks:with_option",
            r"with_option\(in_channels=3, .*cannot be called so, missing .*'width'",
        ),
        (
            "tests.own_networks:nothing?a=b",
            r"nothing\(.*image_size=32, a='b'\) returned a NoneType",
        ),
        ("tests.own_networks:nothing", "returned a NoneType, expected a torch.nn.Module"),
        (
            "tests.own_networks:of_two_classes",
            r"returned a tensor \(1, 2, 32, 32\), expected a tensor \(1, 1, 32, 32\)",
        ),
        ("tests.own_networks:Named", "returned a dict, expected a tensor"),
        ("tests.own_networks:of_one_channel", "no parameter to train"),
        (
            "tests.own_networks:weighted_losses",
            r"weights would be trained but not saved.*parts\(\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_told(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dice_by_name", "loss_names is .*'dice'.*columns of history.csv"),
        ("without_total", "a scalar tensor 'loss' among the losses, got a NoneType"),
        ("per_pixel", r"a scalar tensor 'loss' .*got a tensor \(2, 1, 32, 32\)"),
        ("deep_supervision", "the network returned a list, expected a tensor of logits"),
    ],
)
def test_what_fails_in_training_is_told_before_it(
    name: str, message: str, tmp_path: Path, vae: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train.main([*arguments(tmp_path, vae, f"model=tests.own_networks:{name}"), "--dry-run"])


def random_states() -> tuple[object, ...]:
    """The states of the three generators of random numbers, to be compared."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


def test_the_check_of_training_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("build", "moving_average"):
        system = build(f"tests.own_networks:{name}")
        before = {key: value.clone() for key, value in system.state_dict().items()}
        states = random_states()
        check_training(system, 32)
        assert random_states() == states and system.training
        for key, value in system.state_dict().items():
            assert torch.equal(value, before[key]), key
    assert "sigmoid" not in caplog.text
    check_training(build("tests.own_networks:with_sigmoid"), 32)
    assert "the network ends in a sigmoid: leave it out" in caplog.text


@pytest.mark.parametrize("seed", [5, 2**32 + 5])
def test_a_seed_fixes_weights_that_are_drawn_from_numpy_and_python(seed: int, vae: Path) -> None:
    def weights(of: int) -> torch.Tensor:
        settings = {"pickle_file_path": "x", "vae_weights": str(vae), "image_size": 32, "seed": of}
        model = "tests.own_networks:stochastic_depth"
        system = system_from(make_config(settings | {"model": model}))
        return torch.cat([weight.flatten() for weight in system.parameters()])

    first = weights(seed)
    random.random(), np.random.rand()  # noqa: NPY002
    states = random_states()[1:]
    assert torch.equal(weights(seed), first) and random_states()[1:] == states
    assert not torch.isclose(weights(seed + 1), first).any()


def test_a_run_is_not_resumed_with_other_losses(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = arguments(tmp_path, vae, "model=tests.own_networks:with_own_loss", "epochs=1")
    train.main(run)
    monkeypatch.setattr(SquaredError, "loss_names", ("loss", "errors"))
    monkeypatch.setattr(
        SquaredError,
        "losses",
        lambda self, logits, _: dict.fromkeys(self.loss_names, logits.mean()),
    )
    with pytest.raises(UserError, match=r"counts the losses loss, squares, dice, .* loss, errors"):
        train.main(run)


def test_constant_masks_of_infinity_are_trained_with_and_exported(
    tmp_path: Path, vae: Path
) -> None:
    model = "model=tests.own_networks:masked"
    train.main(arguments(tmp_path, vae, model, "epochs=1", "ema_decay=0.9"))
    weights = tmp_path / "run" / "epochs_1" / "best_model.pth"
    system, halved = (build("tests.own_networks:masked") for _ in range(2))
    load_weights(weights, cast(SegmentationModel, system))
    save_weights(tmp_path / "half.pth", cast(SegmentationModel, system), half=True)
    load_weights(tmp_path / "half.pth", cast(SegmentationModel, halved))
    for name, value in system.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert system.state_dict()["network.saved"].isneginf().sum() == 1


@pytest.mark.parametrize("name", ["running_mean", "weight"])
def test_a_buffer_or_weight_that_becomes_infinite_stops_the_training(
    name: str, tmp_path: Path, vae: Path
) -> None:
    model = "model=tests.own_networks:build"
    config = load_config(Path(arguments(tmp_path, vae)[1]), [*arguments(tmp_path, vae)[2:], model])
    system = system_from(config)
    accelerator = make_accelerator("fp32", 1, deterministic=False)
    step = TrainingStep(system, part_of(config, TrainingOptions), 3, accelerator)
    step.check_finite(1)
    layer: Any = system.parts()["model"].get_submodule("1")
    with torch.no_grad():
        getattr(layer, name)[0] = torch.nan
    with pytest.raises(UserError, match="weights became NaN or infinite in epoch 1"):
        step.check_finite(1)


def test_weights_of_losses_are_resumed(tmp_path: Path, vae: Path) -> None:
    model = "model=tests.own_networks:saved_weights"
    train.main(arguments(tmp_path, vae, model, "epochs=1"))
    saved = torch.load(tmp_path / "run" / "epochs_1" / "best_model.pth", weights_only=True)
    assert list(saved) == ["model", "loss_weights"]


def test_an_error_within_the_module_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        build("needs_more:build")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("-0.5", -0.5),
        ("1e-3", 0.001),
        ("2.E+1", 20.0),
        ("true", True),
        ("null", None),
        ("gelu", "gelu"),
        ("'32'", "32"),
        ("a=b:c?d", "a=b:c?d"),
        ("1e-3x", "1e-3x"),
    ],
)
def test_options_are_values_of_yaml(text: str, value: object) -> None:
    model = f"tests.own_networks:noting?first={text}&second_2=x"
    build(make_config({"pickle_file_path": "x", "model": model}).model)
    expected = {"in_channels": 3, "out_channels": 1, "image_size": 32}
    assert expected | {"first": value, "second_2": "x"} == RECEIVED
    assert type(RECEIVED["first"]) is type(value)


def test_runs_of_other_options_are_trained_scored_and_compared(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"tests.own_networks:of_width?width={width}&depth=2" for width in (4, 8)]
    runs = []
    for model, parameters in zip(models, (265, 817), strict=True):
        out = f"of {parameters}"
        train.main(arguments(tmp_path, vae, f"model={model}", "epochs=1", out=out))
        plan = capsys.readouterr().out
        assert f"network {model}" in plan and f"trainable parameters: {parameters}\n" in plan
        runs.append(tmp_path / out / "epochs_1")
        valid.main(["--run", str(runs[-1])])
        results = runs[-1] / "valid_results_blobs"
        summary = json.loads((results / "summary.json").read_text())
        assert summary["count"] == 3 and summary["provenance"]["model"] == model
        assert f"{html.escape(model)} on blobs" in (results / "report.html").read_text()
    with pytest.raises(UserError, match=r"model: .*width=4&depth=2.*width=8&depth=2"):
        train.main(arguments(tmp_path, vae, f"model={models[1]}", "epochs=1", out="of 265"))
    compare.main([*map(str, runs), "--out", str(tmp_path / "compared")])
    assert "| of 265 (reference) | of 817 |" in (tmp_path / "compared/comparison.md").read_text()


@pytest.mark.parametrize(
    "model",
    [
        "unet",
        "a b:c",
        "os.path:",
        ":build",
        "a:b:c",
        "1a:b",
        "a:b()",
        "a:b?",
        "a:b?width",
        "a:b?width=",
        "a:b?=3",
        "a:b?1a=3",
        "a:b?c=3&",
        "a:b?c=3&d",
        "a:b?c=3 4",
        "a:b?c=#3",
        "a?c=3:b",
    ],
)
def test_other_forms_are_refused_by_the_config(model: str) -> None:
    with pytest.raises(UserError, match=r"model is .*package\.module:function"):
        make_config({"pickle_file_path": "x", "model": model})


def test_reading_a_config_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "read_only.py").write_text("raise SystemExit('imported')\n")
    path = tmp_path / "config.yaml"
    path.write_text("pickle_file_path: x\nmodel: read_only:build\naugment: read_only:build\n")
    assert load_config(path).model == load_config(path).augment == "read_only:build"
    assert "read_only" not in sys.modules


def test_a_dry_run_plans_it(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*arguments(tmp_path, vae, "model=tests.own_networks:build"), "--dry-run"])
    plan = capsys.readouterr().out
    assert "network: build of " in plan and "trainable parameters: 249" in plan
    assert "network tests.own_networks:build" in plan and "latent mapping" not in plan


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's history.csv, without times."""
    with (folder / "epochs_1" / "history.csv").open() as file:
        return [
            {key: value for key, value in row.items() if "second" not in key}
            for row in csv.DictReader(file)
        ]


def test_keys_of_wave_gms_change_nothing_and_the_plan_says_so(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = OF_WAVE_GMS | {"vae_weights": "not/read"}
    changed = [f"{key}={value}" for key, value in values.items()]
    model = ("model=tests.own_networks:build", "epochs=1")
    train.main(arguments(tmp_path, vae, *model))
    assert "does not use" not in capsys.readouterr().out
    told = "warning: model tests.own_networks:build does not use align_loss, ch, ch_mult, checkpoint_decoder, "
    train.main([*arguments(tmp_path, vae, *model, *changed, out="other"), "--dry-run"])
    assert capsys.readouterr().out.count(told) == 1
    train.main(arguments(tmp_path, vae, *model, *changed, out="other"))
    assert capsys.readouterr().out.count(told) == 1
    assert history(tmp_path / "run") == history(tmp_path / "other") != []


def test_the_memory_of_a_network_that_looks_at_values(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tmp_path, vae, "model=tests.own_networks:checking", "epochs=1")
    train.main([*command, "--dry-run"])
    assert "GPU memory: cannot be estimated for this network" in capsys.readouterr().out
    train.main(command)

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.training.step.TrainingStep.__call__", too_large)
    with pytest.raises(UserError, match="out of memory with batches of 2 at 32 px: set a smaller"):
        train.main([*command, "resume=never"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_that_runs_on_gpus_only(tmp_path: Path, vae: Path) -> None:
    command = arguments(tmp_path, vae, "model=tests.own_networks:only_on_gpu", "epochs=1")
    train.main([*command, "--dry-run"])
    train.main(command)
    assert (tmp_path / "run" / "epochs_1" / "best_model.pth").is_file()


def test_a_network_in_three_dimensions(tmp_path: Path, vae: Path) -> None:
    model = "model=tests.own_networks:in_three_dimensions"
    train.main(arguments(tmp_path, vae, model, "epochs=1"))
    assert (tmp_path / "run" / "epochs_1" / "best_model.pth").is_file()


def test_the_encoder_of_the_docs_trains_and_is_scored(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    (example,) = re.findall(r"```python\n([^`]*class MyEncoder[^`]*)```", page.read_text())
    (tmp_path / "my_wave_gms.py").write_text(example.replace("ckpt/tiny_vae", str(vae)))
    monkeypatch.syspath_prepend(tmp_path)
    train.main(arguments(tmp_path, vae, "model=my_wave_gms:build", "epochs=1"))
    run = tmp_path / "run" / "epochs_1"
    assert {"lm", "seg", "align"} < set((run / "history.csv").read_text().split("\n")[0].split(","))
    valid.main(["--run", str(run)])
    summary = json.loads((run / "valid_results_blobs" / "summary.json").read_text())
    assert summary["count"] == 3
