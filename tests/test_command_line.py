"""Options with bounds, and results for people and for programs."""

import io
import json
import math

import pytest

from u2pl_hf.command_line import ScriptParser, broken_rule, number, print_result
from u2pl_hf.errors import InputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "value, bounds, rule",
    [
        (0, {}, None),
        (1_000_000_000, {}, None),
        (-1, {}, "must not be negative"),
        (10**18, {}, "must be at most 1,000,000,000"),
        (0, {"at_least": 1}, "must be at least 1"),
        (0.5, {"at_most": 1}, None),
        (1.0, {"below": 1}, "must lie in [0, 1)"),
        (math.nan, {"at_most": 1}, "must lie in [0, 1]"),
        (0.0, {"above": 0}, "must be a positive number"),
        (math.inf, {}, "must be a number from 0 on"),
        (17.0, {"above": 0, "at_most": 16}, "must be at most 16"),
    ],
)
def test_bounds(value, bounds, rule):
    assert broken_rule(value, **bounds) == rule


@pytest.mark.parametrize(
    "words, told",
    [
        (["--size", "0"], "argument --size is 0: it must be at least 1; --help lists the options"),
        (["--size", "1e3"], "argument --size: invalid int value: '1e3'"),
        (["--share", "nan"], "argument --share is nan: it must lie in [0, 1]"),
        (["--folder", "x/" * 3000], "is too long for a path"),
        (["--fo\nlder"], "unrecognized arguments: --fo\\nlder"),
    ],
)
def test_wrong_options_are_one_line(words, told):
    parser = ScriptParser()
    parser.add_argument("--size", type=number(int, at_least=1))
    parser.add_argument("--share", type=number(float, at_most=1))
    parser.add_argument("--folder", nargs="+")
    with pytest.raises(InputError) as error:
        parser.parse_args(words)
    assert told in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 610


def test_json_may_stand_before_and_behind_a_sub_command():
    parser = ScriptParser()
    parser.add_subparsers(dest="what").add_parser("make")
    found = [parser.parse_args(words).json for words in (["--json", "make"], ["make", "--json"], ["make"])]
    assert found == [True, True, False]


def test_people_see_words_and_programs_json(capsys):
    result = {"num_images": 1234, "share": 0.5, "parts": {"a": None}, "files": ["x", "y"]}
    words = "num images  1,234\nshare       0.5\nparts       a -\nfiles       x, y\n"
    for file, as_json, told, out, err in (
        (io.StringIO(), False, None, json.dumps(result) + "\n", ""),
        (io.StringIO(), False, "done", json.dumps(result) + "\n", "done\n"),
        (Terminal(), False, None, "", words),
        (Terminal(), False, "done", "", "done\n"),
        (Terminal(), True, "done", json.dumps(result) + "\n", "done\n"),
    ):
        print_result(result, told, as_json=as_json, file=file)
        assert (file.getvalue(), capsys.readouterr().err) == (out, err)
