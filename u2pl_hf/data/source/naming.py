"""What a user names of a data set - subset, columns, ids - and what can be wrong with it, each told in one line."""

from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import datasets

from u2pl_hf.errors import InputError


def check_distinct(columns: dict[str, str]) -> None:
    """Refuse one column for two roles, such as ids that are the images."""
    for column in columns.values():
        twice = [f"--{other}_column" for other in columns if columns[other] == column]
        if len(twice) > 1:
            raise InputError(f"{' and '.join(twice)} both name '{column}': each needs a column of its own")


def check_plain(path: str, subset: str, label_column: str | None, option: str) -> None:
    """What a plain folder of photographs has not: labels, and subsets."""
    if label_column:
        raise InputError(
            f"data set {path} is a folder of plain images without labels; make a data set of images and masks with "
            "training_scripts/prepare_dataset.py folder, or pass the folder as --unlabelled_dataset"
        )
    check_subset(path, subset, ["train"], option)


def check_subset(path: str, subset: str, every: Iterable[str], option: str) -> None:
    """Refuse a subset that a data set has not; `option` is what the user passes for it."""
    names = list(map(str, every))
    if subset in names:
        return
    other = next((name for name in names if name != "train"), "train")
    why = ""
    if names == ["train"]:
        why = ", which are the training images; prepare_dataset.py folder --validation 0.2 keeps a share of them apart"
    raise InputError(
        f"data set {path} has no subset '{subset}'; it has {', '.join(names) or 'none'}: pass {option} {other}{why}"
    )


def check_ids(ids: list, dataset: str, column: str) -> None:
    """Refuse ids that are missing, not unique, or neither text nor integers."""
    wrong = next((number for number, name in enumerate(ids) if type(name) not in (str, int)), None)
    if wrong is not None:
        kind = "nothing" if ids[wrong] is None else type(ids[wrong]).__name__
        raise InputError(
            f"column '{column}' of data set {dataset} holds {kind} in row {wrong}, where ids are text or integers; "
            "pass --id_column NAME"
        )
    if len(set(ids)) < len(ids):
        seen: set = set()
        twice = next(i for i in ids if i in seen or seen.add(i))
        raise InputError(f"data set {dataset} has the id '{twice}' more than once; ids must be unique")


@contextmanager
def readable(path: str):
    """Turns whatever `datasets` raises about a data set into one line."""
    try:
        yield
    except Exception as error:  # datasets lets errors of many libraries through
        reason = " ".join(str(error).split())[:300]
        local = Path(path).exists()
        where = "cannot be read as a data set" if local else "is neither a local folder nor a data set on the Hub"
        raise InputError(f"data set {path} {where}: {reason}") from error


@contextmanager
def quiet():
    """No progress bars of `datasets`."""
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
