"""The blob: a field's description and its quantised networks in one small file.

Format, version 1. Little-endian throughout; u8, u16, u32 unsigned, f32, f64 IEEE 754.

    offset  size
    0       4     magic: 93 4E 56 43
    4       u8    version: 1
    5       u32   CRC-32 (zlib's) of everything that follows
    9       ...   chunks up to the end of the file

A chunk is u8 type, u32 length, then `length` bytes. A reader skips a chunk whose type is a lower-case letter it
does not know, and refuses one of upper case. Types:

    "F"  field, exactly one, first:
         u8 d_in (1 to 4), u8 d_out, u8 dtype (index into DTYPES), d_in x u32 grid shape,
         d_out x (low, high): the range of each component, each 8 bytes: i64 for the signed integer
         dtypes, u64 for the unsigned, f64 for the floats
    "G"  geometry, at most one: d_in x f64 spacing, d_in x f64 origin. Spacing 1 and origin 0 when absent
    "n"  name of the field, at most one: UTF-8. "sf" when absent
    "N"  network, at least one:
         u8 is_residual, u8 n_layers, u16 n_neurons, f32 omega_0, u32 length of the stream, the stream

The stream, once inflated (zlib), holds for every parameter tensor in the order of `parameter_shapes`: u8 bits,
f32 low, f32 step, then its indices in C order, one byte each when bits <= 8, two otherwise (all low bytes, then all
high bytes). A weight is low + step * index, computed in float32.

Values: voxel i of an axis of n voxels lies at x = (2 i - (n - 1)) / (longest n - 1), an axis of one voxel at 0. The
network maps x to y: sin(omega_0 (W x + b)); then each of the other n_layers - 1 layers the same, or, when is_residual,
a (x + sin(omega_0 (W2 sin(omega_0 (W1 c x + b1)) + b2))) with c = 1 in the first such block and 1/2 in the others,
a = 1/2 in the last block and 1 in the others; at last W x + b. The value is
low + (clip(y, -1, 1) + 1) / 2 (high - low), rounded for integers.

The blobs of the original neurcomp scripts are read too, by `decode_original`.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib

import numpy as np

MAGIC = b"\x93NVC"
VERSION = 1
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
MAX_PARAMETERS = 1 << 27  # a larger network is refused before anything is allocated for it
MAX_VOXELS = 1 << 40
ORIGINAL_BITS = (4, *range(6, 17))  # the original's reader garbles indices of 1, 2, 3 and 5 bits


class BlobError(ValueError):
    """A blob, or something to be put into one, that breaks the format; the message says what was expected and found."""


@dataclasses.dataclass(frozen=True)
class FieldHeader:
    """What a blob says about its field.

    shape: grid axes, voxels. low, high: range of each component, arrays of the field's dtype. spacing, origin: one
    figure per grid axis.
    """

    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    name: str = "sf"


def check_field(header: FieldHeader, d_in: int, d_out: int) -> None:
    """Raise BlobError unless the header describes a possible field of that many axes and components."""
    shape = header.shape
    if not 1 <= d_in <= 4 or len(shape) != d_in or len(header.spacing) != d_in or len(header.origin) != d_in:
        raise BlobError(f"expected {d_in} axes, found shape {shape}, spacing {header.spacing}, origin {header.origin}")
    if any(not isinstance(n, int) or not 1 <= n < 1 << 32 for n in shape) or math.prod(shape) > MAX_VOXELS:
        raise BlobError(f"shape {shape}: expected at least 1 voxel an axis and at most {MAX_VOXELS} in all")
    if not all(isinstance(s, int | float) and math.isfinite(s) for s in (*header.spacing, *header.origin)):
        raise BlobError(f"spacing {header.spacing}, origin {header.origin}: expected finite numbers")
    if not all(s > 0 for s in header.spacing):
        raise BlobError(f"spacing {header.spacing}: expected positive numbers")
    if header.low.dtype.name not in DTYPES:
        raise BlobError(f"dtype {header.low.dtype}: expected one of {', '.join(DTYPES)}")
    if header.low.shape != (d_out,) or header.high.shape != (d_out,):
        raise BlobError(f"expected the range of {d_out} components, found {len(header.low)}")
    if not (np.isfinite(header.low).all() and np.isfinite(header.high).all() and (header.low <= header.high).all()):
        raise BlobError(f"range {header.low} to {header.high}: expected finite values, the lower first")


def check_network(network: dict) -> None:
    """Raise BlobError unless a network's description (the fields of SirenConfig) is within the format's limits."""
    limits = {"n_layers": 255, "n_neurons": 65535, "d_in": 4, "d_out": 255}
    for name, limit in limits.items():
        if not 1 <= network[name] <= limit:
            raise BlobError(f"{name}: expected 1 to {limit}, found {network[name]}")
    if not isinstance(network["is_residual"], bool):
        raise BlobError(f"is_residual: expected true or false, found {network['is_residual']!r}")
    if not (math.isfinite(network["omega_0"]) and network["omega_0"] > 0):
        raise BlobError(f"omega_0: expected a positive number, found {network['omega_0']}")
    count = sum(math.prod(shape) for shape in parameter_shapes(**network).values())
    if count > MAX_PARAMETERS:
        raise BlobError(f"expected at most {MAX_PARAMETERS} parameters, found {count}")


def parameter_shapes(
    n_neurons: int, n_layers: int, d_in: int, d_out: int, is_residual: bool, omega_0: float = 0
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter tensor, in the order of the network's state dict."""
    linears = {"net_layers.0.linear": (n_neurons, d_in)}
    for i in range(1, n_layers):
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            linears[f"net_layers.{i}.{part}"] = (n_neurons, n_neurons)
    linears[f"net_layers.{n_layers}"] = (d_out, n_neurons)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n_out, n_in) in linears.items():
        shapes[f"{name}.weight"] = (n_out, n_in)
        shapes[f"{name}.bias"] = (n_out,)
    return shapes


# --- writing ----------------------------------------------------------------------------------------


def encode(header: FieldHeader, networks: list[tuple[dict, dict[str, np.ndarray]]], bits: int) -> bytes:
    """The blob of a field and its networks.

    networks: (description, float32 tensors by name) of each; bits (1 to 16): at most 2^bits values for the
    weights of a hidden matrix. Raises BlobError for what the format cannot hold.
    """
    description = networks[0][0]
    d_in, d_out = description["d_in"], description["d_out"]
    check_field(header, d_in, d_out)
    dtype = header.low.dtype
    carrier = _carrier(dtype)
    limits = np.stack([header.low, header.high], axis=1).astype(carrier)
    field = struct.pack(f"<3B{d_in}I", d_in, d_out, DTYPES.index(dtype.name), *header.shape) + limits.tobytes()
    chunks = [(b"F", field)]
    if header.spacing != (1.0,) * d_in or header.origin != (0.0,) * d_in:
        chunks.append((b"G", struct.pack(f"<{2 * d_in}d", *header.spacing, *header.origin)))
    if header.name != "sf":
        chunks.append((b"n", header.name.encode()))
    for network, tensors in networks:
        check_network(network)
        stream = zlib.compress(
            b"".join(_quantise(name, tensors[name], bits) for name in parameter_shapes(**network)), 9
        )
        numbers = (network["is_residual"], network["n_layers"], network["n_neurons"], network["omega_0"], len(stream))
        chunks.append((b"N", struct.pack("<2BHfI", *numbers) + stream))
    body = b"".join(kind + struct.pack("<I", len(content)) + content for kind, content in chunks)
    return MAGIC + struct.pack("<BI", VERSION, zlib.crc32(body)) + body


def _carrier(dtype: np.dtype) -> str:
    """The 8-byte type that holds every value of `dtype`."""
    return {"i": "<i8", "u": "<u8", "f": "<f8"}[dtype.kind]


def _is_hidden(name: str) -> bool:
    """Whether a parameter is a matrix between two hidden layers: most weights, and the least sensitive."""
    return name.endswith("weight") and ".linear" in name and not name.startswith("net_layers.0.")


def _quantise(name: str, tensor: np.ndarray, bits: int) -> bytes:
    bits = bits if _is_hidden(name) else 16
    low, high = float(tensor.min()), float(tensor.max())
    step = np.float32((high - low) / (2**bits - 1))
    indices = np.zeros(tensor.size) if step == 0 else np.rint((tensor.ravel().astype(np.float64) - low) / step)
    planes = indices.clip(0, 2**bits - 1).astype("<u2").view(np.uint8).reshape(-1, 2).T
    return struct.pack("<Bff", bits, low, step) + planes[: 1 + (bits > 8)].tobytes()


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
        if kind in "FGnN":
            chunks.append((kind, content))
        elif not kind.islower():
            raise BlobError(f"holds a chunk of unknown type {kind!r}: written by a newer version")
    kinds = "".join(kind for kind, _ in chunks)
    if kinds[:1] != "F" or "N" not in kinds or any(kinds.count(kind) > 1 for kind in "FGn"):
        raise BlobError(f"expected the chunk F, at most one G and n, and at least one N, found {kinds!r}")

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
    spacing, origin, name = (1.0,) * d_in, (0.0,) * d_in, "sf"
    networks = []
    for kind, content in chunks:
        if kind == "G":
            spacing, origin = content.unpack(f"{d_in}d"), content.unpack(f"{d_in}d")
        elif kind == "n":
            try:
                name = content.take(len(content.data)).decode()
            except UnicodeDecodeError:
                raise BlobError("the field's name: expected UTF-8") from None
        elif kind == "N":
            networks.append(_decode_network(content, d_in, d_out))
        content.end()
    header = FieldHeader(shape, low, high, spacing, origin, name)
    check_field(header, d_in, d_out)
    return header, networks


def _decode_network(content: _Reader, d_in: int, d_out: int) -> tuple[dict, dict[str, np.ndarray]]:
    is_residual, n_layers, n_neurons, omega_0, length = content.unpack("2BHfI")
    if is_residual > 1:
        raise BlobError(f"is_residual: expected 0 or 1, found {is_residual}")
    network = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    network |= {"is_residual": bool(is_residual), "omega_0": omega_0}
    check_network(network)
    shapes = parameter_shapes(**network)
    longest = sum(9 + 2 * math.prod(shape) for shape in shapes.values())
    inflater = zlib.decompressobj()
    try:
        stream = _Reader(inflater.decompress(content.take(length), longest + 1), "weights")
    except zlib.error as error:
        raise BlobError(f"weights do not inflate: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise BlobError(f"weights: expected a stream that ends within {longest} bytes")
    tensors = {}
    for name, shape in shapes.items():
        bits, low, step = stream.unpack("Bff")
        if not 1 <= bits <= 16 or not (math.isfinite(low) and math.isfinite(step) and step >= 0):
            raise BlobError(f"{name}: expected 1 to 16 bits and finite levels, found {bits} bits, {low}, {step}")
        count = math.prod(shape)
        indices = stream.array("u1", count).astype(np.float32)
        if bits > 8:
            indices += stream.array("u1", count).astype(np.float32) * np.float32(256)
        tensors[name] = (np.float32(low) + np.float32(step) * indices).reshape(shape)
        if not np.isfinite(tensors[name]).all():
            raise BlobError(f"{name}: its weights overflow")
    stream.end()
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
        if _is_hidden(name):
            centroids = reader.array("<f4", 1 << bits)
            tensors[name] = centroids[_unpack_original_indices(reader, bits, count)].reshape(shape)
        else:
            tensors[name] = reader.array("<f4", count).reshape(shape).copy()
        if not np.isfinite(tensors[name]).all():
            raise BlobError(f"{name} holds NaN or infinite weights")
    reader.end()
    return network, tensors


def _unpack_original_indices(reader: _Reader, bits: int, count: int) -> np.ndarray:
    """Indices of `bits` bits, most significant first; the bits of a last partial byte are right-aligned in it.

    When `bits` is no multiple of 8, the last index follows once more as u32, which is the one that counts.
    """
    packed = np.unpackbits(reader.array("u1", (bits * count + 7) // 8))
    partial = bits * count % 8
    if partial:
        packed = np.concatenate([packed[:-8], packed[-partial:]])
    places = (1 << np.arange(bits)[::-1]).astype(np.uint32)
    indices = packed.reshape(count, bits) @ places
    if bits % 8:
        indices[-1] = reader.unpack("I")[0]
        if indices[-1] >= 1 << bits:
            raise BlobError(f"an index of {bits} bits is {indices[-1]}")
    return indices
