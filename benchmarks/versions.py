"""Processor time of a training step in two versions of this package, step by step in turn.

    git worktree add ../before v1
    python benchmarks/versions.py ../before
    python benchmarks/versions.py ../before --method u2pl suponly --mixed_precision no --crop_size 129

The setting is that of the recipes voc_imagenet_*.yaml, on a CPU: a MobileNetV2, whose weights are fresh here, heads of
64 channels, 4 + 4 crops of 161. Each version and method has a process of its own; all are there from the start, take
turns, and rest in between. The fastest of the rounds counts, to which work of others on the machine adds least. A table
goes to stderr, one JSON line to stdout. Needs the extra timm.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from training import FIRST_STEP, WAYS, Training

from u2pl_hf.training.recipe.arguments import run_arguments

NETWORK = {"backbone": "timm/mobilenetv2_100", "output_stride": 16, "head_channels": 64, "aspp_dilations": [2, 4, 6]}


def main() -> None:
    """Measure and print; as `--child`, answer each line with the seconds of a step."""
    args = parse_arguments()
    if args.child:
        answer(args)
        return
    trees = {"before": Path(args.before).resolve(), "now": Path(__file__).resolve().parents[1]}
    children = {(way, name): start(args, way, tree) for way in args.method for name, tree in trees.items()}
    best = dict.fromkeys(children, float("inf"))
    for round_ in range(args.rounds + args.warmup):
        for key, child in children.items():
            child.stdin.write(f"{round_}\n")
            child.stdin.flush()
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"the process of {key} ended, see above")
            if round_ >= args.warmup:
                best[key] = min(best[key], float(line))
    for child in children.values():
        child.stdin.close()
        child.wait()
    show(args, best)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="folder with the other version's sources")
    parser.add_argument("--method", nargs="+", default=["suponly", "u2pl", "u2pl_robust", "fixmatch"], choices=WAYS)
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16"))
    parser.add_argument("--crop_size", type=int, default=161)
    parser.add_argument("--batch_size", type=int, default=4, help="labelled images")
    parser.add_argument("--unlabelled_batch_size", type=int, default=4)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each (default: 20)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (default: 2)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not Path(args.before, "u2pl_hf", "__init__.py").is_file():
        parser.error(f"{args.before} holds no u2pl_hf: pass the folder of another version's sources")
    return args


def start(args, way: str, tree: Path) -> subprocess.Popen:
    """A process that has the package of `tree`, and steps when told to."""
    options = ("mixed_precision", "crop_size", "batch_size", "unlabelled_batch_size", "classes", "threads")
    command = [sys.executable, __file__, str(tree), "--child", "--method", way]
    command += [word for name in options for word in (f"--{name}", str(getattr(args, name)))]
    env = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def answer(args) -> None:
    """The child's part."""
    args.device = "cpu"
    shared = {name: getattr(args, name) for name in ("mixed_precision", "crop_size", "batch_size")}
    shared |= {"unlabelled_batch_size": args.unlabelled_batch_size, "cpu_threads": args.threads, "trackers": ["none"]}
    shared |= {"representation_channels": 64} if "u2pl" in args.method[0] else {}
    training = Training(args, run_arguments(**NETWORK, **shared, **WAYS[args.method[0]]))
    images = training.draw()
    for line in sys.stdin:
        # Each round has its own draws, the same in both versions.
        training.number = FIRST_STEP + int(line)
        print(training.timed_step(images, time.process_time), flush=True)


def show(args, best: dict[tuple[str, str], float]) -> None:
    """Table and JSON line."""
    images = {way: args.batch_size + (0 if way == "suponly" else args.unlabelled_batch_size) for way in args.method}
    print(f"{'method':<14} {'before, ms':>11} {'now, ms':>9} {'images/s':>9} {'faster':>7}", file=sys.stderr)
    rows = {}
    for way in args.method:
        before, now = (best[way, name] for name in ("before", "now"))
        rows[way] = {
            "before_ms": round(1e3 * before, 1),
            "now_ms": round(1e3 * now, 1),
            "ratio": round(before / now, 3),
        }
        numbers = f"{1e3 * before:>11.1f} {1e3 * now:>9.1f} {images[way] / now:>9.2f} {before / now:>7.2f}"
        print(f"{way:<14} {numbers}", file=sys.stderr)
    setting = {name: getattr(args, name) for name in ("mixed_precision", "crop_size", "classes", "threads", "rounds")}
    print(json.dumps(setting | {"torch": torch.__version__, "methods": rows}))


if __name__ == "__main__":
    main()
