"""One model from several runs: the mean of their weights, or an ensemble of their predictions.

Source: Wortsman et al. 2022 (arXiv 2203.05482) for the mean of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.prepared import PREPARED_WITH
from engine.runs.network_settings import same_parts, trained_values_that_differ
from engine.runs.trained_run import TrainedRun, load_system
from engine.runs.training_record import (
    AVERAGED_FROM,
    AVERAGED_RUNS,
    ENSEMBLE_RUNS,
    INITIAL_WEIGHTS,
    TrainingRecord,
    data_trained_on,
)
from models.base import SegmentationModel, has_batch_norm
from models.ensemble import Ensemble
from utils.checkpoints import load_weights
from utils.errors import UserError
from utils.mappings import differing

if TYPE_CHECKING:
    from torch import Tensor


def load_average(system: SegmentationModel, runs: Sequence[TrainedRun]) -> dict[str, str]:
    """Average the trained weights of `runs` and load them into `system`.

    A checkpoint that is itself an average counts with the number of its runs. Returns metadata for
    the file of the average: the number of runs, and a fingerprint of each.

    UserError
    - if the runs did not start from the same trained weights: they end too far from each other;
    - if they differ in network, split, how the checkpoint was chosen, or the data that their teachers were
      trained on;
    - if the networks have batch normalisation, whose statistics do not fit averaged weights;
    - if a run is named twice, or is already in one of the averages.
    """
    first = runs[0].config
    if first.init_weights is None:
        raise UserError(
            "only runs that started from the same trained weights can be averaged, and the first one "
            "started from random ones: train them with the same init_weights, see docs/pretraining.md"
        )
    if has_batch_norm(system):
        raise UserError(
            f"{first.model} has batch normalisation, whose statistics do not fit averaged weights"
        )
    for other in runs[1:]:
        check_common(runs[0], other)
    total = 0
    seen: list[str] = []
    sums: dict[tuple[str, str], Tensor] = {}
    for _, checkpoint in runs:
        load_weights(checkpoint, system)
        record = TrainingRecord.read(checkpoint)
        count = record.averaged_runs
        members = record.metadata.get(AVERAGED_FROM, fingerprint(system)).split()
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


def check_common(first: TrainedRun, other: TrainedRun, same_start: bool = True) -> None:
    """UserError if the runs differ in network, `keep_upright`, split, how the checkpoint was chosen, or what
    initial weights and teachers were trained on, or if one is an ensemble.

    With `same_start` also if they differ in initial weights.
    """
    records = [TrainingRecord.read(run.checkpoint) for run in (first, other)]
    for record in records:
        if record.ensemble_runs > 1:
            raise UserError(
                f"{record.checkpoint} is an ensemble: name the runs that it was made of"
            )
    ignored = {AVERAGED_RUNS: "", AVERAGED_FROM: ""}
    for key in PREPARED_WITH:
        if any(key not in record.prepared_with for record in records):  # data not prepared here
            ignored[key] = ""
    one, two = (record.to_pass_on() | ignored for record in records)
    differ = [*differing(one, two, one.keys() | two.keys())]
    same_vae = same_parts(*(_frozen(*each) for each in zip((first, other), records, strict=True)))
    differ += trained_values_that_differ(first.config, other.config, same_vae)
    others = ("keep_upright", *(["init_weights"] if same_start else []))
    differ += [k for k in others if getattr(first.config, k) != getattr(other.config, k)]
    starts = {record.hashes.get(INITIAL_WEIGHTS) for record in records} - {None}
    if same_start and len(starts) > 1 and "init_weights" not in differ:
        differ.append("file of init_weights, though of the same name")
    if differ:
        raise UserError(
            f"{other.checkpoint} does not go with the first run, which has another {', '.join(sorted(differ))}"
        )
    if data_trained_on(first.checkpoint) != data_trained_on(other.checkpoint):
        raise UserError(
            f"{other.checkpoint} and the first run started or learned from weights that were trained on different "
            "data, and what is made of both could not tell which cases it has seen: name runs of one kind of start"
        )


def _frozen(run: TrainedRun, record: TrainingRecord) -> dict[str, str]:
    """Hashes of the frozen parts of a run; none where it is not to be used with those of its training."""
    trained = record.config
    as_trained = trained is not None and trained.vae_weights == run.config.vae_weights
    return record.frozen if as_trained else {}


def gather_ensemble(runs: Sequence[TrainedRun]) -> tuple[Ensemble, dict[str, str]]:
    """The ensemble of trained runs, and metadata for its file: the number of runs.

    UserError
    - if the runs differ in network, split, how the checkpoint was chosen, or the data that their initial
      weights and teachers were trained on;
    - if a run is named twice, or is itself a mean of runs or an ensemble.
    """
    first = runs[0]
    members: list[SegmentationModel] = []
    seen: dict[str, Path] = {}
    for run in runs:
        checkpoint, record = run.checkpoint, TrainingRecord.read(run.checkpoint)
        if record.combined_runs > 1:
            raise UserError(f"{checkpoint} is itself made of several runs; name runs of train.py")
        check_common(first, run, same_start=False)
        member = load_system(*run)
        other = seen.setdefault(fingerprint(member), checkpoint)
        if other is not checkpoint:
            raise UserError(f"{checkpoint} holds the same weights as {other}: name each run once")
        members.append(member)
    return Ensemble(members), {ENSEMBLE_RUNS: str(len(members))}
