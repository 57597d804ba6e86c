"""Quantise the weights of a trained network into one small file, the blob, that holds all it takes to decode it."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P and -I leave this folder out
import cli.startup  # noqa: F401 - first, to handle Ctrl-C while the other modules load

# isort: split
import time
from collections.abc import Sequence

import torch

from cli import arguments, console
from cli.files import check_outputs, read_bytes, states_of, write_or_rescue
from cli.progress import Progress
from cli.summary import summary
from field.blob import BlobError, decode_field, encode_blob, is_blob, is_usual
from field.header_chunks import Written
from field.layers import SirenConfig
from field.metrics import compare, file_ratios, measured_boxes, psnr_of_constant
from field.neural_field import NeuralField
from field.quantised import QuantisedLayer
from formats.reading import read_original, source_files
from quantising import work
from quantising.network import NetworkRounding
from quantising.policy import DEFAULT_BITS, RoundingOptions, decibels_lost, integers_lost
from quantising.rounded_bricks import BricksRounding
from quantising.sensitivity import MAX_BITS
from siren import net_of
from training.network_files import TrainedNetwork, read_network
from utils import SUITE_VERSION, UserError, Volume, VolumeHeader

MOST_FOR_ROUNDING = 2.0  # dB that rounding costs without a warning
MOST_LOST = 6.0  # most dB that rounding costs a network of at most MOST_KEPT
MOST_KEPT = 80.0  # dB; a network of a higher PSNR may lose more, as its weights have 15 bits at most


def build_parser() -> arguments.ArgumentParser:
    """The argument parser of this script."""
    parser = arguments.ArgumentParser(
        __doc__,
        "python net_compress.py --volume volumes/test_vol.npy",
        "python net_compress.py --net a.pth --config a.json a.nvc",
    )
    group = parser.add_argument_group("input and output")
    group.add_argument("--net", default=arguments.NETWORK, metavar="FILE", help="weights that train.py wrote")
    group.add_argument("--config", default=arguments.CONFIG, metavar="FILE", help="configuration that train.py wrote")
    arguments.add_blob_arguments(group, "file to write the blob to")
    group.add_argument(
        "--volume",
        help="the original volume: the network is trained on while its weights are rounded, for a smaller file; "
        "needed with files of the original scripts",
    )
    arguments.add_volume_arguments(group)
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--n_passes",
        type=arguments.number_from(0, 1e6),
        help="passes over --volume while rounding, 0 for none (default: 12.5 million / voxels, at most 48, or more for "
        "1,500 steps; with --cuda 8 times as many; in bricks a quarter of train.py's default)",
    )
    group.add_argument(
        "--seed", type=arguments.integer_from(0, 2**63 - 1), default=0, help="seed of the order of samples"
    )
    parser.add_device_arguments()
    group = parser.add_argument_group("research: how weights are rounded")
    group.add_argument(
        "--cluster_bits",
        type=arguments.integer_from(1, MAX_BITS),
        help="about 2^bits values for the weights of a hidden matrix, 1 to 15 (default: as few as the network's PSNR "
        f"allows; {DEFAULT_BITS} if this is unknown, or with --quantizer kmeans)",
    )
    group.add_argument(
        "--quantizer", choices=("uniform", "kmeans"), default="uniform", help="equal steps, or the paper's codebooks"
    )
    return parser


def parse(argv: Sequence[str]) -> arguments.Options:
    """The options, checked together, with the defaults of --quantizer kmeans. Raises UserError."""
    opt = build_parser().parse_args(argv)
    arguments.check_volume_arguments(opt)
    check_replaced(opt.blob)
    arguments.settle_blob(opt)
    if opt.quantizer == "kmeans":
        if opt.n_passes:
            raise UserError("--n_passes trains with --quantizer uniform only")
        opt.n_passes = 0.0
        opt.cluster_bits = opt.cluster_bits or DEFAULT_BITS
    if opt.n_passes and not opt.volume:
        raise UserError("--n_passes needs the --volume to train on")
    return arguments.Options(**vars(opt))


def check_replaced(path: str | None) -> None:
    """Raise UserError if a file that is no blob would be replaced, as after a forgotten flag: run/*.vti is many names.

    path: the blob that was given without --compressed.
    """
    if path and os.path.exists(path) and not is_blob(read_bytes(path, 4)):
        way_out = "give it by --volume or --net, or, to replace it, by --compressed"
        raise UserError(f"{path}: is no blob, and the blob would replace it: {way_out}")


def read_volume_of(opt: arguments.Options, trained: TrainedNetwork) -> tuple[Volume | None, VolumeHeader | None]:
    """The volume in --volume and its header, or (None, None). Raises UserError unless it is the network's volume."""
    if not opt.volume:
        return None, None
    config, expected = trained.config, trained.unclipped
    volume, found, differing = read_original(opt, config.d_in, config.d_out, expected, opt.config)
    if differing:
        what = "other voxels are missing"
        if differing != ["missing"]:
            a, b = (f"{header.dtype} of range {header.value_range.pairs()}" for header in (expected, found))
            what = f"expected {a}, found {b}"
        raise UserError(f"{opt.volume}: is not the volume of {opt.config}: {what}")
    return volume, found


def rounded_networks(
    opt: arguments.Options,
    trained: TrainedNetwork,
    header: VolumeHeader,
    volume: Volume | None,
    device: torch.device,
    progress: Progress,
) -> list[tuple[SirenConfig, list[QuantisedLayer]]]:
    """The networks with weights in integers, as `encode_blob` takes them."""
    options = RoundingOptions(opt.cluster_bits, opt.quantizer, opt.n_passes, opt.seed, opt.num_workers)
    if not trained.bricks.is_whole:
        rounding = BricksRounding(options, trained.bricks, header, volume, device, progress)
        return rounding.layers(trained.psnr, trained.is_exact)
    net = net_of(*trained.bricks.networks[0])
    rounding = NetworkRounding(options, net, header, volume, device, progress)
    return [(net.config, rounding.layers(trained.psnr, trained.is_exact))]


def read_back(opt: arguments.Options, blob: bytes) -> NeuralField:
    """The field in a blob that was just made: what is written can be read. Raises UserError."""
    try:
        return NeuralField(*decode_field(blob, large=True), n_threads=opt.num_workers)
    except BlobError as error:
        raise UserError(f"{opt.net}: cannot be rounded: {error}") from None


def warn_of_measured_loss(opt: arguments.Options, psnr: float, trained: TrainedNetwork) -> None:
    """Warn if the volume cannot well be the network's, or if rounding has cost too much. psnr: of the blob, dB."""
    if psnr < min(trained.psnr, MOST_KEPT) - MOST_LOST:
        what = f"the blob has {psnr:.1f} dB, the network had {trained.psnr:.1f} dB"
        if_so = " If so, more --cluster_bits, or none, cost less" if opt.cluster_bits else ""
        console.warn("net_compress.py", f"{opt.volume}: {what}: is it the volume that it was trained on?{if_so}")
    else:
        warn_of_loss(opt, min(trained.decoded_psnr, MOST_KEPT) - psnr)


def warn_of_constant(opt: arguments.Options, psnr: float, constant: float) -> None:
    """Warn if the blob is hardly better than a constant volume. psnr, constant: in dB."""
    if not psnr >= constant + 1:  # true for NaN
        what = f"the blob has {psnr:.1f} dB, where a constant volume would have {constant:.1f} dB"
        way_out = "a network of train.py with more --n_passes or a lower --compression_ratio may help"
        console.warn("net_compress.py", f"{opt.compressed}: {what}: {way_out}")


def warn_of_loss(opt: arguments.Options, lost: float) -> None:
    """Warn if rounding has cost too much. lost: in dB; NaN if unknown."""
    if lost > MOST_FOR_ROUNDING:
        way_out = "more --cluster_bits, or none, cost less" if opt.cluster_bits else "--cluster_bits 12 may cost less"
        console.warn("net_compress.py", f"{opt.compressed}: rounding has cost about {lost:.0f} dB: {way_out}")


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = arguments.resolve_device(opt.cuda, opt.gid)
    volumes = source_files(opt.volume) if opt.volume else []
    check_outputs([opt.compressed], inputs=[opt.net, opt.config, *volumes])
    states = states_of(volumes)
    trained = read_network(opt.net, opt.config)
    volume, found = read_volume_of(opt, trained)
    header, bricks = trained.header or found, trained.bricks
    if header is None:
        raise UserError(f"{opt.config}: holds no shape and range: give the original volume with --volume")

    started = time.monotonic()
    ranges = [found.value_range] if volume else []  # over which the blob is compared with the volume
    ranges += [header.value_range] if volume and trained.header is not trained.unclipped else []
    n_parameters, cut = bricks.n_parameters, None if bricks.is_whole else bricks.cut
    per_measuring = work.of_comparison(n_parameters / len(bricks.networks), volume) if volume else 0.0
    with Progress("rounding", len(ranges) * per_measuring) as progress:
        rounded = rounded_networks(opt, trained, header, volume, device, progress)
        blob = encode_blob(header, rounded, Written(SUITE_VERSION), cut)
        field = read_back(opt, blob)
        measured = []
        for values in ranges:
            chosen = progress.each(measured_boxes(volume.values), per_measuring)
            measured.append(compare(volume.array, field.lazy(), values, chosen))
    figures: dict[str, str] = {}
    if volume:
        figures = measured[0].report(header.n_present)
        psnr = measured[-1].psnr  # over the range of the blob
        if len(measured) > 1:
            figures["psnr_clipped"] = f"{psnr:.3f}"
        blob = encode_blob(header, rounded, Written(SUITE_VERSION, psnr), cut)
        warn_of_measured_loss(opt, psnr, trained)
        warn_of_constant(opt, psnr, psnr_of_constant(volume.values, ranges[-1], measured_boxes(volume.values)))
    else:
        before = NeuralField(header, bricks, n_threads=opt.num_workers)
        lost = decibels_lost(before, field, trained.psnr, trained.is_exact)
        if header.value_range.is_integer:
            lost = max(integers_lost(before, field, trained.decoded_psnr), lost)  # in this order, NaN is left out
        warn_of_loss(opt, lost)
    write_or_rescue({opt.compressed: blob})
    console.warn_of_changes("net_compress.py", states)
    n_values = header.n_voxels * header.n_components
    per_weight = {"bits_per_weight": f"{8 * len(blob) / n_parameters:.3f}"} if n_parameters else {}
    figures |= {"bytes": len(blob)} | per_weight | file_ratios(n_values, header.dtype, len(blob))
    figures |= {"seconds": f"{time.monotonic() - started:.1f}", "compressed": opt.compressed}
    n_source = n_values * header.dtype.itemsize
    source = opt.volume or f"volume of {os.path.basename(opt.net)}"
    console.report(summary(source, n_source, [opt.compressed], len(blob), figures), figures)
    flags = arguments.unless_default(compressed=opt.compressed) + ["--large"] * (not is_usual(header, n_parameters))
    console.next_command("net_decompress.py", *flags)


if __name__ == "__main__":
    console.run(main)
