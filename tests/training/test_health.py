"""Signs that a run goes wrong: on histories made by hand, in a planted collapse, and over a stop."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.distributed import on_two_processes
from tests.training.test_ael_training import lines_of
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.hub.model_card import eval_results_yaml, render_model_card
from u2pl_hf.hub.results import read_results
from u2pl_hf.method.pseudo_labels import PseudoLabelled
from u2pl_hf.method.teacher import relative_distance
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.schedule import with_steps
from u2pl_hf.training.run import report
from u2pl_hf.training.run.health import Health, find_signs
from u2pl_hf.training.run.report import kept_step

OPTIONS = {"max_steps": 1000, "warmup": "steps", "ema_decay": 0.99, "confidence_threshold": 0.95,
           "anchor_threshold": 0.3, "unsupervised_weight": 1.0}  # fmt: skip
LABELLED = {"road": 0.7, "tram": 0.2, "sign": 0.1}
# A step of a run that goes well; alpha is above 0, so that the share of reliable pixels was not asked for.
WELL = {"loss": 1.0, "loss_unsupervised": 0.5, "loss_contrastive": 3.0, "pseudo_share_per_class": [0.75, 0.2, 0.05],
        "reliable_share": 0.85, "confident_share": 0.6, "anchors_per_class": [5.0, 3.0, 0.0], "queue_fill": 0.5,
        "alpha": 0.1}  # fmt: skip


def steps(first: int, last: int, **changes) -> list[dict]:
    return [{"step": step} | WELL | changes for step in range(first, last + 1, 10)]


def evaluations(*scores: float, losses=(0.5, 0.4, 0.3, 0.2), **more) -> list[dict]:
    """A run of 1,000 steps, evaluated after every 200; the unsupervised loss of each stretch."""
    lines = []
    for end, score, loss in zip(range(200, 1001, 200), scores, losses, strict=False):
        lines += [*steps(end - 190, end, loss_unsupervised=loss), {"step": end, "eval_mean_iou": score} | more]
    return lines


def test_a_run_that_goes_well_is_told_nothing():
    history = evaluations(0.5, 0.6, 0.595, 0.61, teacher_distance=0.01)
    assert find_signs(history, OPTIONS, LABELLED) == []
    # Without a number nothing is known of it: of labelled images alone, and of runs of before.
    alone = [{"step": line["step"], "loss": 1.0} for line in history]
    assert find_signs([*alone, {"step": 800, "eval_mean_iou": 0.1}], OPTIONS, LABELLED) == []


NO_CONTRAST = {"loss_contrastive": 0.0}
WINDOWS = [
    ({"pseudo_share_per_class": [0.9, 0.08, 0.02]}, "class_lost",
     "sign has 2.0% of the pseudo-labels and 10.0% of the labelled pixels: warm up longer (--warmup_steps), or label a "
     "few more images of it"),
    ({"pseudo_share_per_class": [0.99, 0.01, 0.0]}, "class_lost", "tram (and sign) has 1.0% of the pseudo-"),
    ({"confident_share": 0.0}, "no_confident", "no pixel has been confident for 10 logged steps: lower "
     "--confidence_threshold (now 0.95)"),
    ({"confident_share": 1.0}, "all_confident", "raise --confidence_threshold (now 0.95)"),
    ({"reliable_share": 0.0}, "no_reliable", "no pixel has been reliable for 10 logged steps: lower --learning_rate"),
    ({"reliable_share": 1.0}, "all_reliable", "every pixel has been reliable"),
    (NO_CONTRAST | {"anchors_per_class": [0.0] * 3}, "no_anchors", "lower --anchor_threshold (now 0.3)"),
    (NO_CONTRAST | {"queue_fill": 0.0}, "empty_queues", "no pixel has become a negative: raise --unreliable_share"),
    (NO_CONTRAST, "no_negatives", "no class has both anchors and negatives: raise --batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind", "told"), WINDOWS, ids=[f"{n} {kind}" for n, (_, kind, _) in enumerate(WINDOWS)]
)
def test_numbers_that_are_wrong_for_a_tenth_of_the_steps(changes, kind, told):
    warmup, wrong = [{"step": step, "loss": 1.0} for step in range(10, 401, 10)], steps(410, 600, **changes)
    assert find_signs(warmup + wrong[:9], OPTIONS, LABELLED) == []
    (sign,) = find_signs(warmup + wrong, OPTIONS, LABELLED)
    assert (sign.step, sign.kind) == (500, kind) and told in sign.line and "\n" not in sign.line
    # Not before a quarter of the steps, and found as well where a run went well before.
    assert find_signs(steps(10, 600, **changes), OPTIONS, LABELLED)[0].step == 250
    kinds = [sign.kind for sign in find_signs(steps(10, 400) + wrong, OPTIONS, LABELLED)]
    assert kinds == [kind] or {*kinds} == {"class_lost"} == {kind}
    # With a good line now and then nothing is stuck.
    better = [line | WELL if line["step"] % 70 == 0 else line for line in steps(250, 600, **changes)]
    assert kind == "class_lost" or find_signs(better, OPTIONS, LABELLED) == []


def test_a_class_that_is_lost_later_is_told_of_as_well():
    """And none twice, though its share comes back in between."""
    shares = ([0.9, 0.1, 0.0], [0.8, 0.0, 0.2], [0.9, 0.1, 0.0], [0.8, 0.2, 0.0])
    parts = (steps(300 + 200 * n, 490 + 200 * n, pseudo_share_per_class=part) for n, part in enumerate(shares))
    signs = find_signs([line for part in parts for line in part], OPTIONS, LABELLED)
    assert [(sign.kind, sign.classes) for sign in signs] == [("class_lost", ["sign"]), ("class_lost", ["tram"])]
    assert signs[1].line.startswith("tram has ") and 500 < signs[1].step < 700


def test_what_was_asked_for_is_no_sign():
    assert find_signs(steps(10, 1000, reliable_share=1.0, alpha=0.0), OPTIONS, LABELLED) == []


def test_advice_names_options_that_the_method_has():
    lost = steps(10, 600, pseudo_share_per_class=[1.0, 0.0, 0.0], confident_share=0.0)
    found = find_signs(lost, {"max_steps": 1000}, LABELLED)
    assert [sign.kind for sign in found] == ["class_lost", "no_confident"] and all("warm" not in s.line for s in found)
    assert "lower --learning_rate" in found[0].line and found[1].line.endswith("lower --learning_rate")
    (sign,) = find_signs(lost[:-1], OPTIONS | {"warmup": "auto", "confidence_threshold": 0.0}, LABELLED)[:1]
    assert "--warmup_limit" in sign.line


def test_a_teacher_that_is_the_student():
    history = [*steps(410, 600), {"step": 600, "eval_mean_iou": 0.5, "teacher_distance": 0.0}]
    (sign,) = find_signs(history, OPTIONS | {"ema_decay": 0.0}, LABELLED)
    assert (sign.kind, sign.step) == ("same_teacher", 600) and "raise --ema_decay (now 0)" in sign.line
    # When warm-up ends it is to be; and the nearest of measured runs was no such.
    just = [*steps(410, 450), {"step": 450, "eval_mean_iou": 0.5, "teacher_distance": 0.0}]
    apart = [*steps(410, 600), {"step": 600, "eval_mean_iou": 0.5, "teacher_distance": 8.7e-4}]
    assert find_signs(just, OPTIONS, LABELLED) == find_signs(apart, OPTIONS, LABELLED) == []


@pytest.mark.parametrize(
    ("scores", "losses", "step"),
    [
        ((0.5, 0.7, 0.69, 0.68), (0.5, 0.4, 0.4, 0.3), 800),
        ((0.5, 0.7, 0.65, 0.69), (0.5, 0.4, 0.4, 0.3), None),
        ((0.5, 0.7, 0.698, 0.692), (0.5, 0.4, 0.4, 0.3), None),
        ((0.5, 0.7, 0.69, 0.68), (0.5, 0.4, 0.3, 0.4), None),
        ((0.7, 0.69, 0.68, 0.6), (0.5, 0.4, 0.3, 0.2), 600),
    ],
    ids=["twice", "once", "less than a point", "a loss that grows", "from the first on"],
)
def test_evaluations_that_fall_while_the_loss_does(scores, losses, step):
    signs = find_signs(evaluations(*scores, losses=losses), OPTIONS, LABELLED)
    assert [(sign.kind, sign.step) for sign in signs] == ([] if step is None else [("falling_score", step)])
    if step:
        assert "from 70.0% at step" in signs[0].line and "--keep_best teacher" in signs[0].line
        kept = find_signs(evaluations(*scores, losses=losses), OPTIONS | {"keep_best": "teacher"}, LABELLED)
        assert "--keep_best" not in kept[0].line and "lower --unsupervised_weight (now 1)" in kept[0].line


def test_line_by_line_is_the_same_as_at_once_and_nothing_is_told_twice(caplog):
    history = evaluations(0.7, 0.69, 0.68, 0.6, losses=(0.5, 0.4, 0.3, 0.2))
    history = [line | {"confident_share": 0.0} if line["step"] > 300 else line for line in history]
    expected = find_signs(history, OPTIONS, LABELLED)
    assert [sign.kind for sign in expected] == ["no_confident", "falling_score"]
    for stop in range(0, len(history), 7):
        caplog.clear()
        going_on = Health(history[:stop], OPTIONS, LABELLED)
        for line in history[stop:]:
            going_on.note(line)
        assert going_on.signs == expected
        told = [sign for sign in expected if sign not in find_signs(history[:stop], OPTIONS, LABELLED)]
        assert [record.getMessage() for record in caplog.records] == [f"step {s.step}: {s.line}" for s in told]


def test_counts_of_pseudo_labels_equal_numpy():
    labels = torch.randint(0, 3, (2, 9, 13))
    labels[:, :2] = 255
    found = PseudoLabelled(torch.empty(0), labels, torch.empty(0)).counts(4)["pseudo_share_per_class"]
    seen = labels.numpy()[:, ::4, ::4]
    assert found.dtype == torch.int64 and found.tolist() == np.bincount(seen[seen < 255], minlength=4).tolist()


def test_relative_distance_equals_numpy():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    both = [np.concatenate([p.detach().numpy().ravel() for p in net.parameters()]) for net in (teacher, student)]
    expected = np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1])
    assert relative_distance(teacher, student) == pytest.approx(expected, rel=1e-6)
    assert relative_distance(student, student) == 0
    # What is frozen is the same in both, whatever the average does.
    student.bias.requires_grad_(False)
    teacher.bias.data += 100
    weights = [net.weight.detach().numpy() for net in (teacher, student)]
    expected = np.linalg.norm(weights[0] - weights[1]) / np.linalg.norm(weights[1])
    assert relative_distance(teacher, student) == pytest.approx(expected, rel=1e-6)
    assert relative_distance(teacher, student.requires_grad_(False)) is None


# A warm-up that is far too short: the teacher calls everything background.
COLLAPSE = {"max_steps": 16, "warmup_steps": 2, "eval_steps": 5, "save_steps": 3, "keep_checkpoints": 99,
            "logging_steps": 1, "trackers": ["none"]}  # fmt: skip


@pytest.fixture(scope="module")
def collapsed(tiny_data, tmp_path_factory):
    """A planted collapse, with the best evaluation's model kept however small its lead."""
    folder = tmp_path_factory.mktemp("collapsed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "KEEP_MARGIN", 0.0)
        return make_trainer(tiny_data, folder, keep_best="teacher", **COLLAPSE).train(), folder


def test_a_planted_collapse_is_told_before_half_of_the_steps(collapsed):
    results, folder = collapsed
    (sign,) = [sign for sign in results["health"] if sign["kind"] == "class_lost"]
    assert sign["step"] <= 8 and ") has 0.0% of the pseudo-labels" in sign["line"]
    assert read_results(folder)["health"] == results["health"]
    assert f"- step {sign['step']}: " in (folder / "README.md").read_text()
    assert all(0 < line["teacher_distance"] < 1 for line in lines_of(folder) if "eval_mean_iou" in line)


def test_the_model_of_the_best_evaluation_is_kept_and_told_of(collapsed):
    results, folder = collapsed
    step = results["best"]["step"]
    assert results["model_step"] == step < results["last"]["step"] == 16
    files = [(place / "model.safetensors").read_bytes() for place in (folder, folder / "best")]
    assert files[0] == files[1]
    card = (folder / "README.md").read_text()
    assert f"The weights here are those of the best evaluation, step {step}, not of the last step" in card
    hub = results | {"dataset": "someone/demo", "dataset_on_hub": True, "best": {"step": step, "mean_iou": 0.75}}
    assert "value: 0.75" in eval_results_yaml(hub)
    of_last = render_model_card(hub | {"model_step": 16})
    assert "those of the last evaluation;" in of_last and "value: 0.75" not in eval_results_yaml(
        hub | {"model_step": 16}
    )


def test_a_stopped_run_goes_on_with_the_counts_and_tells_nothing_twice(tiny_data, collapsed, tmp_path, caplog):
    """Stopped between two logged lines, once before the sign and once after it."""
    options = COLLAPSE | {"max_steps": 10, "logging_steps": 2, "eval_steps": 0}
    whole = make_trainer(tiny_data, tmp_path / "whole", **options).train()
    lines, (sign, *_) = lines_of(tmp_path / "whole"), whole["health"]
    for stop in (3, 9):
        caplog.clear()
        folder = tmp_path / str(stop)
        folder.mkdir()
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{stop:06d}"
        (folder / "recipe.yaml").write_text((tmp_path / "whole" / "recipe.yaml").read_text())
        # What the stopped run had written, and a line of a step that is to be done again.
        had = [line for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)]
        (folder / "metrics.jsonl").write_text("".join(had[: stop // 2 + 1]))
        results = make_trainer(tiny_data, folder, resume=str(checkpoint), **options).train()
        assert lines_of(folder) == lines and results["health"] == whole["health"]
        told = [record.getMessage() for record in caplog.records if sign["line"] in record.getMessage()]
        assert len(told) == (stop < sign["step"])


def _train(data, folder) -> None:
    options = {"max_steps": 4, "warmup_steps": 1, "logging_steps": 2, "save_steps": 3, "keep_checkpoints": 9}
    first = make_trainer(data, folder / "run", **options)
    results = first.train()
    rest = make_trainer(data, folder / "rest", resume=str(folder / "run" / "checkpoints" / "step-000003"), **options)
    assert rest.train()["health"] == results["health"]


def test_two_processes_count_all_labels_and_go_on_with_them(tiny_data, tmp_path):
    on_two_processes(_train, tiny_data, tmp_path)
    whole, rest = (lines_of(tmp_path / name) for name in ("run", "rest"))
    assert whole[1:] == rest and sum(whole[1]["pseudo_share_per_class"]) == pytest.approx(1.0)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000003" / "state.json").read_text())
    # Of one step, two processes and two crops of 65 each: every fourth row and column, but for padding.
    assert 0 < sum(state["counted"]["pseudo_share_per_class"]) <= 2 * 2 * 17 * 17


@pytest.mark.parametrize(
    ("best", "last", "kept"),
    [(0.74, 0.72, 2), (0.74, 0.735, 4), (0.74, 0.74, 4), (0.74, None, 2)],
    ids=["two points", "half a point", "equal", "nothing to score"],
)
def test_a_lead_of_less_than_a_point_may_be_luck(best, last, kept):
    evaluations = {"step": 2, "mean_iou": best}, {"step": 4, "mean_iou": last}
    assert kept_step("teacher", *evaluations) == kept and kept_step("none", *evaluations) == 4


def test_nothing_to_choose_among_is_refused():
    chooses = "--keep_best teacher chooses among evaluations"
    with pytest.raises(InputError, match=f"{chooses}: pass --eval_steps, or leave it out"):
        run_arguments(keep_best="teacher")
    for options in ({"max_steps": 50, "eval_steps": 50}, {"epochs": 5.0, "eval_epochs": 5.0}):
        with pytest.raises(InputError, match=f"{chooses}, and there is one alone: pass --eval_steps below 50, or"):
            with_steps(run_arguments(keep_best="teacher", **options), 10)
    assert with_steps(run_arguments(keep_best="teacher", epochs=5.0, eval_epochs=1.0), 10).eval_steps == 10
    with pytest.raises(InputError, match="--keep_best student must be one of none, teacher"):
        run_arguments(keep_best="student", eval_steps=10)
