from __future__ import annotations

import json
import os
import pickle
import pickletools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.safe_pickle import PlainPickleError, read_plain_pickle
from datasets.splits import (
    Split,
    SplitError,
    cases_by_group,
    checked_split,
    grouped_split,
    hold_out,
    hold_out_fold,
    random_split,
    read_split,
    write_split,
)
from utils.errors import UserError

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
PUBLISHED = {
    "bus": (132, 31),
    "busi": (517, 130),
    "glas": (85, 80),
    "ham10000": (8015, 2000),
    "kvasir": (472, 118),
}


def split_data(train: object, test: object) -> dict[str, object]:
    return {"train": {"name_list": train}, "test": {"name_list": test}}


class RunsOnLoad:
    """Creates a file when `pickle.load` reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_splits_load_as_pickle_does(shared: Path, name: str) -> None:
    path = shared / "splits" / f"{name}_train_test_names.pkl"
    with path.open("rb") as file:
        expected = pickle.load(file)
    split = read_split(path)
    assert (len(split.train), len(split.test)) == PUBLISHED[name]
    assert list(split.train) == expected["train"]["name_list"]
    assert list(split.test) == expected["test"]["name_list"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol: int) -> None:
    plain = {
        "text": ["a", "é", ""],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "numbers": [0, -1, 300, 70_000, 1 << 80, -(1 << 80), 0.5, True, False, None],
        3: {"nested": {"deeper": []}},
    }
    assert read_plain_pickle(pickle.dumps(plain, protocol)) == plain
    assert read_plain_pickle(pickletools.optimize(pickle.dumps(plain, protocol))) == plain


def test_bytes_and_sets() -> None:
    plain = [b"x", b"y" * 300, {"a", 1, None}]
    assert read_plain_pickle(pickle.dumps(plain, 4)) == plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was_run"
    hostile = split_data(["a", RunsOnLoad(marker)], ["b"])
    path = tmp_path / "split.pkl"
    path.write_bytes(pickle.dumps(hostile, protocol))
    with pytest.raises(SplitError, match=r"split.pkl: refused 'the global (posix|nt)\.mkdir'"):
        read_split(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Psome id\n.", "PERSID"),
        (b"N\x51.", "BINPERSID"),
        (b"}}b.", "BUILD"),
        (b"}}R.", "REDUCE"),
        (b"}}\x81.", "NEWOBJ"),
    ],
)
def test_every_way_out_of_plain_data_is_refused(content: bytes, refused: str) -> None:
    with pytest.raises(PlainPickleError, match=refused):
        read_plain_pickle(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"garbage",
        b"}",  # no STOP
        b"(.",  # a mark is no value
        b"u.",
        b"\x85.",  # tuple of what is not there
        b"](a.",  # APPEND of a mark
        b"}]Ns.",  # a list as key
        b"](NNu.",  # SETITEMS on a list
        b"(Nd.",  # odd number of items
        b"h\x05.",  # memo entry that was never put
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # 2^63 - 1 bytes announced
        b"\x8a\xff.",
        b"I12x\n.",
        b"V\\ud800\\uzz\n.",
    ],
)
def test_damaged_pickles_are_refused(content: bytes) -> None:
    with pytest.raises((PlainPickleError, SplitError)):
        checked_split(read_plain_pickle(content))


def test_pickles_that_ask_for_memory_or_depth_are_harmless() -> None:
    huge_memo = b"}r\xff\xff\xff\x7f."
    assert read_plain_pickle(huge_memo) == {}
    deep_key = b"})" + b"\x85" * 200_000 + b"Ns."
    with pytest.raises(PlainPickleError, match="tuple as a dict key"):
        read_plain_pickle(deep_key)
    # 2^60 leaves if it were hashed or compared, 60 tuples as it stands
    doubling = b"})\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
    started = time.monotonic()
    with pytest.raises(PlainPickleError, match="tuple as a dict key"):
        read_plain_pickle(doubling + b"Ns.")
    assert time.monotonic() - started < 60, "it was taken apart leaf by leaf"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a"], "expected a dict with 'train' and 'test', got list"),
        ({"train": ["a"]}, "expected the keys 'train' and 'test', and perhaps 'val', got 'train'"),
        ({"train": ["a"], "test": ["b"]}, "'train': expected a dict with 'name_list', got list"),
        ({"train": {"names": ["a"]}, "test": {}}, "got a dict with 'names'"),
        (split_data("abc", ["b"]), "'name_list' is str, expected a list"),
        (split_data(["a"], []), "'test': the list of names is empty"),
        (split_data(["a", "b", "c"], ["c", "d", "b"]), "2 names are in both.*'b', 'c'"),
        (split_data(["a", "b", "a"], ["c"]), "1 names are repeated: 'a'"),
        (
            split_data(["a", "b"], ["c"]) | {"val": {"name_list": ["b"]}},
            "1 names are in both train and val: 'b'",
        ),
        (
            split_data([], ["c"]) | {"val": {"name_list": ["a", "b"]}},
            "no case is left for training beside the 2 of 'val': move some of these into 'train'",
        ),
        (
            split_data(["a", "b"], ["c"]) | {"val": {"name_list": ["c"]}},
            "1 names are in both val and test: 'c'",
        ),
        (split_data(["a", 5], ["c"]), "a name is int, not text"),
        (split_data(["a", ""], ["c"]), "a name '' is empty"),
        (split_data(["../a"], ["c"]), "'../a' is a path"),
        (split_data(["a\\b"], ["c"]), "is a path"),
        (split_data([".."], ["c"]), "is a path"),
        (split_data(["a\0b"], ["c"]), "holds a control character"),
        (split_data(["a\nb"], ["c"]), "holds a control character"),
        (split_data(["\ud800"], ["c"]), "is not valid Unicode"),
        (split_data(["a" * 201], ["c"]), "is longer than 200 bytes"),
        (split_data(["ä" * 101], ["c"]), "is longer than 200 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_wrong_content_is_named(tmp_path: Path, data: object, message: str, suffix: str) -> None:
    path = tmp_path / f"split{suffix}"
    path.write_bytes(pickle.dumps(data) if suffix == ".pkl" else json.dumps(data).encode())
    with pytest.raises(SplitError, match=message) as error:
        read_split(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_split(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"cannot read the split file \(No such file"):
        read_split(tmp_path / "absent.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SplitError, match="cannot read the split file"):
        read_split(tmp_path / "folder.json")
    with pytest.raises(SplitError, match=r"ends in \.json or \.pkl, got '\.txt'"):
        read_split(tmp_path / "names.txt")
    for content in (b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(SplitError, match=r"bad\.json"):
            read_split(tmp_path / "bad.json")
    (tmp_path / "large.pkl").write_bytes(b"}" * (2 << 20) + b".")
    with pytest.raises(SplitError, match="larger than 2,097,152 bytes"):
        read_split(tmp_path / "large.pkl")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(SplitError, match="larger than 67,108,864 bytes"):
        read_split(tmp_path / "large.json")


def test_round_trip_keeps_order(tmp_path: Path) -> None:
    split = Split(train=("b", "a", "ü"), test=("d", "c"))
    write_split(tmp_path / "split.json", split)
    assert read_split(tmp_path / "split.json") == split
    with pytest.raises(SplitError, match="both"):
        write_split(tmp_path / "split.json", Split(train=("a",), test=("a",)))
    assert read_split(tmp_path / "split.json") == split


def test_validation_cases_are_part_of_train(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split_data(["a"], ["c"]) | {"val": {"name_list": ["b"]}}))
    split = read_split(path)
    assert split == Split(train=("a", "b"), test=("c",), val=("b",))
    write_split(path, split)
    assert read_split(path) == split


def test_a_split_may_have_nothing_to_train_on(tmp_path: Path) -> None:
    write_split(tmp_path / "split.json", Split(train=(), test=("a",)))
    assert read_split(tmp_path / "split.json") == Split(train=(), test=("a",))


def test_a_large_split_is_read_back(tmp_path: Path) -> None:
    names = [f"a_series_with_a_long_name_and_its_slice_{i:05}" for i in range(60_000)]
    split = random_split(names)
    write_split(tmp_path / "split.json", split)
    assert (tmp_path / "split.json").stat().st_size > 2 << 20
    assert read_split(tmp_path / "split.json") == split


def test_random_split_depends_on_seed_alone() -> None:
    names = [f"case_{i:03}" for i in range(400)]
    split = random_split(names)
    assert (len(split.train), len(split.test)) == (320, 80)
    assert set(split.train) | set(split.test) == set(names)
    assert not set(split.train) & set(split.test)
    assert random_split(names[::-1]) == split
    assert random_split(names, seed=1) != split
    assert random_split(["b", "a"]).test
    with pytest.raises(SplitError, match="at least 2"):
        random_split(["a"])


def test_grouped_split_keeps_groups_whole() -> None:
    group_of = {f"case_{i:03}": f"patient_{i % 37}" for i in range(200)}
    split = grouped_split(group_of)
    assert sorted(split.train + split.test) == sorted(group_of)
    assert not {group_of[n] for n in split.train} & {group_of[n] for n in split.test}
    assert 35 <= len(split.test) <= 40
    assert grouped_split(dict(reversed(group_of.items()))) == split
    assert grouped_split(group_of, seed=1) != split


def test_grouped_split_of_few_or_large_groups() -> None:
    uneven = grouped_split({"a": "1", "b": "1", "c": "1", "d": "2", "e": "2"})
    assert uneven == Split(train=("a", "b", "c"), test=("d", "e"))
    with pytest.raises(SplitError, match="at least 2 groups, got 1"):
        grouped_split({"a": "1", "b": "1"})


def test_held_out_cases_do_not_move() -> None:
    names = [f"n{i}" for i in range(50)]
    train, held = hold_out(names, 0.1, 3)
    assert len(held) == 5 and not set(train) & set(held)
    assert set(hold_out(names[::-1], 0.1, 3)[1]) == set(held)
    assert set(hold_out(names, 0.1, 4)[1]) != set(held)
    assert hold_out(names, 0.0, 3) == (names, [])
    assert len(hold_out(names[:18], 0.1, 3)[1]) == 2  # the nearest number, not the one below


def test_folds_depend_on_names_and_seed_alone() -> None:
    names = [f"case_{i}" for i in range(20)]
    held = set(hold_out_fold(names, 5, 2, seed=3)[1])
    assert set(hold_out_fold(names[::-1], 5, 2, seed=3)[1]) == held
    assert set(hold_out_fold(names, 5, 2, seed=4)[1]) != held
    with pytest.raises(UserError, match="20 cases cannot be cut into 21 folds"):
        hold_out_fold(names, 21, 0, seed=3)


GROUP_OF = {f"c{i}": f"patient {i // 4}" for i in range(40)}


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25])
def test_held_out_cases_keep_groups_together(fraction: float) -> None:
    names = [*GROUP_OF, "alone"]
    train, held = hold_out(names, fraction, 3, GROUP_OF)
    assert sorted(train + held) == sorted(names)
    assert not {GROUP_OF.get(n) for n in train} & {GROUP_OF.get(n) for n in held} - {None}
    assert 0 < len(held) <= max(4, fraction * len(names))
    assert hold_out(names, fraction, 3, {}) == hold_out(names, fraction, 3)


def test_folds_keep_groups_together() -> None:
    names = list(GROUP_OF)
    folds = [set(hold_out_fold(names, 5, fold, 3, GROUP_OF)[1]) for fold in range(5)]
    assert set().union(*folds) == set(names) and sum(map(len, folds)) == 40
    assert all(len({GROUP_OF[name] for name in fold}) == 2 for fold in folds)
    assert hold_out_fold(names, 5, 2, 3, {}) == hold_out_fold(names, 5, 2, 3)
    with pytest.raises(UserError, match="10 groups of cases cannot be cut into 11 folds"):
        hold_out_fold(names, 11, 0, 3, GROUP_OF)


SEEDS = [
    pickle.dumps(split_data(["a", "b"], ("c", "d")), protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.sampled_from(SEEDS)), st.data())
def test_fuzz_split_reader(content: bytes, data: st.DataObject) -> None:
    """Random bytes, and published-like pickles with bytes replaced, inserted and cut off."""
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        split = checked_split(read_plain_pickle(bytes(mutated)))
    except (PlainPickleError, SplitError):
        return
    assert split.test


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["train", "val", "test", "name_list"]), x)
        ),
    )
)
def test_fuzz_split_structure(data: object) -> None:
    try:
        checked_split(data)
    except SplitError:
        return


def test_what_is_held_out_stays_the_same_between_versions() -> None:
    names = [f"n{number:02}" for number in range(20)]
    assert hold_out(names, 0.2, 3)[1] == ["n03", "n04", "n05", "n10"]
    assert hold_out_fold(names, 5, 2, 3)[1] == ["n01", "n08", "n09", "n17"]


def drawn_parts(group_sizes: list[int], part: Callable[..., Sequence[str]]) -> list[Sequence[str]]:
    """The part of each seed, of patients with so many cases; a case begins with its patient's number."""
    group_of = {
        f"{patient:02}_{index}": f"{patient}"
        for patient, size in enumerate(group_sizes)
        for index in range(size)
    }
    return [part(group_of, seed) for seed in range(400)]


@pytest.mark.parametrize(
    ("part", "fraction"),
    [
        (lambda group_of, seed: hold_out(sorted(group_of), 0.1, seed, group_of)[1], 0.1),
        (lambda group_of, seed: grouped_split(group_of, seed).test, 0.2),
    ],
    ids=["held out", "test part"],
)
def test_patients_of_many_images_are_drawn_as_often_as_those_of_few(
    part: Callable[..., Sequence[str]], fraction: float
) -> None:
    parts = drawn_parts([2] * 15 + [60] * 15, part)
    patients = [{int(name[:2]) for name in each} for each in parts]
    small = sum(patient < 15 for each in patients for patient in each)
    large = sum(patient >= 15 for each in patients for patient in each)
    assert 0.7 < small / large < 1.4
    sizes = [len(each) for each in parts]
    assert 0.9 * fraction < sum(sizes) / len(sizes) / (15 * 62) < 1.1 * fraction
    assert max(abs(size / (15 * 62) - fraction) for size in sizes) < 0.04
    stray = drawn_parts([100] * 8 + [1], part)
    assert all(len(each) >= 80 for each in stray), "not the one case without a patient alone"


@pytest.mark.parametrize(
    "sizes",
    [[500] + [1] * 500, [400, 400] + [20] * 10, [257] + [3] * 200, [90, 80, 70] + [5] * 100],
)
def test_a_large_group_leaves_no_small_part(sizes: list[int]) -> None:
    """As that of all cases whose patient is unknown."""
    for fraction, part in (
        (0.1, lambda group_of, seed: hold_out(sorted(group_of), 0.1, seed, group_of)[1]),
        (0.2, lambda group_of, seed: grouped_split(group_of, seed).test),
    ):
        room = fraction * sum(sizes)
        assert all(0.49 * room < len(each) < 2 * room for each in drawn_parts(sizes, part))


def test_a_part_of_small_groups_has_its_size_and_some_case_is_left() -> None:
    parts = drawn_parts([1, 2, 1, 1] * 25, lambda g, s: hold_out(sorted(g), 0.4, s, g)[1])
    assert {len(each) for each in parts} == {50}
    two = {name: name[0] for name in ("a1", "a2", "a3", "b1", "b2")}
    assert all(all(hold_out(sorted(two), 0.8, seed, two)) for seed in range(20))


def test_where_no_group_fits_the_smallest_is_held_out() -> None:
    group_of = {f"{size}{index}": str(size) for size in (6, 3, 4) for index in range(size)}
    for seed in range(5):
        assert hold_out(sorted(group_of), 0.1, seed, group_of)[1] == ["30", "31", "32"]


def test_a_case_and_a_group_may_have_one_name() -> None:
    assert cases_by_group(["p", "a", "b"], {"a": "p", "b": "p"}) == [["p"], ["a", "b"]]


def test_names_in_a_set_are_sorted() -> None:
    """A set has another order in each process."""
    names = {f"case_{index}" for index in range(20)}
    split = checked_split({"train": {"name_list": names}, "test": {"name_list": ["c"]}})
    assert split.train == tuple(sorted(names))
