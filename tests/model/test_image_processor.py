import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from tests.model.test_modeling import narrow_model
from u2pl_hf import U2PLImageProcessor
from u2pl_hf.data.transforms import normalize
from u2pl_hf.evaluation.inference import predict_image
from u2pl_hf.model.modeling_u2pl import U2PLOutput


def photograph(height=19, width=23) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    model = narrow_model()
    with torch.no_grad():
        # Large and different, so that all classes occur.
        model.classifier[-1].weight.mul_(50)
    model.save_pretrained(tmp_path)
    U2PLImageProcessor().save_pretrained(tmp_path)
    return tmp_path


def test_gives_what_training_gives(folder):
    processor, image = AutoImageProcessor.from_pretrained(folder), photograph()
    assert type(processor) is U2PLImageProcessor
    expected = normalize(torch.from_numpy(image).permute(2, 0, 1)[None], None)
    for given in (image, Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1), [image]):
        got = processor(given, return_tensors="pt")["pixel_values"]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    two = processor([image, 255 - image], return_tensors="np")["pixel_values"]
    assert two.shape == (2, 3, 19, 23) and two.dtype == np.float32


def test_grey_and_transparent_images():
    grey = photograph()[..., 0]
    expected = U2PLImageProcessor()(np.stack([grey] * 3, axis=-1))["pixel_values"][0]
    alpha = Image.merge("RGBA", [Image.fromarray(grey)] * 4)
    for given in (grey, Image.fromarray(grey), alpha):
        assert np.array_equal(U2PLImageProcessor()(given)["pixel_values"][0], expected)


@pytest.mark.parametrize(
    "images, told",
    [
        ([photograph(), photograph(20, 23)], "23x19, 23x20 make no batch"),
        (photograph().astype(np.float32), "uint8"),
        (photograph()[..., :2], "uint8"),
    ],
)
def test_wrong_images_are_told(images, told):
    with pytest.raises(ValueError, match=told):
        U2PLImageProcessor()(images, return_tensors="pt")


def test_sizes_may_differ_without_tensors():
    got = U2PLImageProcessor()([photograph(), photograph(20, 23)])["pixel_values"]
    assert [p.shape for p in got] == [(3, 19, 23), (3, 20, 23)]


def test_masks_are_on_the_grid_with_aligned_corners():
    """A ramp of logits between two classes: the border lies in the middle of the aligned grid."""
    ramp = torch.tensor([1.0, 0.0, -1.0]).expand(2, 3)
    outputs = U2PLOutput(logits=torch.stack([ramp, -ramp])[None])
    (mask,) = U2PLImageProcessor().post_process_semantic_segmentation(outputs, [(4, 10)])
    assert mask.tolist() == [[0] * 5 + [1] * 5] * 4
    (small,) = U2PLImageProcessor().post_process_semantic_segmentation(outputs)
    assert small.shape == (2, 3)
    with pytest.raises(ValueError, match="1 images and 2 target_sizes"):
        U2PLImageProcessor().post_process_semantic_segmentation(outputs, [(4, 10)] * 2)


def test_target_sizes_as_a_tensor():
    logits = torch.randn(2, 5, 6, 7)
    masks = U2PLImageProcessor().post_process_semantic_segmentation(
        U2PLOutput(logits=logits), torch.tensor([[11, 13], [6, 7]])
    )
    assert [tuple(m.shape) for m in masks] == [(11, 13), (6, 7)]
    expected = F.interpolate(logits[:1].double(), (11, 13), mode="bilinear", align_corners=True).argmax(1)[0]
    assert (masks[0] == expected).float().mean() > 0.99 and torch.equal(masks[1], logits[1].argmax(0))


def test_pipeline_gives_the_masks_of_predict(folder, capsys):
    image = photograph(50, 70)
    segmenter = pipeline("image-segmentation", str(folder))
    assert "[y/N]" not in capsys.readouterr().out  # asks nothing
    found = segmenter(Image.fromarray(image))
    ids = predict_image(segmenter.model, image, "cpu")
    assert len(found) > 1
    for part in found:
        class_id = segmenter.model.config.label2id[part["label"]]
        assert np.array_equal(np.array(part["mask"]) > 0, ids == class_id)
