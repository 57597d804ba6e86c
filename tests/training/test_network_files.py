"""thenet.pth and thenet.json as anybody may have left them: read, or refused in one line that names the file."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import decode_blob, make_header
from helpers.scripts import error_of, listing, train

import net_compress
from field.header_chunks import check_header
from training.network_files import network_config
from utils import UserError


def arguments(chain, folder: Path, **given: object) -> list[str]:
    """Those of net_compress.py for this `network` and `config`, those of `chain` if not given: bytes, or the content.

    A network that is given is not held to the checksum in the configuration.
    """
    settings = {key: value for key, value in chain.settings.items() if key != "weights_crc32" or "network" not in given}
    network, config = given.get("network", chain.data), given.get("config", settings)
    if isinstance(network, bytes):
        (folder / "n.pth").write_bytes(network)
    else:
        torch.save(network, folder / "n.pth")
    (folder / "c.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    return ["--net", str(folder / "n.pth"), "--config", str(folder / "c.json"), "--compressed", str(folder / "blob")]


def refusal(chain, folder: Path, *flags: object, **given: object) -> str:
    """How `arguments` are refused, without a trace of it."""
    argv = arguments(chain, folder, **given)
    (folder / "blob").write_text("old")
    before = listing(folder)
    said = error_of(net_compress.main, *argv, *flags)
    assert listing(folder) == before and len(said) < 3000
    return said


def compressed(chain, folder: Path, *flags: object, **given: object) -> bytes:
    net_compress.main([*arguments(chain, folder, **given), *map(str, flags)])
    decode_blob((folder / "blob").read_bytes())
    return (folder / "blob").read_bytes()


# --- the weights --------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return open, ("exploded", "w")


FIRST = "net_layers.0.linear.weight"
ODD_TENSORS = {
    "complex": lambda weight: weight.to(torch.complex64),
    "sparse": lambda weight: weight.to_sparse(),
    "compressed sparse": lambda weight: weight.to_sparse_csr(),
    "meta": lambda weight: weight.to("meta"),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "whole numbers": lambda weight: weight.long(),
    "NaN": lambda weight: torch.full_like(weight, math.nan),
    "infinite as float32": lambda weight: weight.double() * 0 + 1e300,
    "another shape": lambda weight: weight[:-1],
    "a scalar": lambda weight: weight.sum(),
    "empty": lambda weight: weight[:0],
    "a number": lambda weight: 1.0,
    "a list": lambda weight: [1, 2],
    "code": lambda weight: Evil(),
}
ODD_STATES = {
    **{what: lambda state, odd=odd: {**state, FIRST: odd(state[FIRST])} for what, odd in ODD_TENSORS.items()},
    "no state but a list": lambda state: list(state.values()),
    "nothing": lambda state: None,
    "a tensor": lambda state: state[FIRST],
    "no names": lambda state: dict(enumerate(state.values())),
    "a name of another type": lambda state: {**state, (1, 2): state[FIRST]},
    "one missing": lambda state: {name: tensor for name, tensor in state.items() if name != FIRST},
    "one more": lambda state: {**state, "extra": state[FIRST]},
    "none": lambda state: {},
    "code alone": lambda state: Evil(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD_STATES)
def test_odd_weights(what, chain, tmp_path, capsys):
    said = refusal(chain, tmp_path, network=ODD_STATES[what](chain.state))
    assert said.startswith(f"{tmp_path / 'n.pth'}: ") and capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")
def test_files_that_hold_no_weights(chain, tmp_path):
    """torch would inflate what is compressed, to any length; what it writes is not."""
    cut = [chain.data[:length] for length in (0, 1, 30, 1000, len(chain.data) // 2, -1)]
    packed = io.BytesIO()
    with zipfile.ZipFile(chain.network) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in stored.namelist():
            other.writestr(name, stored.read(name))
    for content in (*cut, b"hello", b"PK\x03\x04" + bytes(100), b"\x80\x02.", packed.getvalue()):
        assert refusal(chain, tmp_path, network=content).startswith(f"{tmp_path / 'n.pth'}: ")


def test_weights_of_other_types_and_order(chain, tmp_path):
    """As float64, in another order, with gradients required: still the same network."""
    for state in (
        {name: tensor.double() for name, tensor in chain.state.items()},
        dict(reversed(chain.state.items())),
        {name: tensor.clone().requires_grad_() for name, tensor in chain.state.items()},
    ):
        assert compressed(chain, tmp_path, "--cluster_bits", 12, network=state) == chain.blob.read_bytes()
    for dtype in (torch.float16, torch.bfloat16):
        compressed(
            chain,
            tmp_path,
            "--cluster_bits",
            9,
            network={name: tensor.to(dtype) for name, tensor in chain.state.items()},
        )


def test_weights_of_another_run(chain, tmp_path):
    (tmp_path / "other").mkdir()
    other = train(chain.volume, tmp_path / "other", "--seed", 9)
    said = refusal(chain, tmp_path, network=other.data, config=chain.settings)
    assert all(str(tmp_path / name) in said for name in ("n.pth", "c.json")) and "checksum" in said


@pytest.mark.filterwarnings("ignore")
def test_weights_too_large_to_be_rounded(chain, tmp_path):
    """A step that rounds them up would make them infinite in the blob, which then could not be read."""
    state = {name: tensor.clone() for name, tensor in chain.state.items()}
    state["net_layers.1.linear_1.weight"][0, 0] = 3.4028e38
    assert "too large" in refusal(chain, tmp_path, "--cluster_bits", 9, network=state)


# --- the configuration --------------------------------------------------------------------------------

# What of a configuration is changed (`...`: left out) so that it fits the network of `chain` no longer, or describes
# no field; and what the error says.
FIELD, NESTED = "does not describe a field: {}: expected ", json.loads("[" * 900 + "1" + "]" * 900)
CHANGES = [
    ({"n_layers": 3, "layers": [16] * 3}, "net_layers.2"),
    ({"layers": [17, 17]}, "expected shape (17, 3), found (16, 3)"),
    ({"d_in": 2, "shape": [9, 7], "spacing": [1, 1], "origin": [0, 0]}, "expected shape (16, 2), found (16, 3)"),
    ({"is_residual": False}, "net_layers.1.linear"),
    *[({"layers": widths}, "layers") for widths in (..., [16, 17], [16], 16, NESTED)],
    *[({"layers": [width] * 2}, "n_neurons") for width in ("16", 0, 10**6, 10**400)],
    ({"layers": [65535] * 2}, "parameters"),
    *[({"n_layers": n} | more, "layers") for n, more in ((0, {"layers": []}), ("2", {}), (NESTED, {}))],
    ({"is_residual": "yes"}, "is_residual"),
    *[({"omega_0": omega}, "omega_0") for omega in (0, "30", 1e-6, 1e39, 1e-60)],
    ({"omega_0": 10**400}, "too large"),
    *[({"d_in": n}, "d_in") for n in (None, 10**400)],
    ({"d_out": 1.5}, "d_out"),
    *[({"format_version": version}, "format_version") for version in (2, [1], NESTED)],
    *[({"dtype": dtype}, "dtype") for dtype in (..., "object", "(1 2)i4", "i4,i4", "S2000000000", ["float32"], NESTED)],
    ({"dtype": "nosuch"}, "nosuch"),
    *[({"shape": shape}, "shape") for shape in ([9, 7], [9, 7, 0], [9, 7, 5.5], [9.0, 7, 5], [10**400, 1, 1], NESTED)],
    *[({"shape": shape}, FIELD.format("shape")) for shape in (None, [])],
    *[({"value_range": pairs}, "range") for pairs in (..., [[2.0, 1.0]], [[math.nan, 1.0]], NESTED)],
    *[({"value_range": [pair]}, "does not describe a field") for pair in ((0, 10**400), (1e39, 1e39), ("a", "b"))],
    *[({"value_range": pairs}, FIELD.format("value_range")) for pairs in (3, [3], [])],
    ({"dtype": "uint8", "value_range": [[0, 300]]}, "range"),
    *[({"spacing": steps}, "spacing") for steps in ([1, 1], [1, 1, -1])],
    *[({"spacing": steps}, "does not describe a field") for steps in (1, [10**400, 1, 1])],
    ({"spacing": None}, FIELD.format("spacing")),
    ({"origin": [0, 0, math.inf]}, "origin"),
    ({"origin": "abc"}, FIELD.format("origin")),
    ({"origin": [[], [], []]}, "does not describe a field"),
    *[({"direction": axes}, FIELD.format("direction")) for axes in (None, 5, "abcdefghi")],
    *[({"direction": axes}, "does not describe a field") for axes in ([1, 0, 0], [10**400] * 9, np.eye(3).tolist())],
    *[({key: text}, key) for key in ("name", "units") for text in (3, "\ud800")],
    *[({"name": name}, "name") for name in (None, NESTED)],
    *[({"axis_attributes": said}, "axis_attributes") for said in (["units_x"], {"name": "v"})],
    *[({"axis_attributes": {"units_x": said}}, "units_x") for said in (3, "\ud800")],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("changes", "said"), CHANGES, ids=lambda value: str(value)[:40])
def test_configurations_that_do_not_fit(changes, said, chain, tmp_path):
    settings = {key: value for key, value in (chain.settings | changes).items() if value is not ...}
    found = refusal(chain, tmp_path, config=settings)
    assert str(tmp_path / "c.json") in found and said in found


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"hello", b"\xff\xfe\x00", b"null", b"[1, 2]", b'"text"', b"[" * 100_000, b"9" * 5000, b"{}", b"\0"],
    ids=range(11),
)
def test_configurations_that_are_none(content, chain, tmp_path):
    assert refusal(chain, tmp_path, config=content).startswith(f"{tmp_path / 'c.json'}: not a ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        *[{"psnr": psnr} for psnr in (10**400, -(10**400), -1e6, -5000, 1e6, math.nan, math.inf, "1", None, [])],
        {"shape": [2**32 - 1, 1, 1]},
    ],
    ids=range(11),
)
def test_strange_configurations_that_are_read(changes, chain, tmp_path):
    """A PSNR only guides the default fineness; nothing is allocated for a shape."""
    compressed(chain, tmp_path, config=chain.settings | changes)


def test_messages_quote_no_more_than_a_line():
    settings = {"layers": [*range(10_000)], "n_layers": 10_000, "is_residual": True}
    for refuse in (
        lambda: network_config("a.json", settings),
        lambda: network_config("a.json", settings | {"n_layers": "x" * 10_000}),
        lambda: check_header(make_header((1,) * 3, low=2.0, d_out=255), 3, 255),
    ):
        with pytest.raises(UserError) as caught:
            refuse()
        assert 20 < len(str(caught.value)) < 600
