"""What two processes share and what stays the same as in one; all of it on two real processes."""

import json
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import nn

from tests.method.test_step import make_batch, make_settings, make_student
from tests.training.distributed import environment, free_port, on_two_processes
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.method import Batch
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.system.processes import (
    average_running_statistics,
    join_processes,
    start_accelerator,
    together,
)
from u2pl_hf.training import build
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.command import parse_arguments
from u2pl_hf.training.recipe.schedule import describe_step, scaled_learning_rate
from u2pl_hf.training.trainer import Trainer

FRESH = build.build_student
DEMO = Path(__file__).parents[2] / "training_scripts" / "recipes" / "demo_u2pl.yaml"


def double_and_frozen(*args) -> nn.Module:
    """The model in float64 with BatchNorm in eval mode, so that images of one pass do not see each other."""
    model = FRESH(*args).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(), *inputs[1:]))
    return model


def supervised_gradients(data: Path, folder: Path, **options) -> tuple[dict, list[str]]:
    """Gradients of the first step and the images behind them, through the trainer's own loaders and passes."""
    build.build_student = double_and_frozen
    try:
        trainer = make_trainer(data, folder / "run", method="suponly", dropout=0.0, **options)
    finally:
        build.build_student = FRESH
    trainer.run.batches.start()
    trainer._gradients(step=0)
    ids = [name for _, _, names in trainer.finite.noted for name in names]
    return {name: p.grad.clone() for name, p in trainer.run.student.named_parameters() if p.grad is not None}, ids


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
        assert_same_everywhere([trainer.run.student, trainer.run.method])
        compared.append(int(trainer.run.method.queues.pushed.sum()))

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
    method = U2PL(make_settings(warmup_steps=2, contrastive_weight=1.0), student)
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


def _ending(work: Callable) -> str:
    try:
        work()
    except InputError as error:
        return f"told: {error}"
    except SystemExit as error:
        return f"left: {error.code}"
    return "fine"


def _give_up_alone() -> None:
    """Only process 1 finds a mistake."""
    if start_accelerator().process_index == 1:
        raise InputError("image x is damaged")


# Mistakes of the user, and what is said of them.
REFUSED = {
    "nonsense": ("unrecognized arguments", ["--crop_sise", "65"]),
    "split": ("no split voc_nowhere/3", ["--split", "voc_nowhere/3"]),
    "rank": ("leave no rank for negatives", ["--low_rank", "7"]),
    "scale": ("--scale_lr needs", ["--scale_lr", "true"]),
    "resume": ("no state.json", ["--resume", "nowhere"]),
    "folder": ("/proc/nothing cannot be written to", ["--output_dir", "/proc/nothing"]),
}


def _be_refused(data: Path, folder: Path, second_port: int) -> None:
    """What the script does, with one mistake after the other."""
    os.environ |= {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
    endings = {"device": _ending(join_processes)}
    torch.distributed.destroy_process_group()
    PartialState._reset_state()
    # At the first port one process may still meet what the other has not yet left.
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_PORT": str(second_port)}
    endings["alone"] = _ending(lambda: together(join_processes(), _give_up_alone))
    for name, (_, mistake) in REFUSED.items():
        argv = [str(DEMO), "--dataset", str(data), "--split", "1/4", "--crop_size", "65", "--max_steps", "1"]
        argv += ["--warmup_steps", "0", "--output_dir", str(folder / "run"), *mistake]
        parse = partial(parse_arguments, argv, "")
        endings[name] = _ending(lambda parse=parse: Trainer(build.build_run(together(join_processes(), parse))).train())
    (folder / str(torch.distributed.get_rank())).write_text(json.dumps(endings))


def test_mistakes_end_both_processes_and_are_told_once(tiny_data, tmp_path):
    on_two_processes(_be_refused, tiny_data, tmp_path, free_port())
    main, other = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert set(other.values()) == {"left: 2"}
    for name, (message, _) in REFUSED.items():
        assert main[name].startswith("told: ") and message in main[name]
    assert main["alone"] == "told: image x is damaged"
    assert main["device"].startswith("told: 2 processes were started, but there is no GPU for them")
    assert not (tmp_path / "run").exists()


def test_processes_that_find_no_port_say_so(monkeypatch):
    PartialState._reset_state()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in environment(0, taken.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=r"do not find each other at 127.0.0.1:\d+ .*a port that is free"):
            join_processes()
    PartialState._reset_state()


@pytest.mark.parametrize(
    ("changes", "processes", "line"),
    [
        ({}, 1, "8 labelled + 12 unlabelled images per step = 1 process x 2 passes x (4 + 6); learning rate 0.1"),
        ({"method": "suponly", "gradient_accumulation_steps": 1}, 2,
         "8 labelled images per step = 2 processes x 1 pass x 4; learning rate 0.1"),
        ({"scale_lr": True, "reference_batch_size": 16}, 4,
         "32 labelled + 48 unlabelled images per step = 4 processes x 2 passes x (4 + 6); "
         "learning rate 0.2 = 0.1 x 32 / 16 (--scale_lr)"),
    ],
)  # fmt: skip
def test_a_step_is_described_in_one_line(changes, processes, line):
    options = {"batch_size": 4, "unlabelled_batch_size": 6, "gradient_accumulation_steps": 2, "learning_rate": 0.1}
    args = run_arguments(**options | changes)
    assert describe_step(args, processes, scaled_learning_rate(args, 32)) == line


def test_learning_rate_follows_the_labelled_images_per_step(caplog):
    def rate(reference, scale):
        return scaled_learning_rate(run_arguments(learning_rate=1.0, reference_batch_size=reference, scale_lr=scale), 8)

    assert rate(16, True) == 0.5
    assert rate(None, False) == 1.0 and not caplog.text
    assert rate(16, False) == 1.0
    assert "8 labelled images per step, but the learning rate is meant for 16" in caplog.text
    with pytest.raises(InputError, match="--reference_batch_size"):
        rate(None, True)


def test_gradients_are_clipped_to_the_norm(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", max_grad_norm=1e-3, momentum=0.0, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in trainer.run.student.named_parameters()}
    trainer.run.batches.start()
    trainer._gradients(step=0)
    trainer._set_learning_rate(0)
    for group in trainer.run.optimizer.param_groups:
        group["lr"] = 1.0
    trainer._update(0)
    moved = torch.stack(
        [(p.detach() - before[name]).norm() for name, p in trainer.run.student.named_parameters()]
    ).norm()
    assert moved == pytest.approx(1e-3, rel=1e-3)
