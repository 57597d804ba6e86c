"""The results of a script as one line for people, from the figures that a pipe gets as `key=value` lines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from cli.files import size_text

Figures = Mapping[str, object]


def summary(source: str, n_source: int, made: Sequence[str], n_made: int | None, figures: Figures, *more: str) -> str:
    """One line: the source and its bytes, the files that were made with the bytes of all, ratio, more, time.

    On a terminal that is too narrow for it, further lines; parts stay whole.
    """
    first, *others = made
    target = ", ".join([first if n_made is None else f"{first}  {size_text(n_made)}", *others])
    parts = [f"{os.path.basename(os.path.normpath(source))}  {size_text(n_source)} -> {target}", _ratio(figures), *more]
    parts += [*_quality(figures), f"in {figures['seconds']} s"]
    lines, width = [parts[0]], shutil.get_terminal_size().columns
    for part in filter(None, parts[1:]):
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def _ratio(figures: Figures) -> str:
    """Bytes of the volume for one of the file; its own bytes, where these are not 4 for a value."""
    ratio = figures.get("source_ratio", figures.get("file_ratio"))
    return "" if ratio is None else f"{float(ratio):.3g} : 1" if float(ratio) < 100 else f"{float(ratio):.0f} : 1"


def _quality(figures: Figures) -> list[str]:
    """The PSNR, that of parts, and the errors, as far as they are known."""
    psnr = figures.get("psnr", figures.get("psnr_estimate"))
    parts = {key.split("_", 1)[1]: float(value) for key, value in figures.items() if key.startswith("psnr_")}
    times = [value for key, value in parts.items() if key[:1] == "t" and key[1:].isdigit()]
    components = [f"{value:.1f}" for key, value in parts.items() if key.replace("estimate_", "").isdigit()]
    found = [] if psnr is None else [f"{float(psnr):.1f} dB"]
    found += [f"{parts['when_written']:.1f} dB when written"] if "when_written" in parts else []
    found += [f"(times: {min(times):.1f} to {max(times):.1f})"] if times else []
    found += [f"(components: {', '.join(components)})"] if components else []
    found += [f"(clipped: {parts['clipped']:.1f})"] if "clipped" in parts else []
    found += [f"rmse {figures['rmse']}, largest error {figures['max_error']}"] if "rmse" in figures else []
    return found


def table(figures: Figures) -> str:
    """Two columns: keys and values."""
    width = max(map(len, figures))
    return "\n".join(f"{key.replace('_', ' '):{width}}  {value}" for key, value in figures.items())
