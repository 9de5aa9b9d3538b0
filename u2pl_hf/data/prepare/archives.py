"""Folders, tar (plain or compressed) and zip archives behind one interface: list the members, read one by its place."""

import contextlib
import functools
import io
import itertools
import logging
import lzma
import operator
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from u2pl_hf.errors import refusing, require
from u2pl_hf.files import files_below, write_atomically

logger = logging.getLogger(__name__)

NO_TAR = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
# NotImplementedError is zipfile's, for a version or compression that nobody has.
DAMAGED = (*NO_TAR, zipfile.BadZipFile, OSError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One file in a folder or an archive. It holds no open file, so any thread can read it.

    Attributes:
        container: the folder or archive.
        stamp: time of the last change of the file (of the archive, for a member of one), in nanoseconds.
        kind: folder; file (bytes from `offset` of the container, as in a plain tar); zip; stream (compressed tar).
        name: path inside the container, as stored.
        size: bytes when unpacked.
        inner: the zip in the container that holds it, where it is not the container itself.
    """

    container: str
    stamp: int
    kind: str
    name: str
    size: int
    offset: int = 0
    inner: str = ""

    @property
    def path(self) -> PurePosixPath:
        """The path inside the container."""
        return PurePosixPath(self.name)

    @property
    def suffix(self) -> str:
        """Suffix in small letters, with its dot."""
        return self.path.suffix.lower()

    def read(self) -> bytes:
        """All bytes. A member of a compressed tar is slow: everything before it is unpacked on the way."""
        if self.kind == "zip":
            return _zip(self.container, self.inner).read(self.name)
        if self.kind == "stream":
            with _open_tar(self.container) as archive:
                return archive.extractfile(self.name).read()
        path = Path(self.container, self.name) if self.kind == "folder" else self.container
        with open(path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if self.kind == "file" else -1)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.container, self.inner, self.name)))


def content_of(member: Member) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: they cannot be read.
    """
    with refusing(DAMAGED, f"{member} cannot be read"):
        return member.read()


class _Header(tarfile.TarInfo):
    """A tar's header that is not taken for the archive's end where it is damaged or missing."""

    is_at_end = False  # the block before was one of zeros

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "tarfile.TarInfo":
        """As in `tarfile`, which stops in silence at all that is no header.

        Raises:
            tarfile.ReadError: the block is neither a header nor zeros, or the file stops before a block of zeros.
        """
        was_at_end, cls.is_at_end = cls.is_at_end, False
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            cls.is_at_end = not any(buf) and (was_at_end or bool(buf))
            if not cls.is_at_end:
                raise tarfile.ReadError(f"{error} where a file or the archive's end should be") from error
            raise


def _open_tar(path: str | os.PathLike) -> tarfile.TarFile:
    """A tar, and those that were put behind it: zeros between them are passed over."""
    _Header.is_at_end = False
    return tarfile.open(path, tarinfo=_Header, ignore_zeros=True)


class _Part(io.RawIOBase):
    """The bytes from `start` of a file, `size` of them, as a file to read."""

    def __init__(self, path: str, start: int, size: int):
        self._file, self._start, self._size, self._at = open(path, "rb"), start, size, 0  # noqa: SIM115

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count


# Kept open: reading the table of contents again for each member would take longer than the member.
@functools.lru_cache(maxsize=8)
def _zip(path: str, inner: str = "") -> zipfile.ZipFile:
    """A zip, or the zip `inner` in it: read where it is, or, where that was compressed again, from a temporary copy."""
    archive = zipfile.ZipFile(path)
    if not inner:
        return archive
    info = archive.getinfo(inner)
    if info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            lengths = struct.unpack("<26x2H", file.read(30))  # of the name and of what follows it
        start = info.header_offset + 30 + sum(lengths)
        return zipfile.ZipFile(io.BufferedReader(_Part(path, start, info.file_size)))
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with archive.open(info) as file:
        shutil.copyfileobj(file, copy)
    return zipfile.ZipFile(copy)


def list_members(path: Path, inner: str = "") -> list[Member]:
    """The files in a folder or archive, sorted by name. Hidden files are left out.

    Args:
        inner: of a zip, the zip in it of which the files are meant.

    Raises:
        InputError: no such file, not an archive, a damaged, encrypted or empty one, or names that lead out of it.
    """
    require(path.exists(), f"{path}: no such file or folder")
    listed = functools.partial(_list_zip, inner=inner) if inner else _list_folder if path.is_dir() else _list_archive
    with refusing(DAMAGED, f"{path}{inner and f': {inner}'} is damaged or not complete"):
        # In an archive that was added to, a later member replaces an earlier one of its name.
        by_name = {member.name: member for member in listed(path)}
    hidden = set()
    for name, member in by_name.items():
        stays = member.path.parts and member.path.parts[0] != "/" and ".." not in member.path.parts
        require(stays, f"{path} holds the name '{name}', which leads out of it: not an archive to trust")
        if any(part.startswith(".") or part == "__MACOSX" for part in member.path.parts):
            hidden.add(name)
    require(by_name.keys() - hidden or path.is_dir(), f"{path} holds no files: is the download complete?")
    return [by_name[name] for name in sorted(by_name.keys() - hidden)]


def list_nested(archive: Member) -> list[Member]:
    """The files in an archive that lies in a folder or a zip, see `list_members`; it is not unpacked.

    Raises:
        InputError: as `list_members`; or it lies in a tar.
    """
    if archive.kind == "folder":
        return list_members(Path(archive.container, archive.name))
    require(archive.kind == "zip", f"{archive} is an archive in a tar: unpack the tar and pass --root")
    return list_members(Path(archive.container), archive.name)


def _list_folder(path: Path) -> Iterator[Member]:
    for file in filter(Path.is_file, files_below(path)):
        status, inside = file.stat(), file.relative_to(path).as_posix()
        yield Member(str(path.resolve()), status.st_mtime_ns, "folder", inside, status.st_size)


def _list_archive(path: Path) -> Iterator[Member]:
    for mode, kind in (("r:", "file"), ("r:*", "stream")):
        with contextlib.suppress(*NO_TAR):
            tarfile.open(path, mode).close()
            if kind == "stream":
                logger.info("%s is compressed: finding out what is in it takes a while", path)
            return _list_tar(path, kind)
    is_zip = zipfile.is_zipfile(path)
    require(is_zip, f"{path} is no archive: looked for tar, tar.gz, tar.bz2, tar.xz, zip; is the download complete?")
    return _list_zip(path)


def _list_tar(path: Path, kind: str) -> Iterator[Member]:
    place, links = (str(path.resolve()), path.stat().st_mtime_ns, kind), []
    with _open_tar(path) as archive:
        for info in archive:
            require(not info.issparse(), f"{path} holds {info.name} as a sparse file: unpack it and pass --root")
            if info.isreg():
                yield Member(*place, info.name, info.size, info.offset_data)
            elif info.islnk() or info.issym():
                links.append(info.name)
    if links:
        told = "%s holds %d links, such as %s, which are left out; tar -h packs files"
        logger.warning(told, path, len(links), links[0])


def _list_zip(path: Path, inner: str = "") -> Iterator[Member]:
    place = (str(path.resolve()), path.stat().st_mtime_ns, "zip")
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        first = min((info.header_offset for info in archive.infolist()), default=0)
        is_one = not first or file.read(4) != b"PK\3\4"  # else another zip begins there
        require(is_one, f"{path} is damaged, or several zip files end to end: unzip it and pass --root")
        for info in (_zip(place[0], inner) if inner else archive).infolist():
            require(not info.flag_bits & 1, f"{path} is encrypted: unpack it and pass --root")
            if not info.is_dir():
                yield Member(*place, info.filename, info.file_size, inner=inner)


def unpack_streams(members: Iterable[Member], folder: Path) -> dict[Member, Member]:
    """Make members of compressed tars readable in any order: each archive is read once, front to back.

    They are copied into a plain tar per archive, which is read in place, so no name in an archive can do harm. What an
    earlier call has finished is used again.

    Returns:
        for each member of a compressed tar, where its bytes are now.
    """
    container = operator.attrgetter("container")
    streams = sorted((member for member in members if member.kind == "stream"), key=container)
    unpacked = {}
    for number, (path, group) in enumerate(itertools.groupby(streams, container)):
        wanted, target = {member.name: member for member in group}, folder / f"unpacked-{number}.tar"
        if not target.is_file():
            logger.info("unpacking %s files of %s", len(wanted), path)
            _unpack(path, wanted.keys(), target)
        unpacked |= {wanted[member.name]: member for member in list_members(target)}
    return unpacked


def _unpack(container: str, names: Iterable[str], target: Path) -> None:
    def copy(temporary: Path) -> None:
        with tarfile.open(temporary, "w") as out, _open_tar(container) as archive:
            for info in archive:
                if info.name in names and info.isreg():
                    out.addfile(info, archive.extractfile(info))

    with refusing(NO_TAR, f"{container} is damaged or not complete"):
        write_atomically(target, copy)
