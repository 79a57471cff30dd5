"""Semi-supervised one-stage multi-animal pose estimation for SLEAP and DeepLabCut projects.

``train``, ``check``, ``predict``, ``evaluate`` and ``compare`` are loaded when first used: importing this package imports neither torch
nor a format library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smp_plugin.checking import check
    from smp_plugin.comparison import compare
    from smp_plugin.evaluation import evaluate
    from smp_plugin.prediction import predict
    from smp_plugin.training import train

__version__ = "0.1.0"
__all__ = ["__version__", "check", "compare", "evaluate", "predict", "train"]

_HOMES = {
    "train": "smp_plugin.training",
    "check": "smp_plugin.checking",
    "predict": "smp_plugin.prediction",
    "evaluate": "smp_plugin.evaluation",
    "compare": "smp_plugin.comparison",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
