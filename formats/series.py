"""A time series as one file per step: read by a pattern of names, or by a list of files such as .pvd."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial

import numpy as np

from cli import console
from formats import pvd
from formats.arrays import StackedSteps
from formats.common import UNEVEN, VolumeError
from formats.moments import from_one_moment
from utils import Geometry, Volume

OTHER_FILES = 256  # open files that the process may need besides the steps

DECIMAL = r"(?:(?:^|(?<=[_=.,/ (\[]))[+-])?(?:\d+(?:\.\d+)?|(?<=[_=+-])\.\d+)"  # its sign follows a separator
NUMBER = re.compile(  # in a name; an exponent without a sign needs a separator before the number: s1e10 has two numbers
    rf"""(?P<version> \d+(?:\.\d+){{2,}} | (?<![^\W\d_]v)(?<=v)\d+(?:\.\d+)+ )
    | (?<![^\W\d_]){DECIMAL}e\d{{1,3}}(?![^\W_])
    | {DECIMAL}(?:e[+-]\d{{1,3}}(?!\d))?""",
    re.VERBOSE | re.IGNORECASE,
)

INTEGER = re.compile(r"\d+")
MONTH = re.compile(r"[12]\d{3}\.(?:[1-9]|1[0-2])")  # a year and a month

# --- read -------------------------------------------------------------------------------------------


def is_pattern(path: str) -> bool:
    """Whether a name stands for several files: it has a wildcard (*, ?, [...]), and no file has this name."""
    return any(c in path for c in "*?[") and not os.path.exists(path)


def steps_of(path: str) -> list[tuple[str, float | None]]:
    """The files of a list, a pattern or a plain name, and the time of each; None where no list says one."""
    return pvd.listed_in(path) if pvd.is_list(path) else [(name, None) for name in files_of(path)]


def files_of(path: str) -> list[str]:
    """The files that match a pattern, in natural order: step_2 before step_10. A plain name gives itself.

    Numbers may have a decimal part, an exponent, and a sign after a separator: t_-1 before t_1e-05 before t_0.25. The
    parts of a version, as 1.2.10 or v1.10, are integers. So are the numbers of the suffix, which is no decimal part.
    All numbers are integers if two names are equal by their decimals, as 2020.1 and 2020.10, or if all decimals may be
    a year and a month, as 2020.2 and 2020.10.
    """
    if not is_pattern(path):
        return [path]

    def parts(path: str) -> tuple[str, str]:
        return (path, "") if os.path.isdir(path) else os.path.splitext(path)

    def key(path: str, number: re.Pattern = NUMBER) -> tuple:
        return tuple(_natural(part, number) for part in parts(path))

    paths = sorted(glob.glob(path))
    stems = [os.path.basename(parts(path)[0]) for path in paths]
    decimals = [found[0] for stem in stems for found in NUMBER.finditer(stem) if "." in found[0]]
    are_months = bool(decimals) and all(map(MONTH.fullmatch, decimals))
    if are_months or len({*map(key, paths)}) < len(paths):
        return sorted(paths, key=partial(key, number=INTEGER))
    return sorted(paths, key=key)


def _natural(name: str, number: re.Pattern) -> tuple[tuple[str, tuple[Decimal, ...]], ...]:
    """A name as texts, each with the number after it, of several parts if it is a version; () after the last text."""
    parts, end = [], 0
    for found in number.finditer(name):
        numbers = found[0].split(".") if found.lastgroup else [found[0]]
        parts.append((name[end : found.start()], tuple(map(Decimal, numbers))))
        end = found.end()
    return (*parts, (name[end:], ()))


def pattern_of(path: str) -> str:
    """The pattern of the files that are named like this one but for the last number; the name where it has none."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    found = re.fullmatch(r"(.*?)\d+(\D*)", stem)
    stem = f"{glob.escape(found[1])}[0-9]*{glob.escape(found[2])}" if found else glob.escape(stem)
    return os.path.join(glob.escape(folder), stem + suffix)


def read_files(
    pattern: str, steps: Sequence[tuple[str, float | None]], read: Callable[[str], Volume], d_in: int | None
) -> Volume:
    """The files of a pattern, or of a list, as one volume. steps: `steps_of` it. `read(path)` gives a volume in space.

    Files of one voxel along z are slices of a volume, in the order of their places, unless `d_in` is 4 or, where it is
    None, they lie at one place and say different times. All others are steps of a series, whose first axis is time.
    Memory-mapped steps stay mapped: the array is a StackedSteps. If every file has a time of its own, the steps are in
    the order of their times; files that count from different moments are counted from the earliest. The step and the
    start of time come from the files if these times are in equal steps; otherwise they are 1 and 0. The fill value of
    some files counts for all. Raises VolumeError when no file matches, when a file differs from the first one in more
    than values and time, and when two files give different fill values.
    """
    paths = [path for path, _ in steps]
    if not paths:
        raise VolumeError(f"{pattern}: expected files of that pattern, found none")
    _allow_open_files(len(paths))
    volumes, heights = [], []
    with _each_warning_once():
        for path, time in steps:
            volume = read(path)
            volumes.append(volume if time is None else dataclasses.replace(volume, time=time))
            heights.append(_height(volume, volumes[0]) if d_in != 4 else 0.0)
            _check_alike(path, volume, paths[0], volumes[0], heights[-1])
    first = dataclasses.replace(volumes[0], fill=_common_fill(paths, volumes))
    arrays, times = [volume.array for volume in volumes], [volume.time for volume in volumes]
    said = [volume.geometry.attributes_of("t") for volume in volumes]
    is_of_one_time = len({*times}) == 1
    is_of_one_place = max(map(abs, heights)) <= UNEVEN * min(first.geometry.spacing)
    is_series = d_in == 4 if d_in else is_of_one_place and not is_of_one_time
    if _is_slice(first) and not is_series and len(arrays) > 1:
        volume = _stacked(pattern, first, arrays, [0.0] * len(arrays) if is_of_one_place else heights)
        return volume if is_of_one_time else dataclasses.replace(volume, time=None)
    without = [path for path, time in zip(paths, times, strict=True) if time is None]
    if 0 < len(without) < len(paths):
        console.warn(pattern, f"{len(without)} of its files say no time, as {without[0]}: taken as 0, 1, 2, ...")
    elif not without and any(found != said[0] for found in said):
        first, times = _from_one_moment(pattern, paths, first, times, said)
    if None not in times and np.isfinite(times).all() and len({*times}) == len(times):
        order = np.argsort(times, kind="stable").tolist()
        arrays, times = [arrays[k] for k in order], [times[k] for k in order]
    geometry = with_times(pattern, first.geometry, times)
    return dataclasses.replace(first, array=StackedSteps(arrays), geometry=geometry, time=None)


def _is_slice(volume: Volume) -> bool:
    return volume.array.shape[2] == 1


def _height(volume: Volume, first: Volume) -> float:
    """How far a slice lies from the first one, along the z axis of this one; 0 for what is no slice."""
    if not (_is_slice(volume) and _is_slice(first)):
        return 0.0
    a, b = volume.geometry, first.geometry
    return float(np.subtract(a.origin, b.origin) @ b.axis_directions[:, 2])


def _stacked(pattern: str, first: Volume, arrays: list[np.ndarray], heights: list[float]) -> Volume:
    """Slices as one volume, in the order of their heights above the first one. Their distance is the spacing along z.

    If all heights are 0, the spacing is that of the first slice. Raises VolumeError for uneven heights.
    """
    order, place = np.argsort(heights, kind="stable"), first.geometry
    steps = np.diff(np.array(heights)[order])
    if np.ptp(steps) > UNEVEN * steps.mean():
        what = f"expected slices at equal distances along z, found {steps.min():g} to {steps.max():g}"
        raise VolumeError(f"{pattern}: {what}: --d_in 4 takes files at one place as steps in time")
    if steps[0] > 0:
        origin = place.origin + min(heights) * place.axis_directions[:, 2]
        spacing = (*place.spacing[:2], float(f"{steps.mean():.12g}"))  # without the rounding of positions
        place = dataclasses.replace(place, origin=tuple(origin.tolist()), spacing=spacing)
    return dataclasses.replace(first, array=np.concatenate([arrays[k] for k in order], axis=2), geometry=place)


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Print a warning that several files share once, at the end: for the first file, with the number of the others."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            yield
    finally:
        lines = {line: line.partition(": warning: ")[2] or line for line in told.getvalue().splitlines()}
        counts = collections.Counter(lines.values())
        for line, message in lines.items():
            if n := counts.pop(message, 0):
                more = f" ({n - 1} more {'files' if n > 2 else 'file'} likewise)" if n > 1 else ""
                print(line + more, file=sys.stderr)


def _from_one_moment(
    pattern: str, paths: list[str], first: Volume, times: list[float], said: list[dict[str, str]]
) -> tuple[Volume, list[float | None]]:
    """The first file and the times of all, counted from one moment; [None] in place of times that cannot be.

    said: units and calendar of each time. They are not all the same.
    """
    if found := from_one_moment(times, said):
        attributes = first.geometry.axis_attributes | {"units_t": found[1]}
        geometry = dataclasses.replace(first.geometry, axis_attributes=attributes)
        return dataclasses.replace(first, geometry=geometry), found[0]
    other = next(k for k, found in enumerate(said) if found != said[0])
    named = [f"{' '.join(said[k].values()) or 'no units'!r} in {paths[k]}" for k in (0, other)]
    what = f"its files count time from different moments, {named[0]} and {named[1]}, which cannot be compared"
    console.warn(pattern, f"{what}: the steps are in the order of the file names, at times 0, 1, 2, ...")
    return first, [None]


def _allow_open_files(count: int) -> None:
    """Let this process keep `count` more files open, as far as the system allows: each memory map needs one."""
    try:
        import resource
    except ImportError:  # Windows does not count open files
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (needed := min(count + OTHER_FILES, hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_alike(path: str, volume: Volume, first_path: str, first: Volume, height: float) -> None:
    """Raise VolumeError for a file that differs from the first one. height: that it may lie from there along z."""
    pairs = [("shape", volume.array.shape, first.array.shape), ("dtype", volume.array.dtype, first.array.dtype)]
    pairs += [(key, getattr(volume.geometry, key), getattr(first.geometry, key)) for key in ("units", "space")]
    if not _are_at_one_place(volume, first, height):
        places = ("spacing", "origin", "direction")
        pairs += [(key, getattr(volume.geometry, key), getattr(first.geometry, key)) for key in places]
    for key, found, expected in pairs:
        if found != expected:
            what = f"expected {key} {expected}, as in {first_path}, found {found}"
            raise VolumeError(f"{path}: {what}: the files of a series or of a volume have to be alike")


def _are_at_one_place(volume: Volume, other: Volume, height: float) -> bool:
    """Whether the voxels of two volumes of one shape are at the same places, up to rounding and `height` along z."""
    a, b = volume.geometry, other.geometry
    steps = np.abs(a.axis_directions * a.spacing - b.axis_directions * b.spacing)
    counts = np.maximum(np.subtract(volume.array.shape[:3], 1), 1)
    lift = height * b.axis_directions[:, 2] if height else 0.0
    off = np.abs(np.subtract(a.origin, b.origin) - lift) + steps @ counts
    return bool(off.max() <= UNEVEN * min(a.spacing))


def _common_fill(paths: list[str], volumes: list[Volume]) -> np.generic | None:
    """The fill value of all files; None where none gives one. Raises VolumeError where two differ."""
    fills = [(path, volume.fill) for path, volume in zip(paths, volumes, strict=True) if volume.fill is not None]
    for path, fill in fills:
        if not np.array_equal(fill, fills[0][1], equal_nan=True):
            what = f"expected fill value {fills[0][1]}, as in {fills[0][0]}, found {fill}"
            raise VolumeError(f"{path}: {what}: train.py --fill VALUE sets one for all files")
    return fills[0][1] if fills else None


def with_times(pattern: str, space: Geometry, times: list[float | None]) -> Geometry:
    """The geometry of a series. Times that do not rise in equal steps are counted 0, 1, 2, ..., without units."""
    said = {key: text for key, text in space.axis_attributes.items() if key not in ("units_t", "calendar")}
    counted = dataclasses.replace(space, axis_attributes=said).with_time(1.0, 0.0)
    if None in times:
        return counted
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    even = times[0] + step * np.arange(len(times))
    if math.isfinite(step) and step > 0 and (np.abs(even - times) <= UNEVEN * step).all():
        return space.with_time(step, times[0])
    what = "fall" if (np.diff(times) < 0).all() else "are not in equal steps"
    console.warn(pattern, f"its times {what}: taken as 0, 1, 2, ...")
    return counted


# --- written ----------------------------------------------------------------------------------------


def step_path(path: str, step: int) -> str:
    """The name of the file of one step: recon.vti -> recon_0003.vti."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}_{step:04d}{suffix}"
