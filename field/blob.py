"""The blob: a field's header and its quantised networks in one small file.

Format, version 1
=================

All numbers are little-endian. u8, u16, u32 are unsigned integers, i64 is a signed one, f32 and f64 are IEEE 754.

    offset  size
    0       4     magic: 93 4E 56 43
    4       u8    version: 1
    5       u32   CRC-32 (zlib's) of everything that follows
    9       ...   chunks, up to the end of the file

A chunk is a u8 type, a u32 length, and `length` bytes. The type is an ASCII letter. A reader skips a chunk of a type
that it does not know if the letter is lower-case (61 to 7A); otherwise it refuses the file.

    type  content              number             when absent
    "F"   field                one, the first
    "G"   geometry             at most one        spacing 1, origin 0
    "d"   direction            at most one        the identity
    "w"   world axes           at most one        nothing is known of them
    "a"   attributes           at most one        no text
    "q"   quality              at most one        nothing is known of it
    "M"   missing voxels       at most one        no voxel is missing
    "N"   network              one or more

Chunk F, field
--------------

    u8             d_in, the number of grid axes: 1 to 4
    u8             d_out, the number of components: 1 to 255
    u8             dtype: 0 int8, 1 int16, 2 int32, 3 int64, 4 uint8, 5 uint16, 6 uint32, 7 uint64,
                   8 float16, 9 float32, 10 float64
    d_in x u32     the number of voxels along each axis; at least 1 each, at most 2^40 in all
    d_out x        the least and the greatest value of each component. Each takes 8 bytes: i64 for a signed
      2 x 8 bytes  integer dtype, u64 for an unsigned one, f64 for a float. Each is finite, and a value of the dtype

Chunk G, geometry
-----------------

    d_in x f64     spacing, positive
    d_in x f64     origin

Chunk d, direction
------------------

    9 x f64        a matrix of 3 x 3, row by row. Its columns are the directions of the axes in space: of the first
                   three axes, or of the last three where d_in is 4 and the first axis is time. The columns have unit
                   length and are at right angles, each within 1e-3. For d_in 1 and 2, the directions of the
                   axes lie in the first d_in dimensions, within 1e-3

Voxel i lies at origin + direction (spacing i). Missing axes count as 0.

Chunk w, world axes
-------------------

    u8             where the dimensions x, y, z of space point, in the body that was scanned; their unit is 1 mm.
                   1: to left, posterior, superior. 2: to right, anterior, superior

A reader may give all positions in another one of these forms: x and y of one are -x and -y of the other.

Chunk a, attributes
-------------------

A JSON object in UTF-8. Its values are text. Keys in use: `name` of the field ("sf" when absent), `units` of the values
("" when absent).

Chunk q, quality
----------------

    u8 u8          major and minor version of the program that wrote the file
    i16            the PSNR in units of 0.01 dB of what the file decodes to, over the range of the original volume;
                   32767: no error at all. These two bytes are absent if the PSNR is unknown

Chunk M, missing voxels
-----------------------

    8 bytes        the fill value, in the form of a least value of chunk F; it may be NaN
    u8             axis: 0 to d_in
    ...            an LZMA2 stream, as within .xz files, with a dictionary of 2^20 bytes

The stream holds one bit a voxel, at most 2^35 bits. Voxels are in C order: the last axis varies fastest. The first
voxel of eight is the highest bit of its byte. The unused bits of the last byte are 0.

With axis 0, a bit is 1 where the voxel is missing. With axis k, let s be the product of the numbers of voxels of all
axes after the k-th: bit number i is stored xor bit number i - s, for i >= s. (A mask that is alike from one plane to
the next then becomes nearly all zeros.)

A missing voxel has the fill value in every component, whatever the networks say.

Chunk N, network
----------------

    u8             flags. Bit 0: residual. Bit 1: codebooks. The others are 0
    u8             n_layers, at least 1
    u16            n_neurons, at least 1
    f32            omega_0: 1e-6 to 1e6
    ...            a record for each linear layer
    ...            the stream of all integers, up to the end of the chunk

The networks of a file have at most 2^27 weights and biases in all. The linear layers are, in order and as n_in ->
n_out:

    d_in -> n_neurons
    n_neurons -> n_neurons     for each of the other n_layers - 1 sine layers: two when residual, else one
    n_neurons -> d_out

A layer has a weight matrix W (n_out x n_in, row by row) and a bias b (n_out). Each of their numbers is stored as one
integer. The record of a layer says what the integers stand for:

    u16            step: the upper half of an f32 whose lower half is 0; positive and finite
    u8 u8 u8       a, b, m: the model of the matrix's integers, see below
    u8             m of the bias's integers; their a and b are 0
    (2 M + 1) x    the codebook, finite; M = s(m) is that of the matrix. Only with flag bit 1, and only for a layer with
      f32          n_in = n_out = n_neurons. (The first or last layer may be such a one)

An integer k of a bias stands for step k, rounded to f32. An integer k of a matrix stands for the same or, with a
codebook, for codebook[M + k], counted from 0. All weights and biases are finite, and in a sine layer at most 1e30 /
omega_0 in magnitude, in the last layer at most 1e30: so no phase overflows an f32.

The stream of integers
----------------------

The integers of a network come in this order: matrix and bias of the first layer, matrix and bias of the second, ...
They are coded by rANS. `x div y` is the integer part of x / y; products to its left are taken first.

*Small floats.* A byte c stands for the integer s(c) = c if c < 8, else (8 + c mod 8) 2^(c div 8 - 1).

*Frequencies.* A model (a, b, m) codes the integers k from -M to M. Let A = s(a), B = s(b), and M = s(m) <= 30720. For
each k from 0 to M:

    e    = min(A k + min(B k, 2^34) k, 30 x 2^24)
    v(k) = 2^30
    for i = 1 to 16:   if e div 2^(24 - i) is odd:   v(k) = v(k) P(i) div 2^30
    v(k) = v(k) div 2^(e div 2^24)

P(i) is the integer nearest to 2^30 x 2^-(2^-i). Let S be the sum of v(|k|) over k = -M to M. The frequency of k is

    f(k) = 1 + v(|k|) (2^16 - (2 M + 1)) div S

What the frequencies lack of 2^16 in all is added to f(0). start(k) is the sum of f over all integers below k.

*Decoding.* With n integers in all there are L = min(max(n div 8192, 1), 2048) states. The stream is L x u32, the
states, and then u16 words. Integer number i of a matrix or bias, counted from 0, is read from the state x number
i mod L:

    k is the integer with start(k) <= x mod 2^16 < start(k) + f(k)
    x becomes f(k) (x div 2^16) + x mod 2^16 - start(k)
    if x < 2^16:   x becomes 2^16 x + the next word

States take their words in the order of the integers. At the end all words are used, and every state is 2^16.

Values
------

Voxel i of an axis of n voxels lies at x = (2 i - (n - 1)) / (N - 1). N is the number of voxels of the longest axis;
where d_in is 4, the first axis (time) has its own n for N, and the others the longest of these three. An axis of one
voxel lies at 0. The network maps x to y:

    h = sin(omega_0 (W x + b))                                          the first layer
    h = sin(omega_0 (W h + b))                                          each other sine layer, when not residual
    h = a (h + sin(omega_0 (W2 sin(omega_0 (W1 c h + b1)) + b2)))       each other sine layer, when residual:
                                                                        c = 1 in the first of these, 1/2 in the others;
                                                                        a = 1/2 in the last of these, 1 in the others
    y = W h + b                                                         the last layer

The value is least + (clip(y, -1, 1) + 1) / 2 (greatest - least). Integers are rounded to the nearest one. Weights are
exact, the same for every reader; the rounding of this arithmetic is the reader's choice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from field import entropy_coder
from field.layers import layer_table
from field.missing import MaskError, compress_mask, decompress_mask
from utils import DTYPES, IDENTITY, SIGNS, Geometry, Mask, UserError, VolumeHeader, shown

MAGIC = b"\x93NVC"
VERSION = 1
MAX_PARAMETERS = 1 << 27  # most parameters of all networks of a file; more are refused before memory is allocated
EXACT = (1 << 15) - 1  # stands in chunk q for an infinite PSNR
MAX_FACTOR = 1e30  # largest magnitude of a weight times the frequency of its layer: no phase overflows
MAX_VOXELS = 1 << 40  # most voxels of a grid
# A file of a few kilobytes can hold as many as the format allows. More than these are read only when asked for.
USUAL_PARAMETERS = 1 << 24
USUAL_MASK_VOXELS = 1 << 30


class BlobError(UserError):
    """A blob, or an input of the encoder, breaks the format. The message says what was expected and what was found."""


class Written(NamedTuple):
    """The program that wrote a blob, and how good the blob is. psnr: in dB, to 0.01 dB; NaN if it is unknown."""

    version: tuple[int, int]
    psnr: float = math.nan


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """A linear layer in integers."""

    weights: np.ndarray  # (n_out, n_in), of magnitude at most 30720
    biases: np.ndarray  # (n_out,), of magnitude at most 30720
    step: np.float32  # its lower 16 bits are zero, see `round_step`
    codebook: np.ndarray | None = None  # float32 values of the weights -M to M, where M = len(codebook) // 2

    def dequantise(self) -> tuple[np.ndarray, np.ndarray]:
        """The float32 weights and biases of this layer, the same on every machine."""
        biases = self.step * self.biases.astype(np.float32)
        if self.codebook is not None:
            return self.codebook[self.weights + len(self.codebook) // 2], biases
        return self.step * self.weights.astype(np.float32), biases


def round_step(step: float) -> np.float32:
    """The nearest float32 to a positive `step` that the format can hold: its lower 16 bits are zero."""
    bits = np.float32(min(step, 3e38)).view(np.uint32).astype(np.int64)
    bits = min(max((int(bits) + 0x8000) >> 16, 0x0001), 0x7F7F)
    return np.uint32(bits << 16).view(np.float32)


def check_header(header: VolumeHeader, d_in: int, d_out: int) -> None:
    """Raise BlobError unless the header describes a possible field of `d_in` axes and `d_out` components."""
    shape, geometry = header.shape, header.geometry
    spacing, origin, direction = geometry.spacing, geometry.origin, geometry.direction
    for key in ("name", "units"):
        try:
            getattr(geometry, key).encode()
        except UnicodeEncodeError:
            raise BlobError(f"{key}: expected text that UTF-8 holds, found {shown(getattr(geometry, key))}") from None
    if not 1 <= d_in <= 4 or len(shape) != d_in or len(spacing) != d_in or len(origin) != d_in:
        found = f"shape {shown(shape)}, spacing {shown(spacing)}, origin {shown(origin)}"
        raise BlobError(f"expected {d_in} axes, found {found}")
    if any(not isinstance(n, int) or not 1 <= n < 1 << 32 for n in shape) or math.prod(shape) > MAX_VOXELS:
        raise BlobError(f"shape {shown(shape)}: expected at least 1 voxel an axis and at most {MAX_VOXELS} in all")
    if not all(isinstance(s, int | float) and math.isfinite(s) for s in (*spacing, *origin)):
        raise BlobError(f"spacing {shown(spacing)}, origin {shown(origin)}: expected finite numbers")
    if not all(s > 0 for s in spacing):
        raise BlobError(f"spacing {shown(spacing)}: expected positive numbers")
    if len(direction) != 9 or not all(isinstance(d, int | float) and abs(d) < 2 for d in direction):
        raise BlobError(f"direction {shown(direction)}: expected 9 numbers, 3 x 3 row by row")
    if not geometry.is_orthonormal or not geometry.stays_within(d_in):
        what = "columns of unit length, at right angles, those of the axes within the first dimensions"
        raise BlobError(f"direction {shown(direction)}: expected {what}")
    if geometry.space not in ("", "LPS"):
        raise BlobError(f"space: expected LPS or no text, found {shown(geometry.space)}")
    if header.dtype.name not in DTYPES:
        raise BlobError(f"dtype {header.dtype}: expected one of {', '.join(DTYPES)}")
    if header.low.shape != (d_out,) or header.high.shape != (d_out,):
        raise BlobError(f"expected the range of {d_out} components, found {len(header.low)}")
    if not (np.isfinite(header.low).all() and np.isfinite(header.high).all() and (header.low <= header.high).all()):
        raise BlobError(f"range {shown(header.low)} to {shown(header.high)}: expected finite values, the lower first")
    missing = header.missing
    if missing and (missing.shape, missing.fill.dtype) != (shape, header.dtype):
        raise BlobError(f"missing voxels: of another shape or dtype: {missing.shape}, {missing.fill.dtype}")


def check_network(network: dict) -> None:
    """Raise BlobError unless a network's description (the fields of SirenConfig) is within the format's limits."""
    limits = {"n_layers": 255, "n_neurons": 65535, "d_in": 4, "d_out": 255}
    for name, limit in limits.items():
        if not 1 <= network[name] <= limit:
            raise BlobError(f"{name}: expected 1 to {limit}, found {network[name]}")
    if not isinstance(network["is_residual"], bool):
        raise BlobError(f"is_residual: expected true or false, found {shown(network['is_residual'])}")
    if not 1e-6 <= float(np.float32(network["omega_0"])) <= 1e6:
        raise BlobError(f"omega_0: expected 1e-6 to 1e6, found {network['omega_0']}")
    check_size([network])


def check_size(networks: list[dict]) -> int:
    """The number of parameters of all networks of a file. Raises BlobError when it is above MAX_PARAMETERS."""
    count = sum((layer.n_in + 1) * layer.n_out for network in networks for layer in layer_table(**network))
    if count > MAX_PARAMETERS:
        raise BlobError(f"expected at most {MAX_PARAMETERS} parameters in all, found {count}")
    return count


def _check_usual(count: int, limit: int, what: str) -> None:
    if count > limit:
        way_out = "--large reads it, large=True in Python, Large in ParaView"
        raise BlobError(f"holds {count} {what}, more than {limit}: it can take gigabytes of memory: {way_out}")


# --- writing ----------------------------------------------------------------------------------------


def encode_blob(
    header: VolumeHeader, networks: list[tuple[dict, list[QuantisedLayer]]], written: Written | None = None
) -> bytes:
    """The blob of a header and of networks. networks: the description and the linear layers of each network.

    Raises BlobError for what the format cannot hold.
    """
    d_in, d_out = networks[0][0]["d_in"], networks[0][0]["d_out"]
    if any((network["d_in"], network["d_out"]) != (d_in, d_out) for network, _ in networks):
        raise BlobError("expected networks of the same d_in and d_out")
    check_header(header, d_in, d_out)
    check_size([network for network, _ in networks])
    dtype, (world, geometry) = header.dtype, _world(header.geometry)
    limits = np.stack([header.low, header.high], axis=1).astype(_carrier(dtype))
    field = struct.pack(f"<3B{d_in}I", d_in, d_out, DTYPES.index(dtype.name), *header.shape) + limits.tobytes()
    chunks = [(b"F", field)]
    if geometry.spacing != (1.0,) * d_in or geometry.origin != (0.0,) * d_in:
        chunks.append((b"G", struct.pack(f"<{2 * d_in}d", *geometry.spacing, *geometry.origin)))
    if geometry.direction != IDENTITY:
        chunks.append((b"d", struct.pack("<9d", *geometry.direction)))
    if world:
        chunks.append((b"w", struct.pack("B", world)))
    attributes = {"name": geometry.name} if geometry.name != "sf" else {}
    attributes |= {"units": geometry.units} if geometry.units else {}
    if attributes:
        chunks.append((b"a", json.dumps(attributes, separators=(",", ":")).encode()))
    if written:
        chunks.append((b"q", _encode_written(written)))
    if header.missing:
        chunks.append((b"M", encode_missing(header.missing)))
    chunks += [(b"N", _encode_network(network, layers)) for network, layers in networks]
    body = b"".join(kind + struct.pack("<I", len(content)) + content for kind, content in chunks)
    return MAGIC + struct.pack("<BI", VERSION, zlib.crc32(body)) + body


def _world(geometry: Geometry) -> tuple[int | None, Geometry]:
    """The content of chunk w, and the geometry in the coordinates that it names: in those that need no chunk d."""
    if not geometry.space:
        return None, geometry
    turned = geometry.with_signs(SIGNS["RAS"])
    return (2, turned) if turned.direction == IDENTITY else (1, geometry)


def _encode_written(written: Written) -> bytes:
    """The content of chunk q."""
    version = struct.pack("2B", *written.version)
    if math.isnan(written.psnr):
        return version
    hundredths = EXACT if written.psnr == math.inf else round(min(max(100 * written.psnr, -EXACT), EXACT - 1))
    return version + struct.pack("<h", hundredths)


def _carrier(dtype: np.dtype) -> str:
    """The little-endian 8-byte type that holds every value of `dtype`."""
    return {"i": "<i8", "u": "<u8", "f": "<f8"}[dtype.kind]


def encode_missing(missing: Mask) -> bytes:
    """The content of chunk M."""
    return missing.fill.astype(_carrier(missing.fill.dtype)).tobytes() + compress_mask(missing)


def _encode_network(network: dict, layers: list[QuantisedLayer]) -> bytes:
    check_network(network)
    has_codebooks = any(layer.codebook is not None for layer in layers)
    flags = network["is_residual"] | has_codebooks << 1
    parts = [struct.pack("<2BHf", flags, network["n_layers"], network["n_neurons"], network["omega_0"])]
    groups, models = [], []
    for layer, (_, n_out, n_in, *_) in zip(layers, layer_table(**network), strict=True):
        if layer.weights.shape != (n_out, n_in) or layer.biases.shape != (n_out,):
            raise BlobError(f"expected a layer {n_in} -> {n_out}, found {layer.weights.shape}, {layer.biases.shape}")
        if max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
        weights, biases = layer.weights.ravel(), layer.biases
        a, b, largest = entropy_coder.fit_model(weights)
        bias_code = entropy_coder.small_float_code(int(np.abs(biases).max()))
        parts.append(struct.pack("<H4B", int(layer.step.view(np.uint32)) >> 16, a, b, largest, bias_code))
        if has_codebooks and (n_out, n_in) == (network["n_neurons"],) * 2:
            # The model may allow a few integers that do not occur. The codebook has an entry for each of them too.
            half = entropy_coder.small_float(largest)
            values = [layer.codebook[min(max(k + len(layer.codebook) // 2, 0), len(layer.codebook) - 1)]
                      for k in range(-half, half + 1)]  # fmt: skip
            parts.append(np.array(values, "<f4").tobytes())
        groups += [weights, biases]
        models += [(a, b, largest), (0, 0, bias_code)]
    return b"".join([*parts, entropy_coder.encode(groups, models)])


# --- reading ----------------------------------------------------------------------------------------


class ByteReader:
    """Bytes that are read in order. Each length is checked before it is trusted."""

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
    """Whether `data` starts with the magic bytes of this format."""
    return data[:4] == MAGIC


def decode_blob(data: bytes, large: bool = False) -> tuple[VolumeHeader, list[tuple[dict, dict[str, np.ndarray]]]]:
    """The header and the networks (description, float32 tensors by name) of a blob.

    Raises BlobError unless the blob is complete and valid, and, unless `large`, of at most USUAL_PARAMETERS weights and
    biases and a mask of at most USUAL_MASK_VOXELS voxels. tests/field/test_hostile.py limits the memory that it takes.
    """
    reader = ByteReader(data, "blob")
    if reader.take(4) != MAGIC:
        raise BlobError("not a blob: expected it to start with 93 4E 56 43")
    version, checksum = reader.unpack("BI")
    if version != VERSION:
        raise BlobError(f"expected a blob of version {VERSION}, found version {version}")
    if zlib.crc32(data[9:]) != checksum:
        raise BlobError("corrupted or truncated: its checksum does not fit its content")
    chunks = _chunks(reader)
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
    missing, networks, world = None, [], None
    for kind, content in chunks:
        if kind == "G":
            spacing, origin = content.unpack(f"{d_in}d"), content.unpack(f"{d_in}d")
        elif kind == "d":
            direction = content.unpack("9d")
        elif kind == "w":
            (world,) = content.unpack("B")
            if world not in (1, 2):
                raise BlobError(f"world axes: expected 1 or 2, found {world}")
        elif kind == "a":
            attributes = _decode_attributes(content.take(len(content.data)))
        elif kind == "q":
            _decode_written(content)
        elif kind == "M":
            if not large:
                _check_usual(math.prod(shape), USUAL_MASK_VOXELS, "voxels with a mask of the missing ones")
            missing = decode_missing(content.take(len(content.data)), dtype, shape)
        elif kind == "N":
            networks.append(_decode_network(content, d_in, d_out, [network for network, _ in networks], large))
        content.end()
    names = attributes.get("name", "sf"), attributes.get("units", "")
    geometry = Geometry(spacing, origin, direction, *names, "LPS" if world else "")
    geometry = geometry.with_signs(SIGNS["RAS"]) if world == 2 else geometry
    header = VolumeHeader(shape, low, high, geometry, missing)
    check_header(header, d_in, d_out)
    return header, networks


def _chunks(reader: ByteReader) -> list[tuple[str, ByteReader]]:
    """The type and the content of each known chunk. Raises BlobError unless there are as many of each as there may."""
    chunks: list[tuple[str, ByteReader]] = []
    while not reader.ended:
        kind, length = reader.unpack("cI")
        kind = kind.decode("latin-1")
        content = ByteReader(reader.take(length), f"chunk {kind!r}")
        if kind in "FGadwqMN":
            chunks.append((kind, content))
        elif not "a" <= kind <= "z":
            raise BlobError(f"holds a chunk of unknown type {kind!r}: written by a newer version")
    kinds = "".join(kind for kind, _ in chunks)
    if kinds[:1] != "F" or "N" not in kinds or any(kinds.count(kind) > 1 for kind in "FGdawqM"):
        raise BlobError(
            f"expected the chunk F, at most one G, d, a, w, q and M, and at least one N, found {shown(kinds)}"
        )
    return chunks


def written_by(data: bytes) -> Written | None:
    """What a valid blob says of the program that wrote it and of its quality; None if it says nothing."""
    for kind, content in _chunks(ByteReader(data[9:], "blob")):
        if kind == "q":
            return _decode_written(content)
    return None


def _decode_written(content: ByteReader) -> Written:
    """The content of chunk q. Raises BlobError."""
    version = content.unpack("2B")
    if content.ended:
        return Written(version)
    (hundredths,) = content.unpack("h")
    return Written(version, math.inf if hundredths == EXACT else hundredths / 100)


def decode_single(data: bytes, large: bool = False) -> tuple[VolumeHeader, dict, dict[str, np.ndarray]]:
    """Header, network and weights of a blob. Raises BlobError unless it has one network, as the scripts write it.

    large: see `decode_blob`.
    """
    header, networks = decode_blob(data, large)
    if len(networks) != 1:
        raise BlobError(f"expected one network, found {len(networks)}: written by a newer version")
    return header, *networks[0]


def decode_missing(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> Mask:
    """The mask of missing voxels from the content of chunk M. Raises BlobError."""
    reader = ByteReader(content, "missing voxels")
    carried = reader.array(_carrier(dtype), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        fill = carried.astype(dtype)[0]
        if np.isinf(fill) or not np.array_equal(fill.astype(carried.dtype), carried[0], equal_nan=dtype.kind == "f"):
            raise BlobError(f"fill value {carried[0]}: is none of dtype {dtype}")
    try:
        return Mask(shape, fill, decompress_mask(content[8:], shape))
    except MaskError as error:
        raise BlobError(f"missing voxels: {error}") from None


def _decode_attributes(text: bytes) -> dict[str, str]:
    try:
        attributes = json.loads(text.decode())
    except (ValueError, RecursionError):
        attributes = None
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise BlobError("attributes: expected a JSON object of text by key")
    return attributes


def _decode_network(
    content: ByteReader, d_in: int, d_out: int, others: list[dict], large: bool
) -> tuple[dict, dict[str, np.ndarray]]:
    flags, n_layers, n_neurons, omega_0 = content.unpack("2BHf")
    if flags > 3:
        raise BlobError(f"flags: expected 0 to 3, found {flags}")
    network = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    network |= {"is_residual": bool(flags & 1), "omega_0": omega_0}
    check_network(network)
    count = check_size([*others, network])
    if not large:
        _check_usual(count, USUAL_PARAMETERS, "weights")
    records = []
    for name, n_out, n_in, omega, _ in layer_table(**network):
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
        records.append((name, n_out, n_in, MAX_FACTOR / omega, step, codes, codebook))
    sizes = [size for _, n_out, n_in, *_ in records for size in (n_out * n_in, n_out)]
    models = [model for *_, codes, _ in records for model in (tuple(codes[:3]), (0, 0, codes[3]))]
    try:
        integers = iter(entropy_coder.decode(content.take(len(content.data) - content.position), sizes, models))
    except entropy_coder.StreamError as error:
        raise BlobError(f"the network's stream {error}") from None
    tensors = {}
    for name, n_out, n_in, limit, step, _, codebook in records:
        layer = QuantisedLayer(next(integers).reshape(n_out, n_in), next(integers), step, codebook)
        with np.errstate(over="ignore"):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = layer.dequantise()
        for tensor in (tensors[f"{name}.weight"], tensors[f"{name}.bias"]):
            if not (-limit <= tensor.min() and tensor.max() <= limit):
                raise BlobError(f"{name}: expected weights of magnitude at most {limit:.3g}, found too large ones")
    return network, tensors
