"""Zip archives and folders as one kind of source, safe to read whatever their origin.

Nothing is ever extracted under a name that an archive gives: members are listed, checked and read
one at a time into memory. An archive with any suspicious member is refused as a whole, with the member's
name. Tar archives are not accepted.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from datasets.case_names import nfc
from datasets.image_files.decoding import MAX_MEGAPIXELS
from utils.errors import UserError

_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_MIB = 1 << 20
_UTF8_FLAG = 0x800
RATIO_FREE_BYTES = 16 * _MIB
"""Up to this size the compression ratio is not checked: empty masks compress very well."""


class ArchiveError(UserError):
    """An archive or folder that is not read, the member concerned, and why."""


@dataclass(frozen=True)
class Limits:
    """Limits on what a source may take; `--limit NAME=VALUE` changes one of them."""

    members: int = 200_000
    """Files in one archive or folder."""
    member_megabytes: int = 512
    """Unpacked size of one file, MiB."""
    total_gigabytes: int = 64
    """Unpacked size of one archive, GiB."""
    ratio: int = 200
    """Unpacked size over packed size, of a file and of a whole archive, above 16 MiB."""
    megapixels: int = MAX_MEGAPIXELS
    """Size that an image may declare, millions of pixels."""

    def changed(self, settings: Sequence[str]) -> Limits:
        """Limits with `NAME=VALUE` settings applied; UserError for an unknown or unfit one."""
        changes = {}
        names = [field.name for field in fields(self)]
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in names or not value.isdecimal() or not 0 < int(value[:18]) < 10**12:
                raise UserError(
                    f"--limit {setting}: expected NAME=N, N a whole number above 0, "
                    f"NAME one of {', '.join(names)}"
                )
            changes[name] = int(value)
        return replace(self, **changes)


DEFAULT_LIMITS = Limits()


class Source(Protocol):
    """Where files are read from."""

    @property
    def title(self) -> str:
        """Name for messages."""

    def paths(self) -> list[str]:
        """Relative POSIX paths of all files, sorted."""

    def read(self, path: str) -> bytes:
        """Whole content of one file; ArchiveError if it cannot be read."""

    def size(self, path: str) -> int:
        """Bytes in one file, unpacked."""

    def identity(self, path: str) -> str:
        """A text that changes when the content does, found without reading the content."""

    def place(self, path: str) -> str:
        """Where one file lies, the same by whatever path the source was opened."""


@dataclass(frozen=True)
class Member:
    """One file of a source."""

    source: Source
    path: str

    def __str__(self) -> str:
        return f"{self.source.title}: {self.path}"

    @property
    def stem(self) -> str:
        """Name without folder and extension, in Unicode NFC."""
        return nfc(PurePosixPath(self.path).stem)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    def read(self) -> bytes:
        return self.source.read(self.path)

    def size(self) -> int:
        return self.source.size(self.path)

    def identity(self) -> str:
        return f"{self.path} {self.source.identity(self.path)}"

    def place(self) -> str:
        return self.source.place(self.path)


def open_source(path: Path, limits: Limits = DEFAULT_LIMITS, follow_links: bool = False) -> Source:
    """A folder or zip archive; ArchiveError where there is none or it is refused."""
    if path.is_dir():
        return FolderSource(path, limits, follow_links)
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file or folder")
    return ZipSource(path, limits)


def members(sources: Sequence[Source]) -> Iterator[Member]:
    """All files of all sources, in order."""
    for source in sources:
        for path in source.paths():
            yield Member(source, path)


class ZipSource:
    """A zip archive, whose directory is checked on opening. Several threads may read it.

    Refused: absolute paths, `..`, links, encryption, repeated names, compression other than
    deflate, and sizes or compression ratios over the limits. A member's declared size is never
    exceeded in reading, and its checksum is verified.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.title = path.name
        self._path = path.resolve()
        self._limits = limits
        try:
            self._zip = zipfile.ZipFile(path)
            self._members = self._checked(path.stat().st_size)
        except _DAMAGE as error:
            raise ArchiveError(_not_a_zip(path, error)) from None

    def _checked(self, packed: int) -> dict[str, zipfile.ZipInfo]:
        """The files in it by name; ArchiveError where it is refused."""
        infos = self._zip.infolist()
        limits = self._limits
        if len(infos) > limits.members:
            raise self._refused(f"{len(infos):,} members", "members")
        files: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = _member_name(info)
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or ":" in name[:2] or "\0" in name:
                raise ArchiveError(f"{self.title}: refused, the path {name!r} leads outside it")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ArchiveError(f"{self.title}: refused, {name!r} is a symbolic link")
            if name.endswith("/") or _ignored(parts):
                continue
            if name in files:
                raise ArchiveError(f"{self.title}: refused, {name!r} is in it twice")
            self._check_file(name, info)
            files[name] = info
        total = sum(info.file_size for info in files.values())
        if total > limits.total_gigabytes * 1024 * _MIB:
            raise self._refused(f"it unpacks to {total:,} bytes", "total_gigabytes")
        if total > max(RATIO_FREE_BYTES, limits.ratio * packed):
            raise self._refused(f"it unpacks from {packed:,} to {total:,} bytes", "ratio")
        return files

    def _check_file(self, name: str, info: zipfile.ZipInfo) -> None:
        """ArchiveError where a file cannot be read or is over a limit."""
        if info.flag_bits & 0x1:
            raise ArchiveError(
                f"{self.title}: {name!r} is encrypted; unpack it yourself and give the folder"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(
                f"{self.title}: {name!r} is compressed by method {info.compress_type}, only "
                "stored and deflated are read; unpack it yourself and give the folder"
            )
        size = info.file_size
        if size > self._limits.member_megabytes * _MIB:
            raise self._refused(f"{name!r} unpacks to {size:,} bytes", "member_megabytes")
        if size > max(RATIO_FREE_BYTES, self._limits.ratio * info.compress_size):
            raise self._refused(
                f"{name!r} unpacks from {info.compress_size:,} to {size:,} bytes", "ratio"
            )

    def _refused(self, what: str, limit: str) -> ArchiveError:
        return ArchiveError(
            f"{self.title}: refused, {what}, over the limit {limit}="
            f"{getattr(self._limits, limit)}; if you trust it, raise it with --limit {limit}=N"
        )

    def paths(self) -> list[str]:
        return sorted(self._members)

    def read(self, path: str) -> bytes:
        info = self._members[path]
        try:
            with self._zip.open(info) as file:
                # without a size, `read` would inflate all there is before it cuts
                content = file.read(info.file_size)
        except _DAMAGE as error:
            raise ArchiveError(f"{self.title}: {path}: damaged or cut short ({error})") from None
        if len(content) < info.file_size:
            raise ArchiveError(f"{self.title}: {path}: holds less than it declares")
        return content

    def size(self, path: str) -> int:
        return self._members[path].file_size

    def identity(self, path: str) -> str:
        info = self._members[path]
        return f"{info.file_size} {info.CRC:08x}"

    def place(self, path: str) -> str:
        return f"{self._path}: {path}"


def _member_name(info: zipfile.ZipInfo) -> str:
    """The whole path of a member, by `/`; `filename` ends at the first NUL.

    macOS and Info-ZIP write UTF-8 without the flag that says so, which `zipfile` reads as code page 437.
    """
    name = info.orig_filename
    if not info.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    NotImplementedError,
)
"""What `zipfile` raises on damaged archives."""


def _not_a_zip(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return f"{path}: tar archives are not accepted; unpack it yourself and give the folder"
    return f"{path}: not a whole zip archive ({error})"


class FolderSource:
    """A folder and all below it. Links are refused unless `follow_links`."""

    def __init__(self, folder: Path, limits: Limits, follow_links: bool = False) -> None:
        self.title = str(folder)
        self._folder = folder
        self._limits = limits
        self._paths = sorted(self._walk(follow_links))

    def _walk(self, follow_links: bool) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise ArchiveError(f"{error.filename}: cannot be read ({error.strerror})") from error

        count = 0
        for top, folders, files in os.walk(self._folder, onerror=refuse, followlinks=follow_links):
            below = Path(top).relative_to(self._folder)
            folders[:] = sorted(name for name in folders if not _ignored((name,)))
            files = [name for name in files if not _ignored((name,))]
            for name in folders + files:
                path = Path(top, name)
                if not path.is_symlink():
                    continue
                if not follow_links:
                    raise ArchiveError(
                        f"{path} is a symbolic link; if you trust where it leads, use --follow-links"
                    )
                if not path.exists():
                    raise ArchiveError(
                        f"{path} is a link to {path.readlink()}, which is not here: fetch it, or delete the link"
                    )
            for name in files:
                if not Path(top, name).is_file():
                    continue
                count += 1
                if count > self._limits.members:
                    raise ArchiveError(
                        f"{self._folder}: more than {self._limits.members:,} files; give the data "
                        "set's own folder, or raise the limit with --limit members=N"
                    )
                yield (below / name).as_posix()

    def paths(self) -> list[str]:
        return self._paths

    def read(self, path: str) -> bytes:
        limit = self._limits.member_megabytes * _MIB
        try:
            with (self._folder / path).open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise ArchiveError(f"{self.title}: {path}: {error.strerror}") from None
        if len(content) > limit:
            raise ArchiveError(
                f"{self.title}: {path} is larger than the limit member_megabytes="
                f"{self._limits.member_megabytes}; raise it with --limit member_megabytes=N"
            )
        return content

    def size(self, path: str) -> int:
        return (self._folder / path).stat().st_size

    def identity(self, path: str) -> str:
        info = (self._folder / path).stat()
        return f"{info.st_size} {info.st_mtime_ns} {self.place(path)}"

    def place(self, path: str) -> str:
        return str((self._folder / path).resolve())


def _ignored(parts: Sequence[str]) -> bool:
    """Hidden files, and what macOS and Windows leave behind."""
    return any(part in _IGNORED or part.startswith(".") for part in parts)
