"""`--help`: basic options first, in groups and with examples; `--help-all` has the rest."""

from __future__ import annotations

import re

import pytest

from proxylessnas.cli.help import BASIC
from proxylessnas.cli.main import main
from proxylessnas.cli.options import parse, stage_parser
from proxylessnas.session import STAGES

VERBS = ("run", *STAGES)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_fits_a_screen_or_two_and_has_examples(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    short = capsys.readouterr().out
    assert main([verb, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(short.splitlines()) < 85 < len(whole.splitlines())
    assert f"  proxylessnas {verb} " in short and "--help-all" in short
    assert "the run:" in short
    assert set(re.findall(r"(?m)^  (--[\w.-]+)", short)) <= set(
        re.findall(r"(?m)^  (--[\w.-]+)", whole)
    )


def test_the_verbs_do_not_have_the_same_help(capsys: pytest.CaptureFixture[str]) -> None:
    said = set()
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        said.add(capsys.readouterr().out.partition("\n")[2])
    assert len(said) == len(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_are_understood(verb: str) -> None:
    for line in BASIC[verb][1].splitlines():
        program, said, *words = line.split()
        assert (program, said) == ("proxylessnas", verb)
        parse(stage_parser(verb), words)


def test_no_two_options_of_a_group_share_their_sentence() -> None:
    """`further limits; count, count, MiB` explained none of three."""
    parser = stage_parser("run")
    for group in parser._action_groups:
        sentences = [action.help for action in group._group_actions]
        assert all(sentences) and len(set(sentences)) == len(sentences), group.title


def test_every_option_that_may_be_null_says_what_null_means() -> None:
    parser = stage_parser("run")
    silent = [
        action.dest
        for action in parser._actions
        if "default null" in (action.help or "")
        and not re.search(r"\b[Nn]ull\b.*\(", action.help or "")
    ]
    assert silent == []
