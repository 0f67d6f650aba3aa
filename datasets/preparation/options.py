"""The options of a preparation, which those of every kind of source share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets.preparation.archives import DEFAULT_LIMITS, Limits, Source, open_source
from datasets.splits import SEED


@dataclass(frozen=True)
class PreparationOptions:
    """What a data set is prepared with, whatever its source."""

    root: Path
    """The data set becomes a folder in this one."""
    splits: Path | None = None
    """A split file; without it, folders called train and test are the parts, or 80 % are drawn for train."""
    groups: Path | None = None
    """A CSV of case names and their groups, in place of the metadata among the sources."""
    seed: int = SEED
    limits: Limits = DEFAULT_LIMITS
    follow_links: bool = False
    test_only: bool = False
    """All cases are for testing."""
    skip_unusable: bool = False
    """Cases that are missing or unusable are left out."""

    @property
    def give_a_split(self) -> bool:
        """Whether these options say which cases are tested on, whatever the source holds."""
        return self.splits is not None or self.test_only

    def open(self, path: Path) -> Source:
        """A folder or zip, read within these limits."""
        return open_source(path, self.limits, self.follow_links)
