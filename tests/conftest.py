"""Options and fixtures of all tests, and where the modules under test are."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for library in ("OMP", "OPENBLAS"):  # before they are loaded, and for the scripts started as subprocesses too
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ["COLUMNS"] = "80"  # texts are as wide in every terminal

with contextlib.suppress(ImportError):  # before VTK draws: with Mesa's LLVM in the process, Triton's would crash it
    import triton  # noqa: F401

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import emulated_gpu, perturbation  # noqa: E402
from helpers.scripts import WELL, compress, train  # noqa: E402
from helpers.volumes import SHAPE, slanted  # noqa: E402
from hypothesis import settings  # noqa: E402

from cli.arguments import default_workers  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True, database=None)
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption(
        "--perturb",
        type=int,
        metavar="SEED",
        help="move every initial and every stored weight of the tests' processes by 1e-6 of itself, at random",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at its own option
def pytest_cmdline_main(config):
    """Spread the whole suite over the cores, 8 at most, where pytest-xdist is there and not told otherwise.

    A process takes about 1 GB, and a container of few cores may see all those of its machine.
    """
    is_whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if is_whole and not hasattr(config, "workerinput") and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = default_workers()
        if config.option.dist == "no":
            config.option.dist = "worksteal"


def pytest_configure(config):
    if config.getoption("perturb") is not None:
        perturbation.switch_on(config.getoption("perturb"))


def pytest_report_header(config):
    seed = config.getoption("perturb")
    return [] if seed is None else f"every initial and stored weight is moved by 1e-6 of itself, seed {seed}"


def pytest_collection_modifyitems(items):
    """Tests that share the work of many seconds come first.

    pytest-xdist takes tests from the end of one process to the next, which would do that work again.
    """
    items.sort(key=lambda item: not {"parts", "pairs"} & set(item.fixturenames))
    if not torch.cuda.is_available() and not torch.__version__.startswith(emulated_gpu.VERSIONS):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, or a torch whose GPU can be emulated"))


@pytest.fixture(autouse=True)
def gpu(request):
    """Tests marked `gpu` have a GPU: where there is none, an emulated one."""
    is_emulated = request.node.get_closest_marker("gpu") and not torch.cuda.is_available()
    with emulated_gpu.emulated_gpu() if is_emulated else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def own_folder(tmp_path):
    """Every test has a current folder of its own to write to: the clone may be read-only, and stays as it is."""
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Every test starts, and leaves the next, with one CPU thread, or those that OMP_NUM_THREADS asks for."""
    first = os.environ["OMP_NUM_THREADS"].split(",")[0]
    n_threads = int(first) if first.isdigit() else 1
    torch.set_num_threads(n_threads)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def volume() -> np.ndarray:
    """A float32 field with three different sizes and another slope along each axis; see `slanted`."""
    return slanted(SHAPE)


@pytest.fixture
def volume_file(tmp_path: Path, volume: np.ndarray) -> Path:
    """`volume` as a .npy file."""
    path = tmp_path / "volume.npy"
    np.save(path, volume)
    return path


@pytest.fixture(scope="session")
def vtk_processes():
    from helpers.vtk import forked_readers

    with forked_readers() as popen:
        yield popen


@pytest.fixture
def quick_vtk(request, monkeypatch):
    """VTK reads each file in a process of its own, as always, but in a forked one: in a twentieth of the time."""
    if hasattr(os, "fork"):
        from formats import vtk_process

        forked = SimpleNamespace(Popen=request.getfixturevalue("vtk_processes"), PIPE=None, DEVNULL=None)
        monkeypatch.setattr(vtk_process, "subprocess", forked)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rounding is faster: fewer weights have a metric together."""
    from quantising import compensation

    for size in ("BLOCK", "WIDE_BLOCK"):
        monkeypatch.setattr(compensation, size, 256)


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A trained network and its blob, not to be changed."""
    folder = tmp_path_factory.mktemp("chain")
    np.save(folder / "volume.npy", slanted((9, 7, 5)))
    trained = train(folder / "volume.npy", folder, *WELL, "--n_layers", 2)
    compress(trained, folder / "blob", "--cluster_bits", 12)
    trained.folder, trained.blob, trained.volume = folder, folder / "blob", folder / "volume.npy"
    return trained


@pytest.fixture(scope="session")
def has_renderer() -> None:
    from field import rendering
    from utils import UserError

    try:
        rendering.check("any.png")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def renderer(has_renderer, monkeypatch) -> None:
    """Skips where nothing can be rendered; tries it only once."""
    from field import rendering

    monkeypatch.setattr(rendering, "TRIAL", "")


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """What is written into pictures, beside what VTK itself writes."""
    from field import drawing

    written, write_text = [], drawing.write_text
    monkeypatch.setattr(
        drawing, "write_text", lambda image, text, *at: written.append(text) or write_text(image, text, *at)
    )
    return written
