"""Which cases show the same patient, lesion or scan, and over how many of those an interval is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scoring.statistics import FEW_GROUPS


@dataclass(frozen=True)
class KnownGroups:
    """What is known of the cases of a data set that show the same patient, lesion or scan."""

    by: str | None = None
    """How it is known, such as `near-duplicates`; None where nothing is."""
    group_of: Mapping[str, str] = field(default_factory=dict)
    """The group of each case that shares one, by the name of the group's first case in the whole data set."""

    def labels(self, names: Iterable[str]) -> list[str]:
        """A label for each case, the same for those of one group; a case without a group is its own."""
        return [self.group_of.get(name, name) for name in names]

    def among(self, names: Iterable[str]) -> KnownGroups:
        """What is known of these cases.

        It includes groups of which one case alone is named: its others may be in another fold.
        """
        return KnownGroups(
            self.by, {name: self.group_of[name] for name in names if name in self.group_of}
        )


NOTHING_KNOWN = KnownGroups()


def named_groups(by: str | None, groups: Iterable[Sequence[str]]) -> KnownGroups:
    """Groups of cases, each named by its first case in sorted order; those of one case are left out."""
    group_of = {name: min(group) for group in groups if len(group) > 1 for name in group}
    return KnownGroups(by, group_of)


def connected(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names that are linked directly or through others; each group and the list sorted."""
    group_of: dict[str, set[str]] = {}
    for first, second in pairs:
        joined = group_of.get(first, {first}) | group_of.get(second, {second})
        for name in joined:
            group_of[name] = joined
    groups = {id(group): sorted(group) for group in group_of.values()}
    return sorted(groups.values())


def joined(known: Sequence[KnownGroups]) -> KnownGroups:
    """All that is known together: cases are in one group where any of `known`, or several, link them."""
    links = (link for groups in known for link in groups.group_of.items())
    ways = {way for groups in known if groups.by for way in groups.by.split(" and ")}
    group_of = {name: min(group) for group in connected(links) for name in group}
    return KnownGroups(" and ".join(sorted(ways)) or None, group_of)


def unit_text(groups: int, cases: int, by: str | None) -> str:
    """What a bootstrap over `cases` in `groups` draws, and that of few groups it is too narrow."""
    if by is None:
        text = f"over {cases} cases, taken as independent"
    elif groups == cases:
        text = f"over {cases} cases, no two known to be of one source (by {by})"
    else:
        text = f"over {cases} cases in {groups} groups (by {by})"
    few = f"; with fewer than {FEW_GROUPS}, intervals are too narrow"
    return text + few if groups < FEW_GROUPS else text


def narrow_note(part: str, groups: int, cases: int, groups_in_all: int) -> str:
    """That the interval of a part of the cases is over few groups; empty where it is not, or of all it is."""
    if not 1 < groups < FEW_GROUPS <= groups_in_all:
        return ""
    in_groups = f" in {groups} groups" if groups < cases else ""
    return f"the interval of {part} is over {cases} cases{in_groups} alone; with fewer than {FEW_GROUPS} it is too narrow"


def unit_or_why_none(
    groups: int, cases: int, by: str | None, *, drawn: str = "{}", none: str = "none: {}"
) -> str:
    """`drawn` with the `unit_text` of a bootstrap over `cases` in `groups`, or `none` with why not."""
    if groups > 1:
        return drawn.format(unit_text(groups, cases, by))
    return none.format(
        f"all {cases} cases are of one group (by {by})" if cases > 1 else f"{cases} case"
    )
