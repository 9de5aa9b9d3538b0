"""One whole step on a small real model."""

import contextlib
import copy
import dataclasses

import pytest
import torch

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.method import losses
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.batch import Batch
from u2pl_hf.method.suponly import SupOnly
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.method.u2pl import U2PL

CLASSES, SIZE = 4, 33


def make_student(representation: int = 8, **options) -> U2PLForSemanticSegmentation:
    return U2PLForSemanticSegmentation(
        U2PLConfig(
            backbone="resnet18",
            base_width=8,
            head_channels=8,
            representation_channels=representation,
            num_labels=CLASSES,
            aspp_dilations=[1, 2, 3],
            dropout=0.0,
            **options,
        )
    )


def make_settings(kind: type[U2PL] = U2PL, **changes) -> U2PL.Settings:
    small = {"low_rank": 2, "queue_length": 64, "background_queue_length": 96, "strong_probability": 0.0}
    return kind.Settings(**{**small, "anchor_threshold": 0.1, **changes})


def make_batch(images: int = 2) -> Batch:
    labels = torch.randint(0, CLASSES, (images, SIZE, SIZE))
    labels[:, :3] = 255
    valid = torch.ones(images, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, :4] = False
    return Batch(torch.randn(images, 3, SIZE, SIZE), labels, torch.randn(images, 3, SIZE, SIZE), valid)


def test_step_equals_the_method_written_out():
    """The order of method.md, once more, from a copied state: every loss except the drawn one, and what is pushed."""
    student, batch = make_student(), make_batch()
    step = U2PL(make_settings(unreliable_share=0.3, unsupervised_weight=0.7), student)
    reference_student, reference_teacher = copy.deepcopy(student), copy.deepcopy(step.teacher)
    output = step(student, batch, step=10, total_steps=40)

    with torch.no_grad():
        pseudo = pl.resize_logits(reference_teacher(batch.x_u).logits, (SIZE, SIZE)).argmax(1)
        pseudo[~batch.valid_u] = 255
        images = torch.cat([batch.x_l, batch.x_u])
        logits = pl.resize_logits(reference_student(images).logits, (SIZE, SIZE))
        with batch_statistics(reference_teacher):
            teacher = reference_teacher(images)
        entropy = pl.pixel_entropy(pl.resize_logits(teacher.logits[2:], (SIZE, SIZE)))
        reliable, unreliable = pl.split_by_entropy(entropy, pseudo != 255, 0.3 * (1 - 10 / 40))
    expected_s = losses.cross_entropy(logits[:2], batch.y_l)
    expected_u = losses.unsupervised_loss(logits[2:], pseudo, reliable)
    assert output.named["loss_supervised"].item() == pytest.approx(expected_s.item(), rel=1e-5)
    assert output.named["loss_unsupervised"].item() == pytest.approx(expected_u.item(), rel=1e-5)
    weights = {"supervised": 1.0, "unsupervised": 0.7, "contrastive": 0.1}
    weighted = sum(weight * output.named[f"loss_{name}"] for name, weight in weights.items())
    assert output.total.item() == pytest.approx(weighted.item(), rel=1e-6)

    size = teacher.logits.shape[-2:]
    negatives = pl.negative_mask(
        pl.nearest_on_corners(batch.y_l, size),
        teacher.logits[:2].softmax(1),
        pl.nearest_on_corners(unreliable, size),
        teacher.logits[2:].softmax(1),
        2,
        20,
    )
    assert step.queues.pushed.tolist() == negatives.sum((0, 2, 3)).clamp(max=256).tolist()
    assert step.queues.pushed.sum() > 0
    # The teacher's own pass in train mode has moved its BatchNorm statistics in the same way.
    for name, buffer in reference_teacher.named_buffers():
        assert torch.allclose(step.teacher.get_buffer(name), buffer), name


def test_contrastive_loss_trains_the_representation():
    student, batch = make_student(), make_batch()
    step = U2PL(make_settings(), student)
    output = step(student, batch, 0, 10)
    assert output.named["loss_contrastive"] > 0 and output.stats["anchor_classes"] > 0
    output.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert student.representation_head[-1].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in step.teacher.parameters())


def test_warm_up_is_supervised_and_ends_with_a_copy():
    student, batch = make_student(), make_batch()
    step = U2PL(make_settings(warmup_steps=2), student)
    output = step(student, batch, 1, 10)
    assert set(output.named) == {"loss", "loss_supervised"} and step.model_to_evaluate(student, 2) is student
    output.total.backward()
    assert all(p.grad is not None for p in student.parameters())  # distributed training needs every gradient
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1)
    step.finish(student, 1)
    assert not torch.equal(step.teacher.classifier[-1].weight, student.classifier[-1].weight)
    step.begin(student, 2)
    for name, value in student.state_dict().items():
        assert torch.equal(step.teacher.state_dict()[name], value), name
    assert step.model_to_evaluate(student, 3) is step.teacher


@pytest.mark.parametrize("mix", ["cutmix", "cutout", "classmix"])
def test_strong_augmentations_run(mix):
    student = make_student()
    step = U2PL(make_settings(strong_augmentation=mix, strong_probability=1.0), student)
    assert step(student, make_batch(), 0, 10).total.isfinite()


@pytest.mark.parametrize("case", ["all labels ignored", "all padding", "batch of one"])
def test_edge_cases_are_finite(case):
    student, batch = make_student(), make_batch(1 if case == "batch of one" else 2)
    if case == "all labels ignored":
        batch.y_l.fill_(255)
    elif case == "all padding":
        batch.valid_u.fill_(False)
    step = U2PL(make_settings(), student)
    output = step(student, batch, 0, 10)
    output.total.backward()
    assert output.total.isfinite() and all(p.grad.isfinite().all() for p in student.parameters())
    if case == "all padding":
        assert output.named["loss_unsupervised"] == 0
    if case == "all labels ignored":
        assert output.named["loss_supervised"] == 0


def test_supervised_with_ohem_and_auxiliary_head():
    student, batch = make_student(representation=0, auxiliary_head=True), make_batch()
    settings = SupOnly.Settings(supervised_loss="ohem", ohem_min_kept=100)
    step = SupOnly(settings, student)
    output = step(student, batch, 0, 10)
    with torch.no_grad():
        expected = student(batch.x_l)
    main, auxiliary = (
        losses.ohem_cross_entropy(pl.resize_logits(x, (SIZE, SIZE)), batch.y_l, 0.7, 100)
        for x in (expected.logits, expected.aux_logits)
    )
    assert output.total.item() == pytest.approx((main + 0.4 * auxiliary).item(), rel=1e-5)


def test_two_classes_have_negatives():
    student = U2PLForSemanticSegmentation(
        U2PLConfig(backbone="resnet18", base_width=8, head_channels=8, representation_channels=4, num_labels=2)
    )
    step = U2PL(U2PL.Settings(queue_length=9), student)
    batch = make_batch()
    batch.y_l[batch.y_l != 255] %= 2
    step(student, batch, 0, 10)
    assert (step.queues.pushed > 0).all()


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("options", [{}, {"supervised_loss": "ohem"}], ids=["ce", "ohem"])
def test_no_step_reads_back_to_the_host(monkeypatch, variant, options):
    """The whole step, backward and the average run on tensors that have no values; a read-back would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no such device
    student = make_student()
    step = U2PL(make_settings(variant=variant, strong_probability=1.0, **options), student).to("meta")
    student.to("meta")
    batch = make_batch()
    batch = Batch(*(tensor.to("meta") for tensor in (batch.x_l, batch.y_l, batch.x_u, batch.valid_u, batch.y_l)))
    step.begin(student, 0)
    output = step(student, batch, 1, 10)
    output.total.backward()
    step.finish(student, 1)
    assert all(parameter.grad is not None for parameter in student.parameters())
    with pytest.raises(RuntimeError):
        output.total.item()


@pytest.mark.parametrize("mix", ["cutmix", "cutout", "classmix"])
def test_watched_labels_are_mixed_like_their_images_and_change_nothing(mix):
    student, batch = make_student(), make_batch(3)
    step = U2PL(make_settings(strong_augmentation=mix), student)
    pseudo_labels = step.pseudo_label(batch).labels
    # Labels equal to the pseudo-labels: whatever is mixed, every pseudo-label is right.
    watched = dataclasses.replace(batch, y_u=pseudo_labels)
    outputs = []
    for given in (batch, watched):
        torch.manual_seed(1)
        fresh = U2PL(make_settings(strong_augmentation=mix, strong_probability=1.0), student)
        outputs.append(fresh(copy.deepcopy(student), given, step=3, total_steps=40))
    assert outputs[0].total == outputs[1].total and "accuracy_reliable" not in outputs[0].stats
    assert outputs[1].stats["accuracy_reliable"] == 1 and outputs[1].stats["accuracy_unreliable"] == 1
    wrong = dataclasses.replace(batch, y_u=(pseudo_labels + 1) % CLASSES)
    stats = step(student, wrong, step=3, total_steps=40).stats
    assert stats["accuracy_reliable"] == 0 and stats["accuracy_unreliable"] == 0


def test_stats_per_class():
    student, batch = make_student(), make_batch()
    step = U2PL(make_settings(new_keys_per_class=7), student)
    stats = step(student, batch, step=3, total_steps=40).stats
    assert torch.equal(stats["new_keys_per_class"], step.queues.pushed)
    assert stats["new_keys_per_class"].max() == 7
    assert torch.equal(stats["queue_fill_per_class"], step.queues.pushed / torch.tensor([96, 64, 64, 64]))
    assert (stats["anchors_per_class"] > 0).sum() >= stats["anchor_classes"]
