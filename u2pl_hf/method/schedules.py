"""What changes during training, as pure functions of progress or of the step number."""


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
    """Decay of a moving average that begins with training itself, min((1 + k) / (10 + k), maximum), k = `step`.

    It remembers about the last tenth of the steps so far: the beginnings of a student that learns fast do not last.
    """
    return min((1.0 + step) / (10.0 + step), maximum)
