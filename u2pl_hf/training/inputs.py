"""From arguments to checked data: everything a user can get wrong about a data set is found here, before training."""

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.utils.data import DataLoader

from u2pl_hf.data.label_counts import label_counts
from u2pl_hf.data.sources import Source, check_labelled, check_some_readable, joined, load_source, materialised
from u2pl_hf.data.splits import resolve_split
from u2pl_hf.data.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError
from u2pl_hf.training.arguments import RunArguments

logger = logging.getLogger(__name__)


@dataclass
class TrainingData:
    """The rows of the two training streams and the evaluation set of a run.

    Attributes:
        labelled_source, labelled: the labelled images are these rows of this source.
        unlabelled_source, unlabelled: likewise.
        evaluation: the evaluation set, all its rows.
        class_names, palette: one name, and one [r, g, b] or None for the default, per class.
    """

    labelled_source: Source
    labelled: list[int]
    unlabelled_source: Source
    unlabelled: list[int]
    evaluation: Source
    class_names: list[str]
    palette: list[list[int]] | None

    @property
    def labelled_ids(self) -> list[str]:
        """Ids of the labelled images, in the data's order."""
        return [self.labelled_source.ids[i] for i in self.labelled]

    @cached_property
    def label_counts(self) -> np.ndarray:
        """Pixels of each class in each labelled image, int64 (labelled,C)."""
        return label_counts(self.labelled_source, self.labelled, len(self.class_names))

    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint must agree with to go on: a digest of the names of each kind, in order."""
        unlabelled = [self.unlabelled_source.ids[i] for i in self.unlabelled]
        kinds = {
            "labelled images": self.labelled_ids,
            "unlabelled images": unlabelled,
            "evaluation images": self.evaluation.ids,
            "classes": self.class_names,
        }
        return {kind: hashlib.sha256("\n".join(names).encode()).hexdigest() for kind, names in kinds.items()}


def load_training_data(args: RunArguments) -> TrainingData:
    """Load and check data set, split, labels and crop size.

    Raises:
        InputError: one line that names what is wrong.
    """
    train, evaluation = (_load(args, args.dataset, subset) for subset in (args.train_subset, args.eval_subset))
    class_names = _class_names(args, train)
    labelled, unlabelled = resolve_split(
        args.split,
        train.ids,
        args.seed,
        has_label=train.rows.has_label(),
        class_presence=train.class_presence,
        drop_absent=args.drop_absent_ids,
        splits_dir=args.splits_dir,
        dataset_dir=args.dataset,
    )
    labelled_source = train
    if train.streamed:
        labelled_source, labelled = materialised(train, labelled), list(range(len(labelled)))
        evaluation = materialised(evaluation, list(range(len(evaluation.ids))))
    check_labelled(labelled_source, labelled, len(class_names), what="training")
    check_labelled(evaluation, range(len(evaluation.ids)), len(class_names), what="evaluation")
    _check_crop(args, labelled_source, labelled)
    unlabelled_source = train
    if args.method != "suponly":
        unlabelled_source, unlabelled = _all_unlabelled(args, train, unlabelled)
        check_some_readable(unlabelled_source, unlabelled)
    # The data set's colours go with its own names only.
    palette = train.palette if class_names == train.class_names else None
    return TrainingData(labelled_source, labelled, unlabelled_source, unlabelled, evaluation, class_names, palette)


def _load(args: RunArguments, dataset: str, subset: str) -> Source:
    return load_source(
        dataset,
        subset,
        id_column=args.id_column,
        image_column=args.image_column,
        label_column=args.label_column,
        revision=args.dataset_revision,
        streaming=args.streaming,
    )


def _all_unlabelled(args: RunArguments, train: Source, unlabelled: list[int]) -> tuple[Source, list[int]]:
    """What the split leaves unlabelled, and every image of the further data sets."""
    if not unlabelled and not args.unlabelled_dataset:
        raise InputError(
            f"--split {args.split} leaves no unlabelled image; "
            "pass --method suponly, label fewer, or name more images with --unlabelled_dataset"
        )
    further = [
        load_source(
            dataset,
            args.unlabelled_subset,
            id_column=args.id_column,
            image_column=args.image_column,
            label_column=None,
            streaming=args.streaming,
        )
        for dataset in args.unlabelled_dataset
    ]
    source = joined([train, *further])
    return source, unlabelled + list(range(len(train.ids), len(source.ids)))


def _class_names(args: RunArguments, train: Source) -> list[str]:
    names = args.class_names or train.class_names or [f"class_{i}" for i in range(args.num_labels or 0)]
    if not names:
        raise InputError(f"data set {args.dataset} names no classes; pass --num_labels N or --class_names A B ...")
    if args.num_labels not in (None, len(names)):
        raise InputError(f"--num_labels {args.num_labels} does not fit the {len(names)} class names")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"class names must be at least two, all different: {' '.join(names)}")
    return names


def _check_crop(args: RunArguments, train: Source, labelled: list[int]) -> None:
    longest = max(max(train.size(i)) for i in labelled)
    if args.crop_size > 2 * longest:
        raise InputError(
            f"--crop_size {args.crop_size} is more than twice the longest side ({longest}) of the labelled images, "
            f"so crops would be mostly padding; pass at most {2 * longest}"
        )


def training_stream(
    args: RunArguments, data: TrainingData, name: str, augmentation: WeakAugmentation, world_size: int
) -> SampleStream:
    """The stream `labelled` or `unlabelled` of a run."""
    is_labelled = name == "labelled"
    return SampleStream(
        data.labelled_source if is_labelled else data.unlabelled_source,
        data.labelled if is_labelled else data.unlabelled,
        augmentation,
        seed=args.seed,
        name=name,
        with_labels=is_labelled or args.watch_pseudo_labels,
        is_required=is_labelled,
        batch_size=args.batch_size if is_labelled else args.unlabelled_batch_size,
        world_size=world_size,
    )


def unlabelled_start(args: RunArguments, step: int) -> int:
    """Batches of unlabelled images that a process has used before a step: they are first needed after warm-up."""
    return max(0, step - args.warmup_steps) * args.gradient_accumulation_steps


def training_loaders(
    args: RunArguments, data: TrainingData, *, rank: int, world_size: int, start_step: int, pin_memory: bool
) -> tuple[DataLoader, DataLoader | None]:
    """Endless loaders of labelled and unlabelled batches (None for suponly), going on at `start_step`.

    Each step takes gradient_accumulation_steps batches of each.
    """
    augmentation = WeakAugmentation(args.crop_size)

    def loader(name: str, start_batch: int) -> DataLoader:
        stream = training_stream(args, data, name, augmentation, world_size)
        options = {"rank": rank, "num_workers": args.num_workers, "pin_memory": pin_memory}
        return endless_loader(stream, start_batch=start_batch, **options)

    labelled = loader("labelled", start_step * args.gradient_accumulation_steps)
    if args.method == "suponly":
        return labelled, None
    return labelled, loader("unlabelled", unlabelled_start(args, start_step))


class SkippedImages:
    """Unlabelled images that could not be read: each is named once in the log, and counted."""

    def __init__(self):
        self.messages: set[str] = set()

    def note(self, messages: list[str]) -> None:
        """Take down what a batch reports."""
        for message in set(messages) - self.messages:
            logger.warning("skipped: %s", message)
        self.messages |= set(messages)

    def __len__(self) -> int:
        return len(self.messages)
