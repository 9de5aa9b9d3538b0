"""What a training run is told: typed fields, read from a recipe (YAML) and the command line, checked once."""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import InitVar, asdict, dataclass, fields, replace
from pathlib import Path

from u2pl_hf.command_line import broken_rule, text_rule
from u2pl_hf.errors import InputError, refuse
from u2pl_hf.fields import bookkeeping, setting
from u2pl_hf.method import METHODS, MethodSettings, Step
from u2pl_hf.training.recipe.recipe_file import nearest

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
# What --backbone begins with for a network of timm.
TIMM = "timm/"
# Of --backbone_weights: start from fresh ones.
FRESH = "none"
# Of --fold: the labelled images are evaluated on as well.
ALL = "all"
# Values of --freeze -> what does not learn, in words.
FREEZE = {"none": None, "backbone": "backbone", "batchnorm": "BatchNorm of the backbone"}


@dataclass(frozen=True)
class RunArguments:
    """What a run is told, whatever its method is; `settings` are the method's. See `run_arguments`.

    Every field of both can stand in a recipe and on the command line; the command line wins. The method's settings can
    be read like the run's own.
    """

    # Data
    dataset: str = setting("demo", "'demo', a local folder or a Hub id that datasets.load_dataset reads")
    dataset_revision: str | None = setting(None, "revision of a Hub data set")
    train_subset: str = setting("train", "subset (split of the data set) that is trained on")
    eval_subset: str = setting("validation", "subset that is evaluated on")
    id_column: str = setting("id", "column with a unique name or number per image; without any, rows are numbered")
    image_column: str = setting("image", "column with the images")
    label_column: str = setting("label", "column with the id masks")
    split: str = setting(
        "1/16",
        "which images are labelled: file of ids (one per line), folder with labeled.txt and unlabeled.txt, published "
        "list (voc_classic/732, voc_blender/1323, cityscapes/744 ...), a fraction, a count or 'all'",
    )
    fold: str | None = setting(
        None,
        "K/N: the K-th of N parts of the labelled images is evaluated on, in place of --eval_subset, and not trained "
        "on; all: they are trained and evaluated on",
    )
    labelled_share: float = setting(1.0, "of the split's labelled images; the others are left out", above=0, at_most=1)
    splits_dir: str | None = setting(None, "folder with the published lists, where they cannot be downloaded")
    drop_absent_ids: bool = setting(False, "use a list although the data lack some of its ids")
    unlabelled_dataset: list[str] = setting([], "further data sets or folders of images, used as unlabelled")
    unlabelled_subset: str = setting("train", "subset of --unlabelled_dataset")
    streaming: bool = setting(False, "read parquet files where they lie (Hub or disk) instead of converting them first")
    num_labels: int | None = setting(None, "classes without 255; default: one per name", at_least=2, at_most=255)
    class_names: list[str] = setting([], "one name per class; default: the data set's own, else numbers")
    crop_size: int = setting(513, "side of the square training crops, in pixels", at_least=33, at_most=4096)
    num_workers: int = bookkeeping(2, "data loading processes per stream", at_most=1024)
    cpu_threads: int = bookkeeping(0, "threads per process on a CPU; 0: its cores, shared by all", at_most=1024)

    # Model
    backbone: str = setting(
        "resnet101", "resnet18, resnet34, resnet50, resnet101; timm/NAME; folder or Hub id of any AutoBackbone"
    )
    backbone_revision: str | None = setting(None, "revision of a backbone on the Hub")
    backbone_stages: list[str] = setting(
        [], "stages of an AutoBackbone: stage1 stage3 ...; default: four over its depth"
    )
    stem: str = setting("deep", "of a ResNet: three 3x3 convolutions, or one 7x7 (plain)", choices=("deep", "plain"))
    base_width: int = setting(64, "channels of a ResNet's first stage; published: 64", at_least=1, at_most=1024)
    output_stride: int | None = setting(
        None, "of the last stage: 8 or 16 for a ResNet (default 8); 8, 16, 32 for timm's"
    )
    head: str = setting(
        "deeplabv3plus",
        "what stands on the backbone: DeepLabv3+, a light one of separable convolutions, or DPT, published with DINOv2",
        choices=("deeplabv3plus", "deeplabv3plus_light", "dpt"),
    )
    head_channels: int = setting(
        256, "channels of --head; published with DPT: 64, 128, 256 for DINOv2 S, B, L", at_least=1, at_most=8192
    )
    representation_channels: int = setting(256, "D, channels of the representation", at_most=8192)
    aspp_dilations: list[int] = setting([12, 24, 36], "dilations of DeepLabv3+'s three ASPP branches", at_most=4096)
    dropout: float = setting(0.1, "Dropout2d in DeepLabv3+ and its heads", below=1)
    auxiliary_head: bool = setting(False, "second classifier on the last but one stage (Cityscapes)")
    backbone_weights: str | None = setting(
        None,
        "weights that the backbone starts from: a Hub id, folder or file; for a ResNet timm's or torchvision's, such "
        "as timm/resnet101s.gluon_in1k; none: fresh ones. Default: for a ResNet none, for others where --backbone is",
    )
    backbone_weights_revision: str | None = setting(None, "revision of --backbone_weights on the Hub")
    initial_model: str | None = setting(None, "trained U2PL model to start from: an exported folder or a Hub id")
    initial_model_revision: str | None = setting(None, "revision of --initial_model on the Hub")

    # Method
    method: str = setting(
        "u2pl", "training method: suponly, u2pl, u2pl_ael, fixmatch, unimatch_v2, or one of --method_module"
    )
    method_module: str | None = setting(None, "Python file whose methods --method may name as well")

    # Optimisation
    max_steps: int = setting(1000, "optimizer steps", at_least=1)
    epochs: float = setting(
        0.0,
        "the same in passes over the list, labelled or unlabelled, that takes more steps",
        counts="max_steps",
    )
    batch_size: int = setting(4, "labelled images per process and forward pass", at_least=1, at_most=4096)
    unlabelled_batch_size: int | None = setting(None, "unlabelled ones; default: as many", at_least=1, at_most=4096)
    gradient_accumulation_steps: int = setting(1, "forward and backward passes per step", at_least=1, at_most=100_000)
    optimizer: str = setting("sgd", "what updates the weights", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.001, "base learning rate, at step 0 of the poly schedule", above=0)
    reference_batch_size: int | None = setting(None, "labelled images per step, in all, for learning_rate", at_least=1)
    scale_lr: bool = setting(False, "multiply learning_rate by labelled images per step / reference_batch_size")
    max_grad_norm: float = setting(0.0, "clip the gradient's norm over all parameters to this; 0: no clipping")
    head_lr_factor: float = setting(10.0, "learning rate of the heads over that of the backbone", above=0)
    freeze: str = setting(
        "none",
        "what stays as it was trained: the backbone, or its BatchNorm alone (statistics, affine); heads always learn",
        choices=tuple(FREEZE),
    )
    momentum: float = setting(0.9, "momentum of --optimizer sgd", below=1)
    weight_decay: float = setting(1e-4, "weight decay on all parameters")
    mixed_precision: str = setting("no", "autocast type", choices=("no", "fp16", "bf16"))
    tf32: bool = setting(True, "TF32 in float32 convolutions and matrix products, on GPUs that have it")
    channels_last: bool = setting(True, "weights and images with channels last in memory, which convolutions like best")
    compile: bool = setting(False, "torch.compile student and teacher: the first steps take minutes")
    gradient_checkpointing: bool = setting(False, "compute the student's features twice instead of keeping them")
    deterministic: bool = setting(False, "the same bits in every run on the same GPU, at a price in speed")
    seed: int = setting(0, "seed of split, initial weights, data order and every random draw", at_most=2**63 - 1)

    # Evaluation and bookkeeping
    eval_steps: int = setting(0, "evaluate every n steps; 0: only at the end")
    eval_epochs: float = setting(0.0, "the same in epochs", counts="eval_steps")
    eval_mode: str = setting("whole", "whole image or sliding window", choices=("whole", "slide"))
    eval_window: int = setting(769, "side of the sliding window, in pixels", at_least=1, at_most=100_000)
    eval_batch_size: int = setting(1, "images per pass where neighbours have one size", at_least=1, at_most=4096)
    keep_best: str = bookkeeping(
        "none",
        "teacher: the run ends with the model (teacher, if any) of its best evaluation where that is a point better",
        choices=("none", "teacher"),
    )
    watch_pseudo_labels: bool = bookkeeping(
        False, "log how many pseudo-labels are right, where there are labels to see it"
    )
    logging_steps: int = bookkeeping(10, "write losses to metrics.jsonl every n steps", at_least=1)
    trackers: list[str] = bookkeeping(["auto"], "wandb, trackio, mlflow ...; auto: TensorBoard where installed; none")
    save_steps: int = bookkeeping(500, "checkpoint every n steps, besides at evaluations; 0: only there")
    keep_checkpoints: int = bookkeeping(2, "newest checkpoints to keep", at_least=1)
    picture_samples: int = setting(4, "validation images in the picture grid; 0: no pictures", at_most=1000)
    push_to_hub: str | None = bookkeeping(None, "USER/NAME on the Hub that the finished model is pushed to")
    hub_revision: str | None = bookkeeping(None, "branch for --push_to_hub; default: main")
    hub_private: bool = bookkeeping(False, "make the new repository private")
    hub_checkpoint: bool = bookkeeping(False, "push the last checkpoint as well, to a branch of its own")
    output_dir: str = bookkeeping("runs/u2pl", "run folder: finished model, metrics, pictures, checkpoints")
    resume: str = bookkeeping("auto", "auto: go on where output_dir stopped; never; or the path of a checkpoint")
    change_processes: bool = bookkeeping(
        False, "go on with other processes, same images per step; the bits will differ"
    )
    plan: bool = bookkeeping(False, "print what would be done and stop; published splits need no data for it")
    plan_processes: int = bookkeeping(0, "processes that the plan is for; 0: those started", at_most=1_000_000)
    images_per_second: float = bookkeeping(0.0, "rate that the plan reckons hours with, as in metrics.jsonl")
    json: bool = bookkeeping(False, "print the result as JSON on a terminal as well; elsewhere it always is")

    settings: InitVar[MethodSettings | None] = None

    def __post_init__(self, settings: MethodSettings | None):
        completed = {"settings": self.step_class.Settings() if settings is None else settings}
        if self.unlabelled_batch_size is None:
            completed["unlabelled_batch_size"] = self.batch_size
        if self.output_stride is None and self.backbone in BACKBONES:
            completed["output_stride"] = 8
        if self.backbone_weights == FRESH and self.initial_model:
            completed["backbone_weights"] = None
        for name, value in completed.items():
            object.__setattr__(self, name, value)
        self._check_values()
        refuse(self._rules())
        # How many steps epochs are, the data will say.
        self.step_class.check(self.settings, total_steps=None if self.given_epochs else self.max_steps)

    def __getattr__(self, name: str):
        return getattr(self.settings, name)

    @property
    def step_class(self) -> type[Step]:
        """The method."""
        return find_method(self.method)

    @property
    def frozen(self) -> str | None:
        """What does not learn, in words; None: all does."""
        return FREEZE[self.freeze]

    @property
    def given_epochs(self) -> dict[str, str]:
        """Fields that count epochs and are given -> the fields of steps that they win over."""
        counts = steps_of_epochs(type(self), type(self.settings))
        return {epochs: steps for epochs, steps in counts.items() if getattr(self, epochs)}

    @property
    def evaluated_on(self) -> str:
        """The images of the scores, in words."""
        if self.fold is None:
            return self.eval_subset
        return (
            "its own labelled images"
            if self.fold == ALL
            else f"part {self.fold} of the labelled {self.train_subset} images"
        )

    @property
    def evaluation(self) -> dict:
        """How the run evaluates: keyword arguments of `inference.segment`."""
        return {"mode": self.eval_mode} | ({"window": self.eval_window} if self.eval_mode == "slide" else {})

    def flat(self) -> dict:
        """All fields, the method's settings among them."""
        return asdict(self) | asdict(self.settings)

    def settled(self) -> dict:
        """The same with the values that follow from others, where nothing was told."""
        return asdict(self) | asdict(self.settings.settled())

    def changed(self, **values) -> "RunArguments":
        """The same with other values."""
        return run_arguments(**self.flat() | values)

    def recipe(self) -> dict:
        """The fields that decide the result; a run is resumed only where these are equal.

        Steps that follow from epochs are left out: they depend on the data, whose own check comes later.
        """
        own = {f.name: f.metadata["decides"] for f in (*fields(self), *fields(self.settings))}
        follow, values = self.given_epochs.values(), self.settled()
        return {name: value for name, value in values.items() if own[name] and name not in follow}

    def _check_values(self) -> None:
        """Numbers within the bounds beside their fields, and text that a file, class or repository can be called."""
        for f in (*fields(self), *fields(self.settings)):
            value = getattr(self, f.name)
            for item in value if isinstance(value, list) else [value]:
                if item is None or isinstance(item, bool):
                    continue
                rule = text_rule(item) if isinstance(item, str) else broken_rule(item, **f.metadata["bounds"])
                if choices := f.metadata.get("choices"):
                    rule = rule or (None if item in choices else f"must be one of {', '.join(choices)}")
                if rule:
                    raise InputError(f"--{f.name} {item} {rule}")

    def _rules(self) -> Iterator[tuple[object, str]]:
        """What may not be, and what is then said."""
        method, resnet = self.step_class, self.backbone in BACKBONES
        part = re.fullmatch(r"(\d{1,4})/(\d{1,4})", self.fold or "")
        fits = self.fold in (None, ALL) or (part and 1 <= int(part[1]) <= int(part[2]) and int(part[2]) >= 2)
        yield not fits, f"--fold {self.fold} must be a part and their number, such as 1/3, or {ALL}"
        three = len(self.aspp_dilations) == 3 and min(self.aspp_dilations) >= 1
        yield not three, f"--aspp_dilations {self.aspp_dilations} must be three positive numbers, such as 12 24 36"
        stride = f"--output_stride {self.output_stride} must be 8"
        yield resnet and self.output_stride not in (8, 16), f"{stride} or 16 for a ResNet"
        yield self.output_stride not in (None, 8, 16, 32), f"{stride}, 16 or, for timm's, 32"
        yield self.head == "dpt" and resnet, "--head dpt needs another backbone: pass --backbone facebook/dinov2-small"
        stages = f"--backbone_stages {' '.join(self.backbone_stages)}: --head dpt reads four, pass four or none"
        yield self.head == "dpt" and len(self.backbone_stages) not in (0, 4), stages
        for name in ("backbone_weights", "initial_model"):
            value, revision = getattr(self, name), getattr(self, f"{name}_revision")
            yield value == "", f"--{name} is empty: pass a Hub id, a folder or a file"
            yield revision is not None and value is None, f"--{name}_revision needs --{name}, the Hub id it belongs to"
        both = self.backbone_weights is not None and self.initial_model is not None
        yield both, "--backbone_weights and --initial_model both say where to start: pass one of them"
        fresh = self.initial_model is None and self.backbone_weights in ((None, FRESH) if resnet else (FRESH,))
        untaught = f"--freeze {self.freeze} would keep fresh weights: pass --backbone_weights or --initial_model"
        yield self.frozen is not None and fresh, untaught
        unkept = "--gradient_checkpointing saves nothing with --freeze backbone, which keeps no features: leave it out"
        yield self.freeze == "backbone" and self.gradient_checkpointing, unkept
        # How many steps epochs are, the data will say; one at least.
        counted = {steps: 1 for steps in self.given_epochs.values() if hasattr(self.settings, steps)}
        settings = replace(self.settings, **counted)
        labels_alone = method.labels_alone(settings, self.max_steps)
        without = "--batch_size 1 gives BatchNorm no statistics while only labelled images are used: pass 2 or more"
        yield self.batch_size == 1 and labels_alone, without
        unwatched = not method.uses_unlabelled or self.streaming or self.unlabelled_dataset
        watch = "--watch_pseudo_labels goes with no method without them, nor with --streaming or --unlabelled_dataset"
        yield self.watch_pseudo_labels and unwatched, watch
        only = self.keep_best != "none" and not self.eval_epochs and not self.eval_steps
        yield only, f"--keep_best {self.keep_best} chooses among evaluations: pass --eval_steps, or leave it out"
        hub = [name for name in ("hub_revision", "hub_private", "hub_checkpoint") if getattr(self, name)]
        yield bool(hub) and self.push_to_hub is None, f"--{hub[0] if hub else ''} needs --push_to_hub USER/NAME"
        both = self.compile and self.gradient_checkpointing
        yield both, "--compile and --gradient_checkpointing do not go together: pass one of them"
        headless = method.uses_representation and self.representation_channels < 1
        yield headless, f"--representation_channels 0 must be at least 1 for --method {self.method}"


def steps_of_epochs(*kinds: type) -> dict[str, str]:
    """Fields of dataclasses that count epochs -> the fields of steps that they win over."""
    return {f.name: counts for kind in kinds for f in fields(kind) if (counts := f.metadata["counts"])}


def find_method(name: str) -> type[Step]:
    """A method by its name.

    Raises:
        InputError: there is none; or its settings have names of the run's own fields.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else "--method_module FILE registers further ones"
        raise InputError(f"--method {name} must be one of {', '.join(sorted(METHODS))}; {hint}")
    taken = {f.name for f in fields(RunArguments)} & {f.name for f in fields(METHODS[name].Settings)}
    if taken:
        raise InputError(f"--method {name}: every run has a field {min(taken)}; call its setting otherwise")
    return METHODS[name]


def load_method_module(path: str) -> None:
    """Run a file that registers methods; once, unless it has changed.

    Raises:
        InputError: there is no such file, it fails, or registers nothing.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise InputError(f"--method_module {path} is no Python file; pass one that registers a method")
    name, source = f"u2pl_hf_method_{file.stem}", (file.resolve(), file.read_bytes())
    known = [method for method in METHODS.values() if method.__module__ == name]
    if known and sys.modules[name].source == source:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    module.source = source
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever is in there
        raise InputError(f"--method_module {path} fails: {type(error).__name__}: {error}") from error
    if not any(method.__module__ == name for method in METHODS.values()):
        raise InputError(f"--method_module {path} registers no method; decorate its Step with u2pl_hf.method.register")


def run_arguments(**values) -> RunArguments:
    """Checked arguments from fields of the run and of its method: `run_arguments(method="u2pl", ema_decay=0.9)`.

    Fields that only other methods have are left out: recipes share them.

    Raises:
        InputError: a field that nothing has, with the nearest known name, or a value that cannot be.
    """
    if values.get("method_module") is not None:
        load_method_module(values["method_module"])
    method = find_method(values.get("method", RunArguments.method))
    own, settings = ({f.name for f in fields(kind)} for kind in (RunArguments, method.Settings))
    known = {*own, *other_settings(method), *settings}
    if unknown := [name for name in values if name not in known]:
        raise InputError(f"{unknown[0]} is no field of a run{nearest(unknown[0], known)}")
    chosen = method.Settings(**{name: value for name, value in values.items() if name in settings})
    return RunArguments(**{name: value for name, value in values.items() if name in own}, settings=chosen)


def other_settings(method: type[Step]) -> set[str]:
    """Names of settings that only other methods have."""
    names = {f.name for other in METHODS.values() for f in fields(other.Settings)}
    return names - {f.name for f in fields(method.Settings)}
