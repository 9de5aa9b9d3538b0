import pytest
import torch
from torch import nn

from u2pl_hf.method import schedules
from u2pl_hf.method.teacher import batch_statistics, copy_student, update_teacher


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.5))


def test_moving_average_closed_form():
    """A student that stays at 1 and a teacher that starts at 0: 1 - product of decays; during the ramp the mean."""
    teacher, student = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    teacher.weight.data.zero_()
    values, product = [], 1.0
    for k in range(150):
        student.weight.data.fill_(float(k))
        values.append(float(k))
        decay = schedules.ema_decay(k)
        update_teacher(teacher, student, decay)
        if k < 100:  # 1 - 1/(k+1) makes the teacher the plain mean of all students so far
            assert teacher.weight.item() == pytest.approx(sum(values) / len(values))
            product = teacher.weight.item()
        else:
            assert decay == 0.99
            product = 0.99 * product + 0.01 * k
            assert teacher.weight.item() == pytest.approx(product)


def test_copy_takes_buffers_and_shares_nothing():
    teacher, student = network(), network()
    student(torch.randn(8, 3, 4, 4))
    copy_student(teacher, student)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)
        assert teacher.state_dict()[name].data_ptr() != value.data_ptr()


def test_average_leaves_buffers_alone():
    teacher, student = network(), network()
    student(torch.randn(8, 3, 4, 4) + 5)
    before = teacher[1].running_mean.clone()
    update_teacher(teacher, student, 0.5)
    assert torch.equal(teacher[1].running_mean, before)


def test_batch_statistics_without_dropout():
    model, x = network().eval(), torch.randn(8, 3, 4, 4)
    with batch_statistics(model), torch.no_grad():
        first, second = model(x), model(x)
    assert torch.equal(first, second) and (first != 0).all()
    assert first.mean().abs() < 1e-5  # batch statistics
    assert model[1].num_batches_tracked == 2 and not model.training


def test_schedules():
    assert schedules.poly_factor(0.0) == 1.0 and schedules.poly_factor(1.0) == 0.0
    assert schedules.poly_factor(0.5) == pytest.approx(0.5358867)
    assert schedules.unreliable_share(0.25) == pytest.approx(0.15)
    assert [schedules.ema_decay(k) for k in (0, 1, 3, 10_000)] == [0.0, 0.5, 0.75, 0.99]
