"""Variant `official` against numbers of the published code, against loops over pixels, and each difference alone."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.golden import load_golden
from tests.method.test_step import CLASSES, SIZE, make_batch, make_settings, make_student
from u2pl_hf.method import losses, official
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.pseudo_labels import Split
from u2pl_hf.method.queues import ClassQueues, select_keys
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.method.u2pl import U2PL

TEMPERATURE = 0.5


# The published code's numbers


def published_case():
    golden, metadata = load_golden("contrastive_official")
    cfg = json.loads(metadata["cfg"])
    labelled = len(golden["labels_l"])
    selection = official.select_pixels(
        golden["labels_l"],
        golden["pseudo_labels_u"],
        golden["anchor_mask"][labelled:],
        golden["negative_mask"][labelled:],
        golden["teacher_prob"],
        anchor_threshold=cfg["current_class_threshold"],
        low_rank=cfg["low_rank"],
        high_rank=cfg["high_rank"],
    )
    return golden, cfg, selection


@pytest.mark.parametrize("bound", [7, 100, 10_000])
def test_new_keys_equal_published_in_order(bound):
    golden, _, selection = published_case()
    keys, valid = select_keys(golden["teacher_rep"], selection.negatives, bound, in_order=True)
    assert valid.sum(dim=1).tolist() == golden["new_keys"].tolist()
    queues = ClassQueues([50] * len(keys), keys.shape[-1], dtype=torch.float32)
    queues.push(keys, valid)
    for c in range(len(keys)):
        assert torch.equal(keys[c, valid[c]], golden[f"bank.{c}"])
        assert torch.equal(queues.oldest_first(c), F.normalize(golden[f"bank.{c}"], dim=-1))


def test_loss_equals_published():
    golden, cfg, selection = published_case()
    keys, valid = select_keys(golden["teacher_rep"], selection.negatives, 50, in_order=True)
    queues = ClassQueues([50] * len(keys), keys.shape[-1])
    queues.push(keys, valid)
    losses = [
        official.contrastive_loss(
            golden["student_rep"],
            golden["teacher_rep"],
            selection.anchors,
            queues,
            positives=selection.positives,
            num_anchors=50 * cfg["num_queries"],  # a mean over anchors: more of them, same expectation
            num_negatives=cfg["num_negatives"],
            temperature=cfg["temperature"],
        )[0].item()
        for _ in range(20)
    ]
    mean, std = golden["loss_mean"].item(), golden["loss_std"].item()
    assert np.mean(losses) == pytest.approx(mean, abs=3 * std / 400**0.5)
    assert np.std(losses) * 50**0.5 == pytest.approx(std, rel=0.5)


# Loops over images, pixels and classes


def naive_classes(maps: np.ndarray) -> list:
    """The set of classes of each pixel of each image."""
    result = [[[set() for _ in row] for row in image] for image in maps]
    for y, x in np.ndindex(maps.shape[1:]):
        if maps[0, y, x] != 255:
            result[0][y][x] = {0 if image[y, x] == 255 else int(image[y, x]) for image in maps}
    return result


def naive_selection(labels_l, pseudo_labels_u, confident_u, unreliable_u, prob, threshold, low, high):
    """Per class the (image, row, column) of anchors, positives and negatives, in raster order."""
    classes = naive_classes(labels_l) + naive_classes(pseudo_labels_u)
    anchors, positives, negatives = ([[] for _ in range(prob.shape[1])] for _ in range(3))
    for b, c, y, x in np.ndindex(prob.shape):
        u = b - len(labels_l)
        if c not in classes[b][y][x]:
            continue
        p = prob[b, :, y, x]
        if u < 0 or confident_u[u, y, x]:
            positives[c].append((b, y, x))
            if p[c] > threshold:
                anchors[c].append((b, y, x))
        rank = sum(p[j] > p[c] or (p[j] == p[c] and j < c) for j in range(len(p)))
        if u >= 0 and unreliable_u[u, y, x] and low <= rank < high and p[c] < 1:
            negatives[c].append((b, y, x))
    return anchors, positives, negatives


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def naive_mean_loss(student, teacher, anchors, positives, queues) -> float:
    """The loss with one negative per anchor, averaged over all possible draws."""
    present = [c for c in range(len(positives)) if positives[c]]
    if len(present) < 2:
        return 0.0
    total = 0.0
    for place, queue_id in enumerate(present):
        if anchors[place] and len(queues[queue_id]):
            positive = np.mean([teacher[b, :, y, x] for b, y, x in positives[place]], axis=0)
            pairs = [
                np.log1p(np.exp((cosine(student[b, :, y, x], key) - cosine(student[b, :, y, x], positive)) / 0.5))
                for b, y, x in anchors[place]
                for key in queues[queue_id]
            ]
            total += np.mean(pairs)
    return total / len(present)


def random_case(classes: int, images: int, what: str, size: int = 6, dim: int = 3) -> dict:
    """Labels in blocks of pixels, some of them ignored, and everything else random."""
    ids = torch.randint(0, classes, (2, images, 2, 3)).repeat_interleave(3, 2).repeat_interleave(2, 3)
    if what == "class absent":
        ids[ids == 0], ids[ids == classes // 2] = classes - 1, classes - 1
    elif what == "one class":
        ids[:] = classes - 1
    elif what == "everything ignored":
        ids[:] = 255
    if what not in ("one class", "class absent"):  # an ignored pixel of a later image would bring back class 0
        ids[torch.rand(ids.shape) < 0.15] = 255
    low = torch.rand(images, size, size)
    prob = torch.randn(2 * images, classes, size, size).mul(2)
    return {
        "labels_l": ids[0],
        "pseudo_labels_u": ids[1],
        "confident_u": (low < 0.3) & (ids[1] != 255),
        "unreliable_u": (low > 0.6) & (ids[1] != 255),
        "prob": prob.softmax(1),
        "student": torch.randn(2 * images, dim, size, size),
        "teacher": torch.randn(2 * images, dim, size, size) + torch.randn(dim, 1, 1),
    }


def positions(mask: torch.Tensor) -> list:
    """Per class the (image, row, column) where a (B,C,h,w) mask holds."""
    return [[tuple(p) for p in mask[:, c].nonzero().tolist()] for c in range(mask.shape[1])]


WHAT = ["all classes", "class absent", "one class", "everything ignored"]


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize(("images", "classes"), [(1, 2), (2, 2), (1, 5), (3, 5), (2, 21)])
def test_selection_and_loss_equal_loops(images, classes, what):
    case = random_case(classes, images, what)
    student, teacher = case.pop("student"), case.pop("teacher")
    low, high = min(3, classes // 2), 20
    selection = official.select_pixels(**case, anchor_threshold=0.2, low_rank=low, high_rank=high)
    arrays = [value.numpy() for value in case.values()]
    expected = naive_selection(*arrays, 0.2, low, high)
    for mask, wanted in zip(selection, expected, strict=True):
        assert mask.shape == case["prob"].shape and positions(mask) == wanted

    queues = ClassQueues([40] * classes, student.shape[1], dtype=torch.float32)
    old = torch.randn(classes, 2, student.shape[1])
    queues.push(old, (torch.arange(classes) != 1)[:, None].expand(-1, 2))  # class 1 has this step's keys only
    queues.push(*select_keys(teacher, selection.negatives, 10_000, in_order=True))
    pushed = [
        [key.numpy() for key in old[c] if c != 1] + [teacher[b, :, y, x].numpy() for b, y, x in expected[2][c]]
        for c in range(classes)
    ]
    wanted = naive_mean_loss(student.numpy(), teacher.numpy(), *expected[:2], [keys[-40:] for keys in pushed])
    student.requires_grad_()
    draws = [
        official.contrastive_loss(
            student, teacher, selection.anchors, queues, positives=selection.positives,
            num_anchors=256, num_negatives=1, temperature=TEMPERATURE,
        )[0]
        for _ in range(60)
    ]  # fmt: skip
    draws[0].backward()
    assert student.grad.isfinite().all()
    values = torch.stack(draws).detach().double()
    assert values.mean().item() == pytest.approx(wanted, abs=5 * values.std().item() / 60**0.5 + 1e-6)
    assert (wanted > 0) == (what in WHAT[:2] and len([p for p in expected[1] if p]) > 1)


def test_gradient_equals_finite_differences():
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    queues = ClassQueues([8] * 3, 3, dtype=torch.float32)
    queues.push(torch.randn(3, 5, 3), torch.ones(3, 5, dtype=torch.bool))
    positives = torch.ones(2, 3, 2, 2, dtype=torch.bool)
    positives[:, 1] = False
    anchors = positives & (torch.rand(2, 3, 2, 2) < 0.6)

    def loss(student):
        torch.manual_seed(0)
        return official.contrastive_loss(
            student, teacher, anchors, queues, positives=positives, num_anchors=4, num_negatives=3, temperature=0.5
        )[0]

    assert loss(student) > 0 and torch.autograd.gradcheck(loss, student)


# Each difference from the paper alone, by hand


def row(*ids: list) -> torch.Tensor:
    """Images of one row of pixels: ids (B,w) -> (B,1,w)."""
    return torch.tensor(ids).unsqueeze(1)


def select(labels_l, pseudo_labels_u, prob=None, confident=True, unreliable=True, classes=3, low=1, high=20):
    shape = pseudo_labels_u.shape
    prob = torch.full((len(labels_l) + shape[0], classes, *shape[1:]), 1 / classes) if prob is None else prob
    return official.select_pixels(
        labels_l,
        pseudo_labels_u,
        torch.full(shape, confident),
        torch.full(shape, unreliable),
        prob,
        anchor_threshold=0.3,
        low_rank=low,
        high_rank=high,
    )


def test_1_image_0_has_the_classes_of_all_images():
    hot = official.multi_hot(row([0, 2, 255, 1], [1, 2, 1, 255]), 3)
    assert not hot[1].any()
    assert [set(hot[0, :, 0, x].nonzero().flatten().tolist()) for x in range(4)] == [{0, 1}, {2}, set(), {0, 1}]


def test_2_labelled_pixels_are_no_negatives():
    """Class 0 leads everywhere and is not the label: in the paper a negative of class 0."""
    labels, pseudo = row([1, 1]), row([255, 255])
    prob = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1).expand(2, -1, 1, 2)
    assert pl.negative_mask(labels, prob[:1], pseudo == 0, prob[1:], 1, 20)[0, 0].all()
    assert not select(labels, pseudo, prob).negatives.any()


def test_3_negatives_need_the_class_and_the_rank():
    """Two unlabelled images say 0 and 2; 2 has rank 1, 1 has rank 2, and low_rank is 1."""
    prob = torch.tensor([0.5, 0.2, 0.3]).view(1, 3, 1, 1).expand(3, -1, 1, 1)
    negatives = select(row([1]), row([0], [2]), prob).negatives
    assert positions(negatives) == [[], [], [(1, 0, 0)]]
    assert not select(row([1]), row([0], [2]), prob, unreliable=False).negatives.any()
    assert not select(row([1]), row([0], [2]), prob, high=1).negatives.any()


def test_4_anchors_meet_the_queue_at_their_place_among_the_present():
    """Of four classes 1 and 3 are present: ids 0 and 1 meet the queues of 1 and 3, and id 0 has no pixel."""
    present = torch.tensor([False, True, False, True])
    mask = torch.zeros(1, 4, 1, 2, dtype=torch.bool)
    mask[0, 1, 0, 0] = mask[0, 3, 0, 1] = True
    assert positions(official.meet_queues(mask, present)) == [[], [], [], [(0, 0, 0)]]

    student = torch.eye(2).view(1, 2, 1, 2)  # class 1 at (1, 0), class 3 at (0, 1)
    queues = ClassQueues([1] * 4, 2, dtype=torch.float32)
    keys = torch.tensor([[1.0, 0], [1, 0], [1, 0], [-1, 0]]).unsqueeze(1)
    queues.push(keys, torch.ones(4, 1, dtype=torch.bool))
    loss, used = official.contrastive_loss(student, student, mask, queues, positives=mask, temperature=TEMPERATURE)
    # Class 1's anchor equals its positive and is opposite to all 50 keys of class 3; two classes are present.
    assert loss.item() == pytest.approx(np.log(1 + 50 * np.exp(-4)) / 2, rel=1e-5)
    assert used.tolist() == [False, False, False, True]


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2])
def test_5_unlabelled_anchors_have_the_lowest_entropy(alpha):
    entropy, valid = torch.rand(2, 7, 9), torch.rand(2, 7, 9) < 0.7
    limit = np.percentile(entropy[valid].double().numpy(), 100 * alpha)
    lowest = official.lowest_entropy(entropy, valid, alpha)
    assert torch.equal(lowest, valid & (entropy <= float(np.float32(limit))))
    assert abs(lowest.sum().item() - alpha * valid.sum().item()) <= 1
    assert not official.lowest_entropy(entropy, torch.zeros_like(valid), alpha).any()


def test_6_positive_ignores_the_threshold_but_not_the_mask():
    prob = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).view(1, 2, 1, 2).expand(2, -1, 1, 2)
    selection = select(row([0, 0]), row([0, 0]), prob, confident=False, classes=2)
    assert positions(selection.positives) == [[(0, 0, 0), (0, 0, 1)], []]
    assert positions(selection.anchors) == [[(0, 0, 0)], []]


def test_6_positive_is_the_mean_over_its_own_mask():
    teacher = torch.tensor([[1.0, 0], [-1, 1]]).T.reshape(1, 2, 1, 2)
    positives, anchors = torch.ones(1, 2, 1, 2, dtype=torch.bool), torch.zeros(1, 2, 1, 2, dtype=torch.bool)
    anchors[0, :, 0, 0] = True
    queues = ClassQueues([1, 1], 2, dtype=torch.float32)
    queues.push(torch.tensor([[[-1.0, 0]], [[-1, 0]]]), torch.ones(2, 1, dtype=torch.bool))
    loss, _ = official.contrastive_loss(teacher, teacher, anchors, queues, positives=positives, num_negatives=1)
    # The positive (0, 1/2) is orthogonal to the anchor (1, 0); the paper's would equal it.
    assert loss.item() == pytest.approx(np.log(1 + np.exp(-2)), rel=1e-5)


def test_6_keys_need_a_probability_below_1():
    prob = torch.ones(2, 3, 1, 1)
    assert not select(row([1]), row([1]), prob).negatives.any()
    prob[1, 1] = 1 - 2**-24
    assert positions(select(row([1]), row([1]), prob).negatives) == [[], [(1, 0, 0)], []]


@pytest.mark.parametrize("present", [0, 1, 2])
def test_6_fewer_than_two_classes_give_zero_with_gradient(present):
    student = torch.randn(1, 4, 1, 2, requires_grad=True)
    mask = torch.zeros(1, 3, 1, 2, dtype=torch.bool)
    mask[0, :present] = True
    queues = ClassQueues([4] * 3, 4)
    queues.push(torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
    loss, used = official.contrastive_loss(student, torch.randn(1, 4, 1, 2), mask, queues, positives=mask)
    loss.backward()
    assert (loss > 0) == (present == 2) and used.sum() == (2 if present == 2 else 0)
    assert student.grad.isfinite().all() and student.grad.any() == (present == 2)


def test_6_classes_present_without_anchors_count_as_zero():
    student = torch.randn(1, 4, 1, 2)
    positives, anchors = torch.ones(1, 3, 1, 2, dtype=torch.bool), torch.zeros(1, 3, 1, 2, dtype=torch.bool)
    anchors[0, 0, 0, 0] = True
    queues = ClassQueues([1] * 3, 4, dtype=torch.float32)
    queues.push(student[0, :, 0, 0].expand(3, 1, 4), torch.ones(3, 1, dtype=torch.bool))
    teacher = student[..., :1].expand(-1, -1, -1, 2)
    loss, _ = official.contrastive_loss(student, teacher, anchors, queues, positives=positives)
    assert loss.item() == pytest.approx(np.log(51) / 3, rel=1e-5)


# Put right one by one


def random_maps(images: int = 3, classes: int = 5, side: int = 9):
    maps = [torch.randint(0, classes, (images, side, side)) for _ in range(2)]
    maps[0][:, 0], maps[1][:, 1] = 255, 255
    confident, unreliable = (torch.rand(images, side, side) < 0.5 for _ in range(2))
    confident, unreliable = confident & (maps[1] != 255), unreliable & (maps[1] != 255)
    return *maps, confident, unreliable, torch.randn(2 * images, classes, side, side).mul(3).softmax(1)


RANKS = {"anchor_threshold": 0.3, "low_rank": 2, "high_rank": 4}


def test_with_all_defects_put_right_it_is_the_paper():
    labels, pseudo, confident, unreliable, prob = random_maps()
    found = official.select_pixels(labels, pseudo, confident, unreliable, prob, fixed=(1, 2, 3, 6), **RANKS)
    classes = torch.cat([labels, pseudo.masked_fill(~confident, 255)])
    anchors = pl.anchor_mask(classes, prob, 0.3)
    assert torch.equal(found.anchors, anchors) and torch.equal(found.positives, anchors) and anchors.any()
    assert torch.equal(found.negatives, pl.negative_mask(labels, prob[:3], unreliable, prob[3:], 2, 4))
    # One key per class, so that draws from the queues do not matter; class 1 has no anchor.
    anchors[:, 1] = False
    student, teacher, queues = torch.randn(6, 8, 9, 9), torch.randn(6, 8, 9, 9), ClassQueues([1] * 5, 8)
    queues.push(torch.randn(5, 1, 8), torch.ones(5, 1, dtype=torch.bool))
    results = []
    for loss in (losses.contrastive_loss, partial(official.contrastive_loss, fixed=(4, 6))):
        torch.manual_seed(3)
        results.append(loss(student, teacher, anchors, queues, positives=anchors))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("defect", [1, 2, 3, 6])
def test_each_defect_changes_what_it_is_about(defect):
    labels, pseudo, confident, unreliable, prob = random_maps()
    prob[3, :, 4] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).view(-1, 1)
    as_published, put_right = (
        official.select_pixels(labels, pseudo, confident, unreliable, prob, fixed=fixed, **RANKS)
        for fixed in ((), (defect,))
    )
    names = {1: {"anchors", "positives", "negatives"}, 2: {"negatives"}, 3: {"negatives"}, 6: {"positives"}}
    pairs = zip(as_published, put_right, official.Selection._fields, strict=True)
    assert {name for before, after, name in pairs if not torch.equal(before, after)} == names[defect]
    labelled = [selection.negatives[:3].any() for selection in (as_published, put_right)]
    assert not labelled[0] and bool(labelled[1]) == (defect == 2)


def test_the_step_puts_right_what_it_is_told():
    student, batch = make_student(), make_batch()
    settings = {"variant": "official", "unreliable_share": 0.4, "new_keys_per_class": 1000, "queue_length": 1000}
    pushed = []
    for options in (settings, settings | {"fixed_defects": tuple(official.DEFECTS)}, settings | {"variant": "paper"}):
        step = U2PL(make_settings(**options), student)
        torch.manual_seed(1)
        stats = step(copy.deepcopy(student), batch, 10, 40).stats
        pushed.append((step.queues.pushed.tolist(), stats["anchors_per_class"].tolist()))
    assert pushed[1] == pushed[2] != pushed[0]


# In the step


def test_step_pushes_the_published_selection():
    student, batch = make_student(), make_batch()
    settings = make_settings(variant="official", unreliable_share=0.4, new_keys_per_class=1000, queue_length=1000)
    step = U2PL(settings, student)
    reference = copy.deepcopy(step.teacher)
    output = step(student, batch, step=10, total_steps=40)
    with torch.no_grad():
        pseudo = pl.resize_logits(reference(batch.x_u).logits, (SIZE, SIZE)).argmax(1)
        pseudo[~batch.valid_u] = 255
        with batch_statistics(reference):
            teacher = reference(torch.cat([batch.x_l, batch.x_u]))
        entropy = pl.pixel_entropy(pl.resize_logits(teacher.logits[2:], (SIZE, SIZE)))
    low, high = np.percentile(entropy[pseudo != 255].double().numpy(), [30, 70])
    low, high = (torch.tensor(x, dtype=torch.float32) for x in (low, high))
    maps = [batch.y_l, pseudo, (entropy <= low) & (pseudo != 255), (entropy >= high) & (pseudo != 255)]
    maps = [m[:, ::4, ::4].numpy() for m in maps]
    prob = teacher.logits.softmax(1).numpy()
    anchors, positives, negatives = naive_selection(*maps, prob, 0.1, 2, 20)
    assert sum(map(len, negatives)) > 0
    for c in range(CLASSES):
        keys = [F.normalize(teacher.representation[b, :, y, x], dim=0) for b, y, x in negatives[c]]
        held = step.queues.oldest_first(c).float()
        assert len(held) == len(keys) and (not keys or torch.allclose(held, torch.stack(keys), atol=1e-3))
    queues = [step.queues.oldest_first(c) for c in range(CLASSES)]
    present = [c for c in range(CLASSES) if positives[c]]
    used = [c for place, c in enumerate(present) if anchors[place] and len(queues[c])]
    assert output.stats["anchor_classes"] == len(used) > 0 and output.named["loss_contrastive"] > 0
    output.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_step_takes_anchors_of_lowest_entropy():
    student, batch = make_student(), make_batch()
    step = U2PL(make_settings(variant="official", unreliable_share=0.4), student)
    entropy, valid = torch.rand(2, 5, 5), torch.ones(2, 5, 5, dtype=torch.bool)
    split = Split(entropy, valid, *pl.split_by_entropy(entropy, valid, 0.4), 0.4, torch.tensor(0.5))
    assert step.confident(split).sum() == 20 and split.reliable.sum() == 30
    paper = U2PL(make_settings(unreliable_share=0.4), student)
    assert paper.confident(split) is split.reliable
    assert step(student, batch, 0, 10).total.isfinite()


@pytest.mark.parametrize("case", ["all labels ignored", "all padding", "batch of one", "one class"])
def test_step_edge_cases_are_finite(case):
    student, batch = make_student(), make_batch(1 if case == "batch of one" else 2)
    if case == "all labels ignored":
        batch.y_l.fill_(255)
    elif case == "one class":
        batch.y_l.fill_(2)
        batch.valid_u.fill_(False)
    elif case == "all padding":
        batch.valid_u.fill_(False)
    step = U2PL(make_settings(variant="official"), student)
    step.queues.push(torch.randn(CLASSES, 4, 8), torch.ones(CLASSES, 4, dtype=torch.bool))
    output = step(student, batch, 0, 10)
    output.total.backward()
    assert output.total.isfinite() and all(p.grad.isfinite().all() for p in student.parameters())
    if case == "one class":  # the paper's loss trains a lone class whose queue is not empty
        assert output.named["loss_contrastive"] == 0


def test_nothing_is_read_back_to_the_host():
    """Meta tensors have shapes and no values: a shape that depends on values, or a value read back, would raise."""
    labels, maps, vectors = (torch.zeros(shape, device="meta") for shape in [(2, 6, 6), (2, 6, 6), (4, 8, 6, 6)])
    prob = torch.zeros(4, 5, 6, 6, device="meta")
    confident = official.lowest_entropy(maps, maps == 0, 0.2)
    selection = official.select_pixels(
        labels, labels, confident, maps == 0, prob, anchor_threshold=0.3, low_rank=2, high_rank=4
    )
    queues = ClassQueues([30] * 5, 8).to("meta")
    queues.push(*select_keys(vectors, selection.negatives, 16, in_order=True))
    assert official.meet_queues(selection.anchors, queues.fill > 0).shape == (4, 5, 6, 6)
