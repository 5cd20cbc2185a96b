"""Class sampling: a step compares with some of the classes only.

Source: An et al., PartialFC, CVPR 2022. There the ranks draw for themselves and all targets of a batch join. Here a
class is drawn, or not, by a function of seed, step and class id, and a target that was not drawn counts for its own
samples only: what is computed depends neither on the number of ranks nor on how the batch is cut into parts.

Legend of shapes: N samples, R rows that take part.
"""

from __future__ import annotations

import hashlib

import torch

from hsadml_dist.losses.blocks import RowChoice

_MASK_BITS = 63


def choose_rows(rows: range, label_N: torch.Tensor, *, rate: float, seed: int, step: int) -> RowChoice:
    """Return which of the rows, named by class id, take part: those drawn and those that are targets.

    Args:
        rows: Class ids of the local rows.
        label_N: Targets of the compared samples.
        rate: Share of the classes that is drawn, in (0, 1].
        seed: The run's seed.
        step: The run's global step.
    """
    class_C = torch.arange(rows.start, rows.stop, device=label_N.device)
    # Not "below rate * 2^63": at a rate of 1, no number of 64 bits holds that.
    drawn_C = _uniform(class_C, seed, step) <= int(rate * 2**_MASK_BITS) - 1
    taken_C = drawn_C.clone()
    here = (label_N >= rows.start) & (label_N < rows.stop)
    taken_C[label_N[here] - rows.start] = True
    position_R = taken_C.nonzero().squeeze(1)
    return RowChoice(position_R=position_R, drawn_R=drawn_C[position_R])


def _uniform(class_C: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Return whole numbers in [0, 2^63), one for each class id (C,): SplitMix64 (Steele et al., OOPSLA 2014)."""
    key = hashlib.blake2b(f"classes {seed} {step}".encode(), digest_size=8).digest()
    state = class_C * _signed(0x9E3779B97F4A7C15) + int.from_bytes(key, "little", signed=True)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(state ^ _shifted(state, 31), 1)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right, zeros coming in: torch's own shift of a signed number brings in its sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64)
