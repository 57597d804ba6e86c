"""What the scripts print: results, the next command, warnings, help."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys

import numpy as np
import pytest
from helpers.cut_fields import cut_blob
from helpers.networks import field_net, make_blob, make_header, zero_network
from helpers.original import original_blob
from helpers.scripts import WELL, compress, decompress, error_of, listing, results, stored, train
from helpers.volumes import noise, range_without, slanted, wave

import net_compress
import net_decompress
import train as train_script
from cli.files import size_text
from field import options as decompress_options
from field.blob import encode_blob
from field.header_chunks import Written
from field.metrics import compare, psnr_of_constant
from siren import weights_crc32
from training import options
from utils import Geometry, VolumeHeader, boxes


def test_train_reports(volume_file, tmp_path, capsys):
    """Its results alone go to stdout, and the network is what these say."""
    trained = train(volume_file, tmp_path)
    out = capsys.readouterr().out
    assert all(re.match(r"\w+=|next: ", line) for line in out.splitlines())
    assert weights_crc32(trained.state) == trained.settings["weights_crc32"]
    found = results(out)
    n_parameters = sum(t.numel() for t in trained.state.values())
    assert found["parameters"] == str(n_parameters)
    assert float(found["compression_ratio"]) == pytest.approx(315 / n_parameters, abs=0.005)
    assert float(found["psnr"]) == pytest.approx(trained.settings["psnr"], abs=5e-4)
    assert "seconds" in found and found["network"] == str(trained.network)
    assert re.search(r"^next: python net_compress\.py --net .* --volume ", out, re.MULTILINE)


def test_names_that_need_not_be_typed(tmp_path, capsys):
    """Each script finds what the one before wrote; a blob may be given without --compressed, but no other file."""
    stored("waves", tmp_path)
    net_compress.main(["--cluster_bits", "6"])
    assert "next: python net_decompress.py\n" in capsys.readouterr().out
    net_compress.main(["b.nvc", "--cluster_bits", "6"])
    assert (tmp_path / "compressed_out").read_bytes() == (tmp_path / "b.nvc").read_bytes()
    for blob in ([], ["b.nvc"], ["--compressed", "b.nvc"]):
        net_decompress.main([*blob, "--recon", "r.mhd"])
        found = results(capsys.readouterr().out)
        assert (found["recon"], found["voxels"]) == ("r.mhd", "r.raw")
    net_compress.main(["b.nvc", "--cluster_bits", "5"])  # replaces a blob
    assert "is no blob" in error_of(net_compress.main, "r.raw")
    assert "give one blob" in error_of(net_decompress.main, "b.nvc", "--compressed", "b.nvc")


def test_info_tells_what_a_blob_holds(tmp_path, capsys):
    """Without the files of a decoding; of a blob of the original scripts, what that holds."""

    def info(data: bytes) -> dict[str, str]:
        (tmp_path / "b").write_bytes(data)
        net_decompress.main([str(tmp_path / "b"), "--info"])
        assert listing(tmp_path) == {"b": data}
        return results(capsys.readouterr().out)

    geometry = Geometry((2.0, float(np.float32(0.8)), 1.5, 1.0), (3.0, -1.0, 0.0, 7.0), name="T", units="K")
    header = VolumeHeader((5, 6, 4, 3), np.array([-3], np.int16), np.array([900], np.int16), geometry)
    data = encode_blob(header, [zero_network(d_in=4)], Written((1, 0), 40.6))
    assert info(data) == {
        **{"shape": "6,4,3", "type": "int16", "name": "T", "units": "K", "spacing": "0.8,1.5,1", "origin": "-1,0,7"},
        **{"times": "5", "first_time": "3", "last_time": "11", "range": "-3,900", "layers": "1", "width": "2"},
        **{"parameters": "13", "bytes": str(len(data)), "bits_per_weight": f"{8 * len(data) / 13:.3f}"},
        **{"file_ratio": f"{4 * 360 / len(data):.2f}", "source_ratio": f"{2 * 360 / len(data):.2f}"},
        **{"psnr_when_written": "40.60", "version": "1.0"},
    }
    since = dataclasses.replace(geometry, spacing=(0.1, 1.0, 1.0, 1.0), origin=(1700000001.0, 0.0, 0.0, 0.0))
    found = info(encode_blob(dataclasses.replace(header, geometry=since), [zero_network(d_in=4)]))
    assert (found["first_time"], found["last_time"]) == ("1700000001", "1700000001.4")
    assert info(original_blob(np.random.default_rng(0), 8, 6, 3, True)[0])["version"] == "the original scripts"
    shifted = make_header((5, 4, 3), 1e6, 1e6 + 1e-3, "float64")
    assert info(encode_blob(shifted, [zero_network(d_in=3)]))["range"] == "1e+06,1000000.001"
    found = info(cut_blob((9, 7, 5), (2, 1, 3), constant=(0, 4)))
    assert (found["bricks"], found["constant_bricks"], found["width"]) == ("2,1,3", "2", "3")
    assert found["parameters"] == str(4 * (3 * 4 + 2 * 3 * 4 + 4))


@pytest.mark.parametrize("script", [train_script, net_compress, net_decompress])
def test_help_ends_with_examples_that_are_right(script, capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            script.main([flag])
        assert not ended.value.code
    said = capsys.readouterr().out
    assert re.search(r"^\S+ \d+\.\d+$", said, re.MULTILINE)
    examples = [shlex.split(line) for line in said.splitlines()[-2:]]
    parse = options.parse if script is train_script else script.parse
    for python, name, *argv in examples:
        assert (python, name.removesuffix(".py")) == ("python", script.__name__)
        parse(argv)


def test_a_network_no_better_than_a_constant_is_warned_of(tmp_path, capsys):
    values = np.random.default_rng(0).random((12, 10, 8), np.float32)
    train(values, tmp_path, "--n_passes", 0.5)
    constant = -20 * np.log10(values.std() / np.ptp(values))
    warning = r"train\.py: warning: the network has (\S+) dB, where a constant volume would have (\S+) dB"
    said = re.search(warning, capsys.readouterr().err)
    assert float(said[1]) < constant + 1 and float(said[2]) == pytest.approx(constant, abs=0.06)
    train(slanted((9, 7, 5)), tmp_path, *WELL)
    assert "a constant volume" not in capsys.readouterr().err
    np.save("noise.npy", values)
    train_script.main(["--volume", "noise.npy", "--max_seconds", "0.01"])
    assert "more --max_seconds or a lower --compression_ratio may help" in capsys.readouterr().err
    train(values, tmp_path, "--target_psnr", 1)
    assert "a constant volume would have" in (said := capsys.readouterr().err)
    assert "a higher --target_psnr may help" in said and "--n_passes" not in said


@pytest.mark.parametrize("mark", [255, 16, None])
def test_a_likely_fill_value_is_named_beside_bad_quality(tmp_path, capsys, mark):
    """Not where it is the least of values that lie close to each other."""
    values = np.random.default_rng(0).integers(16, 50, (12, 10, 8)).astype(np.uint8)
    if mark is not None:
        values[:3] = mark
    train(values, tmp_path, "--n_passes", 0.1)
    assert ("--fill 255" in (said := capsys.readouterr().err)) == (mark == 255) and "a constant volume" in said
    assert "--fill 16" not in said


def test_a_single_voxel_is_no_fill_value(tmp_path, capsys):
    train(np.array([0, 50, 57, 61, 100]).reshape(5, 1, 1), tmp_path, "--n_passes", 0.1)
    assert "--fill" not in (said := capsys.readouterr().err) and "a constant volume" in said


def test_a_decoded_volume_has_the_psnr_of_its_blob(tmp_path, capsys):
    """Under a key of its own, as this run measured nothing; not a part of the volume."""
    data = encode_blob(make_header((5, 4, 3)), [zero_network(d_in=3)], Written((1, 0), 40.6))
    (tmp_path / "b").write_bytes(data)
    for option, expected in ((), "40.60"), (("--roi", ":,1:,:"), None):
        net_decompress.main([str(tmp_path / "b"), "--recon", str(tmp_path / "r.vti"), *option])
        found = results(capsys.readouterr().out)
        assert found.get("psnr_when_written") == expected and "psnr" not in found


def test_a_rounding_that_costs_much_is_told(chain, tmp_path, capsys):
    for bits, is_told in ((2, True), (12, False)):
        compress(chain, tmp_path / "b", "--cluster_bits", bits)
        assert ("rounding has cost about" in capsys.readouterr().err) == is_told


def test_decompress_doubts_a_volume_of_the_same_range(chain, tmp_path, capsys):
    compress(chain, tmp_path / "b", "--n_passes", 0, "--volume", chain.volume)
    decompress(tmp_path / "b", tmp_path / "r.npy", "--volume", chain.volume)
    assert "is it the volume" not in capsys.readouterr().err
    np.save(tmp_path / "other.npy", np.load(chain.volume)[::-1])
    decompress(tmp_path / "b", tmp_path / "r.npy", "--volume", tmp_path / "other.npy")
    assert "is it the volume that it was made of?" in capsys.readouterr().err


def test_a_blob_no_better_than_a_constant_is_told(tmp_path, capsys):
    said = []
    for name, values in (("noise", noise((12, 12, 12))), ("wave", wave((14, 12, 10)))):
        np.save(tmp_path / "v.npy", values)
        compress(stored(name, tmp_path), tmp_path / "b", "--volume", tmp_path / "v.npy", "--n_passes", 0)
        said.append(re.search("the blob has .* a constant volume would have (.*) dB", capsys.readouterr().err))
    values = noise((12, 12, 12)).astype(float)
    assert float(said[0][1]) == pytest.approx(20 * np.log10(np.ptp(values) / values.std()), abs=0.06) and not said[1]


def test_the_psnr_of_a_constant_is_that_of_the_mean():
    """Of clipped values, of components that count alike, one of them constant, and without missing voxels."""
    values = np.stack([noise((6, 5, 4)), 1e3 * noise((6, 5, 4)) ** 2, np.full((6, 5, 4), 7.0)], axis=-1)
    values[1, 2, 3] = np.nan
    limits = range_without(values, np.float64(np.nan)).clipped(-0.5, 900)
    clipped = np.clip(values, limits.low, limits.high)
    mean = np.broadcast_to(np.nanmean(clipped, axis=(0, 1, 2)), values.shape)
    expected = compare(values, mean, limits).psnr
    assert psnr_of_constant(values, limits, boxes(values)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("module", [options, net_compress, decompress_options])
def test_help_states_the_defaults(module):
    parser = module.build_parser()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default is not None and not isinstance(action.default, bool) and action.default != "==SUPPRESS==":
            assert re.search(rf"{action.option_strings[0]} .*?\(default: {re.escape(str(action.default))}\)", text)
            assert "(default" not in action.help, action.dest  # it would be there twice
    assert "(default: None)" not in text
    titles = [group.title for group in parser._action_groups if group._group_actions]
    assert "input and output" in titles


def test_compress_reports(chain, tmp_path, capsys):
    size = len(compress(chain, tmp_path / "my blob"))
    out = capsys.readouterr().out
    found = results(out)
    n_parameters = sum(t.numel() for t in chain.state.values())
    assert found["bytes"] == str(size)
    assert float(found["bits_per_weight"]) == pytest.approx(8 * size / n_parameters, abs=6e-4)
    assert float(found["file_ratio"]) == pytest.approx(4 * 315 / size, abs=6e-3)
    assert "next: python net_decompress.py --compressed " in out


def test_decompress_reports_what_it_wrote(chain, tmp_path, capsys):
    array = decompress(chain.blob, tmp_path / "out.npy", "--volume", chain.volume)
    found = results(capsys.readouterr().out)
    difference = array.astype(float) - slanted((9, 7, 5))
    rmse = np.sqrt(np.mean(difference**2))
    assert float(found["psnr"]) == pytest.approx(20 * np.log10(40 / rmse), abs=1e-3)
    assert float(found["rmse"]) == pytest.approx(rmse, rel=1e-5)
    assert float(found["max_error"]) == pytest.approx(np.abs(difference).max(), rel=1e-5)
    assert float(found["file_ratio"]) == pytest.approx(4 * 315 / chain.blob.stat().st_size, abs=6e-3)
    assert found["recon"] == str(tmp_path / "out.npy")
    decompress(chain.blob, tmp_path / "out.npy")
    assert "psnr" not in results(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["r.npy", "r.zarr", "r.mhd", "r.vti"])
def test_the_line_for_people_has_the_size_of_all_that_was_written(name, tmp_path, monkeypatch, capsys):
    """Of what a folder holds, of voxels beside their header, of the steps that a list names, r.pvd here."""
    shape = (3, 6, 5, 4) if name == "r.vti" else (60, 50, 40)
    blob = make_blob(make_header(shape), field_net(d_in=len(shape)))
    (tmp_path / "a.nvc").write_bytes(blob)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    net_decompress.main(["a.nvc", "--recon", name])
    size = size_text(sum(len(content) for path, content in listing(tmp_path).items() if path != "a.nvc"))
    assert f" -> {name.replace('.vti', '.pvd')}  {size}" in capsys.readouterr().out


def test_without_the_volume_the_line_for_people_tells_whose_size_it_has(chain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    net_compress.main(["--net", str(chain.network), "--config", str(chain.config), str(tmp_path / "b")])
    assert f"volume of {chain.network.name}  1.26 kB -> " in capsys.readouterr().out


def test_the_next_command_can_be_pasted_where_names_begin_with_a_dash(capsys):
    np.save("-lead.npy", slanted((9, 7, 5)))
    small = ["--n_passes", "1", "--n_layers", "2"]
    train_script.main(["--volume=-lead.npy", "--network=-n.pth", "--config=-c.json", *small])
    for script, flags in ((net_compress, ["--compressed=-b", "--n_passes", "1"]), (net_decompress, ["--info"])):
        command = re.search(rf"^next: python {script.__name__}\.py (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
        script.main([*shlex.split(command), *flags])
    assert "9,7,5" in capsys.readouterr().out


def test_the_next_command_reads_the_same_volume(tmp_path, capsys):
    """Whatever it takes; and it makes the smaller file."""
    slanted((9, 7, 5)).ravel(order="F").tofile("a b.raw")
    argv = ("--volume", "a b.raw", "--shape", "9,7,5", "--dtype", "float32", "--endian", "little", "--n_passes", "1")
    train_script.main([*argv, "--n_layers", "2"])
    command = re.search(r"^next: python net_compress\.py (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    net_compress.main([*shlex.split(command), "--n_passes", "1"])
    assert "psnr=" in capsys.readouterr().out and (tmp_path / "compressed_out").exists()
