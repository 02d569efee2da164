"""Repairs as objects: what to do with the layers that read what a cut removed."""

from __future__ import annotations

from loraprune.surgery.repairs import Bias, NoRepair, Refit, Repair, Stream, StreamAndReaders

__all__ = ["Bias", "NoRepair", "Refit", "Repair", "Stream", "StreamAndReaders"]
