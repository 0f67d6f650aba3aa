"""Files from anywhere: no code runs from them, none takes more memory than its size allows.

Split files and archives have tests of their own, test_splits.py and test_archives.py.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.cases import Case, CaseError, read_case
from datasets.image_files.decoding import MAX_MEGAPIXELS
from engine.runs.saved_state import load_state
from utils.config import Config, load_config, make_config
from utils.errors import UserError
from utils.tensor_files import load_tensors, save_tensors
from utils.yaml_files import MAX_CONFIG_BYTES

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))


class RunsOnLoad:
    """Creates a folder when `pickle.load` reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["zip", "bare pickle", "legacy"])
@pytest.mark.parametrize("name", ["last.pth", "last.pth.new", "last.previous.pth"])
def test_code_in_a_saved_state_is_not_run(tmp_path: Path, kind: str, name: str) -> None:
    content = {"format": 1, "weights": RunsOnLoad(tmp_path / "hacked")}
    if kind == "bare pickle":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match="resume=never"):
        load_state(tmp_path)
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_does_not_inflate(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    save_tensors(plain, {"a": torch.zeros(1_000_000)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    assert bomb.stat().st_size < 10_000
    assert load_tensors(plain)["a"].shape == (1_000_000,)
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(bomb)


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("side", [100_000, 8_200])
@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, which: str
) -> None:
    # 8,200 x 8,200 with all of its rows is a bomb of 0.3 MB for 67 MB that OpenCV would decode
    rows = b"" if side > 20_000 else bytes((side + 1) * side)
    paths = {kind: tmp_path / f"{kind}.png" for kind in ("image", "mask")}
    for kind, path in paths.items():
        path.write_bytes(png(8, 8, bytes(72)) if kind != which else png(side, side, rows))
    decode, decoded = cv2.imdecode, []

    def noted(content: np.ndarray, flags: int) -> object:
        decoded.append(len(content))
        return decode(content, flags)

    monkeypatch.setattr(cv2, "imdecode", noted)
    with pytest.raises(CaseError, match=rf"{which}\.png.*{side} x {side}.*{MAX_MEGAPIXELS}"):
        read_case(Case("a", paths["image"], paths["mask"]))
    assert paths[which].stat().st_size not in decoded


def test_images_up_to_the_limit_are_read(tmp_path: Path) -> None:
    for kind in ("image", "mask"):
        cv2.imwrite(str(tmp_path / f"{kind}.png"), np.full((16, 24), 255, np.uint8))
    image, mask = read_case(Case("a", tmp_path / "image.png", tmp_path / "mask.png"))
    assert image.shape == (16, 24, 3) and mask.all()


def laughs(merge: bool) -> str:
    """Nine levels of ten references each: a billion values."""
    lines = ["a0: &a0 " + ("{k: 1}" if merge else "[1]")]
    for level in range(1, 10):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(
            f"a{level}: &a{level} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]")
        )
    return "\n".join([*lines, "epochs: *a9", "base: *a9"])


@pytest.mark.parametrize("merge", [False, True])
def test_an_alias_bomb_is_refused(tmp_path: Path, merge: bool) -> None:
    with pytest.raises(UserError, match=r"alias \*a0") as caught:
        load_config(write(tmp_path / "c.yaml", laughs(merge)))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [hacked]",
        "!!python/object/new:os.mkdir [hacked]",
        "!!python/name:os.mkdir",
        "!!python/module:antigravity",
        "!!python/object:pathlib.Path {}",
        "!unknown x",
        "!!int",
        "!!bool x",
        "!!timestamp x",
    ],
)
def test_yaml_tags_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "c.yaml", f"pickle_file_path: x\nepochs: {tag}\n")
    with pytest.raises(UserError, match="not plain YAML"):
        load_config(path)
    with pytest.raises(UserError, match="not plain YAML"):
        load_config(write(tmp_path / "d.yaml", "pickle_file_path: x"), [f"epochs={tag}"])
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: /dev/zero", "not a regular file"),
        ('base: "a\\0b"', "cannot read"),
        (f"base: {'a' * 5000}", "cannot read"),
        (f"epochs: 0x{'f' * 8000}", "thousands of digits"),
        ("lr: .inf", "finite"),
        (f"epochs: [{'1, ' * 5000}]", r"epochs.*\.\.\."),
        (f"epochs: {'[' * 5000}", "not plain YAML"),
        ("#" * (MAX_CONFIG_BYTES + 1), "over 65536 bytes"),
    ],
    ids=[
        "device",
        "null byte",
        "long name",
        "huge number",
        "infinity",
        "long list",
        "deep",
        "long file",
    ],
)
def test_odd_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path / "c.yaml", f"pickle_file_path: x\n{text}"))
    assert len(str(caught.value)) < 20_000


KEYS = st.sampled_from([*Config.model_fields, "base", "<<"]) | st.text(max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
    | st.binary(max_size=20)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
LINES = st.sampled_from(
    ["epochs: ", "base: ", "- ", "? ", "[", "{", "&a ", "*a", "!!", "!!int ", "!!binary ", "1:2:3",
     "<<: ", "|\n ", "\n", "\t", "%YAML 9.9\n", "---\n", "0x", "'", '"', "\\", "# ", "1e999", ".nan",
     "2001-99-99", "pickle_file_path: x\n"]
) | st.text(max_size=6)  # fmt: skip
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 1000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(values=st.dictionaries(KEYS, VALUES, max_size=6))
def test_fuzz_config_values(values: dict[str, object]) -> None:
    try:
        config = make_config({"pickle_file_path": "x"} | values)
    except UserError:
        return
    assert isinstance(config, Config)


@FUZZ
@given(text=st.lists(LINES, max_size=12).map("".join) | st.text() | st.binary())
def test_fuzz_config_text(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    with suppress(UserError):
        load_config(path, ["pickle_file_path=x"])


@FUZZ
@given(values=st.dictionaries(KEYS, VALUES, max_size=4))
def test_fuzz_config_files(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="replace")
    with suppress(UserError):
        load_config(path, ["pickle_file_path=x"])
