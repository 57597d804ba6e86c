"""What the options of train.py ask for: the network or the bricks, the recipe; and what the user should know of it."""

from __future__ import annotations

import dataclasses
import math

from cli.arguments import Options
from field.binary import BlobError
from field.bricks import check_counts, held_shape
from field.layers import SirenConfig
from field.network_chunk import check_network
from training.brick_networks import BrickNetworks
from training.brick_trainer import BrickRecipe
from training.cutting import count_held, counts_for, counts_of_bricks, passes_for, passes_over
from training.mirrors import find_mirrors
from training.recipe import BATCH, Recipe, default_recipe
from training.shapes import networks_for_budget
from utils import UserError, Volume, VolumeHeader


def settled(opt: Options, recipe: Recipe, config: SirenConfig) -> dict[str, object]:
    """All options by the names of their flags. Those that were left open have the values that were chosen for them."""
    size = opt.batchSize or min(recipe.batch, BATCH // 2)
    chosen = {"n_passes": recipe.n_passes, "batchSize": size, "oversample": recipe.batch // size, "lr": recipe.lr}
    if recipe.schedule == "step":
        chosen |= {"pass_decay": recipe.pass_decay, "lr_decay": recipe.lr_decay}
    return vars(opt) | chosen | {"d_in": config.d_in, "d_out": config.d_out}


def network_fields(opt: Options, header: VolumeHeader) -> dict[str, object]:
    """The fields of SirenConfig that the options and the volume settle, whatever the size of the network."""
    return {"d_in": len(header.shape), "d_out": header.n_components, "is_residual": opt.is_residual}


def networks_for(opt: Options, header: VolumeHeader) -> list[SirenConfig]:
    """The networks that compete to be the one that the options ask for. Raises UserError if a blob cannot hold one."""
    fields = network_fields(opt, header)
    configs = networks_for_budget(header.n_voxels // opt.compression_ratio, opt.n_layers, **fields)
    try:
        for config in configs:
            check_network(config)
    except BlobError as error:
        what = f"the network of --compression_ratio {opt.compression_ratio:g}: {error}"
        raise UserError(f"{what}: a higher ratio gives a smaller one") from None
    return configs


def bricks_for(opt: Options, volume: Volume, header: VolumeHeader) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The number of bricks along each axis that the options ask for, and the mirrors between which they lie.

    Mirrors: see field.bricks.Cut. A volume that is not cut needs none. Raises UserError for impossible bricks.
    """
    is_auto, shape, n_parameters = opt.bricks == "auto", header.shape, header.n_voxels / opt.compression_ratio
    if opt.bricks == "none" or header.value_range.is_constant:
        return (1,) * len(shape), ()
    counts = counts_for(shape, n_parameters, opt.n_passes, opt.cuda) if is_auto else _given_counts(opt, shape)
    mirrors = find_mirrors(volume, header) if math.prod(counts) > 1 else ()
    if mirrors:
        held = held_shape(shape, mirrors)
        most = (max(n - 1, 1) for n in held)
        counts = counts_of_bricks(held, n_parameters) if is_auto else tuple(map(min, counts, most))
    try:
        check_counts(counts, shape, mirrors)
    except BlobError as error:
        way_out = "a larger --compression_ratio gives fewer" if is_auto else "expected fewer --bricks"
        raise UserError(f"{opt.volume}: {error}: {way_out}") from None
    return counts, mirrors


def _given_counts(opt: Options, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The bricks along each axis that --bricks asks for. Raises UserError for impossible ones."""
    n_space = min(len(shape), 3)
    counts = (1,) * (len(shape) - n_space) + opt.bricks
    if len(counts) != len(shape) or any(count > max(n - 1, 1) for count, n in zip(counts, shape, strict=True)):
        most = ",".join(str(max(n - 1, 1)) for n in shape[-n_space:])
        expected = f"{n_space} numbers of bricks along the axes of space, {most} at most"
        raise UserError(f"--bricks {','.join(map(str, opt.bricks))}: {opt.volume}: expected {expected}")
    return counts


def brick_recipes(opt: Options, header: VolumeHeader, counts: tuple[int, ...], mirrors: tuple[int, ...]) -> BrickRecipe:
    """What gives the recipe of a brick. counts, mirrors: of `bricks_for`."""
    is_open = opt.n_passes is None and opt.max_seconds is None
    n_held, n_parameters = count_held(header, mirrors), header.n_voxels / opt.compression_ratio
    default = passes_for(n_held, n_parameters, math.prod(counts), opt.cuda, header.n_present / n_held)

    def recipe(n_present: int, n_voxels: int, config: SirenConfig) -> Recipe:
        passes = default if is_open else opt.n_passes
        if is_open and not opt.cuda:  # on a GPU, the bricks of a stack take equally many steps as it is
            passes = passes_over(passes, n_present, n_voxels)
        return asked_recipe(Options(**vars(opt) | {"n_passes": passes}), n_present, config)

    return recipe


def brick_messages(ratio: float, header: VolumeHeader, networks: BrickNetworks) -> list[str]:
    """As `size_messages`, of the networks of bricks."""
    least, found = min(networks.least.values()), []
    if least > header.n_voxels / ratio:
        smallest = f"the smallest networks of {len(networks.survey.low)} bricks have"
        or_layers = ", or fewer --n_layers," if networks.fields.get("n_layers", 1) > 1 else ""
        way_out = f": fewer --bricks{or_layers} give a higher one"
        found.append(_out_of_reach(ratio, header, smallest, least, way_out))
    elif networks.n_networks and networks.budget < header.n_voxels / ratio:
        largest, way_out = "bricks of this volume have at most about", ": --bricks none gives a lower one"
        found.append(_out_of_reach(ratio, header, largest, int(networks.budget), way_out))
    return found + _larger_than_data(header, least, "the networks have")


def size_messages(ratio: float, header: VolumeHeader, config: SirenConfig) -> list[str]:
    """What the user should know of the network's size: that it misses the ratio, that it is larger than the data.

    ratio: the wanted number of voxels for each parameter.
    """
    n_voxels, n_parameters, found = header.n_voxels, config.n_parameters, []
    if n_parameters > max(n_voxels / ratio, 1):
        sizes = {n: dataclasses.replace(config, n_layers=n).n_parameters for n in range(1, config.n_layers)}
        fitting = max((n for n, size in sizes.items() if size <= n_voxels / ratio), default=1)
        way_out = f": --n_layers {fitting} gives {_ratio(n_voxels / sizes[fitting])}" if sizes else ""
        smallest = f"the smallest network of {config.n_layers} layer{'s' * (config.n_layers > 1)} has"
        found.append(_out_of_reach(ratio, header, smallest, n_parameters, way_out))
    return found + _larger_than_data(header, n_parameters, "the network has")


def _out_of_reach(ratio: float, header: VolumeHeader, network_has: str, n_parameters: int, way_out: str) -> str:
    reached = f"{network_has} {n_parameters} parameters, a ratio of {_ratio(header.n_voxels / n_parameters)}"
    return f"--compression_ratio {ratio:g} is out of reach: {reached}{way_out}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _larger_than_data(header: VolumeHeader, n_parameters: int, network_has: str) -> list[str]:
    n_values = header.n_voxels * header.n_components
    what = f"{network_has} more parameters than the volume has values, {n_values}"
    return [what] if n_parameters > n_values else []


def asked_recipe(opt: Options, n_voxels: int, config: SirenConfig) -> Recipe:
    """The recipe that the options ask for; the volume and the network determine the settings left open."""
    default = default_recipe(n_voxels, config, opt.optimizer, opt.n_passes, opt.max_seconds, opt.cuda)
    batch = default.batch
    if opt.batchSize or opt.oversample:
        batch = (opt.batchSize or BATCH // 2) * (opt.oversample or max(2 * default.batch // BATCH, 1))
    given = {"lr": opt.lr, "pass_decay": opt.pass_decay, "lr_decay": opt.lr_decay}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(default, batch=batch, schedule=opt.schedule, grad_lambda=opt.grad_lambda, **given)
