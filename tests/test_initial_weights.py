from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import export
import train
import valid
from datasets.cases import open_data_set
from engine.runs.run_cases import RunCases, names_sha256
from engine.runs.seen_cases import (
    cases_leaked_to,
    cases_trained_on,
    held_out_cases,
    known_held_out_cases,
    seen_test_cases,
)
from engine.runs.training_record import TrainingRecord
from engine.training.initial_weights import check_saw_no_test_case
from engine.training.trainer import Trainer
from engine.training_cases import training_cases_from
from tests.cases_on_disk import write_data_set
from tests.small_run import arguments
from utils.checkpoints import load_weights, save_weights
from utils.config import dump_config, load_config, make_config
from utils.errors import UserError

Weights = dict[str, torch.Tensor]


def flat(parts: dict[str, Weights]) -> Weights:
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def other_data_set(folder: Path) -> str:
    """A data set with other cases, as an argument."""
    (folder / "elsewhere").mkdir()
    split = write_data_set(folder / "elsewhere", train=9, test=3, size=32, name="spots")
    return f"pickle_file_path={split}"


@pytest.fixture
def weights_at_start(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The weights with which each training began, filled as trainings run."""
    seen: list[Weights] = []
    fit = Trainer.fit

    def watched(self: Trainer) -> None:
        parts = {
            name: part.state_dict() for name, part in self.step.evaluated_system.parts().items()
        }
        seen.append({key: value.clone() for key, value in flat(parts).items()})
        fit(self)

    monkeypatch.setattr(Trainer, "fit", watched)
    return seen


@pytest.mark.parametrize("ema", ["0", "0.9"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_training_starts_from_the_weights_of_another_run(
    finished: Path,
    tmp_path: Path,
    vae: Path,
    weights_at_start: list[Weights],
    suffix: str,
    ema: str,
) -> None:
    source = finished / "best_model.pth"
    expected = flat(torch.load(source, weights_only=True))
    if suffix == ".safetensors":
        from engine.build import system_from

        system = system_from(load_config(finished / "config.yaml"))
        load_weights(source, system)
        source = tmp_path / "kept.safetensors"
        save_weights(source, system)
    start = [f"init_weights={source}", "seed=5", f"ema_decay={ema}", "epochs=1"]
    train.main(arguments(tmp_path, vae, other_data_set(tmp_path), *start, out="next"))
    (began,) = weights_at_start
    assert began.keys() == expected.keys()
    assert all(torch.equal(began[key], expected[key]) for key in expected)
    environment = json.loads((tmp_path / "next" / "epochs_1" / "environment.json").read_text())
    assert len(environment["sha256"]["file of initial weights"]) == 64


def test_a_score_names_the_initial_weights(finished: Path, tmp_path: Path, vae: Path) -> None:
    source, data = finished / "best_model.pth", other_data_set(tmp_path)
    run = arguments(tmp_path, vae, data, f"init_weights={source}", "epochs=1", out="next")
    train.main(run)
    valid.main(["--run", str(tmp_path / "next" / "epochs_1")])
    summary = next((tmp_path / "next" / "epochs_1").glob("valid_results_*/summary.json"))
    assert json.loads(summary.read_text())["provenance"]["init_weights"] == str(source)


def test_the_plan_says_where_training_starts(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = finished / "best_model.pth", other_data_set(tmp_path)
    train.main([*arguments(tmp_path, vae, data, out="a"), "--dry-run"])
    assert "starts from: random weights" in capsys.readouterr().out
    train.main([*arguments(tmp_path, vae, data, f"init_weights={source}", out="b"), "--dry-run"])
    assert f"starts from: {source}" in capsys.readouterr().out


def test_the_plan_names_the_weights_that_a_network_brings(
    tmp_path: Path,
    vae: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is downloaded here: the encoder is made with random weights instead."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    create, asked_for = smp.create_model, []

    def create_without_hub(architecture: str, encoder: str, weights: Any, **settings: Any) -> Any:
        asked_for.append(weights)
        return create(architecture, encoder, None, **settings)

    monkeypatch.setattr(smp, "create_model", create_without_hub)
    data = other_data_set(tmp_path)
    model = "smp/Unet?encoder=tu-resnet18&weights=imagenet"
    train.main([*arguments(tmp_path, vae, data, f"model={model}", out="a"), "--dry-run"])
    start = "starts from: tu-resnet18 with the weights imagenet, random weights elsewhere"
    assert start in capsys.readouterr().out
    assert asked_for == [True]
    (tmp_path / "brought.py").write_text(
        "import torch\ndef build(**_):\n    return torch.nn.Conv2d(3, 1, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    train.main([*arguments(tmp_path, vae, data, "model=brought:build", out="b"), "--dry-run"])
    assert "starts from: what brought:build returns" in capsys.readouterr().out


def test_initial_weights_that_are_not_finite_are_refused(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    source, data = tmp_path / "broken.pth", other_data_set(tmp_path)
    parts = torch.load(finished / "best_model.pth", weights_only=True)
    next(iter(parts["model"].values())).view(-1)[0] = torch.nan
    torch.save(parts, source)
    with pytest.raises(UserError, match=rf"{source} has NaN or infinite weights, in mapping\."):
        train.main(arguments(tmp_path, vae, data, f"init_weights={source}", out="next"))
    assert not (tmp_path / "next").exists()


def test_a_run_is_not_resumed_with_other_initial_weights(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    kept = tmp_path / "kept.pth"
    kept.write_bytes((finished / "best_model.pth").read_bytes())
    data = other_data_set(tmp_path)
    run = arguments(tmp_path, vae, data, f"init_weights={kept}", "epochs=1", out="next")
    train.main(run)
    parts = torch.load(kept, weights_only=True)
    next(iter(parts["model"].values())).add_(1)
    torch.save(parts, kept)
    with pytest.raises(UserError, match="file of initial weights is another file"):
        train.main(run)
    with pytest.raises(UserError, match="init_weights"):
        train.main(arguments(tmp_path, vae, data, "epochs=1", out="next"))


def test_weights_that_saw_test_cases_are_refused(finished: Path, tmp_path: Path, vae: Path) -> None:
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    config = load_config(finished / "config.yaml").model_copy(update={"pickle_file_path": split})
    (finished / "config.yaml").write_text(dump_config(config))
    names = json.loads(split.read_text())
    moved = names["train"]["name_list"][:2]
    names["test"]["name_list"] += moved
    names["train"]["name_list"] = names["train"]["name_list"][2:]
    other = split.with_name("other_train_test_names.json")
    other.write_text(json.dumps(names))
    start = f"init_weights={finished / 'best_model.pth'}"
    with pytest.raises(UserError, match=rf"trained on 2 of the 5 test cases.*{moved[0]}"):
        train.main(arguments(tmp_path, vae, f"pickle_file_path={other}", start, out="next"))
    assert not (tmp_path / "next").exists()

    # also where a run on other data lies between
    train.main(arguments(tmp_path, vae, other_data_set(tmp_path), start, "epochs=1", out="between"))
    start = f"init_weights={tmp_path / 'between' / 'epochs_1' / 'best_model.pth'}"
    with pytest.raises(UserError, match="trained on 2 of the 5 test cases"):
        train.main(arguments(tmp_path, vae, f"pickle_file_path={other}", start, out="next"))


def passed_on(folder: Path, **record: str) -> Path:
    """Weights without a config beside them, that say on which data they were trained."""
    folder.mkdir()
    (folder / "best_model.safetensors").write_bytes(save({}, record))
    return folder / "best_model.safetensors"


def test_another_split_is_noticed_through_runs_on_other_data(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    first = passed_on(tmp_path / "first", data_set="blobs", training_cases="of another split")
    config = load_config(finished / "config.yaml")
    spots = Path(other_data_set(tmp_path).partition("=")[2])
    changes = {"pickle_file_path": spots, "init_weights": first}
    (finished / "config.yaml").write_text(dump_config(config.model_copy(update=changes)))
    start = f"init_weights={finished / 'best_model.pth'}"
    with pytest.raises(UserError, match=rf"started from {first}, which was trained on another"):
        train.main([*arguments(tmp_path, vae, start, out="next"), "--dry-run"])


def test_weights_start_a_training_on_their_own_data_wherever_it_lies(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=2, test=1))
    names = tuple(case.name for case in data_set.train)
    gone = "datasets/gone/blobs_train_test_names.json"
    start = write_config(tmp_path / "start", pickle_file_path=gone)
    with pytest.raises(UserError, match="no split file"):
        cases_trained_on(start, data_set)
    record = {"training_cases": names_sha256(names)}
    start.with_name("environment.json").write_text(json.dumps(record))
    assert cases_trained_on(start, data_set) == names


def test_all_cases_count_as_known_where_only_a_hash_of_them_is_recorded(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=3))
    names = [case.name for case in data_set.train]
    held_out = data_set.train[:2]
    for cases, known in ((names, 2), (names[1:], 0)):
        start = passed_on(tmp_path / f"{known}", training_cases=names_sha256(cases))
        assert len(known_held_out_cases(start, held_out, data_set)) == known


def test_weights_of_an_absent_set_of_the_same_name_start_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set = open_data_set(write_data_set(tmp_path / "datasets", train=2, test=1))
    asked = "datasets/pretraining/blobs/blobs_train_test_names.json"
    (tmp_path / "config.yaml").write_text(dump_config(make_config({"pickle_file_path": asked})))
    monkeypatch.chdir(tmp_path)
    seen = cases_trained_on(tmp_path / "best_model.pth", data_set)
    assert seen == tuple(case.name for case in data_set.train)


def write_config(folder: Path, **keys: object) -> Path:
    """The config of a run in `folder`; returns where its checkpoint would lie."""
    folder.mkdir()
    settings = {"pickle_file_path": "blobs_train_test_names.json", "snapshot_path": "ckpt/mine"}
    (folder / "config.yaml").write_text(dump_config(make_config(settings | keys)))
    return folder / "best_model.pth"


def test_cases_are_remembered_through_runs_of_one_place(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=2, test=1))
    first = write_config(tmp_path / "first", pickle_file_path=data_set.split_file)
    other = write_config(
        tmp_path / "other", pickle_file_path="spots_train_test_names.json", init_weights=first
    )
    assert cases_trained_on(other, data_set) == tuple(case.name for case in data_set.train)


def test_copies_in_a_data_set_of_another_name_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    own = open_data_set(write_data_set(tmp_path, train=4, test=2))
    again = open_data_set(write_data_set(tmp_path, train=2, test=4, name="spots"))
    run = write_config(tmp_path / "run", pickle_file_path=own.split_file)
    assert cases_trained_on(run, again) == ("case_0", "case_1", "case_2", "case_3")
    cases = RunCases(("case_0", "case_2"), ("case_1", "case_3"), ("case_4", "case_5"))
    run.with_name("cases.json").write_text(cases.to_json())
    assert seen_test_cases(run, again) == ["case_2", "case_3"]
    assert known_held_out_cases(run, again.train, again) == ["case_0"]
    (again.folder / "check").mkdir()
    groups = {"by": "near-duplicates", "groups": [["case_3", "case_5"]]}
    (again.folder / "check" / "same_source_groups.json").write_text(json.dumps(groups))
    assert cases_leaked_to(again, run) == {"case_2", "case_3", "case_5"}
    with pytest.raises(UserError, match=r"was trained on 2 of the 4 test cases .*case_2, case_3"):
        check_saw_no_test_case(run, again, "teachers")
    with pytest.raises(UserError, match="of which cases of spots its run held out"):
        held_out_cases(run, again)

    (again.folder / "images" / "case_2.png").write_bytes(again.test[-1].image.read_bytes())
    assert seen_test_cases(run, again) == ["case_3"], "one of the name alone"
    own.split_file.unlink()
    with caplog.at_level("INFO", "wavegms"):
        assert cases_leaked_to(again, run) == set()
    said = caplog.text + capsys.readouterr().out
    assert "trained on another data set (blobs): no case of spots is known to have been" in said
    assert "under other names, or converted, and near-duplicates were not looked for" in said


def selection_of(checkpoint: Path) -> str:
    return TrainingRecord.read(checkpoint).selection()


def test_a_start_that_was_chosen_on_test_is_remembered(tmp_path: Path) -> None:
    first = write_config(tmp_path / "first", select_on="test")
    second = write_config(tmp_path / "second", init_weights=first)
    third = write_config(tmp_path / "third", init_weights=second)
    held_out = "checkpoint chosen on a held-out part of train"
    said = f"{held_out}; it started from weights that were chosen on the TEST split"
    assert selection_of(second) == selection_of(third) == said
    assert selection_of(third.with_name("epoch_3.pth")).endswith("chosen on the TEST split")
    spots = "spots_train_test_names.json"
    other = write_config(tmp_path / "other", pickle_file_path=spots, init_weights=first)
    assert selection_of(other) == held_out, "it says nothing about the test split of other data"
    back = write_config(tmp_path / "back", init_weights=other)
    assert selection_of(back) == said
    grouped = write_config(
        tmp_path / "grouped",
        pickle_file_path="blobs_grouped_train_test_names.json",
        init_weights=first,
    )
    assert selection_of(grouped) == said

    # the files of two runs that each name the other one as their start
    first.with_name("config.yaml").write_text(
        dump_config(make_config({"pickle_file_path": spots, "init_weights": str(back)}))
    )
    assert selection_of(back) == held_out


def test_a_passed_on_start_that_was_chosen_on_test_is_remembered(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    config = load_config(finished / "config.yaml").model_copy(update={"select_on": "test"})
    (finished / "config.yaml").write_text(dump_config(config))
    passed_on = tmp_path / "shared" / "best_model.safetensors"
    export.main(["--run", str(finished), "--out", str(passed_on)])
    passed_on.with_name("config.yaml").unlink()
    train.main(arguments(tmp_path, vae, f"init_weights={passed_on}", "epochs=1", out="next"))
    again = tmp_path / "again" / "best_model.safetensors"
    export.main(["--run", str(tmp_path / "next" / "epochs_1"), "--out", str(again)])
    for weights in (tmp_path / "next" / "epochs_1" / "best_model.pth", again):
        assert selection_of(weights).endswith(
            "started from weights that were chosen on the TEST split"
        )
    plan = (tmp_path / "next" / "epochs_1" / "logs" / "train.log").read_text()
    assert "started from weights that were chosen on the TEST split" in plan


def test_the_plan_warns_of_held_out_cases_that_the_start_knows(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*overrides: str) -> str:
        train.main([*arguments(tmp_path, vae, *overrides, out="next"), "--dry-run"])
        return capsys.readouterr().out

    start = f"init_weights={finished / 'best_model.pth'}"
    config = load_config(finished / "config.yaml")
    data_set = open_data_set(config.pickle_file_path)
    other_seed = config.model_copy(update={"seed": 5})
    trained, held_out = (
        training_cases_from(config, data_set)[0],
        training_cases_from(other_seed, data_set)[1],
    )
    known = len(set(trained) & set(held_out))
    assert known > 0
    assert "warning" not in plan(start)
    assert "warning" not in plan("seed=5")
    said = f"was trained on {known} of the cases for choosing, so that val_dice is too high"
    assert said in plan(start, "seed=5")
    assert "best_model.pth was trained on 2 of the cases for choosing" in plan(start, "folds=4")
    kept_last = plan(start, "seed=5", "select_on=last")
    assert (
        f"trained on {known} of the cases that are held out, so that val_dice is too high;"
        in kept_last
    )

    # also where a run on other data lies between
    between = arguments(tmp_path, vae, other_data_set(tmp_path), start, "epochs=1", out="between")
    train.main(between)
    start = f"init_weights={tmp_path / 'between' / 'epochs_1' / 'best_model.pth'}"
    assert "warning" not in plan(start)
    assert said in plan(start, "seed=5")


def test_all_cases_count_as_known_where_it_is_not_known_which_were_held_out(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=3))
    start = write_config(tmp_path / "start", pickle_file_path=data_set.split_file)
    for runs, known in (("1", 0), ("2", 1)):
        weights = start.with_suffix(".safetensors")
        weights.write_bytes(save({}, {"averaged_runs": runs}))
        config = make_config({"pickle_file_path": data_set.split_file, "init_weights": weights})
        held_out = training_cases_from(config, data_set)[1]
        assert len(held_out) == 1
        assert len(known_held_out_cases(weights, held_out, data_set)) == known, (
            "a mean has seen what any run has"
        )
    weights.write_bytes(save({}))
    weights.with_name("environment.json").write_text('{"training_cases": "of an earlier split"}')
    assert len(known_held_out_cases(weights, held_out, data_set)) == 1


def test_weights_of_another_network_name_the_key(finished: Path, tmp_path: Path, vae: Path) -> None:
    """And not the layers, nor GMS, of which they are not."""
    start = finished / "best_model.pth"
    written = load_config(finished / "config.yaml").model_copy(update={"model": "smp/Unet"})
    (finished / "config.yaml").write_text(dump_config(written))
    torch.save({"model": {"encoder.conv1.weight": torch.zeros(8)}}, start)
    with pytest.raises(UserError) as caught:
        train.main(arguments(tmp_path, vae, f"init_weights={start}", out="next"))
    assert "these weights are of model=smp/Unet, and here it is model=wave-gms" in str(caught.value)
    (finished / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"part 'vae_model' is missing.*Compare model,") as caught:
        train.main(arguments(tmp_path, vae, f"init_weights={start}", out="next"))
    assert "GMS" not in str(caught.value)


def test_a_run_in_place_of_its_weights_is_told(finished: Path, tmp_path: Path, vae: Path) -> None:
    start = f"init_weights={finished}"
    with pytest.raises(
        UserError, match=r"no weights at .*, a folder: name the file in it, best_model"
    ):
        train.main(arguments(tmp_path, vae, start, out="next"))


def test_the_same_split_may_be_trained_further(finished: Path, tmp_path: Path, vae: Path) -> None:
    start = f"init_weights={finished / 'best_model.pth'}"
    train.main(arguments(tmp_path, vae, start, "image_size=40", "epochs=1", out="larger"))
    assert (tmp_path / "larger" / "epochs_1" / "best_model.pth").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init_weights={run}/none.pth"], "set `init_weights:` to a checkpoint"),
        (
            ["init_weights={run}/best_model.pth", "ch=16"],
            "does not fit this model: by the config.yaml beside it, these weights are of ch=32, and here it is ch=16",
        ),
        (
            ["init_weights={run}/best_model.pth", "vae_model=tiny_vae", "guidance_method=wavelet"],
            "are of vae_model=litevae guidance_method=null, and here it is vae_model=tiny_vae guidance_method=wavelet",
        ),
        (
            ["init_weights={run}/best_model.pth", "snapshot_path={run}/.."],
            "where this run writes its own weights",
        ),
    ],
)
def test_weights_that_cannot_be_a_start_are_refused(
    finished: Path, tmp_path: Path, vae: Path, changes: list[str], message: str
) -> None:
    named = [change.format(run=finished) for change in changes]
    before = (finished / "best_model.pth").read_bytes()
    with pytest.raises(UserError, match=message):
        train.main(arguments(tmp_path, vae, *named, "resume=never", out="next"))
    assert (finished / "best_model.pth").read_bytes() == before
