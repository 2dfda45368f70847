"""Numbers as a reader of the report sees them: true minus signs, thousands separators, units, a dash for nothing."""

from __future__ import annotations

import math

NOTHING = "–"
MINUS = "\N{MINUS SIGN}"


def whole(value: float | None) -> str:
    """Write a count, with thousands separators."""
    return NOTHING if value is None else f"{value:,.0f}".replace("-", MINUS)


def decimal(value: float | None, digits: int = 3) -> str:
    """Write a number to a fixed count of digits."""
    return NOTHING if value is None or not math.isfinite(value) else _true_minus(f"{value:,.{digits}f}")


def signed(value: float | None, digits: int = 3) -> str:
    """Write a number with its sign; what rounds to zero has none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+,.{digits}f}"
    return _true_minus(text) if any(digit in text for digit in "123456789") else f"{0:.{digits}f}"


def calls(value: float) -> str:
    """Write a mean count: whole where it is whole, else to one digit."""
    return whole(value) if float(value).is_integer() else decimal(value, 1)


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage to one digit."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.1f}%"


def duration(seconds: float | None) -> str:
    """Write seconds in the unit that suits them: `0.42 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _true_minus(text: str) -> str:
    return text.replace("-", MINUS)
