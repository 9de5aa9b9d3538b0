"""From arguments to checked data: everything a user can get wrong about a data set is found here, before training."""

from dataclasses import dataclass

from torch.utils.data import DataLoader

from u2pl_hf.data.sources import Source, check_labelled, load_source
from u2pl_hf.data.splits import resolve_split
from u2pl_hf.data.streams import SampleStream, endless_loader
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.errors import InputError
from u2pl_hf.training.arguments import RunArguments


@dataclass
class TrainingData:
    """The two training streams and the evaluation set of a run."""

    train: Source
    evaluation: Source
    labelled: list[int]
    unlabelled: list[int]
    class_names: list[str]

    @property
    def labelled_ids(self) -> list[str]:
        """Ids of the labelled images, in the data's order."""
        return [self.train.ids[i] for i in self.labelled]


def load_training_data(args: RunArguments) -> TrainingData:
    """Load and check data set, split, labels and crop size.

    Raises:
        InputError: one line that names what is wrong.
    """
    columns = {"id_column": args.id_column, "image_column": args.image_column, "revision": args.dataset_revision}
    train = load_source(args.dataset, args.train_subset, label_column=args.label_column, **columns)
    evaluation = load_source(args.dataset, args.eval_subset, label_column=args.label_column, **columns)
    labelled, unlabelled = resolve_split(args.split, train.ids, args.seed)
    if args.method != "suponly" and not unlabelled:
        raise InputError(f"--split {args.split} leaves no unlabelled image; pass --method suponly or label fewer")
    class_names = _class_names(args, train)
    check_labelled(train, labelled, len(class_names), what="training")
    check_labelled(evaluation, range(len(evaluation.ids)), len(class_names), what="evaluation")
    _check_crop(args, train, labelled)
    return TrainingData(train, evaluation, labelled, unlabelled, class_names)


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


def training_loaders(
    args: RunArguments, data: TrainingData, *, rank: int, world_size: int, start_step: int, pin_memory: bool
) -> tuple[DataLoader, DataLoader | None]:
    """Endless loaders of labelled and unlabelled batches (None for suponly), going on at `start_step`."""
    augmentation = WeakAugmentation(args.crop_size)
    layout = {"rank": rank, "world_size": world_size, "num_workers": args.num_workers, "pin_memory": pin_memory}
    stream_l = SampleStream(data.train, data.labelled, augmentation, seed=args.seed, name="labelled", with_labels=True)
    labelled = endless_loader(stream_l, args.batch_size, start_batch=start_step, **layout)
    if args.method == "suponly":
        return labelled, None
    stream_u = SampleStream(
        data.train, data.unlabelled, augmentation, seed=args.seed, name="unlabelled", with_labels=False
    )
    # Unlabelled images are first needed when warm-up ends.
    start_u = max(0, start_step - args.warmup_steps)
    return labelled, endless_loader(stream_u, args.unlabelled_batch_size, start_batch=start_u, **layout)
