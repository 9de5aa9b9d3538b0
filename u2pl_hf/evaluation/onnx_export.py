"""The network as an ONNX file, and the check that ONNX Runtime computes the same."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_hf.constants import IMAGE_MEAN, IMAGE_STD
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.sliding import LOGITS_ONLY

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
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"{package} is not installed: pip install 'u2pl_hf[onnx]'") from error
    network = FullSize(model, output).eval()
    batch, height, width = (torch.export.Dim(name, min=least) for name, least in
                            (("batch", 1), ("height", 33), ("width", 33)))  # fmt: skip
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 97, 129),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes={INPUT: {0: batch, 2: height, 3: width}},
            )
            program.model.metadata_props.update(_metadata(model))
            program.save(part, external_data=False)
        found = _compare(network, part, output)
        part.replace(path)
    except torch.onnx.OnnxExporterError as error:
        line = str(error.__cause__ or error).strip().splitlines()[0][:100]
        raise InputError(f"a network on {model.config.backbone} cannot be exported to ONNX: {line}") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def _metadata(model: nn.Module) -> dict[str, str]:
    config = model.config
    facts = {
        "class_names": [config.id2label[c] for c in range(config.num_labels)],
        "palette": config.palette,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    return {name: json.dumps(value) for name, value in facts.items()}


@torch.no_grad()
def _compare(network: FullSize, path: Path, output: str) -> dict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), []
    for number, size in enumerate(CHECKED_SIZES, 1):
        images = torch.randn(number, 3, *size, generator=generator)
        expected = network(images)
        (got,) = session.run(None, {INPUT: images.numpy()})
        got = torch.from_numpy(got)
        if got.shape != expected.shape:
            raise InputError(f"ONNX Runtime gives {tuple(got.shape)} and PyTorch {tuple(expected.shape)}: not exported")
        if output == "logits":
            worst.append(((got - expected).abs().max() / expected.abs().max()).item())
        else:
            worst.append((got != expected).float().mean().item())
    if max(worst) > TOLERANCE:
        raise InputError(f"ONNX Runtime and PyTorch differ by {max(worst):.1e} (at most {TOLERANCE}): not exported")
    sizes = [list(size) for size in CHECKED_SIZES]
    return {"sizes": sizes} | ({"difference": max(worst)} if output == "logits" else {"agreement": 1 - max(worst)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells each of its steps, and what it misses of torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
