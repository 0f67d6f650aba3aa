"""One model from several runs: the mean of their weights (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from engine.training_record import (
    AVERAGED_FROM,
    AVERAGED_RUNS,
    averaged_run_count,
    ensemble_run_count,
    export_metadata,
    network_differences,
)
from utils.checkpoints import load_weights, read_metadata
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from models.base import SegmentationModel


def has_batch_norm(system: SegmentationModel) -> bool:
    """Whether the network keeps running statistics, which fit the weights that they were taken with."""
    return any(isinstance(module, _BatchNorm) for module in system.modules())


def load_average(system: SegmentationModel, runs: Sequence[tuple[Config, Path]]) -> dict[str, str]:
    """Average the trained weights of `runs` and load them into `system`.

    A checkpoint that is itself an average counts with the number of its runs. Returns metadata for
    the file of the average: the number of runs, and a fingerprint of each.

    UserError
    - if the runs did not start from the same trained weights: they end too far from each other;
    - if they differ in network, split, or how the checkpoint was chosen;
    - if the networks have batch normalisation, whose statistics do not fit averaged weights;
    - if a run is named twice, or is already in one of the averages.
    """
    first = runs[0][0]
    if first.init_weights is None:
        raise UserError(
            "only runs that started from the same trained weights can be averaged, and the first one "
            "started from random ones: train them with the same init_weights, see docs/pretraining.md"
        )
    if has_batch_norm(system):
        raise UserError(
            f"{first.model} has batch normalisation, whose statistics do not fit averaged weights"
        )
    for config, checkpoint in runs[1:]:
        check_common(runs[0], (config, checkpoint))
    total = 0
    seen: list[str] = []
    sums: dict[tuple[str, str], Tensor] = {}
    for _, checkpoint in runs:
        load_weights(checkpoint, system)
        count = averaged_run_count(checkpoint)
        members = read_metadata(checkpoint).get(AVERAGED_FROM, fingerprint(system)).split()
        if set(members) & set(seen):
            raise UserError(
                f"{checkpoint} is a run, or the mean of runs, of which one is averaged already: name each once"
            )
        seen += members
        for name, part in system.parts().items():
            for key, value in part.state_dict().items():
                weighted = count * value.double()
                sums[name, key] = sums[name, key] + weighted if total else weighted
        total += count
    for name, part in system.parts().items():
        part.load_state_dict({key: sums[name, key] / total for key in part.state_dict()})
    return {AVERAGED_RUNS: str(total), AVERAGED_FROM: " ".join(seen)}


def fingerprint(system: SegmentationModel) -> str:
    """16 hex digits that identify trained weights, the same before and after their export in 16 bits."""
    digest = hashlib.sha256()
    for part in system.parts().values():
        for value in part.state_dict().values():
            digest.update(value.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_common(
    first: tuple[Config, Path], other: tuple[Config, Path], same_start: bool = True
) -> None:
    """UserError if the runs differ in network, split or how the checkpoint was chosen, or if one is an
    ensemble; with `same_start` also if they differ in initial weights.
    """
    (config, checkpoint), (other_config, other_checkpoint) = first, other
    if ensemble_run_count(checkpoint) > 1 or ensemble_run_count(other_checkpoint) > 1:
        raise UserError(
            f"{checkpoint} or {other_checkpoint} is an ensemble: name the runs that it was made of"
        )
    ignored = {AVERAGED_RUNS: "", AVERAGED_FROM: ""}
    origins = [export_metadata(path) | ignored for path in (checkpoint, other_checkpoint)]
    differ = [
        *(
            ["init_weights"]
            if same_start and config.init_weights != other_config.init_weights
            else []
        ),
        *(
            key
            for key in origins[0].keys() | origins[1]
            if origins[0].get(key) != origins[1].get(key)
        ),
        *network_differences(config, other_config),
    ]
    if differ:
        raise UserError(
            f"{other_checkpoint} does not go with the first run, which has another {', '.join(sorted(differ))}"
        )
