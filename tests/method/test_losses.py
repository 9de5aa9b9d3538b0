import math

import numpy as np
import pytest
import torch

from tests.golden import load_golden
from u2pl_hf.method import losses
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.queues import ClassQueues

OHEM, _ = load_golden("ohem")
UNSUPERVISED, _ = load_golden("unsupervised")


@pytest.mark.parametrize("case", [name for name in OHEM if name.startswith("loss.")])
def test_ohem_equals_published(case):
    threshold, kept = case.removeprefix("loss.thresh").split(".min_kept")
    loss = losses.ohem_cross_entropy(OHEM["logits"], OHEM["labels"], float(threshold), int(kept))
    assert loss.item() == pytest.approx(OHEM[case].item(), abs=1e-5)


@pytest.mark.parametrize("case", [name for name in UNSUPERVISED if name.startswith("loss.")])
def test_unsupervised_equals_published(case):
    percent = float(case.removeprefix("loss.percent"))
    entropy = pl.pixel_entropy(UNSUPERVISED["teacher_logits"])
    pseudo_labels = UNSUPERVISED["pseudo_labels"]
    reliable, _ = pl.split_by_entropy(entropy, pseudo_labels != 255, 1 - percent / 100)
    loss = losses.unsupervised_loss(UNSUPERVISED["student_logits"], pseudo_labels, reliable)
    assert loss.item() == pytest.approx(UNSUPERVISED[case].item(), abs=1e-5)


def naive_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Cross-entropy of each pixel that is not ignored, one by one."""
    result = []
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != 255:
            scores = logits[b, :, y, x]
            result.append(math.log(sum(math.exp(s) for s in scores)) - scores[labels[b, y, x]])
    return result


@pytest.mark.parametrize("ignored", [0, 5])
def test_pixel_losses_do_not_depend_on_the_memory_layout(ignored):
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    labels[:, :ignored] = 255
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = logits.clone(memory_format=layout).requires_grad_()
        found = losses.pixel_losses(laid_out, labels)
        found.square().sum().backward()
        results.append((found.detach(), laid_out.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert torch.equal(results[0][0].view_as(labels) == 0, labels == 255)


@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_and_ohem_equal_loops(classes):
    logits = torch.randn(2, classes, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 4, 5))
    labels[0, 0] = 255
    values = naive_cross_entropy(logits.numpy(), labels.numpy())
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(np.mean(values), rel=1e-12)
    for threshold, kept in [(0.7, 5), (0.05, 12), (0.0, 1), (0.3, 35), (0.3, 1000), (0.4, 0)]:
        limit = max(threshold, sorted(math.exp(-v) for v in values)[kept - 1]) if 0 < kept <= len(values) else threshold
        expected = [v for v in values if math.exp(-v) <= limit * (1 + 1e-12) or kept > len(values)]
        loss = losses.ohem_cross_entropy(logits, labels, threshold, kept)
        assert loss.item() == pytest.approx(np.mean(expected) if expected else 0.0, rel=1e-12)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.ohem_cross_entropy])
def test_all_ignored_gives_zero_with_gradient(loss):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = loss(logits, torch.full((1, 2, 2), 255))
    value.backward()
    assert value == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_do_not_matter():
    logits, labels = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    labels[:, :2] = 255
    changed = logits.clone()
    changed[:, :, :2] = torch.randn(2, 4, 2, 6) * 60
    for loss in (losses.cross_entropy, losses.ohem_cross_entropy):
        assert loss(logits, labels) == loss(changed, labels)


def test_unsupervised_weight_and_empty():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    pseudo_labels = torch.randint(0, 3, (2, 4, 4))
    reliable = torch.zeros(2, 4, 4, dtype=torch.bool)
    reliable[0, 0] = True
    targets = pseudo_labels.masked_fill(~reliable, 255)
    expected = np.mean(naive_cross_entropy(logits.detach().numpy(), targets.numpy())) * 32 / 4
    assert losses.unsupervised_loss(logits, pseudo_labels, reliable).item() == pytest.approx(expected, rel=1e-12)
    nothing = losses.unsupervised_loss(logits, pseudo_labels, torch.zeros_like(reliable))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None


def naive_info_nce(anchors, positive, negatives, temperature):
    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    total = 0.0
    for anchor, own in zip(anchors, negatives, strict=True):
        good = math.exp(cosine(anchor, positive) / temperature)
        bad = sum(math.exp(cosine(anchor, negative) / temperature) for negative in own)
        total -= math.log(good / (good + bad))
    return total / len(anchors)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrastive_loss_closed_form(temperature):
    """All similarities equal: log(1 + N), whatever the temperature."""
    same, anchors = torch.ones(1, 4, 3, 3), torch.ones(1, 2, 3, 3, dtype=torch.bool)
    queues = ClassQueues([4, 4], 4)
    queues.push(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    loss, _ = losses.contrastive_loss(same, same, anchors, queues, num_negatives=50, temperature=temperature)
    assert loss.item() == pytest.approx(math.log(51), rel=1e-6)


@pytest.mark.parametrize("budget", [1, 3000, 2**30])
def test_sampled_logsumexp_equals_numpy_in_pieces_of_any_size(monkeypatch, budget):
    """Value and gradient against the gathered tensor; a few classes at a time change nothing."""
    monkeypatch.setattr(losses, "NEGATIVES_BYTES", budget)
    table = torch.randn(20, 4, dtype=torch.float64)
    rows = torch.randint(0, 20, (5, 3, 6))
    anchors = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    value = losses.SampledLogSumExp.apply(anchors, table, rows, 0.5)
    gathered = table.numpy()[rows.numpy()]
    similarity = np.einsum("sad,sand->san", anchors.detach().numpy(), gathered) / 0.5
    assert np.allclose(value.detach().numpy(), np.log(np.exp(similarity).sum(-1)), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda a: losses.SampledLogSumExp.apply(a, table, rows, 0.5), anchors)


def test_visited_classes_are_all_used_ones_or_a_random_choice_of_them():
    used = torch.zeros(40, dtype=torch.bool)
    assert len(losses.visited_classes(used, 32)) == 1
    used[::4] = True
    assert sorted(losses.visited_classes(used, 32).tolist()) == list(range(0, 40, 4))
    counts = sum(torch.bincount(losses.visited_classes(used, 5), minlength=40) for _ in range(2000))
    assert counts[~used].sum() == 0
    assert (counts[used] - 1000).abs().max() < 150  # 2000 draws of 5 out of 10; six standard deviations are 134


def test_of_more_classes_than_the_bound_the_mean_is_unbiased():
    """Each class's loss is determined; the mean over many random choices is the mean over all classes."""
    classes, dim = 6, 4
    student, teacher = torch.randn(1, dim, 1, classes), torch.randn(1, dim, 1, classes)
    anchors = torch.eye(classes, dtype=torch.bool).view(1, classes, 1, classes)
    queues = filled_queues(classes, dim, keys=1)
    options = {"num_anchors": 2, "num_negatives": 2}
    whole, used = losses.contrastive_loss(student, teacher, anchors, queues, **options)
    assert used.all()
    parts = torch.stack(
        [losses.contrastive_loss(student, teacher, anchors, queues, max_classes=2, **options)[0] for _ in range(600)]
    )
    assert parts.std() > 0 and (parts.mean() - whole).abs() < 5 * parts.std() / 600**0.5


def test_accuracy_counts_labelled_pixels_only():
    pseudo = torch.tensor([[[0, 1, 1, 2]]])
    labels = torch.tensor([[[0, 1, 2, 255]]])
    assert losses.accuracy(pseudo, labels, torch.ones(1, 1, 4, dtype=torch.bool)).item() == pytest.approx(2 / 3)
    assert losses.accuracy(pseudo, labels, torch.tensor([[[False, False, False, True]]])).isnan()


def filled_queues(classes: int, dim: int, keys: int = 6) -> ClassQueues:
    queues = ClassQueues([16] * classes, dim, dtype=torch.float32)
    queues.push(torch.randn(classes, keys, dim), torch.ones(classes, keys, dtype=torch.bool))
    return queues


def test_contrastive_loss_equals_loops_where_draws_do_not_matter():
    """One anchor pixel per class and one key per queue: every draw is the same, so the value is determined."""
    classes, dim = 3, 4
    student, teacher = torch.randn(2, dim, 2, 2), torch.randn(2, dim, 2, 2)
    anchors = torch.zeros(2, classes, 2, 2, dtype=torch.bool)
    anchors[0, 0, 1, 0] = anchors[1, 2, 0, 1] = True  # class 1 has no anchor
    queues = filled_queues(classes, dim, keys=1)
    loss, used = losses.contrastive_loss(student, teacher, anchors, queues, num_anchors=3, num_negatives=2)
    expected = []
    for c, (b, y, x) in {0: (0, 1, 0), 2: (1, 0, 1)}.items():
        anchor, positive, key = student[b, :, y, x], teacher[b, :, y, x], queues.oldest_first(c)
        expected.append(naive_info_nce([anchor.numpy()], positive.numpy(), [key.expand(2, -1).numpy()], 0.5))
    assert used.tolist() == [True, False, True]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_prototypes_are_the_positives_where_they_are_given():
    """As above; the teacher's representation and the mask of positives do not matter then."""
    classes, dim = 3, 4
    student, prototypes = torch.randn(1, dim, 2, 2), torch.randn(classes, dim)
    anchors = torch.zeros(1, classes, 2, 2, dtype=torch.bool)
    anchors[0, 1, 1, 0] = anchors[0, 2, 0, 1] = True
    queues = filled_queues(classes, dim, keys=1)
    values = []
    for teacher in torch.randn(2, 1, dim, 2, 2).unbind(0):
        value, _ = losses.contrastive_loss(student, teacher, anchors, queues, prototypes=prototypes,
                                           num_anchors=3, num_negatives=2)  # fmt: skip
        values.append(value)
    expected = []
    for c, (y, x) in {1: (1, 0), 2: (0, 1)}.items():
        anchor, key = student[0, :, y, x], queues.oldest_first(c).expand(2, -1)
        expected.append(naive_info_nce([anchor.numpy()], prototypes[c].numpy(), [key.numpy()], 0.5))
    assert values[0].item() == values[1].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_positive_is_the_mean_over_anchor_pixels():
    vectors, mask = torch.randn(10, 4), torch.zeros(2, 10, dtype=torch.bool)
    mask[0, [1, 3, 8]] = True
    means = losses.class_means(vectors, mask)
    assert torch.allclose(means[0], vectors[[1, 3, 8]].mean(0)) and torch.equal(means[1], torch.zeros(4))


def test_drawn_pixels_are_uniform_over_the_mask():
    mask = torch.zeros(2, 50, dtype=torch.bool)
    mask[0, [0, 7, 49]] = True
    counts = torch.bincount(losses.draw_pixels(mask, 30_000)[0], minlength=50)
    assert counts[[0, 7, 49]].sum() == 30_000
    assert ((counts[[0, 7, 49]] - 10_000).abs() < 500).all()  # six standard deviations


@pytest.mark.parametrize("state", ["no anchors", "empty queues", "one class"])
def test_contrastive_edge_cases_are_finite(state):
    student = torch.randn(1, 4, 3, 3, requires_grad=True)
    anchors = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    queues = filled_queues(2, 4)
    if state == "no anchors":
        anchors[:] = False
    elif state == "empty queues":
        queues = ClassQueues([4, 4], 4)
    else:
        anchors[:, 1] = False
    loss, used = losses.contrastive_loss(student, torch.randn(1, 4, 3, 3), anchors, queues)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert (loss > 0) == (state == "one class") == bool(used.any())


def test_no_gradient_reaches_teacher_or_queue():
    student, teacher = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(1, 4, 3, 3, requires_grad=True)
    anchors = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    loss, _ = losses.contrastive_loss(student, teacher, anchors, filled_queues(2, 4))
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_losses_are_float32_under_autocast():
    logits = torch.randn(1, 3, 4, 4).mul(60).bfloat16()
    rep, anchors = torch.randn(1, 4, 4, 4).bfloat16(), torch.ones(1, 3, 4, 4, dtype=torch.bool)
    labels = torch.randint(0, 3, (1, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        contrastive, _ = losses.contrastive_loss(rep, rep, anchors, filled_queues(3, 4))
        values = [losses.cross_entropy(logits, labels), losses.ohem_cross_entropy(logits, labels), contrastive]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)


def test_unused_classes_that_fill_up_on_accelerators_do_not_count(monkeypatch):
    """There the number of visited classes must not depend on values: classes without anchors are visited too."""
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 2, 8, 4, 4).unbind(0)
    anchors = torch.rand(2, 5, 4, 4) < 0.5
    anchors[:, 3] = False
    queues = ClassQueues([2] * 5, 8)
    # One key per class and one anchor pixel would do; with all keys equal the draws do not matter either.
    queues.push(torch.randn(5, 1, 8).expand(-1, 2, -1), torch.tensor([[True, True]] * 4 + [[False, False]]))
    loss, used = contrastive_without_draws(student, teacher, anchors, queues)
    monkeypatch.setattr(losses, "visited_classes", lambda used, bound: torch.arange(len(used)))
    all_visited, all_used = contrastive_without_draws(student, teacher, anchors, queues)
    assert used.tolist() == all_used.tolist() == [True, True, True, False, False]
    torch.testing.assert_close(all_visited, loss)


def contrastive_without_draws(student, teacher, anchors, queues):
    """All anchors of a class show the same vector: which of them are drawn does not matter."""
    return losses.contrastive_loss(
        student.mean(dim=(0, 2, 3), keepdim=True).expand_as(student), teacher, anchors, queues
    )
