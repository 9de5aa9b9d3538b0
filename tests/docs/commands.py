"""Commands and Python blocks of the documentation: found, taken apart, checked against the programs' own parsers."""

import ast
import configparser
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from click.testing import CliRunner
from huggingface_hub.cli.hf import app as hub_app
from torch.distributed.run import get_args_parser as torchrun_parser

from u2pl_hf.commands import COMMANDS
from u2pl_hf.training.recipe.command import _parser
from u2pl_hf.training.recipe.command import parse_arguments as parse_run

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of these the comments and docstrings hold commands as well.
FILES_WITH_COMMANDS = [
    *sorted((ROOT / "training_scripts").rglob("*.py")), *sorted((ROOT / "training_scripts").rglob("*.yaml")),
    *sorted((ROOT / "u2pl_hf" / "commands").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "docs").glob("*.py")),
    ROOT / "training_scripts" / "launch" / "slurm.sh",
]  # fmt: skip
# What the reader puts something of their own for, and what stands for it here.
PLACEHOLDERS = {"RECIPE": "training_scripts/recipes/demo_u2pl.yaml", "...": ""}
PROGRAMS = r"(?:\.venv/bin/)?(?:python3?|accelerate|torchrun|sbatch|make|pip|hf|tensorboard|u2pl) "
# Commands of u2pl -> the scripts that do the same.
SCRIPTS = {
    name: f"training_scripts/{path.name}"
    for path in (ROOT / "training_scripts").glob("*.py")
    for name in re.findall(r"^from u2pl_hf\.commands\.(\w+) import main", path.read_text(), re.MULTILINE)
}


@dataclass(frozen=True)
class Command:
    """One command of a document, as written but on one line."""

    document: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def fenced(path: Path, language: str) -> list[str]:
    """The contents of a document's ```language blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def shell_commands(path: Path) -> list[Command]:
    """Every command of the bash blocks; a line that ends in a backslash goes on."""
    lines = "\n".join(fenced(path, "bash")).replace("\\\n", " ").splitlines()
    return [Command(path.name, " ".join(line.split())) for line in lines if line.strip() and line.strip()[0] != "#"]


def written_commands(path: Path) -> list[Command]:
    """Commands in comments and docstrings of a program, a recipe or a launch file."""
    text = path.read_text()
    if path.suffix == ".py":
        tree = ast.parse(text)
        strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        text = "\n".join(value for value in strings if isinstance(value, str))
    text = re.sub(r"\\\n[# ]*", "", text)
    # What stands behind several spaces says what the command is for.
    found = re.findall(rf"^#? {{2,}}((?:[A-Z_0-9]+=\S+ )*{PROGRAMS}.*?)(?: {{2,}}|$)", text, re.MULTILINE)
    return [Command(path.name, " ".join(line.split())) for line in found]


def inline_commands(path: Path) -> list[Command]:
    """Commands between backticks in running text; a launcher named without a script is none."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    spans = [span for span in spans if re.match(rf"(?:[A-Z_0-9]+=\S+ )*{PROGRAMS}", span)]
    return [Command(path.name, span) for span in spans if not re.fullmatch(r"(accelerate launch|torchrun)[^.]*", span)]


def inline_options(path: Path) -> set[str]:
    """--options between backticks in running text, of whatever program."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {option for span in re.findall(r"`([^`]+)`", text) for option in re.findall(r"(?<!\S)--[a-z]\w*", span)}


def words_of(command: Command) -> list[str]:
    """Words without comment, variables before the program and the folder of the virtual environment."""
    words = shlex.split(command.text, comments=True)
    while re.match(r"[A-Z_0-9]+=", words[0]):
        words = words[1:]
    words = [PLACEHOLDERS.get(word, word) for word in words]
    return [words[0].removeprefix(".venv/bin/"), *filter(None, words[1:])]


def script_and_arguments(command: Command) -> tuple[str, list[str]] | None:
    """The Python script that a command runs in the end, and what it is passed; None where it runs none of ours."""
    program, *rest = words_of(command)
    if program == "accelerate":
        rest = launched(launch_command_parser(), rest[1:]) if rest[:1] == ["launch"] else []
    elif program == "torchrun":
        rest = launched(torchrun_parser(), rest)
    elif program == "sbatch":
        place = next(i for i, word in enumerate(rest) if word.endswith(".sh"))
        assert (ROOT / rest[place]).is_file(), f"{rest[place]} does not exist"
        rest = ["training_scripts/train_u2pl.py", *rest[place + 1 :]]
    elif program != "u2pl" and (not re.match(r"python3?$", program) or rest[:1] == ["-m"]):
        return None
    if program == "u2pl" or rest[:1] == ["u2pl_hf"]:  # started as a module
        name, *rest = rest[1:] if rest[:1] == ["u2pl_hf"] else rest
        assert name in COMMANDS, f"u2pl has no command {name}"
        rest = [SCRIPTS.get(name.replace("-", "_"), f"training_scripts/{name}.py"), *rest]
    return (rest[0], rest[1:]) if rest else None


def launched(parser: ArgumentParser, words: list[str]) -> list[str]:
    """The script and its arguments behind a launcher's own options."""
    options = parser.parse_args(words)
    config = getattr(options, "config_file", None)
    assert config is None or (ROOT / config).is_file(), f"{config} does not exist"
    return [options.training_script, *options.training_script_args]


def check(command: Command) -> None:
    """Fail unless the programs of a command exist and take its options."""
    if named := re.fullmatch(r"u2pl (\S+)( --help)?", command.text):
        assert named[1] in (*COMMANDS, "--help", "--version"), f"u2pl has no command {named[1]}"
        return
    found = script_and_arguments(command)
    if found:
        read_arguments(*found)
        return
    program, *rest = words_of(command)
    CHECKS.get(program, unknown)(rest)


def unknown(words: list[str]) -> None:
    pytest.fail("tests/docs/commands.py does not know this program: teach it to check the command")


def read_arguments(script: str, arguments: list[str]):
    """What the script's own parser makes of the arguments."""
    path = ROOT / script
    assert path.is_file(), f"{script} does not exist"
    if path.name == "train_u2pl.py":
        words = [str(ROOT / word) if word.startswith("training_scripts/recipes/") else word for word in arguments]
        return parse_run(words, "")
    return seen_by(path, arguments)[1]


def seen_by(path: Path, arguments: list[str] | None) -> tuple[ArgumentParser, Namespace | None]:
    """A script's parser, and what it makes of the arguments, if there are any; the script goes no further."""
    parse = ArgumentParser.parse_args

    def stop(parser, *given):
        raise _Seen(parser, None if arguments is None else parse(parser, *given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        patch.setattr(sys, "argv", [str(path), *(arguments or [])])
        patch.setattr(ArgumentParser, "parse_args", stop)
        with pytest.raises(_Seen) as caught:
            runpy.run_path(str(path), run_name="__main__")
    return caught.value.args


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"make knows no {name}"


def check_pip(words: list[str]) -> None:
    if words == ["install", "."]:
        return
    extras = re.fullmatch(r"u2pl_hf\[(\w+(?:,\w+)*)\]", words[-1])
    assert words[0] == "install" and extras, "pip: only extras of u2pl_hf are known here"
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(extras[1].split(",")) <= config["options.extras_require"].keys()


def check_hf(words: list[str]) -> None:
    names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
    told = CliRunner().invoke(hub_app, [*names, "--help"])
    assert told.exit_code == 0, f"hf knows no {' '.join(names)}"
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", told.output))


def check_python(words: list[str]) -> None:
    assert words[:2] == ["-m", "pytest"], "of `python -m`, only pytest is known here"
    for word in words[2:]:
        assert word.startswith("-") or (ROOT / word.partition("::")[0]).exists(), f"{word} does not exist"


CHECKS = {
    "make": check_make,
    "pip": check_pip,
    "hf": check_hf,
    "python": check_python,
    "tensorboard": lambda words: None,
}


class _Seen(BaseException):
    """Carries a parser, and what it read, out of a script."""


def known_options() -> set[str]:
    """Every --option of our scripts, of the launchers and of hf."""
    known = set(options_of(_parser()))
    for parser in (launch_command_parser(), torchrun_parser()):
        known |= options_of(parser)
    for path in FILES_WITH_COMMANDS:
        is_script = path.suffix == ".py" and path.parent.name != "commands" and path.name != "train_u2pl.py"
        if is_script and re.search(r"parse_args\(|u2pl_hf\.commands", path.read_text()):
            known |= options_of(seen_by(path, None)[0])
    return known


def options_of(parser: ArgumentParser) -> set[str]:
    """A parser's options and those of its sub-commands."""
    known = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            known |= {option for sub in action.choices.values() for option in options_of(sub)}
    return known
