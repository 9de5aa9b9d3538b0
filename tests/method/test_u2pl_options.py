"""What U2PL can be told beyond the paper: whole steps against the method written out, and each option alone."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.method.test_ael_step import TensorPool, numbered
from tests.method.test_fixmatch import watched_batch
from tests.method.test_step import CLASSES, SIZE, make_batch, make_settings, make_student
from tests.method.test_views import assert_frequencies
from u2pl_hf.method import losses, mixing
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.views import strong_view

# Floors and bounds lie where probabilities of untrained networks do.
EVERYTHING = {
    "strong_colour": True, "strong_probability": 0.6, "strong_per_image": True, "confidence_floor": 0.35,
    "class_quantiles": True, "ema_from_start": True, "unsupervised_rampup": 0.5, "symmetric_cross_entropy": 0.1,
    "prototype_momentum": 0.9, "protect_unlearnt": 0.2, "distribution_alignment": 0.7,
}  # fmt: skip
SOME = {"strong_colour": True, "strong_probability": 1.0, "symmetric_cross_entropy": 0.3, "unsupervised_rampup": 0.5}


def make_step(student, **changes) -> U2PL:
    counts = torch.arange(CLASSES, 0, -1).expand(6, CLASSES)
    pools = SimpleNamespace(labelled=TensorPool(6, True), unlabelled=TensorPool(9, False), counts=counts, passes=1)
    return U2PL(make_settings(**{"unreliable_share": 0.3, "unsupervised_weight": 0.7} | changes), student, pools)


class WrittenOut:
    """The method once more with loops over images and classes, from copied networks."""

    def __init__(self, step: U2PL, student, batch):
        self.step, self.student, self.teacher = step, copy.deepcopy(student), copy.deepcopy(step.teacher)
        self.settings, self.batch, self.confidence, self.shares = step.settings, batch, None, None
        if step.bank is not None:
            self.confidence = step.bank.confidence.clone()

    @torch.no_grad()
    def mix(self) -> None:
        settings, batch, number = self.settings, self.batch, len(self.batch.x_u)
        prob = pl.resize_logits(self.align(self.teacher(batch.x_u).logits), (SIZE, SIZE)).softmax(1)
        coloured = strong_view(batch.x_u) * batch.valid_u.unsqueeze(1) if settings.strong_colour else batch.x_u
        if settings.strong_per_image:
            chosen = (torch.rand(number, 1, 1) < settings.strong_probability).flatten().tolist()
        else:
            chosen = [torch.rand(()).item() < settings.strong_probability] * number
        boxes = mixing.draw_boxes(number, SIZE, SIZE, torch.device("cpu"))
        maps = [coloured, batch.x_u, prob.argmax(1).masked_fill(~batch.valid_u, 255), prob.amax(1), batch.y_u]
        mixed = [m.clone() for m in maps]
        for b in range(number):
            for new, old in zip(mixed, maps, strict=True):
                if chosen[b]:
                    new[b][..., boxes[b]] = old[(b + 1) % number][..., boxes[b]]
        assert any(chosen)
        self.x, self.weak, self.labels, self.prob, self.y = mixed

    def align(self, logits):
        """By shares of this batch; labelled pixels of the classes are as 4 to 3 to 2 to 1."""
        if self.settings.distribution_alignment:
            if self.shares is None:
                valid = pl.nearest_on_corners(self.batch.valid_u, logits.shape[-2:])
                prob = logits.double().softmax(1)
                self.shares = [prob[:, c][valid].mean().item() for c in range(CLASSES)]
            logits = logits.clone()
            for c, share in enumerate(self.shares):
                factor = min(max(((4 - c) / 10 + 1e-3) / (share + 1e-3), 0.25), 4)
                logits[:, c] += self.settings.distribution_alignment * math.log(factor)
        return logits

    @torch.no_grad()
    def split(self, alpha: float) -> None:
        settings, images = self.settings, torch.cat([self.batch.x_l, self.weak])
        if settings.ema_from_start:
            self.output = self.teacher(images)
        else:
            with batch_statistics(self.teacher):
                self.output = self.teacher(images)
        logits = self.align(self.output.logits[len(self.batch.x_l) :])
        prob = pl.resize_logits(logits, (SIZE, SIZE)).double().softmax(1)
        entropy, self.valid = -(prob * prob.log()).sum(1), self.labels != 255
        self.reliable = torch.zeros_like(self.valid)
        groups = [self.labels == c for c in range(CLASSES)] if settings.class_quantiles else [self.valid]
        for group in groups:
            if group.any():
                gamma = np.quantile(entropy[group].numpy(), 1 - alpha)
                self.reliable |= group & (entropy < gamma)
        self.unreliable = self.valid & ~self.reliable
        if settings.protect_unlearnt:
            order = prob.argsort(1, descending=True)[:, :2]
            for c in range(CLASSES):
                if self.confidence[c] < settings.protect_unlearnt:
                    self.reliable &= ~(order == c).any(1)

    @torch.no_grad()
    def losses(self) -> tuple[float, float]:
        settings, labelled = self.settings, len(self.batch.x_l)
        logits = pl.resize_logits(self.student(torch.cat([self.batch.x_l, self.x])).logits, (SIZE, SIZE))
        loss_s = losses.cross_entropy(logits[:labelled], self.batch.y_l).item()
        own = logits[labelled:].double().softmax(1).gather(1, self.labels.clamp(max=3).unsqueeze(1)).squeeze(1)
        pixel = -own.log() + settings.symmetric_cross_entropy * -math.log(1e-4) * (1 - own)
        counted, number = self.reliable, self.reliable.sum()
        if settings.confidence_floor:
            counted = counted & (self.prob >= settings.confidence_floor)
            assert 0 < counted.sum() < number
            return loss_s, (pixel[counted].sum() / self.valid.sum()).item()
        return loss_s, (pixel[counted].sum() / number * self.valid.numel() / number).item()


@pytest.mark.parametrize("options", [EVERYTHING, SOME, {"variant": "robust", "confidence_floor": 0.35}],
                         ids=["everything", "some", "robust"])  # fmt: skip
def test_step_equals_the_method_written_out(options):
    student, batch = make_student(), watched_batch(3)
    step = make_step(student, warmup_steps=4, **{"strong_probability": None} | options)
    if step.bank is not None:
        step.bank.confidence.copy_(torch.tensor([0.5, 0.5, 0.5, 0.1]))
    written = WrittenOut(step, student, batch)
    torch.manual_seed(7)
    output = step(student, batch, 10, 40)
    torch.manual_seed(7)
    written.mix()
    written.split(0.3 * (1 - 10 / 40))
    loss_s, loss_u = written.losses()
    assert output.named["loss_supervised"].item() == pytest.approx(loss_s, rel=1e-5)
    assert output.named["loss_unsupervised"].item() == pytest.approx(loss_u, rel=1e-4)
    risen = math.exp(-5 * (1 - 6 / 20) ** 2) if step.settings.unsupervised_rampup else 1.0
    expected = loss_s + 0.7 * risen * loss_u + 0.1 * output.named["loss_contrastive"].item()
    assert output.total.item() == pytest.approx(expected, rel=1e-4)
    stats = output.stats
    assert stats["reliable_share"].item() == pytest.approx(written.reliable.float().mean().item(), abs=1e-6)
    for name, part in (("reliable", written.reliable), ("unreliable", written.unreliable)):
        right = (written.labels == written.y)[part].float().mean().item()
        assert stats[f"accuracy_{name}"].item() == pytest.approx(right)
    check_contrast(step, written)


def check_contrast(step: U2PL, written: WrittenOut) -> None:
    """Negatives of the queues and prototypes, from the teacher's output for images without changed colours."""
    teacher, labelled, size = written.output, len(written.batch.x_l), written.output.logits.shape[-2:]
    prob, y_l, unreliable, reliable, labels = teacher.logits.softmax(1), *(
        pl.nearest_on_corners(m, size)
        for m in (written.batch.y_l, written.unreliable, written.reliable, written.labels)
    )  # fmt: skip
    negatives = pl.negative_mask(y_l, prob[:labelled], unreliable, prob[labelled:], 2, 20)
    assert step.queues.pushed.tolist() == negatives.sum((0, 2, 3)).clamp(max=256).tolist()
    if step.prototypes is not None:
        classes = torch.cat([y_l, labels.masked_fill(~reliable, 255)])
        for c in range(CLASSES):
            own = (classes == c) & (prob[:, c] > 0.1)
            vector = teacher.representation.movedim(1, -1)[own].double().mean(0)
            expected = vector / vector.norm() if own.any() else torch.zeros(8)
            torch.testing.assert_close(step.prototypes.vectors[c], expected.float(), rtol=1e-4, atol=1e-5)
        assert step.prototypes.updates.any()


def outputs_of(*options, step: int = 10, batch=None):
    """The same step from the same state and seed under different options."""
    torch.manual_seed(1)
    student, batch = make_student(), watched_batch(3) if batch is None else batch
    for changes in options:
        made = make_step(student, **changes)
        torch.manual_seed(5)
        yield made, made(copy.deepcopy(student), batch, step, 40)


def test_the_floor_touches_only_the_consistency():
    (one, plain), (other, floored) = outputs_of({}, {"confidence_floor": 0.36})
    assert plain.named["loss_unsupervised"] != floored.named["loss_unsupervised"]
    for name in ("loss_supervised", "loss_contrastive"):
        assert plain.named[name] == floored.named[name]
    for name in ("anchors_per_class", "new_keys_per_class", "reliable_share", "accuracy_unreliable"):
        assert torch.equal(plain.stats[name], floored.stats[name])
    assert torch.equal(one.queues.storage, other.queues.storage)


def test_prototypes_change_only_the_contrastive_loss_and_only_from_the_second_step_on():
    (_, plain), (made, first) = outputs_of({}, {"prototype_momentum": 0.9})
    assert plain.named["loss_contrastive"].item() == pytest.approx(first.named["loss_contrastive"].item(), rel=1e-5)
    with torch.no_grad():
        made.prototypes.vectors.copy_(-made.prototypes.vectors)
    made.prototypes.updates.fill_(100)
    torch.manual_seed(1)
    student, batch = make_student(), watched_batch(3)
    torch.manual_seed(5)
    later = made(student, batch, 10, 40)
    assert later.named["loss_contrastive"] > first.named["loss_contrastive"] + 0.1


def test_unlearnt_classes_protect_their_pixels_but_remain_negatives():
    """A hand-made bank: class 2 is unlearnt. Whoever has it among the first two ranks is not reliable."""
    step = make_step(make_student(), protect_unlearnt=0.3)
    step.bank.confidence.copy_(torch.tensor([0.9, 0.3, 0.2999, 0.8]))
    logits = torch.tensor([[9.0, 1, 0, 0], [9, 0, 1, 0], [0, 0, 9, 1], [0, 9, 0, 1], [0, 0.1, 0.2, 0.3], [0, 0, 1, 9]])
    logits = logits.t().reshape(1, 4, 1, 6)
    labels = logits.argmax(1)
    found = step.split(logits, labels, 0.0)
    assert found.reliable.flatten().tolist() == [True, False, False, True, False, False]
    unprotected = make_step(make_student()).split(logits, labels, 0.0)
    assert torch.equal(found.unreliable, unprotected.unreliable) and found.unreliable.sum() == 2
    assert unprotected.reliable.sum() == 4
    step.bank.confidence.fill_(0.3)
    assert torch.equal(step.split(logits, labels, 0.0).reliable, unprotected.reliable)


def test_class_quantiles_split_each_class_and_padding_has_no_say():
    step = make_step(make_student(), class_quantiles=True, unreliable_share=0.4)
    logits, labels = torch.randn(2, CLASSES, 9, 8) * 2, torch.randint(0, 3, (2, 9, 8))
    labels[:, 0] = 255
    split = step.split(logits, labels, 0.5)
    gammas = []
    for c in range(3):
        own = labels == c
        gammas.append(np.quantile(split.entropy[own].double().numpy(), 0.8))
        assert torch.equal(split.reliable[own], split.entropy[own] < gammas[-1])
    assert split.gamma.item() == pytest.approx(np.mean(gammas), rel=1e-6) and split.alpha == 0.2
    assert torch.equal(split.valid, labels != 255) and torch.equal(split.reliable ^ split.unreliable, split.valid)


def test_bank_learns_from_labelled_images_in_warm_up_and_after_it():
    student, batch = make_student(), make_batch()
    step = make_step(student, protect_unlearnt=0.2, warmup_steps=1)
    expected = torch.zeros(CLASSES, dtype=torch.float64)
    for number in range(3):
        with torch.no_grad():
            reference = copy.deepcopy(student)
        images = [batch.x_l]
        student.register_forward_pre_hook(lambda module, args, images=images: images.append(args[0]))
        output = step(student, batch, number, 10)
        with torch.no_grad():
            prob = reference(images[-1]).logits[:2].double().softmax(1)
        labels = pl.nearest_on_corners(batch.y_l, prob.shape[-2:])
        for c in range(CLASSES):
            mean = prob[:, c][labels == c].mean()
            expected[c] = 0.99 * expected[c] + 0.01 * mean if number else mean
        torch.testing.assert_close(output.stats["confidence_per_class"], expected.float(), rtol=1e-4, atol=1e-6)


# Strong views


@pytest.mark.parametrize("augmentation", ["cutmix", "cutout", "classmix"])
@pytest.mark.parametrize("colour", [True, False])
def test_all_that_belongs_to_a_pixel_travels_with_it(augmentation, colour):
    """Where a pixel of the uncoloured image lies, its label, probability, truth and coloured pixel lie too."""
    step, batch = make_step(make_student(), strong_augmentation=augmentation, strong_probability=1.0,
                            strong_colour=colour), watched_batch(3)  # fmt: skip
    with torch.no_grad():
        prob = pl.resize_logits(step.teacher(batch.x_u).logits, (SIZE, SIZE)).softmax(1)
    torch.manual_seed(3)
    coloured = strong_view(batch.x_u) * batch.valid_u.unsqueeze(1) if colour else batch.x_u
    torch.manual_seed(3)
    mixed = step.pseudo_label(batch)
    weak = mixed.weak if colour else mixed.x
    assert (mixed.weak is not None) == colour
    labels = prob.argmax(1).masked_fill(~batch.valid_u, 255)
    whole = [m if m.dim() == 4 else m.unsqueeze(1) for m in (batch.x_u, coloured, prob.amax(1), labels, batch.y_u)]
    found = [m if m.dim() == 4 else m.unsqueeze(1) for m in (weak, mixed.x, mixed.prob, mixed.labels, mixed.y)]
    whole, found = (torch.cat([m.double() for m in maps], dim=1) for maps in (whole, found))
    own, following = (found == whole).all(1), (found == whole.roll(-1, 0)).all(1)
    blank = (found[:, :6] == 0).all(1) & (found[:, 7] == 255)
    assert own.any() and not own.all()
    assert (own | (blank if augmentation == "cutout" else following)).all()


def test_each_image_draws_whether_it_is_mixed():
    """Batches of two, 0.3: as often as two independent draws; without the option both or none."""
    images, labels = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int64)
    for per_image, shares in ((True, (0.49, 0.21, 0.21, 0.09)), (False, (0.7, 0, 0, 0.3))):
        step = make_step(make_student(), strong_per_image=per_image, strong_probability=0.3)
        changed = torch.stack([(step.mix(images, labels)[0] != images).flatten(1).any(1) for _ in range(1500)])
        counts = torch.bincount(2 * changed[:, 0] + changed[:, 1], minlength=4).numpy()
        here = np.array(shares) > 0
        assert not counts[~here].any()
        assert_frequencies(counts[here], 1500 * np.array(shares)[here])


@pytest.mark.parametrize("options", [{"variant": "robust"}, SOME, {**EVERYTHING, "ema_from_start": False}])
def test_teacher_never_sees_changed_colours(options):
    student, batch = make_student(), watched_batch(3)
    step, seen, shown = make_step(student, **options), [], []
    step.teacher.register_forward_pre_hook(lambda module, args: seen.append((args[0], module.training)))
    student.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    step(student, batch, 0, 10)
    (first, _), (second, _) = seen
    assert torch.equal(first, batch.x_u) and torch.equal(second[:3], batch.x_l) and torch.equal(shown[0][:3], batch.x_l)
    mixed = second[3:]
    own, following = ((mixed == batch.x_u.roll(-k, 0)).all(1) for k in (0, 1))
    assert (own | following).all()
    padding = ~torch.where(own, batch.valid_u, batch.valid_u.roll(-1, 0))
    assert padding.any() and (shown[0][3:].movedim(1, -1)[padding] == 0).all()
    assert not torch.allclose(shown[0][3:], mixed)


# The moving average from the start


def test_an_average_from_the_start_is_no_copy_when_warm_up_ends():
    student, batch = make_student(), make_batch()
    step = make_step(student, warmup_steps=2, ema_from_start=True, ema_decay=0.3)
    names = [n for n in student.state_dict() if n.endswith(("classifier.0.weight", "running_mean", "running_var"))]
    expected = {name: step.teacher.state_dict()[name].clone() for name in names}
    for number, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        before = {n: v.clone() for n, v in step.teacher.state_dict().items()}
        step.begin(student, number)
        step(student, batch, number, 10).total.backward()
        # Neither the beginning nor the teacher's own passes move it.
        assert all(torch.equal(v, before[n]) for n, v in step.teacher.state_dict().items())
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.1 * parameter.grad
        step.finish(student, number)
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * student.state_dict()[name]
            torch.testing.assert_close(step.teacher.state_dict()[name], expected[name], rtol=1e-4, atol=1e-6)
        assert not step.teacher.training
        assert step.model_to_evaluate(student, number) is step.teacher


def test_teacher_is_in_eval_mode_in_both_passes_where_it_averages_from_the_start():
    for from_start in (True, False):
        student = make_student()
        step, modes = make_step(student, ema_from_start=from_start), []
        norm = next(m for m in step.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d))
        norm.register_forward_pre_hook(lambda module, args, modes=modes: modes.append(module.training))
        step(student, make_batch(), 0, 10)
        assert modes == [False, not from_start]


@pytest.mark.parametrize("options", [EVERYTHING, {"variant": "robust"}], ids=["everything", "robust"])
@pytest.mark.parametrize("case", ["all labels ignored", "all padding", "batch of one", "nothing learnt"])
def test_edge_cases_are_finite(options, case):
    student, batch = make_student(), watched_batch(1 if case == "batch of one" else 2)
    step = make_step(student, **options)
    if step.bank is not None and case != "nothing learnt":
        step.bank.confidence.fill_(0.9)
    if case == "all labels ignored":
        batch.y_l.fill_(255)
    elif case == "all padding":
        batch.valid_u.fill_(False)
    output = step(student, batch, 5, 10)
    output.total.backward()
    assert output.total.isfinite() and all(p.grad.isfinite().all() for p in student.parameters())
    assert all(value.isfinite().all() for value in step.state_dict().values())
    if case in ("all padding", "nothing learnt") and (case != "nothing learnt" or step.bank is not None):
        assert output.named["loss_unsupervised"] == 0


def test_partners_of_badly_known_classes_and_everything_else_at_once():
    student = make_student()
    step = make_step(student, partner="class", **EVERYTHING)
    batch = numbered(dataclasses.replace(watched_batch(3), y_u=None))
    for number in range(2):
        output = step(student, batch, number, 10)
        output.total.backward()
        step.finish(student, number)
        assert output.total.isfinite() and step.partners.chosen is not None
        assert output.stats["component_share"].isfinite() and (step.bank.confidence > 0).all()
    # The second pass took what the first chose: two requests by the passes, one before the first.
    assert len(step.partners.pool.asked) == 3
