"""Files of annotation tools, of whatever format -> what they say of images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from u2pl_hf.data.annotations import AnnotationFile
from u2pl_hf.data.annotations.coco_json import CocoFile, read_coco
from u2pl_hf.data.annotations.cvat_xml import read_cvat
from u2pl_hf.data.annotations.label_studio import Task, read_label_studio
from u2pl_hf.data.annotations.labelme_json import LabelmeFile, read_labelme
from u2pl_hf.data.annotations.supervisely import (
    SuperviselyFile,
    SuperviselyMeta,
    read_supervisely,
    read_supervisely_meta,
)
from u2pl_hf.data.prepare.archives import Member, content_of, list_members
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.files import parse_json

FORMATS = ("coco", "cvat", "labelme", "labelstudio", "supervisely")
# What a JSON file must be, and who reads it then.
JSON = {
    "coco": (CocoFile, read_coco),
    "labelme": (LabelmeFile, read_labelme),
    "labelstudio": (list[Task], read_label_studio),
    "supervisely": (SuperviselyFile, read_supervisely),
}
# By which of its fields a JSON object is known.
KNOWN_BY = {"categories": "coco", "shapes": "labelme", "objects": "supervisely"}
# Supervisely's list of classes.
META = "meta.json"
# What lies beside annotations and is none: of this package, and the configuration of a project of Label Studio.
OWN = ("u2pl_export.json", "labeling_config.xml")


def annotation_members(path: Path) -> list[Member]:
    """The files of --annotations: of a folder or an archive all, or the one file.

    Raises:
        InputError: no such file, or no archive.
    """
    if path.suffix.lower() not in (".json", ".xml") or path.is_dir():
        return list_members(path)
    require(path.is_file(), f"--annotations {path}: no such file or folder")
    status = path.stat()
    return [Member(str(path.parent.resolve()), status.st_mtime_ns, "folder", path.name, status.st_size)]


def read_annotations(members: Sequence[Member], kind: str | None = None) -> AnnotationFile:
    """All that files say, together; files of other suffixes are passed over.

    Args:
        kind: one of FORMATS; None: as the first file looks.

    Raises:
        InputError: no file of the format, a damaged one, or one that is something else; names the file and the place.
    """
    files = [m for m in members if m.suffix in (".json", ".xml") and m.path.name not in OWN]
    kind = kind or _guessed(files)
    suffix = ".xml" if kind == "cvat" else ".json"
    used = [member for member in files if member.suffix == suffix and member.path.name != META]
    if kind == "supervisely":  # Beside the annotations it may have folders about images.
        used = [member for member in used if member.path.parent.name == "ann"] or used
    require(used, f"--annotations: no {suffix} file of {kind} is there")
    found = AnnotationFile()
    if kind == "supervisely":
        for member in (m for m in files if m.path.name == META):
            _add(found, read_supervisely_meta(member, parsed(member, SuperviselyMeta)))
    for member in used:
        _add(found, _read(member, kind))
    if kind in ("labelme", "labelstudio"):
        found.names.sort()
    return found


def _read(member: Member, kind: str) -> AnnotationFile:
    if kind == "cvat":
        return read_cvat(member, content_of(member))
    what, read = JSON[kind]
    return read(member, parsed(member, what))


def _add(found: AnnotationFile, more: AnnotationFile) -> None:
    found.names += [name for name in more.names if name not in found.names]
    # Where a format, or a file, names only some of its classes.
    used = dict.fromkeys(region.name for image in more.images for region in image.regions)
    found.names += [name for name in used if name not in found.names]
    found.colours = more.colours | found.colours
    found.images += more.images
    found.left_out += more.left_out
    found.notes += more.notes


def parsed(member: Member, kind):
    """A JSON file of a kind, see `files.misfit`.

    Raises:
        InputError: it is not; names the file and the field.
    """
    try:
        return parse_json(content_of(member).decode("utf-8-sig"), kind)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{member} {error}; --format says what --annotations is, one of {', '.join(FORMATS)}"
        ) from error


def _guessed(files: Sequence[Member]) -> str:
    told = f"pass --format, one of {', '.join(FORMATS)}"
    if any(member.path.name == META for member in files):
        return "supervisely"
    require(files, "--annotations: no .json or .xml file is there; pass what the annotation tool has exported")
    first = files[0]
    if first.suffix == ".xml":
        return "cvat"
    with refusing((ValueError, RecursionError), f"{first} is no JSON"):
        content = json.loads(content_of(first).decode("utf-8-sig"))
    if isinstance(content, list):
        return "labelstudio"
    kind = next((kind for name, kind in KNOWN_BY.items() if isinstance(content, dict) and name in content), None)
    require(kind, f"{first} is of no format that is known here: {told}")
    return kind


class ImageNames:
    """Photographs by the names that tools give them: the end of a path, with or without what a tool puts before it."""

    def __init__(self, paths: dict[str, PurePosixPath], normal: Callable[[str], str]):
        """Args: paths: of each key; normal: makes equal what file systems write in several ways."""
        self._normal, self._by_name = normal, {}
        for key, path in paths.items():
            self._by_name.setdefault(normal(path.name), []).append((key, [normal(part) for part in path.parts]))

    def find(self, name: str) -> list[str]:
        """The keys of the photographs that a name may mean: one if it is clear, none if it is not there."""
        parts = [self._normal(part) for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        last = parts[-1] if parts else ""
        # Label Studio puts eight signs and a dash before the name of an uploaded file.
        found = self._by_name.get(last) or self._by_name.get(last[9:] if last[8:9] == "-" else "", [])
        shared = {key: _shared_end(own[:-1], parts[:-1]) for key, own in found}
        return [key for key, count in shared.items() if count == max(shared.values())]


def _shared_end(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
