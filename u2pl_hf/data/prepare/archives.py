"""Folders, tar (plain or compressed) and zip archives behind one interface: list the members, read one by its place."""

import contextlib
import functools
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import files_below, write_atomically

logger = logging.getLogger(__name__)

NO_TAR = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
# NotImplementedError is zipfile's, for a version or compression that nobody has.
DAMAGED = (*NO_TAR, zipfile.BadZipFile, OSError, NotImplementedError)
ENCRYPTED = 1
ZIP_START = b"PK\3\4"


@dataclass(frozen=True)
class Member:
    """One file in a folder or an archive. It holds no open file, so any thread can read it.

    Attributes:
        container: the folder or archive.
        name: path inside the container, as stored.
        size: bytes when unpacked.
        stamp: time of the last change of the file (of the archive, for a member of one), in nanoseconds.
        kind: folder; file (bytes from `offset` of the container, as in a plain tar); zip; stream (compressed tar).
    """

    container: str
    name: str
    size: int
    stamp: int
    kind: str
    offset: int = 0

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
            return _zip(self.container).read(self.name)
        if self.kind == "stream":
            with _open_tar(self.container) as archive:
                return archive.extractfile(self.name).read()
        path = Path(self.container, self.name) if self.kind == "folder" else self.container
        with open(path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if self.kind == "file" else -1)

    def __str__(self) -> str:
        return f"{self.container}: {self.name}"


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


@functools.lru_cache(maxsize=8)
def _zip(path: str) -> zipfile.ZipFile:
    # Kept open: reading the table of contents again for each member would take longer than the member.
    return zipfile.ZipFile(path)


def list_members(path: Path) -> list[Member]:
    """The files in a folder or archive, sorted by name. Hidden files are left out.

    Raises:
        InputError: no such file, not an archive, a damaged, encrypted or empty one, or names that lead out of it.
    """
    require(path.exists(), f"{path}: no such file or folder")
    with refusing(DAMAGED, f"{path} is damaged or not complete"):
        found = _list_folder(path) if path.is_dir() else _list_archive(path)
        # In an archive that was added to, a later member replaces an earlier one of its name.
        by_name = {member.name: member for member in found if _is_wanted(path, member)}
    require(by_name or path.is_dir(), f"{path} holds no files: is the download complete?")
    return [by_name[name] for name in sorted(by_name)]


def _is_wanted(path: Path, member: Member) -> bool:
    parts = member.path.parts
    stays = parts and parts[0] != "/" and ".." not in parts
    require(stays, f"{path} holds the name '{member.name}', which leads out of it: not an archive to trust")
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _list_folder(path: Path) -> Iterator[Member]:
    for file in filter(Path.is_file, files_below(path)):
        status, inside = file.stat(), file.relative_to(path).as_posix()
        yield Member(str(path.resolve()), inside, status.st_size, status.st_mtime_ns, "folder")


def _list_archive(path: Path) -> Iterator[Member]:
    archive = Member(str(path.resolve()), "", 0, path.stat().st_mtime_ns, "zip")
    for mode, kind in (("r:", "file"), ("r:*", "stream")):
        with contextlib.suppress(*NO_TAR):
            tarfile.open(path, mode).close()
            if kind == "stream":
                logger.info("%s is compressed: finding out what is in it takes a while", path)
            return _list_tar(path, replace(archive, kind=kind))
    if zipfile.is_zipfile(path):
        return _list_zip(path, archive)
    raise InputError(f"{path} is no archive: looked for tar, tar.gz, tar.bz2, tar.xz, zip; is the download complete?")


def _list_tar(path: Path, template: Member) -> Iterator[Member]:
    links = []
    with _open_tar(path) as archive:
        for info in archive:
            require(not info.issparse(), f"{path} holds {info.name} as a sparse file: unpack it and pass --root")
            if info.isreg():
                yield replace(template, name=info.name, size=info.size, offset=info.offset_data)
            elif info.islnk() or info.issym():
                links.append(info.name)
    if links:
        told = "%s holds %d links, such as %s, which are left out; tar -h packs files"
        logger.warning(told, path, len(links), links[0])


def _list_zip(path: Path, template: Member) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        first = min((info.header_offset for info in archive.infolist()), default=0)
        is_one = not first or file.read(4) != ZIP_START
        require(is_one, f"{path} is damaged, or several zip files end to end: unzip it and pass --root")
        for info in archive.infolist():
            require(not info.flag_bits & ENCRYPTED, f"{path} is encrypted: unpack it and pass --root")
            if not info.is_dir():
                yield replace(template, name=info.filename, size=info.file_size)


def unpack_streams(members: Iterable[Member], folder: Path) -> dict[Member, Member]:
    """Make members of compressed tars readable in any order: each archive is read once, front to back.

    They are copied into a plain tar per archive, which is read in place, so no name in an archive can do harm. What an
    earlier call has finished is used again.

    Returns:
        for each member of a compressed tar, where its bytes are now.
    """
    wanted: dict[str, dict[str, Member]] = {}
    for member in members:
        if member.kind == "stream":
            wanted.setdefault(member.container, {})[member.name] = member
    unpacked = {}
    for number, (container, group) in enumerate(sorted(wanted.items())):
        target = folder / f"unpacked-{number}.tar"
        if not target.is_file():
            logger.info("unpacking %s files of %s", len(group), container)
            _unpack(container, group.keys(), target)
        unpacked |= {group[member.name]: member for member in list_members(target)}
    return unpacked


def _unpack(container: str, names: Iterable[str], target: Path) -> None:
    def copy(temporary: Path) -> None:
        with tarfile.open(temporary, "w") as out, _open_tar(container) as archive:
            for info in archive:
                if info.name in names and info.isreg():
                    out.addfile(info, archive.extractfile(info))

    with refusing(NO_TAR, f"{container} is damaged or not complete"):
        write_atomically(target, copy)
