"""What changes during training, as pure functions of progress or of the step number."""

import math


def poly_factor(progress: float, power: float = 0.9) -> float:
    """Factor on the base learning rate, (1 - progress)^power, for progress in [0, 1] (paper, section 4.1)."""
    return (1.0 - progress) ** power


def unreliable_share(progress: float, initial: float = 0.20) -> float:
    """alpha_t = alpha_0 (1 - progress): the share of pixels taken as unreliable (paper, equation 7)."""
    return initial * (1.0 - progress)


def ema_decay(steps_since_warmup: int, maximum: float = 0.99) -> float:
    """Decay of the teacher's moving average, min(1 - 1 / (k + 1), maximum).

    The first semi-supervised step (k = 0) copies the student, later ones average over ever more steps.
    """
    return min(1.0 - 1.0 / (steps_since_warmup + 1), maximum)


def early_ema_decay(step: int, maximum: float = 0.99) -> float:
    """Decay of a moving average from step 0 on, min((1 + k) / (10 + k), maximum).

    Its memory is a tenth of the steps so far: it never lags far behind a student that still learns quickly.
    """
    return min((1.0 + step) / (10.0 + step), maximum)


def rampup(steps: int, length: float) -> float:
    """exp(-5 (1 - min(1, k / n))^2), which rises to 1 within n = `length` steps; 1 where there are none."""
    return math.exp(-5.0 * (1.0 - min(1.0, steps / length)) ** 2) if length > 0 else 1.0
