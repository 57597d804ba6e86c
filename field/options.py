"""The options of net_decompress.py."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cli import arguments
from formats import points
from formats.common import suffix_of
from formats.writing import SUFFIXES, output_path
from utils import UserError

RECON = "recon"  # the name of the output by default, without its suffix
WITHOUT_INFO = ("recon", "volume", "preview", "points", "roi", "time", "resolution", "gradient")


def build_parser() -> arguments.ArgumentParser:
    """The argument parser of net_decompress.py."""
    parser = arguments.ArgumentParser(
        "Evaluate a blob back into a volume, or a part of it, in its original units, spacing and origin.",
        "python net_decompress.py compressed_out --recon back.nii.gz",
        "python net_decompress.py compressed_out --roi 0:32,:,: --resolution 64,128,112 --recon fine.vti",
    )
    add_input_and_output(parser.add_argument_group("input and output"))
    add_what_to_evaluate(parser.add_argument_group("what to evaluate"))
    parser.add_device_arguments()
    return parser


def add_input_and_output(group: arguments.ArgumentGroup) -> None:
    """Add the options for the blob, for the volume to compare with, and for the files to write."""
    arguments.add_blob_arguments(group, "blob that net_compress.py wrote")
    group.add_argument(
        "--large",
        action="store_true",
        help="read a blob of more than 2^24 weights, or of more than 2^30 voxels with missing ones; it can take "
        "gigabytes of memory",
    )
    group.add_argument("--info", action="store_true", help="only print what the blob holds")
    group.add_argument(
        "--recon",
        default=RECON,
        metavar="FILE",
        help=f"file to write: {', '.join(SUFFIXES)}; without a suffix .vti; with --points .npy or .csv. A .raw file "
        "gets shape and type in its name: recon_80x64x56_float32.raw. A time series is a .vti file a step and "
        "recon.pvd, which ParaView plays, or one .npy, .nii, .nii.gz, .nc, .h5 or .zarr array",
    )
    group.add_argument(
        "--volume", help="the original volume, to compare with; needed for a blob of the original scripts"
    )
    arguments.add_volume_arguments(group)
    group.add_argument(
        "--preview",
        metavar="FILE.png",
        help="also draw what is evaluated: slices through the middle and a rendering; with --volume also of the "
        "original and of the error; of a time series the step half-way",
    )
    group.add_argument("--float", dest="as_float", action="store_true", help="leave integers unrounded, as floats")


def add_what_to_evaluate(group: arguments.ArgumentGroup) -> None:
    """Add the options that choose the part of the field and the positions."""
    group.add_argument(
        "--roi",
        type=arguments.roi,
        metavar="X0:X1,Y0:Y1,Z0:Z1",
        help="only this box of voxels, half-open as in Python; an empty end is the volume's own; one index is a slice",
    )
    group.add_argument(
        "--time",
        type=arguments.time_or_steps,
        metavar="T | A:B",
        help="only this time of a series, in steps from 0 (2.5 lies between two), or the steps A to B - 1",
    )
    group.add_argument(
        "--resolution",
        type=arguments.voxel_counts,
        metavar="NX,NY,NZ",
        help="points along each axis, from the first voxel to the last of the volume or of --roi; 1 is its middle",
    )
    group.add_argument(
        "--gradient",
        action="store_true",
        help="add the exact gradient, in units of value per unit of length (to .vti, or with --points; there also the "
        "derivative by time)",
    )
    group.add_argument(
        "--points",
        metavar="FILE",
        help="only these positions, in the units of spacing and origin: .npy of shape (n, axes), or .csv of the "
        "columns x,y,z, or t,x,y,z of a time series, in another order if the first line names them",
    )
    group.add_argument(
        "--outside",
        choices=("error", "nan"),
        default="error",
        help="what a position of --points outside the volume gives: an error, or NaN",
    )


def parse(argv: Sequence[str]) -> arguments.Options:
    """The options, checked together, with the final name of the output. Raises UserError.

    is_named: whether this name is another one than the default.
    """
    parser = build_parser()
    opt = parser.parse_args(argv)
    arguments.check_volume_arguments(opt)
    arguments.settle_blob(opt)
    for name in WITHOUT_INFO if opt.info else ():
        if getattr(opt, name) != parser.get_default(name):
            raise UserError(f"--info and --{name}: give one of them: --info only prints what the blob holds")
    if os.path.basename(opt.recon) in ("", ".", ".."):  # a folder: with a suffix it would be a hidden file
        raise UserError(f"--recon: expected the name of a file to write, found {opt.recon!r}")
    if opt.points:
        for name in ("roi", "time", "resolution", "preview"):
            if getattr(opt, name) is not None:
                raise UserError(f"--points and --{name}: give one of them")
        opt.recon = points.points_path(opt.recon, opt.points)
        return arguments.Options(**vars(opt))
    if opt.outside != "error":
        raise UserError("--outside belongs to --points")
    is_named, opt.recon = opt.recon != RECON, output_path(opt.recon)
    if opt.gradient and suffix_of(opt.recon) != ".vti":
        raise UserError(f"{opt.recon}: --gradient needs a file that holds several arrays: .vti")
    return arguments.Options(**vars(opt), is_named=is_named)
