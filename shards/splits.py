"""The folds in the form of nnU-Net's ``splits_final.json``: one entry a fold, with the keys to train and validate on.

Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation".
"""

from __future__ import annotations

import json
from typing import TypedDict

from hsadml_dist.data.index import ShardIndex

SPLITS_NAME = "splits.json"


class NnUNetSplit(TypedDict):
    """One fold's entry: the keys of samples to train on, and of those held out."""

    train: list[str]
    val: list[str]


def splits(index: ShardIndex) -> list[NnUNetSplit]:
    """Return one entry a fold, ascending, keys in order of the alphabet."""
    keys = {fold: sorted(index.samples[at].key for at in index.in_folds([fold])) for fold in index.fold_numbers}
    return [
        NnUNetSplit(train=sorted(key for other, held in keys.items() if other != fold for key in held), val=keys[fold])
        for fold in keys
    ]


def splits_text(index: ShardIndex) -> str:
    """Return the text of ``splits.json``."""
    return json.dumps(splits(index), indent=1) + "\n"
