"""What several test modules share. Whatever here mirrors the code under test is written anew, from the formats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vtkmodules.util.numpy_support import numpy_to_vtk
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkIOImage import vtkMetaImageReader, vtkNIFTIImageReader, vtkNrrdReader
from vtkmodules.vtkIOXML import vtkXMLImageDataReader, vtkXMLImageDataWriter

import net_coder
from cli import UserError
from fitting import Fit, Recipe
from quantise import choose_steps, round_layers, sensitivities
from samples import Field
from siren import FieldNet, SirenConfig
from volume import VolumeError

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (9, 7, 5)
WELL = ("--optimizer", "adam", "--lr", 5e-3, "--batchSize", 32, "--n_passes", 80)  # enough for the small volumes here


def slanted(shape: tuple[int, ...]) -> np.ndarray:
    """20 + 3 i - 2 j + k (per voxel), float32: voxel (last, 0, 0) is low in j, high in i, unlike its mirror images."""
    slopes = (3.0, -2.0, 1.0, 0.5)
    index = np.indices(shape)
    return (20.0 + sum(s * i for s, i in zip(slopes, index, strict=False))).astype(np.float32)


# --- scripts ----------------------------------------------------------------------------------------


def subprocess_of(script: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    """One script in a process of its own, its output captured as text."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def results(text: str) -> dict[str, str]:
    """The key=value lines of a script's standard output."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line.split(" ")[0])


def train(volume: object, folder: Path, *flags: object) -> SimpleNamespace:
    """Run train.py in this process, small unless `flags` say otherwise; its state dict, configuration and files."""
    import train as script

    network, config = folder / "thenet.pth", folder / "thenet.json"
    small = ("--n_passes", 2, "--n_layers", 2, "--batchSize", 64)
    arguments = ("--volume", volume, "--network", network, "--config", config, *small, *flags)
    script.main([str(a) for a in arguments])
    state = torch.load(network, weights_only=True)
    return SimpleNamespace(
        network=network, config=config, state=state, settings=json.loads(config.read_text()), data=network.read_bytes()
    )


def compress(trained: SimpleNamespace, blob: Path, *flags: object) -> bytes:
    """Run net_compress.py in this process; the blob."""
    import net_compress as script

    arguments = ("--net", trained.network, "--config", trained.config, "--compressed", blob, *flags)
    script.main([str(a) for a in arguments])
    return blob.read_bytes()


def decompress(blob: Path, recon: Path, *flags: object) -> np.ndarray:
    """Run net_decompress.py in this process; the array, of a .npy file or as VTK's own reader gives it."""
    import net_decompress as script

    script.main([str(a) for a in ("--compressed", blob, "--recon", recon, *flags)])
    return np.load(recon) if recon.suffix == ".npy" else vtk_read(recon).array


def round_trip(array: np.ndarray, folder: Path, *flags: object, bits: int = 16) -> np.ndarray:
    """The array that the chain of three scripts makes of `array`; `flags` are train.py's."""
    path = folder / "in.npy"
    np.save(path, array)
    compress(train(path, folder, *flags), folder / "blob", "--cluster_bits", bits)
    return decompress(folder / "blob", folder / "out.npy")


def error_of(main, *argv: object) -> str:
    """The one line with which `main(argv)` refuses."""
    with pytest.raises((UserError, VolumeError)) as caught:
        main([str(a) for a in argv])
    return " ".join(str(caught.value).split())


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- VTK --------------------------------------------------------------------------------------------


VTK_READERS = {
    ".vti": vtkXMLImageDataReader,
    ".nrrd": vtkNrrdReader,
    ".mhd": vtkMetaImageReader,
    ".mha": vtkMetaImageReader,
    ".nii": vtkNIFTIImageReader,
    ".gz": vtkNIFTIImageReader,
}


def vtk_read(path: Path) -> SimpleNamespace:
    """What VTK's own reader finds in a file: dimensions, spacing, origin, direction, name, and array[x, y, z], voxel by
    voxel through VTK's own indexing."""
    reader = VTK_READERS[path.suffix]()
    assert reader.CanReadFile(str(path))
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    scalars = image.GetPointData().GetScalars()
    dims, n = image.GetDimensions(), scalars.GetNumberOfComponents()
    values = [
        [scalars.GetComponent(image.ComputePointId((i, j, k)), c) for c in range(n)]
        for i in range(dims[0])
        for j in range(dims[1])
        for k in range(dims[2])
    ]
    array = np.array(values).reshape(*dims, n)
    return SimpleNamespace(
        dimensions=dims,
        spacing=image.GetSpacing(),
        origin=image.GetOrigin(),
        direction=tuple(image.GetDirectionMatrix().GetData()),
        name=scalars.GetName(),
        type=scalars.GetDataTypeAsString(),
        array=array[..., 0] if n == 1 else array,
        reader=reader,
    )


def vtk_image(
    arrays, spacing=(1, 1, 1), origin=(0, 0, 0), name="density", extent=None, direction=None, active=None, time=None
):
    """A vtkImageData of array[x, y, z], or of several by name, set voxel by voxel through VTK's own indexing."""
    arrays = arrays if isinstance(arrays, dict) else {name: arrays}
    shape = next(iter(arrays.values())).shape[:3]
    image = vtkImageData()
    image.SetExtent(extent or [v for n in shape for v in (0, n - 1)])
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirectionMatrix(direction)
    start = image.GetExtent()[::2]
    for key, array in arrays.items():
        columns = array.reshape(*shape, -1)
        scalars = numpy_to_vtk(np.zeros((columns[..., 0].size, columns.shape[-1]), array.dtype), deep=True)
        for index in np.ndindex(shape):
            point = image.ComputePointId([i + s for i, s in zip(index, start, strict=True)])
            scalars.SetTuple(point, columns[index].tolist())
        scalars.SetName(key)
        image.GetPointData().AddArray(scalars)
    image.GetPointData().SetActiveScalars(active or next(iter(arrays)))
    if time is not None:
        value = numpy_to_vtk(np.array([time]), deep=True)
        value.SetName("TimeValue")
        image.GetFieldData().AddArray(value)
    return image


def vtk_write(path: Path, *args, **keywords) -> None:
    """Write a `vtk_image` with VTK's own writer."""
    writer = vtkXMLImageDataWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(vtk_image(*args, **keywords))
    assert writer.Write()


# --- networks ---------------------------------------------------------------------------------------


def field_net(seed: int = 0, **fields) -> FieldNet:
    """A small network of random weights."""
    config = SirenConfig(**{"n_neurons": 6, "n_layers": 3, **fields})
    return FieldNet(config, torch.Generator().manual_seed(seed))


def arrays(net: FieldNet) -> dict[str, np.ndarray]:
    """The weights of a network by name."""
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def fit(net: FieldNet, field: Field, seed: int = 0, on_step=lambda fit: None, start=None, **fields) -> Fit:
    """Fit `net` in place by a small recipe, from the beginning or from the state `start`."""
    done = Fit(net, field, Recipe(**{"n_passes": 1, "batch": 16, "lr": 1e-3, **fields}), seed)
    if start is not None:
        done.load_state_dict(start)
    done.run(on_step)
    return done


@contextlib.contextmanager
def watched_samples():
    """The flat voxel indices of every training step within the block, in a list."""
    steps, original = [], Field.samples

    def samples(self, flat):
        steps.append(flat.clone().cpu())
        return original(self, flat)

    Field.samples = samples
    try:
        yield steps
    finally:
        Field.samples = original


def make_blob(header: net_coder.FieldHeader, net: FieldNet, bits: int = 9) -> bytes:
    """The blob of one network."""
    points = 2 * torch.rand(64, net.config.d_in, generator=torch.Generator().manual_seed(0)) - 1
    return net_coder.encode(
        header,
        [(dataclasses.asdict(net.config), round_layers(net, choose_steps(net, sensitivities(net, points), bits=bits)))],
    )


def chunks_of(blob: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of every chunk of a sound blob."""
    found, at = [], 9
    while at < len(blob):
        length = struct.unpack_from("<I", blob, at + 1)[0]
        found.append((blob[at : at + 1], blob[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def header_of(shape=(4, 3, 2), low=0.0, high=1.0, dtype="float32", d_out=1, **fields) -> net_coder.FieldHeader:
    """A header whose components all have one range."""
    ends = (np.full(d_out, end, dtype) for end in (low, high))
    geometry = {"spacing": (1.0,) * len(shape), "origin": (0.0,) * len(shape), **fields}
    return net_coder.FieldHeader(tuple(shape), *ends, **geometry)


# --- the original scripts, anew ---------------------------------------------------------------------


def original_coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """The original's coordinates of every voxel in C order, float64 (voxels, axes)."""
    longest = max(shape)
    axes = [(2 * np.arange(n) / (n - 1) - 1) * (n - 1) / (longest - 1) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


def original_forward(state: dict, n_layers: int, is_residual: bool, x: np.ndarray) -> np.ndarray:
    """The original's network in float64: omega 30 everywhere, (n, d_in) -> (n, d_out)."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in state.items()}

    def sine(name: str, x: np.ndarray) -> np.ndarray:
        return np.sin(30 * (x @ w[name + ".weight"].T + w[name + ".bias"]))

    x = sine("net_layers.0.linear", x)
    for i in range(1, n_layers):
        name = f"net_layers.{i}.linear"
        if is_residual:
            halved = x if i == 1 else x / 2
            x = x + sine(name + "_2", sine(name + "_1", halved))
            if i == n_layers - 1:
                x = x / 2
        else:
            x = sine(name, x)
    last = f"net_layers.{n_layers}"
    return x @ w[last + ".weight"].T + w[last + ".bias"]


def original_blob(
    rng: np.random.Generator, bits: int, n: int, n_layers: int, is_residual: bool, d_in: int = 3, d_out: int = 1
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A blob of the original's format with random content, and the state dict that it holds."""
    state: dict[str, np.ndarray] = {}
    out = bytearray([n_layers, d_in, d_out, is_residual])
    out += np.full(n_layers, n, "<u4").tobytes() + bytes([bits])

    def plain(name: str, shape: tuple[int, ...]) -> None:
        state[name] = rng.standard_normal(shape).astype(np.float32)
        out.extend(state[name].astype("<f4").tobytes())

    plain("net_layers.0.linear.weight", (n, d_in))
    plain("net_layers.0.linear.bias", (n,))
    for i in range(1, n_layers):
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            centroids = rng.standard_normal(2**bits).astype(np.float32)
            indices = rng.integers(0, 2**bits, n * n)
            digits = "".join(format(index, f"0{bits}b") for index in indices)
            out += centroids.astype("<f4").tobytes()
            out.extend(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
            if bits % 8:
                out += int(indices[-1]).to_bytes(4, "little")
            state[f"net_layers.{i}.{part}.weight"] = centroids[indices].reshape(n, n)
            plain(f"net_layers.{i}.{part}.bias", (n,))
    plain(f"net_layers.{n_layers}.weight", (d_out, n))
    plain(f"net_layers.{n_layers}.bias", (d_out,))
    return bytes(out), state
