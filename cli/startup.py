"""What a script sets in its process, as it imports this module: errors and streams, threads of NumPy.

A script imports this module first. So Ctrl-C gives one line while the modules that are heavy still load. Nothing else
imports it: the process of one who uses the field as a library stays as it is.
"""

from __future__ import annotations

import os
import sys

from cli.endings import EXIT_ERROR, end_interrupted

REQUIRED = {"numpy", "torch", "tqdm", "vtkmodules"}  # what requirements.txt installs


def _excepthook(kind, value, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        end_interrupted()
    if issubclass(kind, ModuleNotFoundError) and value.name in REQUIRED:
        name, way_out = os.path.basename(sys.argv[0]), "pip install -r requirements.txt"
        print(f"{name}: error: {value.name} is not installed: {way_out}", file=sys.stderr, flush=True)
        os._exit(EXIT_ERROR)
    sys.__excepthook__(kind, value, trace)


def _open_standard_streams() -> None:
    """Open those that are closed (`2>&-`), or a file of data would get their number, and what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


_open_standard_streams()
sys.excepthook = _excepthook
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # --num_workers sets the threads, not NumPy
