"""Evaluate a blob back into a volume, or a part of it, in its original units, spacing and origin."""

from __future__ import annotations

from cli import console  # first: answers Ctrl-C while the others load

# isort: split
import contextlib
import math
import os
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cli.arguments import ArgumentParser, add_volume_arguments, check_volume_arguments, resolve_device, sizes
from cli.files import atomic_write, check_outputs, check_space, read_bytes, write_files
from field import pictures
from field.blob import BlobError, decode_blob, is_blob
from field.metrics import Metrics, combine_metrics, compare, file_ratios
from field.neural_field import NeuralField
from field.original_blob import decode_original
from formats import points
from formats.arrays import LazyArray
from formats.common import raw_layout, suffix_of
from formats.reading import read_volume
from formats.series import collection, collection_path, files_of, step_path
from formats.writing import SUFFIXES, least_bytes, output_files, output_path, write_volume
from utils import Grid, UserError, ValueRange, Volume, header_of, same_missing

IN_MEMORY = 1 << 27  # values of a file, gradients included: what is larger is evaluated and written slab by slab


def build_parser() -> ArgumentParser:
    """The command line of this script."""
    parser = ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--compressed", required=True, help="blob that net_compress.py wrote")
    group.add_argument(
        "--recon",
        default="recon",
        help=f"file to write: {', '.join(SUFFIXES)}; .vti when it has no suffix; with --points .npy or .csv. A .raw "
        "file (little-endian, x fastest) says in its name what it holds: recon_80x64x56_float32.raw. Of a time series "
        "a .vti file a step (recon_0003.vti) and recon.pvd, which ParaView plays, or one .npy array [t, x, y, z]",
    )
    group.add_argument(
        "--volume",
        help="the original volume, to compare with; a blob of the original scripts takes shape and range from it",
    )
    add_volume_arguments(group)
    group.add_argument(
        "--preview",
        metavar="FILE.png",
        help="picture to write too: slices through the middle and a rendering of what is evaluated, with --volume the "
        "original and the error as well; of a time series the step half-way",
    )
    group.add_argument(
        "--float", dest="as_float", action="store_true", default=False, help="write integer fields unrounded, as floats"
    )
    group = parser.add_argument_group("what to evaluate")
    group.add_argument(
        "--roi",
        type=roi_argument,
        metavar="X0:X1,Y0:Y1,Z0:Z1",
        help="only this box of voxels, half-open, an empty end being the volume's own",
    )
    group.add_argument(
        "--time",
        type=time_argument,
        metavar="T | A:B",
        help="of a time series only this time, in steps from 0, where 2.5 lies between two, or the steps from A up to "
        "but not B",
    )
    group.add_argument(
        "--resolution",
        type=sizes,
        metavar="NX,NY,NZ",
        help="that many points along each axis, from the first voxel to the last of the volume or of --roi",
    )
    group.add_argument(
        "--gradient",
        action="store_true",
        default=False,
        help="add the exact gradient, in units of value per unit of length (.vti, or with --points, where a time "
        "series has a derivative by time too)",
    )
    group.add_argument(
        "--points",
        metavar="FILE",
        help="only these positions, in the units of spacing and origin: .npy of shape (n, axes), or .csv: x,y,z; "
        "of a time series t,x,y,z; in the order of a .csv file's first line where that names them",
    )
    group.add_argument(
        "--outside",
        choices=("error", "nan"),
        default="error",
        help="what a position of --points outside the volume is: an error, or NaN",
    )
    parser.add_device_arguments()
    return parser


def roi_argument(text: str) -> tuple[slice, ...]:
    """An argparse type: ranges a:b of voxels, one per axis, either end of which may be left out."""
    try:
        ranges = [part.split(":") for part in text.split(",")]
        ends = [[int(end) if end else None for end in pair] for pair in ranges]
        if any(len(pair) != 2 for pair in ends) or any(end is not None and end < 0 for pair in ends for end in pair):
            raise ValueError
    except ValueError:
        expected = "ranges of voxels as in 0:16,8:24,:, without negative indices"
        raise ArgumentTypeError(f"expected {expected}, found {text!r}") from None
    return tuple(slice(*pair) for pair in ends)


def time_argument(text: str) -> float | slice:
    """An argparse type: a time, or a range a:b of steps, either end of which may be left out."""
    try:
        ends = [int(end) if end else None for end in text.split(":")] if ":" in text else [float(text)]
        if len(ends) > 2 or any(end is not None and not 0 <= end < math.inf for end in ends):
            raise ValueError
    except ValueError:
        raise ArgumentTypeError(f"expected a time in steps, as in 3 or 2.5, or 2:5, found {text!r}") from None
    return slice(*ends) if len(ends) == 2 else ends[0]


def parse(argv: Sequence[str]) -> Namespace:
    """The options, once they make sense together; the output's name settled."""
    opt = build_parser().parse_args(argv)
    check_volume_arguments(opt)
    if not os.path.basename(opt.recon):  # with a suffix it would be a hidden file
        raise UserError(f"--recon: expected the name of a file to write, found {opt.recon!r}")
    if opt.points:
        for name in ("roi", "time", "resolution", "volume", "preview"):
            if getattr(opt, name) is not None:
                raise UserError(f"--points and --{name}: give one of them")
        opt.recon = points.points_path(opt.recon, opt.points)
        return opt
    if opt.outside != "error":
        raise UserError("--outside belongs to --points")
    opt.recon = output_path(opt.recon)
    if opt.gradient and suffix_of(opt.recon) != ".vti":
        raise UserError(f"{opt.recon}: --gradient needs a file that holds several arrays: .vti")
    return opt


def read_field(opt: Namespace, device: object) -> tuple[NeuralField, np.ndarray | None, ValueRange | None]:
    """The field in --compressed, and --volume where it is given, of the same shape, with its range.

    The original's blobs say nothing of the field: shape and range are the volume's. Raises UserError.
    """
    data = read_bytes(opt.compressed)
    try:
        if is_blob(data):
            header, networks = decode_blob(data)
        else:
            header, networks = None, [decode_original(data)]
    except BlobError as error:
        raise UserError(f"{opt.compressed}: {error}") from None
    if len(networks) != 1:
        raise UserError(f"{opt.compressed}: expected one network, found {len(networks)}: of a newer version")
    network, weights = networks[0]
    if header is None and not opt.volume:
        raise UserError(
            f"{opt.compressed}: a blob of the original scripts, without shape and range: give the volume with --volume"
        )
    array = values = None
    if opt.volume:
        layout = raw_layout(opt.shape, opt.dtype, opt.endian)
        volume = read_volume(opt.volume, network["d_in"], network["d_out"], opt.array, layout, header and header.fill)
        found = header_of(volume)
        array, values = volume.array, ValueRange(found.low, found.high, volume.fill)
        header = header or found
        if found.shape != header.shape:
            raise UserError(
                f"{opt.volume}: expected shape {header.shape}, as in {opt.compressed}, found {volume.array.shape}"
            )
        if [*found.low, *found.high] != [*header.low, *header.high]:
            is_within = (found.low <= header.low).all() and (header.high <= found.high).all()
            what = f"has another range than {opt.compressed}{', which may be clipped' if is_within else ''}"
            warn(f"{opt.volume}: {what}")
        if not same_missing(found.missing, header.missing):
            warn(f"{opt.volume}: other voxels are missing than in {opt.compressed}, left out in either")
    return NeuralField(header, network, weights, device, opt.num_workers), array, values


def grid_of(opt: Namespace, field: NeuralField) -> Grid:
    """The positions that --roi, --resolution and --time ask for. Raises UserError for those the field does not have."""
    try:
        return field.grid(opt.roi, opt.resolution, opt.time)
    except ValueError as error:
        flags = [f"--{name}" for name in ("roi", "resolution", "time") if getattr(opt, name) is not None]
        where = f"{' '.join(flags)}: {opt.compressed}" if flags else opt.compressed
        raise UserError(f"{where} has shape {field.shape}: {error}") from None


def is_by_step(opt: Namespace, field: NeuralField) -> bool:
    """Whether each file holds one time of a series."""
    return len(field.shape) == 4 and (isinstance(opt.time, float) or suffix_of(opt.recon) != ".npy")


def files_to_write(opt: Namespace, field: NeuralField, grid: Grid) -> dict[str, Grid]:
    """The files of values and the positions of each: a file a step, unless a single time or an array is asked for."""
    if isinstance(opt.time, float) or not is_by_step(opt, field):
        return {opt.recon: grid}
    if suffix_of(opt.recon) != ".vti":
        raise UserError(f"{opt.recon}: a time series is written as .vti or .npy; --time T writes one of its times")
    times, *space = grid.axes
    return {step_path(opt.recon, int(t)): Grid((times[k : k + 1], *space)) for k, t in enumerate(times)}


def slab_by_slab(evaluate: Callable[[Grid], np.ndarray], grid: Grid) -> LazyArray:
    """What `evaluate` gives on a grid, box by box, whenever it is asked for."""
    like = evaluate(grid.part((slice(0, 1),) * len(grid.shape)))
    return LazyArray((*grid.shape, *like.shape[len(grid.shape) :]), like.dtype, lambda box: evaluate(grid.part(box)))


def write_grids(
    opt: Namespace,
    field: NeuralField,
    grids: dict[str, Grid],
    on_values: Callable[[Grid, np.ndarray], None] | None,
    stack: contextlib.ExitStack,
) -> str:
    """Evaluate the field on the grids, all of one size, and write their files. Returns the name of the one to open.

    on_values: is told the values on each grid. stack: at whose end the files take their names, all or none.
    """
    header, times, n_done = field.header, {}, 0
    shape = next(iter(grids.values())).shape
    n_points = math.prod(shape) * len(grids)
    arrays = len(header.low) * (1 + len(field.shape) * opt.gradient)
    n_bytes = n_points * arrays * field.dtype(opt.as_float).itemsize
    check_space(opt.recon, least_bytes(opt.recon, n_bytes), f"{opt.compressed}: its volume of shape {shape}")
    is_large = math.prod(shape) * arrays > IN_MEMORY
    n_evaluations = 1 + opt.gradient + bool(is_large and on_values)  # large ones are evaluated anew to be compared
    with console.Progress("decoding") as progress:

        def counted(evaluate: Callable[..., np.ndarray], grid: Grid) -> np.ndarray:
            nonlocal n_done
            size = math.prod(grid.shape)
            result = evaluate(
                grid, on_progress=lambda done: progress.update((n_done + done * size) / n_points / n_evaluations)
            )
            n_done += size
            return result

        def write(path: str, grid: Grid) -> None:  # a function, at whose end the arrays are let go of
            evaluated = slab_by_slab if is_large else lambda evaluate, grid: evaluate(grid)
            array = evaluated(partial(counted, partial(field.on_grid, as_float=opt.as_float)), grid)
            if on_values:
                on_values(grid, array)
            extra = {}
            if opt.gradient:
                extra[f"{header.geometry.name}_gradient"] = evaluated(partial(counted, field.gradient_on_grid), grid)
            volume = Volume(array, grid.geometry(header.geometry))
            if is_by_step(opt, field):
                times[path] = volume.geometry.origin[0]
                volume = volume.at_step()
                extra = {name: in_space(gradient[0]) for name, gradient in extra.items()}
            write_volume(path, volume, extra, stack)

        for path, grid in grids.items():
            write(path, grid)
        if opt.recon in grids:
            return opt.recon
        with open(stack.enter_context(atomic_write(collection_path(opt.recon))), "wb") as file:
            file.write(collection(times))
    return collection_path(opt.recon)


def in_space(gradient: np.ndarray | LazyArray) -> np.ndarray | LazyArray:
    """A gradient without its derivative by time."""
    if isinstance(gradient, np.ndarray):
        return gradient[..., 1:]
    return LazyArray((*gradient.shape[:-1], 3), gradient.dtype, lambda box: gradient[box][..., 1:])


def write_points(opt: Namespace, field: NeuralField) -> dict[str, str]:
    """Evaluate the field at --points and write --recon. Returns what to report. Raises UserError for points outside."""
    positions = points.read_points(opt.points, len(field.shape))
    is_outside = ~field.contains(positions)
    n_outside = int(is_outside.sum())
    if n_outside and opt.outside == "error":
        first, nan = int(np.argmax(is_outside)), " or are NaN" if np.isnan(positions).any() else ""
        raise UserError(
            f"{opt.points}: {n_outside} of {len(positions)} points lie outside the volume{nan}, the first is number "
            f"{first}, {positions[first].tolist()}: --outside nan writes NaN for them"
        )
    values, gradients = field.at(positions), field.gradient_at(positions) if opt.gradient else None
    with atomic_write(opt.recon) as path:
        points.write_points(path, suffix_of(opt.recon), field.header.geometry.name, positions, values, gradients)
    counts = {"points": str(len(positions)), "outside": str(n_outside)}
    if field.header.missing:
        is_nan = np.isnan(values.reshape(len(positions), -1)).any(axis=1)
        counts["missing"] = str(np.count_nonzero(is_nan & ~is_outside))
    return counts


def compare_steps(
    original: np.ndarray, values: ValueRange, grid: Grid, array: np.ndarray | LazyArray
) -> dict[int, Metrics]:
    """The metrics of every step of a series on a grid of voxels, by its number; those of a volume are of step 0."""
    part = original[grid.as_voxel_box()]
    if len(grid.shape) < 4:
        return {0: compare(part, array, values)}
    return {int(t): compare(part[k], array[k], values) for k, t in enumerate(grid.axes[0])}


def report_metrics(steps: dict[int, Metrics], is_series: bool) -> None:
    """Print the metrics over all steps, and the PSNR of each step of a series."""
    metrics = combine_metrics(list(steps.values()))
    console.report(**metrics.report(), rmse=f"{metrics.rmse:.6g}", max_error=f"{metrics.max_error:.6g}")
    if is_series:
        console.report(**{f"psnr_t{t}": f"{step.psnr:.3f}" for t, step in steps.items()})


def preview_of(
    opt: Namespace, field: NeuralField, grid: Grid, original: np.ndarray | None, steps: dict[int, Metrics]
) -> bytes:
    """--preview of the values on the grid, half-way of a series; with the original where there are metrics."""
    step = 0
    title = f"{os.path.basename(opt.compressed)}: {field.header.geometry.name}, {' x '.join(map(str, grid.shape[-3:]))}"
    is_series = len(grid.shape) == 4
    if is_series:
        middle = grid.shape[0] // 2
        grid = grid.part((slice(middle, middle + 1), *(slice(None),) * 3))
        step = grid.axes[0][0]
        title += f", t = {step:g}"
    part = None
    if steps:
        title += f", PSNR {steps[int(step)].psnr:.2f} dB" if steps[int(step)].n_voxels else ", nothing to compare"
        part = original[grid.as_voxel_box()]
        part = part[0] if is_series else part
    return pictures.preview(field, grid, part, title, opt.as_float)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"net_decompress.py: warning: {message}", file=sys.stderr)


def write_volume_files(
    opt: Namespace, field: NeuralField, original: np.ndarray | None, values: ValueRange | None, inputs: list[str]
) -> str:
    """Evaluate what is asked for, write its files and the picture, all or none, and report the figures.

    values: the range of the original. Returns the name of the file to open.
    """
    grid = grid_of(opt, field)
    shape = grid.shape[is_by_step(opt, field) :]
    opt.recon, *beside = output_files(opt.recon, shape, field.dtype(opt.as_float), len(field.values.low))
    grids = files_to_write(opt, field, grid)
    collections = [] if opt.recon in grids else [collection_path(opt.recon)]
    check_outputs([*grids, *beside, *collections], inputs)
    metrics = {}

    def on_values(grid: Grid, array: np.ndarray | LazyArray) -> None:
        metrics.update(compare_steps(original, values, grid, array))

    is_compared = original is not None and grid.as_voxel_box() is not None
    if original is not None and not is_compared:
        flag = "--resolution" if opt.resolution else f"--time {opt.time:g}"
        warn(f"{opt.volume}: not compared: {flag} asks for other positions than its voxels")
    with contextlib.ExitStack() as stack:
        recon = write_grids(opt, field, grids, on_values if is_compared else None, stack)
        if opt.preview:
            write_files({opt.preview: preview_of(opt, field, grid, original, metrics)}, stack)
    if metrics:
        report_metrics(metrics, len(grid.shape) == 4)
    return recon


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = resolve_device(opt.cuda, opt.gid)
    inputs = [path for path in (opt.compressed, opt.points) if path] + (files_of(opt.volume) if opt.volume else [])
    check_outputs([opt.recon, *([opt.preview] if opt.preview else [])], inputs)
    if opt.preview:
        pictures.check(opt.preview)
    field, original, values = read_field(opt, device)
    started = time.monotonic()
    if opt.points:
        recon = opt.recon
        console.report(**write_points(opt, field))
    else:
        recon = write_volume_files(opt, field, original, values, inputs)
    n_values, n_bytes = math.prod(field.shape) * len(field.values.low), os.path.getsize(opt.compressed)
    ratios = file_ratios(n_values, field.values.dtype, n_bytes)
    console.report(**ratios, bytes=n_bytes, seconds=f"{time.monotonic() - started:.1f}", recon=recon)


if __name__ == "__main__":
    console.run(main)
