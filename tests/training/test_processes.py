"""What two processes share and what stays the same as in one; all of it on two real processes."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.method.test_step import make_batch, make_settings, make_student
from tests.training.distributed import on_two_processes
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.method.step import Batch, build_step
from u2pl_hf.training import trainer as trainer_module
from u2pl_hf.training.build import build_model
from u2pl_hf.training.processes import average_running_statistics, learning_rate_scale, start_accelerator, together


def double_and_frozen(*args) -> nn.Module:
    """The model in float64 with BatchNorm in eval mode, so that images of one pass do not see each other."""
    model = build_model(*args).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(), *inputs[1:]))
    return model


def supervised_gradients(data: Path, folder: Path, **options) -> tuple[dict, list[str]]:
    """Gradients of the first step and the images behind them, through the trainer's own loaders and passes."""
    original, trainer_module.build_model = trainer_module.build_model, double_and_frozen
    try:
        trainer = make_trainer(data, folder / "run", method="suponly", dropout=0.0, **options)
    finally:
        trainer_module.build_model = original
    trainer._gradients(*trainer._loaders(0), step=0)
    ids = [name for _, _, names in trainer.finite.noted for name in names]
    return {name: p.grad.clone() for name, p in trainer.student.named_parameters() if p.grad is not None}, ids


def _save_gradients(data: Path, folder: Path) -> None:
    gradients, ids = supervised_gradients(data, folder)
    torch.save((gradients, ids), folder / f"{torch.distributed.get_rank()}.pt")


def test_two_processes_equal_one_that_accumulates(tiny_data, tmp_path):
    """Same images, same augmentation, same gradient: 2 processes x 1 pass and 1 process x 2 passes of 2 images."""
    expected, ids = supervised_gradients(tiny_data, tmp_path, gradient_accumulation_steps=2)
    on_two_processes(_save_gradients, tiny_data, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0][1] + found[1][1] == ids and len(set(ids)) == 4
    for gradients, _ in found:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-12)


def assert_same_everywhere(modules: list[nn.Module]) -> None:
    """Every parameter and buffer has the same bits on both processes."""
    for module in modules:
        for name, tensor in module.state_dict().items():
            other = tensor.clone()
            torch.distributed.broadcast(other, src=0)
            assert torch.equal(other, tensor), name


def _train_and_compare(data: Path, folder: Path) -> None:
    trainer = make_trainer(data, folder / "run", max_steps=6, warmup_steps=2, gradient_accumulation_steps=2)
    update, compared = trainer._update, []

    def update_and_compare(step):
        update(step)
        assert_same_everywhere([trainer.student, trainer.method])
        compared.append(int(trainer.method.queues.pushed.sum()))

    trainer._update = update_and_compare
    trainer.train()
    assert compared[1] == 0 < compared[2] < compared[-1]


def test_students_teachers_and_queues_are_equal_at_every_step(tiny_data, tmp_path):
    on_two_processes(_train_and_compare, tiny_data, tmp_path)


def uneven_batch(rank: int, step: int) -> Batch:
    """Process 0 sees no labelled pixel, process 1 no valid unlabelled one, so no reliable and no unreliable pixel."""
    torch.manual_seed(2 * step + rank)
    batch = make_batch()
    y_l = torch.full_like(batch.y_l, 255) if rank == 0 else batch.y_l
    valid_u = torch.zeros_like(batch.valid_u) if rank == 1 else batch.valid_u
    return Batch(batch.x_l, y_l, batch.x_u, valid_u)


def _train_unevenly(steps: int) -> None:
    accelerator = start_accelerator()
    torch.manual_seed(0)
    student = make_student()
    method = build_step("u2pl", make_settings(warmup_steps=2, contrastive_weight=1.0), student)
    wrapped, optimizer = accelerator.prepare(student, torch.optim.SGD(student.parameters(), lr=0.01))
    contrasted = 0
    for step in range(steps):
        method.begin(student, step)
        output = method(wrapped, uneven_batch(accelerator.process_index, step), step, steps)
        accelerator.backward(output.total)
        optimizer.step()
        optimizer.zero_grad()
        method.finish(student, step)
        average_running_statistics(accelerator, (student, *method.children()))
        assert output.total.isfinite()
        contrasted += float(output.named.get("loss_contrastive", 0.0)) > 0
        if step % 20 == 0:
            assert_same_everywhere([student, method])
    assert contrasted > 0.9 * steps


def test_uneven_data_neither_hang_nor_drift_apart():
    """U2PL_UNEVEN_STEPS=200 for a longer look."""
    on_two_processes(_train_unevenly, int(os.environ.get("U2PL_UNEVEN_STEPS", "40")))


def _give_up_alone(folder: Path) -> None:
    accelerator = start_accelerator()

    def work():
        if accelerator.process_index == 1:
            raise InputError("image x is damaged")
        return "fine"

    try:
        together(accelerator, work)
    except InputError as error:
        outcome = f"told: {error}"
    except SystemExit as error:
        outcome = f"left: {error.code}"
    (folder / str(accelerator.process_index)).write_text(outcome)


def test_an_error_of_one_process_ends_both_and_is_told_once(tmp_path):
    on_two_processes(_give_up_alone, tmp_path)
    assert (tmp_path / "0").read_text() == "told: image x is damaged"
    assert (tmp_path / "1").read_text() == "left: 1"


def test_learning_rate_follows_the_labelled_images_per_step(caplog):
    assert learning_rate_scale(8, 16, scale=True) == 0.5
    assert learning_rate_scale(8, None, scale=False) == 1.0 and not caplog.text
    assert learning_rate_scale(8, 16, scale=False) == 1.0
    assert "8 labelled images per step, but the learning rate is meant for 16" in caplog.text
    with pytest.raises(InputError, match="--reference_batch_size"):
        learning_rate_scale(8, None, scale=True)


def test_gradients_are_clipped_to_the_norm(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", max_grad_norm=1e-3, momentum=0.0, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
    trainer._gradients(*trainer._loaders(0), step=0)
    trainer._set_learning_rate(0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    trainer._update(0)
    moved = torch.stack([(p.detach() - before[name]).norm() for name, p in trainer.student.named_parameters()]).norm()
    assert moved == pytest.approx(1e-3, rel=1e-3)
