import math

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


def test_average_takes_buffers_where_it_is_told_and_copies_whole_numbers():
    """Closed form over several steps: sum of (1 - d) d^(n - k) of what the student had, and d^n of the beginning."""
    teacher, student = network().double().eval(), network().double()
    names = ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var")
    expected = {name: teacher.state_dict()[name].clone() for name in names}
    decays = (0.5, 0.9, 0.25, 0.99)
    seen = []
    for k, decay in enumerate(decays):
        with torch.no_grad():
            student[0].weight += 1.0 + k
        student(torch.randn(8, 3, 4, 4, dtype=torch.float64) + k)
        seen.append({name: student.state_dict()[name].clone() for name in names})
        update_teacher(teacher, student, decay, buffers=True)
        assert teacher[1].num_batches_tracked == k + 1
    for name in names:
        value = expected[name] * math.prod(decays)
        for k, decay in enumerate(decays):
            value += (1 - decay) * math.prod(decays[k + 1 :]) * seen[k][name]
        torch.testing.assert_close(teacher.state_dict()[name], value)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher[1].running_mean.zero_()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_average_of_buffers_where_there_are_none():
    teacher, student = (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)) for _ in range(2))
    student[1].weight.data.fill_(3.0)
    update_teacher(teacher, student, 0.75, buffers=True)
    torch.testing.assert_close(teacher[1].weight.detach(), torch.full((4,), 1.5))


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


def test_average_from_the_first_step_remembers_a_tenth_of_the_steps():
    steps = (0, 1, 8, 80, 890, 891, 10_000)
    expected = [1 / 10, 2 / 11, 9 / 18, 81 / 90, 0.99, 0.99, 0.99]
    assert [schedules.early_ema_decay(k) for k in steps] == pytest.approx(expected)
    assert schedules.early_ema_decay(889) == pytest.approx(890 / 899) and 890 / 899 < 0.99
    assert schedules.early_ema_decay(10_000, 0.996) == 0.996


def test_weight_rises_as_a_gaussian():
    assert schedules.rampup(0, 40.0) == pytest.approx(0.006737947)
    assert schedules.rampup(20, 40.0) == pytest.approx(0.2865048)  # exp(-1.25)
    assert schedules.rampup(36, 40.0) == pytest.approx(0.9512294)  # exp(-0.05)
    assert schedules.rampup(40, 40.0) == schedules.rampup(5000, 40.0) == 1.0
    assert schedules.rampup(0, 0.0) == schedules.rampup(7, 0.0) == 1.0
    assert schedules.rampup(1, 0.5) == 1.0
