"""Which device computes, why, what it can do, and what it says when its memory is full."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from converters.labels import FormatError
from smp_plugin.progress import Reporter

_UNUSABLE = "NO USE OF THE NVIDIA GPU that is there"


def _nvidia_is_there() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None)


def _try(device: torch.device) -> None:
    """RuntimeError where torch has no kernel for the device, or no gradient of what the network samples, as on MPS before torch 2.13."""
    pixels = torch.zeros(1, 1, 3, 3, device=device)
    F.conv2d(pixels, pixels).add_(1).item()
    if device.type == "mps":
        maps = torch.zeros(1, 1, 2, 2, device=device, requires_grad=True)
        F.grid_sample(maps, torch.zeros(1, 1, 1, 2, device=device), padding_mode="border", align_corners=False).sum().backward()


def say_device(reporter: Reporter, why: str) -> None:
    """What `choose_device` chose; that a GPU lies idle is a warning."""
    (reporter.warn if why.startswith(_UNUSABLE) else reporter.say)(why)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch wanted more memory than there is; each of its devices says so in its own way."""
    # The last three are cuDNN's and cuBLAS's.
    words = (
        "out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "allocation_failed", "unable to find an engine",
    )  # fmt: skip
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, and a sentence why. Raises FormatError where torch can't use it.

    ``auto`` takes the first GPU that works; of several training processes, each has its own.
    """
    if name in ("auto", "cuda") and 0 < (rank := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        torch.cuda.set_device(rank)  # before Lightning does: no process is to hold memory of another's
        name = "cuda"
    if name == "auto":
        if torch.cuda.is_available():
            first, *others = (f"cuda:{index}" for index in range(max(1, torch.cuda.device_count())))
            try:
                _try(torch.device(first))
                return torch.device("cuda"), f"device: {torch.cuda.get_device_name()}"
            except RuntimeError as error:
                if usable := next(filter(_works, others), None):
                    why = f"since {first} can't be used ({str(error).splitlines()[0]})"
                    return torch.device(usable), f"device: {torch.cuda.get_device_name(usable)} ({usable}), {why}"
                taken = out_of_memory(error) or "busy" in str(error)
                remedy = "wait until others have left it" if taken else "install a torch made for it (pytorch.org)"
                return torch.device("cpu"), f"{_UNUSABLE} ({str(error).splitlines()[0]}): device: CPU; {remedy}"
        if _nvidia_is_there():
            built = f"for CUDA {torch.version.cuda}: is the driver older?" if torch.version.cuda else "without CUDA"
            remedy = "update the driver" if torch.version.cuda else "install a torch with CUDA (pytorch.org)"
            return torch.device("cpu"), f"{_UNUSABLE} (this torch, {torch.__version__}, is built {built}): device: CPU; {remedy}"
        if torch.backends.mps.is_available():
            try:
                _try(torch.device("mps"))
                return torch.device("mps"), "device: Apple GPU (MPS)"
            except RuntimeError as error:
                why = f"torch {torch.__version__} can't use the Apple GPU ({str(error).splitlines()[0]}): a newer one may"
                return torch.device("cpu"), f"device: CPU, since {why}"
        return torch.device("cpu"), f"device: CPU, {torch.get_num_threads()} threads (torch sees no GPU)"
    try:
        device = torch.device(name)
        _try(device)
    except (RuntimeError, AssertionError) as error:
        raise FormatError(
            f"--device {name}: torch {torch.__version__} can't use it ({str(error).splitlines()[0]}); try --device auto."
        ) from error
    return device, f"device: {name}, as asked for"


def every_device(name: str) -> list[str]:
    """Names of the devices that predict: for ``auto`` all GPUs that work, of several, else the one that `choose_device` chooses."""
    count = torch.cuda.device_count() if name == "auto" else 0
    usable = [gpu for gpu in (f"cuda:{index}" for index in range(count)) if _works(gpu)] if count > 1 else []
    return usable or [name]


def refuse_processes(device: torch.device, devices: int, machines: int) -> None:
    """FormatError where ``devices`` training processes on each of so many machines can't each have a device like this one."""
    if device.type == "mps" and devices * machines > 1:
        raise FormatError(f"--devices {devices}, --num-nodes {machines}: an Apple GPU trains in one process; take --device cpu for more.")
    if os.name == "nt" and devices * machines > 1:  # where torch has no NCCL, and Lightning can't start the command once more
        raise FormatError(f"--devices {devices}, --num-nodes {machines}: on Windows, training takes one process; leave them out.")
    if devices > 1 and device.index is not None:
        remedy = f"leave one of them out, or take --device {device.type} and name the GPUs in CUDA_VISIBLE_DEVICES"
        raise FormatError(f"--device {device} is one GPU, but --devices {devices} wants one for each process; {remedy}.")
    if device.type == "cuda" and devices > (there := torch.cuda.device_count()):
        raise FormatError(f"--devices {devices}: torch sees {there} GPU{'s' if there > 1 else ''} here; ask for at most as many.")


def _works(gpu: str) -> bool:
    """An old card that drives the screen has no kernels in torch, and one that others fill no memory."""
    try:
        _try(torch.device(gpu))
    except RuntimeError:
        return False
    return True


def has_bf16(device: torch.device) -> bool:
    """Does bfloat16 pay on this device?"""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch tells of the current one, and a machine's GPUs may differ
            return torch.cuda.is_bf16_supported(including_emulation=False)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and bool(probe and probe())


def in_bf16(device: torch.device, precision: str) -> bool:
    """Is a precision, "auto", "bf16" or "fp32", mixed on this device?"""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for ``bf16`` and, where it pays, ``auto``; as Lightning has it, else what is compiled under one is compiled once more
    under the other.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if in_bf16(device, precision) else contextlib.nullcontext()
