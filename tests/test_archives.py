from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.image_files.decoding import check_declared_size, decode
from datasets.image_files.headers import ImageError
from datasets.preparation.archives import (
    DEFAULT_LIMITS,
    ArchiveError,
    Limits,
    Member,
    members,
    open_source,
)
from tests.dataset_archives import (
    bmp,
    busi_files,
    jpg,
    picture,
    png,
    prepare,
    write_folder,
    write_zip,
)
from utils.errors import UserError

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
FILES = {"a/one.png": b"1" * 40, "a/b/two.png": b"22", "three.txt": b""}


def zip_bytes(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def refusal(path: Path, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(ArchiveError) as error:
        open_source(path, limits)
    assert path.name in str(error.value)
    return str(error.value)


def test_zip_and_folder_read_alike(tmp_path: Path) -> None:
    archive = open_source(write_zip(tmp_path / "x.zip", FILES))
    folder = open_source(write_folder(tmp_path / "x", FILES))
    assert archive.paths() == folder.paths() == sorted(FILES)
    for name, content in FILES.items():
        assert archive.read(name) == folder.read(name) == content
    assert [str(member) for member in members([archive])][-1] == "x.zip: three.txt"
    assert Member(folder, "a/one.png").suffix == ".png"


def test_what_systems_leave_behind_is_not_seen(tmp_path: Path) -> None:
    junk = dict.fromkeys(
        ("__MACOSX/a/._one.png", ".DS_Store", "a/.hidden/x.png", "a/Thumbs.db"), b"x"
    )
    assert open_source(write_zip(tmp_path / "x.zip", FILES | junk)).paths() == sorted(FILES)
    assert open_source(write_folder(tmp_path / "x", FILES | junk)).paths() == sorted(FILES)


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_names_in_zips_without_the_flag_of_their_encoding(tmp_path: Path, encoding: str) -> None:
    name = "Müller_1.png".encode(encoding)
    placeholder = b"x" * len(name)
    path = write_zip(tmp_path / "mac.zip", {placeholder.decode(): b"pixels"})
    path.write_bytes(path.read_bytes().replace(placeholder, name))
    source = open_source(path)
    assert source.paths() == ["Müller_1.png"] and source.read("Müller_1.png") == b"pixels"


def test_identity_changes_with_the_content(tmp_path: Path) -> None:
    before = open_source(write_zip(tmp_path / "x.zip", {"a": b"1"})).identity("a")
    assert open_source(write_zip(tmp_path / "x.zip", {"a": b"1"})).identity("a") == before
    assert open_source(write_zip(tmp_path / "x.zip", {"a": b"2"})).identity("a") != before


@pytest.mark.parametrize(
    "name",
    ["../out.png", "a/../../out.png", "/etc/out.png", "a\\..\\..\\out.png", "C:\\out.png", "\\x"],
)
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", {"good.png": b"1", name: b"2"})
    assert "leads outside it" in refusal(path)


def test_a_nul_in_a_path_is_refused(tmp_path: Path) -> None:
    content = zip_bytes({"good.pngXjpg": b"1"}).replace(b"good.pngXjpg", b"good.png\0jpg")
    (tmp_path / "x.zip").write_bytes(content)
    assert "leads outside it" in refusal(tmp_path / "x.zip")


def test_symbolic_links_in_zips_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "'link.png' is a symbolic link" in refusal(tmp_path / "x.zip")


@pytest.mark.parametrize("target", ["file.png", "folder"])
def test_symbolic_links_in_folders_are_followed_only_when_asked(
    tmp_path: Path, target: str
) -> None:
    write_folder(tmp_path / "elsewhere", {"file.png": b"1", "folder/inside.png": b"2"})
    source = write_folder(tmp_path / "x", {"own.png": b"3"})
    (source / f"link_{target}").symlink_to(tmp_path / "elsewhere" / target)
    with pytest.raises(ArchiveError, match=r"is a symbolic link.*--follow-links"):
        open_source(source)
    followed = open_source(source, follow_links=True)
    assert len(followed.paths()) == 2
    assert followed.read(followed.paths()[0]) in (b"1", b"2")


def test_a_link_that_leads_nowhere_is_no_missing_case(tmp_path: Path) -> None:
    """As in a clone of git-annex whose content was not fetched."""
    source = write_folder(tmp_path / "x", {"own.png": b"3"})
    (source / "a.png").symlink_to(".git/annex/objects/a.png")
    with pytest.raises(ArchiveError, match=r"a\.png is a link to .git/annex/.*: fetch it"):
        open_source(source, follow_links=True)


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "x", {"one/a.png": b"1", "two/b.png": b"2"})
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("two"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ArchiveError, match=r"x/two: cannot be read \(Permission denied\)"):
        open_source(source)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "x", {"own.png": b"3"})
    (source / "again").symlink_to(source)
    with pytest.raises(ArchiveError, match="more than 20 files"):
        open_source(source, Limits(members=20), follow_links=True)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a.png": b"1"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    assert "'a.png' is encrypted" in refusal(tmp_path / "x.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("a.png", b"2")
    assert "'a.png' is in it twice" in refusal(tmp_path / "x.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    (tmp_path / "x.zip").write_bytes(zip_bytes({"a.png": b"1" * 99}, method))
    assert f"compressed by method {method}" in refusal(tmp_path / "x.zip")


def test_zip_bombs_are_refused_by_each_limit(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as a:
        for _ in range(20):
            a.write(bytes(1 << 20))
    assert re.search(r"'a' unpacks from .* to 20,971,520 bytes, .* ratio=200", refusal(bomb))
    assert open_source(bomb, Limits(ratio=2000)).paths() == ["a"]
    assert "limit member_megabytes=10" in refusal(bomb, Limits(member_megabytes=10))
    # none is over a limit by itself, all together are
    write_zip(bomb, {f"{i}": bytes(3 << 20) for i in range(8)})
    assert "it unpacks from" in refusal(bomb)
    path = write_zip(tmp_path / "many.zip", {f"{i}": b"" for i in range(11)})
    assert "11 members, over the limit members=10" in refusal(path, Limits(members=10))
    assert "members" in refusal(write_folder(tmp_path / "x", FILES), Limits(members=2))


def test_the_total_size_is_limited(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({f"{i}.png": bytes(100) for i in range(3)}, zipfile.ZIP_STORED))
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:  # declare 500 MiB each
        content[at + 20 : at + 28] = struct.pack("<II", 500 << 20, 500 << 20)
    (tmp_path / "x.zip").write_bytes(content)
    limits = Limits(total_gigabytes=1, ratio=10**11)
    assert "limit total_gigabytes=1" in refusal(tmp_path / "x.zip", limits)


def test_a_member_that_declares_less_than_it_holds_is_not_inflated(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a.png": bytes(64 << 20)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", 1000)
    (tmp_path / "x.zip").write_bytes(content)
    source = open_source(tmp_path / "x.zip")
    tracemalloc.start()
    with pytest.raises(ArchiveError, match=r"a\.png: damaged or cut short"):
        source.read("a.png")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_archives_cut_short_are_refused(tmp_path: Path, kept: float) -> None:
    content = zip_bytes({f"{i}.png": os.urandom(500) for i in range(20)})
    (tmp_path / "x.zip").write_bytes(content[: int(len(content) * kept)])
    assert "not a whole zip archive" in refusal(tmp_path / "x.zip")


def test_damaged_members_are_named(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a.png": b"x" * 100, "b.png": b"y" * 100}, zipfile.ZIP_STORED))
    content[content.index(b"y" * 50)] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    source = open_source(tmp_path / "x.zip")
    assert source.read("a.png") == b"x" * 100
    with pytest.raises(ArchiveError, match=r"x\.zip: b\.png: damaged or cut short"):
        source.read("b.png")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives_are_not_accepted(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "x.zip", mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    assert "tar archives are not accepted" in refusal(tmp_path / "x.zip")


def test_no_such_path(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "absent.zip")


def test_files_in_folders_over_the_limit_or_gone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", {"a": bytes((1 << 20) + 1), "b": b""})
    source = open_source(folder, Limits(member_megabytes=1))
    with pytest.raises(ArchiveError, match="larger than the limit member_megabytes=1"):
        source.read("a")
    (folder / "b").unlink()
    with pytest.raises(ArchiveError, match="b: No such file"):
        source.read("b")


def test_limits_from_the_command_line() -> None:
    assert Limits().changed(["ratio=7", "members=3"]) == Limits(ratio=7, members=3)
    for wrong in (
        "ratio",
        "ratio=",
        "ratio=-1",
        "ratio=1.5",
        "cats=1",
        "ratio=0",
        "ratio=" + "9" * 99,
    ):
        with pytest.raises(UserError, match="expected NAME=N"):
            Limits().changed([wrong])


def tiff(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".tif", pixels)[1].tobytes()


@pytest.mark.parametrize("encode", [png, jpg, bmp, tiff])
@pytest.mark.parametrize("colour", [True, False])
def test_declared_size_is_the_decoded_size(encode, colour: bool) -> None:
    pixels = picture(1, height=37, width=53) if colour else picture(1, 37, 53)[..., 0]
    content = encode(pixels)
    assert check_declared_size(content) == (53, 37)
    assert decode(content, cv2.IMREAD_COLOR).shape == (37, 53, 3)


def huge_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def huge_jpg() -> bytes:
    content = bytearray(jpg(picture(1)))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


def huge_bmp() -> bytes:
    content = bytearray(bmp(picture(1)))
    content[18:26] = struct.pack("<ii", 100_000, -100_000)
    return bytes(content)


def huge_tiff() -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, 100_000) for tag in (256, 257))
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("content", [huge_png(100_000), huge_jpg(), huge_bmp(), huge_tiff()])
def test_images_that_declare_too_much_are_not_decoded(content: bytes) -> None:
    with pytest.raises(ImageError, match="over the limit of 64 megapixels"):
        decode(content, cv2.IMREAD_COLOR)


def test_the_pixel_limit_can_be_changed() -> None:
    content = png(picture(1, 100, 101))
    with pytest.raises(ImageError, match=r"101 x 100 px, over the limit of 0\.01 megapixels"):
        check_declared_size(content, max_megapixels=0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PNG"),
        (b"GIF89a", "not a PNG"),
        (b"#?RADIANCE\n", "not a PNG"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"\xff\xd8\xff\xe0", "cut short"),
        (b"\xff\xd8" + b"\xff" * 9, "cut short"),
        (b"\xff\xd8\xff\xd9", "without frame header"),
        (b"\xff\xd8junk", "without frame header"),
        (b"BM", "cut short"),
        (b"II*\0\xff\xff\xff\xff", "cut short"),
        (b"II*\0" + struct.pack("<IH", 8, 0), "declares 0 x 0 px"),
        (huge_png(0), "declares 0 x 0 px"),
    ],
)
def test_headers_that_say_nothing(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_declared_size(content)


def test_prepare_reports_a_hostile_archive_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = "Dataset_BUSI_with_GT/benign"
    write_zip(tmp_path / "slip.zip", busi_files() | {"../../x.png": b""})
    write_zip(tmp_path / "pixels.zip", busi_files() | {f"{top}/benign (1).png": huge_png(100_000)})
    base = ["busi", "--root", str(tmp_path / "data"), "--source"]
    for name, message in (("slip", "leads outside it"), ("pixels", "limit of 64 megapixels")):
        assert prepare([*base, str(tmp_path / f"{name}.zip")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "x.png").exists()
    assert not (tmp_path / "data" / "busi").exists()


VALID = [
    zip_bytes({"a/one.png": b"1" * 40, "b.png": png(picture(1, 4, 4))}),
    zip_bytes({"a/one.png": b"1" * 40, "b.png": b""}, zipfile.ZIP_STORED),
]


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.sampled_from(VALID)), st.data())
def test_fuzz_archive_reader(tmp_path_factory, content: bytes, data: st.DataObject) -> None:
    """Random bytes, and good archives with bytes replaced, inserted and cut off."""
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "fuzz.zip"
    path.write_bytes(mutated)
    try:
        source = open_source(path)
    except ArchiveError:
        return
    for member in members([source]):
        with contextlib.suppress(ArchiveError):
            assert len(member.read()) < 10_000


IMAGES = [encode(picture(1, 5, 7)) for encode in (png, jpg, bmp, tiff)]


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.sampled_from(IMAGES)), st.data())
def test_fuzz_image_reader(content: bytes, data: st.DataObject) -> None:
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(mutated), 60)))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        width, height = check_declared_size(bytes(mutated), max_megapixels=1)
        pixels = decode(bytes(mutated), cv2.IMREAD_UNCHANGED, max_megapixels=1)
    except ImageError:
        return
    assert {width, height} == set(pixels.shape[:2])
