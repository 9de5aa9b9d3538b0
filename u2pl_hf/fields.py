"""Settings as typed fields: default, help and bounds stand in one place."""

import dataclasses


def setting(
    default,
    help: str,
    *,
    choices: tuple | None = None,
    counts: str | None = None,
    displaces: dict[str, tuple[str, ...]] | None = None,
    decides: bool = True,
    **bounds,
):
    """A field of a settings dataclass.

    Args:
        help: a line for --help.
        choices: the values it may have.
        counts: the field of steps that this one gives in epochs.
        displaces: for a value that is told on the command line, fields of a recipe that it cannot stand beside.
        decides: whether the result depends on it; a run is resumed only where those that do are equal.
        bounds: of a number: at_least (0 where nothing is said), at_most, above, below.
    """
    metadata = {"help": help, "bounds": bounds, "counts": counts, "displaces": displaces or {}, "decides": decides}
    metadata |= {"choices": choices} if choices else {}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def bookkeeping(default, help: str, **options):
    """A setting that no result depends on."""
    return setting(default, help, decides=False, **options)
