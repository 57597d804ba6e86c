"""Fit a network to a volume: writes its weights (thenet.pth) and its configuration (thenet.json)."""

from __future__ import annotations

import contextlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Sequence

import cli  # first: answers Ctrl-C while the others load

# isort: split
import numpy as np
import torch

import fitting
from siren import OMEGA_0, FieldNet, SirenConfig, count_parameters, neurons_for_budget, weights_crc32
from utils import Field, ValueRange, compare, components_last, reconstruct, value_range
from volume_io import Volume, VolumeError, read_volume, write_volume

FORMAT_VERSION = 1


def build_parser() -> cli.ArgumentParser:
    """The command line of this script."""
    parser = cli.ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--volume", required=True, help="volume to fit, .npy or .vti; axis 0 is x")
    group.add_argument("--network", default="thenet.pth", help="file to write the weights to")
    group.add_argument("--config", default="thenet.json", help="file to write the configuration to")
    group.add_argument(
        "--enable-vol-debug",
        dest="vol_debug",
        action="store_true",
        default=False,
        help="write the volume and the network's version of it, gt.vti and vol.vti, beside the network",
    )
    group.add_argument("--disable-vol-debug", dest="vol_debug", action="store_false", help="do not (default)")

    group = parser.add_argument_group("network")
    group.add_argument(
        "--compression_ratio", type=cli.number(0, exclusive=True), default=50.0, help="voxels / network parameters"
    )
    group.add_argument("--n_layers", type=cli.whole(1, 255), default=8, help="sine layers")
    group.add_argument(
        "--w0", type=cli.number(0, exclusive=True), default=fitting.FIRST_OMEGA, help="frequency of the first layer"
    )
    group.add_argument(
        "--is-residual", dest="is_residual", action="store_true", default=True, help="residual blocks (default)"
    )
    group.add_argument("--not-residual", dest="is_residual", action="store_false", help="plain sine layers")
    group.add_argument("--d_in", type=cli.whole(1, 3), default=3, help="number of grid axes of the volume")
    group.add_argument(
        "--d_out", type=cli.whole(1, 255), default=1, help="values per voxel: length of the last axis when above 1"
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument("--n_passes", type=cli.number(0, exclusive=True), default=20.0, help="passes over the volume")
    group.add_argument("--batchSize", type=cli.whole(1), default=1024, help="batches of samples a step")
    group.add_argument(
        "--oversample", type=cli.whole(1), default=2, help="samples in each of them, batchSize x oversample"
    )
    group.add_argument(
        "--optimizer",
        choices=("muon", "adam"),
        default="muon",
        help="muon for the hidden matrices and adam for the rest, or adam for all",
    )
    group.add_argument("--lr", type=cli.number(0, exclusive=True), default=7e-4, help="learning rate at the start")
    group.add_argument(
        "--schedule",
        choices=("cosine", "step"),
        help="how the learning rate falls (default: cosine, to 0; step when --pass_decay or --lr_decay is given)",
    )
    group.add_argument(
        "--pass_decay",
        type=cli.number(0, exclusive=True),
        help="passes between the steps of --schedule step (default: 20)",
    )
    group.add_argument(
        "--lr_decay", type=cli.number(0, exclusive=True), help="factor of each step of --schedule step (default: 0.2)"
    )
    group.add_argument(
        "--grad_lambda",
        type=cli.number(0),
        default=0.0,
        help="weight of the error of the gradient, in normalised coordinates; 0 leaves the term out",
    )
    group.add_argument(
        "--seed", type=cli.whole(0, 2**63 - 1), default=0, help="of the initialisation and the order of samples"
    )
    parser.add_device_arguments()
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    """The options, with the schedule settled."""
    opt = build_parser().parse_args(argv)
    step_flags = opt.pass_decay is not None or opt.lr_decay is not None
    if step_flags and opt.schedule == "cosine":
        raise cli.UserError("--pass_decay and --lr_decay belong to --schedule step, not to cosine")
    opt.schedule = opt.schedule or ("step" if step_flags else "cosine")
    if opt.schedule == "step":
        opt.pass_decay = 20.0 if opt.pass_decay is None else opt.pass_decay
        opt.lr_decay = 0.2 if opt.lr_decay is None else opt.lr_decay
    return opt


def recipe_of(opt: Namespace) -> fitting.Recipe:
    """The recipe that the options ask for."""
    step = {"pass_decay": opt.pass_decay, "lr_decay": opt.lr_decay} if opt.schedule == "step" else {}
    return fitting.Recipe(
        n_passes=opt.n_passes,
        batch=opt.batchSize * opt.oversample,
        lr=opt.lr,
        optimizer=opt.optimizer,
        schedule=opt.schedule,
        grad_lambda=opt.grad_lambda,
        **step,
    )


def configuration(
    opt: Namespace, volume: Volume, values: ValueRange, config: SirenConfig, state: dict, psnr: float, seconds: float
) -> dict:
    """What thenet.json holds: the original's keys first, then what the later stages need."""
    return {
        "grad_lambda": opt.grad_lambda,
        "n_layers": config.n_layers,
        "layers": [config.n_neurons] * config.n_layers,
        "w0": opt.w0,
        "compression_ratio": opt.compression_ratio,
        "batchSize": opt.batchSize,
        "oversample": opt.oversample,
        "lr": opt.lr,
        "n_passes": opt.n_passes,
        "pass_decay": opt.pass_decay,
        "lr_decay": opt.lr_decay,
        "is_residual": config.is_residual,
        "is_cuda": False,  # the original would demand a GPU to read them; weights are written from the CPU
        "time": seconds,
        "format_version": FORMAT_VERSION,
        "d_in": config.d_in,
        "d_out": config.d_out,
        "omega_0": config.omega_0,
        "shape": list(volume.array.shape[: config.d_in]),
        "dtype": values.dtype.name,
        "value_range": [[low.item(), high.item()] for low, high in zip(values.low, values.high, strict=True)],
        "spacing": list(volume.spacing),
        "origin": list(volume.origin),
        "name": volume.name,
        "seed": opt.seed,
        "n_parameters": count_parameters(config),
        "psnr": psnr if np.isfinite(psnr) else None,
        "seconds": seconds,
        "torch_version": torch.__version__,
        "weights_crc32": weights_crc32(state),
        "options": vars(opt),
    }


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = cli.resolve_device(opt.cuda, opt.gid, opt.num_workers)
    folder = os.path.dirname(opt.network)
    debug = [os.path.join(folder, name) for name in ("gt.vti", "vol.vti")] if opt.vol_debug else []
    cli.check_outputs([opt.network, opt.config, *debug], inputs=[opt.volume])
    volume = read_volume(opt.volume, opt.d_in, opt.d_out)

    original = components_last(volume.array, opt.d_in)
    values = value_range(original)
    n_voxels = original.size // opt.d_out
    width = neurons_for_budget(
        original.size // opt.compression_ratio,
        n_layers=opt.n_layers, d_in=opt.d_in, d_out=opt.d_out, is_residual=opt.is_residual,
    )  # fmt: skip
    config = SirenConfig(width, opt.n_layers, opt.d_in, opt.d_out, OMEGA_0, opt.is_residual)

    started = time.monotonic()
    net = FieldNet(config, torch.Generator().manual_seed(opt.seed), first_omega=opt.w0).to(device)
    field = Field(values.normalise(original), device)
    recipe = recipe_of(opt)
    if values.extent.any():
        generator = torch.Generator(device).manual_seed(opt.seed)
        with cli.Progress(round(opt.n_passes * n_voxels), "voxel", "training") as progress:
            fitting.fit(
                net, field, recipe, generator,
                lambda n, psnr: progress.update(n, **({} if psnr is None else {"PSNR": f"{psnr:.1f} dB"})),
            )  # fmt: skip
    decoded = reconstruct(net, field.shape, values, device)
    metrics = compare(original, decoded)
    seconds = time.monotonic() - started

    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    settings = configuration(opt, volume, values, config, state, metrics.psnr, seconds)
    with contextlib.ExitStack() as stack:
        torch.save(state, stack.enter_context(cli.atomic_write(opt.network)))
        with open(stack.enter_context(cli.atomic_write(opt.config)), "w") as file:
            json.dump(settings, file, indent=1)
        for path, array in zip(debug, (original, decoded), strict=False):
            part = Volume(array.reshape(volume.array.shape), volume.spacing, volume.origin, volume.name)
            write_volume(stack.enter_context(cli.atomic_write(path)), part, ".vti")

    cli.report(
        psnr=f"{metrics.psnr:.3f}",
        parameters=count_parameters(config),
        compression_ratio=f"{original.size / count_parameters(config):.2f}",
        seconds=f"{seconds:.1f}",
        network=opt.network,
        config=opt.config,
    )
    print(f"next: python net_compress.py --net {opt.network} --config {opt.config} --compressed compressed_out")


if __name__ == "__main__":
    cli.run(main, VolumeError)
