"""Bytes and seconds of masks of missing voxels, by LZMA (chunk M of a blob) and predicted (chunk H).

Missing are voxels with the volume's fill value, or those of at most the value --below. Without a VOLUME, masks are
made: the ground at the levels of an ocean model, what lies outside a head, clouds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from shared import argument_parser, table_head, table_row

from cli import console
from field.binary import ByteReader
from field.missing import decode_missing, decode_predicted, encode_missing, encode_predicted
from formats.common import VolumeError
from formats.reading import read_volume
from utils import Mask, header_of


def rough(shape: tuple[int, ...], exponent: float, seed: int) -> np.ndarray:
    """A Gaussian random field whose amplitudes fall as the wave number to the power of -exponent; of mean 0, std 1."""
    k = np.sqrt(sum(np.square(part) for part in np.ix_(*(np.fft.fftfreq(n, 1 / n) for n in shape))))
    k.flat[0] = np.inf
    wave = np.fft.fftn(np.random.default_rng(seed).standard_normal(shape)) * k**-exponent
    field = np.fft.ifftn(wave).real
    return field / field.std()


def made() -> Iterator[tuple[str, np.ndarray]]:
    """Names and masks."""
    levels = 1 - np.linspace(0, 1, 40) ** 2 * 4
    yield "ocean, 40 x 180 x 360", levels[:, None, None] < rough((180, 360), 1.5, 0)
    head = sum(np.ix_(*(np.linspace(-1, 1, n) ** 2 for n in (90, 108, 90))))
    yield "head, 90 x 108 x 90", head + 0.2 * rough(head.shape, 2.5, 1) > 0.8
    yield "clouds, 96 x 96 x 96", rough((96, 96, 96), 2.0, 2) > 0.5


def row(name: str, missing: Mask) -> str:
    """A row of the table. Fails unless both chunks give the mask back."""

    def timed(function: Callable, *args) -> tuple[object, str]:
        start = time.perf_counter()
        return function(*args), f"{time.perf_counter() - start:.2f}"

    cells = [name, f"{100 * missing.count / np.prod(missing.shape):.0f} %"]
    for encode, decode in ((encode_missing, decode_missing), (encode_predicted, decode_predicted)):
        content, to_write = timed(encode, missing)
        found, to_read = timed(decode, ByteReader(content, name), missing.fill.dtype, missing.shape)
        assert np.array_equal(found.bits, missing.bits), f"{name}: another mask came back"
        cells += [f"{len(content):,}", to_write, to_read]
    return table_row(cells)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, "*")
    parser.add_argument("--below", type=float, help="voxels of at most this value are missing")
    args = parser.parse_args(argv)
    coders = [f"{name}, {what}" for name in ("LZMA", "predicted") for what in ("bytes", "s to write", "s to read")]
    print(table_head(["mask", "missing", *coders]))
    if not args.volumes:
        for name, are_missing in made():
            print(row(name, Mask.of(are_missing.shape, np.float32(np.nan), are_missing)), flush=True)
    for path in args.volumes:
        volume = read_volume(path)
        missing = header_of(volume).missing
        if args.below is not None:
            are_missing = (volume.values <= args.below).all(axis=-1)
            missing = Mask.of(are_missing.shape, np.float32(np.nan), are_missing)
        if missing is None:
            raise VolumeError(f"{path}: no voxel is missing; --below says which ones are")
        print(row(path, missing), flush=True)


if __name__ == "__main__":
    console.run(main)
