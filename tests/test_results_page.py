"""docs/results.md: the Dice of single runs is that of their cases in docs/results."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

from scoring.statistics import t_interval

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()
SCORES = ROOT / "docs" / "results" / "busi_small_first"
SMALL, LONGER, UPRIGHT, STRONG = "small first", "longer", "upright", "strong"
GROWN, TAUGHT, U_NET = "from 96 px", "taught", "U-Net from ImageNet"
UNTAUGHT = "without teachers"
BEFORE = {
    LONGER: SMALL,
    UPRIGHT: SMALL,
    STRONG: UPRIGHT,
    GROWN: UPRIGHT,
    TAUGHT: GROWN,
    UNTAUGHT: TAUGHT,
}
"""Of which runs, with the seeds that both have, the last column of a table has the mean."""
SEEDS = dict.fromkeys((SMALL, LONGER, STRONG), (1, 2)) | dict.fromkeys(
    (UPRIGHT, GROWN, TAUGHT, UNTAUGHT, U_NET), (1, 2, 3)
)
HEADINGS = {
    SMALL: "### Small images first, on a CPU\n",
    LONGER: "### Longer at 224 px\n",
    UPRIGHT: "### Images kept upright\n",
    STRONG: "### A stronger augmentation\n",
    GROWN: "### From 96 px, kept upright\n",
    TAUGHT: "### Learning from several models\n",
    UNTAUGHT: "### The same without teachers\n",
    U_NET: "### A U-Net with weights from ImageNet\n",
}
WAYS = {
    "chosen on validation": "",
    "test, chosen on validation": "",
    "no leaked cases": "",
    "the last epoch": ", last epoch",
    "test, the last epoch": ", last epoch",
    "with test-time augmentation": ", TTA",
}
"""Row of the page's tables -> end of the names of its runs in dice.csv."""
TOGETHER = {
    (
        SMALL,
        r"the two as an [ensemble](predict.md#several-runs-as-one-model)",
    ): "small first, ensemble",
    (LONGER, "the two as an ensemble"): "longer, ensemble",
    (LONGER, "with the two from before, four in all"): "longer, ensemble of four",
    (UPRIGHT, "the first two as an ensemble"): "upright, ensemble",
    (UPRIGHT, "the first two, with test-time augmentation"): "upright, ensemble, TTA",
    (UPRIGHT, "the three as an ensemble"): "upright, ensemble of three",
    (UPRIGHT, "the three, with test-time augmentation"): "upright, ensemble of three, TTA",
    (GROWN, "the first two as an ensemble"): "from 96 px, ensemble",
    (GROWN, "the first two, with test-time augmentation"): "from 96 px, ensemble, TTA",
    (TAUGHT, "the three as an ensemble"): "taught, ensemble of three",
    (TAUGHT, "the ensemble, with test-time augmentation"): "taught, ensemble of three, TTA",
    (STRONG, "the two as an ensemble"): "strong, ensemble",
    (STRONG, "the ensemble, with test-time augmentation"): "strong, ensemble, TTA",
    (
        STRONG,
        "with the two from before, four in all, with test-time augmentation",
    ): "strong, ensemble of four, TTA",
}


def rows_in(name: str, folder: Path = SCORES) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


CASES, HELD_OUT = rows_in("dice.csv"), rows_in("held_out_dice.csv")


def dice(run: str, leaked: bool = True) -> float:
    """Mean Dice of the test cases in per cent, with or without the leaked ones."""
    return 100 * fmean(float(c[run]) for c in CASES if leaked or c["leaked"] == "0")


def held_out_dice(run: str) -> float:
    return 100 * fmean(float(row["dice"]) for row in HELD_OUT if row["run"] == run)


def section(kind: str) -> str:
    return PAGE.partition(HEADINGS[kind])[2].partition("\n### ")[0]


def cells(kind: str, row: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", section(kind), re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def rounded(*values: float) -> list[str]:
    """Each value and the mean of all."""
    return [f"{value:.1f}" for value in (*values, fmean(values))]


def over_runs(values: list[float]) -> str:
    """`79.9`, of several runs `79.6 ± 0.8`."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{deviation}"


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (kind, row)
        for kind in HEADINGS
        for row, way in WAYS.items()
        if f"{kind}, seed 2{way}" in CASES[0] and f"| {row} |" in section(kind)
    ],
)
def test_the_rows_of_single_runs_are_the_means_of_their_cases(kind: str, row: str) -> None:
    leaked = row != "no leaked cases"
    runs = [f"{kind}, seed {seed}{WAYS[row]}" for seed in SEEDS[kind]]
    expected, found = rounded(*(dice(run, leaked) for run in runs)), cells(kind, row)
    assert found[: len(expected)] == expected
    if kind in BEFORE:
        both = [seed for seed in SEEDS[kind] if seed in SEEDS[BEFORE[kind]]]
        runs = [f"{BEFORE[kind]}, seed {seed}{WAYS[row]}" for seed in both]
        assert found[-1] == rounded(*(dice(run, leaked) for run in runs))[-1]


@pytest.mark.parametrize(("kind", "row"), TOGETHER)
def test_the_rows_of_ensembles_are_the_means_of_their_cases(kind: str, row: str) -> None:
    run = TOGETHER[kind, row]
    assert cells(kind, row)[len(SEEDS[kind])] == f"{dice(run):.1f}"
    text = " ".join(section(kind).split())
    without = f"{dice(run, leaked=False):.1f}"
    assert re.search(rf"{without}(?:[^.]|[.]\d)* without the leaked cases", text), without


def test_all_these_rows_are_compared() -> None:
    known = {(kind, row) for kind in HEADINGS for row in WAYS if f"| {row} |" in section(kind)}
    missing = {row for row in known if f"{row[0]}, seed 2{WAYS[row[1]]}" not in CASES[0]}
    assert missing == {(LONGER, "with test-time augmentation")}
    assert len(known - missing) == 31


def test_the_held_out_cases_are_those_of_the_page() -> None:
    for kind in (UPRIGHT, STRONG, GROWN, TAUGHT, UNTAUGHT, U_NET):
        runs = [f"{kind}, seed {seed}" for seed in SEEDS[kind]]
        assert [sum(row["run"] == run for row in HELD_OUT) for run in runs] == [52] * len(runs)
        assert cells(kind, "held-out cases")[: len(runs) + 1] == rounded(*map(held_out_dice, runs))


def test_what_the_test_cases_gain_from_the_longer_first_part() -> None:
    gains = [dice(f"{GROWN}, seed {seed}") - dice(f"{UPRIGHT}, seed {seed}") for seed in (1, 2, 3)]
    text = " ".join(section(GROWN).split())
    assert "the test cases by {:+.1f}, {:+.1f} and {:+.1f}: no gain".format(*gains) in text


def test_what_teachers_gain_over_the_same_epochs_without() -> None:
    text = " ".join(section(UNTAUGHT).split())
    for way in ("", ", TTA", ", last epoch"):
        gains = [
            dice(f"{TAUGHT}, seed {seed}{way}") - dice(f"{UNTAUGHT}, seed {seed}{way}")
            for seed in (1, 2, 3)
        ]
        listed = "{:.1f}, {:.1f} and {:.1f}".format(*gains)
        low, high = t_interval(gains)
        average = rf"{fmean(gains):.1f}, (95 % interval )?{low:.1f} to {high:.1f}\)"
        assert re.search(rf"{listed} (points )?\((on average )?{average}", text), (listed, average)


def test_what_the_loss_of_before_gave() -> None:
    text = " ".join(section(TAUGHT).split())
    runs = [f"{TAUGHT} by products, seed {seed}" for seed in (1, 2)]
    for way, said in (
        ("", "seeds 1 and 2 reached {} and {}"),
        (", last epoch", "after the last epoch {} and {}"),
        (", TTA", "with test-time augmentation {} and {}."),
    ):
        assert said.format(*(f"{dice(run + way):.1f}" for run in runs)) in text
    less = [
        fmean(dice(f"{TAUGHT}, seed {s}{way}") - dice(runs[s - 1] + way) for s in (1, 2))
        for way in ("", ", last epoch", ", TTA")
    ]
    said = (
        "Over both seeds that is {:.1f} points less than above, after the last epoch {:.1f} less, "
        "and with test-time augmentation {:.1f} more."
    )
    assert said.format(less[0], less[1], -less[2]) in text


def test_what_was_also_tried_is_compared_with_the_row_of_the_study() -> None:
    folder = SCORES.with_name("busi_reduced_20_epochs")
    cases = rows_in("dice_also_tried.csv", folder)
    assert [(c["case"], c["leaked"]) for c in cases] == [(c["case"], c["leaked"]) for c in CASES]
    text = PAGE.partition("### Also tried at this length\n")[2].partition("\n### ")[0]
    kept = [r for r in cases if r["leaked"] == "0"]
    for kind in ("started from HAM10000", "trained on all cases"):
        runs = [f"{kind}, seed {seed}" for seed in (1, 2)]
        means = [
            [100 * fmean(float(c[run]) for c in part) for part in (cases, kept)] for run in runs
        ]
        assert f"| {kind} | {' | '.join(f'{a:.1f} ({b:.1f})' for a, b in means)} |" in text
    system = "Wave-GMS, Muon, kept upright"
    of_study = [
        100 * float(row[column])
        for row in rows_in("results.csv", folder)
        for column in ("dice", "dice_without_leaked")
        if (row["system"], row["checkpoint"]) == (system, "validation")
    ]
    first, second = (f"{a:.1f} ({b:.1f})" for a, b in (of_study[:2], of_study[2:4]))
    assert f"| {system} | {first} | {second} |" in text


def test_three_times_as_long_is_compared_with_the_rows_of_the_study() -> None:
    folder = SCORES.with_name("busi_reduced_20_epochs")
    cases, study = rows_in("dice_60_epochs.csv", folder), rows_in("results.csv", folder)
    assert [(c["case"], c["leaked"]) for c in cases] == [(c["case"], c["leaked"]) for c in CASES]
    text = PAGE.partition("### Three times as long\n")[2].partition("\n### ")[0]
    upright = "Wave-GMS, Muon, kept upright"
    shorter = (f"{upright}, strong augmentation", upright)

    def of_study(system: str, checkpoint: str, column: str) -> list[float]:
        rows = [r for r in study if (r["system"], r["checkpoint"]) == (system, checkpoint)]
        return [100 * float(row[column]) for row in rows]

    def line(row: str, way: str = "", checkpoint: str = "", column: str = "dice") -> list[float]:
        kept = [c for c in cases if column == "dice" or c["leaked"] == "0"]
        found = [100 * fmean(float(c[f"seed {seed}{way}"]) for c in kept) for seed in (1, 2, 3)]
        before = [of_study(s, checkpoint, column) for s in shorter] if checkpoint else []
        columns = [f"{value:.1f}" for value in found] + list(map(over_runs, (found, *before)))
        assert f"| {row} | {' | '.join(columns)} |" in text
        return found

    line("test, the last epoch", ", last epoch")
    line("with test-time augmentation", ", TTA", "tta")
    for column, row in (
        ("dice", "test, chosen on validation"),
        ("dice_without_leaked", "no leaked cases"),
    ):
        found = line(row, "", "validation", column)
        for system in shorter:
            gains = [
                a - b for a, b in zip(found, of_study(system, "validation", column), strict=True)
            ]
            low, high = t_interval(gains)
            assert f"{fmean(gains):.1f}, {low:.1f} to {high:.1f})" in text


def test_the_test_cases_are_those_of_the_published_split() -> None:
    assert len({case["case"] for case in CASES}) == len(CASES) == 130
    assert sum(case["leaked"] == "1" for case in CASES) == 37


def test_the_numbers_in_the_text_are_those_of_the_tables() -> None:
    front = " ".join(PAGE.partition("## How a system is scored")[0].split())
    for kind, seeds in (
        *((SMALL, (2,)), (SMALL, (1,)), (TAUGHT, (1,))),
        *((UPRIGHT, (1, 2, 3)), (TAUGHT, (1, 2, 3)), (U_NET, (1, 2, 3))),
    ):
        runs = [f"{kind}, seed {seed}" for seed in seeds]
        of_runs = (
            [dice(r) for r in runs],
            [dice(r, False) for r in runs],
            [dice(f"{r}, TTA") for r in runs],
        )
        assert f"| {' | '.join(map(over_runs, of_runs))} |" in front
    three = f"{UPRIGHT}, ensemble of three"
    of_three = (dice(three), dice(three, leaked=False), dice(f"{three}, TTA"))
    assert f"| {' | '.join(f'{value:.1f}' for value in of_three)} |" in front
    readme = " ".join((ROOT / "README.md").read_text().split())
    first, second, third = (f"{dice(f'{TAUGHT}, seed {seed}'):.1f}" for seed in (1, 2, 3))
    assert f"Dice {first} on the published test split" in readme
    assert f"{second} and {third} with other seeds" in readme
    without = f"{dice(f'{TAUGHT}, seed 1', leaked=False):.1f}"
    assert f"{without} without the 37 test cases that are found to leak from train" in readme
    assert f"such as {of_three[-1]:.1f} by three models together" in readme


def test_the_u_net_is_compared_with_the_runs_of_the_same_seeds() -> None:
    text = " ".join(section(U_NET).split())
    gains = [dice(f"{UPRIGHT}, seed {s}") - dice(f"{U_NET}, seed {s}") for s in (1, 2, 3)]
    listed = "{:.1f}, {:.1f} and {:.1f}".format(*gains)
    assert f"is {fmean(gains):.1f} points higher over the same seeds; by seed {listed}" in text


def test_cases_that_no_model_finds_are_those_of_the_page() -> None:
    text = " ".join(
        PAGE.partition("### Cases that no model finds\n")[2].partition("\n## ")[0].split()
    )
    runs = [name for name in CASES[0] if re.fullmatch(r".*, seed \d", name)]
    ours = [name for name in runs if not name.startswith(U_NET)]

    def missed_by(names: list[str]) -> set[str]:
        return {c["case"] for c in CASES if all(float(c[name]) < 0.5 for name in names)}

    missed = missed_by(ours)
    assert missed == set(re.findall(r"`((?:benign|malignant)_\d+)`", text)) and len(missed) == 8
    assert len(missed_by(runs)) == 7
    found = [c for c in CASES if c["case"] not in missed]
    costs = [sum(1 - float(c[n]) for c in CASES if c["case"] in missed) / 1.3 for n in ours]
    rest = [100 * fmean(float(c[name]) for c in found) for name in ours]
    best = 100 * fmean(max(float(c[name]) for name in ours) for c in CASES)
    assert f"cost each Wave-GMS model {min(costs):.1f} to {max(costs):.1f} points" in text
    assert f"it reaches {min(rest):.1f} to {max(rest):.1f}" in text
    assert f"the mean would be {best:.1f}." in text


def test_pairs_that_the_check_misses_cost_what_the_page_says() -> None:
    page = (ROOT / "docs" / "datasets.md").read_text()
    (lower,) = re.findall(r"is another ([\d.]+ to [\d.]+) points lower", page)
    (higher,) = re.findall(r"seed 3\), where it is ([\d.]+ to [\d.]+) points higher", page)
    missed = {"benign_240", "benign_255", "benign_277", "malignant_103"}
    kept = [case for case in CASES if case["leaked"] == "0"]
    rest = [case for case in kept if case["case"] not in missed]
    assert len(rest) == len(kept) - 4
    losses = {
        run: 100
        * (fmean(float(case[run]) for case in kept) - fmean(float(case[run]) for case in rest))
        for run in CASES[0].keys() - {"case", "leaked"}
    }
    others = [loss for run, loss in losses.items() if not run.startswith("upright, seed 3")]
    gains = [-loss for run, loss in losses.items() if run.startswith("upright, seed 3")]
    assert f"{min(others):.1f} to {max(others):.1f}" == lower
    assert f"{min(gains):.1f} to {max(gains):.1f}" == higher
