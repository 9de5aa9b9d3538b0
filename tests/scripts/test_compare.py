"""u2pl compare on a tiny data set: what it refuses, which runs it plans, and one whole comparison with its page."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.training.test_inputs import halves, write_data
from u2pl_hf.commands import compare, train
from u2pl_hf.commands.compare import comparison_of, main, parse_arguments
from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.command import parse_arguments as parse_run

TINY = ["--base_width", "8", "--head_channels", "8", "--representation_channels", "8", "--crop_size", "65",
        "--batch_size", "2", "--unlabelled_batch_size", "2", "--num_workers", "0", "--cpu_threads", "1",
        "--max_steps", "4", "--aspp_dilations", "1", "2", "3"]  # fmt: skip


def words(data, folder, *more, told=TINY) -> list[str]:
    shared = ["--dataset", data, "--split", "1/2", "--recipe", "demo_suponly", "--output_dir", folder]
    return [*map(str, [*shared, *more]), "--", *told]


@pytest.fixture
def without_validation(tiny_data, tmp_path):
    """As photographs of one's own, all of them labelled, or not."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    for file in folder.rglob("validation*"):
        file.unlink()
    return folder


def planned(data, folder, *more, **options):
    found = comparison_of(parse_arguments(words(data, folder, *more, **options)))
    return {name: parse_run(command, "") for name, command in found.commands.items()}


def test_runs_share_all_but_the_method(tiny_data, without_validation, tmp_path):
    runs = planned(without_validation, tmp_path / "out", "--folds", "2", told=[*TINY, "--learning_rate", "0.01"])
    names = ("suponly", "u2pl_robust", "u2pl_ael", "fixmatch", "suponly_copy_paste", "suponly_twice", "suponly_half",
             "suponly_quarter")  # fmt: skip
    assert [*runs] == [f"{name}_fold{k}" for k in (1, 2) for name in names]
    assert {run.fold for name, run in runs.items() if name.endswith("2")} == {"2/2"}
    assert {run.learning_rate for run in runs.values()} == {0.01} and {run.seed for run in runs.values()} == {0}
    steps = [runs[f"{name}_fold1"].max_steps for name in names]
    assert steps == [4, 4, 4, 4, 4, 8, 4, 4]
    # As AEL and robust have it.
    pastes = {name: runs[f"{name}_fold1"].settings.settled().copy_paste_probability for name in names}
    assert pastes == dict.fromkeys(names, 0) | {"u2pl_ael": 0.5, "u2pl_robust": 0.5, "suponly_copy_paste": 0.5}
    told = [*TINY, "--copy_paste_probability", "0.3", "--frequent_classes", "1"]
    everywhere = planned(without_validation, tmp_path / "out", "--folds", "2", told=told)
    assert {run.settings.copy_paste_probability for run in everywhere.values()} == {0.3}
    assert "suponly_copy_paste_fold1" not in everywhere and len(everywhere) == 14
    one = planned(without_validation, tmp_path / "out", "--folds", "2", told=[*TINY, "--frequent_classes", "1"])
    named = {name for name, run in one.items() if run.settings.frequent_classes}
    assert named == {f"{name}_fold{k}" for name in ("u2pl_ael", "u2pl_robust", "suponly_copy_paste") for k in (1, 2)}
    assert [runs[f"suponly_{name}_fold2"].labelled_share for name in ("twice", "half", "quarter")] == [1, 0.5, 0.25]
    robust = runs["u2pl_robust_fold1"]
    assert (robust.method, robust.variant, robust.warmup_steps) == ("u2pl", "robust", 1)
    # A validation set is used where there is one; a warm-up that is told is kept, and told to nobody else.
    told = [*TINY, "--warmup_steps", "3"]
    runs = planned(tiny_data, tmp_path / "out", "--methods", "u2pl", "--quick", "--jobs", "2", told=told)
    assert [*runs] == [f"{name}_seed{s}" for s in (0, 1, 2) for name in ("suponly", "u2pl")]
    assert runs["u2pl_seed1"].warmup_steps == 3 and runs["u2pl_seed1"].seed == 1 and runs["u2pl_seed1"].fold is None
    assert [*planned(tiny_data, tmp_path / "out", "--quick", "--seeds", "5", "--methods", "suponly")] == [
        "suponly_seed5"
    ]


def test_shares_of_the_labels(without_validation, tmp_path):
    """Those that were asked for have to leave an image in each fold; of the usual ones, those that do are run."""

    def shares(data, *more) -> list[str]:
        runs = planned(data, tmp_path / "out", "--methods", "suponly", *more)
        return [name.split("_")[1] for name, run in runs.items() if name[-1] in "01" and run.labelled_share < 1]

    # Two folds; the smaller one decides, and a quarter of four is one.
    for labelled, usual in ((8, ["half", "quarter"]), (7, ["half"]), (3, [])):
        assert shares(without_validation, "--folds", "2", "--split", labelled) == usual, labelled
    asked = (without_validation, "--folds", "2", "--label_shares")
    assert shares(*asked, "3/10", "0.5", "0.9", "0.3") == ["share0.9", "half", "share0.3"]
    for told, message in (
        (["1/7"], "--label_shares 1/7 leaves less than one of the 6 labelled images of a run; pass other shares"),
        (["1/2", "0.99"], "--label_shares 99/100 leaves all of the 6 labelled images"),
        (["1"], r"--label_shares is 1: it must lie in \(0, 1\)"),
        (["1/0"], "invalid fraction value: '1/0'"),
        (["1/2", "--quick"], "--quick leaves SupOnly with --label_shares out"),
    ):
        with pytest.raises(InputError, match=message):
            shares(*asked, *told)
    # One image of these cannot show both classes; two do.
    plain = [np.full((70, 90), value, np.uint8) for value in (0, 0, 1, 1)]
    write_data(tmp_path / "plain", [*plain, halves(), halves()])
    data = (tmp_path / "plain", "--split", "all", "--seeds", "0")
    assert shares(*data) == ["half"]
    with pytest.raises(InputError, match="--label_shares 1/4 leaves a single image: the 1 labelled images have pixels"):
        shares(*data, "--label_shares", "1/4")


def test_what_cannot_be_compared_is_told_in_one_line(tiny_data, without_validation, tmp_path):
    for more, told, message in (
        (["--methods", "nonsense"], TINY, "--method nonsense must be one of"),
        (["--methods", "u2pl:rubbish"], TINY, "--variant.*rubbish"),
        (["--seeds", "0"], TINY, "--seeds needs a subset validation"),
        (["--folds", "13"], TINY, "the 12 labelled images are fewer than the parts"),
        (["--folds", "2", "--seeds", "0"], TINY, "pass one of them"),
        (["--split", "all"], TINY, "no image is unlabelled: pass --unlabelled_dataset, or a --split"),
        (["--methods", "u2pl:"], TINY, "names no variant"),
        ([], [*TINY, "--seed", "7"], "-- --seed is decided here: pass compare's own --seeds"),
        ([], [*TINY, "--variant=robust"], "own --methods NAME:VARIANT"),
        (["--recipe", "nothing"], TINY, "nothing is neither a file nor one of the recipes"),
        ([], [*TINY, "--epochs", "3"], "counts steps in epochs"),
        (["--methods", "fixmatch"], [*TINY, "--frequent_classes", "1"], "--frequent_classes is about copy-paste"),
        ([], [*TINY, "--confidence_floor", "0.9"], "goes with --method u2pl, not u2pl_ael; or leave u2pl_ael out of"),
        ([], ["4"], "-- 4 is none of u2pl train's options"),
        ([], [*TINY, "--max_stepz", "3"], "max_stepz"),
    ):
        with pytest.raises(InputError, match=message):
            comparison_of(parse_arguments(words(without_validation, tmp_path / "out", *more, told=told)))
    assert not (tmp_path / "out").exists()
    for argv, message in (
        ([], "pass folders of finished runs, or --dataset"),
        (["a", "--dataset", "b"], "not both"),
        (["a", "--", "--seed", "1"], "needs --dataset"),
        (["--dataset", "a", "--picture", "b.png"], "--picture is of finished runs"),
        (["a", "--picture", "b.jpg"], "b.jpg must end in .png"),
        (["a", "--folds", "3"], "--folds is for runs that are trained: it needs --dataset"),
        (["a", "--then_train"], "--then_train is for runs that are trained"),
        (["--dataset", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(InputError, match=message):
            comparison_of(parse_arguments(argv))
    with pytest.raises(InputError, match="no image is unlabelled"):
        comparison_of(parse_arguments(words(tiny_data, tmp_path / "out", "--split", "all")))


def queue_here(program, runs, logs, jobs=1) -> None:
    """The runs in this process, one after the other; test_run_table has the queue of programs."""
    for command in runs.values():
        train.main(command)


def test_from_images_to_a_page(without_validation, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(compare, "run_all", queue_here)
    out = tmp_path / "out"
    more = ["--folds", "2", "--methods", "fixmatch", "--jobs", "2", "--then_train", "--label_shares", "1/2"]
    asked = words(without_validation, out, *more, told=[*TINY, "--eval_steps", "4"])
    main(asked)
    told = capsys.readouterr()
    facts = json.loads(told.out.splitlines()[-1])
    results = [json.loads((out / f"{name}/results.json").read_text()) for name in ("suponly_fold1", "fixmatch_fold1")]
    gain = results[1]["last"]["mean_iou"] - results[0]["last"]["mean_iou"]
    assert facts["arms"]["fixmatch"]["gain"]["each"][0] == pytest.approx(gain) and facts["missing"] == []
    assert all(run["num_labelled"] == run["num_evaluation"] == 6 for run in results)
    assert results[1]["num_unlabelled"] == 12 and results[0]["peak_memory_mb"] > 100
    page = (out / "compare.html").read_text()
    assert facts["headline"] in page and "A class is hurt" in page and "Not run yet" not in page
    assert {f"{name}.png" for name in re.findall(r'src="(\w+)\.png"', page)} == {
        "curves.png",
        "labels.png",
        "pictures.png",
    }
    assert all((out / name).stat().st_size > 1000 for name in ("curves.png", "labels.png", "pictures.png"))
    half, whole = facts["labels"]["suponly"]
    assert [s["labelled"] for s in (half, whole)] == [3, 6] and [s["share"] for s in (half, whole)] == [0.5, 1]
    scores = [json.loads((out / f"suponly_half_fold{k}/results.json").read_text())["last"]["mean_iou"] for k in (1, 2)]
    assert half["each"] == pytest.approx(scores) and half["mean"] == pytest.approx(sum(scores) / 2)
    rises = [a - b for a, b in zip(facts["arms"]["suponly"]["last"], scores, strict=True)]
    assert facts["labels"]["last_doubling"]["each"] == pytest.approx(rises)
    assert "labelled images" in told.err and "The other half of the labels brings SupOnly" in page
    # Finished runs are drawn where they differ.
    runs = [str(out / f"{name}_fold1") for name in ("suponly", "fixmatch")]
    main([*runs, "--picture", str(tmp_path / "made" / "differ.png")])
    assert Image.open(tmp_path / "made" / "differ.png").width > 4 * 200
    results = json.loads((out / "fixmatch_fold1" / "results.json").read_text())
    other = shutil.copytree(out / "fixmatch_fold1", tmp_path / "other")
    names = [*results["class_names"][1:], "other"]
    (other / "results.json").write_text(json.dumps(results | {"class_names": names}))
    with pytest.raises(SystemExit):
        main([*runs, "--picture", str(shutil.copytree(other, tmp_path / "kept.png"))])
    assert "kept.png is a folder" in capsys.readouterr().err and (tmp_path / "kept.png" / "results.json").is_file()
    with pytest.raises(SystemExit):
        main([*runs, str(other), "--picture", str(tmp_path / "differ.png")])
    assert "has other classes than" in capsys.readouterr().err and not (tmp_path / "differ.png").exists()
    # On all labels; there is nothing else to score it on.
    final = json.loads((out / "final" / "results.json").read_text())
    assert final["num_labelled"] == 12 and final["subset"] == "its own labelled images"
    # Nothing is trained twice, and the page is written from what is there.
    before = (out / "fixmatch_fold2" / "results.json").stat().st_mtime_ns
    shutil.rmtree(out / "suponly_fold2")
    main([*asked[: asked.index("--")], "--list", *asked[asked.index("--") :]])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["missing"] == ["suponly_fold2"] and len(facts["arms"]["fixmatch"]["gain"]["each"]) == 1
    assert "Not run yet" in (out / "compare.html").read_text()
    assert (out / "fixmatch_fold2" / "results.json").stat().st_mtime_ns == before
