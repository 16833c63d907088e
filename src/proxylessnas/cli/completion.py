"""The verb `completion`: a script that lets a shell complete verbs, options and files.

eval "$(proxylessnas completion bash)"       in ~/.bashrc; zsh in ~/.zshrc
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxylessnas.cli.flags import OPTIONS
from proxylessnas.cli.options import stage_parser, verb_parser
from proxylessnas.session import STAGES

BASH = """\
_proxylessnas() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _proxylessnas proxylessnas
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main(options: Any) -> None:
    """Print the script."""
    print((ZSH if options.shell == "zsh" else "") + script(options_of_verbs()), end="")


def script(verbs: Mapping[str, list[str]]) -> str:
    """The script for bash. verbs: each with its options."""
    cases = "\n".join(f'    {verb}) words="{" ".join(words)}" ;;' for verb, words in verbs.items())
    return BASH.format(verbs=" ".join(verbs), cases=cases)


def options_of_verbs() -> dict[str, list[str]]:
    """Every verb's options, as its parser has them."""
    parsers = {verb: stage_parser(verb) for verb in ("run", *STAGES)}
    parsers |= {verb: verb_parser(verb) for verb in OPTIONS}
    return {verb: sorted(parser._option_string_actions) for verb, parser in parsers.items()}
