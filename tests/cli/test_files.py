"""Sets of files through kills, and full disks: the old set, the new one, or one that cannot be opened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers.networks import field_net, make_blob, make_header
from helpers.scripts import ROOT, error_of, listing, train

import net_compress
import net_decompress
from cli import files
from cli.files import check_outputs
from utils import UserError

# Writes a set of three files, and is killed before the n-th change of a name.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from cli import files

n_left = int(sys.argv[2])

def counted(change):
    def changed(*names):
        global n_left
        n_left -= 1
        if n_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        change(*names)
    return changed

os.replace, os.remove = counted(os.replace), counted(os.remove)
files.write_files({name: b"new" for name in ("index", "a", "b")})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
def test_a_run_killed_among_the_renames_leaves_no_mixed_set_and_the_next_one_tidies_up(tmp_path):
    names, outcomes = ("index", "a", "b"), []
    for n in range(6):
        for name in names:
            (tmp_path / name).write_text("old")
        subprocess.run([sys.executable, "-c", KILLED, str(ROOT), str(n)], cwd=tmp_path, check=False)
        check_outputs([str(tmp_path / name) for name in names])
        left = listing(tmp_path)
        assert set(left) - {"index"} == {"a", "b"}
        outcomes.append("none" if "index" not in left else "mixed" if len(set(left.values())) > 1 else left["index"])
    assert outcomes == [b"old", "none", "none", "none", b"new", b"new"]


def test_a_temporary_file_of_a_running_process_stays(tmp_path):
    with files.atomic_write(str(tmp_path / "a")) as mine:
        open(mine, "w").close()
        theirs = tmp_path / os.path.basename(mine).replace(str(os.getpid()), str(os.getppid()))
    theirs.touch()
    check_outputs([str(tmp_path / "a")])
    assert theirs.exists()


def test_long_names_that_begin_alike_have_temporary_files_of_their_own(tmp_path):
    contents = {str(tmp_path / ("a" * 240 + end)): end.encode() for end in ("1", "2")}
    files.write_files(contents)
    assert listing(tmp_path) == {os.path.basename(path): content for path, content in contents.items()}


def test_a_name_too_long_for_the_file_system_is_refused_before_the_work(tmp_path):
    too_long = str(tmp_path / ("a" * 256))
    with pytest.raises(UserError, match="cannot be written: "):
        check_outputs([str(tmp_path / "a"), too_long])
    assert not listing(tmp_path)


@pytest.mark.parametrize(
    ("shape", "flags", "index"),
    [
        ((5, 4, 3), ("--recon", "r.mhd"), "r.mhd"),
        ((5, 4, 3), ("--recon", "r.vti", "--preview", "p.png"), "r.vti"),
        ((3, 5, 4, 3), ("--recon", "r"), "r.pvd"),
        (None, (), "thenet.json"),
    ],
)
def test_no_mixed_set_can_be_opened(shape, flags, index, volume_file, tmp_path, monkeypatch, request):
    """What lies there before each rename, when the script writes over an earlier result."""
    monkeypatch.chdir(tmp_path)
    if "--preview" in flags:
        request.getfixturevalue("renderer")

    def run(seed: int) -> None:
        if shape:
            (tmp_path / "blob").write_bytes(make_blob(make_header(shape), field_net(d_in=len(shape), seed=seed)))
            os.utime(tmp_path / "blob", (1_000, 1_000))  # older than the result: that is no source
            net_decompress.main(["--compressed", "blob", *flags])
        else:
            train(volume_file, tmp_path, "--seed", seed)

    def outputs() -> dict[str, bytes]:
        return {name: content for name, content in listing(tmp_path).items() if name[0] not in ".bv"}

    run(0)
    old, seen, replace = outputs(), [], os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append(outputs()), replace(*names)))
    run(1)
    assert all(found == old or index not in found for found in seen)
    assert len(seen) == len(old) + 1 and len(outputs()) == len(old)


# --- full disks -------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """A folder on a disk that fills while a file is written; the current folder, beside it, is on another disk."""
    (tmp_path / "full").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sync = files._sync

    def full(path: str) -> None:
        if path.startswith(str(tmp_path / "full")):
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    return tmp_path / "full"


def test_a_full_disk_at_the_end_loses_no_network(full_disk, volume_file, tmp_path):
    """The pair that is written elsewhere can be compressed, and that blob is written elsewhere as well."""
    with pytest.raises(UserError, match=r"No space left on device: written to .* instead$"):
        train(volume_file, full_disk, "--enable-vol-debug")
    found = {path.name: path for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert set(found) == {"thenet.pth", "thenet.json"} and not list(full_disk.iterdir())
    pair = ("--net", found["thenet.pth"], "--config", found["thenet.json"])
    said = error_of(net_compress.main, *pair, "--compressed", full_disk / "blob")
    (blob,) = (tmp_path / "here").rglob("blob")
    assert str(blob) in said and not list(full_disk.iterdir())
    net_decompress.main(["--compressed", str(blob), "--recon", str(tmp_path / "r.npy")])


def test_two_files_of_one_name_are_both_written_elsewhere(full_disk, tmp_path):
    contents = {str(full_disk / "a" / "x"): b"1", str(full_disk / "b" / "x"): b"2"}
    with pytest.raises(UserError, match=r"written to .*0_x and .*1_x instead"):
        files.write_or_rescue(contents)
    assert sorted(listing(tmp_path / "here").values()) == [b"1", b"2"]


def test_when_no_disk_has_room_nothing_stays(full_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"x: cannot be written: No space left on device$"):
        files.write_or_rescue({str(full_disk / "x"): b"1"})
    assert not listing(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("rescued")] == []


def test_a_run_that_ends_before_its_file_set_does_leaves_no_file(tmp_path):
    """A signal can come between the last line of the set's block and the set's own end."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cli import console, files\n"
        "def main(argv):\n"
        "    together = files.FileSet()\n"
        "    open(together.add(sys.argv[2]), 'w').write('half')\n"
        "    raise KeyboardInterrupt\n"
        "console.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT), str(tmp_path / "out.raw")], capture_output=True)
    assert done.returncode == 130 and os.listdir(tmp_path) == []


def test_sizes_as_text_keep_three_digits():
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1 kB", 999_499: "999 kB", 999_500: "1 MB", 3.4e15: "3.4e+03 TB"}
    assert {size: files.size_text(size) for size in sizes} == sizes
