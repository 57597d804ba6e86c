"""Evaluate a blob back into a volume, in its original units, spacing and origin."""

from __future__ import annotations

import cli  # first: answers Ctrl-C while the others load

# isort: split
import math
import os
import sys
import time
from collections.abc import Sequence

import net_coder
from siren import net_of_arrays
from utils import ValueRange, compare, describe, file_ratios, reconstruct
from volume import Volume, VolumeError, raw_layout, suffix_of
from volume_io import output_path, read_volume, write_volume


def build_parser() -> cli.ArgumentParser:
    """The command line of this script."""
    parser = cli.ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--compressed", required=True, help="blob that net_compress.py wrote")
    group.add_argument("--recon", default="recon", help="volume to write, .vti or .npy; .vti when it has no suffix")
    group.add_argument(
        "--volume",
        help="the original volume, to compare with; a blob of the original scripts takes shape and range from it",
    )
    cli.add_volume_arguments(group)
    group.add_argument(
        "--float", dest="as_float", action="store_true", default=False, help="write integer fields unrounded, as floats"
    )
    parser.add_device_arguments()
    return parser


def read_blob(path: str) -> tuple[net_coder.FieldHeader | None, dict, dict]:
    """The field, the network's description and its weights in a blob of ours or of the original scripts.

    The original's blobs say nothing of the field: None. Raises UserError for anything else.
    """
    data = cli.read_bytes(path)
    try:
        if not net_coder.is_blob(data):
            return None, *net_coder.decode_original(data)
        header, networks = net_coder.decode(data)
    except net_coder.BlobError as error:
        raise cli.UserError(f"{path}: {error}") from None
    if len(networks) != 1:
        raise cli.UserError(f"{path}: expected one network, found {len(networks)}: written by a newer version")
    return header, *networks[0]


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = build_parser().parse_args(argv)
    cli.check_volume_arguments(opt)
    layout = raw_layout(opt.shape, opt.dtype, opt.endian)
    device = cli.resolve_device(opt.cuda, opt.gid, opt.num_workers)
    recon = output_path(opt.recon)
    cli.check_outputs([recon], inputs=[path for path in (opt.compressed, opt.volume) if path])
    header, network, tensors = read_blob(opt.compressed)
    d_in, d_out = network["d_in"], network["d_out"]
    volume = None
    if opt.volume:
        volume = read_volume(opt.volume, d_in, d_out, opt.array, layout)
        header = header or describe(volume, d_in)
        if volume.array.shape[:d_in] != header.shape:
            raise cli.UserError(
                f"{opt.volume}: expected shape {header.shape}, as in {opt.compressed}, found {volume.array.shape}"
            )
    if header is None:
        raise cli.UserError(
            f"{opt.compressed}: a blob of the original scripts, without shape and range: give the volume with --volume"
        )

    values = ValueRange(header.low, header.high)
    cli.check_memory(math.prod(header.shape) * d_out * 8, f"{opt.compressed}: its volume of shape {header.shape}")

    started = time.monotonic()
    net = net_of_arrays(network, tensors)
    with cli.Progress("decoding") as progress:
        decoded = reconstruct(net.to(device), header.shape, values, device, opt.as_float, progress.update)
    array = decoded[..., 0] if d_out == 1 else decoded
    result = Volume(array, header.spacing, header.origin, header.name, header.direction, header.units)
    with cli.atomic_write(recon) as path:
        write_volume(path, result, suffix_of(recon))
    seconds = time.monotonic() - started

    if volume is not None:
        found = describe(volume, d_in)
        if [*found.low, *found.high] != [*header.low, *header.high]:
            print(f"net_decompress.py: warning: {opt.volume}: has another range than {opt.compressed}", file=sys.stderr)
        metrics = compare(volume.array, array)
        cli.report(psnr=f"{metrics.psnr:.3f}", rmse=f"{metrics.rmse:.6g}", max_error=f"{metrics.max_error:.6g}")
    n_bytes = os.path.getsize(opt.compressed)
    cli.report(**file_ratios(decoded.size, values.dtype, n_bytes), bytes=n_bytes, seconds=f"{seconds:.1f}", recon=recon)


if __name__ == "__main__":
    cli.run(main, VolumeError)
