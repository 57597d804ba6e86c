"""Files of positions, and of values at these positions: .npy and .csv."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator

import numpy as np

from formats.common import AXES, suffix_of
from utils import UserError

POINT_SUFFIXES = (".npy", ".csv")


def points_path(path: str, points: str) -> str:
    """The name of the file for the values at `points`: `path`, with the suffix of `points` if `path` has none.

    Raises UserError for a suffix that cannot be written.
    """
    suffix = suffix_of(path)
    if not suffix:
        return path + (".csv" if suffix_of(points) == ".csv" else ".npy")
    if suffix not in POINT_SUFFIXES:
        raise UserError(f"{path}: with --points, expected a name that ends in .npy or .csv")
    return path


def read_points(path: str, d_in: int) -> np.ndarray:
    """Positions (n, d_in) from a .npy file of that shape, in its type, or float64 from a .csv file of as many columns.

    A .csv file may begin with a line of names; columns that are no axes are then ignored. Raises UserError.
    """
    suffix = suffix_of(path)
    if suffix not in POINT_SUFFIXES:
        raise UserError(f"{path}: expected positions in a file whose name ends in {' or '.join(POINT_SUFFIXES)}")
    try:
        points = _read_csv(path, d_in) if suffix == ".csv" else np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # NumPy's parsers fail in many ways on a file that is no array
        what = f"lines of {','.join(AXES[d_in])}" if suffix == ".csv" else "an array of NumPy's"
        raise UserError(f"{path}: expected {what}: {error}") from None
    if points.ndim != 2 or points.shape[1] != d_in or points.dtype.kind not in "iuf" or not len(points):
        raise UserError(f"{path}: expected numbers of shape (n, {d_in}), found {points.dtype} {points.shape}")
    return np.array(points)


def _read_csv(path: str, d_in: int) -> np.ndarray:
    """The positions (n, d_in) of a .csv file. Raises ValueError, which names the line of the file, counted from 1.

    If its first line holds names, those of the axes choose the columns. Without names, every column is an axis.
    """
    n_read = 0

    def lines() -> Iterator[str]:
        nonlocal n_read
        for line in file:
            n_read += 1
            yield line

    with open(path, encoding="utf-8-sig") as file:
        first = file.readline().lstrip("# ").strip()
        names = [name.strip(' "').lower() for row in csv.reader([first]) for name in row]
        columns = None if all(map(_is_number, names)) else _columns_of(AXES[d_in], names, first)
        if columns is None:
            file.seek(0)
        else:
            n_read = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without numbers
            try:
                table = np.loadtxt(lines(), delimiter=",", ndmin=2, quotechar='"', comments=None, usecols=columns)
            except ValueError as error:  # NumPy counts rows, without empty lines, some from 0 and some from 1
                what = str(error).partition("; use `usecols`")[0]  # which a user of the script has not
                raise ValueError(re.sub(r"\bat row \d+", f"in line {n_read}", what)) from None
    if not table.size or table.shape[1] != d_in:
        raise ValueError(f"found {table.shape[1]} numbers a line, not {d_in}" if table.size else "found none")
    return table


def _is_number(text: str) -> bool:
    """Whether a field of a .csv file holds a number, or nothing."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _columns_of(axes: str, names: list[str], line: str) -> list[int]:
    """The index of each axis's column. ParaView calls x, y, z Points:0, Points:1, Points:2. Raises ValueError."""
    paraview = {"x": "points:0", "y": "points:1", "z": "points:2"}
    found = [[i for i, name in enumerate(names) if name in (axis, paraview.get(axis))] for axis in axes]
    if any(len(columns) != 1 for columns in found):
        hint = ": columns are separated by commas" if len(names) == 1 else ""
        raise ValueError(f"its first line, {line[:80]!r}, does not name each of these columns once{hint}")
    return [column for (column,) in found]


def write_points(
    path: str, suffix: str, name: str, points: np.ndarray, values: np.ndarray, gradients: np.ndarray | None
) -> None:
    """Write values (n, [components]) and gradients (n, [components,] d_in) at points (n, d_in).

    A .npy file holds the values; with gradients, a row holds the values, then the derivatives of each value. A .csv
    file begins with a line of names; each further line holds position, values and derivatives. Raises OSError.
    """
    values = values.reshape(len(points), -1)
    d_in, d_out = points.shape[1], values.shape[1]
    axes = AXES[d_in]
    name = "".join(c for c in name if c.isprintable())
    name = f"'{name}" if name[:1] in ("=", "+", "-", "@") else name  # a spreadsheet would take it for a formula
    labels = [name] if d_out == 1 else [f"{name}_{c}" for c in range(d_out)]
    names = [*axes, *labels]
    if gradients is not None:
        values = np.column_stack([values, gradients.reshape(len(points), -1)])
        names += [f"d{label}/d{axis}" for label in labels for axis in axes]
    if suffix == ".npy":
        with open(path, "wb") as file:  # NumPy would give the path its own suffix
            np.save(file, values if values.shape[1] > 1 else values[:, 0], allow_pickle=False)
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(names)
        digits = "%s" if values.dtype == np.float64 else "%.9g"  # %s: as few as give the same float64 again
        form = ["%s"] * d_in + [digits] * values.shape[1]
        np.savetxt(file, np.column_stack([points, values]), fmt=form, delimiter=",")
