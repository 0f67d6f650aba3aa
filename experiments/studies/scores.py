"""The scores of a study's runs: from their folders, and from a table (`results.csv`) made on other machines.

The table has one row per run and way of scoring it (`WAYS`). Scores are taken only where they come from the
settings that the study asks for, and together only from the same split files.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from datasets.cases import find_split_file, open_data_set
from engine.runs.run_cases import names_sha256
from engine.runs.training_record import SPLIT_FILE
from experiments.studies.score_run import ON_TEST, TTA
from experiments.studies.study import Run, Study
from experiments.trials.earlier_runs import (
    Trained,
    check_processes,
    fitting_results,
    own_record,
    trained_processes,
)
from experiments.trials.records import Record, scored_settings
from experiments.trials.trial import Trial
from scoring.results import Results, Summary, mean_of
from utils.config import Config
from utils.errors import UserError
from utils.files import sha256
from utils.runs import BEST_WEIGHTS, RESULTS_PREFIX
from utils.tables import csv_text
from utils.yaml_files import shown

TABLE = "results.csv"
ON_VAL = "validation"
WAYS = {ON_VAL: ".", TTA: TTA, ON_TEST: ON_TEST}
"""Ways of scoring a run, and where in its folder `experiments.studies.score_run` puts each.

By default the checkpoint is the best on the held-out part of train; TTA adds test-time augmentation, and
ON_TEST is the kept epoch that is best on the test split."""

RUN_COLUMNS = {"system", "split", "seed", "checkpoint"}


@dataclass(frozen=True)
class Score:
    """One run, scored in one way: a row of `results.csv`.

    `checkpoint` is the way of scoring, a key of `WAYS`. Dice and IoU are in [0, 1], HD95 in pixels.
    `dice_low` and `dice_high` bound the interval over groups of cases; in rows of earlier versions over
    cases. The minutes are those of training; None where an attempt was killed and its time is not known.
    `settings` is a digest of the run's config, `split_sha256` the hash of the split file, and `leaked_cases`
    a digest of the names that `dice_without_leaked` leaves out, None in rows of earlier versions.
    """

    system: str
    split: str
    seed: int
    checkpoint: str
    dice: float
    dice_low: float | None
    dice_high: float | None
    dice_without_leaked: float | None
    iou: float
    hd95: float
    hd95_misses_as_0: float
    hd95_detected: float | None
    misses: int
    cases: int
    parameters: int
    minutes: float | None
    cpu_minutes: float | None
    settings: str
    split_sha256: str
    leaked_cases: str | None = None

    @property
    def run(self) -> Run:
        return Run(self.system, self.split, self.seed)


def scores_of(run: Run, trial: Trial) -> list[Score]:
    """The scores in the trial's folder; none until it is scored with the settings that it has now."""
    record = own_record(trial)
    if record is None or "score" not in record.done:
        return []
    processes = trained_processes(trial.folder)
    parameters = json.loads((trial.folder / "parameters.json").read_bytes())["trainable"]
    scores = []
    for way in WAYS:
        results = results_of(trial, way)
        if results is None or (way == TTA and TTA not in record.done):
            continue
        summary = results.summary
        low, high = summary["metrics"]["DSC"]["ci95"]
        leaked = _leaked_cases(trial, results)
        scores.append(
            Score(
                *run,
                checkpoint=way,
                dice=mean_of(summary["metrics"]["DSC"]),
                dice_low=low,
                dice_high=high,
                dice_without_leaked=_mean_dice_without(leaked, results),
                iou=mean_of(summary["metrics"]["IoU"]),
                hd95=mean_of(summary["hd95"]["diagonal"]),
                hd95_misses_as_0=mean_of(summary["hd95"]["zero"]),
                hd95_detected=summary["hd95"]["detected"]["mean"],
                misses=summary["misses"],
                cases=summary["count"],
                parameters=parameters,
                minutes=_minutes(record, record.wall_seconds),
                cpu_minutes=_minutes(record, record.cpu_seconds),
                settings=digest(trial.config, processes),
                split_sha256=_recorded_split(summary)
                or sha256(find_split_file(trial.config.pickle_file_path)),
                leaked_cases=names_sha256(leaked)[:12] if leaked else None,
            )
        )
    return scores


def results_of(trial: Trial, way: str) -> Results | None:
    """What the trial has scored in one of the `WAYS`; None where it is not scored in that way."""
    folder = trial.folder / WAYS[way]
    config = trial.config.model_copy(update={"tta": True}) if way == TTA else trial.config
    weights = (folder if way == ON_TEST else trial.folder) / BEST_WEIGHTS
    return fitting_results(folder / f"{RESULTS_PREFIX}{config.dataset}", config, weights)


def outdated_steps(trial: Trial) -> set[str]:
    """The steps of scoring that are done, but whose results are missing or no longer what the trial
    asks for.
    """
    record = own_record(trial)
    if record is None:
        return set()
    ways = {"score": {ON_VAL}, TTA: {TTA}}
    if (trial.folder / f"{ON_TEST}.json").is_file():
        ways["score"].add(ON_TEST)
    return {
        step
        for step in ways.keys() & record.done
        if any(results_of(trial, way) is None for way in ways[step])
    }


def scores_in_table(out: Path, runs: Mapping[Run, Trial]) -> dict[Run, list[Score]]:
    """Scores that `out`/results.csv already holds, by run.

    UserError if it is not a study's table, or has runs that are not in this study, had other settings,
    another split, or different numbers of processes.
    """
    path = out / TABLE
    if not path.exists():
        return {}
    scores = _read_table(path)
    by_run: dict[Run, list[Score]] = {}
    for score in scores:
        run = score.run
        if run not in runs or score.settings not in _digests(runs[run].config):
            why = "other settings" if run in runs else "a run that the study does not name"
            raise UserError(
                f"{path} has {why}: {run.name}. Give another folder by --out, or move the table away"
            )
        by_run.setdefault(run, []).append(score)
    check_splits(scores, _splits_here(runs))
    check_processes(trained_in(scores, runs))
    return by_run


def _read_table(path: Path) -> list[Score]:
    """The rows of a results.csv, which may be several put together: a row that is there twice counts once.

    UserError where a row cannot be read, or two rows give different scores of one run.
    """
    scores: dict[tuple[Run, str], Score] = {}
    adapter = TypeAdapter(Score)
    header: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for line in filter(None, reader):
                if not header or RUN_COLUMNS.issubset(line):  # each table has columns of its own
                    header = line
                    continue
                row = dict(zip_longest(header, line))
                score = adapter.validate_python({key: text or None for key, text in row.items()})
                key = score.run, score.checkpoint
                earlier = scores.get(key, score)
                leaked = earlier.leaked_cases or score.leaked_cases  # older rows do not say
                scores[key] = replace(earlier, leaked_cases=leaked)
                if scores[key] != replace(score, leaked_cases=score.leaked_cases or leaked):
                    raise UserError(
                        f"{path} has two different scores ({score.checkpoint}) of {score.run.name}: line "
                        f"{reader.line_num} and one before. They come from two trainings; remove the rows of one"
                    )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(
            f"{path} is not the table of a study: line {reader.line_num}, {'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}, got {shown(problem['input'])}. Correct the line, or move the table away"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not the table of a study: move it away ({error})") from error
    return list(scores.values())


def runs_complete_in_table(study: Study, out: Path, runs: Mapping[Run, Trial]) -> set[Run]:
    """The runs that `out`/results.csv has in every way of scoring that the study asks for."""
    known = scores_in_table(out, runs)
    return {
        run
        for run, trial in runs.items()
        if ways_of(study, trial.config) <= {score.checkpoint for score in known.get(run, [])}
    }


def ways_of(study: Study, config: Config) -> set[str]:
    """The ways (keys of `WAYS`) in which a run of the study is scored."""
    ways = {ON_VAL, TTA} if study.tta else {ON_VAL}
    keeps_epochs = config.save_freq is not None and config.save_freq <= config.epochs
    return ways | ({ON_TEST} if keeps_epochs else set())


def check_splits(scores: Iterable[Score], here: Mapping[str, str] | None = None) -> None:
    """UserError where the scores of one split come from different split files.

    `here` has the hash of the split file on this machine, by split.
    """
    known = dict(here or {})
    for score in scores:
        expected = known.setdefault(score.split, score.split_sha256)
        if score.split_sha256 != expected:
            other = "the one on this machine" if score.split in (here or {}) else "that of others"
            raise UserError(
                f"{score.run.name} was scored on another split file than {other} (SHA-256 {score.split_sha256[:12]}, not {expected[:12]}): "
                "their scores do not compare. Prepare the data set with the same split, or move the "
                "runs or the table with the other one away"
            )


def digest(config: Config, processes: int = 1) -> str:
    """Twelve hexadecimal digits that differ between configs that train or score differently.

    Each of several `processes` trains with batches of its own, so their number counts; which GPUs
    they have does not.
    """
    content = scored_settings(config) | ({"processes": processes} if processes > 1 else {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _digests(config: Config) -> dict[str, int]:
    """Digest -> number of processes of a run of `config`, trained on all its GPUs or by one process."""
    return {digest(config, processes): processes for processes in (len(config.GPUs) or 1, 1)}


def trained_in(scores: Iterable[Score], runs: Mapping[Run, Trial]) -> list[Trained]:
    """The runs of these scores, with the numbers of processes by their digests, else by their folders."""
    trained = []
    for score in scores:
        trial = runs[score.run]
        processes = _digests(trial.config).get(score.settings) or trained_processes(trial.folder)
        trained.append(Trained(score.run.name, trial.config, processes))
    return trained


def _minutes(record: Record, seconds: Mapping[str, float]) -> float | None:
    """Minutes of training over all attempts, None where one of them left no time."""
    if record.untimed_attempts or "train" not in seconds:
        return None
    return round(seconds["train"] / 60, 2)


def _leaked_cases(trial: Trial, results: Results) -> set[str]:
    """The scored cases that leaked into training; empty where that is not known.

    By the last check of the data set, which may have come after the scoring; where the checked data is not
    here, as the summary says.
    """
    from engine.runs.seen_cases import cases_leaked_to
    from engine.validation.validate_data_set import should_check_leaks

    recorded = results.summary["without_leaked"]
    dropped = set() if recorded is None else set(recorded["dropped"])
    with suppress(UserError):
        data_set = open_data_set(find_split_file(trial.config.pickle_file_path))
        if should_check_leaks(data_set, trial.config.drop_leaked):
            dropped = cases_leaked_to(data_set, trial.folder / BEST_WEIGHTS)
    return dropped.intersection(results.names)


def _mean_dice_without(leaked: Set[str], results: Results) -> float | None:
    """Mean Dice of the cases that did not leak into training; None where none, or all, did."""
    kept = [name not in leaked for name in results.names]
    return float(results.values("DSC")[kept].mean()) if any(kept) and not all(kept) else None


def _recorded_split(summary: Summary) -> str | None:
    """Hash of the split file that was scored, as valid.py recorded it."""
    return (summary["provenance"].get("sha256") or {}).get(SPLIT_FILE)


def _splits_here(runs: Mapping[Run, Trial]) -> dict[str, str]:
    """Hash of each split's file, where the data set is prepared on this machine."""
    hashes = {}
    for split, config in {split: trial.config for (_, split, _), trial in runs.items()}.items():
        with suppress(UserError):  # a table can be gathered where there is no data
            hashes[split] = sha256(find_split_file(config.pickle_file_path))
    return hashes


def to_csv(scores: Iterable[Score]) -> str:
    """A row for every run and way of scoring it; without the column `leaked_cases` where it has no value."""
    rows = [asdict(score) for score in scores]
    columns = [field.name for field in fields(Score)]
    if not any(row["leaked_cases"] for row in rows):
        columns.remove("leaked_cases")
        rows = [{name: row[name] for name in columns} for row in rows]
    return csv_text(columns, rows)
