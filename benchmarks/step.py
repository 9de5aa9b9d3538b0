"""Time each phase of a U2PL step, beside a plain implementation with a loop over classes and queues on the host.

    python benchmarks/step.py                                      VOC's shape: 4 + 4 crops of 513, 21 classes
    python benchmarks/step.py --classes 150 --phases_only          without the network
    python benchmarks/step.py --sweep                              cost over classes and queue lengths
    python benchmarks/step.py --device cuda --backbone resnet101 --mixed_precision bf16

Features and logits are synthetic, shaped like an image's: smooth, a few classes per image, a confident teacher. Both
ways see the same tensors in turn, in one process; the best of the rounds counts. A table goes to stderr, one JSON line
to stdout.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass

import plain
import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.method import losses
from u2pl_hf.method import pseudo_labels as pl
from u2pl_hf.method.queues import ClassQueues, select_keys
from u2pl_hf.method.teacher import batch_statistics, update_teacher
from u2pl_hf.method.u2pl import U2PL

ALPHA = 0.15


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    result = {"device": name_of(args.device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.sweep:
        result["sweep"] = sweep(args)
    else:
        result |= one_shape(args)
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, default=4, help="labelled images (default: 4)")
    parser.add_argument("--unlabelled", type=int, default=4, help="unlabelled images (default: 4)")
    parser.add_argument("--crop_size", type=int, default=513, help="side of the crops (default: 513)")
    parser.add_argument("--classes", type=int, default=21, help="C (default: 21)")
    parser.add_argument("--classes_per_image", type=int, default=4, help="classes that an image shows (default: 4)")
    parser.add_argument("--dim", type=int, default=256, help="D (default: 256)")
    parser.add_argument("--queue_length", type=int, default=30_000, help="keys per class, all full (default: 30000)")
    parser.add_argument("--backbone", default="resnet50", help="for the network's own phases (default: resnet50)")
    parser.add_argument("--phases_only", action="store_true", help="leave the network out")
    parser.add_argument("--sweep", action="store_true", help="21, 60, 150 classes; queues of 3000 to 30000")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the best counts (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="of the network")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    return parser.parse_args()


@dataclass
class Inputs:
    """What the method sees of one step."""

    settings: U2PL.Settings
    size: tuple[int, int]
    y_l: Tensor
    valid_u: Tensor
    teacher_logits: Tensor
    teacher: Tensor
    student_logits: Tensor
    student: Tensor


def make_inputs(args, classes: int) -> Inputs:
    """Synthetic tensors on the device: smooth maps in which each image shows a few classes."""
    images, crop = args.labelled + args.unlabelled, args.crop_size
    side = (crop + 3) // 4

    def smooth(channels: int) -> Tensor:
        coarse = torch.randn(images, channels, 9, 9, device=args.device)
        return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)

    # Logits of absent classes lie far below, as a trained teacher's do.
    shown = torch.rand(images, classes, device=args.device).argsort(1) < args.classes_per_image
    logits = 3 * smooth(classes) + torch.where(shown, 4.0, 0.0)[..., None, None]
    logits = logits.contiguous(memory_format=torch.channels_last)
    truth = pl.resize_logits(logits[: args.labelled], (crop, crop)).argmax(1)
    return Inputs(
        U2PL.Settings(low_rank=pl.default_low_rank(classes), queue_length=args.queue_length),
        (crop, crop),
        truth,
        torch.ones(args.unlabelled, crop, crop, dtype=torch.bool, device=args.device),
        logits + 0.3 * torch.randn_like(logits),
        smooth(args.dim).contiguous(memory_format=torch.channels_last),
        (logits + 0.3 * torch.randn_like(logits)).requires_grad_(),
        smooth(args.dim).contiguous(memory_format=torch.channels_last).requires_grad_(),
    )


class Ours:
    """The phases as u2pl_hf computes them."""

    def __init__(self, inputs: Inputs):
        self.i, settings = inputs, inputs.settings
        self.labelled = len(inputs.y_l)
        lengths = [settings.background_queue_length] + [settings.queue_length] * (inputs.teacher_logits.shape[1] - 1)
        self.queues = ClassQueues(lengths, inputs.teacher.shape[1]).to(inputs.teacher.device)
        self.queues.storage.copy_(F.normalize(torch.randn_like(self.queues.storage.float()), dim=1))
        self.queues.pushed.copy_(self.queues.capacity)

    def phases(self) -> dict:
        """Name -> function, in the order of the step."""
        return {
            "pseudo-labels": self.pseudo_label,
            "entropy, quantile, split": self.split,
            "L_s forward": self.supervised,
            "L_u forward": self.unsupervised,
            "L_s + L_u backward": self.dense_backward,
            "anchors, negatives": self.select,
            "sub-sample": self.subsample,
            "push": self.push,
            "sample, L_c forward": self.contrast,
            "L_c backward": self.backward,
        }

    def pseudo_label(self):
        logits = pl.resize_logits(self.i.teacher_logits[self.labelled :], self.i.size)
        _, labels = logits.movedim(1, -1).softmax(-1).max(-1)
        self.labels = labels.masked_fill(~self.i.valid_u, pl.IGNORE)

    def split(self):
        entropy = pl.pixel_entropy(pl.resize_logits(self.i.teacher_logits[self.labelled :], self.i.size))
        self.reliable, self.unreliable = pl.split_by_entropy(entropy, self.labels != pl.IGNORE, ALPHA)

    def supervised(self):
        self.loss_s = losses.cross_entropy(
            pl.resize_logits(self.i.student_logits[: self.labelled], self.i.size), self.i.y_l
        )

    def unsupervised(self):
        logits = pl.resize_logits(self.i.student_logits[self.labelled :], self.i.size)
        self.loss_u = losses.unsupervised_loss(logits, self.labels, self.reliable)

    def dense_backward(self):
        self.i.student_logits.grad = None
        (self.loss_s + self.loss_u).backward()

    def select(self):
        size = self.i.teacher_logits.shape[-2:]
        prob = self.i.teacher_logits.float().softmax(1)
        y_l = pl.nearest_on_corners(self.i.y_l, size)
        classes_u = pl.nearest_on_corners(self.labels.masked_fill(~self.reliable, pl.IGNORE), size)
        unreliable = pl.nearest_on_corners(self.unreliable, size)
        settings = self.i.settings
        self.anchors = pl.anchor_mask(torch.cat([y_l, classes_u]), prob, settings.anchor_threshold)
        self.negatives = pl.negative_mask(
            y_l, prob[: self.labelled], unreliable, prob[self.labelled :], settings.low_rank, settings.high_rank
        )

    def subsample(self):
        self.keys = select_keys(self.i.teacher, self.negatives, self.i.settings.new_keys_per_class)

    def push(self):
        self.queues.push(*self.keys)

    def contrast(self):
        settings = self.i.settings
        self.loss_c, self.used = losses.contrastive_loss(
            self.i.student,
            self.i.teacher,
            self.anchors,
            self.queues,
            num_anchors=settings.num_anchors,
            num_negatives=settings.num_negatives,
            temperature=settings.temperature,
        )

    def backward(self):
        self.i.student.grad = None
        self.loss_c.backward()


class Plain:
    """The same phases, written plainly."""

    def __init__(self, inputs: Inputs):
        self.i, settings = inputs, inputs.settings
        self.labelled = len(inputs.y_l)
        lengths = [settings.background_queue_length] + [settings.queue_length] * (inputs.teacher_logits.shape[1] - 1)
        self.queues = plain.PlainQueues(lengths, inputs.teacher.shape[1])
        self.queues.keys = [torch.randn(length, inputs.teacher.shape[1]) for length in lengths]

    def phases(self) -> dict:
        """Name -> function; selection, sub-sampling and pushing are one loop here."""
        return {
            "pseudo-labels": self.pseudo_label,
            "entropy, quantile, split": self.split,
            "anchors, negatives, sub-sample, push": self.select,
            "sample, L_c forward": self.contrast,
            "L_c backward": self.backward,
        }

    def pseudo_label(self):
        logits = self.i.teacher_logits[self.labelled :]
        self.labels = plain.pseudo_label(logits, self.i.size, self.i.valid_u)

    def split(self):
        logits = self.i.teacher_logits[self.labelled :]
        self.reliable, self.unreliable = plain.split(logits, self.i.size, self.labels, ALPHA)

    def select(self):
        size = self.i.teacher_logits.shape[-2:]
        prob = F.softmax(self.i.teacher_logits, dim=1)
        labels = torch.cat([self.i.y_l, self.labels.masked_fill(~self.reliable, 255)])
        labels, unreliable = pl.nearest_on_corners(labels, size), pl.nearest_on_corners(self.unreliable, size)
        self.classes = plain.select_and_push(
            labels, self.labelled, unreliable, prob, self.i.teacher, self.queues, self.i.settings
        )

    def contrast(self):
        self.loss_c = plain.contrastive_loss(self.i.student, self.classes, self.queues, self.i.settings)

    def backward(self):
        self.i.student.grad = None
        self.loss_c.backward()


def measure(args, *ways) -> list[dict[str, float]]:
    """Milliseconds of each phase of each way, best of the rounds; the first round warms up."""
    best: list[dict[str, float]] = [{} for _ in ways]
    for turn in range(args.rounds + 1):
        for way, times in zip(ways, best, strict=True):
            for name, function in way.phases().items():
                milliseconds = timed(args.device, function)
                if turn:
                    times[name] = min(times.get(name, float("inf")), milliseconds)
    return best


def timed(device: str, function) -> float:
    """Milliseconds of one call, the device's work included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return 1e3 * (time.perf_counter() - start)


CONTRASTIVE = ("anchors", "sub-sample", "push", "sample", "L_c")


def contrastive_total(times: dict[str, float]) -> float:
    """Selection, push, sampling, L_c forward and backward."""
    return sum(value for name, value in times.items() if name.startswith(CONTRASTIVE))


def one_shape(args) -> dict:
    """The table of one shape."""
    inputs = make_inputs(args, args.classes)
    ours, yardstick = Ours(inputs), Plain(inputs)
    times, plain_times = measure(args, ours, yardstick)
    total, plain_total = contrastive_total(times), contrastive_total(plain_times)
    print(f"{'phase':<40} {'ours ms':>9} {'plain ms':>9} {'ratio':>6}", file=sys.stderr)
    for name in dict.fromkeys([*times, *plain_times]):
        mine, other = times.get(name), plain_times.get(name)
        cells = [f"{value:9.1f}" if value is not None else " " * 9 for value in (mine, other)]
        ratio = f"{other / mine:6.1f}" if mine and other else ""
        print(f"{name:<40} {' '.join(cells)} {ratio}", file=sys.stderr)
    print(f"{'contrastive part':<40} {total:9.1f} {plain_total:9.1f} {plain_total / total:6.1f}", file=sys.stderr)
    queue_mb = ours.queues.storage.nbytes / 1e6
    result = {
        "ours_ms": rounded(times),
        "plain_ms": rounded(plain_times),
        "contrastive_ratio": round(plain_total / total, 2),
        "classes_with_anchors": int(ours.used.sum()),
        "queues_mb": round(queue_mb, 1),
        "losses": {"ours": round(ours.loss_c.item(), 3), "plain": round(yardstick.loss_c.item(), 3)},
    }
    if not args.phases_only:
        del yardstick
        result |= network(args, sum(times.values()))
    return result | {"peak_memory_mb": peak_memory(args.device)}


class Network:
    """The network's own phases."""

    def __init__(self, args):
        config = U2PLConfig(num_labels=args.classes, backbone=args.backbone, representation_channels=args.dim)
        kind = {"memory_format": torch.channels_last, "device": args.device}
        self.student = U2PLForSemanticSegmentation(config).to(**kind).train()
        self.teacher = U2PLForSemanticSegmentation(config).to(**kind).eval()
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
        self.images = torch.randn(
            args.labelled + args.unlabelled, 3, args.crop_size, args.crop_size, device=args.device
        ).contiguous(memory_format=torch.channels_last)
        self.unlabelled = self.images[args.labelled :]
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)
        self.autocast = torch.autocast(args.device.split(":")[0], dtype=dtype, enabled=dtype is not None)

    def phases(self) -> dict:
        """Name -> function, in the order of the step."""
        return {
            "teacher on x_u": self.label,
            "student forward": self.forward,
            "teacher on all": self.teach,
            "student backward": self.backward,
            "optimizer": self.step,
            "EMA": lambda: update_teacher(self.teacher, self.student, 0.99),
        }

    @torch.no_grad()
    def label(self):
        with self.autocast:
            self.teacher(self.unlabelled, output_representation=False, output_auxiliary=False)

    def forward(self):
        with self.autocast:
            output = self.student(self.images)
        self.loss = output.logits.float().mean() + output.representation.float().mean()

    @torch.no_grad()
    def teach(self):
        with self.autocast, batch_statistics(self.teacher):
            self.teacher(self.images, output_auxiliary=False)

    def backward(self):
        self.loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def network(args, method_ms: float) -> dict:
    """The network's phases, and the method's share of the step."""
    (times,) = measure(args, Network(args))
    for name, value in times.items():
        print(f"{name:<40} {value:9.1f}", file=sys.stderr)
    step_ms = sum(times.values()) + method_ms
    images = args.labelled + args.unlabelled
    share = method_ms / step_ms
    print(f"{'step':<40} {step_ms:9.1f}   losses and queues: {100 * share:.1f} %", file=sys.stderr)
    return {
        "network_ms": rounded(times),
        "step_ms": round(step_ms, 1),
        "losses_and_queues_share": round(share, 4),
        "images_per_second": round(1e3 * images / step_ms, 2),
    }


def sweep(args) -> list[dict]:
    """Cost of the contrastive part over the number of classes and the length of the queues."""
    rows = []
    for classes in (21, 60, 150):
        for length in (3_000, 30_000):
            args.queue_length = length
            ours = Ours(make_inputs(args, classes))
            (times,) = measure(args, ours)
            row = {"classes": classes, "queue_length": length, "contrastive_ms": round(contrastive_total(times), 1)}
            row |= {"classes_with_anchors": int(ours.used.sum()), "queues_mb": round(ours.queues.storage.nbytes / 1e6)}
            rows.append(row)
            print(row, file=sys.stderr)
    return rows


def rounded(times: dict[str, float]) -> dict[str, float]:
    """For the JSON line."""
    return {name: round(value, 2) for name, value in times.items()}


def peak_memory(device: str) -> int:
    """Of the device, or of the process on a CPU, in MB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def name_of(device: str) -> str:
    """What ran it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


if __name__ == "__main__":
    main()
