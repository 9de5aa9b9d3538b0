"""README.md of a prepared data set."""

from pathlib import PurePosixPath

import yaml

from u2pl_hf.constants import IGNORE
from u2pl_hf.data.prepare.layouts import Layout
from u2pl_hf.markdown import escaped, markdown_table

FEATURES = {"id": "string", "image": "image", "label": "image"}
SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]


def render_card(layout: Layout, result: dict, sizes: dict[str, int], content: str) -> str:
    """Front matter that `datasets` reads and a text for people.

    Args:
        sizes: bytes of each subset.
        content: a sum of the files. `datasets` tells folders of one name apart by what the card says alone, and would
            give out what it has cached of another.
    """
    counts = [[name, s["rows"], s["labelled"], s["unlabelled"]] for name, s in result["subsets"].items()]
    skipped = f"{len(result['skipped'])} rows that could not be used are left out; `prepare.json` names them"
    notes = [*result["notes"], *[skipped] * bool(result["skipped"]), *warning_lines(result)]
    metadata = yaml.safe_dump(_front_matter(layout, result, sizes, content), sort_keys=False, allow_unicode=True)
    paragraphs = [
        f"---\n{metadata}---",
        f"# {escaped(layout.about.title)}",
        layout.about.text,
        "Columns: `id`; `image`, the original file; `label`, an 8-bit PNG of class ids with 255 = ignore, or nothing "
        "for an unlabelled image. Training rows are stored in a random order that depends on nothing but their ids.",
        markdown_table(["subset", "images", "labelled", "unlabelled"], counts),
        "\n".join(f"- {escaped(note)}" for note in notes),
        "## Classes",
        "Share of each class in the pixels that are not ignored, and of ignored pixels in all, in per cent.",
        markdown_table(["id", "class", *result["subsets"]], _share_rows(result)),
        "## Training",
        _training(result),
        "## Licence",
        layout.about.licence,
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _front_matter(layout: Layout, result: dict, sizes: dict[str, int], content: str) -> dict:
    rows = {name: subset["rows"] for name, subset in result["subsets"].items()}
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in rows]
    total, size = sum(rows.values()), sum(sizes.values())
    return {
        **layout.about.metadata,
        "task_categories": ["image-segmentation"],
        "size_categories": [next((text for limit, text in SIZES if total < limit), "n>1M")],
        "configs": [{"config_name": "default", "description": f"sha256 {content}", "data_files": files}],
        "dataset_info": {
            "features": [{"name": name, "dtype": kind} for name, kind in FEATURES.items()],
            "splits": [{"name": n, "num_bytes": sizes[n], "num_examples": rows[n]} for n in rows],
            "download_size": size,
            "dataset_size": size,
        },
    }


def warning_lines(result: dict) -> list[str]:
    """What is warned of, one line each; what concerns single rows is counted."""
    lines = [item["reason"] for item in result["warnings"] if item["id"] is None]
    empty = [item["id"] for item in result["warnings"] if item["id"] is not None]
    counted = f"{len(empty)} labels are ignored everywhere, such as {min(empty, default='')}; `prepare.json` names them"
    return lines + [counted] * bool(empty)


def _share_rows(result: dict) -> list[list]:
    counted = [[*s["pixels"].values(), s["ignored_pixels"]] for s in result["subsets"].values()]
    # Of classes among their own, of ignored ones among all.
    wholes = [[sum(pixels[:-1])] * (len(pixels) - 1) + [sum(pixels)] for pixels in counted]
    names = [*enumerate(result["classes"]), (IGNORE, "(ignored)")]
    return [
        [*name, *(f"{100 * c[n] / w[n]:.3f}" if w[n] else "-" for c, w in zip(counted, wholes, strict=True))]
        for n, name in enumerate(names)
    ]


def _training(result: dict) -> str:
    which, text = "--split all", "All images that have a label are used with it, the others without"
    if result["splits"]:
        name = str(PurePosixPath(next(iter(result["splits"]))).parent)
        which, text = f"--split {name}", f"`splits/{name}` lists labelled images"
    elif not any(subset["unlabelled"] for subset in result["subsets"].values()):
        which = "--split all --unlabelled_dataset MORE"
        text = (
            "All images have a label: `--split all` uses each with it, and MORE, a folder or data set of further "
            "images, without; where there are none, `--split 1/8` uses an eighth with labels and the others without"
        )
    command = f"accelerate launch training_scripts/train_u2pl.py RECIPE.yaml --dataset DIR {which}"
    return f"{text}; DIR is this folder.\n\n```bash\n{command}\n```"
