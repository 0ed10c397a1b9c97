"""The archive's container: header, frames, trailer. FORMAT.md is its normative text."""

from archiver.container.index import IndexedArchive
from archiver.container.layout import (
    FrameCoding,
    Header,
    MachineSection,
    MixerSection,
    PredictorSection,
    SteeringKind,
    SteeringSection,
)
from archiver.container.reader import ArchiveReader, EncodedFrame
from archiver.container.recovery import Damage, DamagedArchive
from archiver.container.trailer import IndexEntry, Trailer
from archiver.container.writer import ArchiveWriter

__all__ = [
    "ArchiveReader",
    "ArchiveWriter",
    "Damage",
    "DamagedArchive",
    "EncodedFrame",
    "FrameCoding",
    "Header",
    "IndexEntry",
    "IndexedArchive",
    "MachineSection",
    "MixerSection",
    "PredictorSection",
    "SteeringKind",
    "SteeringSection",
    "Trailer",
]
