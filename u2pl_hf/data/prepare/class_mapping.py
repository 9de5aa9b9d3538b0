"""Classes renamed, merged and left out while a data set is prepared."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.source.class_list import IGNORED_NAMES, ClassList
from u2pl_hf.errors import require


@dataclass(frozen=True)
class ClassMapping:
    """What becomes of classes.

    Attributes:
        classes: that are left, with the colours of those that they come from.
        ids: of each class that was, the new id or 255.
    """

    classes: ClassList
    ids: tuple[int, ...]

    @property
    def table(self) -> list[int]:
        """The new value of each of 0..255."""
        return [*self.ids, *[IGNORE] * (IGNORE + 1 - len(self.ids))]


def map_classes(
    classes: ClassList, renames: Sequence[str] = (), keep: Sequence[str] | None = None, others: str | None = None
) -> tuple[ClassMapping, list[str]]:
    """The mapping, and notes of what it does.

    Args:
        renames: OLD=NEW, all at once; several OLD with one NEW are merged, and ignore or void leaves a class out.
        keep: of the names after that, those to keep; the others are ignored, or become `others`.

    Raises:
        InputError: a name that is no class, with the nearest; a class mapped twice; fewer than two classes left.
    """
    new = {name: name for name in classes.names}
    pairs = [_split(text, classes.names) for text in renames]
    _require_known([old for old, _ in pairs], classes.names, "--map")
    twice = [old for n, (old, _) in enumerate(pairs) if old in dict(pairs[:n])]
    require(not twice, f"--map names {''.join(twice[:1])} twice: a class becomes one")
    new |= dict(pairs)
    require(others is None or keep, "--others says what becomes of classes that --keep does not name: pass --keep")
    if keep:
        _require_known(keep, list(dict.fromkeys(new.values())), "--keep")
        new = {old: name if name in keep else others or IGNORED_NAMES[0] for old, name in new.items()}
    names = list(dict.fromkeys(name for name in new.values() if name.lower() not in IGNORED_NAMES))
    told = f"{', '.join(names) or 'no class'} is all that --map and --keep leave of {len(classes.names)} classes"
    require(len(names) > 1, f"{told}: two or more are needed; --others background makes one of the rest")
    ids = tuple(names.index(name) if name in names else IGNORE for name in new.values())
    colours = None
    if classes.palette:
        shown = dict(zip(classes.names, map(tuple, classes.palette), strict=True))
        # A class that keeps its name keeps its colour; else it has that of the first which it comes from.
        first = {new[old]: shown[old] for old in reversed(classes.names)}
        colours = tuple(shown[name] if new.get(name) == name else first[name] for name in names)
    return ClassMapping(ClassList(tuple(names), colours), ids), _notes(new, names)


def _split(text: str, names: Sequence[str]) -> tuple[str, str]:
    """OLD and NEW of OLD=NEW; either may hold a = where OLD is a class."""
    places = [place for place, sign in enumerate(text) if sign == "="]
    splits = [(text[:place].strip(), text[place + 1 :].strip()) for place in places]
    require(splits, f"--map {text}: pass OLD=NEW, such as lane=road, or dog=ignore")
    old, new = next((split for split in splits if split[0] in names), splits[0])
    require(new, f"--map {text}: the new name is empty; {old}=ignore leaves a class out")
    return old, new


def _require_known(asked: Sequence[str], names: Sequence[str], option: str) -> None:
    unknown = [name for name in asked if name not in names]
    near = {name: difflib.get_close_matches(name, names, n=2, cutoff=0.5) for name in unknown}
    told = ", ".join(f"'{name}'" + f" (near: {', '.join(near[name])})" * bool(near[name]) for name in near)
    some = f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
    require(not unknown, f"{option} names {told}, and no class is called so; there are {some}")


def _notes(new: dict[str, str], names: list[str]) -> list[str]:
    merged = {name: [old for old, now in new.items() if now == name] for name in names}
    told = [f"{name} ({', '.join(olds)})" for name, olds in merged.items() if olds != [name]]
    ignored = [old for old, now in new.items() if now not in names]
    notes = [f"{len(new)} classes became {len(names)}" + f", {', '.join(told)}" * bool(told)]
    return notes + [f"classes that are ignored: {', '.join(ignored)}"] * bool(ignored)
