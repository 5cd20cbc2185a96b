"""``hsadml models``: list the backbones and the memory that training them takes."""

from __future__ import annotations

import dataclasses
import importlib
import textwrap
from collections.abc import Sequence

from hsadml_dist.errors import ConfigError, Fault, UsageError
from hsadml_dist.launch.cli.terminal import AsJson, align_columns, echo, echo_json, terminal_width
from hsadml_dist.models.registry import (
    BACKBONE_FACTS,
    REFERENCE_SIZE,
    TIMM_PREFIX,
    BackboneFacts,
    model_problems,
    rank_memory_by_engine,
    size_rule,
)

MIB, GIB, MILLION = 2**20, 2**30, 1e6
PIPED_WIDTH = 120
TITLES = ("backbone", "weights", "features", "ddp", "zero-1", "zero-2", "zero-3", "image")
WIDE_TITLES = ("norm", "pixels per side")
TEXT_COLUMNS = (0, len(TITLES), len(TITLES) + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneRow:
    """The memory of a backbone for an image size and a number of ranks.

    Attributes:
        image_size: Pixels per side.
        activations: Bytes per image on a rank; None if the backbone does not take such images.
    """

    name: str
    facts: BackboneFacts
    image_size: int
    ranks: int
    activations: float | None

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints."""
        facts = {key: value for key, value in dataclasses.asdict(self.facts).items() if key != "activations"}
        memory = rank_memory_by_engine(self.facts.weights, self.ranks)
        return {
            "name": self.name,
            **facts,
            "image_size": self.image_size,
            "ranks": self.ranks,
            "activation_bytes": None if self.activations is None else round(self.activations),
            "rank_bytes": {engine: round(one.total) for engine, one in memory.items()},
        }


def models(
    name: str | None = None,
    /,
    *,
    image_size: int = REFERENCE_SIZE,
    ranks: int = 8,
    batch: int = 1,
    as_json: AsJson = False,
) -> None:
    """List the backbones for model.name, or show what training one of them takes.

    Args:
        name: A backbone, or timm/NAME if timm is installed.
        image_size: Pixels per side.
        ranks: Number of ranks among which ZeRO partitions the training state.
        batch: Images per rank and forward pass.
        as_json: Print JSON instead of a table.
    """
    for option, value in (("--image-size", image_size), ("--ranks", ranks), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    if name is not None:
        row = _single_row(name, image_size, ranks)
        if as_json:
            echo_json(row.as_json() | {"batch": batch})
        else:
            echo(*_describe(row, batch))
        return
    rows = [_row(known, facts, image_size, ranks) for known, facts in BACKBONE_FACTS.items()]
    if as_json:
        echo_json([row.as_json() for row in rows])
        return
    width = terminal_width() or PIPED_WIDTH
    echo(*_table(rows, width))
    legend = (
        f"ddp, zero-1 to zero-3: GiB on each of {ranks} ranks for weights, gradients and AdamW's moments in fp32, "
        f"without the buffers of the libraries. image: further MiB per image of {image_size} x {image_size} pixels and "
        f"forward pass: {_activations_source(image_size)}. Any model of the timm library: model.name={TIMM_PREFIX}NAME."
    )
    echo("", *textwrap.wrap(legend, width), error=True)


def _row(name: str, facts: BackboneFacts, image_size: int, ranks: int) -> BackboneRow:
    fits = not any(model_problems(name, image_size))
    activations = facts.activations_at(image_size) if fits else None
    return BackboneRow(name=name, facts=facts, image_size=image_size, ranks=ranks, activations=activations)


def _single_row(name: str, image_size: int, ranks: int) -> BackboneRow:
    faults = [Fault(where="command line", key=key, problem=text) for key, text in model_problems(name, image_size)]
    if faults:
        raise ConfigError(faults)
    if not name.startswith(TIMM_PREFIX):
        return _row(name, BACKBONE_FACTS[name], image_size, ranks)
    # By name, because this module must not import torch on a login node.
    facts = importlib.import_module("hsadml_dist.models.activations").measure_backbone(name, image_size)
    return BackboneRow(name=name, facts=facts, image_size=image_size, ranks=ranks, activations=facts.activations)


def _table(rows: Sequence[BackboneRow], width: int) -> list[str]:
    """Return the table with all columns, or without the last two if it is wider than ``width``."""
    cells = [TITLES + WIDE_TITLES, *map(_cells, rows)]
    lines = align_columns(cells, left=TEXT_COLUMNS)
    if max(map(len, lines)) > width:
        lines = align_columns([row[: len(TITLES)] for row in cells], left=TEXT_COLUMNS)
    return lines


def _cells(row: BackboneRow) -> tuple[str, ...]:
    memory = rank_memory_by_engine(row.facts.weights, row.ranks).values()
    image = "-" if row.activations is None else f"{row.activations / MIB:,.0f}"
    numbers = (_millions(row.facts.weights), str(row.facts.features), *(f"{m.total / GIB:.2f}" for m in memory), image)
    return (row.name, *numbers, row.facts.norm, size_rule(row.facts))


def _millions(weights: int) -> str:
    return f"{weights / MILLION:.2f}M" if weights < MILLION else f"{weights / MILLION:.1f}M"


def _activations_source(image_size: int) -> str:
    source = "what autograd saves for the backward pass"
    return source if image_size == REFERENCE_SIZE else f"{source} at {REFERENCE_SIZE} pixels, scaled by area"


def _describe(row: BackboneRow, batch: int) -> list[str]:
    facts, images = row.facts, batch * (row.activations or 0.0)
    volumes = f"; for volumes {_millions(facts.weights_3d)}" if facts.weights_3d else ""
    is_timm = row.name.startswith(TIMM_PREFIX)
    lines = [
        f"{row.name}, {facts.source}",
        f"  weights   {_millions(facts.weights)}{volumes}",
        f"  features  {facts.features}",
        f"  norm      {facts.norm}",
        f"  images    {'checked at this size only' if is_timm else size_rule(facts) + ' pixels per side'}",
        "",
        f"GiB on each of {row.ranks} ranks, fp32, AdamW; {batch} image{'s' * (batch > 1)} of {row.image_size} x "
        f"{row.image_size} pixels per forward pass",
        f"{'':8}{'weights':>9}{'gradients':>11}{'moments':>9}{'images':>8}{'total':>10}",
    ]
    for engine, memory in rank_memory_by_engine(facts.weights, row.ranks).items():
        parts = (memory.weights, memory.gradients, memory.moments, images, memory.total + images)
        numbers = (f"{part / GIB:>{width}.2f}" for part, width in zip(parts, (9, 11, 9, 8, 10), strict=True))
        lines.append(f"{engine:<8}" + "".join(numbers))
    source = "measured on this model" if is_timm else _activations_source(row.image_size)
    return [*lines, "", f"images: {source}. Buffers of the libraries and of layers come on top."]
