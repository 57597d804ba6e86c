"""The three scripts: what is refused and how, interruption, the same bytes again."""

from __future__ import annotations

import os
import re
import runpy
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import field_net, make_blob, make_header, zero_network
from helpers.original import original_blob
from helpers.scripts import ROOT, compress, decompress, error_of, hear_ctrl_c, listing, train
from helpers.volume_files import plain_nrrd_header
from helpers.volumes import slanted
from helpers.vtk import vtk_write

import net_compress
import net_decompress
import train as train_script
from cli import files, progress
from field.blob import encode_blob
from training import network_files

# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        *[(f"--{name}", value) for name in ("n_passes", "lr", "compression_ratio", "w0", "pass_decay", "lr_decay")
          for value in ("0", "-1", "nan", "inf", "x")],
        *[(f"--{name}", value) for name in ("batchSize", "oversample", "num_workers") for value in ("0", "-3", "1.5")],
        ("--n_layers", "0"), ("--n_layers", "256"), ("--n_layers", "2.5"),
        ("--d_in", "0"), ("--d_in", "5"), ("--d_out", "0"), ("--d_out", "256"),
        ("--grad_lambda", "-0.1"), ("--grad_lambda", "nan"), ("--seed", "-1"), ("--seed", "1.5"),
        ("--gid", "-1"), ("--optimizer", "sgd"), ("--schedule", "linear"), ("--nosuch",), ("--n_pass", "3"),
    ],
)  # fmt: skip
def test_train_refuses_flags_out_of_range(volume_file, tmp_path, flags):
    message = error_of(train_script.main, "--volume", volume_file, *flags)
    assert flags[0] in message
    assert set(listing(tmp_path)) == {"volume.npy"}


@pytest.mark.parametrize(
    ("script", "needed"),
    [(train_script, "--volume"), (net_compress, "thenet.json"), (net_decompress, "compressed_out")],
)
def test_what_is_missing_is_named(script, needed):
    """The flag that is required, or the file that the script before would have written."""
    assert needed in error_of(script.main)


def test_no_such_gpu(chain, tmp_path):
    for gid in ("--gid", "99"), *([] if torch.cuda.is_available() else [("--gid", "0")]):
        for script, source in (
            (train_script, ("--volume", chain.volume)),
            (net_decompress, ("--compressed", chain.blob)),
        ):
            message = error_of(script.main, *source, "--cuda", *gid)
            assert " ".join(gid) in message and "GPU" in message and "found" in message
    assert not list(tmp_path.iterdir())


def test_unwritable_outputs_are_found_before_the_work_starts(chain, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the work has started")

    monkeypatch.setattr(train_script, "fit_after_trials", never)
    monkeypatch.setattr(net_compress, "encode_blob", never)
    monkeypatch.setattr(net_decompress.NeuralField, "on_grid", never)
    missing, folder, good = tmp_path / "no" / "out", tmp_path / "folder", tmp_path / "good"
    folder.mkdir()
    for bad in (missing, folder):
        for script, argv in (
            (train_script, ("--volume", chain.volume, "--network", bad, "--config", good)),
            (train_script, ("--volume", chain.volume, "--network", good, "--config", bad)),
            (net_compress, ("--net", chain.network, "--config", chain.config, "--compressed", bad)),
            (net_decompress, ("--compressed", chain.blob, "--recon", bad.with_suffix(".npy"))),
        ):
            if bad == folder and script is net_decompress:
                (tmp_path / "folder.npy").mkdir()
            message = error_of(script.main, *argv)
            assert str(bad) in message and "cannot be written" in message
    assert not listing(tmp_path)


def test_outputs_never_overwrite_inputs(chain):
    before = listing(chain.folder)
    same = "would overwrite"
    assert same in error_of(train_script.main, "--volume", chain.volume, "--network", chain.volume)
    assert same in error_of(train_script.main, "--volume", chain.volume, "--network", "x", "--config", "x")
    inputs = ("--net", chain.network, "--config", chain.config)
    assert same in error_of(net_compress.main, *inputs, "--compressed", chain.network)
    assert same in error_of(net_compress.main, *inputs, "--compressed", chain.config)
    recon = ("--recon", chain.volume, "--volume", chain.volume)
    assert same in error_of(net_decompress.main, "--compressed", chain.blob, *recon)
    assert listing(chain.folder) == before


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_outputs_never_overwrite_the_voxels_behind_a_header(chain, tmp_path, suffix):
    """Under their own name, by a link, nor in the case of a name where the disk knows none."""
    header = plain_nrrd_header((9, 7, 5), "data file: scan.raw")
    if suffix == ".mhd":
        header = b"NDims = 3\nDimSize = 9 7 5\nElementType = MET_FLOAT\nElementDataFile = scan.raw\n"
    (tmp_path / f"source{suffix}").write_bytes(header)
    (tmp_path / "scan.raw").write_bytes(slanted((9, 7, 5)).tobytes(order="F"))
    os.link(tmp_path / "scan.raw", tmp_path / "linked.pth")
    volume, before = ("--volume", tmp_path / f"source{suffix}"), listing(tmp_path)
    for name in ("scan.raw", "linked.pth"):
        said = error_of(train_script.main, *volume, "--network", tmp_path / name)
        assert said.endswith("would overwrite " + str(tmp_path / "scan.raw") + ", choose another name")
    said = error_of(net_decompress.main, "--compressed", chain.blob, *volume, "--recon", tmp_path / "scan.mhd")
    assert "would overwrite" in said and listing(tmp_path) == before


@pytest.mark.parametrize(
    ("shape", "recon", "derived"),
    [
        ((9, 7, 5), "scan.raw", "scan_9x7x5_float32.raw"),
        ((9, 7, 5), "scan.mhd", "scan.raw"),
        ((3, 4, 3, 2), "scan.vti", "scan_0001.vti"),
        ((3, 4, 3, 2), "scan", "scan_0001.vti"),
    ],
)
def test_a_file_older_than_the_blob_is_replaced_only_under_a_name_that_was_typed(
    shape, recon, derived, tmp_path, monkeypatch
):
    """A file that is newer is an earlier output."""
    blob, source, typed = tmp_path / "blob", tmp_path / derived, tmp_path / recon
    blob.write_bytes(make_blob(make_header(shape), field_net(d_in=len(shape))))
    for path, seconds in ((source, 1_000), (typed, 1_000), (blob, 2_000)):
        path.write_bytes(path.read_bytes() if path == blob else b"old")
        os.utime(path, (seconds, seconds))
    before, argv = listing(tmp_path), ("--compressed", blob, "--recon", typed)
    with monkeypatch.context() as patch:
        patch.setattr(net_decompress.NeuralField, "on_grid", lambda *_, **__: pytest.fail("evaluated"))
        said = error_of(net_decompress.main, *argv)
    reason = f"would be overwritten and may be the source of {blob}, as it is older"
    assert said == f"{source}: {reason}: choose another --recon name, or remove it"
    assert listing(tmp_path) == before
    os.utime(source, (3_000, 3_000))
    net_decompress.main([str(a) for a in argv])
    assert source.read_bytes() != b"old"


def test_names_that_are_known_are_replaced_at_any_age(chain, tmp_path):
    """One that was typed, and the default one; any, where the source is known."""
    (tmp_path / "series").write_bytes(make_blob(make_header((3, 4, 3, 2)), field_net(d_in=4)))
    for name, flags in (
        ("a_9x7x5_float32.raw", (chain.blob, "--recon", "a_9x7x5_float32.raw")),
        ("b_9x7x5_float32.raw", (chain.blob, "--recon", "b.raw", "--volume", chain.volume)),
        ("c.vti", (chain.blob, "--recon", "c")),
        ("recon.vti", (chain.blob,)),
        ("recon_0001.vti", ("series",)),
    ):
        (tmp_path / name).write_bytes(b"old")
        os.utime(name, (1_000, 1_000))
        net_decompress.main(["--compressed", *map(str, flags)])
        assert (tmp_path / name).read_bytes() != b"old"


def test_vol_debug_never_overwrites_the_volume(tmp_path):
    vtk_write(tmp_path / "gt.vti", slanted((4, 3, 2)))
    said = error_of(train_script.main, "--volume", tmp_path / "gt.vti", "--enable-vol-debug")
    assert "would overwrite" in said


def test_damaged_blobs(chain, tmp_path):
    blob, recon = tmp_path / "damaged", tmp_path / "recon.vti"
    recon.write_text("old")
    content = chain.blob.read_bytes()
    flipped = content[:40] + bytes([content[40] ^ 4]) + content[41:]
    for data in (flipped, content[:-1], content + b"\0", b"x" + content[1:], b"", b"hello", chain.network.read_bytes()):
        blob.write_bytes(data)
        message = error_of(net_decompress.main, "--compressed", blob, "--recon", recon)
        assert message.startswith(f"{blob}: ")
        assert recon.read_text() == "old" and set(listing(tmp_path)) == {"damaged", "recon.vti"}


def test_decompress_refuses_another_shape(chain, tmp_path):
    np.save(tmp_path / "other.npy", slanted((9, 5, 7)))
    argv = ("--compressed", chain.blob, "--recon", tmp_path / "r.vti", "--volume", tmp_path / "other.npy")
    message = error_of(net_decompress.main, *argv)
    assert message.startswith(f"{tmp_path / 'other.npy'}: ")
    assert "expected shape (9, 7, 5)" in message and "found (9, 5, 7)" in message and str(chain.blob) in message
    assert not (tmp_path / "r.vti").exists()


def test_decompress_refuses_a_bad_volume_or_suffix(chain, tmp_path):
    np.save(tmp_path / "bad.npy", np.full((9, 7, 5), np.nan))
    argv = ("--compressed", chain.blob, "--recon", tmp_path / "r.vti", "--volume", tmp_path / "bad.npy")
    assert "found 315 NaN" in error_of(net_decompress.main, *argv)
    assert "cannot write .png" in error_of(net_decompress.main, "--compressed", chain.blob, "--recon", "r.png")
    assert set(listing(tmp_path)) == {"bad.npy"}


def test_originals_blob_needs_the_volume(tmp_path):
    data, _ = original_blob(np.random.default_rng(0), 8, 5, 2, True)
    (tmp_path / "blob").write_bytes(data)
    message = error_of(net_decompress.main, "--compressed", tmp_path / "blob", "--recon", tmp_path / "r.vti")
    assert message.startswith(f"{tmp_path / 'blob'}: ") and "--volume" in message


# --- the scripts as processes -----------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch, capsys):
    """Run a script as the command line does, in this process; its status, stdout and stderr."""

    def run(script: str, *args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"some/where/{script}", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return (caught.value.code, *capsys.readouterr())

    on_sigterm = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, on_sigterm)


def test_bad_input_ends_with_one_line_and_status_2(chain, tmp_path, ended):
    array = slanted((4, 3, 2))
    array[1, 2, 0] = np.nan
    np.save(tmp_path / "a b.npy", array)
    (tmp_path / "blob").write_bytes(chain.blob.read_bytes()[:-5])
    before = listing(tmp_path)
    for command, words in (
        (("train.py", "--volume", "a b.npy"), ("a b.npy: ", "found 1 NaN", "(1, 2, 0)")),
        (("net_decompress.py", "--compressed", "blob"), ("blob: ", "truncated")),
        (("net_compress.py", "--cluster_bits", 16), ("--cluster_bits", "from 1 to 15, found '16'")),
        (("net_compress.py", "--cluster_bits", 0), ("--cluster_bits", "from 1 to 15, found '0'")),
    ):
        status, out, err = ended(*command)
        assert (status, out) == (2, "") and err.startswith(f"{command[0]}: error: ") and err.count("\n") == 1
        assert all(word in err for word in words)
    assert listing(tmp_path) == before


def test_ctrl_c_keeps_the_previous_outputs(tmp_path):
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    np.save(tmp_path / "volume.npy", slanted((24, 20, 16)))
    (tmp_path / "thenet.pth").write_bytes(b"previous network")
    (tmp_path / "thenet.json").write_bytes(b"previous configuration")
    before = listing(tmp_path)
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--volume", "volume.npy", "--max_seconds", "3000", "--n_layers", "2",
         "--compression_ratio", "8"],
        cwd=tmp_path, stderr=inner, stdout=subprocess.PIPE, preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    os.close(inner)
    said, is_interrupted = b"", False
    try:
        while True:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    said += os.read(terminal, 65536)
                except OSError:  # how Linux says that the other end is closed
                    break
            if not is_interrupted and b"PSNR" in said:  # in the midst of training, which would take minutes
                is_interrupted = True
                process.send_signal(signal.SIGINT)
        status = process.wait()
    finally:
        process.kill()
        os.close(terminal)
        process.stdout.close()
    assert status == 130
    lines = [line for line in re.split(r"[\r\n]+", said.decode()) if line.strip() and "% [" not in line]
    assert lines == ["train.py: interrupted"]
    assert b"Traceback" not in said
    assert listing(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_decoding_leaves_no_temporary_file(tmp_path, number):
    (tmp_path / "blob").write_bytes(make_blob(make_header((600, 600, 600)), field_net()))
    (tmp_path / "r.npy").write_bytes(b"previous volume")
    before = listing(tmp_path)
    command = [sys.executable, str(ROOT / "net_decompress.py"), "--compressed", "blob", "--recon", "r.npy"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    try:
        while not list(tmp_path.glob(".r.npy.*.tmp")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + number and said == "net_decompress.py: interrupted\n"
    assert listing(tmp_path) == before


@pytest.mark.parametrize("written", [0, 1])
def test_interrupted_while_writing(volume_file, tmp_path, monkeypatch, written):
    """The outputs of before, both, and no temporary file."""
    old = train(volume_file, tmp_path)
    before = listing(tmp_path)

    opened, is_writing = [], []

    def interrupt(path, mode="r"):
        if mode == "wb" and is_writing:
            opened.append(path)
            if len(opened) > written:
                raise KeyboardInterrupt
        return open(path, mode)

    original = network_files.write_or_rescue

    def write(contents):
        is_writing.append(True)
        original(contents)

    monkeypatch.setattr(files, "open", interrupt, raising=False)
    monkeypatch.setattr(network_files, "write_or_rescue", write)
    with pytest.raises(KeyboardInterrupt):
        train(volume_file, tmp_path, "--seed", 3)
    assert listing(tmp_path) == before and old.network.exists()


def test_progress_bar_is_shown_while_training(volume_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    train(volume_file, tmp_path)
    out, err = capsys.readouterr()
    assert re.search(r"^training: \d+%.*s left$", err, re.MULTILINE) and "training" not in out


@pytest.mark.parametrize(
    ("shape", "recon", "free", "said"),
    [
        ((1 << 13,) * 3, "r.npy", 1 << 40, "takes at least 4.4 TB, the disk has 1.1 TB left"),
        ((24, 20, 28), "r.npy", 40_000, "takes at least 108 kB, the disk has 40 kB left"),
        ((1 << 13,) * 3, "r", 1 << 30, "takes at least 4.26 GB, the disk has 1.07 GB left"),
        ((24, 20, 28), "r.vti", 0, "takes at least 104 bytes, the disk has 0 bytes left"),
        ((24, 20, 28), "r.vti", 40_000, None),
        ((24, 20, 28), "r.nii.gz", 40_000, None),
    ],
)
def test_a_volume_beyond_the_disk_is_refused(tmp_path, monkeypatch, shape, recon, free, said):
    """A blob of a few hundred bytes may announce any shape. Files that are compressed may well fit."""
    header = make_header(shape, dtype="float64")
    (tmp_path / "blob").write_bytes(encode_blob(header, [zero_network(d_in=3)]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    arguments = ("--compressed", tmp_path / "blob", "--recon", tmp_path / recon)
    if said:
        shown = f"blob: its volume of shape {shape} {said}"
        assert shown in error_of(net_decompress.main, *arguments) and set(listing(tmp_path)) == {"blob"}
    else:
        net_decompress.main([str(a) for a in arguments])
        assert (tmp_path / recon).stat().st_size < 40_000


# --- a volume that changes --------------------------------------------------------------------------


@pytest.mark.parametrize("is_changed", [True, False])
def test_each_script_tells_that_its_volume_was_written_to(tmp_path, monkeypatch, capsys, is_changed):
    """What it reads may be of parts of two versions then."""
    volume, blob, told = tmp_path / "a.npy", tmp_path / "blob", []
    np.save(volume, slanted((6, 5, 4)))

    def work_meanwhile(work, *arguments):
        (tmp_path / "beside").touch()
        if is_changed:
            os.utime(volume, (1e9 + len(told), 1e9 + len(told)))
        return work(*arguments)

    for script, name in (
        (train_script, "make_fit"),
        (net_compress, "rounded_networks"),
        (net_decompress, "write_volume_files"),
    ):
        monkeypatch.setattr(script, name, partial(work_meanwhile, getattr(script, name)))
    trained = train(volume, tmp_path)
    told.append(capsys.readouterr().err)
    compress(trained, blob, "--volume", volume, "--n_passes", 0)
    told.append(capsys.readouterr().err)
    decompress(blob, tmp_path / "out.npy", "--volume", volume)
    told.append(capsys.readouterr().err)
    assert [f"{volume}: was written to during the run" in each for each in told] == [is_changed] * 3
