"""What the documentation tells to type works: every command is checked against its program's own parser, and run.

A command runs as it is written, in a folder where what it names is there but small, with options that shorten it put
behind. Those that cannot run here are named in ELSEWHERE with the test that runs their like.
"""

import ast
import json
import re
import runpy
import shutil
import sys
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tests.data.prepared import grey_png, ids, picture, write_folder, write_tar, write_zip
from tests.docs.commands import (
    DOCUMENTS,
    FILES_WITH_COMMANDS,
    ROOT,
    Command,
    check,
    fenced,
    inline_commands,
    inline_options,
    known_options,
    read_arguments,
    script_and_arguments,
    shell_commands,
    written_commands,
)
from tests.published import narrow_state_dict
from u2pl_hf.training.recipe.arguments import BACKBONES

COMMANDS = [command for path in DOCUMENTS for command in shell_commands(path)]
WRITTEN = [command for path in FILES_WITH_COMMANDS for command in written_commands(path)]
INLINE = [command for path in DOCUMENTS for command in inline_commands(path)]
BLOCKS = [(path.name, code) for path in DOCUMENTS for code in fenced(path, "python")]

# Pattern -> the test that runs a command like it, or why none can.
ELSEWHERE = {
    r"^make ": "the tests themselves are run by it, and .ci/run",
    r"^pip install": "installing is what make does first",
    r"^(\.venv/bin/)?python -m pytest": "a part of the tests themselves",
    r"^hf download": "scripts/test_push_to_hub.py::test_a_checkpoint_goes_on_elsewhere_to_the_same_bits",
    r"^sbatch": "scripts/test_launch.py::test_slurm_job_stops_on_notice_is_queued_again_and_goes_on",
    r"torchrun .*evaluate\.py": "scripts/test_evaluate_predict.py::"
    "test_two_processes_give_the_same_numbers_and_tell_an_error_once",
    r"(evaluate|predict)\.py user/": "scripts/test_push_to_hub.py::test_a_run_is_pushed_and_read_back",
    r"(push_to_hub\.py|u2pl push) (?!.*--dry_run)": "scripts/test_push_to_hub.py::test_a_run_is_pushed_and_read_back",
    r"--keep_best": "training/test_health.py::test_the_model_of_the_best_evaluation_is_kept_and_told_of",
    r"--push_to_hub": "scripts/test_push_to_hub.py::test_training_pushes_at_its_end",
    r"push_space\.py": "app/test_space.py::test_pushed_space_runs_from_its_own_files",
    r"/app\.py|u2pl app": "app/test_page.py::test_clients_get_pictures_and_refusals",
    r"prepare annotations": "scripts/test_annotation_tools.py::test_coco_of_own_photographs",
    r"prepare_dataset\.py ade20k": "scripts/test_prepare_dataset.py::test_ade20k",
    r"prepare_dataset\.py coco": "scripts/test_prepare_dataset.py::test_coco_with_masks_from_elsewhere",
    r"prepare_dataset\.py cityscapes": "scripts/test_prepare_dataset.py::test_cityscapes_is_prepared_but_not_pushed",
    r"compare(\.py)? --dataset": "scripts/test_compare.py::test_from_images_to_a_page",
    r"to_label/to_correct": "scripts/test_next.py::test_masks_are_corrected_and_prepared",
    r"benchmarks/label_next\.py": "takes hours; its commands are those of scripts/test_next.py and test_train.py",
    r"run_table\.py": "scripts/test_run_table.py::test_finished_runs_are_passed_over_and_failed_ones_are_named",
    r"u2pl calibrate": "scripts/test_calibrate.py::test_the_temperature_is_found_stored_and_told",
    r"export_onnx\.py": "evaluation/test_onnx_export.py::test_same_logits_at_image_size_for_any_batch_and_size",
    r"_dinov2_": "training/test_recipes.py::test_published_settings_with_dinov2",
    r"--backbone facebook/": "training/test_other_backbones.py::test_starts_from_the_weights_in_the_folder",
    r"--backbone_weights timm/": "training/test_initialize.py::test_backbone_from_the_hub",
    r"--backbone_weights \S+\.pth": "training/test_initialize.py::test_every_backbone_weight_is_filled",
    r"u2pl check-labels": "scripts/test_check_labels.py::test_what_two_runs_have_not_both_seen_is_checked",
    r"benchmarks/planted_mistakes\.py": "takes half an hour; its parts are in scripts/test_planted_mistakes.py",
    r"benchmarks/training\.py --device cuda": "needs a GPU",
    r"benchmarks/training\.py --device cpu": "takes minutes; its steps are those of training/test_precision.py",
}
# Blocks of Python by a line of theirs.
BLOCKS_ELSEWHERE = {
    'Client("http://127.0.0.1:7860")': "app/test_page.py::test_clients_get_pictures_and_refusals",
    '"user/u2pl-voc"': "scripts/test_push_to_hub.py::test_a_run_is_pushed_and_read_back",
}
TINY = {
    "base_width": 8, "head_channels": 8, "representation_channels": 8, "aspp_dilations": "1 2 3", "crop_size": 65,
    "batch_size": 2, "unlabelled_batch_size": 2, "num_workers": 0, "cpu_threads": 1, "max_steps": 2, "eval_steps": 0,
    "warmup_steps": 1, "queue_length": 500, "background_queue_length": 500, "picture_samples": 0, "trackers": "none",
    "logging_steps": 1, "epochs": 0, "warmup_epochs": 0, "eval_epochs": 0, "contrastive_start_epochs": 0,
}  # fmt: skip
SHORT = {
    "draw_method.py": ["--step", "2", "--output_dir", "pictures"],
    "render_cards.py": ["--model_cards", "cards"],
}


def place(test: str) -> bool:
    """Whether `file.py::name` exists."""
    file, _, name = test.partition("::")
    names = [node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(node, "name")]
    return name in names


def run_elsewhere(command: Command) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.search(pattern, command.text)), None)


@pytest.mark.parametrize("test", [*ELSEWHERE.values(), *BLOCKS_ELSEWHERE.values()])
def test_what_is_run_elsewhere_is_there(test):
    assert "::" not in test or place(test)


def test_no_entry_is_left_over():
    """An entry that fits no command would hide that the next one is not run."""
    texts = [command.text for command in COMMANDS]
    used = {next(p for p in ELSEWHERE if re.search(p, text)) for text in texts if run_elsewhere(Command("", text))}
    assert used == set(ELSEWHERE)
    assert all(any(line in code for _, code in BLOCKS) for line in BLOCKS_ELSEWHERE)


@pytest.mark.parametrize("command", [*COMMANDS, *WRITTEN, *INLINE], ids=str)
def test_programs_and_options_exist(command):
    check(command)


def test_commands_are_found():
    """A change of style must not make them pass unseen."""
    assert len(COMMANDS) >= 40 and len(WRITTEN) >= 15 and len(BLOCKS) >= 7
    assert {path.name for path in FILES_WITH_COMMANDS if path.parent.name == "launch"} <= {c.document for c in WRITTEN}


def test_options_named_in_the_text_exist():
    known = known_options()
    # Of pip, and of programs that only logs and errors name.
    unknown = {(path.name, option) for path in DOCUMENTS for option in inline_options(path) if option not in known}
    assert not unknown - {("training.md", "--logdir"), ("training.md", "--signals"), ("training.md", "--editable")}


@pytest.fixture(scope="module")
def run_script():
    def run(script: str, *words) -> dict:
        """The script's main in this process; returns the last line of stdout."""
        AcceleratorState._reset_state(reset_partial_state=True)
        told = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, words)])
            patch.setattr(sys, "stdout", types.SimpleNamespace(write=told.append, flush=lambda: None))
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                assert not end.code, f"{script} ended with {end.code}"
        return json.loads("".join(told).splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_data, run_script) -> Path:
    """A folder with everything that commands name."""
    root, noise = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for name in ("training_scripts", "benchmarks", "docs", "tests"):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "model_cards", root / "cards")
    for name in ("runs", "models", "data", "path/to"):
        (root / name).mkdir(parents=True)
    (root / "path" / "to" / "camvid").symlink_to(tiny_data)
    (root / "path" / "to" / "labeled.txt").write_text("".join(f"train_{i:04d}\n" for i in range(8)))
    photographs = [f"photos/images/{n}.png" for n in range(8)] + ["photo.jpg", "holiday/a.png", "holiday/b.png"]
    for name in [*photographs, *(f"more_photos/{n}.jpg" for n in range(3))]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / name)
    write_folder(root, {f"photos/masks/{n}.png": grey_png(ids(64, 48)) for n in range(8)})
    for name in ("classes.txt", "classes.csv"):
        (root / name).write_text("sky,0\nroad,1\ntree,2\n")
    voc, names = "VOCdevkit/VOC2012", [f"2008_{n:06d}" for n in range(6)]
    files = {f"{voc}/JPEGImages/{n}.jpg": picture(40, 40, kind="jpeg") for n in names}
    files |= {f"{voc}/SegmentationClass/{n}.png": grey_png(ids(40, 40)) for n in names[:4]}
    for subset, listed in (("train", names[:2]), ("val", names[2:4])):
        files[f"{voc}/ImageSets/Segmentation/{subset}.txt"] = "\n".join(listed).encode()
    write_tar(root / "VOCtrainval_11-May-2012.tar", files)
    augmented = {f"SegmentationClassAug/{n}.png": grey_png(ids(40, 40)) for n in names[4:]}
    write_zip(root / "SegmentationClassAug.zip", augmented)
    torch.save({"teacher_state": narrow_state_dict()}, root / "ckpt_best.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        archives = ["--archive", "VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip", "--workers", 1]
        run_script("training_scripts/prepare_dataset.py", "voc", *archives, "--output_dir", "data/voc")
        run_script("training_scripts/convert_checkpoint.py", "ckpt_best.pth", "models/u2pl_voc")
        options = [word for name, value in TINY.items() for word in (f"--{name}", *str(value).split())]
        recipe = "training_scripts/recipes/demo_u2pl.yaml"
        data = ["--dataset", tiny_data, "--split", "1/4", "--output_dir", "runs/demo_robust_seed0"]
        run_script("training_scripts/train_u2pl.py", recipe, *options, *data)
        photos = ["--root", "photos", "--classes", "classes.txt", "--workers", 1, "--output_dir", "data/photos"]
        run_script("training_scripts/prepare_dataset.py", "folder", *photos)
        data = ["--dataset", "data/photos", "--split", "1/2", "--output_dir", "runs/photos"]
        run_script("training_scripts/train_u2pl.py", recipe, *options, *data)
    for name in ("demo_u2pl", "demo_suponly", "camvid_u2pl", "camvid_suponly", "voc_732", "method"):
        (root / "runs" / name).symlink_to(root / "runs" / "demo_robust_seed0")
    (root / "runs" / "voc").symlink_to(root / "models" / "u2pl_voc")
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A folder of one's own with links to all that is in the world."""
    for entry in world.iterdir():
        if entry.name in ("runs", "models", "data"):
            (tmp_path / entry.name).mkdir()
            for part in entry.iterdir():
                (tmp_path / entry.name / part.name).symlink_to(part.resolve())
        elif entry.name == "cards":
            shutil.copytree(entry, tmp_path / "cards")
        else:
            (tmp_path / entry.name).symlink_to(entry.resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def shortened(script: str, words: list[str], tiny_data: Path) -> list[str]:
    """What to put behind a command's words so that it is done in a moment and writes where nothing is."""
    name = Path(script).name
    if name != "train_u2pl.py":
        return SHORT.get(name, []) + (["--workers", "1"] if name == "prepare_dataset.py" else [])
    args, options = read_arguments(script, words), dict(TINY)
    if not Path(args.dataset).exists():
        named = getattr(args, "frequent_classes", None)
        options |= {"dataset": tiny_data} | ({"frequent_classes": "none"} if named else {})
    if not re.fullmatch(r"[\d./]+|all", args.split) and not Path(args.split).exists():
        options |= {"split": "1/4"}
    if args.backbone in BACKBONES:
        options |= {"backbone": "resnet18", "mixed_precision": "no", "compile": "false"}
    if getattr(args, "warmup", None) == "auto":
        options |= {"warmup_steps": 0}
    if args.backbone_weights:
        options |= {"backbone_weights": "none"}
    if args.output_dir.startswith("runs/") and not any(word == "--resume" for word in words):
        options |= {"output_dir": "new"}
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]


RUN_HERE = [command for command in COMMANDS if run_elsewhere(command) is None]


@pytest.mark.parametrize("command", RUN_HERE, ids=str)
def test_commands_run(command, here, tiny_data, run_script):
    found = script_and_arguments(command)
    assert found, "neither a script of ours nor in ELSEWHERE: say how it is tested"
    script, words = found
    for option, value in pairwise(words):
        # What the command makes must not be there yet; in the world it may be, for other commands.
        if option == "--output_dir" and (here / value).is_symlink():
            (here / value).unlink()
    if script.endswith("convert_checkpoint.py"):
        (here / words[1]).unlink()
    result = run_script(script, *words, *shortened(script, words, tiny_data))
    assert isinstance(result, dict) and result


@pytest.mark.parametrize("name, code", BLOCKS, ids=[f"{name}: {code.splitlines()[-1]}" for name, code in BLOCKS])
def test_python_blocks_run(name, code, here):
    if any(line in code for line in BLOCKS_ELSEWHERE):
        compile(code, name, "exec")
        return
    image, masks = np.asarray(Image.open("photo.jpg")), np.zeros((1, 8, 8), np.uint8)
    exec(compile(code, name, "exec"), {"image": image, "predictions": masks, "labels": masks})


def anchors_of(path: Path) -> set[str]:
    """The names that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors_of(found), f"{path.name} links to {target}"


def test_published_numbers_are_those_of_the_package():
    published = json.loads((ROOT / "u2pl_hf" / "hub" / "published.json").read_text())["mean_iou_per_cent"]
    rows = re.findall(r"^\| `(\w+)/(\d+)` \|(.*)\|$", (ROOT / "docs" / "published.md").read_text(), re.MULTILINE)
    assert {(kind, labels) for kind, labels, _ in rows} == {
        (kind, labels) for kind, splits in published.items() for labels in splits if kind != "cityscapes_ael"
    }
    for kind, labels, cells in rows:
        facts = dict(published[kind][labels])
        if kind == "cityscapes" and labels in published["cityscapes_ael"]:
            facts |= published["cityscapes_ael"][labels]
        assert [float(cell) if cell.strip() else None for cell in cells.split("|")] == [
            facts.get(method) for method in ("suponly", "u2pl", "u2pl_ael")
        ]
