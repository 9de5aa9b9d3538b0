"""Methods beside SupOnly on one's own data: which runs that takes, and what they say together.

An arm is a method, or SupOnly with copy-paste, twice the steps or a share of the labels; a run is an arm on a fold or
with a seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from u2pl_hf.errors import InputError, require
from u2pl_hf.measure.queue import option_words
from u2pl_hf.measure.side_by_side import mean_iou
from u2pl_hf.measure.verdict import Difference, Verdict, difference, judge, winner
from u2pl_hf.training.recipe.arguments import find_method, other_settings
from u2pl_hf.training.recipe.command import parse_arguments as parse_run

BASE, TWICE, HALF, PASTED = "suponly", "suponly_twice", "suponly_half", "suponly_copy_paste"
# Refused where nothing is pasted.
PASTING = {"copy_paste_classes", "frequent_classes"}
# Of the labels, for SupOnly beside all of them: what they bring by each doubling.
SHARES = (Fraction(1, 4), Fraction(1, 2))
NAMED = {Fraction(1, 2): (HALF, "half"), Fraction(1, 4): ("suponly_quarter", "a quarter")}
# Of U2PL and its like, as in the project's own tables: from a teacher that knows little, wrong labels spread.
WARMUP_SHARE = 1 / 4


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        id: names its runs.
        title: what the page calls it.
        options: fields in place of the recipe's.
        share: of the labels.
        pasted: the probability of copy-paste into its labelled images.
    """

    id: str
    title: str
    options: dict = field(default_factory=dict)
    share: Fraction = Fraction(1)
    pasted: float = 0.0

    @property
    def is_control(self) -> bool:
        """Whether it is SupOnly with other steps or labels than the methods have."""
        return self.id == TWICE or self.share < 1


def arms_of(
    methods: Sequence[str], words: Sequence[str], told: Sequence[str], *, shares: Sequence[Fraction] | None = SHARES
) -> list[Arm]:
    """SupOnly, the methods, and SupOnly's controls.

    Args:
        methods: NAME or NAME:VARIANT, in the order of the page; SupOnly is there whether named or not.
        words: what training is called with in all runs, the recipe first.
        told: further words, for the runs that take them.
        shares: of the labels, each in (0, 1); None: without any control.

    Raises:
        InputError: no such method, or what all runs are told cannot be; or steps are counted in epochs.
    """
    args = parse_run([*words, *fitting(told, BASE), *option_words({"method": BASE})], "")
    uneven = "the recipe counts steps in epochs, which are not equally long for all methods: pass -- --max_steps N"
    require(not args.epochs, uneven)
    pasted = args.settings.settled().copy_paste_probability
    arms = {BASE: Arm(BASE, find_method(BASE).title, {"method": BASE}, pasted=pasted)}
    for text in methods:
        arms.setdefault(text.replace(":", "_"), _method_arm(text, words, told))
    unused = next((word for word in told if word[2:].partition("=")[0] in PASTING), None)
    is_used = any(arm.pasted for arm in arms.values())
    require(not unused or is_used, f"-- {unused} is about copy-paste, which no run has: pass --copy_paste_probability")
    if shares is not None:
        base = arms[BASE]
        # What a method that pastes gains by that alone, for which it needs no unlabelled image.
        most = max(arm.pasted for arm in arms.values())
        if most > base.pasted:
            options = base.options | {"copy_paste_probability": most}
            arms[PASTED] = Arm(PASTED, f"{base.title} + copy-paste", options, pasted=most)
        longer = {"max_steps": 2 * args.max_steps, "eval_steps": 2 * args.eval_steps}
        arms[TWICE] = Arm(TWICE, f"{base.title}, twice the steps", base.options | longer, pasted=base.pasted)
        for share in sorted(shares, reverse=True):
            name, words_of = NAMED.get(share, (f"suponly_share{float(share):.3g}", f"{100 * float(share):.3g} %"))
            fewer = {"labelled_share": args.labelled_share * float(share)}
            arms[name] = Arm(name, f"{base.title}, {words_of} of the labels", base.options | fewer, share, base.pasted)
    return list(arms.values())


def _method_arm(text: str, words: Sequence[str], told: Sequence[str]) -> Arm:
    name, colon, variant = text.partition(":")
    require(bool(variant) or not colon, f"--methods {text} names no variant: pass {name}, or {name}:VARIANT")
    method = find_method(name)
    options = {"method": name} | ({"variant": variant} if variant else {})
    try:
        args = parse_run([*words, *fitting(told, name), *option_words(options)], "")
    except InputError as error:
        # Not what is told, if it cannot be without that either.
        parse_run([*words, *option_words(options)], "")
        raise InputError(f"{error}; or leave {text} out of --methods") from error
    is_told = any(word.partition("=")[0] == "--warmup_steps" for word in told)
    needs = hasattr(args.settings, "warmup_steps") and not method.latest_start(args.settings, args.max_steps)
    if needs and not is_told:
        options["warmup_steps"] = round(WARMUP_SHARE * args.max_steps)
    told = getattr(args.settings, "variant", "paper")
    title = method.title if told == "paper" else f"{method.title}, {told}"
    return Arm(text.replace(":", "_"), title, options, pasted=args.settings.settled().copy_paste_probability)


def fitting(told: Sequence[str], method: str, *, pastes: bool = False) -> list[str]:
    """The words of a command line without options that only other methods have, and their values."""
    others, kept, is_kept = other_settings(find_method(method)) | (set() if pastes else PASTING), [], True
    for word in told:
        if word.startswith("--"):
            is_kept = word[2:].partition("=")[0] not in others
        kept += [word] if is_kept else []
    return kept


def case_name(arm: Arm, case: Mapping) -> str:
    """Of a run: suponly_fold1, u2pl_robust_seed0."""
    return f"{arm.id}_fold{case['fold'].partition('/')[0]}" if "fold" in case else f"{arm.id}_seed{case['seed']}"


@dataclass(frozen=True)
class Found:
    """An arm's runs, and what they are beside SupOnly's.

    Attributes:
        arm: what it is.
        runs: results of each case, None where it has not been run.
        gain: over SupOnly; None where no pair of runs is there, and for SupOnly itself.
        classes: of each class its difference to SupOnly.
        verdict: None for SupOnly and its controls.
    """

    arm: Arm
    runs: list[dict | None]
    gain: Difference | None
    classes: dict[str, Difference | None]
    verdict: Verdict | None

    @property
    def done(self) -> list[dict]:
        """The results that are there."""
        return [run for run in self.runs if run is not None]


def of_shown_classes(results: dict) -> dict:
    """Results whose mean IoU is over the classes that occur in the masks, so that runs on few images can be paired.

    A class that a fold lacks has no IoU where nothing is predicted as it, and 0 where a single pixel is, which would
    move the mean of one run and not of the other.
    """
    changed = {}
    for which in ("last", "best"):
        scores = results[which]
        shown = {name for name, recall in (scores.get("per_class_accuracy") or {}).items() if recall is not None}
        ious = {name: iou if name in shown else None for name, iou in scores["per_class_iou"].items()}
        if shown:
            mean = statistics.fmean(iou for iou in ious.values() if iou is not None)
            changed[which] = scores | {"per_class_iou": ious, "mean_iou": mean}
    return results | changed


def weigh(arms: Sequence[Arm], results: Mapping[str, Sequence[dict | None]]) -> list[Found]:
    """Compare each arm with SupOnly.

    Args:
        results: arm id -> results.json of each case, in the order of the cases.
    """
    scores = {name: mean_iou([run or {} for run in runs], "last") for name, runs in results.items()}
    found = []
    for arm in arms:
        base, own = results[BASE], results[arm.id]
        pairs = {name: (_of_class(own, name), _of_class(base, name)) for name in _class_names(own)}
        verdict = None
        if arm.id != BASE and not arm.is_control:
            controls = {"twice": scores.get(TWICE), "half": scores.get(HALF)}
            controls |= {"pasted": scores.get(PASTED)} if arm.pasted and arm.id != PASTED else {}
            verdict = judge(scores[arm.id], scores[BASE], classes=pairs, **controls)
        gain = None if arm.id == BASE else difference(scores[arm.id], scores[BASE])
        classes = {name: difference(*pair) for name, pair in pairs.items()}
        found.append(Found(arm, list(own), gain, classes, verdict))
    return found


def best_of(found: Sequence[Found]) -> str | None:
    """The id of the arm to train; None where no method helps."""
    judged = {f.arm.id: f for f in found if f.verdict}
    gains = {name: f.gain.mean for name, f in judged.items()}
    return winner({name: f.verdict for name, f in judged.items()}, gains)


def headline(found: Sequence[Found]) -> str:
    """The verdict on all: that of the winner, or of the method that came nearest."""
    judged = [f for f in found if f.verdict]
    if not judged:
        return "nothing to compare yet"
    chosen = best_of(found)
    best = next((f for f in judged if f.arm.id == chosen), max(judged, key=lambda f: f.gain.mean))
    if chosen == PASTED:
        return f"No unlabelled image is needed: {best.arm.title} helps most, {best.verdict.words}"
    if chosen:
        return f"Yes, {best.arm.title} helps: {best.verdict.words}"
    return f"{best.verdict.kind.capitalize()}: {best.arm.title}, {best.verdict.words}"


def _class_names(runs: Sequence[dict | None]) -> list[str]:
    return next((run["class_names"] for run in runs if run), [])


def _of_class(runs: Sequence[dict | None], name: str) -> list[float | None]:
    return [((run or {}).get("last") or {}).get("per_class_iou", {}).get(name) for run in runs]
