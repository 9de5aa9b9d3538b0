"""--warmup auto in real runs: it ends, is told of, goes on to the same bits, is one decision of all processes."""

import json

import pytest
import torch

from tests.training.distributed import on_two_processes
from tests.training.test_ael_training import lines_of, streamed_data
from tests.training.test_processes import assert_same_everywhere
from tests.training.test_recipes import plan_of
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.hub.results import read_results
from u2pl_hf.measure.side_by_side import SETTING, grouped
from u2pl_hf.method import warmup
from u2pl_hf.training.recipe.arguments import run_arguments

__all__ = ["streamed_data"]
# So slow that no class is forgotten in these few steps.
AUTO = {"warmup": "auto", "warmup_steps": 0, "warmup_limit": 0.9, "max_steps": 12, "learning_rate": 1e-4,
        "unlabelled_batch_size": 16, "crop_size": 33, "save_steps": 1, "keep_checkpoints": 99, "logging_steps": 1,
        "trackers": ["none"]}  # fmt: skip
# Looks with a step between them in a run of twelve, and an agreement that so young an average reaches.
QUICK = {"EVERY": 1 / 6, "STABLE": 0.5}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setattr(warmup, name, value)
        yield


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """A run to the end with a checkpoint of each step, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = make_trainer(tiny_data, folder, **AUTO)
    trainer.train()
    return trainer, folder


def test_it_ends_before_its_limit_and_is_told_of(whole):
    trainer, folder = whole
    results = read_results(folder)
    end, method = results["warmup_steps"], trainer.run.method
    assert 4 <= end < 10 and end % 2 == 0 and end == method.stability.end
    assert results["found"] == ["warmup_steps", "warmup_agreement"] and results["settings"]["warmup"] == "auto"
    lines = [line for line in lines_of(folder) if "loss" in line]
    assert ["loss_unsupervised" in line for line in lines] == [step >= end for step in range(12)]
    agreements = [line.get("agreement") for line in lines]
    assert agreements[:4] == [None] * 4 and agreements[end:] == [None] * (12 - end)
    assert [a for a in agreements[4:end:2]] == method.stability.agreements[:-1]
    assert results["warmup_agreement"] == method.stability.agreements[-1] >= 0.5
    card = (folder / "README.md").read_text()
    assert f"- warmup steps: {end}\n- warmup agreement: 0." in card and "warmup auto" in card
    # Images per second count what is learnt from.
    assert [trainer._images(step) for step in (end - 1, end)] == [2, 18]


def test_a_stopped_run_goes_on_to_the_same_bits(whole, tiny_data, tmp_path):
    """Stopped while it collects, between two looks, and right after the step that ends warm-up."""
    trainer, folder = whole
    end = trainer.run.method.stability.end
    for stop in (1, 3, end + 1):
        other = tmp_path / str(stop)
        checkpoint = folder / "checkpoints" / f"step-{stop:06d}"
        rest = make_trainer(tiny_data, other, resume=str(checkpoint), **AUTO)
        rest.train()
        states = (trainer.run.method.state_dict(), rest.run.method.state_dict())
        assert states[0].keys() == states[1].keys() and "stability._extra_state" in states[0]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert lines_of(other) == lines_of(folder)[stop:]


def test_ael_goes_on_from_within_warm_up_with_the_crops_that_streamed_by(streamed_data, tmp_path):
    options = AUTO | {"method": "u2pl_ael", "contrastive_start_steps": 8, "streaming": True, "warmup_limit": 0.5}
    first = make_trainer(streamed_data, tmp_path / "whole", **options)
    results = first.train()
    assert 4 <= results["warmup_steps"] <= 6
    rest = make_trainer(
        streamed_data, tmp_path / "rest", resume=str(tmp_path / "whole" / "checkpoints" / "step-000003"), **options
    )
    rest.train()
    assert lines_of(tmp_path / "rest") == lines_of(tmp_path / "whole")[3:]
    assert first.run.method.partners.pool.served == rest.run.method.partners.pool.served == 12 * 16


def _train_and_compare(data, folder) -> None:
    warmup.STABLE = 0.3
    trainer = make_trainer(data, folder / "run", **AUTO | {"max_steps": 7, "save_steps": 0})
    update = trainer._update

    def update_and_compare(step):
        update(step)
        assert_same_everywhere([trainer.run.student, trainer.run.method])

    trainer._update = update_and_compare
    results = trainer.train()
    (folder / str(trainer.accelerator.process_index)).write_text(json.dumps(results["warmup_steps"]))


def test_two_processes_watch_the_same_images_and_end_warm_up_together(tiny_data, tmp_path):
    on_two_processes(_train_and_compare, tiny_data, tmp_path)
    ends = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    assert ends[0] == ends[1] < 6


def test_seeds_that_found_other_ends_are_one_setting(whole):
    results = read_results(whole[1])
    other = results | {"seed": 1, "warmup_steps": results["warmup_steps"] + 2}
    assert len(grouped([results, other], SETTING)) == 1
    fixed = {name: value for name, value in results.items() if name != "found"}
    assert len(grouped([fixed, fixed | {"warmup_steps": 1}], SETTING)) == 2


def test_a_plan_says_when_it_ends_at_the_latest():
    options = ("--warmup", "auto", "--warmup_steps", "0")
    plan = plan_of("voc_u2pl", "voc_classic/732", 4, *options)
    # Half of 616 x 80 steps.
    assert plan["warmup_steps"] is None and plan["automatic_warmup_up_to"] == 24_640
    assert "automatic_warmup_up_to" not in plan_of("voc_u2pl", "voc_classic/732", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warmup_steps": 5},
            "--warmup auto finds out how long it takes: leave out --warmup_steps and --warmup_epochs",
        ),
        ({"warmup_epochs": 1.0}, "--warmup auto finds out how long it takes: leave out"),
        ({"warmup": "stable"}, "--warmup stable must be one of steps, auto"),
        ({"warmup_limit": 1.0}, r"--warmup_limit 1.0 must lie in \(0, 1\)"),
        ({"batch_size": 1}, "--batch_size 1 gives BatchNorm no statistics"),
    ],
)
def test_what_is_refused(options, message):
    for method in ("u2pl", "u2pl_ael"):
        with pytest.raises(InputError, match=message):
            run_arguments(**{"method": method, "warmup": "auto"} | options)
