"""Times that count from different moments, as `days since 2020-01-30`, made to count from one.

Source: cfconventions.org, section 4.4.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

SECONDS = {
    **dict.fromkeys(("days", "day", "d"), Fraction(86400)),
    **dict.fromkeys(("hours", "hour", "hrs", "hr", "h"), Fraction(3600)),
    **dict.fromkeys(("minutes", "minute", "mins", "min"), Fraction(60)),
    **dict.fromkeys(("seconds", "second", "secs", "sec", "s"), Fraction(1)),
    **dict.fromkeys(("milliseconds", "millisecond", "msecs", "msec", "ms"), Fraction(1, 10**3)),
    **dict.fromkeys(("microseconds", "microsecond"), Fraction(1, 10**6)),
    **dict.fromkeys(("nanoseconds", "nanosecond"), Fraction(1, 10**9)),
}
SINCE = re.compile(  # a unit, a day, and perhaps a time of day, in UTC
    r"([a-z]+) +since +(\d{1,4})-(\d{1,2})-(\d{1,2})(?:(?: +|t)(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?"
    r"(?: *(?:z|utc|gmt|[+-]0{1,2}:?00))?"
)
GREGORIAN = ("", "standard", "gregorian")  # names of the calendar that is Julian before its first day
MOST = 1e300  # units that a time may count: more is no time, and float64 has no room for its steps
FIRST_GREGORIAN_DAY = datetime.date(1582, 10, 15).toordinal()


def from_one_moment(times: Sequence[float], attributes: Sequence[Mapping[str, str]]) -> tuple[list[float], str] | None:
    """The times as they count from the earliest of their moments, and their units, which name it; None if unknown.

    attributes: units and calendar of each time, as `Geometry.attributes_of` has them. They are unknown for months and
    years, which have no fixed length, for other time zones than UTC, and for different or rare calendars.
    """
    names = {said.get("calendar", "").lower() for said in attributes}
    calendar, *others = {"standard" if name in GREGORIAN else name for name in names}
    known = [_unit_and_moment(said.get("units", "").strip().lower(), calendar) for said in attributes]
    if None in known or others or not all(map(math.isfinite, times)):
        return None
    first = min(range(len(known)), key=lambda k: known[k][1])
    unit, start = known[first]
    counted = [
        (Fraction(time) * size + moment - start) / unit for time, (size, moment) in zip(times, known, strict=True)
    ]
    return None if max(map(abs, counted)) > MOST else (list(map(float, counted)), attributes[first]["units"])


def _unit_and_moment(units: str, calendar: str) -> tuple[Fraction, Fraction] | None:
    """The seconds of a unit, and the seconds from the calendar's begin to its moment; None where they are unknown.

    They are exact: a float has no microseconds of the seconds of two thousand years.
    """
    found = SINCE.fullmatch(units)
    if not found or found[1] not in SECONDS:
        return None
    year, month, day = map(int, found.groups()[1:4])
    hour, minute, second = (Fraction(part or 0) for part in found.groups()[4:])
    if hour > 23 or minute > 59 or second >= 60:
        return None
    try:
        days = _days(year, month, day, calendar)
    except ValueError:  # no such day
        return None
    return None if days is None else (SECONDS[found[1]], 86400 * days + 3600 * hour + 60 * minute + second)


def _days(year: int, month: int, day: int, calendar: str) -> int | None:
    """The number of a day in its calendar; None in a calendar that is not known. Raises ValueError for no such day."""
    if calendar in ("noleap", "365_day"):
        return 365 * year + datetime.date(2001, month, day).timetuple().tm_yday
    if calendar == "360_day" and 1 <= month <= 12 and 1 <= day <= 30:
        return 360 * year + 30 * month + day
    days = datetime.date(year, month, day).toordinal()
    is_known = calendar == "proleptic_gregorian" or (calendar == "standard" and days >= FIRST_GREGORIAN_DAY)
    return days if is_known else None
