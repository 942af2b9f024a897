"""Numbers as a reader wants them."""

import math
from typing import Any

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WORDS = {"inf": "∞", "-inf": "−∞", "nan": "not a number"}


def format_value(value: Any, digits: int = 5) -> str:
    """A JSON value as text: floats to `digits` significant digits, powers of ten raised, None as a dash.

    Integers keep all their digits, with thin spaces between thousands; the strings that stand for non-finite floats
    become signs.
    """
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace(",", "\u2009").replace("-", "−")
        case float():
            return _format_float(value, digits)
        case list() | tuple():
            return ", ".join(format_value(item, digits) for item in value)
    text = str(value)
    return _WORDS.get(text, text)


def _format_float(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return _WORDS[str(value)]
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    mantissa = mantissa.replace("-", "−")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if exponent else mantissa
