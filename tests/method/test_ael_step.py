"""One whole step of U2PL with AEL on a small real model, with pools that hold tensors."""

import contextlib
import copy
import dataclasses
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.method.test_step import CLASSES, SIZE, make_batch, make_settings, make_student
from u2pl_hf.method import equalization as eq
from u2pl_hf.method import losses
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.ael import AEL
from u2pl_hf.method.batch import Batch, Further
from u2pl_hf.method.teacher import batch_statistics


class TensorPool:
    """Images in memory; the seed of a row shifts its columns, as an augmentation would."""

    def __init__(self, number: int, with_labels: bool):
        draw = torch.Generator().manual_seed(5)
        self.size, self.asked = number, []
        self.x = torch.randn(number, 3, SIZE, SIZE, generator=draw)
        self.y = torch.randint(0, CLASSES, (number, SIZE, SIZE), generator=draw) if with_labels else None

    def reachable(self):
        return 0, self.size

    def add(self, loaded):
        return loaded["rows"]

    def request(self, rows, seeds) -> Future:
        self.asked.append(rows.tolist())
        future = Future()
        future.set_result((rows, seeds))
        return future

    def receive(self, requested):
        rows, seeds = requested.result()
        shifts, empty = (seeds % SIZE).tolist(), (rows < 0).view(-1, 1, 1)

        def rolled(images):
            return torch.stack([images[r].roll(s, -1) for r, s in zip(rows.clamp(min=0), shifts, strict=True)])

        labels = None if self.y is None else rolled(self.y).masked_fill(empty, 255)
        return rolled(self.x), labels, ~empty.expand(-1, SIZE, SIZE)


def make_step(student, labelled: int = 6, unlabelled: int = 9, **changes) -> AEL:
    settings = make_settings(AEL, **{"frequent_classes": ["0"], "copy_paste_probability": 1.0, **changes})
    pool = TensorPool(labelled, True)
    counts = torch.stack([(pool.y == c).flatten(1).sum(dim=1) for c in range(CLASSES)], dim=1)
    pools = SimpleNamespace(labelled=pool, unlabelled=TensorPool(unlabelled, False), counts=counts, passes=1)
    return AEL(settings, student, pools)


def numbered(batch: Batch, seed: int = 11) -> Batch:
    rows = torch.arange(len(batch.x_l))
    further = Further({"rows": rows}, {"rows": rows + 2}, next_seed=seed + 2)
    return dataclasses.replace(batch, seed=seed, further=further)


def showing(batch: Batch, rows: torch.Tensor) -> Batch:
    """The batch with other rows of the unlabelled pool."""
    return dataclasses.replace(batch, further=dataclasses.replace(batch.further, loaded_u={"rows": rows}))


def test_step_equals_the_method_written_out():
    """The order of method.md, once more, from a copied state: every loss but the drawn one, banks, queues."""
    student, batch = make_student(), numbered(make_batch())
    step = make_step(student, unreliable_share=0.3, unsupervised_weight=0.7)
    step.bank.confidence.fill_(0.4)  # all alike, so that every pixel is kept
    step.categories.holds[4] = True
    reference_student, reference_teacher = copy.deepcopy(student), copy.deepcopy(step.teacher)
    donors, partners = step.copy_paste.choose(batch.seed, 2), step.partners.choose(batch.seed, 2)
    assert partners.rows.tolist() == [4, 4]  # the only one that is known to hold anything
    torch.manual_seed(7)
    contrast, told = step.contrast, []
    step.contrast = lambda *args: told.extend(args) or contrast(*args)
    output = step.learn(student, batch, step=10, total_steps=40)

    with torch.no_grad():
        x, y, _ = step.copy_paste.pool.receive(donors.images)
        x_l, y_l, pasted = batch.x_l.clone(), batch.y_l.clone(), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        for image in range(2):
            if int(donors.rows[image]) != image:
                pasted[image] = torch.isin(y[image], donors.classes)
                x_l[image][:, pasted[image]], y_l[image][pasted[image]] = (
                    x[image][:, pasted[image]],
                    y[image][pasted[image]],
                )
        assert pasted.any()
        x, _, _ = step.partners.pool.receive(partners.images)
        logits = [pl.resize_logits(reference_teacher(images).logits, (SIZE, SIZE)) for images in (batch.x_u, x)]
        # Teachers label both in one pass, which in eval mode changes nothing but rounding.
        (prob, pseudo), (prob_p, pseudo_p) = ((z.softmax(1).amax(1), z.argmax(1)) for z in logits)
        pseudo[~batch.valid_u] = 255
        torch.manual_seed(7)
        boxes, _ = eq.draw_class_boxes(pseudo_p, partners.classes)
        assert boxes.any() and not boxes.all()
        pseudo, prob = torch.where(boxes, pseudo_p, pseudo), torch.where(boxes, prob_p, prob)
        images = torch.cat([x_l, torch.where(boxes.unsqueeze(1), x, batch.x_u)])
        fine = pl.resize_logits(reference_student(images).logits, (SIZE, SIZE))
        with batch_statistics(reference_teacher):
            teacher = reference_teacher(images)
        teacher_fine = pl.resize_logits(teacher.logits, (SIZE, SIZE))
        own = teacher_fine[:2].argmax(1).masked_fill(y_l == 255, 255)
        labels, sure = torch.cat([own, pseudo]), torch.cat([teacher_fine[:2].softmax(1).amax(1), prob])
        entropy = pl.pixel_entropy(teacher_fine)
        reliable, _ = pl.split_by_entropy(entropy, labels != 255, 0.3 * (1 - 10 / 40))
        weight = sure.square() * reliable
        pixel = losses.pixel_losses(fine, labels.masked_fill(~reliable, 255)).view_as(weight)
    expected_s = losses.cross_entropy(fine[:2], y_l)
    assert output.named["loss_supervised"].item() == pytest.approx(expected_s.item(), rel=1e-5)
    expected_u = ((pixel * weight).sum() / weight.sum()).item()
    assert output.named["loss_unsupervised"].item() == pytest.approx(expected_u, rel=1e-4)
    weights = {"supervised": 1.0, "unsupervised": 0.7, "contrastive": 0.1}
    weighted = sum(weight * output.named[f"loss_{name}"] for name, weight in weights.items())
    assert output.total.item() == pytest.approx(weighted.item(), rel=1e-6)
    assert output.stats["pasted_share"] == pasted.float().mean() and output.stats["kept_share"] == 1

    # Anchors are in the fifth of lowest entropy, negatives in that of the highest, whatever alpha says.
    size, valid = teacher.logits.shape[-2:], pseudo != 255
    low, high = (torch.quantile(entropy[2:][valid].double(), q) for q in (0.2, 0.8))
    unreliable = valid & (entropy[2:] >= high)
    assert torch.equal(told[4], valid & (entropy[2:] < low)) and torch.equal(told[5], unreliable)
    maps = [pl.nearest_on_corners(m, size) for m in (y_l, unreliable)]
    prob = teacher.logits.softmax(1)
    negatives = pl.negative_mask(maps[0], prob[:2], maps[1], prob[2:], 2, 20)
    assert step.queues.pushed.tolist() == negatives.sum((0, 2, 3)).clamp(max=256).tolist()
    # The banks: the student's certainty about the pasted labels, and what the teacher saw.
    coarse = reference_student(images).logits[:2].softmax(1)
    for c in range(CLASSES):
        mean = coarse[:, c][maps[0] == c].mean().item()
        assert step.bank.confidence[c].item() == pytest.approx(0.4 * 0.999 + 0.001 * mean, rel=1e-5)
    seen = pl.nearest_on_corners(pseudo_p, size)
    assert step.categories.holds[4].tolist() == [(seen[1] == c).float().mean().item() >= 0.01 for c in range(CLASSES)]
    assert not step.categories.holds[[0, 1, 5, 6, 7, 8]].any() and step.categories.holds[[2, 3]].any()


def test_images_chosen_ahead_are_those_that_a_resumed_run_chooses():
    student = make_student()
    step, batches = (
        make_step(student, copy_paste_probability=0.5),
        [numbered(make_batch(), 11 + 2 * n) for n in range(4)],
    )
    for number in range(2):
        step.learn(student, batches[number], number, 10)
    resumed_student = copy.deepcopy(student)
    resumed = make_step(resumed_student, copy_paste_probability=0.5)
    resumed.load_state_dict(step.state_dict())
    for number in range(2, 4):
        outputs = []
        for network, method in ((student, step), (resumed_student, resumed)):
            torch.manual_seed(number)
            outputs.append(method.learn(network, batches[number], number, 10))
        assert outputs[0].total == outputs[1].total
    # The last choice of the resumed run is the last of the other's; together they asked once more, for pass 2.
    for kept, new in (
        (step.copy_paste.pool.asked, resumed.copy_paste.pool.asked),
        (step.partners.pool.asked, resumed.partners.pool.asked),
    ):
        assert len(kept) == 5 and kept[-3:] == new


def test_warm_up_pastes_and_learns_confidence_but_asks_for_no_partner():
    student, batch = make_student(), numbered(make_batch())
    step = make_step(student, warmup_steps=2)
    output = step.learn(student, dataclasses.replace(batch, x_u=None, valid_u=None), 1, 10)
    output.total.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert output.stats["pasted_share"] > 0 and (step.bank.confidence > 0).all()
    assert step.partners.pool.asked == [] and len(step.copy_paste.pool.asked) == 2
    assert set(output.named) == {"loss", "loss_supervised"}
    step.begin(student, 2)
    assert step.learn(student, batch, 2, 10).named["loss_unsupervised"] > 0


def test_contrastive_loss_begins_at_its_step():
    student, batch = make_student(), numbered(make_batch())
    step = make_step(student, contrastive_start_steps=3)
    before = step.learn(student, batch, 2, 10)
    before.total.backward()
    assert "loss_contrastive" not in before.named and step.queues.pushed.sum() == 0
    assert all(p.grad is not None for p in student.parameters())  # distributed training needs every gradient
    after = step.learn(student, batch, 3, 10)
    assert after.named["loss_contrastive"] > 0 and step.queues.pushed.sum() > 0


@pytest.mark.parametrize("probability", [0.01, 0.5, 1.0])
def test_donors_come_with_their_probability_and_hold_a_drawn_class(probability):
    step = make_step(make_student(), labelled=40, copy_paste_probability=probability)
    step.copy_paste.presence = torch.rand(40, CLASSES) < 0.2
    rows = []
    for seed in range(200):
        chosen = step.copy_paste.choose(seed, 4)
        given = chosen.rows[chosen.rows >= 0]
        assert (
            chosen.classes.sort().values.tolist() == [1, 2, 3]
            and step.copy_paste.presence[given][:, 1:].any(dim=1).all()
        )
        rows += chosen.rows.tolist()
    assert sum(row >= 0 for row in rows) == pytest.approx(800 * probability, abs=60)


def test_seeds_decide_donors_and_partners():
    step = make_step(make_student(), labelled=40, unlabelled=40)
    for choose in (step.copy_paste.choose, step.partners.choose):
        drawn = [tuple(choose(seed, 4).rows.tolist()) for seed in (0, 1, 2, 3, 0)]
        assert drawn[0] == drawn[4] and len(set(drawn)) == 4


def test_a_class_that_nobody_has_takes_any_image_and_pastes_nothing():
    step = make_step(make_student(), frequent_classes=["0", "1", "2"])
    step.copy_paste.pool.y %= 3
    step.copy_paste.presence[:, 3] = False
    assert len({int(row) for seed in range(60) for row in step.copy_paste.choose(seed, 1).rows}) == 6
    batch = numbered(make_batch())
    pasted, stats = step.copy_paste.paste(batch)
    assert torch.equal(pasted.x_l, batch.x_l) and stats["pasted_share"] == 0


def test_the_only_labelled_image_is_no_donor_to_itself():
    step = make_step(make_student(), labelled=1, unlabelled=1)
    batch = numbered(make_batch(1))
    pasted, stats = step.copy_paste.paste(batch)
    assert torch.equal(pasted.x_l, batch.x_l) and torch.equal(pasted.y_l, batch.y_l) and stats["pasted_share"] == 0


@pytest.mark.parametrize(
    "case", ["all labels ignored", "all padding", "one of each", "well known", "two classes", "warm-up"]
)
def test_edge_cases_are_finite(case):
    student, batch = make_student(), make_batch(1 if case == "one of each" else 2)
    options = {"labelled": 1, "unlabelled": 1} if case == "one of each" else {}
    step = make_step(student, warmup_steps=1 if case == "warm-up" else 0, **options)
    batch = showing(numbered(batch), torch.zeros(len(batch.x_u), dtype=torch.long))
    if case == "all labels ignored":
        batch.y_l.fill_(255)
        step.copy_paste.pool.y.fill_(255)
    elif case == "all padding":
        batch.valid_u.fill_(False)
        step.partners.pool.receive = lambda images: (
            torch.zeros(2, 3, SIZE, SIZE),
            None,
            torch.zeros(2, SIZE, SIZE).bool(),
        )
    elif case == "well known":
        step.bank.confidence.fill_(1.0)
    elif case == "two classes":
        batch.y_l[batch.y_l != 255] %= 2
    output = step.learn(student, batch, 0, 10)
    output.total.backward()
    assert output.total.isfinite() and all(p.grad.isfinite().all() for p in student.parameters())
    assert all(torch.as_tensor(value).isfinite().all() for name, value in output.stats.items() if name != "gamma")
    if case in ("all labels ignored", "well known"):
        assert (output.named["loss_supervised"] if "labels" in case else output.named["loss_unsupervised"]) == 0


class CopiesThatWait(TorchDispatchMode):
    """Takes down the copies to another device that the host waits for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_copy = function is torch.ops.aten._to_copy.default
        if is_copy and kwargs.get("device", args[0].device) != args[0].device and not kwargs.get("non_blocking"):
            self.found.append(args[0].shape)
        return function(*args, **kwargs)


def test_only_the_boxes_of_components_need_the_host(monkeypatch):
    """The whole step on tensors without values, boxes apart; a read-back would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no such device
    told = []

    def boxes(labels, classes):
        told.append((labels.shape, classes.shape))
        return torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(classes, dtype=torch.bool)

    monkeypatch.setattr(eq, "draw_class_boxes", boxes)
    student, batch = make_student().to("meta"), numbered(make_batch())
    step = make_step(student).to("meta")
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    for pool in (step.copy_paste.pool, step.partners.pool):
        images = [None if t is None else t[:2].to("meta") for t in (pool.x, pool.y, torch.ones(2, SIZE, SIZE).bool())]
        pool.request = lambda rows, seeds: (rows.shape, seeds.shape)
        pool.receive = lambda requested, images=images: images
    tensors = {name: getattr(batch, name).to("meta") for name in ("x_l", "y_l", "x_u", "valid_u")}
    # Rows come from the loader, and so lie on the host.
    batch = dataclasses.replace(showing(batch, torch.arange(2)), **tensors)
    with CopiesThatWait() as waits:
        for number in range(2):
            output = step.learn(student, batch, number, 10)
            output.total.backward()
            step.finish(student, number)
    assert waits.found == []
    assert told == [((2, SIZE, SIZE), (2,))] * 2
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_watched_labels_are_mixed_like_their_images():
    student, batch = make_student(), numbered(make_batch(3))
    step = make_step(student, strong_probability=0.0)
    partners = step.partners.choose(batch.seed, 3)
    x, _, _ = step.partners.pool.receive(partners.images)
    teacher = copy.deepcopy(step.teacher)
    right = pl.resize_logits(teacher(batch.x_u).logits, (SIZE, SIZE)).argmax(1)
    right_p = pl.resize_logits(teacher(x).logits, (SIZE, SIZE)).argmax(1)
    receive = step.partners.pool.receive
    step.partners.pool.receive = lambda images: (receive(images)[0], right_p, receive(images)[2])
    stats = step.learn(student, dataclasses.replace(batch, y_u=right), 3, 40).stats
    assert stats["accuracy_reliable"] == 1 and stats["accuracy_unreliable"] == 1


def test_a_row_shows_what_its_pool_holds_now():
    """A pool of the latest crops has put the batch's images where the partners were."""
    student, batch = make_student(), numbered(make_batch())
    step = make_step(student, unlabelled=2)
    teacher, partners = copy.deepcopy(step.teacher), step.partners.choose(batch.seed, 2)
    batch = showing(batch, torch.arange(2))
    labels = teacher(batch.x_u).logits.argmax(1).masked_fill(~pl.nearest_on_corners(batch.valid_u, (9, 9)), 255)
    assert labels.shape[-2:] == (9, 9) and set(partners.rows.tolist()) <= {0, 1}
    step.learn(student, batch, 0, 10)
    share = torch.stack([(labels == c).float().mean(dim=(1, 2)) for c in range(CLASSES)], dim=1)
    assert torch.equal(step.categories.holds, share >= 0.01)
