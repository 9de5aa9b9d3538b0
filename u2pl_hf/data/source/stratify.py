"""Drawing a few images so that they show the classes in about the proportions of all of them."""

import numpy as np


def stratified_draw(presence: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `number` images, by iterative stratification (Sechidis et al., 2011) into drawn and left-out ones.

    Each side wants its share of every class. The class with the fewest images not yet placed comes first, for it has
    the least choice, and each of its images goes to the side that wants more of that class. Two rules are added: the
    sides have exact sizes, and all classes that are wanted in half a drawn image or more are drawn at least once;
    where these are more than `number`, the `number` most frequent of them.

    Args:
        presence: bool (N, C), which class occurs in which image.
        number: 1 .. N.
        rng: draws among equals.
    """
    total = len(presence)
    remaining = presence.sum(0)
    room = np.array([total - number, number])
    wanted = np.outer(room, remaining) / total
    frequency_rank = np.argsort(np.argsort(-remaining, kind="stable"))
    due = (wanted[1] >= 0.5) & (frequency_rank < number)
    side = np.full(total, -1)
    while (side < 0).any():
        rows, wish = np.flatnonzero(side < 0), room
        if remaining.any():
            rarest = np.argmin(np.where(remaining > 0, remaining, total + 1))
            rows, wish = rows[presence[rows, rarest]], wanted[:, rarest]
        for row in rng.permutation(rows):
            forced = _forced_side(presence[row], remaining, due, room)
            side[row] = _greater(wish, room, rng) if forced is None else forced
            room[side[row]] -= 1
            wanted[side[row]] -= presence[row]
            remaining = remaining - presence[row]
            if side[row] == 1:
                due = due & ~presence[row]
    return np.flatnonzero(side == 1)


def _forced_side(shown: np.ndarray, remaining: np.ndarray, due: np.ndarray, room: np.ndarray) -> int | None:
    """The side an image has to go to, if any: 1 for drawn, 0 for left out.

    Never more classes are due than images can still be drawn, and each has an image to draw; both stay true.
    """
    if not room.all():
        return int(room[1] > 0)
    if (due & shown & (remaining == 1)).any():
        return 1
    if due.sum() == room[1] and not (due & shown).any():
        return 0
    return None


def _greater(wish: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> int:
    """The side with the greater wish; ties go to the side with more room, then to either."""
    (left, drawn) = zip(wish, room, strict=True)
    return int(drawn > left) if drawn != left else int(rng.integers(2))
