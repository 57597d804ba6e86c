"""Fit a network to a volume: writes its weights (thenet.pth) and its configuration (thenet.json)."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P and -I leave this folder out
import cli.startup  # noqa: F401 - first, to handle Ctrl-C while the other modules load

# isort: split
import dataclasses
import math
from collections.abc import Sequence
from functools import partial

from cli import console
from cli.arguments import Options, resolve_device, to_number, unless_default, volume_arguments
from cli.files import check_outputs, states_of
from cli.summary import summary
from field import rendering
from field.neural_field import NeuralField
from formats.reading import read_asked, source_files
from formats.series import is_pattern
from formats.writing import write_volume
from training import label_maps, outliers, processes
from training.brick_networks import BrickNetworks
from training.brick_trainer import BrickTrainer
from training.bricked_fit import BrickedFit
from training.choices import (
    asked_recipe,
    brick_messages,
    brick_recipes,
    bricks_for,
    network_fields,
    networks_for,
    settled,
    size_messages,
)
from training.fitting import Fit, new_fit
from training.long_runs import (
    Checkpoint,
    checkpoint_files,
    kept_if_interrupted,
    run_bricks,
    run_fit,
    saved_network,
    target_of,
)
from training.network_files import configuration, write_network
from training.options import MUST_MATCH, parse
from training.plot import plot_training
from training.quality import Judge, Quality
from training.recipe import psnr_of
from training.shapes import fit_after_trials
from training.starts import Start
from training.streaming import make_sampler
from utils import UserError, Volume, VolumeHeader, count_lost, header_of

note, warn = partial(console.note, "train.py"), partial(console.warn, "train.py")


def read(opt: Options) -> Volume:
    """The volume that the options ask for. Raises UserError."""
    fill = opt.fill if opt.fill in (None, "none") else to_number(opt.fill)
    volume = read_asked(opt, opt.d_in, opt.d_out, fill)
    if volume.geometry.d_in == 4 and opt.vol_debug:
        raise UserError(f"--enable-vol-debug: {opt.volume}: is a time series, expected a single volume")
    if volume.geometry.d_in == 4 and opt.d_in is None:
        n_steps, *sizes = volume.array.shape[:4]
        steps = f"{n_steps} steps of {' x '.join(map(str, sizes))} voxels"
        n_components = volume.values.shape[-1]
        steps += f", of {n_components} components" if n_components > 1 else ""
        note(f"{opt.volume}: a time series: {steps}")
    elif is_pattern(opt.volume) and opt.d_in is None:
        note(f"{opt.volume}: {volume.array.shape[2]} slices of one volume")
    return volume


def warn_of_values(opt: Options, volume: Volume, header: VolumeHeader) -> None:
    """Warn about --fill, outliers and labels. Raises UserError for values that may mark missing voxels.

    header: with the range before --clip.
    """
    found = outliers.find_outliers(volume.values, header.value_range) if opt.clip is None else None
    if found and found.are_marks and opt.fill != "none":
        raise UserError(f"{opt.volume}: {found.question()}")
    if opt.fill not in (None, "none") and header.missing is None:
        warn(f"--fill {opt.fill}: no voxel of {opt.volume} has this value")
    if header.missing and header.n_components > 1 and (n_lost := count_lost(volume.values, volume.fill)):
        warn(f"--fill {volume.fill}: {n_lost} values are left out as another component of their voxel is missing")
    if found and not found.are_marks:
        warn(f"{opt.volume}: {found.warning()}")
    if label_maps.look_like_labels(volume.values, volume.fill):
        warn(f"{opt.volume}: {label_maps.WARNING}")


def clipped_header(opt: Options, header: VolumeHeader) -> VolumeHeader:
    """The header with the range after --clip. Raises UserError for a bad --clip."""
    if opt.clip is None:
        return header
    try:
        clipped = header.value_range.clipped(*opt.clip)
    except ValueError as error:
        raise UserError(f"--clip {opt.clip[0]},{opt.clip[1]}: {opt.volume}: {error}") from None
    return dataclasses.replace(header, low=clipped.low, high=clipped.high)


def output_files(opt: Options) -> dict[str, str]:
    """The files to write, by their keys in the results."""
    files = {"network": opt.network, "config": opt.config, "plot": opt.plot, "checkpoint": opt.checkpoint}
    if opt.vol_debug:
        files |= {name: os.path.join(os.path.dirname(opt.network), f"{name}.vti") for name in ("gt", "vol")}
    return {key: path for key, path in files.items() if path}


def warn_of_quality(opt: Options, volume: Volume, header: VolumeHeader, psnr: float, constant: float) -> None:
    """Warn if the network is hardly better than a constant volume, or misses --target_psnr. psnr, constant: in dB."""
    more = f"more --{'max_seconds' if opt.max_seconds else 'n_passes'} or a lower --compression_ratio may"
    if opt.target_psnr and psnr >= opt.target_psnr:  # which has ended the training
        more = "a higher --target_psnr may"
    if not header.value_range.is_constant and not psnr >= constant + 1:  # true for NaN
        is_as_read, hint = opt.fill is None and opt.clip is None, ""
        if is_as_read and (fill := outliers.likely_fill(volume.values, header.value_range)) is not None:
            hint = f"; many voxels have the value {fill!s}: if it marks missing ones, --fill {fill!s}"
        warn(f"the network has {psnr:.1f} dB, where a constant volume would have {constant:.1f} dB: {more} help{hint}")
    if opt.target_psnr and psnr < opt.target_psnr:
        warn(f"the network has {psnr:.1f} dB, below --target_psnr {opt.target_psnr:g}: {more} give more")


def results(
    opt: Options, volume: Volume, header: VolumeHeader, fit: Fit | BrickedFit, quality: Quality
) -> dict[str, object]:
    """The results to print, by key, but for the files."""
    found: dict[str, object] = quality.metrics.report(header.n_present)
    if opt.clip:
        found["psnr_clipped"] = f"{quality.clipped.psnr:.3f}"
        found["clipped"] = outliers.count_beyond(volume.values, header.low, header.high, header.fill)
    bricks = fit.bricks()
    if not bricks.is_whole:
        found["bricks"] = ",".join(map(str, bricks.cut.counts[-3:]))
    found |= {"n_layers": fit.config.n_layers, "parameters": bricks.n_parameters}
    if bricks.n_parameters:  # bricks that are all constant have none
        found["compression_ratio"] = f"{header.n_voxels / bricks.n_parameters:.2f}"
    if header.missing:
        found["missing"] = header.missing.count
    return found | {"seconds": f"{fit.seconds:.1f}"}


def make_fit(opt: Options, volume: Volume, header: VolumeHeader, device: object) -> Fit | BrickedFit:
    """The fit that the options ask for: of one network, or of one for each brick. Raises UserError."""
    counts, mirrors = bricks_for(opt, volume, header)
    if mirrors:
        axes = ", ".join(name for name, mirror in zip("xyz", mirrors, strict=False) if mirror)
        fewer = f", {','.join(map(str, counts))} at most" if opt.bricks not in ("auto", counts) else ""
        note(f"{opt.volume}: symmetric along {axes}: bricks hold one side{fewer}")
    if mirrors or math.prod(counts) > 1:
        fields = network_fields(opt, header) | ({"n_layers": opt.n_layers} if opt.n_layers else {})
        n_parameters = header.n_voxels / opt.compression_ratio
        recipes = brick_recipes(opt, header, counts, mirrors)
        asked = opt.seed, opt.w0, opt.target_psnr, opt.num_workers
        trainer = BrickTrainer(volume, header, counts, recipes, *asked, device, mirrors)
        networks = BrickNetworks(trainer, n_parameters, fields)
        for message in brick_messages(opt.compression_ratio, header, networks):
            warn(message)
        return BrickedFit(networks)
    configs = networks_for(opt, header)
    for message in size_messages(opt.compression_ratio, header, configs[0]):
        warn(message)
    sampler = make_sampler(volume.values, header.value_range, device, opt.grad_lambda > 0)
    recipe = partial(asked_recipe, opt, sampler.n_present)
    if opt.resume:  # the network comes from the checkpoint: there is no need to look for a good start
        config = saved_network(opt.checkpoint, configs)
        return new_fit(Start(config, opt.seed, opt.w0), sampler, recipe(config), opt.num_workers)
    return fit_after_trials(configs, recipe, sampler, opt.seed, opt.w0, opt.num_workers)


@processes.joined()
def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = resolve_device(opt.cuda, opt.gid + processes.on_this_machine())
    files, sources = output_files(opt), source_files(opt.volume)
    interrupted = tuple(f"{os.path.splitext(opt.network)[0]}.interrupted{suffix}" for suffix in (".pth", ".json"))
    check_outputs([*files.values(), *interrupted], inputs=sources)
    states = states_of(sources)
    if opt.plot:
        rendering.check(opt.plot)
    if opt.resume:
        checkpoint_files(opt.checkpoint)  # that are missed now, not after the volume has been read

    volume = read(opt)
    unclipped = header_of(volume)
    header = clipped_header(opt, unclipped)
    warn_of_values(opt, volume, unclipped)
    fit = make_fit(opt, volume, header, device)
    options = settled(opt, fit.recipe, fit.config)
    checkpoint = Checkpoint(opt.checkpoint, {name: options[name] for name in MUST_MATCH})
    if opt.resume:
        checkpoint.load(fit)
    elif checkpoint.is_earlier:
        note(f"{opt.checkpoint}: will be replaced: --resume continues its run instead")
    judge = Judge(volume, header, lambda: NeuralField(header, fit.bricks(), device, opt.num_workers))

    def write(paths: tuple[str, str], figures: dict[str, float]) -> None:
        bricks = fit.bricks()
        settings = configuration(options, header, unclipped.value_range, fit.config, figures, bricks, fit.seconds)
        write_network(paths, bricks, settings)

    history = []
    with kept_if_interrupted(fit, interrupted[0], lambda: write(interrupted, {"psnr": math.nan})):
        if isinstance(fit, BrickedFit):
            history = run_bricks(fit, checkpoint)
        elif not header.value_range.is_constant:  # a constant volume needs no fit: its range describes it
            target = target_of(opt.target_psnr, lambda: judge.metrics(header.value_range).psnr)
            history = run_fit(fit, checkpoint, target)
        quality = judge.quality(unclipped.value_range)
        if not processes.is_first():
            return

    write((opt.network, opt.config), quality.figures(bool(opt.clip)))
    try:
        if opt.vol_debug:
            write_volume(files["gt"], volume)
            write_volume(files["vol"], dataclasses.replace(volume, array=judge.decoded().lazy()))
        if opt.plot:
            plot_training(opt.plot, history, (fit.seconds, quality.metrics.psnr), fit.n_passes)
    except UserError as error:
        raise UserError(f"{error}: the network is in {opt.network}") from None
    warn_of_quality(opt, volume, header, quality.clipped.psnr, psnr_of(fit.variance))
    console.warn_of_changes("train.py", states)
    if not checkpoint.is_there:
        files.pop("checkpoint", None)
    figures = results(opt, volume, header, fit, quality) | files
    n_source = header.n_voxels * header.n_components * header.dtype.itemsize
    size = f"{figures['parameters']} parameters"
    console.report(summary(opt.volume, n_source, [*files.values()], None, figures, size), figures)
    given = unless_default(net=opt.network, config=opt.config)
    console.next_command("net_compress.py", *given, *volume_arguments(opt))


if __name__ == "__main__":
    console.run(main)
