import io

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from tests.model.test_modeling import narrow_model
from u2pl_hf import U2PLImageProcessor
from u2pl_hf.evaluation.inference import predict_image
from u2pl_hf.model.image_processing_u2pl import UnclearPixelsError, upright_rgb
from u2pl_hf.model.modeling_u2pl import U2PLOutput
from u2pl_hf.pixels import normalize


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
    first = torch.from_numpy(image).permute(2, 0, 1)
    for given in (image, Image.fromarray(image), first, [image], first / 255, first[None].numpy() / 255):
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
        (photograph().astype(np.float32), "floats from 0 to 255: pass floats from 0 to 1, or uint8"),
        (photograph() / 255 - 0.1, "floats from -0.1"),
        (photograph().astype(np.uint16), "uint16"),
        (photograph()[..., :2], "uint8"),
    ],
)
def test_wrong_images_are_told(images, told):
    with pytest.raises(ValueError, match=told):
        U2PLImageProcessor()(images, return_tensors="pt")


def test_options_that_would_do_nothing_are_refused(folder):
    processor = AutoImageProcessor.from_pretrained(folder, image_mean=[0.5, 0.5, 0.5])
    assert processor.image_mean == [0.5, 0.5, 0.5]
    with pytest.raises(TypeError, match="do_resize"):
        processor(photograph(), do_resize=True)
    with pytest.raises(TypeError, match=r"^crop_size, size: this image processor has only image_mean and image_std"):
        U2PLImageProcessor(size=224, crop_size=200)
    with pytest.raises(TypeError, match="do_rescale"):
        AutoImageProcessor.from_pretrained(folder, do_rescale=False)
    U2PLImageProcessor(processor_class=None, image_processor_type="U2PLImageProcessor")  # as older versions write it


def stored(image: Image.Image, format: str, **options) -> Image.Image:
    """The image as it is read from a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_mode_is_upright_rgb(mode, orientation):
    colour = Image.fromarray(photograph())
    image, exif = colour.convert(mode), Image.Exif()
    expected = np.asarray(image.convert("RGB"))
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    turns = {1: 0, 3: 2, 6: -1}[orientation]
    assert np.array_equal(upright_rgb(image), np.rot90(expected, turns))
    if mode not in ("YCbCr", "HSV"):
        assert np.array_equal(upright_rgb(stored(image, "TIFF", exif=exif)), np.rot90(expected, turns))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_grey_is_its_upper_8_bits(mode):
    grey = photograph()[..., 0]
    deep = (grey.astype(np.uint16) << 8 | 77).astype(">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (23, 19), deep.tobytes())
    for given in (image, stored(image, "TIFF"), stored(Image.fromarray(deep.astype(np.uint16)), "PNG")):
        assert np.array_equal(upright_rgb(given), np.stack([grey] * 3, -1))
    # PIL spreads the 12 bits of such a file over 16, and calls them I.
    camera = Image.open(io.BytesIO(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes()))
    assert upright_rgb(camera)[..., 0].tolist() == [[0, 128, 255]]


def twelve_bit_colour() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 8, 3)).astype(np.uint16)
    return Image.open(io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes()))


@pytest.mark.parametrize(
    "image, told",
    [
        (Image.fromarray(np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)), "floating-point numbers"),
        (stored(Image.fromarray(np.arange(6, dtype=np.float32).reshape(2, 3) * 40), "TIFF"), "floating-point numbers"),
        (stored(Image.fromarray(np.arange(6, dtype=np.int32).reshape(2, 3) * 40), "TIFF"), "32-bit integers"),
        (stored(Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 800), "PNG"), "no value from 4096 on"),
        (stored(Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 800), "TIFF"), "no value from 4096 on"),
        (twelve_bit_colour(), "no value from 4096 on"),
    ],
)
def test_what_could_only_be_guessed_is_refused(image, told):
    with pytest.raises(UnclearPixelsError, match=told) as error:
        U2PLImageProcessor()(image)
    assert "store it with 8 bits per channel" in str(error.value) and "\n" not in str(error.value)


def test_a_turned_photograph_has_the_size_of_its_mask():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = stored(Image.fromarray(photograph()), "PNG", exif=exif)
    assert image.size == (23, 19)
    processor = U2PLImageProcessor()
    for _ in range(2):  # turned once only
        pixels = processor(image)["pixel_values"][0]
        assert image.size == (19, 23) and pixels.shape == (3, 23, 19)
        assert np.array_equal(pixels, processor(np.rot90(photograph(), -1))["pixel_values"][0])


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
