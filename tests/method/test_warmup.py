"""The warm-up that ends by itself: its measure, its rule, what it watches, and the teacher meanwhile."""

import contextlib
import copy
import math

import pytest
import torch

from tests.method.test_step import CLASSES, SIZE, make_batch, make_settings, make_student
from u2pl_hf.method.batch import Batch
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.warmup import IMAGES, Stability, agreement, is_stable, latest_end
from u2pl_hf.pixels import denormalize, normalize


def loops(before: torch.Tensor, after: torch.Tensor, classes: int) -> float:
    """IoU of each class, pixel by pixel, in Python's own numbers."""
    pairs = list(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
    pairs = [pair for pair in pairs if 255 not in pair]
    found = []
    for c in range(classes):
        either = sum(c in pair for pair in pairs)
        if either:
            found.append(sum(pair == (c, c) for pair in pairs) / either)
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("case", ["all classes", "a class in neither", "one class", "padding", "padding alone"])
def test_agreement_equals_loops(case):
    high = {"a class in neither": 3, "one class": 1}.get(case, 5)
    before, after = torch.randint(0, high, (2, 3, 7, 5), dtype=torch.uint8)
    after = torch.where(torch.rand(after.shape) < 0.5, before, after)
    if "padding" in case:
        padding = torch.rand(before.shape) < (1.1 if case == "padding alone" else 0.3)
        before, after = before.masked_fill(padding, 255), after.masked_fill(padding, 255)
    found = agreement(before, after, 5).item()
    assert found == pytest.approx(loops(before, after, 5), rel=1e-6)
    assert found == {"one class": 1.0, "padding alone": 0.0}.get(case, found)
    assert agreement(after, before, 5).item() == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(
    ("series", "ends"),
    [
        ([], False),
        ([0.75], True),
        ([0.3, 0.76], True),
        ([0.3] * 5, False),
        ([0.3] * 6, True),
        # The highest is three looks old, but the three are better than those before.
        ([0.3, 0.5, 0.4, 0.45, 0.42, 0.4], False),
        ([0.3, 0.4, 0.5, 0.45, 0.42, 0.3], True),
        ([0.5, 0.51, 0.52, 0.53, 0.54, 0.55], False),
        # What came earlier does not matter.
        ([0.7, 0.7, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4], False),
        ([0.7, 0.6, 0.5, 0.4], False),
    ],
)
def test_it_ends_when_agreement_is_high_or_no_longer_rises(series, ends):
    assert is_stable(series) == ends


def test_the_latest_end_lies_before_the_last_step():
    assert [latest_end(limit, 1000) for limit in (0.0, 0.5, 0.9999)] == [0, 500, 999]
    assert latest_end(0.5, 1) == 0


def test_pixels_come_back_exactly():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(denormalize(normalize(every, None)), every)


def padded_batch(images: int = 12) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """A batch whose unlabelled images come from uint8 pixels, and these; and which of them are none of padding."""
    batch = make_batch(2)
    pixels = torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8)
    valid = torch.ones(images, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, :9] = False
    return Batch(batch.x_l, batch.y_l, normalize(pixels, valid), valid), pixels, valid


def test_it_keeps_the_first_images_exactly_and_ignores_padding():
    teacher, stability = make_student().eval(), Stability(CLASSES, limit=0.5)
    batches = [padded_batch() for _ in range(4)]
    for step, (batch, _, _) in enumerate(batches):
        stability.watch(teacher, batch, step, total_steps=40)
    # Whole batches, until there are enough; the fourth is not kept.
    assert len(stability.images) == 36 >= IMAGES
    pixels, valid = (torch.cat([part[i] for part in batches[:3]]) for i in (1, 2))
    kept = stability.images[:, 3] > 0
    assert torch.equal(kept, valid)
    assert torch.equal(
        stability.images[:, :3][kept[:, None].expand(-1, 3, -1, -1)], pixels[valid[:, None].expand(-1, 3, -1, -1)]
    )
    x = normalize(stability.images[:, :3], kept)
    assert torch.equal(x, torch.cat([batch.x_u for batch, _, _ in batches[:3]]))
    # The fourth step has looked at them: what an evaluation of the same pieces predicts, 255 on padding.
    with torch.no_grad():
        expected = torch.cat([teacher(part).logits.argmax(1) for part in x.split(12)])
    padding = torch.zeros(expected.shape, dtype=torch.bool)
    padding[:, :, :3] = True
    assert torch.equal(stability.before.long(), expected.masked_fill(padding, 255))


def test_a_teacher_that_sees_one_class_everywhere_is_not_stable(caplog):
    caplog.set_level("INFO")
    teacher, stability = make_student().eval(), Stability(CLASSES, limit=0.5)
    with torch.no_grad():
        teacher.classifier[-1].bias[0] = 1e3
    for step in range(21):
        stability.watch(teacher, padded_batch()[0], step, total_steps=40)
    assert (stability.end, stability.agreements) == (20, [])
    assert "warm-up ended at step 20: agreement not known, at its limit" in caplog.text
    assert stability.found() == {"warmup_steps": 20, "warmup_agreement": None}


def test_a_teacher_that_no_longer_changes_is_stable():
    teacher, stability = make_student().eval(), Stability(CLASSES, limit=0.5)
    batch = padded_batch()[0]
    # Only two classes come in labels, and at least two are predicted.
    batch.y_l.remainder_(2)
    with torch.no_grad():
        teacher.classifier[-1].weight.mul_(100.0)
    for step in range(5):
        stability.watch(teacher, batch, step, total_steps=40)
        assert stability.told() == ({} if step < 4 else {"agreement": 1.0})
    assert (stability.end, stability.agreements) == (4, [1.0])
    # The images are not carried on.
    assert stability.images.numel() == stability.before.numel() == 0


def test_looks_are_a_fortieth_of_the_steps_apart_and_once_in_a_step():
    teacher, stability = make_student().eval(), Stability(CLASSES, limit=0.5)
    looks = []
    teacher.register_forward_hook(lambda *_: looks.append(step))
    for step in range(25):
        for _ in range(2):
            stability.watch(teacher, padded_batch(16)[0], step, total_steps=400)
    # Two pieces each. Both passes of step 0 have collected.
    assert looks == [10, 10, 20, 20]


def test_state_goes_through_a_checkpoint():
    teacher, stability = make_student().eval(), Stability(CLASSES, limit=0.5)
    for step in range(4):
        stability.watch(teacher, padded_batch()[0], step, total_steps=40)
    stability.agreements = [1 / 3, 0.1]
    other = Stability(CLASSES, limit=0.5)
    other.load_state_dict(copy.deepcopy(stability.state_dict()))
    assert other.agreements == [1 / 3, 0.1] and math.isinf(other.end)
    for name in ("images", "before", "shown"):
        assert torch.equal(getattr(other, name), getattr(stability, name)) and len(getattr(other, name))


def test_during_warm_up_the_teacher_averages_from_the_first_step_on():
    student = make_student()
    step = U2PL(make_settings(warmup="auto", warmup_limit=0.9), student)
    expected = {name: value.clone() for name, value in step.teacher.state_dict().items()}
    for number in range(3):
        output = step(student, make_batch(), number, total_steps=40)
        assert set(output.named) == {"loss", "loss_supervised"}
        with torch.no_grad():
            for tensor in (*student.parameters(), *student.buffers()):
                tensor.add_(1)
        step.begin(student, number)
        step.finish(student, number)
        decay = (1 + number) / (10 + number)
        for name, new in student.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * new
            expected[name] = mean if new.is_floating_point() else new.clone()
    for name, value in step.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert step.model_to_evaluate(student, 3) is step.teacher and not step.learns_unlabelled(2)
    # At its limit it ends without a copy.
    before = copy.deepcopy(step.teacher.state_dict())
    step.begin(student, 36)
    assert all(torch.equal(value, before[name]) for name, value in step.teacher.state_dict().items())
    output = step(student, make_batch(), 36, total_steps=40)
    assert "loss_unsupervised" in output.named and step.learns_unlabelled(36) and step.stability.end == 36
    assert step.model_to_evaluate(student, 37) is step.teacher


def test_a_step_between_looks_reads_nothing_back(monkeypatch):
    """On tensors without values, as in test_step.py: collecting, and a step of warm-up after that."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    student = make_student()
    step = U2PL(make_settings(warmup="auto"), student).to("meta")
    student.to("meta")
    batch = make_batch(16)
    batch = Batch(*(tensor.to("meta") for tensor in (batch.x_l, batch.y_l, batch.x_u, batch.valid_u)))
    for number in range(1, 4):
        step.begin(student, number)
        step(student, batch, number, 4000).total.backward()
        step.finish(student, number)
    assert len(step.stability.images) == 32
