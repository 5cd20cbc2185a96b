"""Class sampling: a step compares with some of the classes only.

Source: An et al., PartialFC, CVPR 2022. There the ranks draw for themselves and all targets of a batch join. Here a
class is drawn, or not, by a function of seed, step and class id, and a target that was not drawn counts for its own
samples only: what is computed depends neither on the number of ranks nor on how the batch is cut into parts.

Legend of shapes: N samples, R rows that take part.
"""

from __future__ import annotations

import numpy as np
import torch

from hsadml_dist.hashing import hash_key, splitmix64
from hsadml_dist.losses.blocks import SampledRows


def sample_rows(rows: range, label_N: torch.Tensor, *, rate: float, seed: int, step: int) -> SampledRows:
    """Return which of the rows, named by class id, take part: those drawn and those that are targets.

    Args:
        rows: Class ids of the local rows.
        label_N: Targets of the compared samples.
        rate: Share of the classes that is drawn, in (0, 1].
        seed: The run's seed.
        step: The run's global step.
    """
    hashes = splitmix64(np.arange(rows.start, rows.stop, dtype=np.uint64), hash_key(f"classes {seed} {step}"))
    # Of the upper 63 bits; not "below rate * 2^63": at a rate of 1, no number of 64 signed bits holds that.
    drawn_C = torch.from_numpy((hashes >> np.uint64(1)).astype(np.int64) <= int(rate * 2**63) - 1).to(label_N.device)
    taken_C = drawn_C.clone()
    here = (label_N >= rows.start) & (label_N < rows.stop)
    taken_C[label_N[here] - rows.start] = True
    position_R = taken_C.nonzero().squeeze(1)
    return SampledRows(position_R=position_R, drawn_R=drawn_C[position_R])
