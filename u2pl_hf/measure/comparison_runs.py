"""The runs of a comparison: their command lines, whether they can be started, and what they left."""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from u2pl_hf.errors import InputError, require
from u2pl_hf.hub.results import finished_results
from u2pl_hf.measure.comparison import BASE, SHARES, Arm, Found, arms_of, case_name, fitting, of_shown_classes, weigh
from u2pl_hf.measure.queue import option_words
from u2pl_hf.training.inputs import TrainingData, load_training_data
from u2pl_hf.training.recipe.arguments import ALL, RunArguments
from u2pl_hf.training.recipe.command import parse_arguments as parse_run
from u2pl_hf.training.run.run_folder import RunFolder
from u2pl_hf.training.weights.backbones import backbone_config

# With and without a GPU.
RECIPES = {True: "own_data_dinov2_suponly", False: "own_data_cpu_suponly"}
# Evaluations of a run, which make its curve.
EVALUATIONS = 5


def first_arguments(recipe: str | None, data: Mapping, told: Sequence[str]) -> RunArguments:
    """Of SupOnly on the data, by which the rest is planned.

    Raises:
        InputError: the recipe, or what is told, cannot be used.
    """
    words = [recipe or RECIPES[torch.cuda.is_available()], *option_words(data)]
    return parse_run([*words, *fitting(told, BASE), "--method", BASE], "")


class Comparison:
    """All runs of one comparison.

    Args:
        folder: where they go, each into a folder of its name.
        data: fields that name the data.
        methods: NAME or NAME:VARIANT.
        cases: what is repeated: {"fold": "1/3", "seed": 0} ... or {"seed": 0} ...
        recipe: None: the one for images of one's own that fits the machine.
        told: options of training for all runs that take them.
        controls: with SupOnly with twice the steps, and with shares of the labels.
        shares: of the labels; None: the usual ones, as far as there are images for them.
        has_validation: whether there is a subset to evaluate a model on that is trained on all labels.
        jobs: how many share the cores.

    Raises:
        InputError: data, recipe, methods or options cannot be used; nothing has been started.
    """

    def __init__(
        self,
        folder: Path,
        data: Mapping,
        methods: Sequence[str],
        cases: Sequence[dict],
        *,
        recipe: str | None,
        told: Sequence[str],
        controls: bool,
        shares: Sequence[Fraction] | None = None,
        has_validation: bool,
        jobs: int,
    ):
        self.folder, self.data, self.cases, self.told = folder, dict(data), list(cases), list(told)
        self.alone = {"seed": 0} if has_validation else {"seed": 0, "fold": ALL}
        steps = first_arguments(recipe, data, told).max_steps
        self.words = [recipe or RECIPES[torch.cuda.is_available()], *option_words(data)]
        self.words += option_words({"eval_steps": max(1, steps // EVALUATIONS)})
        # Of the runs that are compared, not of the one that is kept.
        self.queued = {"trackers": "none", "picture_samples": 0}
        self.queued |= {"cpu_threads": max(1, (os.cpu_count() or 1) // jobs)} if jobs > 1 else {}
        arms = arms_of(methods, self.words, told, shares=(shares or SHARES) if controls else None)
        labelled = self._check_data(arms)
        self.arms = [arm for arm in arms if self._has_labels(arm, labelled, is_told=shares is not None)]
        pairs = [(case, arm) for case in self.cases for arm in self.arms]
        self.commands = {case_name(arm, case): self.command(arm, case) for case, arm in pairs}
        self._check_folders()

    def command(self, arm: Arm, case: Mapping, folder: Path | None = None) -> list[str]:
        """What training is called with for one run; in another folder, for one that is kept."""
        last = {**arm.options, **case, "output_dir": folder or self.folder / case_name(arm, case)}
        words = [*self.words, *option_words({} if folder else self.queued)]
        return [*words, *fitting(self.told, arm.options["method"], pastes=arm.pasted > 0), *option_words(last)]

    def arguments(self, name: str) -> RunArguments:
        """Of a run."""
        return parse_run(self.commands[name], "")

    def first_data(self) -> TrainingData:
        """The data of SupOnly's first run."""
        return load_training_data(self.arguments(case_name(self.arms[0], self.cases[0])))

    def _check_data(self, arms: Sequence[Arm]) -> int:
        """What the runs of the first case would refuse before they start; how many labelled images each run has."""
        first = [parse_run(self.command(arm, self.cases[0]), "") for arm in arms]
        backbone_config(first[0])
        try:
            data = load_training_data(first[0])
            load_training_data(next((args for args in first if args.step_class.uses_unlabelled), first[0]))
        except InputError as error:
            told = str(error)
            if "leaves no unlabelled image" in told:
                told = "no image is unlabelled: pass --unlabelled_dataset, or a --split that labels fewer"
            raise InputError(told) from error
        number, parts = len(data.labelled), len(self.cases) if "fold" in self.cases[0] else 0
        # The first part is the smallest, so that other runs may have one image less.
        return number - bool(parts and (number + len(data.evaluation.ids)) % parts)

    def _has_labels(self, arm: Arm, labelled: int, *, is_told: bool) -> bool:
        """Whether an arm's share of so many labelled images can be trained on, in each case.

        Raises:
            InputError: it cannot, and was asked for.
        """
        if arm.share == 1:
            return True
        left = round(arm.share * labelled) if arm.share * labelled >= 1 else 0
        how_many = "less than one" if not left else "all" if left == labelled else None
        told = how_many and f"leaves {how_many} of the {labelled} labelled images of a run"
        try:
            # A single image may show one class alone.
            for case in self.cases if left == 1 and not told else ():
                load_training_data(parse_run(self.command(arm, case), ""))
        except InputError as error:
            told = f"leaves a single image: {error}"
        require(not (told and is_told), f"--label_shares {arm.share} {told}; pass other shares, or --quick for none")
        return not told

    def _check_folders(self) -> None:
        for name in self.commands:
            try:
                RunFolder(self.arguments(name)).check()
            except InputError as error:
                raise InputError(f"{name}: {error}") from error

    def results(self, name: str) -> dict | None:
        """results.json of a finished run, scored over the classes that its images show."""
        folder = self.folder / name
        return of_shown_classes(finished_results(folder)) if (folder / "results.json").is_file() else None

    def weighed(self) -> list[Found]:
        """Each arm beside SupOnly, as far as it has been run."""
        found = {arm.id: [self.results(case_name(arm, case)) for case in self.cases] for arm in self.arms}
        return weigh(self.arms, found)

    def missing(self) -> list[str]:
        """Names of the runs that are not finished."""
        return [name for name in self.commands if self.results(name) is None]
