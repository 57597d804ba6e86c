"""Quantise the weights of a trained network into one small file, the blob, that holds all it takes to decode it."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Sequence

import cli  # first: answers Ctrl-C while the others load

# isort: split
import numpy as np
import torch

import net_coder
import quantise
from siren import OMEGA_0, FieldNet, SirenConfig, count_parameters, weights_crc32
from utils import describe, file_ratios
from volume_io import VolumeError, read_volume


def build_parser() -> cli.ArgumentParser:
    """The command line of this script."""
    parser = cli.ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--net", required=True, help="weights that train.py wrote (.pth)")
    group.add_argument("--config", required=True, help="configuration that train.py wrote (.json)")
    group.add_argument("--compressed", required=True, help="file to write the blob to")
    group.add_argument(
        "--volume",
        help="the original volume: only for a configuration of the original scripts, which lacks shape and range",
    )
    group = parser.add_argument_group("quantisation")
    group.add_argument(
        "--cluster_bits",
        type=cli.whole(1, 16),
        default=9,
        help="bits: at most 2^bits values for the weights of a matrix",
    )
    group.add_argument(
        "--quantizer", choices=("uniform", "kmeans"), default="uniform", help="equal steps, or the paper's codebooks"
    )
    return parser


def read_config(path: str) -> dict:
    """The content of thenet.json. Raises UserError unless it is a configuration of a network."""
    try:
        settings = json.loads(cli.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise cli.UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(settings, dict) or not {"n_layers", "layers", "is_residual"} <= settings.keys():
        raise cli.UserError(f"{path}: not a configuration: expected the keys n_layers, layers and is_residual")
    if settings.get("format_version", 1) != 1:
        raise cli.UserError(f"{path}: expected format_version 1, found {settings['format_version']!r}")
    return settings


def network_config(path: str, settings: dict) -> SirenConfig:
    """The network that a configuration describes. Raises UserError for one that cannot exist."""
    layers, n_layers = settings["layers"], settings["n_layers"]
    if (
        not isinstance(layers, list)
        or not layers
        or len(layers) != n_layers
        or any(width != layers[0] for width in layers)
    ):
        raise cli.UserError(f"{path}: layers: expected a list of {n_layers!r} equal widths, found {layers!r}")
    fields = {
        "n_neurons": layers[0],
        "n_layers": n_layers,
        "d_in": settings.get("d_in", 3),
        "d_out": settings.get("d_out", 1),
        "omega_0": settings.get("omega_0", OMEGA_0),
        "is_residual": settings["is_residual"],
    }
    try:
        config = SirenConfig(**fields)
        net_coder.check_network(dataclasses.asdict(config))
    except (ValueError, TypeError) as error:
        raise cli.UserError(f"{path}: {error}") from None
    return config


def read_weights(path: str, config_path: str, config: SirenConfig) -> dict[str, torch.Tensor]:
    """The state dict in `path`, float32 on the CPU. Raises UserError unless it fits the configuration."""
    state = cli.load_tensors(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise cli.UserError(f"{path}: expected a state dict of tensors")
    expected = net_coder.parameter_shapes(**dataclasses.asdict(config))
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        name = next(n for n in (*expected, *found) if expected.get(n) != found.get(n))
        raise cli.UserError(
            f"{path}: does not fit {config_path}: {name}: expected shape {expected.get(name)}, found {found.get(name)}"
        )
    state = {name: state[name].detach().float().contiguous() for name in expected}
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise cli.UserError(f"{path}: {bad[0]} holds NaN or infinite weights")
    return state


def field_header(opt, settings: dict, config: SirenConfig) -> net_coder.FieldHeader:
    """Shape, dtype, range and geometry of the field: from the configuration, or from --volume where it lacks them."""
    if "shape" not in settings:
        if opt.volume is None:
            raise cli.UserError(f"{opt.config}: holds no shape and range: give the original volume with --volume")
        return describe(read_volume(opt.volume, config.d_in, config.d_out), config.d_in)
    try:
        dtype = np.dtype(settings["dtype"])
        low, high = (np.array(limits).astype(dtype) for limits in zip(*settings["value_range"], strict=True))
        if np.stack([low, high], axis=1).tolist() != settings["value_range"]:
            raise ValueError(f"value_range {settings['value_range']} does not fit dtype {dtype}")
        if not isinstance(settings.get("name", "sf"), str):
            raise ValueError(f"name: expected text, found {settings['name']!r}")
        spacing, origin = tuple(settings["spacing"]), tuple(settings["origin"])
        header = net_coder.FieldHeader(tuple(settings["shape"]), low, high, spacing, origin, settings.get("name", "sf"))
        net_coder.check_field(header, config.d_in, config.d_out)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise cli.UserError(f"{opt.config}: does not describe a field: {error}") from None
    return header


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = build_parser().parse_args(argv)
    cli.check_outputs([opt.compressed], inputs=[path for path in (opt.net, opt.config, opt.volume) if path])
    settings = read_config(opt.config)
    config = network_config(opt.config, settings)
    state = read_weights(opt.net, opt.config, config)
    if settings.get("weights_crc32", weights_crc32(state)) != weights_crc32(state):
        raise cli.UserError(f"{opt.config}: belongs to other weights than {opt.net}: their checksums differ")
    header = field_header(opt, settings, config)

    started = time.monotonic()
    net = FieldNet(config)
    net.load_state_dict(state)
    points = quantise.domain_points(header.shape, quantise.N_POINTS)
    quantiser = {"uniform": quantise.quantise_uniform, "kmeans": quantise.quantise_kmeans}[opt.quantizer]
    blob = net_coder.encode(header, [(dataclasses.asdict(config), quantiser(net, points, opt.cluster_bits))])
    with cli.atomic_write(opt.compressed) as path, open(path, "wb") as file:
        file.write(blob)
    n_values, n_parameters = math.prod(header.shape) * config.d_out, count_parameters(config)
    cli.report(
        bytes=len(blob),
        bits_per_weight=f"{8 * len(blob) / n_parameters:.3f}",
        **file_ratios(n_values, header.low.dtype, len(blob)),
        seconds=f"{time.monotonic() - started:.1f}",
        compressed=opt.compressed,
    )
    print("next:", shlex.join(["python", "net_decompress.py", "--compressed", opt.compressed]))


if __name__ == "__main__":
    cli.run(main, VolumeError)
