"""Quantise the weights of a trained network into one small file, the blob, that holds all it takes to decode it."""

from __future__ import annotations

import cli  # first: answers Ctrl-C while the others load

# isort: split
import base64
import bisect
import copy
import dataclasses
import json
import math
import shlex
import time
from argparse import Namespace
from collections.abc import Collection, Sequence

import numpy as np
import torch

import fitting
import mask
import net_coder
import quantise
from neural_field import NeuralField
from siren import OMEGA_0, FieldNet, SirenConfig, count_parameters, weights_crc32
from streamed import training_field
from utils import ValueRange, compare, components_last, describe, file_ratios, measured_boxes
from volume import Volume, VolumeError, raw_layout
from volume_io import read_volume
from volume_series import files_of

# Mean squared error that rounding adds, relative to the network's own: 0.1 dB.
ADDED_ERROR = 0.02
MAX_HALVINGS = 64  # of the error, where integers are to come back as they are
# With training, what is foretold: where coarser steps cost about as much quality as a smaller network of equal bytes;
# then what is tried where that has cost too much.
ADDED_ERRORS_TRAINED = {0.4: "with finer steps", 0.1: "without training"}
MOST_LOST = 2.0, 0.25  # dB, and of what the network is better than a constant; but
NEVER_TOO_MUCH = 0.1  # dB, which is what rounding without training costs
WITHOUT_TRAINING = {1.0: "without training"}  # the only try where the steps are given
MAX_COMPENSATED = 1 << 19  # weights: it takes up to a minute and a gigabyte; a million are to take two seconds
TRAINED_VOXELS = 1.25e7  # seen by the training while rounding
MAX_PASSES = 48.0
RATE = 0.15  # of that training, relative to the fit's, for a network of 30 dB;
HALVED = 30.0  # dB by which a network is better that takes half of it: there is less to make up for, and more to undo


def build_parser() -> cli.ArgumentParser:
    """The command line of this script."""
    parser = cli.ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--net", required=True, help="weights that train.py wrote (.pth)")
    group.add_argument("--config", required=True, help="configuration that train.py wrote (.json)")
    group.add_argument("--compressed", required=True, help="file to write the blob to")
    group.add_argument(
        "--volume",
        help="the original volume: trains the network on while its weights are rounded, for a smaller file; "
        "needed with files of the original scripts, which lack shape and range",
    )
    cli.add_volume_arguments(group)
    group = parser.add_argument_group("quantisation")
    group.add_argument(
        "--cluster_bits",
        type=cli.whole(1, 16),
        help="about 2^bits values for the weights of a hidden matrix (default: as few as the network's PSNR bears, "
        "with --quantizer kmeans 9)",
    )
    group.add_argument(
        "--quantizer", choices=("uniform", "kmeans"), default="uniform", help="equal steps, or the paper's codebooks"
    )
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--n_passes",
        type=cli.number(0, 1e6),
        help="passes over --volume while rounding, 0 for none "
        "(default: 12.5 million / voxels, at most 48, or 1,500 steps if more)",
    )
    group.add_argument("--seed", type=cli.whole(0, 2**63 - 1), default=0, help="of the order of the samples")
    parser.add_device_arguments()
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    """The options, once they make sense together."""
    opt = build_parser().parse_args(argv)
    cli.check_volume_arguments(opt)
    if opt.quantizer == "kmeans":
        if opt.n_passes:
            raise cli.UserError("--n_passes trains with --quantizer uniform only")
        opt.n_passes = 0.0
        opt.cluster_bits = opt.cluster_bits or 9
    if opt.n_passes and not opt.volume:
        raise cli.UserError("--n_passes needs the --volume to train on")
    return opt


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
    except (ValueError, TypeError, OverflowError) as error:
        raise cli.UserError(f"{path}: {error}") from None
    return config


def _is_plain(value: object) -> bool:
    """Whether this is a tensor whose numbers can be looked at: not sparse, quantised, complex or without content."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.device.type == "cpu"
    )


def read_weights(path: str, config_path: str, config: SirenConfig) -> dict[str, torch.Tensor]:
    """The state dict in `path`, float32 on the CPU. Raises UserError unless it fits the configuration."""
    state = cli.load_tensors(path)
    if not isinstance(state, dict) or not all(_is_plain(value) for value in state.values()):
        raise cli.UserError(f"{path}: expected a state dict of dense tensors of floats")
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


def field_header(path: str, settings: dict, config: SirenConfig) -> net_coder.FieldHeader | None:
    """What a configuration says of the field; None where it says nothing. Raises UserError for an impossible one."""
    if "shape" not in settings:
        return None
    try:
        if settings.get("dtype") not in cli.DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(cli.DTYPES)}, found {settings.get('dtype')!r}")
        dtype = np.dtype(settings["dtype"])
        settings = {"direction": list(net_coder.IDENTITY)} | settings
        for key in ("shape", "spacing", "origin", "direction", "value_range"):
            if not isinstance(settings.get(key), list) or not settings[key]:
                raise ValueError(f"{key}: expected a list, found {settings.get(key)!r}")
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in settings["value_range"]):
            raise ValueError(
                f"value_range: expected lists of the least and greatest value, found {settings['value_range']}"
            )
        low, high = (np.array(limits).astype(dtype) for limits in zip(*settings["value_range"], strict=True))
        if np.stack([low, high], axis=1).tolist() != settings["value_range"]:
            raise ValueError(f"value_range {settings['value_range']} does not fit dtype {dtype}")
        name, units = settings.get("name", "sf"), settings.get("units", "")
        for key, text in (("name", name), ("units", units)):
            if not isinstance(text, str):
                raise ValueError(f"{key}: expected text, found {text!r}")
        shape, spacing, origin, direction = (
            tuple(settings[key]) for key in ("shape", "spacing", "origin", "direction")
        )
        header = net_coder.FieldHeader(shape, low, high, spacing, origin, name, direction, units)
        net_coder.check_field(header, config.d_in, config.d_out)
        if settings.get("missing") is None:
            return header
        content = base64.b64decode(settings["missing"], validate=True)
        return dataclasses.replace(header, missing=net_coder.decode_missing(content, dtype, shape))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise cli.UserError(f"{path}: does not describe a field: {error}") from None


def quality_in(settings: dict, header: net_coder.FieldHeader) -> tuple[float, bool]:
    """What a configuration says of its network: the PSNR in dB of its values before integers are rounded, NaN where
    there is no likely one; and whether integers come back as they are.
    """
    known = [settings[name] for name in ("psnr_unrounded", "psnr_clipped", "psnr") if name in settings]
    likely = [p for p in known if isinstance(p, int | float) and not isinstance(p, bool) and 0 < p < 300]
    return float(likely[0]) if likely else math.nan, settings.get("is_exact") is True and holds_integers(header)


def holds_integers(header: net_coder.FieldHeader) -> bool:
    """Whether the field's values are."""
    return header.low.dtype.kind in "iu"


def read_volume_of(
    opt: Namespace, settings: dict, config: SirenConfig, header: net_coder.FieldHeader | None
) -> tuple[Volume | None, net_coder.FieldHeader | None]:
    """--volume, where it is given, and what a blob says about it, not clipped.

    Raises UserError unless it is the one that the configuration, and its `header`, speak of.
    """
    if not opt.volume:
        return None, None
    layout = raw_layout(opt.shape, opt.dtype, opt.endian)
    volume = read_volume(opt.volume, config.d_in, config.d_out, opt.array, layout, header and header.fill)
    found = describe(volume, config.d_in)
    if header is None:
        return volume, found
    if found.shape != header.shape:
        raise cli.UserError(
            f"{opt.volume}: expected shape {header.shape}, as in {opt.config}, found {volume.array.shape}"
        )
    values, expected = ValueRange.of(found), settings.get("clipped_from") or settings["value_range"]
    if values.dtype != header.low.dtype or values.pairs() != expected:
        raise cli.UserError(
            f"{opt.volume}: is not the volume of {opt.config}: expected {header.low.dtype} of range {expected}, found "
            f"{values.dtype} of range {values.pairs()}"
        )
    if not mask.same(found.missing, header.missing):
        raise cli.UserError(f"{opt.volume}: is not the volume of {opt.config}: other voxels are missing")
    return volume, found


def quantise_network(
    opt: Namespace,
    net: FieldNet,
    header: net_coder.FieldHeader,
    volume: Volume | None,
    psnr: float,
    is_exact: bool,
) -> list[net_coder.QuantisedLayer]:
    """The layers of the network in integers, as the options ask for it.

    psnr: in dB, of its values before they are rounded to integers. is_exact: whether these come back as they are.
    """
    device = cli.resolve_device(opt.cuda, opt.gid)
    if not ValueRange.of(header).extent.any():
        return quantise.zero_layers(net)
    error, decoded = None, math.nan
    if opt.cluster_bits is not None:
        is_exact = False
    else:
        if volume:
            psnr = decoded = measured_psnr(opt, net, header, volume, device)
            is_exact = holds_integers(header) and decoded == math.inf
        if volume and holds_integers(header):
            unrounded = measured_psnr(opt, net, header, volume, device, as_float=True)
            psnr = unrounded if math.isfinite(unrounded) else decoded  # float64 does not tell large integers apart
        error = 4 * 10 ** (-psnr / 10) if math.isfinite(psnr) else None
    is_trained = volume is not None and opt.n_passes != 0 and not is_exact
    factors = carry_factors(opt, copy.deepcopy(net).to(device), header.shape, is_trained)
    layers = None
    if is_exact:
        layers = round_exactly(opt, net, header, factors, device)
    elif is_trained:
        layers = round_with_volume(opt, net, header, volume, error, decoded, factors, device)
    return layers or round_alone(opt, net, header.shape, error, factors)


def carry_factors(
    opt: Namespace, net: FieldNet, shape: tuple[int, ...], is_trained: bool
) -> Collection[quantise.CarryFactor]:
    """By which errors of rounding are carried over; none where each weight is rounded by itself."""
    if opt.quantizer == "kmeans" or not (is_trained or _is_narrow(net)):
        return []
    factors = quantise.CarryFactors(net, shape)
    if not _is_narrow(net):
        return factors
    with cli.Progress("rounding") as progress:
        return list(progress.each(factors))


def _is_narrow(net: FieldNet) -> bool:
    return count_parameters(net.config) <= MAX_COMPENSATED


def round_alone(
    opt: Namespace,
    net: FieldNet,
    shape: tuple[int, ...],
    error: float | None,
    factors: Collection[quantise.CarryFactor],
) -> list[net_coder.QuantisedLayer]:
    """The layers in integers, without training. error: of the network; None where it does not count."""
    is_compensated = len(factors) > 0 and _is_narrow(net)
    if is_compensated and error is not None:
        return quantise.round_to_error(net, shape, factors, ADDED_ERROR * error)
    if is_compensated:
        sensitivity = quantise.compensated_sensitivities(net, factors)
    else:
        sensitivity = quantise.sensitivities(net, quantise.domain_points(shape, quantise.N_POINTS))
    fineness = {"bits": opt.cluster_bits or 9} if error is None else {"error": ADDED_ERROR * error}
    steps = quantise.choose_steps(net, sensitivity, **fineness)
    if opt.quantizer == "kmeans":
        return quantise.round_to_codebooks(net, opt.cluster_bits, steps)
    return quantise.round_in_turn(net, steps, factors) if is_compensated else quantise.round_layers(net, steps)


def round_exactly(
    opt: Namespace,
    net: FieldNet,
    header: net_coder.FieldHeader,
    factors: Collection[quantise.CarryFactor],
    device: torch.device,
) -> list[net_coder.QuantisedLayer] | None:
    """The layers in integers, about as coarsely as leaves those that the network decodes to as they are; or None.

    By halves of the mean squared error; of a large volume `measured_boxes` are looked at.
    """
    chosen = measured_boxes(np.broadcast_to(header.low, (*header.shape, net.config.d_out)))
    before = NeuralField.of(net, header, device, opt.num_workers).lazy()
    tried = {}

    def is_fine_enough(halvings: int) -> bool:
        rounded = copy.deepcopy(net)
        tried[halvings] = round_alone(opt, rounded, header.shape, 0.5**halvings / ADDED_ERROR, factors)
        quantise.load(rounded, tried[halvings])
        after = NeuralField.of(rounded, header, device, opt.num_workers).lazy()
        return all(np.array_equal(before[box], after[box]) for box in chosen)

    return tried.get(bisect.bisect_left(range(MAX_HALVINGS), True, key=is_fine_enough))


def measured_psnr(
    opt: Namespace,
    net: FieldNet,
    header: net_coder.FieldHeader,
    volume: Volume,
    device: torch.device,
    as_float: bool = False,
) -> float:
    """PSNR of a network in dB, over the range of the header; see NeuralField.on_grid for `as_float`."""
    chosen = measured_boxes(components_last(volume.array, net.config.d_in))
    decoded = NeuralField.of(net, header, device, opt.num_workers).lazy(as_float=as_float)
    return compare(volume.array, decoded, ValueRange.of(header), chosen).psnr


def round_with_volume(
    opt: Namespace,
    net: FieldNet,
    header: net_coder.FieldHeader,
    volume: Volume,
    error: float | None,
    expected: float,
    factors: Collection[quantise.CarryFactor],
    device: torch.device,
) -> list[net_coder.QuantisedLayer] | None:
    """The layers in integers, with training in between.

    error: of the network; None where it does not count. expected: PSNR in dB of what it decodes to, where it does.
    What the training does not make up for is known at the end. None where that is too much, by finer steps, too. With
    --cluster_bits the steps are given: then those rounded without training, where that costs less.
    """
    n_voxels = header.n_present
    n_passes = opt.n_passes
    if n_passes is None:
        n_passes = max(min(MAX_PASSES, TRAINED_VOXELS / n_voxels), fitting.least_passes(n_voxels))
    default = fitting.default_recipe(n_voxels, net.config)
    field = training_field(components_last(volume.array, net.config.d_in), ValueRange.of(header), device)
    sensitivity = quantise.compensated_sensitivities(net, factors)
    alone, tries = None, ADDED_ERRORS_TRAINED
    if error is None:
        rounded, tries = copy.deepcopy(net), WITHOUT_TRAINING
        alone = round_alone(opt, rounded, header.shape, error, factors)
        quantise.load(rounded, alone)
        expected = measured_psnr(opt, rounded, header, volume, device)
    rate = RATE * 0.5 ** (max(0.0, expected) / HALVED - 1)  # in this order, NaN becomes 0.0
    recipe = dataclasses.replace(default, n_passes=n_passes, lr=rate * default.lr)
    lead = expected - fitting.psnr_of(field.variance)
    most_lost = 0.0 if alone else max(NEVER_TOO_MUCH, min(MOST_LOST[0], MOST_LOST[1] * lead))
    with cli.Progress("rounding") as progress:

        def on_progress(fraction: float, psnr: float) -> None:
            progress.update(fraction, PSNR=f"{psnr:.1f} dB")

        for added, otherwise in tries.items():
            fineness = {"bits": opt.cluster_bits or 9} if error is None else {"error": added * error}
            steps = quantise.choose_steps(net, sensitivity, **fineness)
            rounded = copy.deepcopy(net).to(device)
            layers = quantise.round_and_train(
                rounded, field, steps, factors, recipe, opt.seed, on_progress, opt.num_workers
            )
            found = measured_psnr(opt, rounded, header, volume, device)
            if found >= expected - most_lost:
                return layers
            progress.say(f"rounding with training has cost {expected - found:.1f} dB: again {otherwise}")
            progress.start(0.0)
    return alone


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    volumes = files_of(opt.volume) if opt.volume else []
    cli.check_outputs([opt.compressed], inputs=[opt.net, opt.config, *volumes])
    settings = read_config(opt.config)
    config = network_config(opt.config, settings)
    state = read_weights(opt.net, opt.config, config)
    if settings.get("weights_crc32", weights_crc32(state)) != weights_crc32(state):
        raise cli.UserError(f"{opt.config}: belongs to other weights than {opt.net}: their checksums differ")
    header = field_header(opt.config, settings, config)
    volume, found = read_volume_of(opt, settings, config, header)
    if header is None and volume is None:
        raise cli.UserError(f"{opt.config}: holds no shape and range: give the original volume with --volume")
    header = header or found

    started = time.monotonic()
    net = FieldNet(config)
    net.load_state_dict(state)
    layers = quantise_network(opt, net, header, volume, *quality_in(settings, header))
    if not all(np.isfinite(values).all() for layer in layers for values in layer.dequantise()):
        raise cli.UserError(f"{opt.net}: holds weights too large to be rounded")
    blob = net_coder.encode(header, [(dataclasses.asdict(config), layers)])
    cli.write_files({opt.compressed: blob})
    if volume:
        decoded = NeuralField.open(opt.compressed, n_threads=opt.num_workers).lazy()
        chosen = measured_boxes(components_last(volume.array, config.d_in))
        with cli.Progress("measuring") as progress:
            metrics = compare(volume.array, decoded, ValueRange.of(found), progress.each(chosen))
            if settings.get("clipped_from"):
                clipped = compare(volume.array, decoded, ValueRange.of(header), progress.each(chosen))
        cli.report(**metrics.report(header.n_present))
        if settings.get("clipped_from"):
            cli.report(psnr_clipped=f"{clipped.psnr:.3f}")
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
