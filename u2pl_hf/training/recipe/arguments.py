"""What a training run is told: typed fields, read from a recipe (YAML) and the command line, checked once."""

import argparse
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from transformers import HfArgumentParser

from u2pl_hf.command_line import LARGEST, broken_rule, text_rule
from u2pl_hf.errors import InputError
from u2pl_hf.method.mixing import STRONG_AUGMENTATIONS
from u2pl_hf.method.official import DEFECTS
from u2pl_hf.method.pseudo_labels import default_low_rank
from u2pl_hf.method.step import MethodSettings
from u2pl_hf.training.recipe.recipe_file import read_recipe

METHODS = ("suponly", "u2pl", "u2pl_ael")
VARIANTS = ("paper", "official")
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
# What --backbone begins with for a network of timm.
TIMM = "timm/"
# Of --backbone_weights: start from fresh ones.
FRESH = "none"
# Fields that count epochs, and the fields that count steps which they win over.
EPOCHS = {
    "epochs": "max_steps",
    "warmup_epochs": "warmup_steps",
    "eval_epochs": "eval_steps",
    "contrastive_start_epochs": "contrastive_start_steps",
}
# What the command line says takes these fields of a recipe back to their defaults: both cannot hold.
DISPLACED = {steps: (epochs,) for epochs, steps in EPOCHS.items()} | {
    "initial_model": ("backbone_weights", "backbone_weights_revision"),
    "backbone_weights": ("initial_model", "initial_model_revision"),
}
# Of --frequent_classes: all classes are rare.
NO_CLASS = "none"


def _field(default, help: str, choices: tuple | None = None, **bounds):
    """bounds: of a number, see `broken_rule`; at least 0 where nothing is said."""
    extra = {"help": help, "bounds": bounds} | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=extra)
    return field(default=default, metadata=extra)


@dataclass
class RunArguments:
    """Every field can stand in a recipe and on the command line; the command line wins."""

    # Data
    dataset: str = _field("demo", "'demo', a local folder or a Hub id that datasets.load_dataset reads")
    dataset_revision: str | None = _field(None, "revision of a Hub data set")
    train_subset: str = _field("train", "subset (split of the data set) that is trained on")
    eval_subset: str = _field("validation", "subset that is evaluated on")
    id_column: str = _field("id", "column with a unique name or number per image; without any, rows are numbered")
    image_column: str = _field("image", "column with the images")
    label_column: str = _field("label", "column with the id masks")
    split: str = _field(
        "1/16",
        "which images are labelled: file of ids (one per line), folder with labeled.txt and unlabeled.txt, published "
        "list (voc_classic/732, voc_blender/1323, cityscapes/744 ...), a fraction, a count or 'all'",
    )
    splits_dir: str | None = _field(None, "folder with the published lists, where they cannot be downloaded")
    drop_absent_ids: bool = _field(False, "use a list although the data lack some of its ids")
    unlabelled_dataset: list[str] = _field([], "further data sets or folders of images, used as unlabelled")
    unlabelled_subset: str = _field("train", "subset of --unlabelled_dataset")
    streaming: bool = _field(False, "read parquet files where they lie (Hub or disk) instead of converting them first")
    num_labels: int | None = _field(
        None, "classes without 255; default: the number of class names", at_least=2, at_most=255
    )
    class_names: list[str] = _field([], "one name per class; default: the data set's own, else numbers")
    crop_size: int = _field(513, "side of the square training crops, in pixels", at_least=33, at_most=4096)
    num_workers: int = _field(2, "data loading processes per stream", at_most=1024)
    cpu_threads: int = _field(
        0, "threads per process when training on a CPU; 0: its cores shared by all processes", at_most=1024
    )

    # Model
    backbone: str = _field(
        "resnet101",
        "dilated ResNet (resnet18, resnet34, resnet50, resnet101), or folder or Hub id of a backbone of transformers "
        "(ConvNeXt, Swin, DINOv2 ...)",
    )
    backbone_revision: str | None = _field(None, "revision of a backbone on the Hub")
    backbone_stages: list[str] = _field(
        [], "stages that a backbone of transformers gives, such as stage1 stage3 stage4; default: four over its depth"
    )
    stem: str = _field("deep", "of a ResNet: three 3x3 convolutions (deep) or one 7x7 (plain)", ("deep", "plain"))
    base_width: int = _field(
        64, "channels of a ResNet's first stage; 64 is the published one", at_least=1, at_most=1024
    )
    output_stride: int | None = _field(
        None,
        "stride of the last stage: 8 (default) or 16 for a ResNet; 8, 16 or 32 for one of timm (default: its own)",
    )
    head_channels: int = _field(256, "channels of ASPP, decoder and heads", at_least=1, at_most=8192)
    representation_channels: int = _field(256, "D, channels of the representation", at_most=8192)
    aspp_dilations: list[int] = _field([12, 24, 36], "dilations of the three ASPP branches", at_most=4096)
    dropout: float = _field(0.1, "Dropout2d in ASPP and heads", below=1)
    auxiliary_head: bool = _field(False, "second classifier on the last but one stage (Cityscapes)")
    backbone_weights: str | None = _field(
        None,
        "weights that the backbone starts from: a Hub id, a folder or a file; for a ResNet those of timm or "
        "torchvision (timm/resnet101s.gluon_in1k). Default: fresh ones for a ResNet, for others those where --backbone "
        "is; none: fresh ones",
    )
    backbone_weights_revision: str | None = _field(None, "revision of --backbone_weights on the Hub")
    initial_model: str | None = _field(None, "trained U2PL model to start from: an exported folder or a Hub id")
    initial_model_revision: str | None = _field(None, "revision of --initial_model on the Hub")

    # Method
    method: str = _field("u2pl", "training method", METHODS)
    variant: str = _field("paper", "anchors and negatives as in the paper, or as the published code has them", VARIANTS)
    fixed_defects: list[int] = _field(
        [], "of --variant official: differences from the paper to put right, 1 to 6 as in docs/fidelity.md"
    )
    supervised_loss: str = _field("ce", "cross-entropy or online hard example mining", ("ce", "ohem"))
    ohem_threshold: float = _field(0.7, "OHEM keeps pixels whose label's probability is at most this", at_most=1)
    ohem_min_kept: int = _field(100_000, "OHEM keeps at least this many pixels of a batch")
    auxiliary_weight: float = _field(0.4, "weight of the auxiliary head's loss")
    warmup_steps: int = _field(0, "supervised steps before the teacher starts")
    warmup_epochs: float = _field(0.0, "the same in epochs")
    ema_decay: float = _field(0.99, "largest decay of the teacher's moving average", at_most=1)
    unreliable_share: float = _field(0.2, "alpha_0, share of pixels taken as unreliable at the start", at_most=1)
    unsupervised_weight: float = _field(1.0, "lambda_u")
    contrastive_weight: float = _field(
        0.1, "lambda_c; the published code's, for --variant official: 0.25 on VOC, 0.125 on Cityscapes"
    )
    strong_augmentation: str = _field("cutmix", "mixing of unlabelled images", tuple(STRONG_AUGMENTATIONS))
    strong_probability: float = _field(0.5, "probability of mixing, one draw per batch", at_most=1)
    anchor_threshold: float = _field(0.3, "delta_p, least probability of an anchor's class", at_most=1)
    low_rank: int | None = _field(None, "r_l; default min(3, classes // 2), at least 1")
    high_rank: int = _field(20, "r_h")
    temperature: float = _field(0.5, "tau of InfoNCE", above=0)
    num_anchors: int = _field(256, "anchors per class and step", at_least=1, at_most=100_000)
    num_negatives: int = _field(50, "negatives per anchor", at_least=1, at_most=100_000)
    queue_length: int = _field(30_000, "negatives kept per class", at_least=1, at_most=100_000_000)
    background_queue_length: int = _field(50_000, "negatives kept for class 0", at_least=1, at_most=100_000_000)
    new_keys_per_class: int = _field(
        256,
        "negatives pushed per class, process and step, at most; the published code pushes all there are",
        at_least=1,
        at_most=100_000_000,
    )
    frequent_classes: list[str] = _field(
        [],
        "names or numbers of the classes that copy-paste leaves alone (u2pl_ael), or none; default: those with more "
        "than 1/classes of the labelled pixels",
    )
    contrastive_start_steps: int = _field(0, "step that the contrastive loss begins at (u2pl_ael)")
    contrastive_start_epochs: float = _field(0.0, "the same in epochs")

    # Optimisation
    max_steps: int = _field(1000, "optimizer steps", at_least=1)
    epochs: float = _field(
        0.0,
        "the same in passes over the list of images that takes more steps (for suponly the labelled one); 0: max_steps "
        "counts",
    )
    batch_size: int = _field(4, "labelled images per process and forward pass", at_least=1, at_most=4096)
    unlabelled_batch_size: int | None = _field(
        None, "unlabelled images per process and forward pass; default: batch_size", at_least=1, at_most=4096
    )
    gradient_accumulation_steps: int = _field(
        1, "forward and backward passes per optimizer step", at_least=1, at_most=100_000
    )
    learning_rate: float = _field(0.001, "base learning rate of SGD, at step 0 of the poly schedule", above=0)
    reference_batch_size: int | None = _field(
        None, "labelled images per step, over all processes, that learning_rate is meant for", at_least=1
    )
    scale_lr: bool = _field(False, "multiply learning_rate by labelled images per step / reference_batch_size")
    max_grad_norm: float = _field(0.0, "clip the gradient's norm over all parameters to this; 0: no clipping")
    head_lr_factor: float = _field(10.0, "learning rate of the heads over that of the backbone", above=0)
    momentum: float = _field(0.9, "SGD momentum", below=1)
    weight_decay: float = _field(1e-4, "weight decay on all parameters")
    mixed_precision: str = _field("no", "autocast type", ("no", "fp16", "bf16"))
    tf32: bool = _field(True, "TF32 in float32 convolutions and matrix products, on GPUs that have it")
    channels_last: bool = _field(True, "weights and images with channels last in memory, which convolutions like best")
    compile: bool = _field(False, "torch.compile student and teacher: the first steps take minutes")
    gradient_checkpointing: bool = _field(False, "compute the student's features twice instead of keeping them")
    deterministic: bool = _field(False, "the same bits in every run on the same GPU, at a price in speed")
    seed: int = _field(0, "seed of split, initial weights, data order and every random draw", at_most=2**63 - 1)

    # Evaluation and bookkeeping
    eval_steps: int = _field(0, "evaluate every n steps; 0: only at the end")
    eval_epochs: float = _field(0.0, "the same in epochs")
    eval_mode: str = _field("whole", "whole image or sliding window", ("whole", "slide"))
    eval_window: int = _field(769, "side of the sliding window, in pixels", at_least=1, at_most=100_000)
    eval_batch_size: int = _field(1, "images per forward pass where neighbours have one size", at_least=1, at_most=4096)
    watch_pseudo_labels: bool = _field(
        False, "log how many pseudo-labels are right, where the unlabelled images have labels; nothing learns from them"
    )
    logging_steps: int = _field(10, "write losses to metrics.jsonl every n steps", at_least=1)
    trackers: list[str] = _field(
        ["auto"], "where curves go as well: wandb, trackio, mlflow ...; auto: TensorBoard where installed; none"
    )
    save_steps: int = _field(500, "checkpoint every n steps, besides at evaluations; 0: only there")
    keep_checkpoints: int = _field(2, "newest checkpoints to keep", at_least=1)
    picture_samples: int = _field(4, "validation images in the picture grid; 0: no pictures", at_most=1000)
    push_to_hub: str | None = _field(None, "USER/NAME on the Hub that the finished model is pushed to")
    hub_revision: str | None = _field(None, "branch for --push_to_hub; default: main")
    hub_private: bool = _field(False, "make the new repository private")
    hub_checkpoint: bool = _field(False, "push the last checkpoint as well, to a branch of its own")
    output_dir: str = _field("runs/u2pl", "run folder: finished model, metrics, pictures, checkpoints")
    resume: str = _field("auto", "auto: go on where output_dir stopped; never; or the path of a checkpoint")
    change_processes: bool = _field(
        False, "resume on another number of processes with the same images per step; the bits will differ"
    )
    plan: bool = _field(
        False, "print what would be done and stop; of a published split this works without its data set"
    )
    plan_processes: int = _field(0, "processes that the plan is made for; 0: those that are started", at_most=1_000_000)
    images_per_second: float = _field(0.0, "rate that the plan reckons hours with, as in metrics.jsonl after warm-up")
    json: bool = _field(False, "print the result as JSON on a terminal as well; elsewhere it always is")

    def __post_init__(self):
        self.unlabelled_batch_size = (
            self.batch_size if self.unlabelled_batch_size is None else self.unlabelled_batch_size
        )
        self._check_values()
        three = len(self.aspp_dilations) == 3 and min(self.aspp_dilations) >= 1
        self._require(three, "aspp_dilations", "must be three positive numbers, such as 12 24 36")
        self._check_output_stride()
        self._check_initial_weights()
        if self.batch_size == 1 and (self.method == "suponly" or self.warmup_steps or self.warmup_epochs):
            raise InputError(
                "--batch_size 1 gives BatchNorm no statistics while only labelled images are used: pass 2 or more"
            )
        if self.watch_pseudo_labels and (self.streaming or self.unlabelled_dataset or self.method == "suponly"):
            raise InputError(
                "--watch_pseudo_labels needs a method with pseudo-labels, and labels at hand: it goes neither with "
                "--method suponly nor with --streaming nor with --unlabelled_dataset"
            )
        hub_options = [name for name in ("hub_revision", "hub_private", "hub_checkpoint") if getattr(self, name)]
        if hub_options and self.push_to_hub is None:
            raise InputError(f"--{hub_options[0]} needs --push_to_hub USER/NAME")
        if self.compile and self.gradient_checkpointing:
            raise InputError("--compile and --gradient_checkpointing do not go together: pass one of them")
        self._check_method()

    def _check_values(self) -> None:
        """Numbers within the bounds beside their fields, and text that a file, class or repository can be called."""
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if isinstance(value, list) else [value]:
                if item is None or isinstance(item, bool):
                    continue
                rule = text_rule(item) if isinstance(item, str) else broken_rule(item, **f.metadata["bounds"])
                if rule:
                    raise InputError(f"--{f.name} {item} {rule}")

    def _check_output_stride(self) -> None:
        """Fill in the ResNets' default. Backbones of transformers have no choice, whatever a recipe says."""
        if self.backbone in BACKBONES:
            self.output_stride = 8 if self.output_stride is None else self.output_stride
            self._require(self.output_stride in (8, 16), "output_stride", "must be 8 or 16 for a ResNet")
        self._require(self.output_stride in (None, 8, 16, 32), "output_stride", "must be 8, 16 or, for timm's, 32")

    def _check_method(self) -> None:
        if self.method != "suponly":
            self._require(self.representation_channels >= 1, "representation_channels", "must be at least 1 for u2pl")
        if not any(getattr(self, name) for name in EPOCHS):
            self.check_schedule()
        if self.fixed_defects and self.variant != "official":
            raise InputError("--fixed_defects needs --variant official, whose differences from the paper they are")
        self.fixed_defects = sorted(set(self.fixed_defects))
        self._require(set(self.fixed_defects) <= set(DEFECTS), "fixed_defects", "must be among 1 2 3 4 5 6")
        if self.method == "u2pl_ael" and self.variant != "paper":
            raise InputError(f"--variant {self.variant} goes with --method u2pl: pass one of them")

    def check_schedule(self) -> None:
        """Steps of a run and of its parts, once they are known.

        Raises:
            InputError: they leave nothing to do, or a part that never comes.
        """
        self._require(self.max_steps >= 1, "epochs", "is less than one step")
        self._require(self.max_steps <= LARGEST, "epochs", f"is more than {LARGEST:,} steps")
        self._require(self.eval_steps >= 1 or not self.eval_epochs, "eval_epochs", "is less than one step")
        if self.method != "suponly":
            self._require_in_time("warmup", "")
        if self.method == "u2pl_ael" and self.contrastive_weight:
            self._require_in_time("contrastive_start", "; to do without that loss, pass --contrastive_weight 0")

    def _require_in_time(self, what: str, otherwise: str) -> None:
        """That a part of the schedule, in epochs or in steps, begins before the end; in epochs, not with step 0."""
        steps, epochs = getattr(self, f"{what}_steps"), getattr(self, f"{what}_epochs")
        if not epochs:
            self._require(
                steps < self.max_steps, f"{what}_steps", f"must be below max_steps {self.max_steps}{otherwise}"
            )
        elif not 1 <= steps < self.max_steps:
            raise InputError(
                f"--{what}_epochs {epochs:g} are {steps} steps of {self.max_steps}: pass another number, or "
                f"--{what}_steps{otherwise}"
            )

    def _check_initial_weights(self) -> None:
        if self.backbone_weights == FRESH and self.initial_model:
            self.backbone_weights = None
        if self.backbone_weights is not None and self.initial_model is not None:
            raise InputError("--backbone_weights and --initial_model both say where to start: pass one of them")
        for name in ("backbone_weights", "initial_model"):
            self._require(getattr(self, name) != "", name, "is empty: pass a Hub id, a folder or a file")
            if getattr(self, f"{name}_revision") is not None and getattr(self, name) is None:
                raise InputError(f"--{name}_revision needs --{name}, the Hub id that it belongs to")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise InputError(f"--{name} {getattr(self, name)} {rule}")

    def method_settings(self, num_labels: int) -> MethodSettings:
        """The step's settings for a number of classes; checks that the rank window leaves negatives."""
        shared = {f.name: getattr(self, f.name) for f in fields(MethodSettings) if hasattr(self, f.name)}
        shared |= {"num_labels": num_labels, "fixed_defects": tuple(self.fixed_defects)}
        shared["low_rank"] = default_low_rank(num_labels) if self.low_rank is None else self.low_rank
        if self.method != "suponly" and not 1 <= shared["low_rank"] < min(self.high_rank, num_labels):
            raise InputError(
                f"--low_rank {shared['low_rank']} --high_rank {self.high_rank} leave no rank for negatives among "
                f"{num_labels} classes: low_rank must lie in 1..{num_labels - 1} and below high_rank"
            )
        return MethodSettings(**shared)

    def recipe(self) -> dict:
        """The fields that decide the result; a run is resumed only where these are equal.

        Steps that follow from epochs are left out: they depend on the data, whose own check comes later.
        """
        housekeeping = {"output_dir", "resume", "plan", "plan_processes", "images_per_second", "num_workers",
                        "cpu_threads", "logging_steps", "save_steps", "watch_pseudo_labels", "keep_checkpoints",
                        "change_processes", "trackers", "push_to_hub", "hub_revision", "hub_private",
                        "hub_checkpoint", "json"}  # fmt: skip
        follow = {steps for epochs, steps in EPOCHS.items() if getattr(self, epochs)}
        return {name: value for name, value in asdict(self).items() if name not in housekeeping | follow}


class _Parser(HfArgumentParser):
    """Leaves bounds to RunArguments, and tells a wrong option in one line."""

    def add_argument(self, *names, bounds=None, **options) -> argparse.Action:
        return super().add_argument(*names, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message} (--help lists all options)")


def parse_arguments(argv: list[str], description: str) -> RunArguments:
    """RECIPE.yaml [--field value ...] -> checked arguments.

    Raises:
        InputError: missing or malformed recipe, unknown field (with the nearest known name), value of the wrong type.
    """
    parser = _Parser(RunArguments, description=description, allow_abbrev=False)
    parser.add_argument("recipe", help="YAML file with fields of this list; see training_scripts/recipes")
    # Once to find the recipe, wherever it stands, and again with its values as defaults.
    names = {name for rivals in DISPLACED.items() for name in (rivals[0], *rivals[1])}
    told = vars(parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(names)))[0])
    rivals = {rival for name, rivals in DISPLACED.items() if told[name] is not None for rival in rivals}
    recipe = read_recipe(Path(told["recipe"]), RunArguments)
    parser.set_defaults(**{name: value for name, value in recipe.items() if name not in rivals})
    namespace = vars(parser.parse_args(argv))
    namespace.pop("recipe")
    return RunArguments(**namespace)
