"""The blob: a field's description and its quantised networks in one small file.

Format, version 1. Little-endian throughout; u8, u16, u32 unsigned, i64 signed, f32, f64 IEEE 754.

    offset  size
    0       4     magic: 93 4E 56 43
    4       u8    version: 1
    5       u32   CRC-32 (zlib's) of everything that follows
    9       ...   chunks, up to the end of the file

A chunk is u8 type, u32 length, then `length` bytes. A reader skips a chunk of a type it does not know when that is a
lower-case ASCII letter (61 to 7A), and refuses the file when it is anything else. Types:

    "F"  field, exactly one, first:
         u8 d_in (1 to 4), u8 d_out (1 to 255), u8 dtype (0 to 10: int8 int16 int32 int64 uint8 uint16 uint32 uint64
         float16 float32 float64), d_in x u32 grid shape, axis by axis (2^40 voxels at most), then for each of the
         d_out components its least and greatest value, 8 bytes each: i64 for a signed integer dtype, u64 for an
         unsigned one, f64 for a float; each finite and exactly a value of the dtype
    "G"  geometry, at most one: d_in x f64 spacing (positive), d_in x f64 origin, axis by axis. Spacing 1
         and origin 0 when absent
    "d"  direction, at most one: 9 x f64, 3 x 3 row by row; its columns are the directions of the first three axes in
         space (for d_in 4 the last three, time being the first), of unit length and at right angles, each within 1e-3.
         Voxel i lies at origin + direction (spacing i), missing axes 0. The identity when absent
    "a"  attributes, at most one: a JSON object of text by key, in UTF-8. Keys in use: name (of the field; "sf" when
         absent), units (of the values; "" when absent)
    "M"  missing voxels, at most one, for at most 2^35 voxels: 8 bytes fill value, as a component's least value but that
         it may be NaN; u8 axis; then, up to the chunk's end, an LZMA2 stream (as within .xz files; dictionary of 2^20
         bytes) of one bit a voxel in C order, the last axis fastest, each byte's highest bit first, the last byte's
         unused bits 0. Axis 0: the bits are 1 where the voxel is missing. Axis k from 1 to d_in: with s the product of
         the shape's entries after the k-th, bit number i >= s of those is stored xor bit number i - s. The fill value
         stands for every component of a missing voxel, whatever the networks say. None is missing when absent
    "N"  network, at least one; 2^27 weights and biases at most in all of them:
         u8 flags (bit 0: residual; bit 1: codebooks; others 0), u8 n_layers and u16 n_neurons (at least 1), f32 omega_0
         (1e-6 to 1e6); then the records of the linear layers in the order below; then, up to the chunk's end, the
         stream of their integers

Linear layers, in order, as n_in -> n_out: the first, d_in -> n_neurons; of each of the other n_layers - 1 sine layers
two n_neurons -> n_neurons when residual, else one; the last, n_neurons -> d_out. Each has a weight matrix (n_out x
n_in, row by row) and a bias (n_out), stored as one integer a number: first the matrix's, then the bias's, then the
next layer's. Its record:

         u16 step: the upper half of an f32, positive and finite
         u8 a, u8 b, u8 m: model of the matrix's integers. u8 m: of the bias's (its a and b are 0)
         only with codebooks, and for a layer of n_in = n_out = n_neurons, the first and last not excepted: (2 M + 1) x
         f32 codebook, finite, M of the matrix's m

A weight or bias is step x integer, a product rounded to f32, and finite; a weight of a matrix with a codebook is
codebook[M + integer], entries counted from 0.

Entropy coding. A byte c stands for the integer s(c) = c for c < 8, else (8 + c mod 8) 2^(c div 8 - 1). A model (a, b,
m) has A = s(a), B = s(b), M = s(m) <= 30720, and codes the integers -M to M. x div y is the integer part of x / y, the
products before it taken first. For k = 0 to M: e = min(A k + min(B k, 2^34) k, 30 x 2^24), v(k) = 2^30, then for i =
1 to 16 in turn, when e div 2^(24 - i) is odd, v = v P(i) div 2^30, P(i) the integer nearest to 2^30 x 2^-(2^-i); at
last v = v div 2^(e div 2^24). With S the sum of v(|k|) over k = -M to M, the frequency of k is f(k) = 1 + v(|k|)
(2^16 - (2 M + 1)) div S; what the f lack of 2^16 in all is added to f(0). start(k) is the sum of the f of all lesser
integers.

With n integers in all there are L = min(max(n div 8192, 1), 2048) states. The stream is L x u32, the states, then u16
words. Within a matrix or bias, integer number i is read from state x number i mod L, both counted from 0: k is the one
with start(k) <= x mod 2^16 < start(k) + f(k); then x becomes f(k) (x div 2^16) + x mod 2^16 - start(k), and if that is
below 2^16, x 2^16 + the next word. States take their words in the order of the integers. At the end all words are used
and every state is 2^16.

Values. Voxel i of an axis of n voxels lies at x = (2 i - (n - 1)) / (longest n - 1), an axis of one voxel at 0. For
d_in 4, time, the first axis, has its own n in place of the longest, which is that of the other three. The network maps
x to y: h = sin(omega_0 (W x + b)); then each of the other n_layers - 1 layers the same or, when residual, h = a (h +
sin(omega_0 (W2 sin(omega_0 (W1 c h + b1)) + b2))) with c = 1 in the first of them and 1/2 in the others, a = 1/2 in the
last one and 1 in the others; at last y = W h + b. The value is least + (clip(y, -1, 1) + 1) / 2 (greatest - least), for
integers rounded to the nearest. Weights are exact; this arithmetic is the reader's choice.

The blobs of the original neurcomp scripts are read too, by `decode_original`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib

import numpy as np

import entropy_coder
import mask
from mask import Mask

MAGIC = b"\x93NVC"
VERSION = 1
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
MAX_PARAMETERS = 1 << 27  # a larger network is refused before anything is allocated for it
MAX_VOXELS = 1 << 40
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORIGINAL_BITS = (4, *range(6, 17))  # the original's reader garbles indices of 1, 2, 3 and 5 bits


class BlobError(ValueError):
    """A blob, or something to be put into one, that breaks the format; the message says what was expected and found."""


@dataclasses.dataclass(frozen=True)
class FieldHeader:
    """What a blob says about its field.

    shape: grid axes, voxels. low, high: range of each component, arrays of the field's dtype. spacing, origin: one
    figure per grid axis. direction: 3 x 3, row by row, its columns the axes' directions in space. units: of the values.
    missing: the voxels without a value, None when all have one.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    name: str = "sf"
    direction: tuple[float, ...] = IDENTITY
    units: str = ""
    missing: Mask | None = None

    @property
    def n_present(self) -> int:
        """How many voxels are not missing."""
        return math.prod(self.shape) - (self.missing.count if self.missing else 0)

    @property
    def fill(self) -> np.generic | None:
        """What stands in missing voxels."""
        return self.missing.fill if self.missing else None


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """A linear layer in integers.

    weights: (n_out, n_in), biases: (n_out,), of magnitude at most 30720. step: float32 whose lower half is zero, see
    `round_step`. codebook: None, or the float32 values that the weights -M to M, M = len(codebook) // 2, stand for.
    """

    weights: np.ndarray
    biases: np.ndarray
    step: np.float32
    codebook: np.ndarray | None = None

    def dequantise(self) -> tuple[np.ndarray, np.ndarray]:
        """The float32 weights and biases that this stands for, the same on every machine."""
        biases = self.step * self.biases.astype(np.float32)
        if self.codebook is not None:
            return self.codebook[self.weights + len(self.codebook) // 2], biases
        return self.step * self.weights.astype(np.float32), biases


def round_step(step: float) -> np.float32:
    """The float32 nearest to a positive `step` that the format holds: its lower 16 bits are zero."""
    bits = np.float32(min(step, 3e38)).view(np.uint32).astype(np.int64)
    bits = min(max((int(bits) + 0x8000) >> 16, 0x0001), 0x7F7F)
    return np.uint32(bits << 16).view(np.float32)


def check_field(header: FieldHeader, d_in: int, d_out: int) -> None:
    """Raise BlobError unless the header describes a possible field of that many axes and components."""
    for key in ("name", "units"):
        try:
            getattr(header, key).encode()
        except UnicodeEncodeError:
            raise BlobError(f"{key}: expected text that UTF-8 holds, found {getattr(header, key)!r}") from None
    shape = header.shape
    if not 1 <= d_in <= 4 or len(shape) != d_in or len(header.spacing) != d_in or len(header.origin) != d_in:
        raise BlobError(f"expected {d_in} axes, found shape {shape}, spacing {header.spacing}, origin {header.origin}")
    if any(not isinstance(n, int) or not 1 <= n < 1 << 32 for n in shape) or math.prod(shape) > MAX_VOXELS:
        raise BlobError(f"shape {shape}: expected at least 1 voxel an axis and at most {MAX_VOXELS} in all")
    if not all(isinstance(s, int | float) and math.isfinite(s) for s in (*header.spacing, *header.origin)):
        raise BlobError(f"spacing {header.spacing}, origin {header.origin}: expected finite numbers")
    if not all(s > 0 for s in header.spacing):
        raise BlobError(f"spacing {header.spacing}: expected positive numbers")
    _check_direction(header.direction)
    if header.low.dtype.name not in DTYPES:
        raise BlobError(f"dtype {header.low.dtype}: expected one of {', '.join(DTYPES)}")
    if header.low.shape != (d_out,) or header.high.shape != (d_out,):
        raise BlobError(f"expected the range of {d_out} components, found {len(header.low)}")
    if not (np.isfinite(header.low).all() and np.isfinite(header.high).all() and (header.low <= header.high).all()):
        raise BlobError(f"range {header.low} to {header.high}: expected finite values, the lower first")
    missing = header.missing
    if missing and (missing.shape, missing.fill.dtype) != (shape, header.low.dtype):
        raise BlobError(f"missing voxels: of another shape or dtype: {missing.shape}, {missing.fill.dtype}")


def _check_direction(direction: tuple[float, ...]) -> None:
    if len(direction) != 9 or not all(isinstance(d, int | float) and abs(d) < 2 for d in direction):
        raise BlobError(f"direction {direction}: expected 9 numbers, 3 x 3 row by row")
    matrix = np.reshape(direction, (3, 3))
    if np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-3:
        raise BlobError(f"direction {direction}: expected columns of unit length, at right angles")


def check_network(network: dict) -> None:
    """Raise BlobError unless a network's description (the fields of SirenConfig) is within the format's limits."""
    limits = {"n_layers": 255, "n_neurons": 65535, "d_in": 4, "d_out": 255}
    for name, limit in limits.items():
        if not 1 <= network[name] <= limit:
            raise BlobError(f"{name}: expected 1 to {limit}, found {network[name]}")
    if not isinstance(network["is_residual"], bool):
        raise BlobError(f"is_residual: expected true or false, found {network['is_residual']!r}")
    if not 1e-6 <= network["omega_0"] <= 1e6:
        raise BlobError(f"omega_0: expected 1e-6 to 1e6, found {network['omega_0']}")
    check_size([network])


def check_size(networks: list[dict]) -> None:
    """Raise BlobError when the networks of a file have too many parameters in all."""
    count = sum((n_in + 1) * n_out for network in networks for n_out, n_in in layer_shapes(**network))
    if count > MAX_PARAMETERS:
        raise BlobError(f"expected at most {MAX_PARAMETERS} parameters in all, found {count}")


def layer_shapes(
    n_neurons: int, n_layers: int, d_in: int, d_out: int, is_residual: bool, omega_0: float = 0
) -> list[tuple[int, int]]:
    """(n_out, n_in) of every linear layer, in order."""
    n_hidden = (n_layers - 1) * (2 if is_residual else 1)
    return [(n_neurons, d_in), *[(n_neurons, n_neurons)] * n_hidden, (d_out, n_neurons)]


def layer_names(n_layers: int, is_residual: bool, **_) -> list[str]:
    """The name of every linear layer in the network's state dict, in order."""
    parts = ("linear_1", "linear_2") if is_residual else ("linear",)
    hidden = [f"net_layers.{i}.{part}" for i in range(1, n_layers) for part in parts]
    return ["net_layers.0.linear", *hidden, f"net_layers.{n_layers}"]


def parameter_shapes(**network) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter tensor, in the order of the network's state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n_out, n_in) in zip(layer_names(**network), layer_shapes(**network), strict=True):
        shapes[f"{name}.weight"] = (n_out, n_in)
        shapes[f"{name}.bias"] = (n_out,)
    return shapes


# --- writing ----------------------------------------------------------------------------------------


def encode(header: FieldHeader, networks: list[tuple[dict, list[QuantisedLayer]]]) -> bytes:
    """The blob of a field and its networks, each as its description and its linear layers.

    Raises BlobError for what the format cannot hold.
    """
    d_in, d_out = networks[0][0]["d_in"], networks[0][0]["d_out"]
    if any((network["d_in"], network["d_out"]) != (d_in, d_out) for network, _ in networks):
        raise BlobError("expected networks of the same d_in and d_out")
    check_field(header, d_in, d_out)
    check_size([network for network, _ in networks])
    dtype = header.low.dtype
    limits = np.stack([header.low, header.high], axis=1).astype(_carrier(dtype))
    field = struct.pack(f"<3B{d_in}I", d_in, d_out, DTYPES.index(dtype.name), *header.shape) + limits.tobytes()
    chunks = [(b"F", field)]
    if header.spacing != (1.0,) * d_in or header.origin != (0.0,) * d_in:
        chunks.append((b"G", struct.pack(f"<{2 * d_in}d", *header.spacing, *header.origin)))
    if header.direction != IDENTITY:
        chunks.append((b"d", struct.pack("<9d", *header.direction)))
    attributes = {"name": header.name} if header.name != "sf" else {}
    attributes |= {"units": header.units} if header.units else {}
    if attributes:
        chunks.append((b"a", json.dumps(attributes, separators=(",", ":")).encode()))
    if header.missing:
        chunks.append((b"M", encode_missing(header.missing)))
    chunks += [(b"N", _encode_network(network, layers)) for network, layers in networks]
    body = b"".join(kind + struct.pack("<I", len(content)) + content for kind, content in chunks)
    return MAGIC + struct.pack("<BI", VERSION, zlib.crc32(body)) + body


def _carrier(dtype: np.dtype) -> str:
    """The 8-byte type that holds every value of `dtype`."""
    return {"i": "<i8", "u": "<u8", "f": "<f8"}[dtype.kind]


def encode_missing(missing: Mask) -> bytes:
    """The content of chunk M."""
    return missing.fill.astype(_carrier(missing.fill.dtype)).tobytes() + mask.compress(missing)


def _encode_network(network: dict, layers: list[QuantisedLayer]) -> bytes:
    check_network(network)
    has_codebooks = any(layer.codebook is not None for layer in layers)
    flags = network["is_residual"] | has_codebooks << 1
    parts = [struct.pack("<2BHf", flags, network["n_layers"], network["n_neurons"], network["omega_0"])]
    groups, models = [], []
    for layer, (n_out, n_in) in zip(layers, layer_shapes(**network), strict=True):
        if layer.weights.shape != (n_out, n_in) or layer.biases.shape != (n_out,):
            raise BlobError(f"expected a layer {n_in} -> {n_out}, found {layer.weights.shape}, {layer.biases.shape}")
        if max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
        weights, biases = layer.weights.ravel(), layer.biases
        a, b, largest = entropy_coder.fit_model(weights)
        bias_code = entropy_coder.small_float_code(int(np.abs(biases).max()))
        parts.append(struct.pack("<H4B", int(layer.step.view(np.uint32)) >> 16, a, b, largest, bias_code))
        if has_codebooks and (n_out, n_in) == (network["n_neurons"],) * 2:
            # The model may allow a few more integers than occur; the codebook goes as far.
            half = entropy_coder.small_float(largest)
            values = [layer.codebook[min(max(k + len(layer.codebook) // 2, 0), len(layer.codebook) - 1)]
                      for k in range(-half, half + 1)]  # fmt: skip
            parts.append(np.array(values, "<f4").tobytes())
        groups += [weights, biases]
        models += [(a, b, largest), (0, 0, bias_code)]
    return b"".join([*parts, entropy_coder.encode(groups, models)])


# --- reading ----------------------------------------------------------------------------------------


class _Reader:
    """Bytes read in order, each length checked before it is trusted."""

    def __init__(self, data: bytes, what: str):
        self.data, self.position, self.what = data, 0, what

    def take(self, length: int) -> bytes:
        found = len(self.data) - self.position
        if length > found:
            raise BlobError(f"truncated: expected {length} more bytes of {self.what}, found {found}")
        self.position += length
        return self.data[self.position - length : self.position]

    def unpack(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    @property
    def ended(self) -> bool:
        return self.position == len(self.data)

    def end(self) -> None:
        if not self.ended:
            raise BlobError(f"{len(self.data) - self.position} unexpected bytes after the {self.what}")


def is_blob(data: bytes) -> bool:
    """Whether `data` starts as a blob of this format does."""
    return data[:4] == MAGIC


def decode(data: bytes) -> tuple[FieldHeader, list[tuple[dict, dict[str, np.ndarray]]]]:
    """The field and the networks (description, float32 tensors by name) of a blob.

    Raises BlobError for anything but a whole and valid blob.
    """
    reader = _Reader(data, "blob")
    if reader.take(4) != MAGIC:
        raise BlobError("not a blob: expected it to start with 93 4E 56 43")
    version, checksum = reader.unpack("BI")
    if version != VERSION:
        raise BlobError(f"expected a blob of version {VERSION}, found version {version}")
    if zlib.crc32(data[9:]) != checksum:
        raise BlobError("corrupted or truncated: its checksum does not fit its content")
    chunks: list[tuple[str, _Reader]] = []
    while not reader.ended:
        kind, length = reader.unpack("cI")
        kind = kind.decode("latin-1")
        content = _Reader(reader.take(length), f"chunk {kind!r}")
        if kind in "FGadMN":
            chunks.append((kind, content))
        elif not "a" <= kind <= "z":
            raise BlobError(f"holds a chunk of unknown type {kind!r}: written by a newer version")
    kinds = "".join(kind for kind, _ in chunks)
    if kinds[:1] != "F" or "N" not in kinds or any(kinds.count(kind) > 1 for kind in "FGdaM"):
        raise BlobError(f"expected the chunk F, at most one G, d, a and M, and at least one N, found {kinds!r}")

    field = chunks[0][1]
    d_in, d_out, code = field.unpack("3B")
    if not 1 <= d_in <= 4 or d_out < 1 or code >= len(DTYPES):
        raise BlobError(
            f"d_in, d_out, dtype: expected 1 to 4, 1 to 255, below {len(DTYPES)}, found {d_in}, {d_out}, {code}"
        )
    dtype = np.dtype(DTYPES[code])
    shape = field.unpack(f"{d_in}I")
    limits = field.array(_carrier(dtype), 2 * d_out).reshape(d_out, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = limits.T.astype(dtype)
        if not np.array_equal(np.stack([low, high], axis=1).astype(limits.dtype), limits):
            raise BlobError(f"range {limits.tolist()}: does not fit dtype {dtype}")
    spacing, origin, direction, attributes = (1.0,) * d_in, (0.0,) * d_in, IDENTITY, {}
    missing, networks = None, []
    for kind, content in chunks:
        if kind == "G":
            spacing, origin = content.unpack(f"{d_in}d"), content.unpack(f"{d_in}d")
        elif kind == "d":
            direction = content.unpack("9d")
        elif kind == "a":
            attributes = _decode_attributes(content.take(len(content.data)))
        elif kind == "M":
            missing = decode_missing(content.take(len(content.data)), dtype, shape)
        elif kind == "N":
            networks.append(_decode_network(content, d_in, d_out, [network for network, _ in networks]))
        content.end()
    name, units = attributes.get("name", "sf"), attributes.get("units", "")
    header = FieldHeader(shape, low, high, spacing, origin, name, direction, units, missing)
    check_field(header, d_in, d_out)
    return header, networks


def decode_missing(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> Mask:
    """The missing voxels that the content of chunk M describes. Raises BlobError."""
    reader = _Reader(content, "missing voxels")
    carried = reader.array(_carrier(dtype), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        fill = carried.astype(dtype)[0]
        if np.isinf(fill) or not np.array_equal(fill.astype(carried.dtype), carried[0], equal_nan=dtype.kind == "f"):
            raise BlobError(f"fill value {carried[0]}: is none of dtype {dtype}")
    try:
        return Mask(shape, fill, mask.decompress(content[8:], shape))
    except mask.MaskError as error:
        raise BlobError(f"missing voxels: {error}") from None


def _decode_attributes(text: bytes) -> dict[str, str]:
    try:
        attributes = json.loads(text.decode())
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise BlobError("attributes: expected a JSON object of text by key")
    return attributes


def _decode_network(content: _Reader, d_in: int, d_out: int, others: list[dict]) -> tuple[dict, dict[str, np.ndarray]]:
    flags, n_layers, n_neurons, omega_0 = content.unpack("2BHf")
    if flags > 3:
        raise BlobError(f"flags: expected 0 to 3, found {flags}")
    network = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    network |= {"is_residual": bool(flags & 1), "omega_0": omega_0}
    check_network(network)
    check_size([*others, network])
    records = []
    for n_out, n_in in layer_shapes(**network):
        upper, *codes = content.unpack("H4B")
        step = np.uint32(upper << 16).view(np.float32)
        if not (np.isfinite(step) and step > 0):
            raise BlobError(f"a layer's step: expected a positive number, found {step}")
        if entropy_coder.small_float(max(codes[2:])) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
        codebook = None
        if flags & 2 and n_out == n_in == n_neurons:
            codebook = content.array("<f4", 2 * entropy_coder.small_float(codes[2]) + 1)
            if not np.isfinite(codebook).all():
                raise BlobError("a layer's codebook: expected finite values")
        records.append((n_out, n_in, step, codes, codebook))
    sizes = [size for n_out, n_in, *_ in records for size in (n_out * n_in, n_out)]
    models = [model for *_, codes, _ in records for model in (tuple(codes[:3]), (0, 0, codes[3]))]
    try:
        integers = iter(entropy_coder.decode(content.take(len(content.data) - content.position), sizes, models))
    except entropy_coder.StreamError as error:
        raise BlobError(f"the network's stream {error}") from None
    tensors = {}
    for name, (n_out, n_in, step, _, codebook) in zip(layer_names(**network), records, strict=True):
        layer = QuantisedLayer(next(integers).reshape(n_out, n_in), next(integers), step, codebook)
        with np.errstate(over="ignore"):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = layer.dequantise()
        if not all(np.isfinite(tensors[f"{name}.{part}"]).all() for part in ("weight", "bias")):
            raise BlobError(f"{name}: expected finite weights")
    return network, tensors


def decode_original(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The network (description, float32 tensors by name) of a blob of the original neurcomp scripts.

    Such a blob has no magic, and nothing of the field. Its hidden matrices are indices into a codebook each.
    Raises BlobError unless every byte of it is accounted for.
    """
    reader = _Reader(data, "a blob of the original scripts")
    n_layers, d_in, d_out, is_residual = reader.unpack("4B")
    widths = reader.unpack(f"{n_layers}I")
    (bits,) = reader.unpack("B")
    if is_residual > 1 or len(set(widths)) != 1:
        raise BlobError("not a blob of this suite or of the original scripts")
    network = {"n_neurons": widths[0], "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    network |= {"is_residual": bool(is_residual), "omega_0": 30.0}
    check_network(network)
    if bits not in ORIGINAL_BITS:
        raise BlobError(f"bits: the original reads {ORIGINAL_BITS} rightly, found {bits}")
    tensors = {}
    for name, shape in parameter_shapes(**network).items():
        count = math.prod(shape)
        if name.endswith("weight") and not name.startswith(("net_layers.0.", f"net_layers.{n_layers}.")):
            centroids = reader.array("<f4", 1 << bits)
            tensors[name] = centroids[_unpack_original_indices(reader, bits, count)].reshape(shape)
        else:
            tensors[name] = reader.array("<f4", count).reshape(shape).copy()
        if not np.isfinite(tensors[name]).all():
            raise BlobError(f"{name} holds NaN or infinite weights")
    reader.end()
    return network, tensors


def _unpack_original_indices(reader: _Reader, bits: int, count: int) -> np.ndarray:
    """Indices of `bits` bits, most significant first.

    When `bits` is no multiple of 8, the last index follows once more as u32, which is the one that counts: the
    bits of a last partial byte are right-aligned in it.
    """
    packed = np.unpackbits(reader.array("u1", (bits * count + 7) // 8), count=bits * count)
    places = (1 << np.arange(bits)[::-1]).astype(np.uint32)
    indices = packed.reshape(count, bits) @ places
    if bits % 8:
        indices[-1] = reader.unpack("I")[0]
        if indices[-1] >= 1 << bits:
            raise BlobError(f"an index of {bits} bits is {indices[-1]}")
    return indices
