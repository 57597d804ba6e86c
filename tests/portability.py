"""Run the tests under other arithmetic than this machine's own, and print a table, a row a setting.

Products, sines and sums round differently with every instruction set, library and number of threads. A test that
depends on how is noticed here, before it fails on another machine. The last rows move every weight by a millionth.

    python tests/portability.py                              all settings, the whole suite
    python tests/portability.py --setting perturb            the settings whose names contain a text
    python tests/portability.py -m slow -n auto              what else there is goes to pytest

Exit status 0 if no test failed in any row.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
N_PERTURBED = 10
# Checksums of what NumPy and torch make of the same numbers: settings with equal ones have the same arithmetic.
PROBE = """
import zlib, numpy as np, torch
a = np.random.default_rng(0).standard_normal((150, 150)).astype("f")
t = torch.from_numpy(a)
for parts in ((a @ a, np.sin(a), a.sum(1)), (t @ t, torch.sin(t), t.sum(1), torch.lerp(t, t.T, 0.3))):
    print("%04x" % (zlib.crc32(b"".join(np.asarray(part).tobytes() for part in parts)) & 0xFFFF))
"""


def numpy_features(*names: str) -> str:
    """Of the instruction sets that NumPy may choose on this processor, those whose names begin like `names`."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    except ImportError:  # before NumPy 2
        from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name] and name.startswith(names))


def settings() -> dict[str, tuple[dict[str, str], list[str]]]:
    """By name, what each adds to the environment and to pytest's arguments; those that this processor has."""
    avx512 = numpy_features("AVX512", "X86_V4")
    avx2 = " ".join(filter(None, (numpy_features("AVX2", "FMA3", "X86_V3"), avx512)))
    numpy = {"without AVX-512": avx512, "without AVX2": avx2}
    openblas = ["Prescott", "Nehalem", *(("Haswell", "Zen") if avx2 else ()), *(("SkylakeX",) if avx512 else ())]
    mkl = ["SSE4_2", *(("AVX2",) if avx2 else ())]
    two = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    plain = {"OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    return {
        "this machine's own, one thread": ({}, []),
        **{f"NumPy {how}": ({"NPY_DISABLE_CPU_FEATURES": names}, []) for how, names in numpy.items() if names},
        **{f"OpenBLAS {core}": ({"OPENBLAS_CORETYPE": core}, []) for core in openblas},
        "torch without vector instructions": ({"ATEN_CPU_CAPABILITY": "default"}, []),
        **{f"MKL {name}": ({"MKL_ENABLE_INSTRUCTIONS": name}, []) for name in mkl},
        "all of the plainest": (plain | ({"NPY_DISABLE_CPU_FEATURES": avx2} if avx2 else {}), []),
        # One process: threads of several that share the cores wait for each other.
        "two threads": (two, ["-n", "0"]),
        **{f"perturb {seed}": ({}, ["--perturb", str(seed)]) for seed in range(1, N_PERTURBED + 1)},
    }


def run(environment: dict[str, str], arguments: list[str]) -> tuple[str, str, int, int]:
    """The probe's checksums, the last line of pytest, how many tests failed, and its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | environment
    probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.M)
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr, flush=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines() or [""]
    return " ".join(probe.stdout.split()), lines[-1], len(failed), done.returncode


def main(argv: list[str]) -> int:
    """Print the table; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", action="append", help="run the settings whose names contain this text")
    opt, arguments = parser.parse_known_args(argv)
    chosen = {n: s for n, s in settings().items() if not opt.setting or any(text in n for text in opt.setting)}
    if not chosen:
        parser.error(f"--setting: expected a part of one of {', '.join(settings())}")
    print("| setting | NumPy, torch | seconds | result |\n|---|---|---|---|", flush=True)
    is_sound = True
    for name, (environment, further) in chosen.items():
        started = time.monotonic()
        checksums, last, n_failed, status = run(environment, [*arguments, *further])
        is_sound &= n_failed == 0 and status == 0
        print(f"| {name} | {checksums} | {time.monotonic() - started:.0f} | {last} |", flush=True)
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
