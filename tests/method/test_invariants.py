"""Properties that hold for any input; random inputs from fixed seeds."""

import numpy as np
import pytest
import torch

from u2pl_hf.method import losses, mixing
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.queues import ClassQueues

SIZE = (5, 6)


def random_maps(classes: int, images: int):
    """labels_l, unreliable_u and the teacher's probabilities of both halves, as `negative_mask` takes them."""
    labels = torch.randint(0, classes, (images, *SIZE))
    labels[torch.rand(labels.shape) < 0.2] = 255
    prob = torch.randn(2, images, classes, *SIZE).mul(2).softmax(2)
    return labels, prob[0], torch.rand(images, *SIZE) < 0.5, prob[1]


def rename(labels: torch.Tensor, new_ids: torch.Tensor) -> torch.Tensor:
    return torch.where(labels == 255, labels, new_ids[labels.clamp(max=len(new_ids) - 1)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 7, 21])
def test_renamed_classes_rename_the_masks(classes, seed):
    torch.manual_seed(seed)
    labels, prob_l, unreliable, prob_u = random_maps(classes, 2)
    order = torch.randperm(classes)  # class i of the renamed maps is class order[i] of the given ones
    new_ids = order.argsort()
    low = pl.default_low_rank(classes)
    negatives = pl.negative_mask(labels, prob_l, unreliable, prob_u, low, 20)
    renamed = pl.negative_mask(rename(labels, new_ids), prob_l[:, order], unreliable, prob_u[:, order], low, 20)
    assert torch.equal(renamed, negatives[:, order])
    anchors = pl.anchor_mask(labels, prob_l, 0.3)
    assert torch.equal(pl.anchor_mask(rename(labels, new_ids), prob_l[:, order], 0.3), anchors[:, order])


@pytest.mark.parametrize("seed", range(5))
def test_permuted_images_permute_the_masks(seed):
    torch.manual_seed(seed)
    images = 3
    labels, prob_l, unreliable, prob_u = random_maps(5, images)
    order_l, order_u = torch.randperm(images), torch.randperm(images)
    negatives = pl.negative_mask(labels, prob_l, unreliable, prob_u, 2, 4)
    permuted = pl.negative_mask(labels[order_l], prob_l[order_l], unreliable[order_u], prob_u[order_u], 2, 4)
    assert torch.equal(permuted, negatives[torch.cat([order_l, images + order_u])])
    anchors = pl.anchor_mask(labels, prob_l, 0.3)
    assert torch.equal(pl.anchor_mask(labels[order_l], prob_l[order_l], 0.3), anchors[order_l])


@pytest.mark.parametrize("classes", [3, 10, 60, 150])
def test_masks_equal_counting_for_many_classes(classes):
    """Ranks counted pixel by pixel, in numpy."""
    labels, prob_l, unreliable, prob_u = random_maps(classes, 2)
    low, high = pl.default_low_rank(classes), 20
    negatives = pl.negative_mask(labels, prob_l, unreliable, prob_u, low, high).numpy()
    anchors = pl.anchor_mask(labels, prob_l, 0.3).numpy()
    ids = np.arange(classes)
    for b, y, x in np.ndindex(4, *SIZE):
        p = (prob_l if b < 2 else prob_u)[b % 2, :, y, x].numpy()
        rank = (p[None] > p[:, None]).sum(1)
        if b < 2:
            label = labels[b, y, x].item()
            expected = (ids != label) & (rank < low) & (label != 255)
            assert (anchors[b, :, y, x] == ((ids == label) & (p > 0.3))).all()
        else:
            expected = bool(unreliable[b - 2, y, x]) & (low <= rank) & (rank < high)
        assert (negatives[b, :, y, x] == expected).all()


@pytest.mark.parametrize("seed", range(3))
def test_unsupervised_loss_sees_reliable_pixels_only(seed):
    torch.manual_seed(seed)
    logits, pseudo_labels = torch.randn(2, 4, *SIZE), torch.randint(0, 4, (2, *SIZE))
    pseudo_labels[:, 0] = 255
    reliable = (torch.rand(2, *SIZE) < 0.5) & (pseudo_labels != 255)
    elsewhere = torch.where(reliable.unsqueeze(1), logits, torch.randn_like(logits) * 60)
    changed_labels = torch.where(reliable | (pseudo_labels == 255), pseudo_labels, 3 - pseudo_labels)
    expected = losses.unsupervised_loss(logits, pseudo_labels, reliable)
    assert losses.unsupervised_loss(elsewhere, changed_labels, reliable) == expected
    logits.requires_grad_()
    losses.unsupervised_loss(logits, pseudo_labels, reliable).backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, reliable)


def test_contrastive_gradient_equals_finite_differences():
    """Two of three classes have anchors; the draws are the same at each evaluation."""
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    anchors = torch.rand(2, 3, 2, 2) < 0.5
    anchors[:, 1] = False
    queues = ClassQueues([8] * 3, 3, dtype=torch.float32)
    queues.push(torch.randn(3, 5, 3), torch.ones(3, 5, dtype=torch.bool))

    def loss(student):
        torch.manual_seed(0)
        return losses.contrastive_loss(student, teacher, anchors, queues, num_anchors=4, num_negatives=3)[0]

    assert loss(student) > 0 and torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_logits_stay_finite_and_precise_under_autocast(dtype):
    logits = torch.randn(2, 5, *SIZE).sign().mul(60).to(dtype)
    labels = torch.randint(0, 5, (2, *SIZE))
    wide = logits.float().requires_grad_()
    with torch.autocast("cpu", dtype):
        entropy, resized = pl.pixel_entropy(logits), pl.resize_logits(logits, (9, 11))
        values = [losses.cross_entropy(wide, labels), losses.ohem_cross_entropy(wide, labels, min_kept=5)]
        values.append(losses.unsupervised_loss(wide, labels, labels >= 0))
    assert entropy.dtype == resized.dtype == torch.float32
    assert torch.equal(entropy, pl.pixel_entropy(logits.float())) and entropy.isfinite().all() and (entropy >= 0).all()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)
    sum(values).backward()
    assert wide.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_loss_is_float32_under_autocast(dtype):
    """Vectors whose squares overflow half precision; one anchor and one key, so that draws do not matter."""
    student, teacher = (torch.randn(1, 16, 1, 1).mul(1000).to(dtype) for _ in range(2))
    student, anchors = student.float().requires_grad_(), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    queues = ClassQueues([1], 16)
    queues.push(torch.randn(1, 1, 16), torch.ones(1, 1, dtype=torch.bool))
    expected, _ = losses.contrastive_loss(student, teacher.float(), anchors, queues)
    with torch.autocast("cpu", dtype):
        value, _ = losses.contrastive_loss(student, teacher, anchors, queues)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", list(mixing.STRONG_AUGMENTATIONS))
def test_mixing_invents_no_class(name):
    labels = torch.tensor([1, 3, 255])[torch.randint(0, 3, (3, 16, 16))]
    _, mixed = mixing.STRONG_AUGMENTATIONS[name](torch.randn(3, 3, 16, 16), labels, 5)
    assert set(mixed.unique().tolist()) <= {1, 3, 255} and mixed.dtype == labels.dtype
