"""Turn downloaded archives or folders of images and masks into a data set to train on.

    python training_scripts/prepare_dataset.py voc --archive VOCtrainval_11-May-2012.tar benchmark.tgz --output_dir voc
    python training_scripts/prepare_dataset.py cityscapes --root cityscapes_downloads --output_dir cityscapes
    python training_scripts/prepare_dataset.py ade20k --archive ADEChallengeData2016.zip --output_dir ade20k
    python training_scripts/prepare_dataset.py coco --root coco_downloads --output_dir coco
    python training_scripts/prepare_dataset.py folder --root my_images --classes classes.txt --output_dir my_data
    python training_scripts/prepare_dataset.py annotations --root my_images --annotations export.json \\
        --output_dir my_data

The result is a folder of parquet files that `datasets.load_dataset` reads, with columns id, image (the original file)
and label (8-bit class ids, 255 = ignore), and a card. Every image and mask is checked; what cannot be used is listed.
The folder appears when it is complete; after an interruption, the same command goes on. The last line of stdout,
where that is no terminal, is one JSON object with the counts. `prepare_dataset.py voc --help` tells more, likewise for
the others.
"""

import argparse
import inspect
import logging
import time
from dataclasses import replace
from pathlib import Path

from u2pl_hf.command_line import ScriptParser, number, print_result
from u2pl_hf.data.annotations.reading import FORMATS, annotation_members
from u2pl_hf.data.prepare.archives import Member, list_members
from u2pl_hf.data.prepare.class_mapping import map_classes
from u2pl_hf.data.prepare.dataset import check_output, prepare
from u2pl_hf.data.prepare.layouts import Layout
from u2pl_hf.data.prepare.layouts.ade20k import ade20k_layout
from u2pl_hf.data.prepare.layouts.annotated import EMPTY_IMAGES, annotated_layout
from u2pl_hf.data.prepare.layouts.cityscapes import cityscapes_layout
from u2pl_hf.data.prepare.layouts.coco import coco_layout
from u2pl_hf.data.prepare.layouts.folder import DEFAULT_VALIDATION, folder_layout
from u2pl_hf.data.prepare.layouts.voc import voc_layout
from u2pl_hf.data.source.class_list import ClassList, read_class_list
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.hub.push import check_can_push, push_folder
from u2pl_hf.system.processes import cpu_cores

logger = logging.getLogger(__name__)


def voc(members: list[Member], args: argparse.Namespace) -> Layout:
    """PASCAL VOC 2012, 21 classes, with augmented labels where they are given.

        python training_scripts/prepare_dataset.py voc --archive VOCtrainval_11-May-2012.tar benchmark.tgz \\
            --output_dir voc

    Archives may be VOCtrainval_11-May-2012.tar, SegmentationClassAug.zip and SBD's benchmark.tgz (needs scipy), known
    by what is in them. Validation is val.txt; with augmented labels, every other image with a label is for training.
    """
    return voc_layout(members)


def cityscapes(members: list[Member], args: argparse.Namespace) -> Layout:
    """Cityscapes with fine labels, mapped to the 19 classes of the benchmark.

        python training_scripts/prepare_dataset.py cityscapes \\
            --archive leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip --output_dir cityscapes

    The licence forbids to pass the images on, so --push needs --force_push.
    """
    return cityscapes_layout(members)


def ade20k(members: list[Member], args: argparse.Namespace) -> Layout:
    """ADE20K, 150 classes, from ADEChallengeData2016.zip.

    python training_scripts/prepare_dataset.py ade20k --archive ADEChallengeData2016.zip --output_dir ade20k
    """
    return ade20k_layout(members)


def coco(members: list[Member], args: argparse.Namespace) -> Layout:
    """COCO 2017, 80 kinds of things and background, from masks of class ids or from panoptic annotations.

        python training_scripts/prepare_dataset.py coco --output_dir coco \\
            --archive train2017.zip val2017.zip panoptic_annotations_trainval2017.zip
        python training_scripts/prepare_dataset.py coco --output_dir coco \\
            --archive train2017.zip val2017.zip --masks masks.zip

    Masks hold 0 for background, 1 to 80 for things in the order of COCO's category ids, and 255 for pixels to ignore.
    """
    return coco_layout(members, list_members(args.masks) if args.masks else None)


def folder(members: list[Member], args: argparse.Namespace) -> Layout:
    """Your own images: images/ and masks/ of the same names, and unlabelled/ if you have more images.

        python training_scripts/prepare_dataset.py folder --root my_images --classes classes.txt --output_dir my_data

    Folders nest as you like. Those called train and val (also Training, valid, val2017; test is left out), below
    images/ or above it, are the subsets; where none is for validation, its images are drawn. masks/ may be called
    labels/ or annotations/. Without --classes, DIR/classes.txt is read where it is there; without either, masks must
    hold 0, 1 ... and 255 for pixels to ignore. A class list has one class per line: NAME, NAME,R,G,B for masks painted
    in colours or NAME,VALUE for other values than 0, 1 ...; a class may have several lines, and one named ignore or
    void is left out. It may be JSON as well: a list of names, or {"NAME": [R, G, B]}. 255 is ignored unless the list
    names it. Masks may be of 1, 8 or 16 bits or have a palette, but not be JPEG.
    """
    classes, notes = class_list(args.classes, args.root and args.root / "classes.txt")
    layout = folder_layout(members, classes, args.validation, args.seed, args.workers)
    return replace(layout, notes=notes + layout.notes)


def annotations(members: list[Member], args: argparse.Namespace) -> Layout:
    """Your own images, and what an annotation tool exported of them: COCO, CVAT, LabelMe, Label Studio, Supervisely.

        python training_scripts/prepare_dataset.py annotations --root my_images --annotations export.json \\
            --output_dir my_data

    Later objects lie over earlier ones, in CVAT those of a higher z_order; crowds and objects called ignore or void are
    ignored. Pixels of no object are the class background where there is one, and ignored where there is none;
    --background names another. Images without annotation are unlabelled rows. Folders called train and val are the
    subsets, as of `folder`. Needs the extra `annotations` for COCO and CVAT.
    """
    files = annotation_members(args.annotations)
    beside = (args.annotations if args.annotations.is_dir() else args.annotations.parent) / "class_names.txt"
    classes, notes = class_list(args.classes, beside)
    more = (args.background, args.empty, args.validation, args.seed)
    layout = annotated_layout(members, files, args.format, classes, *more)
    return replace(layout, notes=notes + layout.notes)


def class_list(given: Path | None, beside: Path | None) -> tuple[ClassList | None, list[str]]:
    """What --classes names, or else the file that lies beside the data, and then a note of it; None without either."""
    if given is None and beside is not None and beside.is_file():
        return read_class_list(beside), [f"classes are those of {beside.name}, which lies there"]
    return read_class_list(given) if given else None, []


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; the layout's function is `find`."""
    parser = ScriptParser(description=__doc__)
    layouts = parser.add_subparsers(
        dest="layout", required=True, metavar="{voc,cityscapes,ade20k,coco,folder,annotations}"
    )
    for find in (voc, cityscapes, ade20k, coco, folder, annotations):
        text = inspect.getdoc(find)
        layout = layouts.add_parser(find.__name__, description=text, help=text.splitlines()[0])
        layout.set_defaults(find=find)
        add_layout_arguments(layout)
    told = "masks of class ids, where they are not in folders called masks of the other files"
    layouts.choices["coco"].add_argument("--masks", type=Path, metavar="FILE|DIR", help=told)
    add_own_data(layouts.choices["folder"], "classes.txt in --root")
    add_own_data(layouts.choices["annotations"], "class_names.txt beside them")
    add = layouts.choices["annotations"].add_argument
    add("--annotations", type=Path, required=True, metavar="FILE|DIR", help="what the tool exported")
    add("--format", choices=FORMATS, help="of it (default: as it looks)")
    told = (
        "class of pixels of no object, made where there is none; ignore for 255 (default: background, where it is one)"
    )
    add("--background", metavar="NAME", help=told)
    add("--empty", choices=EMPTY_IMAGES, default=EMPTY_IMAGES[0],
        help="what images are that are listed without an object (default: %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


def add_own_data(parser: argparse.ArgumentParser, beside: str) -> None:
    """Options of layouts without a class list or a validation set of their own."""
    told = f"class list (default: {beside}, else as the labels have them)"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=told)
    told = (
        "labelled images to validate on, where no folder is called val: a share, a count, a file of ids, or 0 for none"
    )
    parser.add_argument("--validation", default=DEFAULT_VALIDATION, metavar="SHARE|COUNT|FILE",
                        help=f"{told} (default: %(default)s)")  # fmt: skip
    seed = number(int, at_most=2**63 - 1)
    parser.add_argument("--seed", type=seed, default=0, help="of the draw of validation images (default: 0)")


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every layout."""
    parser.add_argument("--archive", type=Path, nargs="+", default=[], metavar="FILE", help="tar, tar.gz or zip files")
    parser.add_argument("--root", type=Path, metavar="DIR", help="unpacked folder; may be given along with --archive")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist or be empty")
    workers, told = number(int, at_least=1, at_most=1024), "threads (default: one per core, here %(default)s)"
    parser.add_argument("--workers", type=workers, default=cpu_cores(), help=told)
    told = "rename classes, all at once; several OLD of one NEW are merged, and ignore leaves one out"
    parser.add_argument("--map", nargs="+", default=[], metavar="OLD=NEW", help=told)
    parser.add_argument("--keep", nargs="+", metavar="NAME", help="of the names after --map, leave out all others")
    parser.add_argument("--others", metavar="NAME", help="make those one class (default: they are ignored)")
    parser.add_argument("--skip_bad", action="store_true", help="leave out what cannot be used instead of stopping")
    side, told = number(int, at_least=16, at_most=2**20), "shrink larger images, and their masks without interpolation"
    parser.add_argument("--longest_side", type=side, metavar="PIXELS", help=told)
    shards = number(int, at_least=1, at_most=100_000)
    parser.add_argument("--shards", type=shards, help="files per subset (default: by the size)")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the result to the Hub")
    parser.add_argument("--private", action="store_true", help="make the pushed data set private")
    parser.add_argument("--force_push", action="store_true", help="push although the licence of the data forbids it")


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Find, check, write and, if asked to, push."""
    args, start = parse_arguments(argv), time.perf_counter()
    require(args.archive or args.root, "nothing to prepare: pass --archive FILE ... or --root DIR")
    is_folder = args.root is None or args.root.is_dir()
    require(is_folder, f"--root {args.root} is not a folder; archives are passed as --archive FILE ...")
    may_push = args.layout != "cityscapes" or not args.push or args.force_push
    remedy = "--force_push if you may, for example to a private repository of your own"
    require(may_push, f"the licence of Cityscapes forbids redistribution, so it is not pushed; {remedy}")
    unused = "--private" if args.private else "--force_push"
    told = f"{unused} says nothing without --push: pass that as well, or leave it out"
    require(args.push or not (args.private or args.force_push), told)
    check_output(args.output_dir)
    if args.push:
        check_can_push(args.push, "dataset")
    containers = ([args.root] if args.root else []) + list(dict.fromkeys(args.archive))
    layout = args.find([member for container in containers for member in list_members(container)], args)
    if args.map or args.keep or args.others:
        mapping, notes = map_classes(layout.classes, args.map, args.keep, args.others)
        layout = replace(layout, mapping=mapping, notes=layout.notes + notes)
    if args.longest_side:
        told = f"images whose longer side has more than {args.longest_side:,} pixels are shrunk to it"
        layout = replace(layout, longest_side=args.longest_side, notes=[*layout.notes, told])
    result = prepare(layout, args.output_dir, workers=args.workers, shards=args.shards, skip_bad=args.skip_bad)
    result |= {"output_dir": str(args.output_dir), "seconds": round(time.perf_counter() - start, 2)}
    if args.push:
        result["pushed"] = push_folder(args.output_dir, args.push, repo_type="dataset", private=args.private)
    print_result(result, as_json=args.json)
