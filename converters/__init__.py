"""Native pose formats <-> one internal format. Needs no torch, and imports a format's library only where that format is read."""

from converters.conversion import convert
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.project import read_project, write_predictions, write_project

__all__ = [
    "FormatError",
    "Instance",
    "LabeledFrame",
    "Labels",
    "PredictedInstance",
    "Skeleton",
    "VideoSource",
    "convert",
    "read_project",
    "write_predictions",
    "write_project",
]
