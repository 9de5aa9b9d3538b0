"""From arguments to checked data: everything a user can get wrong about a data set is found here, before training."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from u2pl_hf.data.source.checks import (
    Labelled,
    check_classes,
    check_labelled,
    check_some_readable,
    warn_of_scored_training,
    without_evaluation,
)
from u2pl_hf.data.source.splits import parts_of, resolve_split, stratified_draw
from u2pl_hf.data.sources import Source, chosen, joined, load_source, materialised
from u2pl_hf.errors import InputError, require
from u2pl_hf.training.recipe.arguments import ALL, RunArguments

# Of the draw of parts: runs of all seeds share them.
PARTS_SEED = 0


@dataclass
class TrainingData:
    """The rows of the two training streams and the evaluation set of a run.

    Attributes:
        labelled_source, labelled: the labelled images are these rows of this source.
        unlabelled_source, unlabelled: likewise.
        evaluation: the evaluation set, all its rows.
        labels, evaluation_labels: what was found in the labelled and in the evaluation images.
        left_out: unlabelled images that are not used because they are evaluation images.
        class_names, palette: one name, and one [r, g, b] or None for the default, per class.
    """

    labelled_source: Source
    labelled: list[int]
    unlabelled_source: Source
    unlabelled: list[int]
    evaluation: Source
    labels: Labelled
    evaluation_labels: Labelled
    left_out: int
    class_names: list[str]
    palette: list[list[int]] | None

    @property
    def labelled_ids(self) -> list[str]:
        """Ids of the labelled images, in the data's order."""
        return [self.labelled_source.ids[i] for i in self.labelled]

    @property
    def labelled_shares(self) -> dict[str, float]:
        """Of each class by its name, its part of the labelled pixels."""
        counts = self.labels.counts.sum(axis=0)
        return dict(zip(self.class_names, (counts / counts.sum()).tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint must agree with to go on: a digest of each kind, in order.

        Of unlabelled images the bytes are counted, not read; of streamed ones, those of the row groups.
        """
        sizes = self.unlabelled_source.rows.sizes[self.unlabelled]
        kinds = {
            "labelled images": self.labelled_ids,
            "unlabelled images": [self.unlabelled_source.ids[i] for i in self.unlabelled],
            "evaluation images": self.evaluation.ids,
            "classes": self.class_names,
            "labels of labelled images": [digest.hex() for digest in self.labels.labels],
            "labels of evaluation images": [digest.hex() for digest in self.evaluation_labels.labels],
            "bytes of labelled images": [digest.hex() for digest in self.labels.images],
            "bytes of evaluation images": [digest.hex() for digest in self.evaluation_labels.images],
            "sizes of unlabelled images": map(str, sizes.tolist()),
        }
        return {kind: hashlib.sha256("\n".join(names).encode()).hexdigest() for kind, names in kinds.items()}


def load_training_data(args: RunArguments, faults: dict[str, list[str]] | None = None) -> TrainingData:
    """Load and check data set, split, labels and crop size.

    Args:
        faults: to look at the data: "labelled" and "validation" get a line for each bad image, which is left out (but
            for `evaluation`, which has all rows), and there need be no unlabelled images, nor readable ones.

    Raises:
        InputError: one line that names what is wrong.
    """
    train = _load(args, "train_subset")
    evaluation = None if args.fold else _load(args, "eval_subset")
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
    labelled, held = _parted(args, train, labelled)
    labelled_source, evaluation = train, evaluation or chosen(train, held)
    if train.streamed:
        labelled_source, labelled = materialised(train, labelled), list(range(len(labelled)))
    if not args.fold and evaluation.streamed:
        evaluation = materialised(evaluation, list(range(len(evaluation.ids))))
    bad = faults or {}
    labels = check_labelled(labelled_source, labelled, len(class_names), what="training", faults=bad.get("labelled"))
    if faults:
        kept = set(labels.ids)
        labelled = [row for row in labelled if labelled_source.ids[row] in kept]
    every = range(len(evaluation.ids))
    evaluation_labels = check_labelled(
        evaluation, every, len(class_names), what="evaluation", faults=bad.get("validation")
    )
    check_classes(labels.counts, class_names, what="labelled", at_least=2)
    check_classes(evaluation_labels.counts, class_names, what="evaluation", at_least=1)
    _check_crop(args, labelled_source, labelled)
    warn_of_scored_training(labels, evaluation_labels)
    unlabelled_source, left_out = train, 0
    if args.step_class.uses_unlabelled and (unlabelled or args.unlabelled_dataset or not faults):
        unlabelled_source, unlabelled, left_out = _all_unlabelled(args, train, unlabelled, labels, evaluation_labels)
        if not faults:
            check_some_readable(unlabelled_source, unlabelled)
    # The data set's colours go with its own names only.
    palette = train.palette if class_names == train.class_names else None
    unlabelled = (unlabelled_source, unlabelled)
    checked = (evaluation, labels, evaluation_labels)
    return TrainingData(labelled_source, labelled, *unlabelled, *checked, left_out, class_names, palette)


def _parted(args: RunArguments, train: Source, labelled: list[int]) -> tuple[list[int], list[int]]:
    """Rows that are trained on, and those that are held out, as --fold and --labelled_share say.

    The parts follow from the images and their labels alone, not from the run's seed or the order of rows.

    Raises:
        InputError: there are fewer labelled images than parts.
    """
    if args.fold == ALL:
        return labelled, labelled
    rows, held = np.array(sorted(labelled, key=train.ids.__getitem__)), []
    if args.fold is None and args.labelled_share == 1:
        return labelled, held
    presence, rng = train.class_presence()[rows], np.random.default_rng(PARTS_SEED)
    if args.fold:
        number, parts = map(int, args.fold.split("/"))
        told = f"--fold {args.fold}: the {len(rows)} labelled images are fewer than the parts"
        require(parts <= len(rows), f"{told}; pass at most {len(rows)} parts")
        taken = parts_of(presence, parts, rng)[number - 1]
        held = sorted(rows[taken].tolist())
        rows, presence = np.delete(rows, taken), np.delete(presence, taken, axis=0)
    kept = stratified_draw(presence, max(1, round(args.labelled_share * len(rows))), rng)
    return sorted(rows[kept].tolist()), held


def _load(args: RunArguments, option: str) -> Source:
    return load_source(
        args.dataset,
        getattr(args, option),
        id_column=args.id_column,
        image_column=args.image_column,
        label_column=args.label_column,
        revision=args.dataset_revision,
        streaming=args.streaming,
        subset_option=f"--{option}",
    )


def _all_unlabelled(
    args: RunArguments, train: Source, unlabelled: list[int], labels: Labelled, evaluation: Labelled
) -> tuple[Source, list[int], int]:
    """What the split leaves unlabelled, and the further data sets, without evaluation images; how many those were."""
    if not unlabelled and not args.unlabelled_dataset:
        raise InputError(
            f"--split {args.split} leaves no unlabelled image; "
            "pass --method suponly, which takes none, label fewer, or name more images with --unlabelled_dataset"
        )
    further = [
        load_source(
            dataset,
            args.unlabelled_subset,
            id_column=args.id_column,
            image_column=args.image_column,
            label_column=None,
            streaming=args.streaming,
            subset_option="--unlabelled_subset",
        )
        for dataset in args.unlabelled_dataset
    ]
    sources, rows, start, total = [train, *further], [], 0, 0
    for number, source in enumerate(sources):
        own = unlabelled if number == 0 else list(range(len(source.ids)))
        # Who evaluates on the training images knows it.
        is_own = args.train_subset == args.eval_subset and args.fold is None
        is_checked = args.fold != ALL and not (number == 0 and is_own)
        kept = without_evaluation(source, own, labels, evaluation) if is_checked else own
        rows += [start + row for row in kept]
        start, total = start + len(source.ids), total + len(own)
    if not rows:
        raise InputError(f"all {total} unlabelled images are evaluation images; name others with --unlabelled_dataset")
    return joined(sources), rows, total - len(rows)


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
