"""The report of a study: `results.md`, `results.csv`, `curves.png`, `examples.png`.

The first table of `results.md` has one row per system: the mean over the seeds and, where there are several,
the standard deviation across them. The second one has the differences between the first system and each
other one, seed by seed. `results.csv` has one row per run and way of scoring it (`WAYS`); rows that are
already in it stay, so that a study can be gathered from the CSVs of several machines.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from datasets.cases import find_split_file, open_data_set
from experiments.earlier_runs import fitting_results, own_record
from experiments.records import Record, scored_settings
from experiments.runner import Trial
from experiments.study import GROUPED, PUBLISHED, Run, Study, trials_of
from experiments.study_scoring import ON_TEST, TTA
from utils.config import Config
from utils.errors import UserError
from utils.figures import png
from utils.files import atomic_write, sha256
from utils.results import Results, Summary, mean_of
from utils.statistics import t_interval
from utils.tables import csv_text, markdown_table
from utils.yaml_files import shown

TABLE = "results.csv"
ON_VAL = "validation"
WAYS = {ON_VAL: ".", TTA: TTA, ON_TEST: ON_TEST}
"""Ways of scoring a run, and where in its folder `experiments.study_scoring` puts each.

By default the checkpoint is the best on the held-out part of train; TTA adds test-time augmentation, and
ON_TEST is the kept epoch that is best on the test split."""

EXPLAINED = {
    "no leaked cases": " *No leaked cases* leaves out the test cases with a near-duplicate in train.",
    "group split": " *Group split* is training and testing on a split that no near-duplicates cross.",
}


class NothingScored(UserError):
    """No run of the study has scores yet."""


@dataclass(frozen=True)
class Score:
    """One run, scored in one way: a row of `results.csv`.

    `checkpoint` is the way of scoring, a key of `WAYS`. Dice and IoU are in [0, 1], HD95 in pixels. The
    minutes are those of training; None where an attempt was killed and its time is not known. `settings`
    is a digest of the run's config, `split_sha256` the hash of the split file.
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

    @property
    def run(self) -> Run:
        return Run(self.system, self.split, self.seed)


def write_study(study: Study, out: Path) -> str:
    """Write the report of all runs that are scored so far into `out`; returns the Markdown.

    NothingScored where none is, UserError where `out` has a table of other runs or of other splits.
    """
    runs = trials_of(study)
    elsewhere = scores_in(out, runs)
    here = {run: scores_of(run, trial) for run, trial in runs.items()}
    # either those here or those elsewhere, never a mixture: they come from two trainings
    by_run = {run: max(here[run], elsewhere.get(run, []), key=len) for run in runs}
    scores = [score for run in runs for score in by_run[run]]
    check_splits(scores)
    if not scores:
        raise NothingScored(f"no run of this study is scored yet: {study.folder}")
    table = to_markdown(study, scores)
    atomic_write(out / "results.md", table)
    atomic_write(out / TABLE, to_csv(scores))

    published = [run for run in runs if run.split == PUBLISHED and by_run[run]]
    paths = {run: runs[run].folder / "history.csv" for run in published if by_run[run] is here[run]}
    histories = {run: path for run, path in paths.items() if path.is_file()}
    if histories:  # otherwise the figure is left as it was made elsewhere
        draw_curves(out / "curves.png", study, histories, len(published))
    trial = runs[scores[0].run]
    examples = trial.folder / f"valid_results_{trial.config.dataset}" / "examples.png"
    if examples.is_file():
        shutil.copyfile(examples, out / "examples.png")
    return table


def scores_of(run: Run, trial: Trial) -> list[Score]:
    """The scores in the trial's folder; none until it is scored with the settings that it has now."""
    record = own_record(trial)
    if record is None or "score" not in record.done:
        return []
    processes = _processes(trial.folder)
    parameters = json.loads((trial.folder / "parameters.json").read_text())["trainable"]
    scores = []
    for way in WAYS:
        results = results_of(trial, way)
        if results is None or (way == TTA and TTA not in record.done):
            continue
        summary = results.summary
        low, high = summary["metrics"]["DSC"]["ci95"]
        scores.append(
            Score(
                *run,
                checkpoint=way,
                dice=mean_of(summary["metrics"]["DSC"]),
                dice_low=low,
                dice_high=high,
                dice_without_leaked=_mean_dice_without_leaked(trial, results),
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
            )
        )
    return scores


def results_of(trial: Trial, way: str) -> Results | None:
    """What the trial has scored in one of the `WAYS`; None where it is not scored in that way."""
    folder = trial.folder / WAYS[way]
    config = trial.config.model_copy(update={"tta": True}) if way == TTA else trial.config
    weights = (folder if way == ON_TEST else trial.folder) / "best_model.pth"
    return fitting_results(folder / f"valid_results_{config.dataset}", config, weights)


def outdated_steps(trial: Trial) -> set[str]:
    """The steps of scoring that are done, but whose results are missing or no longer what the trial asks for."""
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


def scores_in(out: Path, runs: Mapping[Run, Trial]) -> dict[Run, list[Score]]:
    """Scores that `out`/results.csv already holds, by run.

    UserError if it is not a study's table, or has runs that are not in this study, had other settings, or
    another split.
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
    return by_run


def _read_table(path: Path) -> list[Score]:
    """The rows of a results.csv, which may be several put together: a row that is there twice counts once.

    UserError where a row cannot be read, or two rows give different scores of one run.
    """
    scores: dict[tuple[Run, str], Score] = {}
    adapter = TypeAdapter(Score)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if all(text == name for name, text in row.items()):  # the header of another table
                    continue
                score = adapter.validate_python({key: text or None for key, text in row.items()})
                if scores.setdefault((score.run, score.checkpoint), score) != score:
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


def scored_in(study: Study, out: Path, runs: Mapping[Run, Trial]) -> set[Run]:
    """The runs that `out`/results.csv has in every way of scoring that the study asks for."""
    known = scores_in(out, runs)
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


def _digests(config: Config) -> set[str]:
    """The digests that a run of `config` may have: trained on all its GPUs, or by one process."""
    return {digest(config), digest(config, len(config.GPUs))}


def _minutes(record: Record, seconds: Mapping[str, float]) -> float | None:
    """Minutes of training over all attempts, None where one of them left no time."""
    if record.untimed_attempts or "train" not in seconds:
        return None
    return round(seconds["train"] / 60, 2)


def _processes(folder: Path) -> int:
    """How many processes trained the run."""
    path = folder / "environment.json"
    environment = json.loads(path.read_text()) if path.is_file() else {}
    return int(environment.get("processes", 1))


def _mean_dice_without_leaked(trial: Trial, results: Results) -> float | None:
    """Mean Dice of the cases that did not leak into training; None where none leaked or where it is not known.

    By the last check of the data set, which may have come after the scoring; where the checked data is not
    here, as the summary says.
    """
    from engine.scoring import cases_seen_in_training, should_check_leaks

    recorded = results.summary["without_leaked"]
    dropped = set() if recorded is None else set(recorded["dropped"])
    with suppress(UserError):
        data_set = open_data_set(find_split_file(trial.config.pickle_file_path))
        if should_check_leaks(trial.config, data_set):
            dropped = cases_seen_in_training(data_set, trial.folder / "best_model.pth")
    kept = [name not in dropped for name in results.names]
    return float(results.values("DSC")[kept].mean()) if any(kept) and not all(kept) else None


def _recorded_split(summary: Summary) -> str | None:
    """Hash of the split file that was scored, as valid.py recorded it."""
    return (summary["provenance"].get("sha256") or {}).get("split file")


def _splits_here(runs: Mapping[Run, Trial]) -> dict[str, str]:
    """Hash of each split's file, where the data set is prepared on this machine."""
    hashes = {}
    for split, config in {split: trial.config for (_, split, _), trial in runs.items()}.items():
        with suppress(UserError):  # a table can be gathered where there is no data
            hashes[split] = sha256(find_split_file(config.pickle_file_path))
    return hashes


def to_markdown(study: Study, scores: Sequence[Score]) -> str:
    """The table, what its columns mean, and the differences seed by seed.

    Columns that have no number yet are left out.
    """
    columns: dict[str, tuple[str, str, Callable[[Score], float | None]]] = {
        "Dice": (PUBLISHED, ON_VAL, lambda s: 100 * s.dice),
        "no leaked cases": (PUBLISHED, ON_VAL, _dice_without_leaked),
        "group split": (GROUPED, ON_VAL, lambda s: 100 * s.dice),
        "IoU": (PUBLISHED, ON_VAL, lambda s: 100 * s.iou),
        "HD95": (PUBLISHED, ON_VAL, lambda s: s.hd95),
        "HD95, misses as 0": (PUBLISHED, ON_VAL, lambda s: s.hd95_misses_as_0),
        "missed": (PUBLISHED, ON_VAL, lambda s: s.misses),
        "Dice, TTA": (PUBLISHED, TTA, lambda s: 100 * s.dice),
        "Dice, chosen on test": (PUBLISHED, ON_TEST, lambda s: 100 * s.dice),
        "minutes": (PUBLISHED, ON_VAL, lambda s: s.minutes),
        "CPU minutes": (PUBLISHED, ON_VAL, lambda s: s.cpu_minutes),
    }
    columns = {
        name: (split, way, number)
        for name, (split, way, number) in columns.items()
        if any((s.split, s.checkpoint) == (split, way) and number(s) is not None for s in scores)
    }
    rows = []
    for system in study.systems:
        of_system = [score for score in scores if score.system == system]
        if not of_system:
            rows.append([system, *["-"] * (1 + len(columns))])
            continue
        cells = []
        for split, way, number in columns.values():
            values = [number(s) for s in of_system if (s.split, s.checkpoint) == (split, way)]
            cells.append(_cell([v for v in values if v is not None], len(study.seeds)))
        rows.append([system, f"{of_system[0].parameters:,}", *cells])
    seeds = ", ".join(map(str, study.seeds))
    lines = [
        f"**{study.title}.** {study.protocol}",
        "",
        markdown_table(["system", "parameters", *columns], rows),
        "",
        f"Mean and standard deviation across runs of the seeds {seeds}; (n) where only n have the "
        "number. "
        "Dice and IoU in per cent, HD95 in pixels, misses as the image's diagonal where nothing else "
        "is said. The checkpoint is chosen on a held-out part of train, except in the column that "
        "says otherwise." + "".join(text for name, text in EXPLAINED.items() if name in columns),
        "",
    ]
    return "\n".join([*lines, *compare_systems(study, scores)])


def compare_systems(study: Study, scores: Iterable[Score]) -> list[str]:
    """Lines of a second table: the first system's Dice minus each other one's, seed by seed.

    Over the seeds that both have on the published split; nothing where no pair has two of them.
    """
    dice = {
        (s.system, s.seed): 100 * s.dice
        for s in scores
        if (s.split, s.checkpoint) == (PUBLISHED, ON_VAL)
    }
    first, *others = study.systems
    differences: dict[str, dict[int, float]] = {}  # of the other systems, by seed
    for other in others:
        by_seed = {
            seed: dice[first, seed] - dice[other, seed]
            for seed in study.seeds
            if (first, seed) in dice and (other, seed) in dice
        }
        if len(by_seed) > 1:
            differences[other] = by_seed
    if not differences:
        return []
    seeds = [s for s in study.seeds if any(s in by_seed for by_seed in differences.values())]
    rows = []
    for other, by_seed in differences.items():
        cells = [_signed(by_seed[seed]) if seed in by_seed else "-" for seed in seeds]
        low, high = (round(bound, 1) + 0.0 for bound in t_interval(list(by_seed.values())))
        mean = f"{_signed(statistics.fmean(by_seed.values()))} ({low:.1f} to {high:.1f})"
        rows.append([other, *cells, mean])
    header = [f"Dice of {first} minus that of", *(f"seed {seed}" for seed in seeds), "mean"]
    return [
        markdown_table(header, rows),
        "",
        "Points of Dice between runs of the same seed; in brackets the 95 % interval of the mean by "
        "Student's t.",
        "",
    ]


def _signed(points: float) -> str:
    """`+8.7`, and `+0.0` for what rounds to 0."""
    return f"{round(points, 1) + 0.0:+.1f}"


def _dice_without_leaked(score: Score) -> float | None:
    kept = score.dice_without_leaked
    return None if kept is None else 100 * kept


def _cell(values: Sequence[float], expected: int) -> str:
    """`81.2 ± 0.4`, with the number of runs where some are missing."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text if len(values) == expected else f"{text} ({len(values)})"


def to_csv(scores: Iterable[Score]) -> str:
    """A row for every run and way of scoring it."""
    return csv_text([field.name for field in fields(Score)], map(asdict, scores))


def draw_curves(path: Path, study: Study, histories: Mapping[Run, Path], scored: int) -> None:
    """Dice on the held-out part of train by epoch: a line per system, and a band that spans its seeds.

    Of the `scored` runs in the table, those whose histories are here; the title says how many.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axis = figure.subplots()
    for system in study.systems:
        runs = [_val_dice(history) for (name, _, _), history in histories.items() if name == system]
        epochs = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if epochs:
            dice = np.array([[run[epoch] for epoch in epochs] for run in runs])
            (line,) = axis.plot(epochs, dice.mean(0), marker="o", markersize=3, label=system)
            axis.fill_between(
                epochs, dice.min(0), dice.max(0), color=line.get_color(), alpha=0.15, linewidth=0
            )
    title = f"{study.title} ({len(histories)} of {scored} runs)"
    axis.set(xlabel="epoch", ylabel="Dice on the held-out part of train", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    atomic_write(path, png(figure))


def _val_dice(history: Path) -> dict[int, float]:
    with history.open(newline="") as file:
        return {
            int(row["epoch"]): float(row["val_dice"])
            for row in csv.DictReader(file)
            if row.get("val_dice")
        }
