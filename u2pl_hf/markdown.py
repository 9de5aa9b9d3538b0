"""Words of others in Markdown: names of classes, data sets and files may hold what means something there."""

import re
from collections.abc import Callable, Sequence

SPECIAL = re.compile(r"([\\`|*\[\]])")


def one_line(text: str) -> str:
    """Without line breaks, which end a line of a table, a heading or a list."""
    return " ".join(text.splitlines())


def escaped(value):
    """Text, or all text in a value of JSON, such that Markdown shows it as it is, in tables as well."""
    if isinstance(value, dict):
        return {escaped(key): escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escaped(part) for part in value]
    if not isinstance(value, str):
        return value
    return SPECIAL.sub(r"\\\1", one_line(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence], shown: Callable[[str], str] = escaped) -> str:
    """A table of cells as they are to be shown; `shown` is str for cells that are Markdown already."""
    lines = [[shown(str(cell)) for cell in cells] for cells in (head, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], ["---"] * len(head), *lines[1:]))
