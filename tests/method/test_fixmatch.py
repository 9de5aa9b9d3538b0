"""FixMatch and UniMatch V2: whole steps on a small real model, against the method written out."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from tests.method.test_ael_step import TensorPool, numbered
from tests.method.test_step import CLASSES, SIZE, make_batch, make_student
from u2pl_hf.errors import InputError
from u2pl_hf.method import losses, partners
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.fixmatch import FixMatch
from u2pl_hf.method.unimatch_v2 import UniMatchV2, complementary_scales
from u2pl_hf.method.views import cutmix_boxes, strong_view

METHODS = [FixMatch, UniMatchV2]
# The mean of these probabilities of untrained networks lies at 0.35.
THRESHOLD = 0.35


def make_step(kind, student, **changes) -> FixMatch:
    settings = kind.Settings(**{"confidence_threshold": THRESHOLD, "unsupervised_weight": 0.7} | changes)
    pools = SimpleNamespace(unlabelled=TensorPool(9, False), passes=1)
    return kind(settings, student, pools)


def plain_student(**options):
    """Without a representation head: these methods have none."""
    return make_student(0, **options)


def boxed(boxes, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """CutMix with slices: in each box the next image's pixels."""
    mixed = [m.clone() for m in maps]
    for b, (top, left, height, width) in enumerate(boxes.tolist()):
        place = (..., slice(top, top + height), slice(left, left + width))
        for new, old in zip(mixed, maps, strict=True):
            new[b][place] = old[(b + 1) % len(old)][place]
    return mixed


def naive_view(teacher, batch) -> list[torch.Tensor]:
    """x, labels, probability, valid and true labels of a strong view."""
    with torch.no_grad():
        prob = pl.resize_logits(teacher(batch.x_u).logits, (SIZE, SIZE)).softmax(1)
    images = strong_view(batch.x_u)
    images[~batch.valid_u.unsqueeze(1).expand_as(images)] = 0
    boxes = cutmix_boxes(len(images), SIZE, SIZE, 0.5)
    return boxed(boxes, [images, prob.argmax(1), prob.amax(1), batch.valid_u, batch.y_u])


def naive_consistency(logits, view) -> float:
    """Sum over sure valid pixels over the number of valid ones."""
    _, labels, prob, valid, _ = view
    log_prob = pl.resize_logits(logits, (SIZE, SIZE)).double().log_softmax(1)
    own = -log_prob.gather(1, labels.unsqueeze(1)).squeeze(1)
    sure = valid & (prob >= THRESHOLD)
    assert 0.05 < sure.float().mean() < 0.95
    return (own[sure].sum() / valid.sum()).item()


def watched_batch(images: int = 4):
    """Different padding in each image, so that it matters where a pixel's validity comes from."""
    batch = make_batch(images)
    for b in range(images):
        batch.valid_u[b, : 3 * b] = False
    return dataclasses.replace(batch, y_u=torch.randint(0, CLASSES, (images, SIZE, SIZE)))


def assert_told(output, view, loss_s, loss_u) -> None:
    _, labels, prob, valid, y = view
    assert output.named["loss_supervised"].item() == pytest.approx(loss_s, rel=1e-5)
    assert output.named["loss_unsupervised"].item() == pytest.approx(loss_u, rel=1e-5)
    assert output.total.item() == pytest.approx(loss_s + 0.7 * loss_u, rel=1e-5)
    assert output.named["loss"] == output.total and not output.named["loss"].requires_grad
    sure = valid & (prob >= THRESHOLD)
    assert output.stats["confident_share"].item() == pytest.approx((sure.sum() / valid.sum()).item())
    assert output.stats["accuracy_confident"].item() == pytest.approx((labels == y)[sure].float().mean().item())


def test_step_of_fixmatch_equals_the_method_written_out():
    student, batch = plain_student(), watched_batch()
    step = make_step(FixMatch, student)
    reference, teacher = copy.deepcopy(student), copy.deepcopy(step.teacher)
    torch.manual_seed(7)
    output = step(student, batch, 3, 40)
    torch.manual_seed(7)
    view = naive_view(teacher, batch)
    with torch.no_grad():
        logits = reference(torch.cat([batch.x_l, view[0]])).logits
    loss_s = losses.cross_entropy(pl.resize_logits(logits[:4], (SIZE, SIZE)), batch.y_l).item()
    assert_told(output, view, loss_s, naive_consistency(logits[4:], view))
    unmixed = pl.resize_logits(teacher(batch.x_u).logits, (SIZE, SIZE)).softmax(1).amax(1)
    assert output.stats["confidence"].item() == pytest.approx(unmixed[batch.valid_u].mean().item(), rel=1e-5)


def test_step_of_unimatch_equals_the_method_written_out():
    """Labelled images alone, then both views together, with channels scaled between backbone and heads."""
    student, batch = plain_student(auxiliary_head=True), watched_batch()
    step = make_step(UniMatchV2, student)
    reference, teacher = copy.deepcopy(student), copy.deepcopy(step.teacher)
    torch.manual_seed(7)
    output = step(student, batch, 3, 40)
    torch.manual_seed(7)
    view_1, view_2 = naive_view(teacher, batch), naive_view(teacher, batch)
    assert not torch.equal(view_1[0], view_2[0])
    with torch.no_grad():
        labelled = reference(batch.x_l)
        scales = complementary_scales(4, reference.feature_channels, torch.device("cpu"))
        by_hand(reference, scales)
        logits = reference(torch.cat([view_1[0], view_2[0]])).logits
    loss_s = losses.cross_entropy(pl.resize_logits(labelled.logits, (SIZE, SIZE)), batch.y_l)
    loss_s += 0.4 * losses.cross_entropy(pl.resize_logits(labelled.aux_logits, (SIZE, SIZE)), batch.y_l)
    loss_u = (naive_consistency(logits[:4], view_1) + naive_consistency(logits[4:], view_2)) / 2
    assert_told(output, view_1, loss_s.item(), loss_u)


def by_hand(model, scales) -> None:
    """Multiply what the backbone gives, image by image and channel by channel."""

    def multiply(module, args, stages):
        stages = [stage.clone() for stage in stages]
        for stage, scale in zip(stages, scales, strict=True):
            for image, factors in zip(stage, scale.tolist(), strict=True):
                for channel, factor in enumerate(factors):
                    image[channel] *= factor
        return stages

    model.backbone.register_forward_hook(multiply)


def test_scaled_features_equal_a_multiplication_by_hand():
    student = make_student(auxiliary_head=True).eval()
    images = torch.randn(4, 3, SIZE, SIZE)
    assert student.feature_channels == tuple(stage.shape[1] for stage in student.backbone(images))
    scales = complementary_scales(2, student.feature_channels, torch.device("cpu"))
    with torch.no_grad():
        plain, found = student(images), student(images, feature_scales=scales)
        ones = student(images, feature_scales=tuple(torch.ones_like(s) for s in scales))
        by_hand(student, scales)
        expected = student(images)
    for name in ("logits", "representation", "aux_logits"):
        assert torch.equal(found[name], expected[name]) and torch.equal(ones[name], plain[name])
        assert not torch.allclose(found[name], plain[name])


def test_what_one_view_loses_the_other_has():
    torch.manual_seed(3)
    scales = complementary_scales(7, (64, 200, 40), torch.device("cpu"))
    assert [tuple(s.shape) for s in scales] == [(14, 64), (14, 200), (14, 40)]
    kept = []
    for scale in scales:
        first, second = scale.chunk(2)
        assert torch.equal(first + second, torch.full_like(first, 2.0))
        assert set(scale.unique().tolist()) == {0.0, 1.0, 2.0}
        kept.append((first == 1).all(1))
        assert torch.equal(kept[-1], (first == 1).any(1)) and kept[-1].sum() == 3
        lost = (first[~kept[-1]] == 0).double()
        # Six standard deviations, over all and of each image.
        assert (lost.mean() - 0.5).abs() < 3 / math.sqrt(lost.numel())
        assert ((lost.mean(1) - 0.5).abs() < 3 / math.sqrt(lost.shape[1])).all()
    # An image keeps all in every stage or in none; else stages and images draw apart.
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])
    masks = [scale[:7][~kept[0], :40] for scale in scales]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0][0], masks[0][1])


def test_stages_of_one_width_lose_the_same_channels():
    first, second, other, third = complementary_scales(5, (16, 16, 8, 16), torch.device("cpu"))
    assert torch.equal(first, second) and torch.equal(first, third) and other.shape == (10, 8)


def test_each_image_keeps_all_equally_often():
    torch.manual_seed(4)
    kept = sum((complementary_scales(5, (8,), torch.device("cpu"))[0][:5] == 1).all(1).int() for _ in range(1000))
    assert ((kept - 400).abs() < 6 * math.sqrt(1000 * 0.4 * 0.6)).all() and kept.sum() == 2000
    (one,) = complementary_scales(1, (8,), torch.device("cpu"))
    assert set(one.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind", METHODS)
def test_teacher_averages_parameters_and_buffers_from_the_first_step(kind):
    student = plain_student()
    step = make_step(kind, student)
    assert not step.teacher.training and not any(p.requires_grad for p in step.teacher.parameters())
    names = [n for n in student.state_dict() if n.endswith(("classifier.0.weight", "running_mean"))][:3]
    expected = {name: torch.zeros_like(student.state_dict()[name]) for name in names}
    for k, decay in enumerate((0.0, 0.5, 2 / 3, 0.75)):
        output = step(student, make_batch(), k, 40)
        output.total.backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.1 * parameter.grad
        before = {n: v.clone() for n, v in step.teacher.state_dict().items()}
        step.finish(student, k)
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * student.state_dict()[name]
            torch.testing.assert_close(step.teacher.state_dict()[name], expected[name], rtol=1e-5, atol=1e-6)
        assert any(not torch.equal(v, before[n]) for n, v in step.teacher.state_dict().items())
    assert step.model_to_evaluate(student, 0) is step.teacher
    step.finish(student, 10_000)  # at most 0.996
    torch.testing.assert_close(
        step.teacher.state_dict()[names[0]], 0.996 * expected[names[0]] + 0.004 * student.state_dict()[names[0]]
    )


@pytest.mark.parametrize("kind", METHODS)
def test_teacher_sees_the_images_as_they_are_and_stays_in_eval_mode(kind):
    student, batch = plain_student(), watched_batch()
    step, seen, views = make_step(kind, student, cutmix_probability=1.0), [], []
    step.teacher.register_forward_pre_hook(lambda module, args: seen.append((args[0], module.training)))
    student.register_forward_pre_hook(lambda module, args: views.append(args[0]))
    buffers = {name: value.clone() for name, value in step.teacher.named_buffers()}
    step(student, batch, 0, 10)
    ((images, training),) = seen
    assert torch.equal(images, batch.x_u) and not training
    assert all(torch.equal(value, buffers[name]) for name, value in step.teacher.named_buffers())
    shown = views[-1][4:] if kind is FixMatch else views[-1]
    assert len(views) == len(METHODS[: METHODS.index(kind) + 1]) and not torch.equal(shown[:4], batch.x_u)


@pytest.mark.parametrize("colour", [True, False])
def test_all_that_belongs_to_a_pixel_travels_with_it(colour):
    """Image b shows b, its labels are b and its truth 10 + b; padding is 0 in the view, 255 in the labels."""
    batch = watched_batch()
    number = torch.arange(4).view(-1, 1, 1).expand(-1, SIZE, SIZE)
    shown = (number.unsqueeze(1).expand(-1, 3, -1, -1) * 0.5 - 0.7) * batch.valid_u.unsqueeze(1)
    batch = dataclasses.replace(batch, x_u=shown, y_u=number + 10)
    step = make_step(FixMatch, plain_student(), strong_colour=colour, cutmix_probability=1.0)
    labels = number.masked_fill(~batch.valid_u, 255)
    view = step.view(batch, labels, number / 8, {})
    source = (view.prob * 8).long()
    valid = batch.valid_u.gather(0, source)
    assert torch.equal(view.labels, source.masked_fill(~valid, 255)) and torch.equal(view.y, source + 10)
    assert (view.x[~valid.unsqueeze(1).expand_as(view.x)] == 0).all()
    for b in range(4):
        # A box of the next image, all else its own.
        assert set(source[b].unique().tolist()) == {b, (b + 1) % 4}
        rows, columns = (source[b] != b).nonzero().unbind(1)
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == (source[b] != b).sum()
    if not colour:
        assert torch.equal(view.x, shown.gather(0, source.unsqueeze(1).expand_as(shown)))
    else:
        for c in range(4):
            # Constant images stay constant but for the blur of padding.
            inside = valid & (source == c)
            inside[:, :, :12], inside[:, :16] = False, False
            values = view.x.movedim(1, -1)[inside]
            assert len(values) > 20 and (values - values[0]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("case", ["all labels ignored", "all padding", "batch of one", "nothing sure", "no mixing"])
def test_edge_cases_are_finite(kind, case):
    student, batch = plain_student(auxiliary_head=True), watched_batch(1 if case == "batch of one" else 2)
    if case == "all labels ignored":
        batch.y_l.fill_(255)
    elif case == "all padding":
        batch.valid_u.fill_(False)
    if case == "batch of one" and kind is UniMatchV2:
        batch = dataclasses.replace(batch, x_l=batch.x_l.repeat(2, 1, 1, 1), y_l=batch.y_l.repeat(2, 1, 1))
    step = make_step(kind, student, confidence_threshold=1.0 if case == "nothing sure" else THRESHOLD,
                     cutmix_probability=0.0 if case == "no mixing" else 1.0)  # fmt: skip
    output = step(student, batch, 0, 10)
    output.total.backward()
    assert output.total.isfinite() and all(p.grad.isfinite().all() for p in student.parameters())
    assert (output.named["loss_unsupervised"] == 0) == (case in ("all padding", "nothing sure"))
    assert (output.named["loss_supervised"] == 0) == (case == "all labels ignored")
    for name in ("confidence", "confident_share"):
        assert 0 <= output.stats[name] <= 1


def test_partners_of_badly_known_classes_are_mixed_in():
    """Everything comes from the partner where the view is not the image's own; teacher and bank see no colours."""
    student, batch = plain_student(), numbered(watched_batch(3))
    step = make_step(FixMatch, student, partner="class", cutmix_probability=1.0, strong_colour=False)
    step.partners.pool.y = torch.randint(0, CLASSES, (9, SIZE, SIZE))
    x, y, _ = step.partners.pool.receive(step.partners.choose(batch.seed, 3).images)
    teacher = copy.deepcopy(step.teacher)
    with torch.no_grad():
        own, other = (pl.resize_logits(teacher(i).logits, (SIZE, SIZE)).softmax(1) for i in (batch.x_u, x))
    (view,) = step.views(batch, 1)
    taken = (view.x == x).all(1)
    assert taken.flatten(1).any(1).all() and not taken.all()
    assert torch.equal(view.x, torch.where(taken.unsqueeze(1), x, batch.x_u)) and view.weak is None
    assert torch.equal(view.y, torch.where(taken, y, batch.y_u))
    labels = torch.where(taken, other.argmax(1), own.argmax(1).masked_fill(~batch.valid_u, 255))
    assert torch.equal(view.labels, labels)
    torch.testing.assert_close(view.prob, torch.where(taken, other.amax(1), own.amax(1)), rtol=1e-5, atol=1e-6)
    output = step(student, batch, 0, 10)
    assert output.total.isfinite() and (step.bank.confidence > 0).all() and step.partners.chosen is not None
    assert {"bank.confidence", "categories.holds"} <= set(step.state_dict())


def test_coloured_partners_have_black_padding_and_uncoloured_images_beside_them(monkeypatch):
    views = []
    monkeypatch.setattr(partners, "strong_view", lambda images: views.append(strong_view(images)) or views[-1])
    student, batch = plain_student(), dataclasses.replace(numbered(watched_batch(3)), y_u=None)
    step, mixed = make_step(FixMatch, student, partner="class"), []
    for colour in (True, False):
        torch.manual_seed(2)
        mixed.append(step.partners.mix(step.teacher, batch, 0.5, colour=colour))
    coloured, plain = mixed
    assert torch.equal(coloured.weak, plain.x) and torch.equal(coloured.labels, plain.labels)
    padding = coloured.labels == 255
    assert padding.any() and (coloured.x.movedim(1, -1)[padding] == 0).all()
    # What comes from a partner has the partner's colours.
    (view,), own = views, (coloured.weak == batch.x_u).all(1, keepdim=True)
    assert own.any() and not own.all() and not torch.allclose(view[:3], batch.x_u)
    expected = torch.where(own, view[:3], view[3:]) * ~padding.unsqueeze(1)
    assert torch.equal(coloured.x, expected)


def test_partners_are_mixed_in_with_a_draw_for_each_image():
    step, batch = make_step(FixMatch, plain_student(), partner="class"), numbered(watched_batch(2))
    batch = dataclasses.replace(batch, y_u=None)
    changed = torch.stack(
        [(step.partners.mix(step.teacher, batch, 0.3).x != batch.x_u).flatten(1).any(1) for _ in range(60)]
    )
    pairs = torch.bincount(2 * changed[:, 0] + changed[:, 1], minlength=4)
    assert (pairs > 0).all() and pairs[0] > pairs[3] and ((changed.sum(0) - 18).abs() < 15).all()
    assert (step.partners.mix(step.teacher, batch, 0.0).x == batch.x_u).all()


def test_refused_and_told():
    with pytest.raises(InputError, match="--partner class goes with --method fixmatch or u2pl, not unimatch_v2"):
        UniMatchV2.check(UniMatchV2.Settings(partner="class"))
    UniMatchV2.check(UniMatchV2.Settings())
    assert FixMatch.mixes_batch(FixMatch.Settings())
    assert not FixMatch.mixes_batch(FixMatch.Settings(partner="class"))
    assert not FixMatch.mixes_batch(FixMatch.Settings(cutmix_probability=0.0))
    assert not FixMatch.uses_representation and FixMatch.uses_unlabelled and FixMatch.unlabelled_from(None) == 0
    assert UniMatchV2.state_bytes(None, 40, 4, 8) == {"teacher": 40}
