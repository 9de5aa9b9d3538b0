"""Images per second and peak memory of whole training steps, for several ways to compute them, or for several methods.

    python benchmarks/training.py --device cuda
    python benchmarks/training.py --device cuda --configurations bf16 fp16 --stability 2000
    python benchmarks/training.py --device cpu --backbone resnet18 --crop_size 129 --batch_size 2 \
        --unlabelled_batch_size 2 --threads 2
    python benchmarks/training.py --device cpu --method u2pl suponly u2pl_robust fixmatch unimatch_v2 \
        --backbone resnet18 --crop_size 129 --threads 1

A step is what the trainer does with a batch: normalisation, student, both teacher passes, losses, queues, backward,
optimizer, moving average. Images and labels are random, four classes an image. Each configuration runs in a
process of its own, so that peak memory and settings of the whole process are its own. Several methods take turns in one
process and one configuration, fp32 where none is given. A table goes to stderr, with ratios to its first row, and one
JSON line to stdout.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from u2pl_hf.method import METHODS, Batch
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.pixels import normalize
from u2pl_hf.training.batches import seed_draws
from u2pl_hf.training.build import assemble, build_student, start
from u2pl_hf.training.recipe.arguments import BACKBONES, RunArguments, run_arguments

BF16 = {"mixed_precision": "bf16"}
CONFIGURATIONS = {
    "fp32": {"tf32": False, "channels_last": False},
    "fp32_channels_last": {"tf32": False},
    "tf32_channels_last": {},
    "bf16": BF16 | {"channels_last": False},
    "bf16_channels_last": BF16,
    "bf16_compiled": BF16 | {"compile": True},
    "fp16": {"mixed_precision": "fp16"},
    "checkpointing": {"gradient_checkpointing": True},
    "deterministic": {"deterministic": True},
}
# What --method takes: methods that need no pools of images, and the variants of U2PL.
WAYS = {name: {"method": name} for name in METHODS if name != "u2pl_ael"}
# Copy-paste reads images, which are drawn here.
WAYS |= {
    f"u2pl_{variant}": {"method": "u2pl", "variant": variant, "copy_paste_probability": 0.0}
    for variant in ("official", "robust")
}
# These two take the precision that the device is best at.
USUAL_PRECISION = ("checkpointing", "deterministic")
# What a CPU cannot do, and what it compiles for minutes.
NOT_ON_A_CPU = ("tf32_channels_last", "fp16", "bf16_compiled")
# Dense bfloat16 matrix products, 10^12 operations per second, from the vendor's data sheets (SXM, then PCIe).
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
# Somewhere in the second half of a run: the teacher is at work and alpha is not 0.
FIRST_STEP, TOTAL_STEPS = 500, 1000
CLASSES_PER_IMAGE = 4


def main() -> None:
    """Measure and print; as `--child`, one configuration."""
    args = parse_arguments()
    if args.child:
        print(json.dumps(measure(args, args.configurations[0])))
        return
    setting = {name: getattr(args, name) for name in ("backbone", "crop_size", "output_stride", "classes")}
    setting["batch"] = {"labelled": args.batch_size, "unlabelled": args.unlabelled_batch_size}
    if len(args.method) > 1:
        print(json.dumps(setting | compare(args)))
        return
    flops = step_flops(args)
    rows = []
    for name in args.configurations:
        row = in_own_process(args, name)
        rows.append(row | speed(args, row, flops))
        print_rows(rows)
    print(json.dumps(setting | {"step_tflop": round(flops / 1e12, 4), "rows": rows}))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--configurations", nargs="+", choices=CONFIGURATIONS, help="default: all; on a CPU, those that start quickly"
    )
    parser.add_argument(
        "--method", nargs="+", default=["u2pl"], choices=WAYS, help="several are compared (default: u2pl)"
    )
    parser.add_argument("--backbone", default="resnet101", choices=BACKBONES)
    parser.add_argument("--crop_size", type=int, default=513)
    parser.add_argument("--batch_size", type=int, default=4, help="labelled images")
    parser.add_argument("--unlabelled_batch_size", type=int, default=4)
    parser.add_argument("--output_stride", type=int, default=8, choices=(8, 16))
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, of which the fastest counts (default: 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before, at least 1 (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of all steps, for several methods (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="on a CPU (default: all cores)")
    parser.add_argument("--stability", type=int, default=0, help="then this many steps, each with other images")
    parser.add_argument("--peak_tflops", type=float, help="of the device, for the share of it that is reached")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.method) > 1:
        args.configurations = args.configurations or ["fp32"]
        if len(args.configurations) > 1:
            parser.error("--configurations: pass one for several methods")
    if args.configurations is None:
        args.configurations = [name for name in CONFIGURATIONS if args.device == "cuda" or name not in NOT_ON_A_CPU]
    return args


def arguments(args, name: str, way: str) -> RunArguments:
    """A run's arguments in one configuration, with a method or variant."""
    changes = CONFIGURATIONS[name]
    if name in USUAL_PRECISION and args.device == "cuda":
        changes = BF16 | changes
    shared = ("backbone", "crop_size", "batch_size", "unlabelled_batch_size", "output_stride")
    # Every pixel may be an anchor of its class, or a fresh network would leave the contrastive loss without work.
    shared = {key: getattr(args, key) for key in shared}
    threads = {"cpu_threads": args.threads, "trackers": ["none"]}
    return run_arguments(**shared, **WAYS[way], anchor_threshold=0.0, **threads, **changes)


class Training:
    """The networks of a run, as the trainer has them, and its step."""

    def __init__(self, args, run: RunArguments):
        self.args, self.run, self.device = args, run, torch.device(args.device)
        os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu")
        self.accelerator = start(run)
        self.networks = assemble(run, self.accelerator, build_student(run, [str(c) for c in range(args.classes)]))
        self.layout = torch.channels_last if run.channels_last else torch.contiguous_format
        self.number = FIRST_STEP

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random bytes as the decoder lays them out, (B,3,S,S), and labels of the first images, (B_l,S,S)."""
        args, side = self.args, self.args.crop_size
        number = args.batch_size + args.unlabelled_batch_size
        pixels = torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, device=self.device)
        shown = torch.rand(args.batch_size, args.classes, device=self.device).argsort(1)[:, :CLASSES_PER_IMAGE]
        place = torch.randint(0, shown.shape[1], (args.batch_size, side * side), device=self.device)
        return pixels.permute(0, 3, 1, 2), shown.gather(1, place).view(-1, side, side)

    def step(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One training step; returns its losses, stacked."""
        seed_draws(0, self.number)
        valid = torch.ones_like(pixels[:, 0], dtype=torch.bool)
        labelled = len(labels)
        # Normalised apart, as the two streams come.
        x_l, x_u = (
            normalize(pixels[part], valid[part]).contiguous(memory_format=self.layout)
            for part in (slice(labelled), slice(labelled, None))
        )
        batch = Batch(x_l, labels, x_u, valid[labelled:])
        student, wrapped, method, optimizer = self.networks
        with self.accelerator.autocast():
            output = method(wrapped, batch, self.number, TOTAL_STEPS)
        self.accelerator.backward(output.total)
        optimizer.step()
        optimizer.zero_grad()
        method.finish(student, self.number)
        return torch.stack(list(output.named.values()))

    def timed_step(self, images: tuple, clock=time.perf_counter) -> float:
        """Seconds, the device's work included."""
        start = clock()
        self.step(*images)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def measure(args, name: str) -> dict:
    """One configuration, in this process."""
    run = arguments(args, name, args.method[0])
    training = Training(args, run)
    images = training.draw()
    warmup = [training.timed_step(images) for _ in range(max(1, args.warmup))]
    seconds = [training.timed_step(images) for _ in range(args.steps)]
    result = {
        "precision": run.mixed_precision,
        "step_ms": round(1e3 * min(seconds), 1),
        "median_step_ms": round(1e3 * statistics.median(seconds), 1),
        "first_step_s": round(warmup[0], 1),
        "peak_memory_mb": peak_memory(args.device),
    }
    return result | machine(args) | (stability(training, args.stability) if args.stability else {})


def compare(args) -> dict:
    """Milliseconds of a step of several methods, and ratios to the first one's.

    Each of --steps steps has its own draws, on which the strong views' work depends. Methods take turns with every
    step, rounds repeat them all, the fastest round counts for each step, and the mean over the steps is told. On a CPU
    it is processor time, to which work of others on the machine adds least.
    """
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    ways = {name: Training(args, arguments(args, args.configurations[0], name)) for name in args.method}
    images = ways[args.method[0]].draw()
    best = {name: [math.inf] * args.steps for name in ways}
    for training in ways.values():
        for _ in range(max(1, args.warmup)):
            training.step(*images)
    for _, step, (name, training) in itertools.product(range(args.rounds), range(args.steps), ways.items()):
        training.number = FIRST_STEP + step
        best[name][step] = min(best[name][step], training.timed_step(images, clock))
    milliseconds = {name: 1e3 * statistics.mean(seconds) for name, seconds in best.items()}
    first = milliseconds[args.method[0]]
    print(f"{'method':<20} {'step ms':>9} {'/ ' + args.method[0]:>12}", file=sys.stderr)
    for name, value in milliseconds.items():
        print(f"{name:<20} {value:>9.1f} {value / first:>12.3f}", file=sys.stderr)
    rounded = {name: {"step_ms": round(ms, 1), "ratio": round(ms / first, 3)} for name, ms in milliseconds.items()}
    return {"configuration": args.configurations[0], "first": args.method[0], "methods": rounded} | machine(args)


def machine(args) -> dict:
    """What measures."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def peak_memory(device: str) -> int:
    """Of the device, or of the process on a CPU, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def stability(training: Training, steps: int) -> dict:
    """Whether all losses of further steps are finite, and how many steps the gradient scaler skipped."""
    finite, skipped = True, 0
    scaler = training.accelerator.scaler
    for training.number in range(FIRST_STEP, FIRST_STEP + steps):
        scale = scaler.get_scale() if scaler else 0.0
        finite = bool(training.step(*training.draw()).isfinite().all()) and finite
        # A skipped step is known by the smaller scale that it leaves.
        skipped += bool(scaler and scaler.get_scale() < scale)
    weights_finite = all(bool(p.isfinite().all()) for p in training.networks.student.parameters())
    counted = {"skipped_steps": skipped, "scale": scaler.get_scale()} if scaler else {}
    return {"stable_steps": steps, "losses_finite": finite, "weights_finite": weights_finite} | counted


def step_flops(args) -> int:
    """Operations of the convolutions and matrix products of one step's networks, counted without computing them.

    Student forward and backward, teacher forward on the unlabelled and on all images; what checkpointing computes
    again is not counted.
    """
    unlabelled, side = args.unlabelled_batch_size, args.crop_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_student(arguments(args, "fp32", "u2pl"), [str(c) for c in range(args.classes)])
        images = torch.empty(args.batch_size + unlabelled, 3, side, side)
        output = network.train()(images)
        (output.logits.sum() + output.representation.sum()).backward()
        with torch.no_grad():
            network.eval()(images[:unlabelled], output_representation=False)
            with batch_statistics(network):
                network(images)
    return counter.get_total_flops()


def in_own_process(args, name: str) -> dict:
    """The result of one configuration, or the last line of its error."""
    command = [sys.executable, __file__, "--child", "--configurations", name, "--method", *args.method]
    for key in ("device", "backbone", "crop_size", "batch_size", "unlabelled_batch_size", "output_stride",
                "classes", "steps", "warmup", "threads", "stability"):  # fmt: skip
        command += [f"--{key}", str(getattr(args, key))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return {"configuration": name, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {"configuration": name} | json.loads(done.stdout.splitlines()[-1])


def speed(args, row: dict, flops: int) -> dict:
    """Images and operations per second of a row."""
    if "error" in row:
        return {}
    seconds = row["step_ms"] / 1e3
    images, tflops = args.batch_size + args.unlabelled_batch_size, flops / seconds / 1e12
    known = next((value for name, value in PEAK_TFLOPS.items() if name in row["device"]), None)
    peak = args.peak_tflops or known
    share = {"share_of_peak": round(tflops / peak, 3)} if peak else {}
    return {"images_per_second": round(images / seconds, 3), "tflops": round(tflops, 3)} | share


def print_rows(rows: list[dict]) -> None:
    """The last row to stderr as soon as it is there, below a head; ratios are to the first row that was measured."""
    head = ("configuration", "precision", "step ms", "images/s", "x", "memory MB", "x", "TFLOP/s", "of peak", "first s")
    template = "{:<20} {:<9} {:>9} {:>9} {:>6} {:>10} {:>6} {:>8} {:>8} {:>8}"
    if len(rows) == 1:
        print(template.format(*head), file=sys.stderr)
    row = rows[-1]
    if "error" in row:
        print(f"{row['configuration']:<20} {row['error']}", file=sys.stderr)
        return
    first = next(row for row in rows if "error" not in row)
    share = f"{100 * row['share_of_peak']:.1f} %" if "share_of_peak" in row else "-"
    faster = row["images_per_second"] / first["images_per_second"]
    larger = row["peak_memory_mb"] / first["peak_memory_mb"]
    cells = (row["step_ms"], f"{row['images_per_second']:.2f}", f"{faster:.2f}", row["peak_memory_mb"],
             f"{larger:.2f}", f"{row['tflops']:.2f}", share, row["first_step_s"])  # fmt: skip
    print(template.format(row["configuration"], row["precision"], *cells), file=sys.stderr, flush=True)
    if "stable_steps" in row:
        keys = ("stable_steps", "losses_finite", "weights_finite", "skipped_steps", "scale")
        print("  " + ", ".join(f"{key} {row[key]}" for key in keys if key in row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
