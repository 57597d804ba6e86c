"""The flags of train.py."""

from __future__ import annotations

from collections.abc import Sequence

from cli.arguments import (
    CONFIG,
    NETWORK,
    ArgumentGroup,
    ArgumentParser,
    Options,
    add_volume_arguments,
    expecting,
    fill_text,
    integer_from,
    interval,
    number_from,
    voxel_counts,
)
from utils import UserError


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
    group.add_argument("--checkpoint", metavar="FILE", help="file to write the state of the run to, every minute")
    group.add_argument("--resume", action="store_true", help="continue from --checkpoint, to the same result")
    parser.add_device_arguments()
    add_research(parser.add_argument_group("research: the form of the network, the optimiser"))
    return parser


def add_input_and_output(group: ArgumentGroup) -> None:
    """Add the options for the volume, for how to read it, and for the files to write."""
    group.add_argument(
        "--volume",
        required=True,
        help="volume to fit, in a format of docs/volume-files.md: .npy, .raw, .vti, .nii, .tif, .nc, .h5, .zarr, a "
        "folder of DICOM slices, ...; axis 0 is x. A time series is an array [t, x, y, z], or one file a step by a "
        "quoted pattern, 'run/*.vti', or a list, run.pvd",
    )
    add_volume_arguments(group)
    group.add_argument(
        "--fill",
        type=fill_text,
        metavar="VALUE",
        help="value of missing voxels, a number (after NIfTI's and DICOM's scaling) or nan; none: no voxel is missing "
        "(default: as the file says)",
    )
    group.add_argument(
        "--clip",
        type=interval,
        metavar="LO,HI",
        help="clip values to this interval, where a few outliers would ruin the range",
    )
    group.add_argument("--network", default=NETWORK, metavar="FILE", help="file to write the weights to")
    group.add_argument("--config", default=CONFIG, metavar="FILE", help="file to write the configuration to")
    group.add_argument(
        "--enable-vol-debug",
        dest="vol_debug",
        action="store_true",
        help="also write the volume, gt.vti, and what the network makes of it, vol.vti, beside the network",
    )
    group.add_argument("--disable-vol-debug", dest="vol_debug", action="store_false", help="do not (default)")
    group.add_argument(
        "--plot",
        metavar="FILE.png",
        help="also draw the PSNR over the seconds of training; with --resume only from there on",
    )


def add_network(group: ArgumentGroup) -> None:
    """Add the options for the size and the form of the network."""
    group.add_argument(
        "--compression_ratio",
        type=number_from(0, exclusive=True),
        default=50.0,
        metavar="R",
        help="voxels / network parameters",
    )
    group.add_argument(
        "--bricks",
        type=brick_counts,
        default="auto",
        metavar="auto|none|NX,NY,NZ",
        help="boxes along each axis, each with a network of its own; none: one network, which the original scripts can "
        "read; auto: bricks where one network would take more than about five minutes",
    )
    group.add_argument(
        "--n_layers",
        type=integer_from(1, 255),
        metavar="N",
        help="sine layers (default: the best of 3, 5 and 8, or fewer, in brief trials; 5 where a fit is short)",
    )
    group.add_argument(
        "--d_in",
        type=integer_from(1, 4),
        metavar="N",
        help="axes of the volume: 2 of an image, 3, or 4 of a time series (default: 4 or 3, as the file says; needed "
        "for a .npy array of 4 axes, the last of length 2, 3, 4, 6 or 9)",
    )
    group.add_argument(
        "--d_out",
        type=integer_from(1, 255),
        metavar="C",
        help="values per voxel, in the last axis when above 1 (default: as the file says; of .npy the length of the "
        "axis after those of --d_in)",
    )


def brick_counts(text: str) -> str | tuple[int, ...]:
    """An argparse type: none, auto, or the number of bricks along each axis of space."""
    with expecting("none, auto or numbers of bricks NX,NY,NZ", text):
        return text if text in ("none", "auto") else voxel_counts(text)


def add_optimisation(group: ArgumentGroup) -> None:
    """Add the options for the recipe and the length of the training."""
    group.add_argument(
        "--n_passes",
        type=number_from(0, 1e6, exclusive=True),
        metavar="N",
        help="passes: samples / voxels (default: 32.8 million / voxels, from 5 to 45, or more for 1,500 steps; in "
        "bricks 8 or more, see docs/large-volumes.md; with --cuda others, see docs/training.md)",
    )
    group.add_argument(
        "--seed",
        type=integer_from(0, 2**63 - 1),
        default=0,
        help="seed of the weights and of the order of samples",
    )
    group.add_argument(
        "--target_psnr",
        type=number_from(0, exclusive=True),
        metavar="DB",
        help="end once the network has this PSNR, in dB; with --clip, of the clipped volume",
    )
    group.add_argument(
        "--max_seconds",
        type=number_from(0, exclusive=True),
        metavar="S",
        help="train for this time, in s, in place of --n_passes",
    )


def add_research(group: ArgumentGroup) -> None:
    """Add the options of experiments with the network and its training; few volumes need them."""
    group.add_argument(
        "--w0",
        type=number_from(0, 1e6, exclusive=True),
        metavar="W0",
        help="frequency of a first layer that starts at random, in the original 30 (default: waves along the axes)",
    )
    group.add_argument(
        "--is-residual", dest="is_residual", action="store_true", default=True, help="residual blocks (default)"
    )
    group.add_argument("--not-residual", dest="is_residual", action="store_false", help="plain sine layers")
    group.add_argument(
        "--batchSize",
        type=integer_from(1, 1 << 30),
        help="batches of --oversample samples in a step (default: 1024; 512 in a fit of very few steps)",
    )
    group.add_argument(
        "--oversample",
        type=integer_from(1, 1 << 30),
        help="samples in each batch of --batchSize (default: 2; 1 with --max_seconds or few --n_passes; with --cuda "
        "16, fewer with few --n_passes)",
    )
    group.add_argument("--optimizer", choices=("muon", "adam"), default="muon", help="adam in the original")
    group.add_argument(
        "--lr",
        type=number_from(0, 1e6, exclusive=True),
        help="highest learning rate (default: 0.4 / (width x layers), of 2 layers at least; half of it with adam)",
    )
    group.add_argument(
        "--schedule",
        choices=("power", "step"),
        help="how the learning rate falls. power: as (1 - progress)^2; step: in steps, as in the original, which also "
        "draws every voxel once a pass and counts errors beyond the range (default: power; step when --pass_decay or "
        "--lr_decay is given)",
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
        help="weight of the squared error of the gradient, in normalised coordinates; 0 leaves it out",
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
    return Options(**vars(opt))


MUST_MATCH = (  # in the run that continues a checkpoint
    *("fill", "clip", "compression_ratio", "bricks", "n_layers", "is_residual", "d_in", "d_out", "w0", "seed"),
    *("optimizer", "schedule", "pass_decay", "lr_decay", "n_passes", "max_seconds", "batchSize", "oversample"),
    *("lr", "grad_lambda"),
)
