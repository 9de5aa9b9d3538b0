"""Settings of U2PL that follow from its variant, and what goes with which."""

import dataclasses
from dataclasses import fields

import pytest

from tests.method.test_step import make_student
from tests.method.test_u2pl_options import EVERYTHING, make_step, outputs_of
from u2pl_hf.errors import InputError
from u2pl_hf.method.ael import AEL
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.u2pl_settings import PAPER, ROBUST, U2PLSettings


def test_paper_and_robust_name_existing_fields_that_are_not_told():
    defaults = {f.name: f.default for f in fields(U2PLSettings)}
    assert {name for name, default in defaults.items() if default is None} == {*PAPER, "low_rank"}
    assert {*ROBUST} < {*PAPER} and all(PAPER[name] != value for name, value in ROBUST.items())
    kinds = {f.name: f.type for f in fields(U2PLSettings)}
    for chosen in (PAPER, ROBUST):
        assert all(value is None or type(value).__name__ in str(kinds[name]) for name, value in chosen.items())


def test_robust_sets_what_is_not_told():
    assert dataclasses.asdict(U2PLSettings(variant="robust").settled()).items() >= (PAPER | ROBUST).items()
    robust = U2PLSettings(variant="robust").settled()
    assert robust.copy_paste_probability == 0.5
    assert robust.strong_colour and robust.strong_per_image and robust.strong_probability == 1
    assert 0.5 < robust.confidence_floor < 1 and robust.ema_from_start
    for variant in ("paper", "official"):
        assert dataclasses.asdict(U2PLSettings(variant=variant).settled()).items() >= PAPER.items()
    told = {"strong_colour": False, "strong_probability": 0.0, "strong_per_image": False, "confidence_floor": 0.0,
            "ema_from_start": False, "ema_decay": 0.5, "prototype_momentum": 0.9}  # fmt: skip
    for variant in ("paper", "robust"):
        settled = dataclasses.asdict(U2PLSettings(variant=variant, **told).settled())
        assert settled.items() >= told.items() and settled["protect_unlearnt"] == 0.0
    step = make_step(make_student(), variant="robust", strong_probability=None, confidence_floor=0.6)
    assert (step.settings.confidence_floor, step.settings.strong_probability, step.settings.ema_decay) == (0.6, 1, 0.99)


def test_the_paper_is_what_it_was():
    """Told or not; and what is in a checkpoint."""
    (silent, one), (told, other) = outputs_of({"strong_probability": None}, PAPER)
    assert one.total == other.total and silent.settings == told.settings
    assert {name.split(".")[0] for name in silent.state_dict()} == {"teacher", "queues"}
    assert "confidence_per_class" not in one.stats and silent.partners is None


OFF = [(name, value) for name, value in EVERYTHING.items() if name != "strong_probability"] + [("partner", "class")]


@pytest.mark.parametrize(("name", "value"), OFF)
def test_refused_where_it_is_not_published(name, value):
    with pytest.raises(InputError, match=f"^--{name} goes with --variant paper or robust, not official$"):
        U2PL.check(U2PLSettings(variant="official", **{name: value}))
    with pytest.raises(InputError, match=f"^--{name} goes with --method u2pl, not u2pl_ael$"):
        AEL.check(AEL.Settings(**{name: value}))
    for variant in ("paper", "robust"):
        U2PL.check(U2PLSettings(variant=variant, **{name: value}))
    U2PL.check(U2PLSettings(variant="official", **{name: PAPER[name]}))
    AEL.check(AEL.Settings(**{name: PAPER[name]}))


def test_what_goes_together():
    U2PL.check(U2PLSettings(variant="official", ema_decay=0.5, strong_probability=1.0))
    AEL.check(AEL.Settings(ema_decay=0.5))
    with pytest.raises(InputError, match="--strong_probability goes with --method u2pl, not u2pl_ael"):
        AEL.check(AEL.Settings(strong_probability=1.0))
    with pytest.raises(InputError, match="--variant robust goes with --method u2pl"):
        AEL.check(AEL.Settings(variant="robust"))
    for augmentation in ("cutout", "classmix"):
        with pytest.raises(
            InputError, match=f"--partner class goes with --strong_augmentation cutmix, not {augmentation}"
        ):
            U2PL.check(U2PLSettings(partner="class", strong_augmentation=augmentation))
    assert U2PL.mixes_batch(U2PLSettings()) and not U2PL.mixes_batch(U2PLSettings(partner="class"))
