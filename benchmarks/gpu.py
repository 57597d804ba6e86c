"""What a GPU gives: training, rounding, decoding, tests, one step against the limits of the card. In eight minutes.

The rows that tell most come first, and each is printed and kept as soon as it is known. A row that fails says why, and
the others follow. First come those of processes of their own: an error of the card that a process does not survive is
then one row, and so is a process that does not end. Needs torch, NumPy and tqdm; the tests need pytest and hypothesis,
too.

The limits of a step are those of the same card, measured here: its rate of large float16 products and of copies. The
arithmetic of a step is 6 operations a sample and weight of the hidden matrices. Its traffic is 12 bytes a sample and
sine: a sine and a cosine of float16, three accesses to each. The share is that of both together in the time of a step.
The samples of a stack are those of all its networks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from shared import ROOT, argument_parser, network_flags, random_field, script, table_head, table_row

from cli import console
from cli.arguments import resolve_device
from field.layers import SirenConfig
from siren import FieldNet, neurons_for_budget
from training import step as step_module
from training import unfused
from training.fitting import Fit, new_fit
from training.one_brick import Task
from training.recipe import default_recipe, psnr_of
from training.sampler import VoxelSampler
from training.stacked_fit import StackedFit
from training.starts import Start
from utils import UserError, ValueRange, value_range

N_LAYERS, N_SINES = 8, 15
MEASURED_STEPS = 100
MOST_SECONDS = 240.0  # of a process, which is then killed. A field of 512^3 voxels may need more than half of it
LONGEST_KERNELS = 12  # rows of them, the first one for all
TESTS = ("tests/training/test_step.py", "tests/training/test_stacked_fit.py", "tests/test_cuda.py")
TRAINED = ["volume", "ratio", "dB", "s of training", "s of the process"]
ROUNDED = ["volume", "dB", "bytes", "s, net_compress.py --volume", "s, net_decompress.py", "s of its process"]
STACKED_LAYERS, STACKED_SIDE = 5, 32  # of the networks of a stack, and of their bricks, voxels
STACKS = [(48, 2048), (18, 1024), (48, 1024), (18, 2048)]  # width, samples a step of each network
BRICK, BRICKS_RATIO = 128, 200  # about the side of the bricks of a field, voxels, and the ratio


class Report:
    """Prints lines, and keeps them in a file. left: seconds until the benchmark must have ended."""

    def __init__(self, path: str, seconds: float):
        self.path, self.end = Path(path), time.monotonic() + seconds
        self.path.write_text("")

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def row(self, cells: Sequence[object]) -> None:
        self.say(table_row(cells))

    def table(self, title: str, head: Sequence[str], rows: Sequence[Callable[[], Sequence[object]]]) -> None:
        """A table whose rows are computed one by one, while there is time."""
        self.say(f"\n{title}\n")
        self.say(table_head(head))
        for row in rows:
            try:
                self.row(row() if self.left > 0 else ["no time left"])
            except (Exception, SystemExit) as error:  # one row less, not all that follow
                self.row([f"failed: {type(error).__name__}: {' '.join(str(error).split())[-600:]}"])


# --- the scripts ------------------------------------------------------------------------------------


def timed(name: str, *arguments: object) -> tuple[dict[str, str], float]:
    """The results of a script, and the seconds of its process."""
    started = time.monotonic()
    return script(name, *arguments, seconds=MOST_SECONDS), time.monotonic() - started


def trained(volume: Path, folder: Path, cuda: Sequence[str], ratio: float = 50.0, *flags: object) -> list[object]:
    """A row: volume, ratio, PSNR, seconds of training and of the process of train.py."""
    more = ["--compression_ratio", ratio, *flags]
    to_train, _ = network_flags(folder, volume.stem)
    found, seconds = timed("train.py", "--volume", volume, *to_train, *more, *cuda)
    return [volume.stem, f"{ratio:g}", found["psnr"], found["seconds"], f"{seconds:.1f}"]


def rounded_and_decoded(volume: Path, folder: Path, cuda: Sequence[str]) -> list[object]:
    """A row: volume, PSNR, bytes and seconds of net_compress.py, seconds of net_decompress.py and of its process."""
    blob = folder / f"{volume.stem}.blob"
    _, to_compress = network_flags(folder, volume.stem)
    found, seconds = timed("net_compress.py", *to_compress, "--compressed", blob, "--volume", volume, *cuda)
    decoded, process = timed("net_decompress.py", "--compressed", blob, "--recon", folder / "recon.npy", *cuda)
    return [volume.stem, found["psnr"], found["bytes"], f"{seconds:.1f}", decoded["seconds"], f"{process:.1f}"]


def field_path(side: int, folder: Path) -> Path:
    """Where the random field of side^3 voxels is."""
    return folder / f"field_{side}.npy"


def trained_in_bricks(side: int, folder: Path, cuda: Sequence[str]) -> list[object]:
    """A row, as of `trained`, of a random field of side^3 voxels in bricks, all of which train in stacks."""
    path, count = field_path(side, folder), max(round(side / BRICK), 2)
    np.save(path, random_field(side))
    return trained(path, folder, cuda, BRICKS_RATIO, "--bricks", ",".join([str(count)] * 3))


# --- one step ---------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object], device: torch.device, count: int) -> float:
    """Seconds that a call takes: the mean of `count`, after three that do not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        work()
    wait()
    started = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - started) / count


@dataclasses.dataclass
class Card:
    """What a card does at best: float16 operations and bytes of memory, per second."""

    operations: float
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, size: int) -> Card:
        a, b = torch.randn(2, size, size, dtype=torch.float16, device=device)  # equal numbers let it run faster
        large = torch.ones(4 * size * size, device=device)
        copy = torch.empty_like(large)
        products = seconds_of(lambda: a @ b, device, 20)
        copies = seconds_of(lambda: copy.copy_(large), device, 20)
        return cls(2 * size**3 / products, 2 * large.nbytes / copies)

    def limits(self, width: int, samples: int, n_sines: int = N_SINES) -> tuple[float, float]:
        """Seconds that the arithmetic and the traffic of a step alone take; see above."""
        operations = 6 * (n_sines - 1) * width**2 * samples
        return operations / self.operations, 12 * n_sines * width * samples / self.bytes


def begun(width: int, batch: int, device: torch.device, side: int) -> Fit:
    """A fit of a network of random weights to noise."""
    grid = np.random.default_rng(0).random((side, side, side, 1), np.float32)
    sampler = VoxelSampler(2 * grid - 1, device)
    net = FieldNet(SirenConfig(width, N_LAYERS), torch.Generator().manual_seed(0)).to(device)
    recipe = dataclasses.replace(default_recipe(sampler.n_present, net.config), batch=batch)
    fit = Fit(net, sampler, recipe, seed=0)
    fit.step_function.set_density(sampler.density(fit.errors))
    return fit


def step_seconds(fit: Fit, batch: int, psnr: float = 0.0, is_captured: bool = True, is_fused: bool = True) -> float:
    """Seconds of a step."""
    if not is_fused:
        fit.step_function.loss_gradient.kernels = unfused
    drawn = fit.sampler.shuffled(0, 0, fit.density)[:batch]
    if not is_captured:
        fit.step_function.replay = None
    return seconds_of(lambda: fit.step_function(drawn, 1e-6, 1, psnr), fit.sampler.device, MEASURED_STEPS)


def parts_row(batch: int, device: torch.device, side: int) -> list[object]:
    """A row: the module of a step's kernels; whether it multiplies float16, and whether it is a graph."""
    fit = begun(16, batch, device, side)
    step_seconds(fit, batch)
    step = fit.step_function
    return [step.loss_gradient.kernels.__name__, step.has_half, bool(step.replay.graphs)]


def step_row(width: int, batch: int, card: Callable[[], Card], device: torch.device, side: int) -> list[object]:
    """A row: width, batch, milliseconds of a step, its limits, its share of the sum of these, samples a second."""
    limits = card().limits(width, batch)
    taken = step_seconds(begun(width, batch, device, side), batch)
    cells = [width, batch, f"{1e3 * taken:.3f}", *(f"{1e3 * limit:.3f}" for limit in limits)]
    return [*cells, f"{sum(limits) / taken:.0%}", f"{batch / taken / 1e6:.1f}"]


def stack_row(width: int, batch: int, n_networks: int, card: Callable[[], Card], device: torch.device) -> list[object]:
    """A row, as of `step_row`, of a stack of networks, each with a batch of its own noise."""
    generator, config = np.random.default_rng(0), SirenConfig(width, STACKED_LAYERS)
    recipe = dataclasses.replace(default_recipe(STACKED_SIDE**3, config), batch=batch)
    noise = [2 * generator.random((STACKED_SIDE,) * 3 + (1,), np.float32) - 1 for _ in range(n_networks)]
    ends = ValueRange(np.float32([-1]), np.float32([1]))
    fit = StackedFit([Task(values, ends, Start(config, k), recipe) for k, values in enumerate(noise)], noise, device)
    step, density = fit.step_function, fit.sampler.density(fit.step_function.errors)
    step.set_density(density)
    drawn = fit.sampler.batches(range(n_networks), 0, fit.steps_per_pass, 0, density)[0]
    taken = seconds_of(lambda: step(drawn, 1e-3, 1, 0.0), device, MEASURED_STEPS)
    limits = card().limits(width, drawn.numel(), 2 * STACKED_LAYERS - 1)
    cells = [n_networks, width, batch, f"{1e3 * taken:.3f}", *(f"{1e3 * limit:.3f}" for limit in limits)]
    return [*cells, f"{sum(limits) / taken:.0%}", f"{drawn.numel() / taken / 1e6:.1f}"]


def variant_row(name: str, width: int, batch: int, device: torch.device, side: int, **settings) -> list[object]:
    """A row: what is left out, milliseconds of a step."""
    return [name, width, batch, f"{1e3 * step_seconds(begun(width, batch, device, side), batch, **settings):.3f}"]


@functools.cache
def longest_kernels(width: int, batch: int, device: torch.device, side: int) -> list[list[object]]:
    """Rows: what a step launches, the longest first: name, launches, microseconds of all of these. On a CPU: calls."""
    fit, is_gpu = begun(width, batch, device, side), device.type == "cuda"
    step_seconds(fit, batch, is_captured=False)  # which loads them
    drawn = fit.sampler.shuffled(0, 0, fit.density)[:batch]
    # torch.profiler would load torch's compiler, which takes seconds.
    recorded = {"use_device": "cuda", "use_cpu": False} if is_gpu else {}
    with torch.autograd.profiler.profile(use_kineto=True, **recorded) as profile:
        for _ in range(MEASURED_STEPS):
            fit.step_function(drawn, 1e-6, 1, 0.0)
    found = [
        ((event.self_device_time_total if is_gpu else event.self_cpu_time_total) / MEASURED_STEPS, event)
        for event in profile.key_averages()
        if (event.device_type != torch.autograd.DeviceType.CPU) == is_gpu  # not the launches
    ]
    found = sorted(((us, event.count / MEASURED_STEPS, event.key) for us, event in found if us), reverse=True)
    whole = sum(us for us, *_ in found), sum(n for _, n, _ in found), "all"
    return [[name[:150], f"{n:g}", f"{us:.1f}"] for us, n, name in (whole, *found[: LONGEST_KERNELS - 1])]


# --- float16 at the end of a fit --------------------------------------------------------------------


def precision_row(volume: Path, half_psnr: float, device: torch.device) -> list[object]:
    """A row: volume, PSNR up to which products are of float16, PSNR that the fit comes to, seconds, recoveries."""
    array = np.load(volume).astype(np.float32)[..., None]
    sampler = VoxelSampler(value_range(array).normalise(array), device)
    config = SirenConfig(neurons_for_budget(sampler.n_present // 50))
    fit = new_fit(Start(config, 0), sampler, default_recipe(sampler.n_present, config, is_gpu=device.type == "cuda"))
    kept, step_module.HALF_PSNR = step_module.HALF_PSNR, half_psnr
    try:
        fit.run()
    finally:
        step_module.HALF_PSNR = kept
    error = float(sampler.squared_errors(fit.averaged_net).double().mean())
    return [volume.stem, half_psnr, f"{psnr_of(error):.2f}", f"{fit.seconds:.1f}", fit.recovery.n_recoveries]


def tests_row(report: Report) -> list[str]:
    """A row: how many tests that are marked `gpu` have passed, and those that have failed.

    Of tests that do not end, the last cell names the latest one.
    """
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-p", "no:xdist", *TESTS]
    with tempfile.TemporaryFile("w+") as out:
        limit = max(min(report.left, MOST_SECONDS), 1.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, stdout=out, timeout=limit)
        out.seek(0)
        lines = [line.strip("= ") for line in out.read().splitlines()] or ["no test has begun"]
    failed = [line for start in ("FAILED", "ERROR", "E  ") for line in lines if line.startswith(start)]
    return [lines[-1], *failed[:20]]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "volumes", nargs="*", type=Path, default=[ROOT / "volumes" / "test_vol.npy"], metavar="VOLUME.npy"
    )
    parser.add_argument(
        "--fields",
        type=int,
        nargs="+",
        default=[256, 512],
        help="sides of random fields, voxels, that are trained in bricks at ratio 200 (default: 256 512)",
    )
    parser.add_argument("--networks", type=int, default=64, help="in a stack of which a step is measured (default: 64)")
    parser.add_argument("--seconds", type=float, default=440.0, help="after which no row is begun (default: 440)")
    parser.add_argument("--out", default="gpu.md", help="file that keeps the lines (default: gpu.md)")
    parser.add_argument("--widths", type=int, nargs="+", default=[154, 64, 18])
    parser.add_argument("--batches", type=int, nargs="+", default=[16384, 2048, 65536])
    parser.add_argument("--side", type=int, default=128, help="of the noise that a step learns, voxels (default: 128)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU, to see whether this benchmark runs")
    return parser


def report_steps(report: Report, opt: argparse.Namespace, device: torch.device) -> None:
    """The limits of the card; tables of steps against them, of what a step launches, and of steps of a stack."""
    card = functools.cache(lambda: Card.measured(device, 256 if opt.cpu else 8192))
    rows = [lambda: [f"{card().operations / 1e12:.0f}", f"{card().bytes / 1e12:.2f}"]]
    report.table("The card", ["TFLOP/s in float16", "TB/s"], rows)
    head = ["width", "samples", "ms", "ms of arithmetic", "ms of traffic", "share", "million samples/s"]
    pairs = [(width, batch) for batch in opt.batches for width in opt.widths]
    rows = [lambda w=w, b=b: step_row(w, b, card, device, opt.side) for w, b in pairs]
    report.table(f"A step, of {N_LAYERS} layers", head, rows)
    for width in dict.fromkeys((opt.widths[0], opt.widths[-1])):
        given = width, opt.batches[0], device, opt.side
        rows = [lambda k=k, given=given: longest_kernels(*given)[k] for k in range(LONGEST_KERNELS)]
        report.table(f"Kernels of a step, width {width}", ["kernel", "launches", "microseconds"], rows)
    rows = [lambda w=w, b=b: stack_row(w, b, opt.networks, card, device) for w, b in STACKS]
    report.table(f"A step of a stack, of {STACKED_LAYERS} layers", ["networks", *head], rows)


def main(argv: Sequence[str]) -> None:
    """Measure and print the tables."""
    opt = build_parser().parse_args(argv)
    if not opt.cpu and not torch.cuda.is_available():
        raise UserError("expected a CUDA GPU, found none")
    device, cuda = resolve_device(not opt.cpu, 0), [] if opt.cpu else ["--cuda"]
    report = Report(opt.out, opt.seconds)
    name = "CPU" if opt.cpu else torch.cuda.get_device_name(device)
    report.say(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report.table("train.py", TRAINED, [lambda v=v: trained(v, folder, cuda) for v in opt.volumes])
        rows = [lambda v=v: rounded_and_decoded(v, folder, cuda) for v in opt.volumes]
        report.table("Rounding, decoding", ROUNDED, rows)
        report.table("Tests marked gpu", ["result"], [lambda: tests_row(report)] if not opt.cpu else [])
        rows = [lambda: parts_row(opt.batches[0], device, opt.side)] if not opt.cpu else []
        report.table("What a step has", ["kernels", "float16", "graph"], rows)
        report_steps(report, opt, device)
        rows = [lambda n=n: trained_in_bricks(n, folder, cuda) for n in opt.fields]
        report.table("train.py, in bricks", TRAINED, rows)
        rows = [lambda n=n: rounded_and_decoded(field_path(n, folder), folder, cuda) for n in opt.fields]
        report.table("Rounding, decoding, in bricks", ROUNDED, rows)
        rows = [lambda v=v: trained(v, folder, cuda, 50.0, "--max_seconds", 1) for v in opt.volumes]
        report.table("train.py --max_seconds 1", TRAINED, rows)
        width, batch = opt.widths[0], opt.batches[0]
        variants = {"nothing": {}, "Triton": {"is_fused": False}, "float16": {"psnr": 99.0}}
        variants["the graph"] = {"is_captured": False}
        rows = [lambda n=n, s=s: variant_row(n, width, batch, device, opt.side, **s) for n, s in variants.items()]
        report.table("A step without ...", ["without", "width", "samples", "ms"], rows)
        head = ["volume", "float16 below, dB", "dB", "s", "recoveries"]
        pairs = [(volume, psnr) for volume in opt.volumes[::-1] for psnr in (0.0, 45.0, 200.0)]
        rows = [lambda v=v, p=p: precision_row(v, p, device) for v, p in pairs]
        report.table("float16 up to which PSNR", head, rows)


if __name__ == "__main__":
    console.run(main)
