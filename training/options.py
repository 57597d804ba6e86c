"""The options of train.py, and the network and the recipe that they ask for."""

from __future__ import annotations

import dataclasses
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from functools import partial

from cli.arguments import (
    CONFIG,
    NETWORK,
    ArgumentGroup,
    ArgumentParser,
    Options,
    add_volume_arguments,
    fill_text,
    integer_from,
    interval,
    number_from,
    voxel_counts,
)
from field.binary import BlobError
from field.bricks import check_counts, held_shape
from field.network_chunk import check_network
from siren import SirenConfig, count_parameters
from training.bricks import BrickedFit
from training.cutting import count_held, counts_for, passes_for
from training.mirrors import find_mirrors
from training.recipe import BATCH, Recipe, default_recipe
from training.shapes import networks_for_budget
from utils import UserError, Volume, VolumeHeader


def build_parser() -> ArgumentParser:
    """The argument parser of train.py."""
    parser = ArgumentParser(
        "Fit a network to a volume: writes its weights (thenet.pth) and its configuration (thenet.json).",
        "python train.py --volume volumes/test_vol.npy",
        "python train.py --volume 'run/*.vti' --array pressure --compression_ratio 200 --n_layers 4",
    )
    add_input_and_output(parser.add_argument_group("input and output"))
    add_network(parser.add_argument_group("network"))
    add_optimisation(parser.add_argument_group("optimisation"))
    group = parser.add_argument_group("long runs")
    group.add_argument("--checkpoint", help="file to write the state of the run to, every minute")
    group.add_argument(
        "--resume", action="store_true", default=False, help="continue from --checkpoint, to the same result"
    )
    parser.add_device_arguments()
    add_research(parser.add_argument_group("research: the form of the network, the optimiser"))
    return parser


def add_input_and_output(group: ArgumentGroup) -> None:
    """Add the options for the volume, for how to read it, and for the files to write."""
    group.add_argument(
        "--volume",
        required=True,
        help="volume to fit: .npy .npz .raw .vti .vtr .vtk .vtkhdf .mhd .mha .nrrd .nhdr .nii .nii.gz .tif .nc .h5 "
        ".zarr, or a folder of DICOM slices; axis 0 is x. Of a time series an array [t, x, y, z], or the files of its "
        "steps as a quoted pattern, 'run/*.vti', which are taken in natural order",
    )
    add_volume_arguments(group)
    group.add_argument(
        "--fill",
        type=fill_text,
        metavar="VALUE",
        help="the value of missing voxels, a number (after NIfTI's and DICOM's scaling) or nan: they are left out and "
        "come back as they are; none: no value is one, also where one looks so",
    )
    group.add_argument(
        "--clip",
        type=interval,
        metavar="LO,HI",
        help="clip the values, of every component, to this interval first, where a few outliers would ruin their range",
    )
    group.add_argument("--network", default=NETWORK, help="file to write the weights to")
    group.add_argument("--config", default=CONFIG, help="file to write the configuration to")
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
        help="picture to write too: the PSNR over the seconds of training; after --resume from there on",
    )


def add_network(group: ArgumentGroup) -> None:
    """Add the options for the size and the form of the network."""
    group.add_argument(
        "--compression_ratio", type=number_from(0, exclusive=True), default=50.0, help="voxels / network parameters"
    )
    group.add_argument(
        "--bricks",
        type=brick_counts,
        default="auto",
        metavar="NX,NY,NZ",
        help="cut the volume into so many boxes, each with a network of its own; none: one network, which the original "
        "scripts can read; auto: bricks where one network would take more than some five minutes",
    )
    group.add_argument(
        "--n_layers",
        type=integer_from(1, 255),
        help="sine layers (default: the best of 3, 5 and 8 in brief trials; 5 where a fit is too short for trials)",
    )
    group.add_argument(
        "--d_in",
        type=integer_from(1, 4),
        help="number of grid axes of the volume, 4 for a time series (default: 4 for a pattern, and for a .npy array "
        "of 4 axes besides its components; else 3; needed where the last of 4 axes is of 2 to 4)",
    )
    group.add_argument(
        "--d_out",
        type=integer_from(1, 255),
        help="values per voxel: length of the last axis when above 1 (default: those of the array in a .vti file, or "
        "the length of the axis after those of --d_in)",
    )


def brick_counts(text: str) -> str | tuple[int, ...]:
    """An argparse type: none, auto, or the number of bricks along each axis of space."""
    if text in ("none", "auto"):
        return text
    try:
        return voxel_counts(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"expected none, auto or numbers of bricks NX,NY,NZ, found {text!r}") from None


def add_optimisation(group: ArgumentGroup) -> None:
    """Add the options for the recipe and the length of the training."""
    group.add_argument(
        "--n_passes",
        type=number_from(0, 1e6, exclusive=True),
        help="samples / voxels (default: 32.8 million / voxels, 5 to 45, or 1,500 steps if more; in bricks 8 or more; "
        "with --cuda 64 (2.1 million / voxels)^0.56, at least 5, or 5,760 steps if more)",
    )
    group.add_argument(
        "--seed", type=integer_from(0, 2**63 - 1), default=0, help="of the weights and the order of samples"
    )
    group.add_argument(
        "--target_psnr",
        type=number_from(0, exclusive=True),
        help="end once the volume, clipped as by --clip, has this PSNR, in dB",
    )
    group.add_argument(
        "--max_seconds", type=number_from(0, exclusive=True), help="train for this time, in place of --n_passes"
    )


def add_research(group: ArgumentGroup) -> None:
    """Add the options of experiments with the network and its training; few volumes need them."""
    group.add_argument(
        "--w0",
        type=number_from(0, 1e6, exclusive=True),
        help="frequency of a first layer that starts at random, as the original's with 30 "
        "(default: it starts as waves along the axes)",
    )
    group.add_argument(
        "--is-residual", dest="is_residual", action="store_true", default=True, help="residual blocks (default)"
    )
    group.add_argument("--not-residual", dest="is_residual", action="store_false", help="plain sine layers")
    group.add_argument("--batchSize", type=integer_from(1, 1 << 30), default=1024, help="batches of samples a step")
    group.add_argument(
        "--oversample",
        type=integer_from(1, 1 << 30),
        help="samples in each of those batches (default: 2; 1 with --max_seconds or few --n_passes; with --cuda 16, "
        "fewer with few --n_passes)",
    )
    group.add_argument("--optimizer", choices=("muon", "adam"), default="muon", help="the original has adam")
    group.add_argument(
        "--lr",
        type=number_from(0, 1e6, exclusive=True),
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
        type=number_from(0, exclusive=True),
        help="passes between the steps of --schedule step (default: 20)",
    )
    group.add_argument(
        "--lr_decay",
        type=number_from(0, 1, exclusive=True),
        help="factor of each step of --schedule step (default: 0.2)",
    )
    group.add_argument(
        "--grad_lambda",
        type=number_from(0, 1e6),
        default=0.0,
        help="weight of the error of the gradient, in normalised coordinates; 0 leaves the term out",
    )


def parse(argv: Sequence[str]) -> Options:
    """The options, checked together, with the schedule filled in. Raises UserError for options that conflict."""
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
    return Options(**vars(opt))


MUST_MATCH = (  # in the run that continues a checkpoint
    *("fill", "clip", "compression_ratio", "bricks", "n_layers", "is_residual", "d_in", "d_out", "w0", "seed"),
    *("optimizer", "schedule", "pass_decay", "lr_decay", "n_passes", "max_seconds", "batchSize", "oversample"),
    *("lr", "grad_lambda"),
)


def settled(opt: Options, recipe: Recipe, config: SirenConfig) -> dict[str, object]:
    """All options by the names of their flags, with what was left open as it was chosen."""
    chosen = {"n_passes": recipe.n_passes, "oversample": recipe.batch // opt.batchSize, "lr": recipe.lr}
    return vars(opt) | chosen | {"d_in": config.d_in, "d_out": config.d_out}


def network_fields(opt: Options, header: VolumeHeader) -> dict[str, object]:
    """The fields of SirenConfig that the options and the volume settle, whatever the size of the network."""
    return {"d_in": len(header.shape), "d_out": header.n_components, "is_residual": opt.is_residual}


def networks_for(opt: Options, header: VolumeHeader) -> list[SirenConfig]:
    """The networks that compete to be the one that the options ask for. Raises UserError if a blob cannot hold one."""
    fields = network_fields(opt, header)
    configs = networks_for_budget(header.n_voxels // opt.compression_ratio, opt.n_layers, **fields)
    try:
        for config in configs:
            check_network(dataclasses.asdict(config))
    except BlobError as error:
        raise UserError(f"--compression_ratio {opt.compression_ratio:g} gives a network with {error}") from None
    return configs


def bricks_for(opt: Options, volume: Volume, header: VolumeHeader) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The number of bricks along each axis that the options ask for, and the mirrors between which they lie.

    Mirrors: see field.bricks.Cut. A volume that is not cut needs none. Raises UserError for impossible bricks.
    """
    is_auto = opt.bricks == "auto"
    automatic = partial(
        counts_for,
        n_parameters=header.n_voxels / opt.compression_ratio,
        passes=opt.n_passes,
        device="cuda" if opt.cuda else "cpu",
    )
    if opt.bricks == "none" or not header.values.extent.any():
        return (1,) * len(header.shape), ()
    counts = automatic(header.shape) if is_auto else _given_counts(opt, header.shape)
    mirrors = find_mirrors(volume, header) if math.prod(counts) > 1 else ()
    if mirrors:
        shape = held_shape(header.shape, mirrors)
        most = (max(n - 1, 1) for n in shape)
        counts = automatic(shape) if is_auto else tuple(map(min, counts, most))
    try:
        check_counts(counts, header.shape, mirrors)
    except BlobError as error:
        way_out = "a larger --compression_ratio gives fewer" if is_auto else "expected fewer --bricks"
        raise UserError(f"{opt.volume}: {error}: {way_out}") from None
    return counts, mirrors


def _given_counts(opt: Options, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The bricks along each axis that --bricks asks for. Raises UserError for impossible ones."""
    n_space = min(len(shape), 3)
    counts = (1,) * (len(shape) - n_space) + opt.bricks
    if len(counts) != len(shape) or any(count > max(n - 1, 1) for count, n in zip(counts, shape, strict=True)):
        most = ",".join(str(max(n - 1, 1)) for n in shape[-n_space:])
        expected = f"{n_space} numbers of bricks along the axes of space, {most} at most"
        raise UserError(f"--bricks {','.join(map(str, opt.bricks))}: {opt.volume}: expected {expected}")
    return counts


def brick_recipes(
    opt: Options, header: VolumeHeader, counts: tuple[int, ...], mirrors: tuple[int, ...]
) -> Callable[[int, SirenConfig], Recipe]:
    """What gives the recipe of a brick for its voxels and its network. counts, mirrors: of `bricks_for`."""
    is_open, device = opt.n_passes is None and opt.max_seconds is None, "cuda" if opt.cuda else "cpu"
    n_voxels, n_parameters = count_held(header, mirrors), header.n_voxels / opt.compression_ratio
    default = passes_for(n_voxels, n_parameters, math.prod(counts), device, header.n_present / n_voxels)
    passes = default if is_open else opt.n_passes
    return partial(recipe_for, Options(**vars(opt) | {"n_passes": passes}))


def brick_messages(ratio: float, header: VolumeHeader, fit: BrickedFit) -> list[str]:
    """As `size_messages`, of the networks of bricks."""
    least, found = fit.least_parameters, []
    if least > header.n_voxels / ratio:
        smallest = f"the smallest networks of {len(fit.survey.low)} bricks have"
        or_layers = ", or fewer --n_layers," if fit.fields.get("n_layers", 1) > 1 else ""
        way_out = f": fewer --bricks{or_layers} give a higher one"
        found.append(_out_of_reach(ratio, header, smallest, least, way_out))
    elif fit.n_trained and fit.budget < header.n_voxels / ratio:
        largest, way_out = "bricks of this volume have at most", ": --bricks none gives a lower one"
        found.append(_out_of_reach(ratio, header, largest, int(fit.budget), way_out))
    return found + _larger_than_data(header, least, "networks", "are")


def size_messages(ratio: float, header: VolumeHeader, config: SirenConfig) -> list[str]:
    """What the user should know of the network's size: that it misses the ratio, that it is larger than the data.

    ratio: the wanted number of voxels for each parameter.
    """
    n_voxels, n_parameters, found = header.n_voxels, count_parameters(config), []
    if n_parameters > max(n_voxels / ratio, 1):
        sizes = {n: count_parameters(dataclasses.replace(config, n_layers=n)) for n in range(1, config.n_layers)}
        fitting = max((n for n, size in sizes.items() if size <= n_voxels / ratio), default=1)
        way_out = f": --n_layers {fitting} gives {_ratio(n_voxels / sizes[fitting])}" if sizes else ""
        smallest = f"the smallest network of {config.n_layers} layer{'s' * (config.n_layers > 1)} has"
        found.append(_out_of_reach(ratio, header, smallest, n_parameters, way_out))
    return found + _larger_than_data(header, n_parameters, "network", "is")


def _out_of_reach(ratio: float, header: VolumeHeader, smallest: str, n_parameters: int, way_out: str) -> str:
    reached = f"{smallest} {n_parameters} parameters, a ratio of {_ratio(header.n_voxels / n_parameters)}"
    return f"--compression_ratio {ratio:g} is out of reach: {reached}{way_out}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _larger_than_data(header: VolumeHeader, n_parameters: int, networks: str, verb: str) -> list[str]:
    n_values = header.n_voxels * header.n_components
    what = f"the {networks}, of {n_parameters} parameters, {verb} larger than the data, of {n_values} values"
    return [what] if n_parameters > n_values else []


def recipe_for(opt: Options, n_voxels: int, config: SirenConfig) -> Recipe:
    """The recipe that the options ask for; the volume and the network determine the settings left open."""
    default = default_recipe(n_voxels, config, opt.optimizer, opt.n_passes, opt.max_seconds, opt.cuda)
    batch = opt.batchSize * (opt.oversample or 2 * default.batch // BATCH)
    given = {"lr": opt.lr, "pass_decay": opt.pass_decay, "lr_decay": opt.lr_decay}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(default, batch=batch, schedule=opt.schedule, grad_lambda=opt.grad_lambda, **given)
