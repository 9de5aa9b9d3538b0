from pathlib import Path

import pytest

from u2pl_hf.errors import InputError
from u2pl_hf.training.arguments import parse_arguments

RECIPES = sorted((Path(__file__).parents[2] / "training_scripts" / "recipes").glob("*.yaml"))


def parse(tmp_path: Path, content: str, *options: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    return parse_arguments([str(recipe), *options], "")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    args = parse_arguments([str(recipe)], "")
    assert recipe.stem.removesuffix("_1gpu").endswith(f"_{args.method}")


@pytest.mark.parametrize("pair", ["demo", "camvid", "voc_small", "voc_imagenet"])
def test_recipes_of_a_pair_differ_only_in_the_method(pair):
    suponly, u2pl = (
        parse_arguments([str(RECIPES[0].parent / f"{pair}_{m}.yaml")], "").recipe() for m in ("suponly", "u2pl")
    )
    changed = {name for name in suponly if suponly[name] != u2pl[name]}
    assert {"method"} <= changed <= {"method", "warmup_steps", "contrastive_weight", "representation_channels"}


def test_ael_differs_from_u2pl_in_the_method_only():
    u2pl, ael = (
        parse_arguments([str(RECIPES[0].parent / f"camvid_{m}.yaml")], "").recipe() for m in ("u2pl", "u2pl_ael")
    )
    assert {name for name in u2pl if u2pl[name] != ael[name]} == {"method", "contrastive_start_steps"}


def test_command_line_wins(tmp_path):
    args = parse(tmp_path, "max_steps: 20\nlearning_rate: 1e-2\nseed: 4\n", "--seed", "7")
    assert (args.max_steps, args.learning_rate, args.seed, args.unlabelled_batch_size) == (20, 0.01, 7, 4)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("max_step: 3", [], "unknown field 'max_step'; did you mean 'max_steps'"),
        ("max_steps: many", [], "'max_steps' must be int"),
        ("max_steps: 2.5", [], "'max_steps' must be int"),
        ("auxiliary_head: 3", [], "'auxiliary_head' must be bool"),
        ("max_steps:", [], "'max_steps' must be int"),
        ("dataset: [a]", [], "'dataset' must be str"),
        ("max_steps: .inf", [], "'max_steps' must be int"),
        ("", ["--images_per_second", "-5"], "--images_per_second -5.0 must be a number from 0 on"),
        ("", ["--max_step", "7"], "unrecognized arguments: --max_step"),
        ("max_steps: true", [], "'max_steps' must be int"),
        ("class_names: sky", [], "'class_names' must be a list"),
        ("method: fixmatch", [], "must be one of suponly, u2pl"),
        ("- a\n- b", [], "must hold 'field: value'"),
        ("a: [1", [], "not valid YAML"),
        ("", ["--crop_size", "0"], "--crop_size 0"),
        ("", ["--unreliable_share", "2"], "must lie in [0, 1]"),
        ("", ["--dropout", "1"], "must lie in [0, 1)"),
        ("", ["--learning_rate", "inf"], "must be a positive number"),
        ("", ["--aspp_dilations", "0", "1", "2"], "must be three positive numbers"),
        ("", ["--methd", "u2pl"], "unrecognized arguments"),
        ("", ["--output_stride", "32"], "--output_stride 32 must be 8 or 16 for a ResNet"),
        ("", ["--output_stride", "0"], "--output_stride 0 must be 8 or 16 for a ResNet"),
        ("backbone: timm/x", ["--output_stride", "4"], "--output_stride 4 must be 8, 16 or"),
        ("", ["--warmup_steps", "2000"], "must be below max_steps"),
        ("method: suponly", ["--batch_size", "1"], "BatchNorm"),
        ("", ["--fixed_defects", "2"], "--fixed_defects needs --variant official"),
        ("variant: official", ["--fixed_defects", "2", "7"], "--fixed_defects [2, 7] must be among 1 2 3 4 5 6"),
        ("compile: true", ["--gradient_checkpointing"], "do not go together"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, options, message):
    with pytest.raises(InputError) as error:
        parse(tmp_path, content, *options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_only_resnets_have_a_default_output_stride(tmp_path):
    assert parse(tmp_path, "").output_stride == 8
    assert parse(tmp_path, "", "--backbone", "timm/mobilenetv2_100").output_stride is None


def test_defects_are_a_set(tmp_path):
    args = parse(tmp_path, "variant: official", "--fixed_defects", "3", "1", "3")
    assert args.fixed_defects == [1, 3]


def test_how_numbers_are_computed_belongs_to_the_recipe(tmp_path):
    """It changes the last bits: a run that went on with another choice would be no run of either."""
    names = ["mixed_precision", "tf32", "channels_last", "compile", "gradient_checkpointing", "deterministic"]
    assert set(names) <= parse(tmp_path, "").recipe().keys()
    changed = parse(tmp_path, "deterministic: true", "--channels_last", "false", "--no_tf32").recipe()
    assert (changed["deterministic"], changed["channels_last"], changed["tf32"]) == (True, False, False)


def test_recipe_may_stand_behind_options(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_steps: 20")
    args = parse_arguments(["--seed", "3", str(recipe), "--batch_size", "2"], "")
    assert (args.max_steps, args.seed, args.batch_size) == (20, 3, 2)


def test_missing_recipe():
    with pytest.raises(InputError, match="does not exist"):
        parse_arguments(["nowhere.yaml"], "")


@pytest.mark.parametrize(("classes", "low"), [(2, 1), (3, 1), (4, 2), (7, 3), (150, 3)])
def test_rank_window_leaves_negatives(tmp_path, classes, low):
    assert parse(tmp_path, "").method_settings(classes).low_rank == low


@pytest.mark.parametrize("options", [["--low_rank", "3"], ["--low_rank", "0"], ["--low_rank", "2", "--high_rank", "2"]])
def test_rank_window_without_a_rank_is_refused(tmp_path, options):
    with pytest.raises(InputError, match="no rank"):
        parse(tmp_path, "", *options).method_settings(3)


def test_written_recipe_is_read_back(tmp_path):
    import yaml

    args = parse(tmp_path, "class_names: [a, b]\nauxiliary_head: true\naspp_dilations: [2, 4, 6]\nnum_labels: 2\n")
    assert parse(tmp_path, yaml.safe_dump(args.recipe())).recipe() == args.recipe()
