"""Images per second of our networks, beside DeepLabV3Plus of segmentation_models.pytorch where that is installed.

    python benchmarks/inference.py                                  ResNet-50 of stride 16, 512x512, one thread
    python benchmarks/inference.py --output_stride 8 --backbone resnet101

One image after the other, fresh weights, logits at the size of the image, 256 channels in the head. All networks take
turns in one process, so that they meet the same machine; on the CPU, processor time counts, and the best of the rounds.
Theirs has the plain stem, so `plain` is like beside like; `folded` is what `u2pl predict` runs. Ratios are to their
faster memory layout, or to the first row where the library is not there. A table goes to stderr, one JSON line to
stdout.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from u2pl_hf.evaluation.folding import folded
from u2pl_hf.evaluation.segmentation import segment
from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation

CLASSES = 21
THEIRS = "segmentation_models.pytorch"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="resnet18, 34, 50 or 101 (default: resnet50)")
    parser.add_argument("--output_stride", type=int, choices=(8, 16), default=16, help="default: 16")
    parser.add_argument("--size", type=int, default=512, help="side of the image (default: 512)")
    parser.add_argument("--rounds", type=int, default=5, help="the best counts, after one that does not (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser.parse_args()


def our_networks(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Both heads on both stems, as `load_model` gives them and folded."""
    networks = {}
    for head in ("deeplabv3plus", "deeplabv3plus_light"):
        for stem in ("deep", "plain"):
            fields = {"head": head, "stem": stem, "backbone": args.backbone, "output_stride": args.output_stride}
            model = U2PLForSemanticSegmentation(U2PLConfig(num_labels=CLASSES, **fields)).eval()
            model = model.to(args.device, memory_format=torch.channels_last)
            networks |= {f"{head}, {stem}": model, f"{head}, {stem}, folded": folded(model)}
    return networks


def their_networks(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The same encoder, stride and width in both memory layouts; nothing where the library is not there."""
    try:
        from segmentation_models_pytorch import DeepLabV3Plus
    except ImportError:
        return {}
    build = partial(DeepLabV3Plus, args.backbone, encoder_weights=None, classes=CLASSES)
    networks = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        network = build(encoder_output_stride=args.output_stride).eval().to(args.device, memory_format=layout)
        networks[f"{THEIRS}, {str(layout).removeprefix('torch.')}"] = network
    return networks


def best_seconds(ways: dict[str, Callable[[Tensor], Tensor]], args: argparse.Namespace) -> dict[str, float]:
    """Of one image each, ways in turns."""
    on_cpu = args.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    wait = (lambda: None) if on_cpu else torch.cuda.synchronize
    image, best = torch.randn(1, 3, args.size, args.size, device=args.device), dict.fromkeys(ways, float("inf"))
    with torch.inference_mode():
        for turn in range(args.rounds + 1):
            for name, way in ways.items():
                wait()
                start = clock()
                logits = way(image)
                wait()
                assert logits.shape == (1, CLASSES, args.size, args.size), (name, logits.shape)
                best[name] = min(best[name], clock() - start) if turn else best[name]
    return best


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    theirs = their_networks(args)
    ways = theirs | {name: partial(segment, model) for name, model in our_networks(args).items()}
    best = best_seconds(ways, args)
    base = min(best[name] for name in theirs or [next(iter(best))])
    print(f"{'network':<48} {'ms':>9} {'images/s':>9} {'ratio':>7}", file=sys.stderr)
    for name, seconds in best.items():
        print(f"{name:<48} {1e3 * seconds:>9.1f} {1 / seconds:>9.3f} {base / seconds:>7.3f}", file=sys.stderr)
    facts = {name: getattr(args, name) for name in ("backbone", "output_stride", "size", "threads", "device")}
    speeds = {name: round(1 / seconds, 4) for name, seconds in best.items()}
    ratios = {name: round(base / seconds, 3) for name, seconds in best.items()}
    print(json.dumps(facts | {"torch": torch.__version__, "images_per_second": speeds, "ratios": ratios}))


if __name__ == "__main__":
    main()
