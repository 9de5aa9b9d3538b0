import json
import types

import pytest
import torch

from u2pl_hf.errors import TrainingError
from u2pl_hf.training.run.endings import SKIPS_IN_A_ROW, FiniteLosses


def make(tmp_path, scaler=None) -> FiniteLosses:
    accelerator = types.SimpleNamespace(
        scaler=scaler, num_processes=1, process_index=0, is_main_process=True, reduce=lambda finite, reduction: finite
    )
    return FiniteLosses(accelerator, tmp_path / "not_finite.json")


def note(losses: FiniteLosses, step: int, value: float) -> None:
    losses.note(step, {"loss": torch.tensor(value), "loss_supervised": torch.tensor(0.5)}, [f"image {step}"])


def test_first_bad_step_is_named_with_losses_and_images(tmp_path):
    losses = make(tmp_path)
    for step, value in ((1, 0.5), (2, float("inf")), (3, float("nan"))):
        note(losses, step, value)
    with pytest.raises(TrainingError, match=r"not finite at step 2 \(loss inf, loss_supervised 0.5\)"):
        losses.check()
    told = json.loads((tmp_path / "not_finite_0.json").read_text())
    assert told == {"step": 2, "losses": {"loss": "inf", "loss_supervised": "0.5"}, "ids": ["image 2"]}


def test_gradient_scaler_may_skip_some_steps_but_not_go_on_skipping(tmp_path, caplog):
    losses = make(tmp_path, scaler=object())
    for step in range(SKIPS_IN_A_ROW):
        note(losses, step, float("nan"))
    note(losses, SKIPS_IN_A_ROW, 0.5)
    losses.check()
    assert caplog.text.count("the step was skipped") == SKIPS_IN_A_ROW
    for start in (0, 10):
        for step in range(start, start + 10):
            note(losses, step, float("inf"))
        losses.check()
    note(losses, 20, float("inf"))
    with pytest.raises(TrainingError, match="at step 20"):
        losses.check()


def test_losses_of_different_phases_are_looked_at_together(tmp_path):
    losses = make(tmp_path)
    losses.note(1, {"loss": torch.tensor(1.0)}, [])
    note(losses, 2, 1.0)
    losses.check()
    losses.check()
