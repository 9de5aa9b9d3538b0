import inspect
import json

import evaluate
import numpy as np
import pytest
import torch

from u2pl_hf.evaluation import MeanIoU


def naive(prediction, label, num_labels, ignore=255):
    """Per-class IoU by loops over pixels, and the two accuracies."""
    inter, union, truth = np.zeros(num_labels), np.zeros(num_labels), np.zeros(num_labels)
    for p, t in zip(np.ravel(prediction), np.ravel(label), strict=True):
        if t == ignore:
            continue
        truth[t] += 1
        for c in range(num_labels):
            inter[c] += p == c and t == c
            union[c] += p == c or t == c
    iou = [i / u if u else None for i, u in zip(inter, union, strict=True)]
    recall = [i / t for i, t in zip(inter, truth, strict=True) if t]
    return iou, inter.sum() / truth.sum(), np.mean(recall)


def masks(num_labels, seed=0, shape=(3, 13, 17)):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, num_labels, shape).astype(np.uint8)
    label = rng.integers(0, num_labels, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = 255
    return prediction, label


@pytest.mark.parametrize("num_labels", [1, 2, 7])
def test_equals_loops_over_pixels(num_labels):
    prediction, label = masks(num_labels)
    metric = MeanIoU(num_labels)
    metric.update(torch.from_numpy(prediction[:1]), torch.from_numpy(label[:1]))
    metric.update(prediction[1:], label[1:].astype(np.int64))
    got = metric.compute()
    iou, accuracy, mean_accuracy = naive(prediction, label, num_labels)
    assert got["per_class_iou"] == pytest.approx(iou)
    assert got["mean_iou"] == pytest.approx(np.mean(iou))
    assert got["accuracy"] == pytest.approx(accuracy)
    assert got["mean_accuracy"] == pytest.approx(mean_accuracy)
    assert got["absent_classes"] == []


def test_rows_are_the_ground_truth():
    metric = MeanIoU(3)
    metric.update([1, 1, 2], [0, 1, 0])
    assert metric.confusion.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert metric.confusion.dtype == torch.int64


def test_class_in_neither_is_left_out_and_reported():
    metric = MeanIoU(4)
    metric.update([0, 0, 1, 2], [0, 0, 0, 255])  # 1 only predicted: counts as 0; 2 only where ignored: absent
    got = metric.compute()
    assert got["per_class_iou"] == [pytest.approx(2 / 3), 0.0, None, None]
    assert got["mean_iou"] == pytest.approx(1 / 3)
    assert got["mean_accuracy"] == pytest.approx(2 / 3)
    assert got["absent_classes"] == [2, 3]


def test_everything_ignored_gives_none():
    metric = MeanIoU(2)
    metric.update([0, 1], [255, 255])
    got = metric.compute()
    assert json.loads(json.dumps(got)) == {
        "mean_iou": None,
        "per_class_iou": [None, None],
        "accuracy": None,
        "mean_accuracy": None,
        "per_class_accuracy": [None, None],
        "absent_classes": [0, 1],
    }


def test_an_ignored_pixel_may_have_any_prediction():
    metric = MeanIoU(2)
    metric.update([255, 0], [255, 0])
    assert metric.confusion.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(("prediction", "label"), [([2], [0]), ([-1], [0]), ([0], [2]), ([0], [-1])])
def test_ids_that_are_no_class_are_refused(prediction, label):
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        MeanIoU(2).update(prediction, label)


def test_shapes_and_types_are_checked():
    with pytest.raises(ValueError, match="differ in shape"):
        MeanIoU(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="integers"):
        MeanIoU(2).update(torch.zeros(3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="num_labels"):
        MeanIoU(0)


# The file imports nothing of the package, and torch alone is there sooner.
@pytest.fixture
def module_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    return inspect.getfile(MeanIoU)


def test_loads_as_an_evaluate_module(module_path):
    prediction, label = masks(5)
    ours = MeanIoU(5)
    ours.update(prediction, label)
    module = evaluate.load(module_path, num_labels=5)
    assert module.compute(predictions=prediction, references=label) == ours.compute()
    module.add(prediction=prediction[0], reference=label[0])
    module.add_batch(predictions=list(prediction[1:]), references=list(label[1:]))
    assert module.compute() == ours.compute()
    assert module.compute()["mean_iou"] is None  # a result starts the count afresh


def test_evaluate_module_takes_options_at_compute(module_path):
    module = evaluate.load(module_path)
    with pytest.raises(ValueError, match="num_labels"):
        module.compute(predictions=[[[0]]], references=[[[0]]])
    got = module.compute(predictions=[[[1, 1]]], references=[[[0, 1]]], num_labels=2, ignore_index=0)
    assert got["per_class_iou"] == [None, 1.0]
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        module.compute(predictions=[[[2]]], references=[[[0]]], num_labels=2)


def test_evaluate_module_refuses_options_that_would_do_nothing(module_path):
    with pytest.raises(TypeError, match="num_label: no option"):
        evaluate.load(module_path, num_label=4)
    module = evaluate.load(module_path, num_labels=2, keep_in_memory=True)
    with pytest.raises(TypeError, match="reduce_labels"):
        module.compute(predictions=[[[0]]], references=[[[0]]], reduce_labels=True)
    with pytest.raises(TypeError, match="weights"):
        module.add_batch(predictions=[[[0]]], references=[[[0]]], weights=[1])


def test_evaluate_module_can_be_combined(module_path):
    prediction, label = masks(4)
    ours = MeanIoU(4)
    ours.update(prediction, label)
    expected = ours.compute()
    both = evaluate.combine([evaluate.load(module_path, num_labels=4)])
    assert both.compute(predictions=prediction, references=label) == expected
    both.add_batch(predictions=prediction[:2], references=label[:2])
    both.add(predictions=prediction[2], references=label[2])
    assert both.compute() == expected


def test_evaluate_module_refuses_processes_it_would_not_sum(module_path):
    with pytest.raises(ValueError, match="all_reduce"):
        evaluate.load(module_path, num_labels=4, num_process=2, process_id=0, experiment_id="x")
