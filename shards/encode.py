"""One sample from its source to the bytes of its members; runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.data.sample import IMAGE, MASK, META, SampleMeta
from hsadml_dist.shards.record import DamagedSampleError, ImageSource, SourceRecord


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """One sample to encode: where it comes from and all that is already decided about it.

    Attributes:
        source: Whose record it is.
        record: The record.
        meta: What its json will say; ``shape`` is the stored one, ``spacing_mm`` still the source's.
    """

    source: ImageSource
    record: SourceRecord
    meta: SampleMeta


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample's members as they go into the tar, and its final json as a value."""

    meta: SampleMeta
    members: dict[str, bytes]


def encode_sample(entry: EncodeTask) -> EncodedSample | SkippedSample:
    """Read, scale and compress one sample; a damaged one becomes a :class:`SkippedSample`."""
    from hsadml_dist.shards.pixels import encode_png, scaled_spacing, to_mask, to_uint16

    size = entry.meta.shape[0]
    try:
        pixels = entry.source.read(entry.record)
        image = to_uint16(pixels.image, size)
    except DamagedSampleError as error:
        return error.skip
    except ValueError as error:
        return SkippedSample(where=entry.record.where, reason=str(error))
    spacing = scaled_spacing(entry.meta.spacing_mm, pixels.image.shape, size)
    meta = replace(entry.meta, spacing_mm=spacing)
    members = {IMAGE: encode_png(image), META: meta.to_json().encode()}
    if pixels.mask is not None:
        members[MASK] = encode_png(to_mask(pixels.mask, size))
    return EncodedSample(meta=meta, members=members)
