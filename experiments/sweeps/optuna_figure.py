"""The figure of a search: the Dice of its settings in the order of their trials, and which keys matter."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from experiments.sweeps.scores import CHOOSING
from utils.figures import BLUE, VERMILION

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_FOR_IMPORTANCE = 10  # different scores: it compares the best tenth of them with the rest


def draw_search(study: optuna.Study, select_on: str, title: str) -> Figure:
    """`select_on` names the cases that chose the checkpoints."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    history, importance = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_history(history, study, select_on)
    _draw_importance(importance, importances(study))
    figure.suptitle(title)
    return figure


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each key matters for the value, summing to 1; empty where that is not known yet."""
    import optuna

    finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len({trial.value for trial in finished}) < MIN_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # too little variation in some key
            return {}


def _draw_history(axes: Axes, study: optuna.Study, select_on: str) -> None:
    from matplotlib.ticker import MaxNLocator
    from optuna.trial import TrialState

    tried = study.get_trials(deepcopy=False)
    finished = [t for t in tried if t.state == TrialState.COMPLETE and t.value is not None]
    pruned = [t for t in tried if t.state == TrialState.PRUNED and t.intermediate_values]
    numbers, values = [t.number for t in finished], [100 * (t.value or 0) for t in finished]
    best = [max(values[: i + 1]) for i in range(len(values))]
    axes.plot(numbers, values, "o", color=BLUE, label="finished")
    axes.step(numbers, best, where="post", color=VERMILION, label="best so far")
    if pruned:
        highest = [100 * max(t.intermediate_values.values()) for t in pruned]
        axes.plot([t.number for t in pruned], highest, "x", color="0.5", label="pruned")
    axes.set(xlabel="setting", ylabel=f"{CHOOSING[select_on]}, %", title="history")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _draw_importance(axes: Axes, importance: dict[str, float]) -> None:
    axes.set_title("importance (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    if not importance:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"from {MIN_FOR_IMPORTANCE} different scores on", ha="center")
        return
    axes.barh(list(importance), list(importance.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
