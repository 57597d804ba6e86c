"""Seconds that a network of about a million weights takes: rounding and encoding it, and decoding its blob. One core.

Prints key=value lines: the steps of `net_compress.py` without --volume, which carries no errors over in networks that
large, the median of REPEATS runs each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from shared import argument_parser, median_seconds

from cli import console
from field import entropy_coder
from field.blob import decode_field, encode_blob
from field.layers import SirenConfig
from quantising.order import in_order
from quantising.rounding import round_layers
from quantising.sensitivity import N_POINTS, choose_steps, quasirandom_points, sensitivities
from siren import FieldNet, neurons_for_budget
from utils import Geometry, VolumeHeader

REPEATS = 5
SHAPE = (64, 64, 64)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """(median seconds of REPEATS calls of `work`, its result)."""
    return median_seconds(work, REPEATS), work()


def main(argv: Sequence[str]) -> None:
    """Measure and print the results."""
    parser = argument_parser(__doc__)
    parser.add_argument("--parameters", type=float, default=1e6)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 9, 15])
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = SirenConfig(neurons_for_budget(opt.parameters))
    net = in_order(FieldNet(config, torch.Generator().manual_seed(0)))
    header = VolumeHeader(SHAPE, np.float32([0]), np.float32([1]), Geometry.plain(3))
    points = quasirandom_points(SHAPE, N_POINTS)
    print(f"parameters={config.n_parameters}\nn_neurons={config.n_neurons}", flush=True)
    for bits in opt.bits:
        to_choose, steps = timed(lambda bits=bits: choose_steps(net, sensitivities(net, points), bits=bits))
        to_round, layers = timed(lambda steps=steps: round_layers(net, steps))
        to_fit, _ = timed(lambda layers=layers: [entropy_coder.fit_model(layer.weights) for layer in layers])
        to_encode, blob = timed(lambda layers=layers: encode_blob(header, [(config, layers)]))
        to_decode, _ = timed(lambda blob=blob: decode_field(blob))
        seconds = {"choose_steps": to_choose, "round": to_round, "fit_models": to_fit, "encode": to_encode}
        seconds |= {"compress": to_choose + to_round + to_encode, "decode": to_decode}
        figures = {"bits": bits, "bytes": len(blob)} | {f"{name}_s": f"{s:.3f}" for name, s in seconds.items()}
        print("\n".join(f"{key}={value}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    console.run(main)
