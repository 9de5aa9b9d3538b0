"""Time the phases of a step of U2PL with AEL beside those of U2PL on the same images, network and reading included.

    python benchmarks/ael.py                                                  camvid_u2pl_ael.yaml's shape, one thread
    python benchmarks/ael.py --device cuda --backbone resnet101 --crop_size 769 --image_size 1024 --batch 2

Both methods take turns in one process, with equal networks and batches; the best of the rounds counts for each phase,
and a phase's time is without that of the phases inside it. Images are rendered ones, read and augmented as in training.
A table goes to stderr, one JSON line to stdout.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from u2pl_hf.data.demo import DemoSpec, demo_folder
from u2pl_hf.method import equalization, losses
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.training.batches import seed_draws
from u2pl_hf.training.build import build_run
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.trainer import Trainer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="labelled and as many unlabelled images (default: 4)")
    parser.add_argument("--crop_size", type=int, default=225, help="side of the crops (default: 225)")
    parser.add_argument("--image_size", type=int, default=240, help="side of the images read (default: 240)")
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--base_width", type=int, default=32, help="channels of the first stage (default: 32)")
    parser.add_argument("--head_channels", type=int, default=64, help="default: 64, and as many for D")
    parser.add_argument("--output_stride", type=int, default=16, help="default: 16")
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="of the network")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each method, the best counts (default: 8)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser.parse_args()


class Phases:
    """Milliseconds spent in wrapped functions, without those spent in wrapped functions that they call."""

    def __init__(self, device: str):
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self.open: list[float] = []
        self.spent: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable) -> Callable:
        """`function`, with its time noted under `name`."""

        def wrapper(*args, **kwargs):
            self.wait()
            start = time.perf_counter()
            self.open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                self.wait()
                whole = 1e3 * (time.perf_counter() - start)
                self.spent[name] += whole - self.open.pop()
                if self.open:
                    self.open[-1] += whole

        return wrapper

    def wrap(self, owner, **names: str) -> None:
        """Replace attributes of an object or module: attribute=phase."""
        for attribute, name in names.items():
            if hasattr(owner, attribute):
                setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


def make_trainer(args: argparse.Namespace, method: str, data: Path, output: Path) -> Trainer:
    """A run of one method, and nothing done yet."""
    return Trainer(build_run(run_arguments(
        method=method, dataset=str(data), split="1/4", output_dir=str(output), crop_size=args.crop_size,
        batch_size=args.batch, backbone=args.backbone, base_width=args.base_width, output_stride=args.output_stride,
        head_channels=args.head_channels, representation_channels=args.head_channels, warmup_steps=0, max_steps=1000,
        mixed_precision=args.mixed_precision, cpu_threads=args.threads, num_workers=0, trackers=["none"],
    )))  # fmt: skip


def one_step(trainer: Trainer, phases: Phases, step: int) -> dict[str, float]:
    """Milliseconds by phase of one step; loading the batch itself is left out."""
    phases.spent.clear()
    batch, _ = trainer.run.batches.next(step, number=step)
    seed_draws(0, step)
    with trainer.accelerator.autocast():
        output = phases.timed("rest of the forward pass", trainer.run.method)(trainer.run.student, batch, step, 1000)
    phases.timed("backward", trainer.accelerator.backward)(output.total)
    phases.timed("optimizer, teacher's average", trainer._update)(step)
    return dict(phases.spent)


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    if not args.device.startswith("cuda"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    phases = Phases(args.device)
    phases.wrap(pl, pixel_entropy="entropy", masked_quantile="quantiles", resize_logits="resizing logits")
    phases.wrap(losses, unsupervised_loss="L_u forward", contrastive_loss="L_c forward")
    phases.wrap(
        equalization,
        equalised_consistency="L_u forward",
        draw_class_boxes="AEL: components and boxes",
        paste_classes="AEL: copy-paste",
    )
    with tempfile.TemporaryDirectory() as folder:
        data = demo_folder(Path(folder), DemoSpec(train=64, validation=5, size=args.image_size))
        ways = {name: make_trainer(args, name, data, Path(folder) / name) for name in ("u2pl", "u2pl_ael")}
        for name, trainer in ways.items():
            method = trainer.run.method
            phases.wrap(trainer.run.student, forward="student forward")
            phases.wrap(method.teacher, forward="teacher forward")
            phases.wrap(method, supervised_loss="L_s forward", contrast="anchors, negatives, queues")
            phases.wrap(method, update_confidence="AEL: confidence bank")
            if name == "u2pl_ael":
                phases.wrap(method.copy_paste, choose="AEL: choosing")
                phases.wrap(method.partners, choose="AEL: choosing")
                phases.wrap(method.categories, update="AEL: category bank")
                for pool in (method.copy_paste.pool, method.partners.pool):
                    phases.wrap(pool, receive="AEL: waiting for images")
            method.begin(trainer.run.student, 0)
            trainer.run.batches.start()
        best: dict[str, dict[str, float]] = {name: {} for name in ways}
        for step in range(args.rounds + 1):
            for name, trainer in ways.items():
                times = one_step(trainer, phases, step)
                times["step"] = sum(times.values())
                for phase, value in times.items() if step else ():
                    best[name][phase] = min(best[name].get(phase, float("inf")), value)
    report(args, best)


def report(args: argparse.Namespace, best: dict[str, dict[str, float]]) -> None:
    """The table, and the JSON line."""
    names = [name for name in dict.fromkeys([*best["u2pl_ael"], *best["u2pl"]]) if name != "step"]
    print(f"{'phase':<32} {'U2PL ms':>9} {'with AEL':>9} {'more ms':>9}", file=sys.stderr)
    for name in [*names, "step"]:
        plain, mine = (best[way].get(name, 0.0) for way in ("u2pl", "u2pl_ael"))
        print(f"{name:<32} {plain:9.1f} {mine:9.1f} {mine - plain:9.1f}", file=sys.stderr)
    ratio = best["u2pl_ael"]["step"] / best["u2pl"]["step"]
    print(f"{'with AEL / U2PL':<32} {ratio:9.3f}", file=sys.stderr)
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "cpu"
    rounded = {way: {name: round(value, 1) for name, value in times.items()} for way, times in best.items()}
    facts = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(facts | {"milliseconds": rounded, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
