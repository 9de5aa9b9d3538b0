from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation import MeanIoU
from u2pl_hf.evaluation.inference import (
    describe_protocol,
    evaluate_model,
    predict_image,
    segment,
)
from u2pl_hf.pixels import normalize


class Pointwise(nn.Module):
    """Logits that depend on each pixel alone, so every window, flip and position must agree."""

    def __init__(self, num_labels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_labels, 3, 1, 1, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.config = SimpleNamespace(num_labels=num_labels, id2label={c: f"class {c}" for c in range(num_labels)})
        self.sizes = []

    def forward(self, pixel_values, output_representation=False, output_auxiliary=False):
        self.sizes.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=self.dropout(F.conv2d(pixel_values, self.weight)))


class WindowIndex(nn.Module):
    """Logits = how many images this model has seen before: tells which windows covered a pixel."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, pixel_values, output_representation=False, output_auxiliary=False):
        batch, _, h, w = pixel_values.shape
        index = torch.arange(self.seen, self.seen + batch).float().view(-1, 1, 1, 1)
        self.seen += batch
        return SimpleNamespace(logits=index.expand(batch, 2, h, w))


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_whole_upsamples_to_input_size():
    model = Pointwise().eval()

    def coarse(x, **_):
        return SimpleNamespace(logits=model(x).logits[..., ::4, ::4])

    x = images(2, 3, 17, 21)
    expected = F.interpolate(model(x).logits[..., ::4, ::4], size=(17, 21), mode="bilinear", align_corners=True)
    got = segment(coarse, x)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    torch.testing.assert_close(got, expected.detach())


@pytest.mark.parametrize("window", [20, 24, 999])
def test_slide_is_whole_where_the_window_holds_the_image(window):
    model = Pointwise().eval()
    x = images(2, 3, 13, 20)
    whole = segment(model, x)
    model.sizes.clear()
    torch.testing.assert_close(segment(model, x, mode="slide", window=window, window_batch=4), whole)
    assert model.sizes == [(2, 3, 13, 20)]  # not padded


@pytest.mark.parametrize(("size", "window", "stride"), [((30, 41), 12, None), ((9, 41), 12, 5), ((25, 25), 8, 8)])
def test_slide_of_a_pointwise_model_is_whole(size, window, stride):
    model = Pointwise().eval()
    x = images(2, 3, *size)
    got = segment(model, x, mode="slide", window=window, stride=stride, window_batch=3)
    torch.testing.assert_close(got, segment(model, x))
    assert max(batch for batch, *_ in model.sizes[:-1]) == 3


def test_slide_averages_the_windows_over_each_pixel():
    height, width, window, stride = 11, 7, 4, 3
    got = segment(WindowIndex(), torch.zeros(1, 3, height, width), mode="slide", window=window, stride=stride)
    total, count = np.zeros((height, width)), np.zeros((height, width))
    corners = [(y, x) for y in (0, 3, 6, 7) for x in (0, 3)]  # 7: shifted inside; 3 + 4 ends with the image
    for index, (y, x) in enumerate(corners):
        total[y : y + window, x : x + window] += index
        count[y : y + window, x : x + window] += 1
    assert count.min() == 1
    np.testing.assert_allclose(got[0, 1].numpy(), total / count, rtol=1e-6)


def test_default_stride_is_two_thirds_of_the_window():
    assert describe_protocol(mode="slide")["stride"] == 513
    assert "window" not in describe_protocol()


def test_flip_and_scales_average_probabilities():
    model = Pointwise().eval()
    x = images(1, 3, 9, 12)
    flipped = segment(model, x, flip=True)
    torch.testing.assert_close(flipped, segment(model, x).softmax(dim=1))  # the model is equivariant
    got = segment(model, x, scales=(1.0, 1.5), flip=True)
    large = F.interpolate(x, size=(14, 18), mode="bilinear", align_corners=True)
    large = F.interpolate(model(large).logits, size=(9, 12), mode="bilinear", align_corners=True).softmax(dim=1)
    torch.testing.assert_close(got, ((flipped + large) / 2).detach())
    torch.testing.assert_close(got.sum(dim=1), torch.ones(1, 9, 12))


def test_flip_brings_the_mirror_image_back():
    def left_right(x, **_):
        """Looks at the position, not at the image."""
        ramp = torch.linspace(-1, 1, x.shape[3]).expand(x[:, 0].shape)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(ramp), ramp], dim=1))

    got = segment(left_right, torch.zeros(1, 3, 4, 9), flip=True)
    torch.testing.assert_close(got, got.flip(-1))


def test_one_other_scale_gives_logits_at_input_size():
    got = segment(Pointwise().eval(), images(1, 3, 9, 12), scales=(0.5,))
    assert got.shape == (1, 3, 9, 12)
    assert got.min() < 0


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "tiles"},
        {"scales": ()},
        {"scales": (0.0,)},
        {"mode": "slide", "window": 0},
        {"mode": "slide", "window": 8, "stride": 9},
        {"mode": "slide", "stride": 0},
        {"window_batch": 0},
    ],
)
def test_wrong_options_are_told(options):
    with pytest.raises(InputError, match="pass") as error:
        segment(Pointwise(), torch.zeros(1, 3, 8, 8), **options)
    assert "\n" not in str(error.value)


def test_predict_image_restores_the_mode():
    model = Pointwise().train()
    image = np.random.default_rng(1).integers(0, 256, (10, 14, 3)).astype(np.uint8)
    ids = predict_image(model, image, "cpu", mode="slide", window=8)
    assert (ids.dtype, ids.shape) == (np.uint8, (10, 14))
    assert model.training
    assert model.dropout.training
    x = normalize(torch.from_numpy(image).permute(2, 0, 1)[None], None)
    assert np.array_equal(ids, model.eval()(x).logits.argmax(dim=1)[0].numpy())


class FakeSource:
    """Five images, three of one size and two of another."""

    def __init__(self, num_labels=3):
        rng = np.random.default_rng(2)
        sizes = [(8, 10), (8, 10), (8, 10), (12, 9), (12, 9)]
        self.ids = [f"image_{i}" for i in range(5)]
        self.images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        self.labels = [rng.choice([*range(num_labels), 255], size).astype(np.uint8) for size in sizes]
        self.read_image, self.read_label = self.images.__getitem__, self.labels.__getitem__


def test_evaluate_model_equals_a_count_over_single_images():
    model, source, metric = Pointwise().train(), FakeSource(), MeanIoU(3)
    model.dropout.eval()  # a module that the user froze must stay frozen
    for image, label in zip(source.images, source.labels, strict=True):
        metric.update(predict_image(model, image, "cpu"), label)
    model.sizes.clear()
    seen = []
    result = evaluate_model(
        model, source, range(5), device="cpu", batch_size=2, on_sample=lambda *sample: seen.append(sample)
    )
    expected = metric.compute()
    assert [shape[0] for shape in model.sizes] == [2, 1, 2]
    assert list(result["per_class_iou"].values()) == expected["per_class_iou"]
    assert list(result["per_class_iou"]) == ["class 0", "class 1", "class 2"]
    assert (result["mean_iou"], result["accuracy"]) == (expected["mean_iou"], expected["accuracy"])
    assert [sample[0] for sample in seen] == source.ids
    assert all(ids.dtype == np.uint8 and ids.shape == label.shape for _, _, label, ids in seen)
    assert model.training
    assert not model.dropout.training


def test_the_mode_is_restored_after_an_error():
    model, source = Pointwise().train(), FakeSource()
    source.labels[3] = source.labels[3][:-1]
    with pytest.raises(InputError, match="image_3"):
        evaluate_model(model, source, range(5), device="cpu")
    assert model.training


def test_a_label_that_is_no_class_is_named():
    source = FakeSource(num_labels=5)
    with pytest.raises(InputError, match=r"id image_\d: the label holds [34], the model has 3 classes"):
        evaluate_model(Pointwise(), source, range(5), device="cpu")


def test_two_processes_give_the_result_of_one(monkeypatch):
    """Each has counted its own images when the matrices are summed; the sum itself is tested in test_mean_iou.py."""
    counts, seen = [], []

    def sum_with_the_other(metric):
        counts.append(metric._counts.clone())
        metric._counts.copy_(sum(counts))

    monkeypatch.setattr(MeanIoU, "all_reduce", sum_with_the_other)
    for rank in range(2):
        options = {"rank": rank, "world_size": 2, "on_sample": lambda sample_id, *_: seen.append(sample_id)}
        result = evaluate_model(Pointwise(), FakeSource(), range(5), device="cpu", **options)
    assert result == evaluate_model(Pointwise(), FakeSource(), range(5), device="cpu")
    assert seen == ["image_0", "image_2", "image_4", "image_1", "image_3"]
