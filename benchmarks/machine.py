"""Where and with what figures were made, for the result files."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from smp_plugin import __version__

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pycocotools", "sleap-nn", "deeplabcut")


def machine() -> dict[str, object]:
    """Processor, operating system, and the versions of what is installed."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    return {"device": device, "platform": platform.platform(), "versions": {"smp-plugin": __version__, **dict(_installed())}}


def _installed() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:  # a peer need not be there
            continue
    return found
