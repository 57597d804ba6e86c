"""Writes and reads thenet.pth, the weights, and thenet.json, the configuration. Only this module knows their format."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import zipfile
from typing import NamedTuple

import numpy as np
import torch

from cli.files import read_bytes, write_or_rescue
from field.binary import ByteReader
from field.bricks import Bricks, Cut, StoredNetwork, check_cut
from field.header_chunks import check_header
from field.layers import OMEGA_0, SirenConfig, parameter_shapes
from field.missing import decode_missing, encode_missing
from field.network_chunk import check_network, check_size
from siren import weights_crc32
from utils import AXIS_ATTRIBUTES, DTYPES, IDENTITY, Geometry, UserError, ValueRange, VolumeHeader, quoted

FORMAT_VERSION = 1

# --- written ------------------------------------------------------------------------------------------


def configuration(
    options: dict[str, object],
    header: VolumeHeader,
    unclipped: ValueRange,
    config: SirenConfig,
    quality: dict[str, float],
    bricks: Bricks,
    seconds: float,
) -> dict:
    """The content of thenet.json: first the keys of the original scripts, then the keys that later stages need.

    unclipped: the range before --clip, for the key `clipped_from`. config: of the widest network of the bricks.
    quality: as of `Quality.figures`; a PSNR is written as "inf" if there is no error, and as null if it is unknown.
    seconds: the time of the training. The key `missing` holds a blob's chunk M, in base64.
    """
    missing = base64.b64encode(encode_missing(header.missing)).decode() if header.missing else None
    same = ("compression_ratio", "batchSize", "oversample", "lr", "n_passes", "pass_decay", "lr_decay")
    return {
        "grad_lambda": options["grad_lambda"],
        "n_layers": config.n_layers,
        "layers": [config.n_neurons] * config.n_layers,
        "w0": options["w0"] or OMEGA_0,
        **{name: options[name] for name in same},
        "is_residual": config.is_residual,
        "is_cuda": False,  # with True, the original scripts would need a GPU to read the weights
        "time": seconds,  # the original's name
        "format_version": FORMAT_VERSION,
        "d_in": config.d_in,
        "d_out": config.d_out,
        "omega_0": config.omega_0,
        "shape": list(header.shape),
        "dtype": header.low.dtype.name,
        "value_range": header.value_range.pairs(),
        **dataclasses.asdict(header.geometry),
        "missing": missing,
        "clipped_from": unclipped.pairs() if options["clip"] else None,
        "seed": options["seed"],
        "n_parameters": bricks.n_parameters,
        **({} if bricks.is_whole else {"bricks": _in_settings(bricks)}),
        **{name: _in_json(figure) for name, figure in quality.items()},
        "seconds": seconds,
        "torch_version": torch.__version__,
        "weights_crc32": weights_crc32(state_of(bricks)),
        "options": options,
    }


def _in_settings(bricks: Bricks) -> dict:
    """The entry "bricks" of thenet.json: the parts of a `Cut`, and each network's width, 0 for a constant brick."""
    counts, low, high, mirrors = bricks.cut
    widths = [network.config.n_neurons if network else 0 for network in bricks.networks]
    found = {"counts": list(counts), "widths": widths, "low": low.tolist(), "high": high.tolist()}
    return found | ({"mirrors": list(mirrors)} if mirrors else {})


def _in_json(figure: float) -> float | str | None:
    """A figure as JSON can hold it: "inf" for infinity; None, which becomes null, for NaN, an unknown figure."""
    if math.isnan(figure):
        return None
    return figure if math.isfinite(figure) else str(figure)


def state_of(bricks: Bricks) -> dict[str, torch.Tensor]:
    """What thenet.pth holds, float32: the weights by name. For a field in bricks also how it is cut, by `_cut_state`.

    The weights of brick 3 are bricks.3.net_layers.0.linear.weight, ...
    """
    if bricks.is_whole:
        arrays = bricks.networks[0].weights
    else:
        arrays = _cut_state(bricks.cut)
        for number, network in enumerate(bricks.networks):
            for name, weights in (network.weights if network else {}).items():
                arrays[f"bricks.{number}.{name}"] = weights
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _cut_state(cut: Cut) -> dict[str, np.ndarray]:
    """How a field is cut, in arrays of float32."""
    return {f"cut.{name}": np.array(part, np.float32) for name, part in cut._asdict().items() if len(part)}


def write_network(paths: tuple[str, str], bricks: Bricks, settings: dict) -> None:
    """Write the weights and the configuration. Raises UserError when they cannot be written to `paths`.

    It says where they are instead.
    """
    weights = io.BytesIO()  # torch.save would store the whole vector that parameters are views of, hence clone()
    torch.save({name: tensor.clone() for name, tensor in state_of(bricks).items()}, weights)
    config = json.dumps(settings, indent=1, allow_nan=False).encode()
    write_or_rescue({paths[1]: config, paths[0]: weights.getvalue()})  # the configuration is the index of the two


# --- read -------------------------------------------------------------------------------------------


class TrainedNetwork(NamedTuple):
    """What thenet.pth and thenet.json hold.

    config: of the network, of bricks the widest. header: of the field; None in files of the original scripts.
    unclipped: the header before --clip. psnr: in dB, before values are rounded to integers, if that is known.
    decoded_psnr: of what the network decodes to, inf without errors. Both are NaN if unknown. is_exact: whether the
    network decodes every integer exactly.
    """

    config: SirenConfig
    bricks: Bricks
    header: VolumeHeader | None
    unclipped: VolumeHeader | None
    psnr: float
    decoded_psnr: float
    is_exact: bool


def read_network(path: str, config_path: str) -> TrainedNetwork:
    """The network in `path`, with what its configuration says. Raises UserError unless both files fit together."""
    settings = _read_config(config_path)
    config = network_config(config_path, settings)
    header = field_header(config_path, settings, config)
    if settings.get("bricks") is None:
        state = _read_state(path, config_path, parameter_shapes(config))
        bricks = Bricks.whole(config, {name: tensor.numpy() for name, tensor in state.items()})
    else:
        bricks = _read_bricks(path, config_path, settings["bricks"], header, config)
    checksum = weights_crc32(state_of(bricks))
    if settings.get("weights_crc32", checksum) != checksum:
        raise UserError(f"{config_path}: belongs to other weights than {path}: their checksums differ")
    unclipped = _unclipped_header(config_path, settings, header)
    known = (_likely_psnr(settings.get(name)) for name in ("psnr_unrounded", "psnr_clipped", "psnr"))
    psnr = next((psnr for psnr in known if not math.isnan(psnr)), math.nan)
    decoded = settings.get("psnr_clipped", settings.get("psnr"))
    decoded_psnr = math.inf if decoded == "inf" else _likely_psnr(decoded)
    is_exact = settings.get("is_exact") is True and header is not None and header.value_range.is_integer
    return TrainedNetwork(config, bricks, header, unclipped, psnr, decoded_psnr, is_exact)


def _read_config(path: str) -> dict:
    """The content of a thenet.json. Raises UserError unless the file is the configuration of a network."""
    try:
        settings = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(settings, dict) or not {"n_layers", "layers", "is_residual"} <= settings.keys():
        raise UserError(f"{path}: not a configuration: expected the keys n_layers, layers and is_residual")
    if (version := settings.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise UserError(f"{path}: expected format_version {FORMAT_VERSION}, found {quoted(version)}")
    return settings


def network_config(path: str, settings: dict) -> SirenConfig:
    """The network that a configuration describes. Raises UserError if no such network can exist."""
    layers, n_layers = settings["layers"], settings["n_layers"]
    if not (isinstance(layers, list) and layers and layers == layers[:1] * len(layers) and len(layers) == n_layers):
        raise UserError(f"{path}: layers: expected a list of {quoted(n_layers)} equal widths, found {quoted(layers)}")
    given = {name: settings[name] for name in ("d_in", "d_out", "omega_0", "is_residual") if name in settings}
    try:
        config = SirenConfig(layers[0], n_layers, **given)
        check_network(config)
    except (UserError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: {error}") from None
    return config


def _read_bricks(path: str, config_path: str, entry: dict, header: VolumeHeader | None, config: SirenConfig) -> Bricks:
    """The bricks in `path`. entry: that of the configuration. Raises UserError for what does not fit."""
    try:
        if header is None:
            raise ValueError("the shape and the range of the field are not there")
        with np.errstate(over="ignore"):
            ends = [np.array(entry[name], np.float32) for name in ("low", "high")]
        cut, widths = Cut(tuple(entry["counts"]), *ends, tuple(entry.get("mirrors", ()))), entry["widths"]
        if not all(type(number) is int for number in (*cut.counts, *cut.mirrors, *widths)):
            raise ValueError("counts, mirrors, widths: expected whole numbers")
        check_cut(cut, header.shape, header.n_components)
        configs = [dataclasses.replace(config, n_neurons=width) if width else None for width in widths]
        if [config is None for config in configs] != cut.is_constant.tolist():
            raise ValueError("widths: expected one for each brick that is not constant, 0 for the others")
        check_size(filter(None, configs))
    except KeyError as error:
        raise UserError(f"{config_path}: bricks: expected the keys counts, widths, low and high, not {error}") from None
    except (UserError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{config_path}: bricks: does not describe the bricks of a field: {error}") from None
    own, shapes = _cut_state(cut), {k: parameter_shapes(config) for k, config in enumerate(configs) if config}
    expected = {name: part.shape for name, part in own.items()}
    expected |= {f"bricks.{k}.{name}": shape for k, found in shapes.items() for name, shape in found.items()}
    state = _read_state(path, config_path, expected)
    if any(not np.array_equal(state[name].numpy(), part) for name, part in own.items()):
        raise UserError(f"{config_path}: belongs to other weights than {path}: these are of a field cut otherwise")
    weights = {k: {name: state[f"bricks.{k}.{name}"].numpy() for name in found} for k, found in shapes.items()}
    return Bricks(cut, [config and StoredNetwork(config, weights[k]) for k, config in enumerate(configs)])


def _read_state(path: str, config_path: str, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The state dict in `path`, float32 on the CPU. expected: the shape of each tensor. Raises UserError."""
    state = load_tensors(path)
    if not isinstance(state, dict) or not all(_is_plain(value) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of dense tensors of floats")
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        name = next(n for n in (*expected, *found) if expected.get(n) != found.get(n))
        raise UserError(
            f"{path}: does not fit {config_path}: {name}: expected shape {expected.get(name)}, found {found.get(name)}"
        )
    state = {name: state[name].detach().float().contiguous() for name in expected}
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(f"{path}: {bad[0]} holds NaN or infinite weights")
    return state


def load_tensors(path: str) -> object:
    """The object that torch.save wrote to `path`, on the CPU; no code is unpickled. Raises UserError if this fails."""
    content = io.BytesIO(read_bytes(path))
    try:
        if zipfile.is_zipfile(content):  # torch.load does not check this
            archive = zipfile.ZipFile(content)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("a compressed entry, which torch.save does not write, of whatever length")
            if archive.testzip() is not None:
                raise ValueError("a checksum does not fit")
        content.seek(0)
        return torch.load(content, weights_only=True, map_location="cpu")
    except Exception:  # torch.load has no error class of its own: a damaged file can raise anything
        raise UserError(f"{path}: expected a file that train.py wrote, found a damaged or foreign one") from None


def _is_plain(value: object) -> bool:
    """Whether this is a dense tensor of floats: not sparse, quantised, complex or without content."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.device.type == "cpu"
    )


def field_header(path: str, settings: dict, config: SirenConfig) -> VolumeHeader | None:
    """The header in a configuration; None if the configuration has no shape. Raises UserError if it is impossible."""
    if "shape" not in settings:
        return None
    try:
        if settings.get("dtype") not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, found {quoted(settings.get('dtype'))}")
        dtype = np.dtype(settings["dtype"])
        settings = {"direction": list(IDENTITY)} | settings
        for key in ("shape", "spacing", "origin", "direction", "value_range"):
            if not isinstance(settings.get(key), list) or not settings[key]:
                raise ValueError(f"{key}: expected a list, found {quoted(settings.get(key))}")
        low, high = _limits("value_range", settings["value_range"], dtype)
        names = {key: settings[key] for key in ("name", "units", "space") if key in settings}
        said = settings.get("axis_attributes", {})
        if not isinstance(said, dict) or not said.keys() <= set(AXIS_ATTRIBUTES):
            raise ValueError(f"axis_attributes: expected any of {', '.join(AXIS_ATTRIBUTES)}, found {quoted(said)}")
        for key, text in (names | said).items():
            if not isinstance(text, str):
                raise ValueError(f"{key}: expected text, found {quoted(text)}")
        place = (tuple(settings[key]) for key in ("spacing", "origin", "direction"))
        geometry = Geometry(*place, **names, axis_attributes=said)
        header = VolumeHeader(tuple(settings["shape"]), low, high, geometry)
        check_header(header, config.d_in, config.d_out)
        if settings.get("missing") is None:
            return header
        content = ByteReader(base64.b64decode(settings["missing"], validate=True), "missing voxels")
        return dataclasses.replace(header, missing=decode_missing(content, dtype, header.shape))
    except (UserError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: does not describe a field: {error}") from None


def _limits(key: str, pairs: object, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), arrays of one value per component, from a list of [low, high]. Raises ValueError."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{key}: expected lists of the least and greatest value, found {quoted(pairs)}")
    try:
        with np.errstate(over="ignore"):  # a value becomes infinite, which does not fit
            low, high = (np.array(limits, dtype) for limits in zip(*pairs, strict=True))
        if np.stack([low, high], axis=1).tolist() == pairs:
            return low, high
    except OverflowError:  # of an integer
        pass
    raise ValueError(f"{key} {quoted(pairs)} does not fit dtype {dtype}")


def _unclipped_header(path: str, settings: dict, header: VolumeHeader | None) -> VolumeHeader | None:
    """The header of the volume before --clip. Raises UserError for an impossible range."""
    if header is None or not settings.get("clipped_from"):
        return header
    try:
        low, high = _limits("clipped_from", settings["clipped_from"], header.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: does not describe a volume: {error}") from None
    return dataclasses.replace(header, low=low, high=high)


def _likely_psnr(found: object) -> float:
    """A number of a configuration as a PSNR in dB; NaN if it is none between 0 and 300."""
    is_likely = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 300
    return float(found) if is_likely else math.nan
