"""Arguments, outputs, progress."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.scripts import ROOT, listing

from cli import console, files
from cli.arguments import ArgumentParser, default_workers, integer_from, number_from, resolve_device, voxel_counts
from cli.files import atomic_write, check_outputs, read_bytes, write_files
from cli.summary import summary
from utils import UserError


@pytest.mark.parametrize(
    ("parse", "texts", "said"),
    [
        (integer_from(1, 8), ("0", "-1", "9", "1.5", "x", "", "nan", "1e2"), "from 1 to 8"),
        (number_from(0, exclusive=True), ("0", "-0.0", "-1", "nan", "inf", "-inf", "x", ""), "above 0"),
        (voxel_counts, ("5000000000,1,1", "0,1,1", "-1", "1.5", "1,1,1,1", "x", ""), "X,Y,Z from 1 to 4294967295"),
    ],
)
def test_numbers_that_are_refused(parse, texts, said):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{said}, found {text!r}")):
            parse(text)


def test_limits_are_taken_unless_they_are_exclusive():
    assert [integer_from(1, 8)(text) for text in ("1", "8")] == [1, 8]
    assert integer_from(0)("0") == 0 and number_from(0)("0") == 0.0
    assert number_from(0, exclusive=True)("1e-3") == 1e-3


@pytest.mark.parametrize("argv", [["--nosuch", "1"], [], ["--need"], ["--need", "1", "extra"], ["--nee", "1"]])
def test_parser_errors_are_user_errors(argv):
    parser = ArgumentParser("A script.")
    parser.add_argument("--need", required=True, type=integer_from(1))
    with pytest.raises(UserError, match="see --help"):
        parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--in-put=1"], "--in-put=1: is --in_put meant? (see --help)"),
        (["--other", "1"], "--other 1 (see --help)"),
        ([""], "'', an empty text (see --help)"),
        (["out.npy"], "out.npy: give a file by its flag, a pattern of files in quotes (see --help)"),
    ],
)
def test_what_is_unknown_gets_a_hint(argv, hint):
    parser = ArgumentParser("A script.")
    parser.add_argument("--in_put")
    with pytest.raises(UserError) as caught:
        parser.parse_args(argv)
    assert str(caught.value) == f"unrecognized arguments: {hint}"


@pytest.mark.parametrize(
    ("value", "said"), [("", "a value, found ''"), ("-", "a file, found '-': no standard stream is read or written")]
)
@pytest.mark.parametrize(("flags", "name"), [(["--file", "{}"], "--file"), (["--file={}"], "--file"), (["{}"], "BLOB")])
def test_an_empty_text_and_a_dash_are_no_values(flags, name, value, said):
    """A shell gives the one for a variable that is not set: it would count as no flag at all. The other is no file."""
    parser = ArgumentParser("A script.")
    parser.add_argument("--file")
    parser.add_argument("blob", nargs="?", metavar="BLOB")
    with pytest.raises(UserError, match=f"argument {name}: expected {said}"):
        parser.parse_args([flag.format(value) for flag in flags])
    assert parser.parse_args(["--file", "./-"]).file == "./-"


def test_the_last_of_two_values_counts_with_a_warning(capsys):
    parser = ArgumentParser("A script.")
    parser.add_argument("--file")
    parser.add_argument("--on", action="store_true")
    assert parser.parse_args(["--on", "--file", "a", "--on"]).file == "a" and not capsys.readouterr().err
    assert parser.parse_args(["--file", "a", "--file=b"]).file == "b"
    assert "warning: --file is given 2 times: the last one counts" in capsys.readouterr().err


def test_device_is_the_cpu_and_torch_has_one_thread():
    torch.set_num_threads(3)
    assert resolve_device(False, 0) == torch.device("cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 1), (4, 1, 4), (64, 1, 8), (8, 2, 4), (2, 4, 1)])
def test_default_workers_are_the_cores_shared_among_processes(cores, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == expected


def test_a_gpu_multiplies_float32_without_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    try:
        assert resolve_device(True, 1) == torch.device("cuda", 1)
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


# --- outputs ----------------------------------------------------------------------------------------


def test_check_outputs_that_cannot_be_there(tmp_path):
    (tmp_path / "file").touch()
    for name, said in (("no/a", "does not exist"), ("file/a", "cannot be written"), ("", "choose another name")):
        path = os.path.join(tmp_path, name)
        with pytest.raises(UserError, match=f"^{re.escape(path)}: .*{said}"):
            check_outputs([path])


def test_check_outputs_folder_that_refuses(tmp_path, monkeypatch):
    """What a read-only folder does, for the superuser too."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(UserError, match="a: cannot be written: Permission denied"):
        check_outputs([str(tmp_path / "a")])


def test_check_outputs_would_overwrite_an_input_or_each_other(tmp_path):
    source = tmp_path / "in"
    source.touch()
    (tmp_path / "link").symlink_to(source)
    for outputs in ([source], [tmp_path / "link"], [tmp_path / "x", tmp_path / "." / "x"]):
        with pytest.raises(UserError, match="would overwrite"):
            check_outputs([str(path) for path in outputs], inputs=[str(source)])


def test_atomic_write_replaces_at_the_end(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    with atomic_write(str(target)) as path:
        with open(path, "w") as file:
            file.write("new")
        assert target.read_text() == "old"
        assert os.path.dirname(path) == str(tmp_path)
    assert listing(tmp_path) == {"out": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(error), atomic_write(str(target)) as path:
        with open(path, "w") as file:
            file.write("half")
        raise error
    assert listing(tmp_path) == {"out": b"old"}


def test_atomic_write_full_disk(tmp_path):
    said = pytest.raises(UserError, match="out: cannot be written: No space left")
    with said, atomic_write(str(tmp_path / "out")) as path:
        Path(path).touch()
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_written_files_have_the_usual_permissions(tmp_path):
    with open(tmp_path / "plain", "w"):
        pass
    with atomic_write(str(tmp_path / "out")) as path, open(path, "w"):
        pass
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_read_bytes_names_the_file(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot be read: "):
            read_bytes(str(path))


# --- what a run says --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_terminal", [False, True])
def test_results_are_a_line_for_people_or_key_value_lines(is_terminal, capsys, monkeypatch):
    """On stdout; no escape sequence of a name reaches the terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    figures = {"psnr": "31.04", "file_ratio": "200.2", "bytes": 7, "seconds": "9.1", "recon": "a\x1b[31m"}
    console.report(summary("run/v.npy", 1_150_000, ["a\x1b[31m", "p.png"], 7, figures), figures)
    expected = "psnr=31.04\nfile_ratio=200.2\nbytes=7\nseconds=9.1\nrecon=a\\x1b[31m\n"
    if is_terminal:
        expected = "v.npy  1.15 MB -> a\\x1b[31m  7 bytes, p.png  200 : 1  31.0 dB  in 9.1 s\n"
    assert capsys.readouterr().out == expected


def test_the_line_for_people_has_one_ratio_and_the_quality_of_parts(monkeypatch):
    figures = {"psnr": "40", "psnr_t0": "38.9", "psnr_t1": "41.2", "rmse": "0.1", "max_error": "0.5"}
    figures |= {"file_ratio": "128.9", "source_ratio": "64.4", "seconds": "2"}
    parts = ["v  10 bytes -> w  64.4 : 1  40.0 dB  (times: 38.9 to 41.2)", "rmse 0.1, largest error 0.5  in 2 s"]
    for width, between in ((98, "  "), (80, "\n  ")):  # a narrower terminal gets two lines
        monkeypatch.setenv("COLUMNS", str(width))
        assert summary("v", 10, ["w"], None, figures) == between.join(parts)
    assert summary("a/v.zarr/", 10, ["w"], None, figures).startswith("v.zarr  ")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a  b.npy:\n too bad"), 2, "error: a  b.npy: too bad\n"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0"), 2, "leave out --cuda\n"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, "leave out --cuda\n"),
        (KeyError("unlisted"), None, ""),
        (RuntimeError("CUDA error: an illegal memory access"), None, ""),
    ],
)
def test_run_turns_user_errors_into_one_line(capsys, monkeypatch, error, status, said):
    monkeypatch.setattr(console, "_silence", lambda: None)  # of the process, which goes on here

    def main(argv):
        raise error

    with pytest.raises(SystemExit if status else type(error)) as caught:
        console.run(main)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(said) and err.count("\n") == (1 if status else 0)
    assert status is None or caught.value.code == status


def test_what_libraries_leave_behind_adds_no_line_to_an_error():
    """As Zarr, which decodes other chunks while Python ends."""
    script = """
import logging, warnings
from cli import console
from utils import UserError
class Left:
    def __del__(self):
        logging.error("logged")
        warnings.warn("warned")
        raise RuntimeError("raised")
def main(argv):
    raise UserError("the only line")
left = Left()
console.run(main)"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "-c: error: the only line\n")


def test_a_file_keeps_its_mode(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    write_files({str(tmp_path / "a"): b"new"})
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600 and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("name", ["a" * 255, "\u00e4" * 127])
def test_names_as_long_as_the_disk_takes(name, tmp_path):
    write_files({str(tmp_path / name): b"new"})
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_what_is_no_regular_file_is_not_read(tmp_path, monkeypatch):
    """Nor waited for; nor a file beyond the limit."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="expected a regular file"):
            read_bytes(str(path))
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(UserError, match="of at most 3 bytes"):
        read_bytes(str(tmp_path / "a"))


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("name", ["plain", "a b'c", "ESC\x1b[31m", "'\x1b'\\\n", "wide\u3000space é"])
def test_the_next_command_can_be_pasted(name, capsys):
    """Into Bash; no escape sequence of a name reaches the terminal."""
    console.next_command("a.py", "--volume", name)
    command = capsys.readouterr().out.removesuffix("\n")
    assert command.isprintable() and command.startswith("next: python a.py --volume ")
    words = command.removeprefix("next: python a.py --volume ")
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    printed = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, env=env, check=True).stdout
    assert printed.decode() == name


def test_no_escape_sequence_of_a_file_reaches_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(console, "_silence", lambda: None)

    def main(argv):
        console.note("train.py", "a\x1b[31m.vti: 3 steps")
        raise UserError("a.nrrd: found \x1b[31mred " + "x" * 5000 + "y")

    with pytest.raises(SystemExit):
        console.run(main)
    noted, said = capsys.readouterr().err.splitlines()
    assert noted == "train.py: a\\x1b[31m.vti: 3 steps"
    assert said.startswith("train.py: error: a.nrrd: found \\x1b[31mred xxx") and len(said) < 1100 and said[-1] == "y"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_disk_behind_a_standard_stream_ends_no_run(tmp_path):
    """A line on stderr that cannot be written is lost; results that cannot be written are said, at the end."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli import console, files\n"
        "def main(argv):\n"
        "    console.warn('a', 'b')\n"
        "    console.report('1 byte', {'bytes': 1})\n"
        "    files.write_files({argv[0]: b'new'})\n"
        "console.run(main)"
    )
    for stream, status, said in (("stdout", 2, "standard output: cannot be written: No space left"), ("stderr", 0, "")):
        target = tmp_path / stream
        with open("/dev/full", "w") as full:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
            done = subprocess.run([sys.executable, "-c", program, target], text=True, check=False, **streams)
        assert done.returncode == status and target.read_bytes() == b"new"
        if status:
            warning, line = done.stderr.splitlines()
            assert warning == "a: warning: b" and said in line
        else:
            assert done.stdout == "bytes=1\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="SIGHUP")
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_closed_terminal_ends_a_run_as_sigterm_does(is_ignored, tmp_path):
    """But for one that was started with nohup."""
    program = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); from cli import console\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if is_ignored else 'SIG_DFL'})\n"
        "sys.argv = ['train.py']\n"
        "console.run(lambda argv: os.kill(os.getpid(), signal.SIGHUP))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = (0, "") if is_ignored else (129, "train.py: interrupted\n")
    assert (done.returncode, done.stderr) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows' streams")
def test_a_line_is_printed_once_though_a_signal_comes_as_it_is_written():
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from cli import console
        from cli.files import LossyFile
        write = LossyFile.write

        def interrupted(stream, data):
            write(stream, data)
            LossyFile.write = write
            raise KeyboardInterrupt

        def main(argv):
            LossyFile.write = interrupted
            console.report("", {{"psnr": 42}})

        console.run(main)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "psnr=42\n" and done.returncode == 130


def test_files_of_a_set_are_renamed_together(tmp_path, monkeypatch):
    """All are on the disk before, and Ctrl-C waits until after; the last one has its name first."""
    done, replace, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))

    def interrupted(temporary, real):
        os.kill(os.getpid(), signal.SIGINT)
        replace(temporary, real)
        done.append(os.path.basename(real))

    monkeypatch.setattr(os, "replace", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_files({str(tmp_path / name): b"new" for name in "ab"})
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["sync", "sync", "b", "sync", "a", "sync"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_set_of_which_one_cannot_be_renamed_says_which(tmp_path, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(5, "Input/output error"))
                        if b.endswith("a") else replace(a, b))  # fmt: skip
    with pytest.raises(UserError, match="a: cannot be written: Input/output error"):
        write_files({str(tmp_path / name): b"new" for name in "ab"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
