"""Make test_vol.npy: a knotted vortex tube in water, by direct numerical simulation.

A vortex tube tied into a trefoil knot (made in water by Kleckner and Irvine, "Creation and dynamics of
knotted vortices", Nature Physics 9, 253, 2013) starts in a weak irregular flow in a periodic box. The tube
moves, stretches and flattens, and its strands wrap round each other. The file holds the vorticity magnitude
|curl u| at the end, in 1/s: float32, volume[x, y, z].

The velocity u obeys the incompressible Navier-Stokes equations, in rotational form

    du/dt = u x w - grad(p + |u|^2 / 2) + nu lap u,    w = curl u,    div u = 0,

A Fourier pseudo-spectral method solves them (Canuto, Hussaini, Quarteroni, Zang, "Spectral Methods", 2007,
chapter 3). Derivatives are products with wave vectors k. The product u x w is formed on the grid. Without the
upper third of the wavenumbers, it has no aliases (Orszag, J. Atmos. Sci. 28, 1074, 1971). A projection replaces
the gradient term. RK4 advances exp(nu k^2 t) u in time, which makes the viscous term exact.
"""

import argparse
import time
from pathlib import Path

import numpy as np

SHAPE = 80, 64, 56  # voxels along x, y, z
SPACING = 1.25e-3  # m, the same along each axis: a box of 100 x 80 x 70 mm
VISCOSITY = 1.0e-6  # m^2/s, of water at 20 C
CIRCULATION = 5.5e-4  # m^2/s, round the tube; Reynolds number CIRCULATION / VISCOSITY = 550
CORE = 3.2e-3  # m, standard deviation of the tube's Gaussian profile of vorticity
KNOT_RADII = 21e-3, 9e-3  # m, large and small radius of the torus on which the knot lies
KNOT_CENTRE = 40e-3, 38e-3, 41e-3  # m, position relative to voxel (0, 0, 0)
KNOT_TILT = 0.35, 0.75  # rad, angles that turn the knot's axis away from x: about z, then about y
BACKGROUND = 2.0e-3  # m/s, r.m.s. speed of the irregular flow
STEPS, DURATION = 200, 2.4  # number of time steps; simulated time in s
SEED = 1


class Spectral:
    """Operators on a periodic grid, for vector fields given by their Fourier coefficients (3, kx, ky, kz)."""

    def __init__(self, shape, spacing):
        self.shape, self.spacing = shape, spacing
        frequencies = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
        self.k_axes = [2 * np.pi / spacing * f for f in frequencies]  # rad/m
        self.k = np.stack(np.meshgrid(*self.k_axes, indexing="ij"))
        self.k2 = (self.k**2).sum(0)
        self.k2_or_1 = np.where(self.k2 > 0, self.k2, 1.0)
        self.k_max = 2 / 3 * np.pi / spacing
        self.is_kept = (np.abs(self.k) < self.k_max).all(0)
        self.weight = np.where(self.k[2] > 0, 2.0, 1.0) / np.prod(shape) ** 2  # rfftn stores only half the waves

    def to_grid(self, f):
        return np.fft.irfftn(f, s=self.shape, axes=(1, 2, 3))

    def to_waves(self, field):
        return np.fft.rfftn(field, axes=(1, 2, 3)) * self.is_kept

    def curl(self, f):
        return 1j * np.cross(self.k, f, axis=0)

    def project(self, f):
        """The divergence-free part of f: f - k (k . f) / k^2."""
        return f - self.k * ((self.k * f).sum(0) / self.k2_or_1)

    def mean_square(self, f):
        """Mean of |f|^2 over the box (Parseval)."""
        return (self.weight * np.abs(f) ** 2).sum()


def trefoil(n):
    """The points X (3, n) of the (2, 3) torus knot in metres, and the steps dX (3, n) along the knot."""
    t = 2 * np.pi / n * np.arange(n)
    large, small = KNOT_RADII
    radius, d_radius = large + small * np.cos(3 * t), -3 * small * np.sin(3 * t)
    cos, sin = np.cos(2 * t), np.sin(2 * t)
    points = np.stack([-small * np.sin(3 * t), radius * cos, radius * sin])
    d_points = np.stack(
        [-3 * small * np.cos(3 * t), d_radius * cos - 2 * radius * sin, d_radius * sin + 2 * radius * cos]
    )
    (ca, cb), (sa, sb) = np.cos(KNOT_TILT), np.sin(KNOT_TILT)
    tilt = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]]) @ np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    return tilt @ points + np.array(KNOT_CENTRE)[:, None], tilt @ d_points * (2 * np.pi / n)


def knot_velocity(sp):
    """The flow of a vortex tube round the closed curve X.

    The vorticity w is CIRCULATION * integral of G(x - X) dX, where G is a normalised Gaussian. Its coefficients are
    CIRCULATION exp(-k^2 CORE^2 / 2) integral of exp(-i k . X) dX. The velocity is curl w / k^2 (Biot-Savart).
    """
    points, steps = trefoil(512)
    wave_x, wave_y, wave_z = (np.exp(-1j * np.outer(k, x)) for k, x in zip(sp.k_axes, points, strict=True))
    wave_xy = wave_x[:, None] * wave_y[None]
    integral = np.stack([(wave_xy * step) @ wave_z.T for step in steps])
    vorticity = CIRCULATION / sp.spacing**3 * np.exp(-sp.k2 * CORE**2 / 2) * integral
    return sp.curl(vorticity) / sp.k2_or_1 * sp.is_kept


def background_velocity(sp):
    """The flow of 24 random shear waves a sin(k . x + phase): a is normal to k; each axis has at most 3 periods."""
    rng = np.random.default_rng(SEED)
    x = np.stack(np.meshgrid(*(2 * np.pi / n * np.arange(n) for n in sp.shape), indexing="ij"))
    flow = np.zeros((3, *sp.shape))
    for _ in range(24):
        waves = rng.integers(-3, 4, 3)
        amplitude, phase = rng.standard_normal(3), rng.uniform(0, 2 * np.pi)
        flow += np.multiply.outer(amplitude, np.sin(np.tensordot(waves, x, 1) + phase))
    flow = sp.project(sp.to_waves(flow))
    flow[:, 0, 0, 0] = 0
    return flow * BACKGROUND / np.sqrt(sp.mean_square(flow))


def simulate(sp, u, n_steps, dt):
    """Advance the velocity u. Returns u and (energy, enstrophy) per unit mass at the start and after each step."""
    decay = np.exp(-VISCOSITY * sp.k2 * dt / 2)  # viscous decay over half a step

    def rate(u):
        return sp.project(sp.to_waves(np.cross(sp.to_grid(u), sp.to_grid(sp.curl(u)), axis=0)))

    def energy_and_enstrophy(u):
        return sp.mean_square(u) / 2, sp.mean_square(sp.curl(u)) / 2

    history = [energy_and_enstrophy(u)]
    for _ in range(n_steps):
        r1 = rate(u)
        r2 = rate(decay * (u + dt / 2 * r1))
        r3 = rate(decay * u + dt / 2 * r2)
        r4 = rate(decay * (decay * u + dt * r3))
        u = decay * (decay * (u + dt / 6 * r1) + dt / 3 * (r2 + r3)) + dt / 6 * r4
        history.append(energy_and_enstrophy(u))
    return u, np.array(history).T


def check(sp, u, energy, enstrophy, dt):
    """Print the figures of the run. Raises AssertionError unless it obeys the equations and is resolved.

    The conditions: div u = 0. Energy falls by dE/dt = -2 nu enstrophy, which is exact for a periodic flow. k_max eta is
    over 1.5, with Kolmogorov's length eta = (nu^3 / dissipation)^(1/4) (Pope, "Turbulent Flows", 2000, section 9.1).
    """
    divergence = np.abs((sp.k * u).sum(0)).max() / np.abs(sp.curl(u)).max()
    lost = -np.diff(energy)
    balance = np.abs(lost / (VISCOSITY * dt * (enstrophy[1:] + enstrophy[:-1])) - 1).max()
    k_max_eta = sp.k_max * (VISCOSITY**2 / (2 * enstrophy.max())) ** 0.25
    shell = np.sqrt(sp.k2) / sp.k_max
    dissipation = sp.weight * np.abs(sp.curl(u)) ** 2
    tail = dissipation[:, shell > 0.9].sum() / dissipation.sum()
    print(
        f"divergence / curl={divergence:.1e} energy_lost={1 - energy[-1] / energy[0]:.1%} "
        f"balance_error={balance:.1e} k_max_eta={k_max_eta:.2f} dissipation_above_0.9_k_max={tail:.1e}"
    )
    assert divergence < 1e-12 and lost.min() > 0 and balance < 0.01 and k_max_eta > 1.5


def main():
    parser = argparse.ArgumentParser(description="Simulate a knotted vortex, save its vorticity.")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(__file__).with_name("test_vol.npy"),
        help="file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=1,
        metavar="N",
        help="grid points per voxel along each axis, to see that 1 suffices (default: 1)",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="time steps (default: %(default)s)")
    args = parser.parse_args()

    start, dt = time.perf_counter(), DURATION / args.steps
    sp = Spectral(tuple(n * args.refine for n in SHAPE), SPACING / args.refine)
    u, (energy, enstrophy) = simulate(sp, knot_velocity(sp) + background_velocity(sp), args.steps, dt)
    check(sp, u, energy, enstrophy, dt)
    vorticity = np.sqrt((sp.to_grid(sp.curl(u)) ** 2).sum(0))
    volume = vorticity[(slice(None, None, args.refine),) * 3].astype(np.float32)
    np.save(args.output, volume)
    print(
        f"wrote={args.output} shape={volume.shape} min={volume.min():.4g} max={volume.max():.4g} 1/s "
        f"seconds={time.perf_counter() - start:.0f}"
    )


if __name__ == "__main__":
    main()
