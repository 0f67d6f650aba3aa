"""What the runner and the report ask of a sweep, whether its settings are listed or searched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments.sweeps.scores import OpenElsewhere, SettingScores
from experiments.sweeps.trials import Setting
from experiments.trials.trial import Outcome, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plan(ABC):
    """The trials of a sweep and their scores. By default nothing is pruned, shared or drawn."""

    @abstractmethod
    def trials(self) -> Iterator[Trial]:
        """The trials in the order in which they start; read lazily."""

    @abstractmethod
    def scores(self) -> list[tuple[Setting, SettingScores]]:
        """All settings so far, with what they have scored."""

    def should_prune(self, trial: Trial) -> bool:
        """Whether a running trial should be stopped for good."""
        return False

    def ended(self, outcome: Outcome) -> None:  # noqa: B027
        """Called when a trial has ended."""

    def open_elsewhere(self) -> OpenElsewhere:
        """The settings that other sweeps have begun and not ended."""
        return OpenElsewhere([], [])

    def figure(self, title: str) -> Figure | None:
        """A plan-specific figure for sweep.png, or None."""
        return None
