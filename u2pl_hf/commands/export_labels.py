"""Write the masks of a data set for an annotation tool, to look at them or to correct them there.

    python training_scripts/export_labels.py data/photos --format cvat --output_dir to_correct

For COCO, CVAT and Label Studio one file is written, for LabelMe one per image, and class_names.txt. What a tool saves
afterwards, `prepare_dataset.py annotations` reads. Pixels of a class called background are in no object, and ignored
ones are objects called ignore where there is such a class. The last line of stdout, where that is no terminal, is one
JSON object.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from u2pl_hf.command_line import ScriptParser, print_result
from u2pl_hf.commands.options import add_annotation_style, annotation_style
from u2pl_hf.constants import IGNORE
from u2pl_hf.data.annotations import LabelledImage, Style
from u2pl_hf.data.annotations.writing import WRITERS, check_export, parts_of, write_annotations
from u2pl_hf.data.source.decode import open_stored
from u2pl_hf.data.source.id_lists import match_ids, read_ids, require_match
from u2pl_hf.data.sources import Source, load_source
from u2pl_hf.errors import exits_on_input_error, require
from u2pl_hf.evaluation.outputs import check_names


def parse_arguments(argv: list[str] | None) -> Namespace:
    """The command line."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("dataset", help="folder that u2pl prepare made, Hub id, or demo")
    add("--format", choices=tuple(WRITERS), required=True, help="of which tool")
    add("--output_dir", type=Path, required=True, help="folder to write; one that this program wrote is replaced")
    add("--subset", default="train", help="of the data set (train)")
    add("--ids", type=Path, metavar="FILE", help="only these images, one id per line")
    add("--with_images", action="store_true", help="write the images as well, below images/")
    add_annotation_style(parser)
    return parser.parse_args(argv)


def rows_to_write(source: Source, ids: Path | None) -> list[int]:
    """The labelled rows, or those of a list.

    Raises:
        InputError: none has a label, or the list names one that has not.
    """
    labelled = [row for row, has in enumerate(source.rows.has_label()) if has]
    require(labelled, "no image of this subset has a label: pass another --subset")
    if ids is None:
        return labelled
    require(ids.is_file(), f"--ids {ids}: no such file")
    by_id = {source.ids[row]: row for row in labelled}
    found, absent = match_ids(read_ids(ids, f"--ids {ids}"), by_id, f"--ids {ids}")
    require_match(found, absent, by_id, f"--ids {ids}", "labelled ")
    require(not absent, f"--ids {ids} names {len(absent)} images without a label, such as {''.join(absent[:1])}")
    return [by_id[name] for name in found]


def labelled_images(source: Source, rows: list[int], folder: Path, with_images: bool) -> Iterator[LabelledImage]:
    """Each row as it is written; its image's file first, where that is asked for."""
    for row in tqdm(rows, "export", unit="image"):
        cell, labels, names = source.rows.cell(row, "image"), source.read_label(row), source.class_names
        highest = int(labels[labels != IGNORE].max(initial=0))
        known = f"there are {len(names)} classes (0..{len(names) - 1}, 255)"
        require(highest < len(names), f"label of {source.ids[row]} holds the value {highest}, but {known}")
        suffix = Path(cell["path"] or "").suffix
        if not suffix:
            suffix = f".{open_stored(cell, f'image of {source.ids[row]}').format.lower()}"
        name, file = source.ids[row] + suffix, None
        if with_images:
            file = folder / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"])
        yield LabelledImage(name, labels.shape, list(parts_of(labels, source.class_names)), file)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Load, check, write."""
    args = parse_arguments(argv)
    style: Style = annotation_style(args, args.format)
    check_export(args.output_dir, args.format, "--output_dir")
    source = load_source(args.dataset, args.subset)
    named = f"data set {args.dataset} does not name its classes: put class_names.txt beside it, one name per line"
    require(source.classes is not None, named)
    rows = rows_to_write(source, args.ids)
    check_names([source.ids[row] for row in rows], args.output_dir)

    def images(folder: Path) -> Iterator[LabelledImage]:
        return labelled_images(source, rows, folder, args.with_images)

    facts = write_annotations(args.output_dir, args.format, source.classes, images, style)
    files, told = facts.pop("files"), f"{facts['images']} images with {facts['regions']} regions"
    result = {"dataset": args.dataset, "subset": args.subset} | facts | {"files": files}
    print_result(result, f"{told} are in {args.output_dir}", as_json=args.json)
