"""Formulas as MathML, made when the site is built: the pages need no script and no network."""

import html
import logging
import re

from latex2mathml.converter import convert

_LOG = logging.getLogger("mkdocs.hooks.mathml")  # a warning fails the strict build
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """The page with every formula that arithmatex marked turned into MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    formula = html.unescape(match[3]).replace(r"\arg", r"\operatorname{arg}")
    converted = convert(formula, display=display)
    if left_over := re.search(r"\\[A-Za-z]+", converted):
        _LOG.warning("%s is not known to latex2mathml, in the formula %s", left_over[0], formula)
    return converted
