"""Every option is explained, and what the options offer is what the library has."""

import dataclasses
import re
from typing import get_args

import pytest

from ntk_robust.cli import _arguments as arguments
from ntk_robust.data import DATASET_NAMES

COMMANDS = [get_args(part)[0] for part in get_args(arguments.Command)]


def test_every_record_of_options_is_a_command() -> None:
    records = {name for name, value in vars(arguments).items() if dataclasses.is_dataclass(value)}
    assert {command.__name__ for command in COMMANDS} == records


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_of_a_command(command: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.parse([command.__name__.lower(), "--help"])
    assert ended.value.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    documented = dict(re.findall(r"^ {8}(\w+): (.+)", command.__doc__ or "", flags=re.MULTILINE))
    switched_on = {field.name: field.default is True for field in dataclasses.fields(command)}
    assert sorted(documented) == sorted(switched_on)
    for name, is_on in switched_on.items():
        option = f"--{'no-' if is_on else ''}{name.replace('_', '-')}"
        option = {"patterns": "PATTERN", "list_names": "--list"}.get(name, option)
        assert option in shown
        assert documented[name].split(".")[0] in shown


def test_the_names_on_the_command_line_are_the_names_of_the_library() -> None:
    from ntk_robust.cli._common import activation

    assert get_args(arguments.DataName) == DATASET_NAMES
    for name in get_args(arguments.ActivationName):
        assert type(activation(name)).__name__.lower() == name


def test_patterns_may_come_before_or_after_options() -> None:
    before = arguments.parse(["check", "gao2019", "shi", "--json"])
    after = arguments.parse(["check", "--json", "gao2019", "shi"])
    assert before == after == arguments.Check(patterns=("gao2019", "shi"), json=True)


@pytest.mark.parametrize(
    "wrong",
    [
        ["paint"],
        [],
        ["train", "--widht", "3"],
        ["train", "--width", "wide"],
        ["check", "--profile", "medium"],
        ["reproduce", "--data", "imagenet"],
    ],
)
def test_unknown_commands_options_and_values_end_with_code_2(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.parse(wrong)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.strip()
