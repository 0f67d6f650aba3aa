from __future__ import annotations

from collections.abc import Callable

import pytest

import distill
import export
import predict
import train
import valid
from datasets import prepare


@pytest.mark.parametrize(
    ("parse", "arguments", "hint"),
    [
        (train.parse_arguments, "--config c --epochs 3", "--epochs; write epochs=3;"),
        (train.parse_arguments, "--config c --batch-size=4 lr=1", "; write batch_size=4;"),
        (train.parse_arguments, "--config c --learning_rate 1e-3", "; write lr=1e-3;"),
        (train.parse_arguments, "--config c --amp", "; write precision=..., whose values docs/con"),
        (train.parse_arguments, "--config c --dataset busi", "; write pickle_file_path=..., whose"),
        (train.parse_arguments, "--config c --model unet", "; write model=unet;"),
        (train.parse_arguments, "--config c --dryrun", "; did you mean --dry-run?;"),
        (valid.parse_arguments, "--run R --tta", "--tta; write tta=true;"),
        (valid.parse_arguments, "--run R --tta threshold=0.4", "; write tta=true;"),
        (export.parse_arguments, "--run R --precision fp32", "; write --set precision=fp32;"),
        (predict.parse_arguments, "--run R a.png --out o --treshold 1", "mean --threshold?;"),
        (prepare.parser().parse_args, "mine --labels 1", "--labels 1; did you mean --label?;"),
        (distill.parse_arguments, "all --zzz 1", "unrecognized arguments: --zzz 1;"),
    ],
)
def test_an_unknown_option_names_what_may_have_been_meant(
    parse: Callable[[list[str]], object],
    arguments: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and hint in said
    assert said.count("\n") == 1, "the usage would hide it"
