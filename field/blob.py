"""The blob: a field's header and its quantised networks in one small file.

This docstring is the specification. The code here puts the chunks together and takes them apart. Their content is made
and read in `header_chunks` (F, G, d, w, a, q), `missing` (M, H), `bricks` (S, B) and `network_chunk` (N, P, T).

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
    "S"   symmetry             at most one,       no axis has a mirror
                               before B
    "B"   bricks               at most one,       one brick: the whole field
                               before any network
    "N"   network              one of the three   the brick is constant
    "P"   network, packed      a brick
    "T"   with a trellis

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
("" when absent); and of the axes as far as known: `units_t`, `units_x`, `units_y`, `units_z`, the units of the
coordinates as the CF conventions write them, `calendar`, that of the times, and `positive_z`, "up" or "down".

Chunk q, quality
----------------

    u8 u8          major and minor version of the program that wrote the file
    i16            the PSNR in units of 0.01 dB of what the file decodes to, over the range of chunk F. Values of the
                   volume beyond this range count as its nearest end. 32767: no error at all. These two bytes are
                   absent if the PSNR is unknown

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

A missing voxel has the fill value in every component, whatever the networks say. A file has one of the chunks M and H
at most.

Chunk H, missing voxels, predicted
----------------------------------

    8 bytes        the fill value, as in chunk M
    u8             2 order + 1 if voxel 0 (the first one along every axis) is missing, else 2 order
    u16            L, the number of states of the stream: 1 to 2048. It has at most 1024 L bytes if L < 2048
    ...            the stream of bits, coded as the integers of networks are

The mask has at most 2^24 voxels. Axes k are counted from 0 here. Each has a *stride*, at first the least power of two
that is at least its number of voxels, 2^r(k). The voxels whose indices are multiples of the strides are known: at first
voxel 0 alone.

*Steps.* A step along axis k halves the stride of this axis, to h. Its new voxels have odd multiples of h along axis k,
and multiples of the strides along the others. There are rounds r = R, R - 1, ..., 1, where R is the greatest r(k). The
order is less than 2 d_in; let `last` be order mod d_in. A round has one step along each axis k with r(k) >= r: first
along the axes other than `last`, from the highest k to the lowest, then along `last`. But where order >= d_in, the
rounds leave out `last`, and its r(last) steps come after all rounds.

*Contexts.* A neighbour along an axis is one stride away, by the strides after the step. A new voxel is even if the sum
of index div stride over all axes but k is even; otherwise it is odd. First come all even voxels of the step, then all
odd ones; both in C order. A new voxel has three counts:

    s              how many of its two neighbours along axis k are missing. They were known before the step. Where there
                   is one only, at the end of the axis, it is both of the two, here and in t
    t              how many are missing of the neighbours of these two along the other axes, of 4 (d_in - 1) in all.
                   Where one would lie outside, the voxel whose neighbour it would be counts in its place
    u              0 if the new voxel is even. If it is odd, 1 + how many of its neighbours along the other axes are
                   missing, of 2 (d_in - 1) in all. These are even voxels of the same step. Where one would lie
                   outside, the other one along that axis counts twice; where both would, none counts

Its context is ((3 k + s) (4 d_in - 3) + t) 2 d_in + u.

*Frequencies.* A context has two numbers a and b, at first 1 and 2. A bit is 1 where the voxel is missing. It has the
frequencies f(1) = 1 + a (2^16 - 2) div b and f(0) = 2^16 - f(1); start(0) is 0, and start(1) is f(0). All flags, see
below, have one context of their own. A bit of a voxel is *sure* where f(0) or f(1) is less than 128.

*Batches.* The even voxels of a step come in batches, and then the odd ones. A batch has max(8, n div 128) voxels, or
what is left of the even or odd ones if that is less; n is how many new voxels came before this batch, in all steps. The
sure bits of a batch, with the others left out, are cut into runs of 64; the last one may be shorter. The stream has two
groups for a batch, which may be empty:

    flags          one flag for each run
    bits           those that are not sure, and those of the runs whose flag is 1, all in the order of the voxels. For a
                   sure one among them, f(1) is replaced by 1024 if it is less, by 2^16 - 1024 if it is more than that

The bits of a run whose flag is 0 are not in the stream: each has its more frequent value, 1 if f(1) > 2^15. The
frequencies of a batch, also of its flags, are those before it. After it, b grows by 2 for each voxel and each flag of
the context, whether in the stream or not, and a by 2 for each of them whose bit is 1.

Chunk S, symmetry
-----------------

    d_in x u64     m of each axis: the sum of the indices of a voxel and of its mirror image, so the mirror is at m / 2;
                   0 where the axis has no mirror. At most 2 n - 3 for an axis of n voxels, so that at least one voxel
                   lies beyond. Not all are 0

A position p beyond a mirror has the value of the position m - p. The bricks hold the other side of the mirror, and one
voxel beyond it if m is odd:

    m >= n - 1:    beyond are the positions p > m / 2; bricks hold the voxels 0 to (m + 1) div 2
    0 < m < n - 1: beyond are the positions p < m / 2; bricks hold the voxels m div 2 to n - 1

Only a file with a chunk B may have this chunk.

Chunk B, bricks
---------------

    d_in x u16     the number of bricks along each axis
    for each brick, in C order (the last axis varies fastest):
      d_out x f32  low: of each component. -1 <= low <= high <= 1, in the normalised values of the whole field
      d_out x f32  high

Along an axis of n voxels, the bricks hold the voxels f to l: 0 to n - 1, if there is no mirror (chunk S). The axis is
cut into k bricks, 1 <= k <= max(l - f, 1), at the voxels

    c(i) = f + (2 i (l - f) + k) div (2 k)     for i = 0 to k

Brick i of an axis holds the voxels c(i) to c(i+1), both included: neighbours share a layer of voxels. There are at most
2^20 bricks. A brick whose low equals its high in every component is constant; it has no network. Each of the others has
one chunk N, P or T. These chunks are in the order of the bricks.

Without this chunk there is one brick, the whole field, of low -1 and high 1, and one chunk N, P or T.

Chunks N, P and T, network
--------------------------

    u8             flags. Bit 0: residual. Bit 1, of chunk N only: codebooks. The others are 0
    u8             n_layers, at least 1
    u16            n_neurons, at least 1
    f32            omega_0: 1e-6 to 1e6
    ...            in chunk N: a record for each linear layer
    ...            the stream of all integers, up to the end of the chunk

The networks of a file have at most 2^27 weights and biases in all. The linear layers are, in order and as n_in ->
n_out:

    d_in -> n_neurons
    n_neurons -> n_neurons     for each of the other n_layers - 1 sine layers: two when residual, else one
    n_neurons -> d_out

A layer has a weight matrix W (n_out x n_in, row by row) and a bias b (n_out). Each of their numbers is stored as one
integer k. It stands for step k, rounded to f32, unless the layer has a codebook or a trellis. All weights and biases
are finite, and in a sine layer at most 1e30 / omega_0 in magnitude, in the last layer at most 1e30: so no phase
overflows an f32.

The integers of a network come in this order: matrix and bias of the first layer, matrix and bias of the second, ...

*Chunk N.* The record of a layer is

    u16            step: the upper half of an f32 whose lower half is 0; positive and finite
    u8 u8 u8       a, b, m: the model of the matrix's integers, see below
    u8             m of the bias's integers; their a and b are 0
    (2 M + 1) x    the codebook, finite; M = s(m) is that of the matrix. Only with flag bit 1, and only for a layer with
      f32          n_in = n_out = n_neurons. (The first or last layer may be such a one)

With a codebook, an integer k of a matrix stands for codebook[M + k], counted from 0.

*Chunk P.* The stream begins with four more integers for each linear layer, layer after layer, all by the model
(168, 0, 72). Each is added to the number in the same place of the layer before, those of the first layer to 940, 130,
30 and 25. The sums are

    t              1 to 2039: the step is the f32 whose bits are 2^20 t
    r              0 to 255
    m              0 to 103: the matrix's integers have the model (r, 0, m) in the first layer, (0, r, m) in all others
    g              0 to 103: the bias's integers have the model (0, 0, g), or they are gaps with M = s(g)

The biases of some layers ascend from 0 or more: of all sine layers, when not residual; of the first layer and of the
first one of each residual block (W1, b1 below), when residual. Their integers are gaps: the first bias, and then what
each is more than the one before. The last bias is at most 30720. (A writer can bring any network into this form. The
order of its neurons changes nothing; nor does the sign of all numbers of a neuron, as a sine is odd.)

*Chunk T* is a chunk P, in which all matrices but the first have a trellis: integer k(i) of such a matrix, counted from
0, row by row, stands for step / 2 (2 k(i) + u(i)), rounded to f32. With u(i) = 0 and k(i) = 0 for i < 0,

    u(i) = (u(i - 1) + u(i - 6) + k(i - 2) + k(i - 4)) mod 2

The stream of integers
----------------------

The integers are coded by rANS. `x div y` is the integer part of x / y; products to its left are taken first.

*Small floats.* A byte c stands for the integer s(c) = c if c < 8, else (8 + c mod 8) 2^(c div 8 - 1).

*Frequencies.* A model (a, b, m) codes the integers k from -M to M. Let A = s(a), B = s(b), and M = s(m) <= 30720. For
each k from 0 to M:

    e    = min(A k + min(B k, 2^34) k, 30 x 2^24)
    v(k) = 2^30
    for i = 1 to 16:   if e div 2^(24 - i) is odd:   v(k) = v(k) P(i) div 2^30
    v(k) = v(k) div 2^(e div 2^24)

P(i) is the integer nearest to 2^30 x 2^-(2^-i). Let S be the sum of v(|k|) over k = -M to M. The frequency of k is

    f(k) = 1 + v(|k|) (2^16 - (2 M + 1)) div S

Gaps are integers k from 0 to M. Their A is 5 x 2^24 div max(M, 1), their B is 0. S is the sum of v(k) over k = 0 to M,

    f(k) = 1 + v(k) (2^16 - (M + 1)) div S

What the frequencies lack of 2^16 in all is added to f(0). start(k) is the sum of f over all integers below k.

*Decoding.* There are L = min(max(n div 8192, 1), 2048) states for the n integers of a network; chunk H says its own L.
The stream is L x u32, the states, and then u16 words. The integers of a network come in groups: those with which chunk
P begins, then each matrix and each bias. Integer number i of a group, counted from 0 in each group, is read from the
state x number i mod L:

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

A brick's share of the field's normalised value is g = low + (clip(y, -1, 1) + 1) / 2 (high - low). For a brick, n and N
above are those of the brick's own voxels, and i is counted from its first voxel; i may be a fraction.

Where bricks meet, their values are blended. At a cut c of an axis (c(1) to c(k-1)), for a position p along this axis,
in voxels, with c - 1/2 < p < c + 1/2:

    t = p - c + 1/2     the upper brick has the weight t t (3 - 2 t), the lower one has 1 less this

Everywhere else along the axis one brick has the weight 1: brick i from c(i) + 1/2 to c(i+1) - 1/2, the first brick from
f on, the last one up to l. The weight of a brick is the product of its weights along the axes, G is the sum of all
bricks' weight times g.

The value is least + (clip(G, -1, 1) + 1) / 2 (greatest - least). Integers are rounded to the nearest one. Weights are
exact, the same for every reader; the rounding of this arithmetic is the reader's choice.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from field.binary import BlobError, ByteReader
from field.bricks import Bricks, Cut, check_cut, decode_cut, encode_cut
from field.header_chunks import Written, check_header, decode_header, decode_written, encode_header, encode_written
from field.layers import SirenConfig
from field.mask_coder import MAX_VOXELS
from field.missing import decode_missing, decode_predicted, encode_missing, encode_predicted
from field.network_chunk import HEAD, NetworkChunk, StoredNetworks, check_size, decode_config, encode_network
from field.quantised import QuantisedLayer
from utils import BLOB_MAGIC, Mask, VolumeHeader, quoted

VERSION = 1
NETWORKS = "NPT"  # types of chunks that hold a network
KNOWN = "FGdwaqMHSB" + NETWORKS  # types of chunks
ORDERS = ("N", "BN", "B", "SBN", "SB")  # in which chunks of these types may come; all of NETWORKS count as one N
# A file of a few kilobytes can hold as many as the format allows. More than these are read only when asked for.
USUAL_PARAMETERS = 1 << 24
USUAL_MASK_VOXELS = 1 << 30


def is_usual(header: VolumeHeader, n_parameters: int) -> bool:
    """Whether a reader takes a field with so many weights and biases without `large`; see `decode_field`."""
    return n_parameters <= USUAL_PARAMETERS and (header.missing is None or header.n_voxels <= USUAL_MASK_VOXELS)


def _check_usual(count: int, limit: int, what: str) -> None:
    if count > limit:
        way_out = "--large reads it, large=True in Python, Large in ParaView"
        raise BlobError(f"holds {count} {what}, more than {limit}: it can take gigabytes of memory: {way_out}")


# --- writing ----------------------------------------------------------------------------------------


def encode_blob(
    header: VolumeHeader,
    networks: Sequence[tuple[SirenConfig, list[QuantisedLayer]]],
    written: Written | None = None,
    cut: Cut | None = None,
) -> bytes:
    """The blob of a header and of networks. networks: the settings and the linear layers of each.

    cut: how the field is cut; then there is a network for each brick that is not constant, in the order of the
    bricks. Raises BlobError for what the format cannot hold.
    """
    configs = [config for config, _ in networks]
    d_in, d_out = len(header.shape), header.n_components
    if any((config.d_in, config.d_out) != (d_in, d_out) for config in configs):
        raise BlobError(f"expected networks of the same d_in and d_out as the header, {d_in} and {d_out}")
    check_header(header, d_in, d_out)
    check_size(configs)
    chunks = encode_header(header)
    if written:
        chunks["q"] = encode_written(written)
    if header.missing:
        chunks |= _encode_mask(header.missing)
    if cut is not None:
        check_cut(cut, header.shape, d_out)
        _check_number(cut, len(networks))
        chunks |= encode_cut(cut)
    listed = [*chunks.items(), *(encode_network(config, layers) for config, layers in networks)]
    body = b"".join(struct.pack("<cI", kind.encode(), len(content)) + content for kind, content in listed)
    return BLOB_MAGIC + struct.pack("<BI", VERSION, zlib.crc32(body)) + body


def _encode_mask(missing: Mask) -> dict[str, bytes]:
    """The shorter one of the chunks M and H."""
    chunk = encode_missing(missing)
    if math.prod(missing.shape) <= MAX_VOXELS:
        predicted = encode_predicted(missing)
        if len(predicted) < len(chunk):
            return {"H": predicted}
    return {"M": chunk}


def _check_number(cut: Cut, n_networks: int) -> None:
    """Raise BlobError unless every brick that is not constant has a network."""
    expected = np.count_nonzero(~cut.is_constant)
    if n_networks != expected:
        raise BlobError(f"expected {expected} networks, one for each brick that is not constant, found {n_networks}")


# --- reading ----------------------------------------------------------------------------------------


def is_blob(data: bytes) -> bool:
    """Whether `data` starts with the magic bytes of this format."""
    return data[:4] == BLOB_MAGIC


def decode_field(data: bytes, large: bool = False) -> tuple[VolumeHeader, Bricks]:
    """The header and the bricks of a blob; a field that is not cut is one brick. Networks are decoded on access.

    Raises BlobError unless the blob is complete and valid, and, unless `large`, of at most USUAL_PARAMETERS weights and
    biases and a mask of at most USUAL_MASK_VOXELS voxels. tests/field/test_hostile.py limits the memory that it takes.
    The integers of a network are read, and BlobError raised for wrong ones, when it is decoded: of a field that is not
    cut at once.
    """
    chunks, contents = _chunks(data)
    header = decode_header(chunks)
    shape, d_out = header.shape, header.n_components
    if "q" in chunks:
        decode_written(chunks["q"])
    if "M" in chunks:
        if not large:
            _check_usual(header.n_voxels, USUAL_MASK_VOXELS, "voxels with a mask of the missing ones")
        header = dataclasses.replace(header, missing=decode_missing(chunks["M"], header.dtype, shape))
    if "H" in chunks:
        header = dataclasses.replace(header, missing=decode_predicted(chunks["H"], header.dtype, shape))
    cut = decode_cut(chunks, shape, d_out) if "B" in chunks else None
    for content in chunks.values():
        content.end()
    networks = _networks(contents, len(shape), d_out)
    count = check_size(stored.config for stored in networks)
    if not large:
        _check_usual(count, USUAL_PARAMETERS, "weights")
    if cut:
        _check_number(cut, len(networks))
        return header, Bricks(cut, StoredNetworks(cut.is_constant, networks))
    if len(networks) != 1:
        raise BlobError(f"expected one network, found {len(networks)}: written by a newer version")
    (stored,) = networks
    return header, Bricks.whole(stored.config, stored.weights())


def network_configs(data: bytes) -> list[SirenConfig]:
    """The settings of all networks of a blob, none of which is decoded. Raises BlobError."""
    chunks, contents = _chunks(data)
    header = decode_header(chunks)
    return [stored.config for stored in _networks(contents, len(header.shape), header.n_components)]


def written_by(data: bytes) -> Written | None:
    """What a blob, of either kind, says of its writer and of its quality; None if it says nothing. Raises BlobError."""
    chunks, _ = _chunks(data) if is_blob(data) else ({}, [])  # one of the original scripts has no chunks
    return decode_written(chunks["q"]) if "q" in chunks else None


def _networks(contents: list[tuple[str, bytes]], d_in: int, d_out: int) -> list[NetworkChunk]:
    """The networks in the chunks of NETWORKS, whose types and contents are given. Raises BlobError."""
    found: dict[tuple[str, bytes], SirenConfig] = {}  # the networks of bricks are often alike, and many
    networks = []
    for kind, content in contents:
        head = content[:HEAD]
        if (kind, head) not in found:
            found[kind, head] = decode_config(ByteReader(head, f"chunk {kind!r}"), kind, d_in, d_out)
        networks.append(NetworkChunk(kind, content, found[kind, head]))
    return networks


def _chunks(data: bytes) -> tuple[dict[str, ByteReader], list[tuple[str, bytes]]]:
    """The content of each known chunk by its type, and the types and contents of all networks. Raises BlobError.

    Magic bytes, version and checksum are right; no type comes too often, or at a place where it may not.
    """
    reader = ByteReader(data, "blob")
    if reader.take(4) != BLOB_MAGIC:
        raise BlobError("not a blob: expected it to start with 93 4E 56 43")
    version, checksum = reader.unpack("BI")
    if version != VERSION:
        raise BlobError(f"expected a blob of version {VERSION}, found version {version}")
    if zlib.crc32(data[9:]) != checksum:
        raise BlobError("corrupted or truncated: its checksum does not fit its content")
    chunks: dict[str, ByteReader] = {}
    networks: list[tuple[str, bytes]] = []
    kinds = []  # of the known chunks, in the order of the file; all of NETWORKS as one N
    while not reader.ended:
        kind, length = reader.unpack("cI")
        kind = kind.decode("latin-1")
        content = reader.take(length)
        if kind not in KNOWN:
            if not "a" <= kind <= "z":
                raise BlobError(f"holds a chunk of unknown type {kind!r}: written by a newer version")
            continue
        if kind in NETWORKS:
            kinds += "" if networks else "N"
            networks.append((kind, content))
        else:
            kinds += kind
            chunks[kind] = ByteReader(content, f"chunk {kind!r}")
    _check_kinds("".join(kinds))
    return chunks, networks


def _check_kinds(kinds: str) -> None:
    """Raise BlobError unless a file may hold chunks of these types, in this order."""
    is_once_each = len(set(kinds)) == len(kinds) and not {"M", "H"} <= set(kinds)
    if not (kinds.startswith("F") and is_once_each and "".join(kind for kind in kinds if kind in "SBN") in ORDERS):
        what = "the chunk F, at most one each of G, d, a, w, q, M or H, and one N, P or T; or for bricks at most one S"
        raise BlobError(f"expected {what}, one B, all networks; found {quoted(kinds)}")
