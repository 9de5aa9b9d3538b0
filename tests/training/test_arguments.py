import re
from pathlib import Path

import pytest

from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.command import parse_arguments, recipe_arguments
from u2pl_hf.training.recipe.recipe_file import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training_scripts" / "recipes").glob("*.yaml"))


def parse(tmp_path: Path, content: str, *options: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    return parse_arguments([str(recipe), *options], "")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    args = parse_arguments([str(recipe)], "")
    variant = args.flat().get("variant", "paper")
    assert recipe.stem.removesuffix("_1gpu").endswith(f"_{args.method}" + f"_{variant}" * (variant != "paper"))


@pytest.mark.parametrize("pair", ["demo", "camvid", "voc_small", "voc_imagenet"])
def test_recipes_of_a_pair_differ_only_in_the_method(pair):
    suponly, u2pl = (
        parse_arguments([str(RECIPES[0].parent / f"{pair}_{m}.yaml")], "").recipe() for m in ("suponly", "u2pl")
    )
    changed = {name for name in suponly if suponly[name] != u2pl[name]}
    assert {"method"} <= changed <= {"method", "warmup_steps", "contrastive_weight", "representation_channels"}


OTHERS = [path.stem for path in RECIPES if path.stem.endswith(("_fixmatch", "_unimatch_v2", "_u2pl_robust"))]


@pytest.mark.parametrize("name", OTHERS)
def test_methods_of_a_family_differ_in_themselves_only(name):
    """Steps, batch, crop and learning rate are equal, so that tables compare methods and nothing else."""
    family, method = re.fullmatch(r"(.*)_(fixmatch|unimatch_v2|u2pl_robust)", name).groups()
    # Those for data of one's own with a strong encoder, or for a CPU, have no U2PL as in the paper.
    rival = "u2pl" if (RECIPES[0].parent / f"{family}_u2pl.yaml").exists() else "suponly"
    own, other = (read_recipe(RECIPES[0].parent / f"{family}_{m}.yaml") for m in (method, rival))
    changed = {field for field in own | other if own.get(field) != other.get(field)} - {"output_dir"}
    of_robust = {"variant"} if method == "u2pl_robust" else set()
    if rival == "u2pl" and of_robust:
        assert changed == of_robust
    elif rival == "suponly":
        of_robust |= {"warmup_steps"} if of_robust else set()
        assert changed == {"method", "unlabelled_batch_size"} | of_robust
        assert own["unlabelled_batch_size"] == own["batch_size"]
    else:
        settings = {"warmup_steps", "warmup_epochs", "contrastive_weight", "confidence_threshold"}
        assert {"method"} <= changed <= {"method"} | settings
    # A published setting of the robust variant there is none. DINOv2: four data sets, 24 and 8 GB; a CPU.
    assert len(OTHERS) == (3 * 6 - 2) + (2 * 4 + 2 + 1) + 2


def test_ael_differs_from_u2pl_in_the_method_only():
    u2pl, ael = (
        parse_arguments([str(RECIPES[0].parent / f"camvid_{m}.yaml")], "").recipe() for m in ("u2pl", "u2pl_ael")
    )
    own = {"method", "copy_paste_probability"}
    assert {name for name in u2pl if u2pl[name] != ael[name]} == own
    written = {name: value for name, value in u2pl.items() if name != "copy_paste_probability"}
    alike = run_arguments(**written | {"method": "u2pl_ael"}).recipe()
    assert {name for name in ael if ael[name] != alike[name]} == {"contrastive_start_steps"}


def test_command_line_wins(tmp_path):
    args = parse(tmp_path, "max_steps: 20\nlearning_rate: 1e-2\nseed: 4\n", "--seed", "7")
    assert (args.max_steps, args.learning_rate, args.seed, args.unlabelled_batch_size) == (20, 0.01, 7, 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [([], None), (["--strong_colour"], True), (["--strong_colour", "true"], True), (["--strong_colour", "no"], False)],
)
def test_a_switch_that_follows_the_variant_can_be_told_with_and_without_a_value(tmp_path, options, told):
    args = parse(tmp_path, "variant: robust\n", *options, "--seed", "7")
    assert args.strong_colour is told and args.seed == 7
    assert args.settings.settled().strong_colour is (told is not False)


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
        ("method: fixmatsch", [], "did you mean fixmatch?"),
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
        # What no machine can hold, and what no system can look for.
        ("", ["--batch_size", "99999999999"], "--batch_size 99999999999 must be at most 4,096"),
        ("", ["--max_steps", "1" + "0" * 18], "must be at most 1,000,000,000"),
        ("", ["--max_steps", "1e18"], "invalid int value: '1e18'"),
        ("max_steps: 1.0e+18", [], "--max_steps 1000000000000000000 must be at most 1,000,000,000"),
        ("", ["--seed", "9" * 30], "--seed 999999999999999999999999999999 must be at most 9,223,372,036,854,775,807"),
        ("", ["--seed", "9" * 5000], "invalid int value: '999"),
        (f"seed: {'9' * 5000}", [], "'seed' must be int, not "),
        ("", ["--crop_size", "100000"], "--crop_size 100000 must be at most 4,096"),
        ("", ["--head_channels", "-3"], "--head_channels -3 must be at least 1"),
        ("", ["--representation_channels", "-1"], "must not be negative"),
        ("", ["--queue_length", "10" + "0" * 12], "--queue_length 10000000000000 must be at most"),
        ("", ["--learning_rate", "nan"], "--learning_rate nan must be a positive number"),
        ("", ["--learning_rate", "1e300"], "must be at most 1,000,000,000"),
        ("ema_decay: .nan", [], "'ema_decay' must be float"),
        ("", ["--ohem_threshold", "-1"], "must lie in [0, 1]"),
        ("", ["--dataset", "a/" * 2500], "is too long for a name or a path"),
        ("", ["--output_dir", "x" * 300], "is too long for a name or a path"),
        ("dataset: " + "ü" * 200, [], "is too long for a name or a path"),
        ("", ["--dataset", "photo\udcffs"], "--dataset photo\\udcffs has a line break or another"),
        ("", ["--push_to_hub", "me/x\ny"], "--push_to_hub me/x\\ny has a line break"),
        ("", ["--class_names", "sky", "ro\x00ad"], "--class_names ro\\x00ad has a line break or another"),
        ('class_names: [sky, "ro\\nad"]', [], "--class_names ro\\nad has a line break"),
        # What would do nothing.
        ("method: u2pl\nwarmup_limit: 0.1", [], "--warmup_limit 0.1 needs --warmup auto"),
        ("method: u2pl\npartner: class\nstrong_probability: 0", [], "takes nothing with --strong_probability 0"),
        ("method: fixmatch\npartner: class\ncutmix_probability: 0", [], "takes nothing with --cutmix_probability 0"),
        ("method: u2pl\nprototype_momentum: 0.9\ncontrastive_weight: 0", [], "--contrastive_weight 0 leaves out"),
        ("method: u2pl_ael\nstrong_augmentation: classmix", [], "AEL has its own CutMix"),
        ("method: unimatch_v2\nbatch_size: 1\nunlabelled_batch_size: 2", [], "--batch_size 1 gives BatchNorm no"),
        # What YAML makes of a recipe.
        ("max_steps: 3\nmax_steps: 5", [], "'max_steps' is there twice"),
        ("max_steps: 2026-01-01", [], "'max_steps' must be int, not '2026-01-01'"),
        ("max_steps: !!timestamp soon", [], "not valid YAML"),
        ("max_steps: !!python/object/apply:os.getcwd []", [], "not valid YAML"),
        ("dataset: !!binary aGk=", [], "'dataset' must be str, not b'hi'"),
        ("? [a]\n: 3", [], "not valid YAML"),
        ("x: " + "[" * 5000, [], "not valid YAML"),
        ("<<: {max_steps: 3}", [], "unknown field '<<'"),
        (f"max_steps: 3\n# {'-' * 200_000}", [], "too large"),
        ("max_steps: &a [*a, *a]", [], "'max_steps' must be int, not [[...], [...]]"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, options, message):
    with pytest.raises(InputError) as error:
        parse(tmp_path, content, *options)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 610


def test_alias_bomb_is_one_short_line(tmp_path):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(InputError, match="unknown field 'a0'"):
        parse(tmp_path, "\n".join(["a0: &a0 [lol, lol]", *levels]))
    with pytest.raises(InputError, match="'dataset' must be str, not"):
        parse(tmp_path, "dataset: &a [[x, x], [x, x]]\nclass_names: [*a, *a]")


def test_values_are_taken_as_they_are_written(tmp_path):
    """Not as YAML 1.1 reads them: octal numbers, numbers to the base of 60, dates, switches."""
    written = "split: 010\ndataset_revision: 1:30\nmixed_precision: no\noutput_dir: 2026-01-01\nclass_names: [yes, 1]\n"
    args = parse(tmp_path, written + "max_steps: 1.5e+3\nqueue_length: 30_000\ntf32: off\nlow_rank: null\nstem: deep\n")
    assert (args.split, args.dataset_revision, args.mixed_precision) == ("010", "1:30", "no")
    assert (args.output_dir, args.class_names, args.max_steps) == ("2026-01-01", ["yes", "1"], 1500)
    assert (args.queue_length, args.tf32, args.low_rank) == (30_000, False, None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_recipe_in_any_unicode(tmp_path, encoding):
    (tmp_path / "recipe.yaml").write_text("class_names: [Straße, Wüste]\n", encoding=encoding)
    assert parse_arguments([str(tmp_path / "recipe.yaml")], "").class_names == ["Straße", "Wüste"]


def test_files_that_are_no_recipe(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "latin").write_bytes("class_names: [Straße]".encode("latin-1"))
    for name, message in (("", "is no file"), ("binary", "not valid YAML"), ("latin", "not valid YAML"),
                          ("x" * 300, "too long"), ("a\nb", "line break")):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            parse_arguments([str(tmp_path / name)], "")
        assert "\n" not in str(error.value)


def test_command_line_displaces_what_a_recipe_starts_from(tmp_path):
    weights, model = "backbone_weights: timm/x\nbackbone_weights_revision: v1\n", "initial_model: a/b\n"
    args = parse(tmp_path, weights, "--initial_model", "runs/first")
    assert (args.initial_model, args.backbone_weights, args.backbone_weights_revision) == ("runs/first", None, None)
    args = parse(tmp_path, model + "initial_model_revision: v1\n", "--backbone_weights", "none")
    assert (args.initial_model, args.initial_model_revision, args.backbone_weights) == (None, None, "none")
    args = parse(tmp_path, weights, "--initial_model", "runs/first", "--backbone_weights", "none")
    assert (args.initial_model, args.backbone_weights) == ("runs/first", None)
    both = ["--initial_model", "runs/first", "--backbone_weights", "timm/x"]
    for content, options in ((weights + model, []), ("", both), (weights, both)):
        with pytest.raises(InputError, match="both say where to start: pass one of them"):
            parse(tmp_path, content, *options)


def test_automatic_warm_up_takes_the_place_of_a_recipes_steps(tmp_path):
    recipe = "method: u2pl\nwarmup_steps: 5\nmax_steps: 20"
    args = parse(tmp_path, recipe, "--warmup", "auto")
    assert (args.warmup, args.warmup_steps) == ("auto", 0)
    assert parse(tmp_path, recipe, "--warmup", "steps").warmup_steps == 5
    with pytest.raises(InputError, match="leave out --warmup_steps"):
        parse(tmp_path, recipe, "--warmup", "auto", "--warmup_steps", "5")
    with pytest.raises(InputError, match="leave out --warmup_steps"):
        parse(tmp_path, recipe + "\nwarmup: auto")


def test_command_line_of_steps_and_epochs(tmp_path):
    assert parse(tmp_path, "epochs: 3.0", "--max_steps", "7").epochs == 0
    assert parse(tmp_path, "max_steps: 7", "--epochs", "3").epochs == 3
    assert parse(tmp_path, "epochs: 3.0\nmax_steps: 7").epochs == 3


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
    assert parse(tmp_path, "").settings.ranks(classes) == (low, 20)


@pytest.mark.parametrize("options", [["--low_rank", "3"], ["--low_rank", "0"], ["--low_rank", "2", "--high_rank", "2"]])
def test_rank_window_without_a_rank_is_refused(tmp_path, options):
    with pytest.raises(InputError, match="no rank"):
        args = parse(tmp_path, "", *options)
        args.step_class.check(args.settings, num_labels=3)


def test_written_recipe_is_read_back(tmp_path):
    import yaml

    args = parse(tmp_path, "class_names: [a, b]\nauxiliary_head: true\naspp_dilations: [2, 4, 6]\nnum_labels: 2\n")
    assert parse(tmp_path, yaml.safe_dump(args.recipe())).recipe() == args.recipe()


def test_fields_from_python_are_read_as_a_recipe_is(tmp_path):
    fields = {"max_steps": 7, "learning_rate": 1e-3, "tf32": False, "output_dir": tmp_path, "aspp_dilations": (2, 4, 6)}
    args = recipe_arguments(None, fields | {"low_rank": None, "seed": "3"})
    assert (args.max_steps, args.learning_rate, args.tf32, args.seed) == (7, 1e-3, False, 3)
    assert (args.output_dir, args.aspp_dilations, args.low_rank) == (str(tmp_path), [2, 4, 6], None)
    mistakes = {"max_steps": ("many", "must be int"), "max_stepz": (3, "did you mean 'max_steps'"),
                "tf32": (3.5, "must be bool"), "trackers": ("none", "must be a list")}  # fmt: skip
    for name, (value, message) in mistakes.items():
        with pytest.raises(InputError, match=message):
            recipe_arguments(None, {name: value})
