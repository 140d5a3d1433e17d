"""Numbers, intervals and names as text. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

from distrib.errors import printable

_MARKUP = re.compile(r"([\\`*_\[\]#|~>$])")  # what has a meaning within a line


def number(value: float | None, digits: int = 3) -> str:
    """A dash for what is not defined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no minus before zero


def interval(one: dict[str, Any] | None, digits: int = 3, form: str = "{} to {}") -> str:
    """Empty for one that is not known."""
    if one is None or one.get("low") is None:
        return ""
    return form.format(number(one["low"], digits), number(one["high"], digits))


def with_interval(value: float | None, one: dict[str, Any] | None, digits: int = 3) -> str:
    bounds = interval(one, digits)
    return number(value, digits) + (f" ({bounds})" if bounds else "")


def short(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most - 1]}…"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table too; nothing of it is HTML."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\1", text)
