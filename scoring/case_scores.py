"""The scores of many cases, computed in processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context

from tqdm import tqdm

from scoring.metrics import CaseScores, EmptyRule, Mask, score_case
from utils.errors import UserError
from utils.streams import end_with_parent, map_in_pool

MaskPair = tuple[str, Mask, Mask]
"""A case to score: its name, prediction and truth."""


def score_cases(
    cases: Iterable[MaskPair],
    *,
    workers: int = 0,
    batch: int = 16,
    hd95_empty: EmptyRule = "diagonal",
    total: int | None = None,
) -> dict[str, CaseScores]:
    """`score_case` of each (name, prediction, truth) by its name, sorted by name.

    `workers` processes score `batch` cases at a time; 0 scores in this process. `cases` is drawn
    from in this process, a few batches ahead of the workers, so it may run a network and need not
    fit in memory. The scores do not depend on workers, batch or order. `total` is for the progress
    bar. Raises `UserError` if there is no case, a name comes twice or masks do not match.
    """
    score = partial(_score_batch, hd95_empty=hd95_empty)
    scores: dict[str, CaseScores] = {}
    with tqdm(total=total, desc="Scoring", unit="case", disable=None) as bar:
        for scored in _map_batches(score, _batches(cases, batch), workers):
            for name, case_scores in scored:
                if name in scores:
                    raise UserError(f"case {name!r} came twice; names within a data set are unique")
                scores[name] = case_scores
            bar.update(len(scored))
    if not scores:
        raise UserError("no case to score: the list of predictions and masks is empty")
    return {name: scores[name] for name in sorted(scores)}


def _score_batch(batch: list[MaskPair], *, hd95_empty: EmptyRule) -> list[tuple[str, CaseScores]]:
    scored = []
    for name, prediction, truth in batch:
        try:
            scores = score_case(prediction, truth, hd95_empty=hd95_empty)
        except UserError as error:
            raise UserError(f"case {name!r}: {error}") from error
        scored.append((name, scores))
    return scored


def _batches(cases: Iterable[MaskPair], size: int) -> Iterator[list[MaskPair]]:
    iterator = iter(cases)
    while batch := list(islice(iterator, size)):
        yield batch


def _map_batches(
    score: Callable[[list[MaskPair]], list[tuple[str, CaseScores]]],
    batches: Iterable[list[MaskPair]],
    workers: int,
) -> Iterator[list[tuple[str, CaseScores]]]:
    """`map` in `workers` processes that draws only two batches per worker ahead of what is done."""
    if workers == 0:
        yield from map(score, batches)
        return
    # Processes are spawned, not forked: the caller may hold CUDA contexts and threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        yield from map_in_pool(pool, score, batches, most=2 * workers)
