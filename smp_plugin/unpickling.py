"""What ``torch.save`` wrote, read so that a stranger's file can neither run code nor take far more memory than its size."""

from __future__ import annotations

import mmap
import zipfile
from pathlib import Path
from typing import Any

import torch


def load_plain(path: Path) -> Any:
    """Tensors and plain values, on the CPU.

    Raises:
        ValueError: the file is damaged, asks for code to be run, or could take more memory than its size.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # torch takes it for a plain value, but makes one of any length from the few digits of that.
            if content.find(b"bytearray") >= 0:
                raise ValueError("it holds a bytearray")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch reads compressed files and never writes any
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises is not documented
        raise ValueError(f"{path} is no file of plain values and tensors, or is damaged ({error})") from error
