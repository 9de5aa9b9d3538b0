"""The network as an ONNX file, and the check that ONNX Runtime computes the same."""

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_hf.constants import IMAGE_MEAN, IMAGE_STD
from u2pl_hf.errors import InputError, refusing, require
from u2pl_hf.evaluation.inference import class_names
from u2pl_hf.evaluation.segmentation import LOGITS_ONLY
from u2pl_hf.files import write_atomically

INPUT = "pixel_values"
OUTPUTS = ("logits", "ids")
# Height and width, none of them what the network was traced with.
CHECKED_SIZES = ((128, 160), (97, 65), (200, 333))
TOLERANCE = 1e-4


class FullSize(nn.Module):
    """Normalised images (B,3,H,W) -> logits (B,C,H,W) float32, or class ids (B,H,W) uint8."""

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        """What the file computes."""
        logits = self.model(pixel_values, **LOGITS_ONLY).logits
        logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=True)
        return logits if self.output == "logits" else logits.argmax(dim=1).to(torch.uint8)


def export_onnx(model: nn.Module, path: Path, output: str = "logits") -> dict:
    """Write `model` to `path`, for any number and size of images, and compare it with PyTorch on three sizes.

    The file's metadata hold class names, palette, mean and standard deviation of the normalisation.

    Args:
        model: U2PLForSemanticSegmentation on the CPU, in eval mode.
        path: file to write; it is there only if the comparison went well.
        output: "logits" (B,C,H,W) float32 or "ids" (B,H,W) uint8, at the images' size.

    Returns:
        `sizes`, and for logits the largest `difference` as a share of the largest logit, for ids the smallest share of
        equal pixels, `agreement`.

    Raises:
        InputError: onnx or onnxruntime is not there, the network cannot be exported, or ONNX Runtime differs.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with refusing(ImportError, f"{package} is not installed", ": pip install 'u2pl_hf[onnx]'"):
            importlib.import_module(package)
    network, worst = FullSize(model, output).eval(), []
    least = {0: ("batch", 1), 2: ("height", 33), 3: ("width", 33)}
    facts = {"class_names": class_names(model), "palette": model.config.palette}
    facts |= {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}

    def write(part: Path) -> None:
        # The exporter tells each of its steps, and what it misses of torchvision.
        for library in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(library).setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 97, 129),),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes={INPUT: {axis: torch.export.Dim(name, min=n) for axis, (name, n) in least.items()}},
            )
            program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
            program.save(part, external_data=False)
        worst.append(_largest_difference(network, part, output))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _plain_attention(model):
            write_atomically(path, write)
    except torch.onnx.OnnxExporterError as error:
        line = str(error.__cause__ or error).strip().splitlines()[0][:100]
        raise InputError(f"a network on {model.config.backbone} cannot be exported to ONNX: {line}") from error
    found = {"difference": worst[0]} if output == "logits" else {"agreement": 1 - worst[0]}
    return {"sizes": [list(size) for size in CHECKED_SIZES]} | found


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Attention step by step, where a backbone has any: the exporter cannot lay out the fused one with a mask."""
    features = getattr(model.backbone, "features", None)
    usual = None if features is None else features.config._attn_implementation
    if usual is not None:
        features.set_attn_implementation("eager")
    try:
        yield
    finally:
        if usual is not None:
            features.set_attn_implementation(usual)


@torch.no_grad()
def _largest_difference(network: FullSize, path: Path, output: str) -> float:
    """Of logits as a share of the largest, of ids as a share of the pixels, over all checked sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, found = torch.Generator().manual_seed(0), []
    for number, size in enumerate(CHECKED_SIZES, 1):
        images = torch.randn(number, 3, *size, generator=generator)
        one_size = (
            f"the backbone {network.model.config.backbone} was traced for one size of images, and cannot be exported"
        )
        with refusing(Exception, one_size):
            got = torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
        expected = network(images)
        told = f"ONNX Runtime gives {tuple(got.shape)} and PyTorch {tuple(expected.shape)}: not exported"
        require(got.shape == expected.shape, told)
        if output == "logits":
            found.append(((got - expected).abs().max() / expected.abs().max()).item())
        else:
            found.append((got != expected).float().mean().item())
    told = f"ONNX Runtime and PyTorch differ by {max(found):.1e} (at most {TOLERANCE}): not exported"
    require(all(difference <= TOLERANCE for difference in found), told)
    return max(found)
