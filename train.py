"""Fit a network to a volume: writes its weights (thenet.pth) and its configuration (thenet.json)."""

from __future__ import annotations

from cli import console  # first: answers Ctrl-C while the others load

# isort: split
import dataclasses
import math
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence

import numpy as np

from cli.arguments import (
    ArgumentParser,
    add_volume_arguments,
    fill_text,
    interval,
    number,
    resolve_device,
    to_number,
    whole,
)
from cli.files import check_outputs
from field import pictures
from field.blob import BlobError, check_network
from field.metrics import Metrics, combine_metrics, compare, measured_boxes
from field.neural_field import NeuralField
from formats.arrays import LazyArray
from formats.common import RawLayout, raw_layout
from formats.reading import read_volume
from formats.series import files_of
from formats.writing import write_volume
from siren import SirenConfig, count_parameters, neurons_for_budget
from training import fitting, long_runs, outliers, processes
from training.fitting import Recipe
from training.network_files import configuration, write_network
from training.streaming import make_sampler
from utils import Box, UserError, ValueRange, Volume, count_lost, header_of

LONG_SECONDS = 30.0  # an interrupted run that took longer leaves the network so far


def build_parser() -> ArgumentParser:
    """The command line of this script."""
    parser = ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--volume",
        required=True,
        help="volume to fit: .npy .raw .vti .vtk .vtkhdf .mhd .mha .nrrd .nhdr .nii .nii.gz .tif, or a folder of DICOM "
        "slices; axis 0 is x. Of a time series an array [t, x, y, z], or the files of its steps as a quoted pattern, "
        "'run/*.vti', which are taken in natural order",
    )
    add_volume_arguments(group)
    group.add_argument(
        "--fill",
        type=fill_text,
        metavar="VALUE",
        help="the value of missing voxels, a number (after NIfTI's and DICOM's scaling) or nan: they are left out and "
        "come back as they are",
    )
    group.add_argument(
        "--clip",
        type=interval,
        metavar="LO,HI",
        help="clip the values, of every component, to this interval first, where a few outliers would ruin their range",
    )
    group.add_argument("--network", default="thenet.pth", help="file to write the weights to")
    group.add_argument("--config", default="thenet.json", help="file to write the configuration to")
    group.add_argument(
        "--enable-vol-debug",
        dest="vol_debug",
        action="store_true",
        default=False,
        help="write the volume and the network's version of it, gt.vti and vol.vti, beside the network",
    )
    group.add_argument("--disable-vol-debug", dest="vol_debug", action="store_false", help="do not (default)")
    group.add_argument(
        "--plot",
        metavar="FILE.png",
        help="picture to write too: the PSNR over seconds and over passes; after --resume from there on",
    )

    group = parser.add_argument_group("network")
    group.add_argument(
        "--compression_ratio", type=number(0, exclusive=True), default=50.0, help="voxels / network parameters"
    )
    group.add_argument("--n_layers", type=whole(1, 255), default=8, help="sine layers")
    group.add_argument(
        "--w0",
        type=number(0, 1e6, exclusive=True),
        help="frequency of a first layer that starts at random, as the original's with 30 "
        "(default: it starts as waves along the axes)",
    )
    group.add_argument(
        "--is-residual", dest="is_residual", action="store_true", default=True, help="residual blocks (default)"
    )
    group.add_argument("--not-residual", dest="is_residual", action="store_false", help="plain sine layers")
    group.add_argument(
        "--d_in",
        type=whole(1, 4),
        help="number of grid axes of the volume, 4 for a time series (default: 4 for a pattern, and for a .npy array "
        "of 4 axes besides its components; else 3; needed where the last of 4 axes is of 2 to 4)",
    )
    group.add_argument(
        "--d_out",
        type=whole(1, 255),
        help="values per voxel: length of the last axis when above 1 (default: those of the array in a .vti file, or "
        "the length of the axis after those of --d_in)",
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--n_passes",
        type=number(0, 1e6, exclusive=True),
        help="samples / voxels (default: 32.8 million / voxels, 5 to 45, or 1,500 steps if more)",
    )
    group.add_argument("--batchSize", type=whole(1, 1 << 30), default=1024, help="batches of samples a step")
    group.add_argument(
        "--oversample",
        type=whole(1, 1 << 30),
        help="samples in each of those batches (default: 2; 1 with --max_seconds or few --n_passes)",
    )
    group.add_argument("--optimizer", choices=("muon", "adam"), default="muon", help="the original has adam")
    group.add_argument(
        "--lr",
        type=number(0, 1e6, exclusive=True),
        help="learning rate at its highest (default: 0.4 / (width x layers), of 2 layers at least; with adam half)",
    )
    group.add_argument(
        "--schedule",
        choices=("power", "step"),
        help="how the learning rate falls: as (1 - progress)^2, or in steps as in the original, which also sees every "
        "voxel once a pass, not more often where the error is large, and counts errors beyond the range "
        "(default: power; step when --pass_decay or --lr_decay is given)",
    )
    group.add_argument(
        "--pass_decay",
        type=number(0, exclusive=True),
        help="passes between the steps of --schedule step (default: 20)",
    )
    group.add_argument(
        "--lr_decay",
        type=number(0, 1, exclusive=True),
        help="factor of each step of --schedule step (default: 0.2)",
    )
    group.add_argument(
        "--grad_lambda",
        type=number(0, 1e6),
        default=0.0,
        help="weight of the error of the gradient, in normalised coordinates; 0 leaves the term out",
    )
    group.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of the weights and the order of samples")
    group.add_argument(
        "--target_psnr",
        type=number(0, exclusive=True),
        help="end once the volume, clipped as by --clip, has this PSNR, in dB",
    )
    group.add_argument(
        "--max_seconds", type=number(0, exclusive=True), help="train for this time, in place of --n_passes"
    )
    group = parser.add_argument_group("long runs")
    group.add_argument("--checkpoint", help="file to write the state of the run to, every minute")
    group.add_argument(
        "--resume", action="store_true", default=False, help="continue from --checkpoint, to the same result"
    )
    parser.add_device_arguments()
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    """The options, the schedule settled."""
    opt = build_parser().parse_args(argv)
    has_step_flags = opt.pass_decay is not None or opt.lr_decay is not None
    if has_step_flags and opt.schedule == "power":
        raise UserError("--pass_decay and --lr_decay belong to --schedule step")
    if opt.max_seconds is not None and opt.n_passes is not None:
        raise UserError("give --n_passes or --max_seconds, not both")
    if opt.resume and opt.checkpoint is None:
        raise UserError("--resume needs the --checkpoint to continue from")
    opt.schedule = opt.schedule or ("step" if has_step_flags else "power")
    if opt.schedule == "step":
        opt.pass_decay = 20.0 if opt.pass_decay is None else opt.pass_decay
        opt.lr_decay = 0.2 if opt.lr_decay is None else opt.lr_decay
    return opt


def settle_recipe(opt: Namespace, n_voxels: int, config: SirenConfig) -> Recipe:
    """The recipe that the options ask for; what they leave open is settled, in `opt` too, by what is known by now."""
    default = fitting.default_recipe(n_voxels, config, opt.optimizer, opt.n_passes, opt.max_seconds)
    opt.n_passes = default.n_passes
    opt.oversample = opt.oversample or 2 * default.batch // fitting.BATCH
    opt.lr = default.lr if opt.lr is None else opt.lr
    settings = {f.name: getattr(opt, f.name) for f in dataclasses.fields(Recipe) if f.name != "batch"}
    settings = {name: value for name, value in settings.items() if value is not None}
    return Recipe(batch=opt.batchSize * opt.oversample, **settings)


def output_paths(opt: Namespace) -> tuple[tuple[str, str], tuple[str, str], list[str]]:
    """Files of the network, of an interrupted one, and of the volumes that --enable-vol-debug asks for."""
    stem = os.path.splitext(opt.network)[0]
    folder = os.path.dirname(opt.network)
    debug = [os.path.join(folder, name) for name in ("gt.vti", "vol.vti")] if opt.vol_debug else []
    return (opt.network, opt.config), (f"{stem}.interrupted.pth", f"{stem}.interrupted.json"), debug


def write_debug_volumes(paths: list[str], volume: Volume, decoded: LazyArray) -> None:
    """The original and the network's version of it."""
    for path, array in zip(paths, (volume.array, decoded), strict=True):
        write_volume(path, dataclasses.replace(volume, array=array))


def read_axes(opt: Namespace, layout: RawLayout | None) -> Volume:
    """The volume; how many axes and components it has is settled in `opt`. Raises UserError."""
    fill = None if opt.fill is None else to_number(opt.fill)
    volume = read_volume(opt.volume, opt.d_in, opt.d_out, opt.array, layout, fill)
    d_in, shape = volume.geometry.d_in, volume.array.shape
    if d_in == 4 and opt.vol_debug:
        raise UserError(f"--enable-vol-debug: {opt.volume}: is a time series, expected a single volume")
    if d_in == 4 and opt.d_in is None:
        sizes = " x ".join(map(str, shape[1:4]))
        print(f"train.py: {opt.volume}: a time series: {shape[0]} steps of {sizes} voxels", file=sys.stderr)
    opt.d_in, opt.d_out = d_in, shape[-1] if len(shape) > d_in else 1
    return volume


def settle_range(opt: Namespace, original: np.ndarray, values: ValueRange) -> ValueRange:
    """The range that --clip leaves of `values`; without it a warning where it would help. Raises UserError."""
    if opt.clip is None:
        message = outliers.warning(original, values)
        if message:
            warn(f"{opt.volume}: {message}")
        return values
    try:
        return values.clipped(*opt.clip)
    except ValueError as error:
        raise UserError(f"--clip {opt.clip[0]},{opt.clip[1]}: {opt.volume}: {error}") from None


def clip_report(opt: Namespace, original: np.ndarray, values: ValueRange, metrics: Metrics) -> dict[str, str | int]:
    """With --clip the lines psnr_clipped, of the clipped values over their range, and clipped, how many those are."""
    if opt.clip is None:
        return {}
    return {
        "psnr_clipped": f"{metrics.psnr:.3f}",
        "clipped": outliers.count_beyond(original, values.low, values.high, values.fill),
    }


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"train.py: warning: {message}", file=sys.stderr)


@processes.joined()
def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    layout = raw_layout(opt.shape, opt.dtype, opt.endian)
    device = resolve_device(opt.cuda, opt.gid + processes.on_this_machine())
    finished, interrupted, debug = output_paths(opt)
    further = [path for path in (opt.checkpoint, opt.plot) if path]
    check_outputs([*finished, *interrupted, *debug, *further], inputs=files_of(opt.volume))
    if opt.plot:
        pictures.check(opt.plot)

    volume = read_axes(opt, layout)
    header = header_of(volume)
    if opt.fill and header.missing is None:
        warn(f"--fill {opt.fill}: no voxel of {opt.volume} has this value")
    original = volume.values
    if header.missing and opt.d_out > 1 and (n_lost := count_lost(original, volume.fill)):
        warn(f"--fill {opt.fill}: {n_lost} values are left out as another component of their voxel is missing")
    whole = header.values
    values = settle_range(opt, original, whole)
    header = dataclasses.replace(header, low=values.low, high=values.high)
    n_voxels = original.size // opt.d_out
    architecture = {"n_layers": opt.n_layers, "d_in": opt.d_in, "d_out": opt.d_out, "is_residual": opt.is_residual}
    config = SirenConfig(neurons_for_budget(n_voxels // opt.compression_ratio, **architecture), **architecture)
    try:
        check_network(dataclasses.asdict(config))
    except BlobError as error:
        raise UserError(f"--compression_ratio {opt.compression_ratio:g} gives a network with {error}") from None
    sampler = make_sampler(original, values, device, opt.grad_lambda > 0)
    recipe = settle_recipe(opt, sampler.n_voxels, config)

    fit = fitting.new_fit(config, sampler, recipe, opt.seed, opt.w0, opt.num_workers)
    if opt.resume:
        long_runs.load_checkpoint(opt, fit)

    def decoded() -> NeuralField:
        return NeuralField.of(fit.average, header, device, opt.num_workers)

    measured = processes.turns(measured_boxes(original))

    def measure(values: ValueRange, chosen: Iterable[Box] = measured, as_float: bool = False) -> Metrics:
        return combine_metrics(
            processes.gathered(compare(volume.array, decoded().lazy(as_float=as_float), values, chosen))
        )

    def settings(quality: dict[str, float]) -> dict:
        return configuration(opt, header, whole, config, fit.average, quality, fit.seconds)

    history = []
    try:
        if values.extent.any():  # a constant volume needs no fit: its range says it all
            history = long_runs.run_to_target(fit, opt, lambda: measure(values).psnr)
        with console.Progress("measuring") as progress:
            metrics = clipped = measure(whole, progress.each(measured))
            quality = {"psnr": metrics.psnr}
            if opt.clip:
                clipped = measure(values, progress.each(measured))
                quality["psnr_clipped"] = clipped.psnr
            if values.dtype.kind in "iu":
                quality["psnr_unrounded"] = measure(values, progress.each(measured), as_float=True).psnr
                quality["is_exact"] = clipped.psnr == math.inf
        if not processes.is_first():
            return
    except KeyboardInterrupt:
        if fit.seconds < LONG_SECONDS or not processes.is_first():
            raise
        write_network(interrupted, fit.average, settings({"psnr": math.nan}))
        raise KeyboardInterrupt(f"the network so far, {fit.progress:.0%} trained, is in {interrupted[0]}") from None

    if debug:
        write_debug_volumes(debug, volume, decoded().lazy())
    write_network(finished, fit.average, settings(quality))
    if opt.plot:
        pictures.plot(opt.plot, history, (fit.seconds, fit.step / fit.steps_per_pass, metrics.psnr))

    n_parameters = count_parameters(config)
    constant = fitting.psnr_of(sampler.variance)
    if values.extent.any() and not clipped.psnr >= constant + 1:  # NaN neither
        warn(
            f"the network has {clipped.psnr:.1f} dB, where a constant volume would have {constant:.1f} dB: "
            "more --n_passes or a lower --compression_ratio may help"
        )
    if opt.target_psnr and clipped.psnr < opt.target_psnr:
        warn(f"the network has {clipped.psnr:.1f} dB: more --n_passes or a lower --compression_ratio may give more")
    console.report(
        **metrics.report(sampler.n_voxels),
        **clip_report(opt, original, values, clipped),
        parameters=n_parameters,
        compression_ratio=f"{n_voxels / n_parameters:.2f}",
        **({"missing": header.missing.count} if header.missing else {}),
        seconds=f"{fit.seconds:.1f}",
        network=opt.network,
        config=opt.config,
    )
    files = shlex.join(["--net", opt.network, "--config", opt.config, "--compressed", "compressed_out"])
    print("next: python net_compress.py", files)


if __name__ == "__main__":
    console.run(main)
