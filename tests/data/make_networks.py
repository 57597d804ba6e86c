"""Trains the networks that tests of rounding start from, and stores them beside this file.

    python tests/data/make_networks.py [NAME ...]

A network differs from machine to machine, what rounding costs it far less. So these are trained once and kept; `stored`
in tests/helpers/scripts.py reads them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1])]

from helpers.scripts import train  # noqa: E402
from helpers.volumes import labels, large_integers, noise, noisy_waves, wave, waves  # noqa: E402

SMALL, LARGER = (20, 16, 12), (30, 24, 20)
ADAM = ("--optimizer", "adam", "--schedule", "step", "--lr", 3e-3, "--batchSize", 128, "--oversample", 1)
# By name: volume, layers, flags of train.py.
NETWORKS = {
    "wave": (wave((14, 12, 10)), 3, (*ADAM, "--n_passes", 40, "--w0", 30, "--seed", 1)),
    "waves": (waves(SMALL), 3, ("--n_passes", 100)),
    "waves_briefly": (waves(LARGER), 4, ("--n_passes", 8)),
    "noisy_waves": (noisy_waves(SMALL), 4, ("--n_passes", 200)),
    "labels_exact": (labels(SMALL), 4, ("--n_passes", 150, "--compression_ratio", 2, "--oversample", 2)),
    "large_integers": (large_integers(SMALL), 4, ("--n_passes", 20)),
    "noise": (noise((12, 12, 12)), 2, ("--n_passes", 30, "--lr", 1e-4, "--batchSize", 2048)),
}


def main(names: list[str]) -> None:
    """Train and store the networks of these names, or all."""
    for name in names or NETWORKS:
        volume, n_layers, flags = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "v.npy", volume)
            trained = train(Path(folder) / "v.npy", Path(folder), "--n_layers", n_layers, *flags)
            settings = trained.settings | {"options": {}, "time": 0.0, "seconds": 0.0}
            (FOLDER / f"{name}.pth").write_bytes(trained.data)
            (FOLDER / f"{name}.json").write_text(json.dumps(settings) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
