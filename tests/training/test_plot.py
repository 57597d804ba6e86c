"""Pictures of trainings: the curve, its end, and what is said where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pictures import is_blue, is_red, read_png
from helpers.scripts import train

import train as train_script
from field.drawing import LINE
from training import fitting, long_runs, loop
from training.plot import plot_training


def test_a_plot_shows_the_curve_and_its_end(renderer, tmp_path):
    history = [(float(t), 10.0 + 2 * t) for t in range(1, 10)]
    plot_training(str(tmp_path / "p.png"), history, (10.0, 29.0), 20.0)
    chart = read_png(tmp_path / "p.png")[2 * LINE :][:350]  # above the legend
    rows, columns = np.nonzero(is_blue(chart))
    assert len(rows) > 100 and np.corrcoef(rows, columns)[0, 1] < -0.999  # one straight line upwards
    ends = np.nonzero(is_red(chart))
    assert ends[1].mean() > columns.max() - 10 and ends[0].mean() < rows.min() + 10


@pytest.mark.parametrize(
    ("history", "final", "said"),
    [
        ([], (0.0, np.inf), "A constant volume: nothing to train"),
        ([], (0.3, 31.2), "PSNR 31.20 dB after 0.3 s, 3.0 passes over the volume, too short for a curve"),
        ([(0.2, 31.1)], (0.3, 31.2), "PSNR 31.20 dB after 0.3 s, 3.0 passes over the volume"),
    ],
)
def test_plots_of_short_trainings(renderer, tmp_path, texts, capfd, history, final, said):
    """Say why there is no curve; a single estimate is a dot."""
    plot_training(str(tmp_path / "p.png"), history, final, 3.0)
    assert texts == [said] and capfd.readouterr().err == ""
    image = read_png(tmp_path / "p.png")[:350]  # above the legend
    assert is_blue(image).any() == bool(history) and is_red(image).any() == np.isfinite(final[1])


def test_the_dot_of_the_end_is_whole(renderer, tmp_path):
    """Where the axes would end at its middle, too."""
    plot_training(str(tmp_path / "p.png"), [(1.0, 20.0), (2.0, 39.9)], (2.0, 40.0), 2.0)
    rows, columns = np.nonzero(is_red(read_png(tmp_path / "p.png")[: 2 * LINE + 300]))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)


@pytest.mark.parametrize("psnr", [40.0, np.inf, -np.inf, np.nan])
def test_a_plot_of_nothing_but_the_end(renderer, tmp_path, psnr):
    plot_training(str(tmp_path / "p.png"), [(0.1, psnr)], (0.0, psnr), 0.0)
    assert is_red(read_png(tmp_path / "p.png")).any() == np.isfinite(psnr)


def test_train_plots(renderer, volume_file, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECK_STEPS", 2)
    estimates, went_back = [], fitting.Fit._recover_if_needed
    monkeypatch.setattr(fitting.Fit, "_recover_if_needed", lambda fit: (went_back(fit), estimates.append(fit.psnr))[0])
    seen = []
    monkeypatch.setattr(
        train_script, "plot_training", lambda *arguments: seen.append(arguments) or plot_training(*arguments)
    )
    (tmp_path / "plain").mkdir()
    plain = train(volume_file, tmp_path / "plain", "--n_passes", 10)
    estimates.clear()
    trained = train(volume_file, tmp_path, "--n_passes", 10, "--plot", tmp_path / "p.png")
    assert trained.data == plain.data
    assert is_blue(read_png(tmp_path / "p.png")).any() and is_red(read_png(tmp_path / "p.png")).any()
    ((path, history, final, passes),) = seen
    seconds, psnrs = np.array(history).T
    assert path == str(tmp_path / "p.png") and passes == 10.0 and final[1] == trained.settings["psnr"]
    assert (np.diff(seconds) >= 0).all() and seconds[-1] <= final[0]
    assert psnrs.tolist() == estimates and len(estimates) > 10


def test_a_resumed_run_plots_its_own_part(renderer, volume_file, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECK_STEPS", 2)
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", 0.0)
    flags = ("--checkpoint", tmp_path / "state", "--n_passes", 10)
    train(volume_file, tmp_path, *flags)
    train(volume_file, tmp_path, *flags, "--resume", "--plot", tmp_path / "p.png")
    assert is_red(read_png(tmp_path / "p.png")).any()
