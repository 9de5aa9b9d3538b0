"""Temperature, reliability and halves against loops in numpy; a model with a temperature."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.model.test_modeling import images, labels, narrow_model, scramble
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation import calibration
from u2pl_hf.evaluation.inference import predict, segment
from u2pl_hf.pixels import normalize

SIZES = [(40, 48), (40, 48), (150, 33), (36, 40)]


def honest_pixels(number: int, classes: int = 6, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels drawn from their softmax, so that 1 is the best temperature; then the logits times `scale`."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return scale * logits, logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.5])
def test_temperature_is_the_factor_that_logits_were_scaled_by(scale):
    logits, labels = honest_pixels(100_000, scale=scale)
    found = calibration.fit_temperature(logits.float(), labels)
    assert found == pytest.approx(scale, rel=1e-2)
    # No other is more likely, and a pixel that weighs as much as two is as good as two.
    nll = {t: F.cross_entropy(logits / t, labels).item() for t in (found - 0.01, found, found + 0.01)}
    assert min(nll, key=nll.get) == found
    few, weights = slice(0, 500), torch.ones(500)
    weights[::3] = 2
    twice = torch.cat([torch.arange(500), torch.arange(0, 500, 3)])
    weighted = calibration.fit_temperature(logits[few], labels[few], weights)
    assert weighted == calibration.fit_temperature(logits[twice], labels[twice])
    assert weighted != calibration.fit_temperature(logits[few], labels[few])


def test_no_temperature_is_refused():
    logits, _ = honest_pixels(500)
    with pytest.raises(InputError, match=r"hardly a pixel .* is wrong"):
        calibration.fit_temperature(logits, logits.argmax(dim=1))
    with pytest.raises(InputError, match="say nothing about these labels"):
        calibration.fit_temperature(logits, logits.argmin(dim=1))


def naive_ece(probability: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    total = 0.0
    for m in range(1, bins + 1):
        members = [n for n in range(len(labels)) if (m - 1) / bins < confidence[n] <= m / bins]
        if members:
            accuracy, mean = np.mean([right[n] for n in members]), np.mean([confidence[n] for n in members])
            total += len(members) / len(labels) * abs(accuracy - mean)
    return total


def test_reliability_equals_loops():
    logits, labels = honest_pixels(900, classes=4, scale=3.0)
    logits[0] = torch.tensor([400.0, 0, 0, 0])  # as sure as can be
    found = calibration.Reliability()
    for part in (slice(0, 100), slice(100, 101), slice(101, 900)):
        found.update(logits[part], labels[part])
    probability = np.exp(logits.numpy() - logits.logsumexp(dim=1, keepdim=True).numpy())
    assert found.ece == pytest.approx(naive_ece(probability, labels.numpy()), abs=1e-9)
    assert found.ece > 0.05
    assert found.nll == pytest.approx(np.mean([-np.log(p[c]) for p, c in zip(probability, labels, strict=True)]))
    assert found.pixels.sum() == 900 and found.hits.sum() == (logits.argmax(dim=1) == labels).sum()


def test_halves_share_nothing():
    for number in (2, 7, 100):
        fit, held_out = calibration.halves(number)
        assert sorted(fit + held_out) == list(range(number)) and len(fit) == number // 2
        assert (fit, held_out) == calibration.halves(number)
    assert fit != list(range(50)) and fit != list(range(0, 100, 2))


@pytest.fixture(scope="module")
def scored():
    """A model of random weights, and images whose labels are drawn from what it says of them."""
    model, rng = narrow_model().eval(), np.random.default_rng(0)
    scramble(model)
    pictures = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]
    masks = [rng.choice([0, 1, 2, 3, 4, 255], size).astype(np.uint8) for size in SIZES]
    source = SimpleNamespace(ids=[*"abcd"], read_image=pictures.__getitem__, read_label=masks.__getitem__)
    return model, source


@pytest.mark.parametrize("options", [{"mode": "whole"}, {"mode": "slide", "window": 33, "stride": 20}])
def test_all_labelled_pixels_are_measured(scored, options):
    model, source = scored
    model.train()
    found = calibration.measure(model, source, [0, 2], [1.0, 0.5], **options)
    assert model.training
    model.eval()
    expected = calibration.Reliability(), calibration.Reliability()
    for row in (0, 2):
        pixels = normalize(torch.from_numpy(source.read_image(row)).permute(2, 0, 1)[None], None)
        label = torch.from_numpy(source.read_label(row)).long()
        logits = segment(model, pixels, **options)[0].movedim(0, -1)[label != 255]
        for reliability, temperature in zip(expected, (1.0, 0.5), strict=True):
            reliability.update(logits / temperature, label[label != 255])
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got.pixels, wanted.pixels) and torch.equal(got.hits, wanted.hits)
        assert got.nll == pytest.approx(wanted.nll) and got.ece == pytest.approx(wanted.ece)
    assert found[0].nll != pytest.approx(found[1].nll)


def test_a_sample_is_of_every_image_and_stands_for_all(scored):
    model, source = scored
    logits, truth, weights = calibration.sample_logits(model, source, [0, 1, 2], 300, mode="whole")
    assert logits.shape == (300, 5) and truth.shape == (300,) and (truth != 255).all()
    labelled = [int((source.read_label(row) != 255).sum()) for row in (0, 1, 2)]
    assert weights.tolist() == [n / 100 for n in labelled for _ in range(100)]
    again = calibration.sample_logits(model, source, [0, 1, 2], 300, mode="whole")
    assert all(torch.equal(a, b) for a, b in zip(again, (logits, truth, weights), strict=True))
    _, truth, weights = calibration.sample_logits(model, source, [3], 10**6, mode="whole")
    wanted = source.read_label(3)
    assert truth.tolist() == wanted[wanted != 255].tolist() and (weights == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_divides_its_logits_and_keeps_its_classes(dtype):
    model = narrow_model(auxiliary_head=True).to(dtype).eval()
    scramble(model)
    pixels, truth = images().to(dtype), labels()
    plain = model(pixels, truth)
    model.config.temperature = 1.7
    cooled = model(pixels, truth)
    assert torch.equal(cooled.logits.argmax(dim=1), plain.logits.argmax(dim=1)) and plain.logits.dtype == dtype
    torch.testing.assert_close(cooled.logits * 1.7, plain.logits.to(cooled.logits.dtype), rtol=1e-6, atol=1e-12)
    upsampled = F.interpolate(cooled.logits.float(), truth.shape[-2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(cooled.loss, F.cross_entropy(upsampled, truth, ignore_index=255))
    # Heads that only training reads.
    assert torch.equal(cooled.aux_logits, plain.aux_logits)


def test_the_temperature_is_saved_and_configurations_of_before_load(tmp_path):
    model = narrow_model(temperature=1.25)
    model.save_pretrained(tmp_path)
    assert U2PLForSemanticSegmentation.from_pretrained(tmp_path).config.temperature == 1.25
    content = model.config.to_dict()
    del content["temperature"]
    assert U2PLConfig.from_dict(content).temperature == 1
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            narrow_model(temperature=wrong)


@pytest.mark.parametrize("options", [{}, {"mode": "slide", "window": 33}, {"scales": [1.0, 0.5], "flip": True}])
def test_improbable_pixels_become_255(scored, options):
    model, source = scored
    image = source.read_image(0)
    scores = segment(model, normalize(torch.from_numpy(image).permute(2, 0, 1)[None], None), **options)[0]
    probability = (scores if "flip" in options else scores.softmax(dim=0)).amax(dim=0)
    floor = probability.median().item()
    plain, found = predict(model, image, **options), predict(model, image, reject_below=floor, **options)
    expected = np.where(probability.numpy() >= floor, plain.labels, 255)
    # Folded or not, in whatever pieces: the last bits may decide at the floor itself.
    assert (found.labels == expected).mean() > 0.999
    assert 0.4 < found.kept < 0.6 and plain.kept == 1
    assert found.kept == (found.labels != 255).mean()
    shown = np.asarray(found.overlay(contour=False))
    assert np.array_equal(shown[found.labels == 255], image[found.labels == 255])
    assert (shown[found.labels == 1] != image[found.labels == 1]).any() and (found.labels == 1).any()
    for wrong in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"reject_below is .*: it must"):
            predict(model, image, reject_below=wrong)
