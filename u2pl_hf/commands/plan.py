"""Say which of the recipes for images of one's own fits this machine, and print the command that trains it.

    python training_scripts/plan.py --dataset data/photos --unlabelled_dataset more_photos

The table goes to stderr; the last line on stdout, where that is no terminal, is the same as JSON.
"""

import shlex
from importlib.util import find_spec
from typing import NamedTuple

import torch

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.errors import exits_on_input_error
from u2pl_hf.measure.side_by_side import aligned
from u2pl_hf.training.inputs import load_training_data
from u2pl_hf.training.plan import Counts, plan_without_data
from u2pl_hf.training.recipe.command import recipe_arguments

# With and without unlabelled images; the first that fits is chosen. FixMatch goes most of the way to UniMatch V2
# (docs/methods.md), whose row says whether there is room for it.
ON_GPU = {
    True: ("own_data_dinov2_fixmatch", "own_data_dinov2_unimatch_v2", "own_data_dinov2_8gb_fixmatch"),
    False: ("own_data_dinov2_suponly", "own_data_dinov2_8gb_suponly"),
}
ANYWHERE = {True: "own_data_cpu_u2pl_robust", False: "own_data_cpu_suponly"}
# What a plan counts is a lower bound. Half as much again for what passes (gradients of activations, workspaces, gaps),
# and, in MB, what CUDA and its libraries take at the start: assumed, not measured.
MARGIN, AT_START = 1.5, 1000
SMALLEST_CROP, PATCH = 42, 14


class Card(NamedTuple):
    """A GPU: its name, memory in MB (10^6 bytes), and whether it computes in bfloat16."""

    name: str
    memory: int
    has_bf16: bool


def graphics_card() -> Card | None:
    """The GPU that a run would take; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    found, has_bf16 = torch.cuda.get_device_properties(0), torch.cuda.is_bf16_supported(including_emulation=False)
    return Card(found.name, found.total_memory // 1_000_000, has_bf16)


def count(data: dict) -> tuple[Counts, int]:
    """How many images and classes there are, and the longest side of a labelled one.

    Raises:
        InputError: as training would, in one line.
    """
    recipe = ANYWHERE["unlabelled_dataset" in data]
    found = load_training_data(recipe_arguments(recipe, data | {"crop_size": SMALLEST_CROP}))
    counts = Counts(len(found.labelled), len(found.unlabelled), len(found.evaluation.ids), len(found.class_names))
    return counts, max(max(found.labelled_source.size(i)) for i in found.labelled)


def fitted(recipe: str, data: dict, longest: int, card: Card | None) -> dict:
    """The data; where the recipe's do not fit, also a crop that is not mostly padding, and a number type of the GPU."""
    args, changed = recipe_arguments(recipe, data), {}
    if args.crop_size > 2 * longest:
        changed["crop_size"] = max(longest // PATCH * PATCH, SMALLEST_CROP)
    if args.mixed_precision == "bf16" and card and not card.has_bf16:
        changed["mixed_precision"] = "fp16"
    return data | changed


def estimate(recipe: str, fields: dict, counts: Counts, card: Card | None) -> dict:
    """A recipe's row: what its plan counts, in MB, what that comes to, and whether the GPU has it."""
    counted = plan_without_data(recipe_arguments(recipe, fields), counts, 1)["memory_per_process_mb"]["all"]
    needed = round(MARGIN * counted) + AT_START
    fits = card is not None and needed <= card.memory
    return {"recipe": recipe, "counted_mb": counted, "needed_mb": needed, "fits": fits}


def words(facts: dict) -> str:
    """The table, what decides, and the command."""
    device = f"{facts['device']}, {facts['memory_mb']:,} MB" if facts["memory_mb"] else "no GPU"
    told = "{}; {labelled_images:,} labelled and {unlabelled_images:,} unlabelled images, {classes} classes"
    lines = [("recipe", "counted MB", "needed MB", "fits")]
    for row in facts["recipes"]:
        sizes = (f"{row[name]:,}" if row[name] else "-" for name in ("counted_mb", "needed_mb"))
        lines.append((row["recipe"], *sizes, "yes" if row["fits"] else "no"))
    why = f"needed: {MARGIN} times what --plan counts, and {AT_START:,} MB; the first recipe that fits:"
    if facts["recipe"] in ANYWHERE.values() and find_spec("timm") is None:
        why += " first pip install 'u2pl_hf[timm]', then"
    return "\n\n".join([told.format(device, **facts), aligned(lines), f"{why}\n{facts['command']}"])


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Count images, estimate each recipe, print the table and the command."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="folder that u2pl prepare made, or Hub id; see u2pl train")
    told = "further data sets or folders of images, used as unlabelled"
    parser.add_argument("--unlabelled_dataset", nargs="+", metavar="DIR", help=told)
    args, card = parser.parse_args(argv), graphics_card()
    data = {name: value for name, value in vars(args).items() if value and name != "json"}
    counts, longest = count(data)
    more = counts.unlabelled > 0
    fields = {recipe: fitted(recipe, data, longest, card) for recipe in (*ON_GPU[more], ANYWHERE[more])}
    rows = [estimate(recipe, fields[recipe], counts, card) for recipe in ON_GPU[more]]
    # Its network needs timm to be counted, and is small.
    rows.append({"recipe": ANYWHERE[more], "counted_mb": None, "needed_mb": None, "fits": True})
    recipe = next(row["recipe"] for row in rows if row["fits"])
    options = [
        [f"--{name}", *(value if isinstance(value, list) else [value])] for name, value in fields[recipe].items()
    ]
    facts = {"device": card.name if card else "CPU", "memory_mb": card.memory if card else None}
    facts |= {"labelled_images": counts.labelled, "unlabelled_images": counts.unlabelled, "classes": counts.classes}
    command = shlex.join(["u2pl", "train", recipe, *(str(word) for option in options for word in option)])
    facts |= {"recipes": rows, "recipe": recipe, "command": command}
    print_result(facts, words(facts), as_json=args.json)
