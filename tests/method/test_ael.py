"""AEL's parts against loops, counting and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch

from u2pl_hf.method import equalization as eq
from u2pl_hf.method.equalization import CategoryBank, ConfidenceBank

# chi-square is above these with probability 0.001, by degrees of freedom.
CHI_SQUARE = {2: 13.82, 3: 16.27, 4: 18.47, 9: 27.88}


def assert_frequencies(counts: list[int], expected: list[float]) -> None:
    """Pearson's test: counts against probabilities."""
    total = sum(counts)
    statistic = sum((n - total * p) ** 2 / (total * p) for n, p in zip(counts, expected, strict=True))
    assert statistic < CHI_SQUARE[len(counts) - 1]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum()


def test_confidence_closed_form():
    """The same batch n times: c = p (1 - 0.999^n)."""
    bank, logits = ConfidenceBank(2), torch.zeros(1, 2, 2, 2)
    logits[:, 0] = math.log(3.0)  # p = 0.75 for class 0
    for _ in range(500):
        bank.update(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    assert bank.confidence.tolist() == pytest.approx([0.75 * (1 - 0.999**500), 0.0], rel=1e-4)


def test_confidence_equals_loops_and_absent_classes_keep_their_value():
    bank, expected = ConfidenceBank(4, momentum=0.9), np.zeros(4)
    for _ in range(6):
        logits, labels = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5))
        absent = int(torch.randint(0, 4, ()))
        labels[labels == absent] = 255
        prob = np.exp(logits.double().numpy())
        prob /= prob.sum(axis=1, keepdims=True)
        for c in range(4):
            own = [prob[b, c, i, j] for b, i, j in np.ndindex(3, 5, 5) if labels[b, i, j] == c]
            if own:
                expected[c] = 0.9 * expected[c] + 0.1 * np.mean(own)
        before = float(bank.confidence[absent])
        bank.update(logits, labels)
        assert float(bank.confidence[absent]) == before
    assert bank.confidence.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("case", ["all ignored", "overflow"])
def test_confidence_stays_where_nothing_is_learnt(case):
    bank = ConfidenceBank(3)
    bank.confidence.copy_(torch.tensor([0.1, 0.2, 0.3]))
    labels = torch.full((1, 4, 4), 255 if case == "all ignored" else 1)
    bank.update(torch.full((1, 3, 4, 4), torch.inf if case == "overflow" else 0.0), labels)
    assert torch.equal(bank.confidence, torch.tensor([0.1, 0.2, 0.3]))


def test_categories_are_replaced_and_begin_at_one_per_cent_of_the_crop():
    bank = CategoryBank(5, 3)
    labels = torch.zeros(2, 20, 20, dtype=torch.long)
    labels[0, 0, :4] = 1  # 4 of 400
    labels[1, 0, :3] = 2  # 3 of 400
    bank.update(torch.tensor([3, 1]), labels)
    assert bank.holds.int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]
    bank.update(torch.tensor([3]), torch.full((1, 20, 20), 255))
    assert not bank.holds[3].any()


def test_of_a_row_that_comes_twice_the_last_one_counts():
    bank, labels = CategoryBank(4, 4), torch.arange(4).view(4, 1, 1).expand(4, 8, 8)
    bank.update(torch.tensor([2, 0, 2, 2]), labels)
    assert bank.holds.int().tolist() == [[0, 1, 0, 0], [0] * 4, [0, 0, 0, 1], [0] * 4]


def test_categories_of_another_number_of_rows_begin_empty():
    old, new = CategoryBank(4, 2), CategoryBank(8, 2)
    old.holds.fill_(True)
    new.holds.fill_(True)
    new.load_state_dict(old.state_dict())
    assert not new.holds.any()
    same = CategoryBank(4, 2)
    same.load_state_dict(old.state_dict())
    assert same.holds.all()


def test_rare_classes_come_in_their_probability_without_repetition():
    """Each set of three out of five: the sum over the orders it can be drawn in."""
    confidence = torch.tensor([0.0, 0.95, 0.2, 0.99, 0.5, 0.3, 0.999])
    rare = torch.tensor([1, 2, 3, 4, 6])
    weights = softmax(np.sqrt(1 - confidence[rare].double().numpy()))

    def probability(order: tuple[int, ...]) -> float:
        rest, result = 1.0, 1.0
        for place in order:
            result, rest = result * weights[place] / rest, rest - weights[place]
        return result

    sets = list(itertools.combinations(range(5), 3))
    expected = [sum(map(probability, itertools.permutations(s))) for s in sets]
    assert sum(expected) == pytest.approx(1.0)
    draw = generator(3)
    drawn = [sorted(eq.draw_rare_classes(confidence, rare, 3, draw).tolist()) for _ in range(3000)]
    assert_frequencies([drawn.count([int(rare[i]) for i in s]) for s in sets], expected)


def test_uncertain_classes_come_in_their_probability():
    confidence = torch.tensor([0.95, 0.1, 0.5, 0.0, 0.8])
    drawn = eq.draw_uncertain_classes(confidence, 5000, generator(1))
    expected = softmax(1 - confidence.double().numpy())
    assert_frequencies(drawn.bincount(minlength=5).tolist(), expected.tolist())


def test_rows_are_uniform_among_those_that_hold_or_else_among_all():
    holds = torch.tensor([[True, False, True, True], [False] * 4])
    draw = generator(2)
    drawn = torch.stack([eq.draw_rows(holds, draw) for _ in range(4000)])
    counts = drawn[:, 0].bincount(minlength=4).tolist()
    assert counts.pop(1) == 0
    assert_frequencies(counts, [1 / 3] * 3)
    assert_frequencies(drawn[:, 1].bincount(minlength=4).tolist(), [1 / 4] * 4)


def test_pasting_equals_loops():
    x, donor = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    labels, donor_labels = (torch.randint(0, 5, (2, 6, 7)) for _ in range(2))
    donor_labels[:, 0] = 255
    before = x.clone(), labels.clone()
    mixed, mixed_labels, pasted = eq.paste_classes(x, labels, donor, donor_labels, torch.tensor([1, 3, 4]))
    for b, i, j in np.ndindex(2, 6, 7):
        taken = int(donor_labels[b, i, j]) in (1, 3, 4)
        assert bool(pasted[b, i, j]) == taken
        assert torch.equal(mixed[b, :, i, j], (donor if taken else x)[b, :, i, j])
        assert mixed_labels[b, i, j] == (donor_labels if taken else labels)[b, i, j]
    assert torch.equal(x, before[0]) and torch.equal(labels, before[1])


def test_nothing_is_pasted_from_an_empty_donor():
    x, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    empty = torch.full((1, 4, 4), 255)
    mixed, mixed_labels, pasted = eq.paste_classes(x, labels, torch.zeros_like(x), empty, torch.arange(3))
    assert torch.equal(mixed, x) and torch.equal(mixed_labels, labels) and not pasted.any()


def component_masks() -> np.ndarray:
    """100 x 100, so that 0.5 % are 50 pixels: two large components and a small one; exactly 50 pixels; a diagonal."""
    masks = np.zeros((4, 100, 100), np.uint8)
    masks[0, 10:20, 5:35] = 1
    masks[0, 60:90, 50:60] = 1
    masks[0, 40:45, 90:95] = 1
    masks[1, :5, :10] = 1
    masks[2, np.arange(60), np.arange(60)] = 1  # touches at corners only
    return masks


@pytest.mark.parametrize(("place", "first"), [(0.0, [10, 5, 10, 30]), (0.49, [10, 5, 10, 30]), (0.5, [60, 50, 30, 10])])
def test_boxes_of_known_components(place, first):
    boxes = eq.component_boxes(component_masks(), np.full(4, place))
    # As large as 0.5 % is not larger; diagonal neighbours are one component; the last mask is empty.
    assert boxes.tolist() == [first, [0] * 4, [0, 0, 60, 60], [0] * 4]


def test_a_class_has_the_box_of_its_component_or_else_half_the_area():
    labels = torch.zeros(2, 100, 100, dtype=torch.long)
    labels[0, 30:50, 20:80] = 2
    boxes, is_component = eq.draw_class_boxes(labels, torch.tensor([2, 2]))
    expected = torch.zeros(100, 100, dtype=torch.bool)
    expected[30:50, 20:80] = True
    assert is_component.tolist() == [True, False] and torch.equal(boxes[0], expected)
    assert int(boxes[1].sum()) == pytest.approx(5000, rel=0.02)


def test_a_lone_class_fills_its_image():
    boxes, is_component = eq.draw_class_boxes(torch.ones(1, 9, 9, dtype=torch.long), torch.tensor([1]))
    assert is_component.all() and boxes.all()
    _, is_component = eq.draw_class_boxes(torch.full((1, 9, 9), 255), torch.tensor([1]))
    assert not is_component.any()


def test_half_boxes_have_half_the_area_and_the_height_of_the_method():
    height, width = 200, 300
    top, left, box_h, box_w = eq.half_boxes(4000, height, width, torch.device("cpu")).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + box_h <= height).all() and (left + box_w <= width).all()
    assert ((box_h * box_w) / (height * width / 2) - 1).abs().max() < 0.01
    # The share is 0.5^U, so U is uniform: the same number of boxes in each quarter of its range.
    u = -(box_h / height).log2()
    assert u.min() >= -0.01 and u.max() <= 1.01
    assert_frequencies(torch.histc(u, 4, min=0, max=1).int().tolist(), [1 / 4] * 4)
    # The position too is uniform within what the box leaves; boxes of full height leave none.
    free = (height - box_h) > 20
    place = (top[free] + 0.5) / (height - box_h[free] + 1)
    assert_frequencies(torch.histc(place, 4, min=0, max=1).int().tolist(), [1 / 4] * 4)


def test_keep_rates():
    assert eq.keep_rates(torch.tensor([0.5, 0.75, 0.9])).tolist() == pytest.approx([1.0, 0.5, 0.2], rel=1e-6)
    assert eq.keep_rates(torch.zeros(3)).tolist() == [1.0] * 3
    assert eq.keep_rates(torch.ones(3)).tolist() == [0.0] * 3


def consistency_loops(logits, targets, weights) -> float:
    """Weighted mean of the cross-entropy over what is not ignored, one pixel after the other."""
    total = mass = 0.0
    for b, i, j in np.ndindex(*targets.shape):
        if targets[b, i, j] != 255:
            z = logits[b, :, i, j]
            loss = np.log(np.exp(z - z.max()).sum()) + z.max() - z[targets[b, i, j]]
            total, mass = total + weights[b, i, j] * loss, mass + weights[b, i, j]
    return total / mass


def test_consistency_equals_loops_where_all_is_kept():
    """Equal confidences keep every pixel."""
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    targets, sure = torch.randint(0, 4, (2, 5, 6)), torch.rand(2, 5, 6, dtype=torch.float64)
    targets[0, :2] = 255
    loss, share = eq.equalised_consistency(logits, targets, sure, torch.full((4,), 0.3))
    assert loss.item() == pytest.approx(consistency_loops(logits.numpy(), targets.numpy(), sure.numpy() ** 2), rel=1e-9)
    assert share == 1


def test_pixels_count_by_the_class_that_the_student_sees():
    """A class of full confidence is never kept, the least known one always, another in its proportion."""
    student = torch.randint(0, 3, (4, 60, 60))
    logits = (8.0 * torch.nn.functional.one_hot(student, 3).movedim(-1, 1).float()).requires_grad_()
    targets = torch.randint(0, 3, student.shape)
    loss, share = eq.equalised_consistency(logits, targets, torch.ones(student.shape), torch.tensor([1.0, 0.6, 0.2]))
    loss.backward()
    learns = logits.grad.abs().sum(dim=1) > 0
    assert not learns[student == 0].any() and learns[student == 2].all()
    number = int((student == 1).sum())
    assert abs(int(learns[student == 1].sum()) - 0.5 * number) < 4 * math.sqrt(0.25 * number)
    assert share.item() == pytest.approx(learns.float().mean().item())
    # The kept ones alone make up the weight.
    expected = consistency_loops(logits.detach().double().numpy(), targets.numpy(), learns.double().numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_consistency_without_targets_is_zero_with_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    for confidence in (torch.zeros(3), torch.ones(3)):
        targets = torch.full((1, 4, 4), 255 if confidence[0] == 0 else 1)
        loss, share = eq.equalised_consistency(logits, targets, torch.ones(1, 4, 4), confidence)
        loss.backward()
        assert loss == 0 and share == 0 and not logits.grad.any()
