"""Copy-paste beside methods that have no confidence bank of their own; test_ael_step has it where one is."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.method.test_ael_step import TensorPool, numbered
from tests.method.test_step import CLASSES, SIZE, make_batch, make_student
from u2pl_hf.errors import InputError
from u2pl_hf.method import METHODS
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.fixmatch import FixMatch
from u2pl_hf.method.suponly import SupOnly


def make_pools(passes: int = 1) -> SimpleNamespace:
    pool = TensorPool(6, True)
    counts = torch.stack([(pool.y == c).flatten(1).sum(dim=1) for c in range(CLASSES)], dim=1)
    return SimpleNamespace(labelled=pool, unlabelled=TensorPool(9, False), counts=counts, passes=passes)


def make_step(student, kind=SupOnly, passes: int = 1, **options):
    told = {"frequent_classes": ["0"], "copy_paste_probability": 1.0, "copy_paste_classes": 2} | options
    return kind(kind.Settings(**told), student, make_pools(passes))


def test_suponly_learns_what_was_pasted_written_out():
    student, batch = make_student(0), numbered(make_batch())
    step = make_step(student)
    donors = step.copy_paste.choose(batch.seed, 2)
    x, y, _ = step.copy_paste.pool.receive(donors.images)
    x_l, y_l = batch.x_l.clone(), batch.y_l.clone()
    for image in range(2):
        if int(donors.rows[image]) != image:
            pasted = sum(y[image] == int(c) for c in donors.classes).bool()
            x_l[image][:, pasted], y_l[image][pasted] = x[image][:, pasted], y[image][pasted]
    assert not torch.equal(y_l, batch.y_l) and donors.classes.min() > 0
    with torch.no_grad():
        logits = copy.deepcopy(student)(x_l).logits
        expected = F.cross_entropy(pl.resize_logits(logits, (SIZE, SIZE)), y_l, ignore_index=255)
    output = step.learn(student, batch, 0, 10)
    assert output.total.item() == pytest.approx(expected.item(), rel=1e-5)
    shares = (y_l != batch.y_l).float().mean()
    assert output.stats["pasted_share"] >= shares > 0
    # The bank holds the mean probability of each class's pixels, at feature size.
    small, prob = pl.nearest_on_corners(y_l, logits.shape[-2:]), logits.softmax(dim=1)
    for c in range(CLASSES):
        own = small == c
        assert own.any()
        assert step.pasting_bank.confidence[c].item() == pytest.approx(prob[:, c][own].mean().item(), rel=1e-4)
    # A second batch moves it by a hundredth.
    before = step.pasting_bank.confidence.clone()
    step.learn(student, numbered(make_batch(), 13), 1, 10)
    assert 0 < (step.pasting_bank.confidence - before).abs().max() < 0.01


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_it(name):
    kind = METHODS[name]
    student, batch = make_student(8 * kind.uses_representation), numbered(make_batch())
    step = make_step(student, kind)
    output = step.learn(student, batch, 3, 10)
    output.total.backward()
    assert output.total.isfinite() and output.stats["pasted_share"] > 0
    # The donors of the pass before are those that the next one takes.
    assert len(step.copy_paste.pool.asked) == 2
    step.learn(student, numbered(make_batch(), 12), 4, 10)
    assert len(step.copy_paste.pool.asked) == 3
    banks = [key for key in step.state_dict() if key.endswith("confidence")]
    assert banks == ["bank.confidence" if step.brings_bank else "pasting_bank.confidence"]


def test_without_it_nothing_is_asked_for_and_nothing_kept():
    student, batch = make_student(0), make_batch()
    step = make_step(student, FixMatch, copy_paste_probability=0.0, frequent_classes=[])
    torch.manual_seed(3)
    output = step.learn(student, batch, 0, 10)
    torch.manual_seed(3)
    assert step(student, batch, 0, 10).total == output.total and "pasted_share" not in output.stats
    assert step.copy_paste is None and not any("bank" in key for key in step.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_a_card_tells_of_it(name):
    told = [METHODS[name].described(METHODS[name].Settings(copy_paste_probability=p)) for p in (0.0, 0.5)]
    assert told[0] == METHODS[name].about and ("are pasted into" in told[1]) != METHODS[name].brings_bank


def test_passes_move_the_bank_as_one_step_and_wrong_settings_are_named():
    assert make_step(make_student(0), passes=4).pasting_bank.momentum ** 4 == pytest.approx(0.99)
    for kind in METHODS.values():
        with pytest.raises(InputError, match="--frequent_classes is about copy-paste: pass --copy_paste_probability"):
            kind.check(kind.Settings(frequent_classes=["0"], copy_paste_probability=0.0))
