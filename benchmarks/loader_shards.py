"""Build the shards that the loader benchmark reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.pseudonyms import load_or_create_key
from hsadml_dist.shards.source import ImageSource, SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource

NOISE_SIDE = 181
"""Pixels a side of an image of noise whose PNG has 64 KiB: 16-bit noise does not compress."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise images, one per patient."""

    name: ClassVar[str] = "noise"

    count: int

    def list_records(self) -> SourceListing:
        """List the images."""
        names = [(number, ("a", "b")[number % 2]) for number in range(self.count)]
        records = [
            SourceRecord(record_id=f"{number}", where=f"image {number}", class_name=name, person=f"{number}")
            for number, name in names
        ]
        return SourceListing(records=tuple(records))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Draw one image."""
        generator = np.random.default_rng(int(record.record_id))
        return SourcePixels(image=generator.integers(0, 2**16, (NOISE_SIDE, NOISE_SIDE), dtype=np.uint16))

    def fingerprint(self) -> str:
        """Return everything that the images depend on."""
        return f"noise {self.count}"


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices of generated patients without masks, which no implementation would use."""

    name: ClassVar[str] = "slices"

    source: PhantomSource

    def list_records(self) -> SourceListing:
        """List the images."""
        return self.source.list_records()

    def read(self, record: SourceRecord) -> SourcePixels:
        """Draw one image."""
        return replace(self.source.read(record), mask=None)

    def fingerprint(self) -> str:
        """Return everything that the images depend on."""
        return f"slices {self.source.fingerprint()}"


def build_noise(folder: Path, count: int) -> Path:
    """Build shards of ``count`` samples of 64 KiB; return their folder."""
    return _built(Noise(count=count), folder, NOISE_SIDE)


def build_slices(folder: Path, patients: int, size: int) -> Path:
    """Build shards of generated slices at ``size`` pixels; return their folder."""
    return _built(Slices(source=PhantomSource(patients=patients, seed=0, size=size)), folder, size)


def _built(source: ImageSource, folder: Path, size: int) -> Path:
    options = BuildOptions(folds=3, samples_per_shard=64, size=size)
    build_shards(
        source, folder / source.name, options, load_or_create_key(folder / "id.key"), 1, lambda done, total: None
    )
    return folder / source.name
