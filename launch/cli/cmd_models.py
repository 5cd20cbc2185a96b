"""``hsadml models``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.errors import ConfigError, Fault, UsageError
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
WIDE_TITLES = ("norm", "pixels a side")
AsJson = Annotated[bool, Parameter(name="--json")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneRow:
    """A backbone under given circumstances.

    Attributes:
        name: As in a recipe.
        facts: What is known of it.
        image_size: Pixels a side.
        ranks: Number of ranks.
        activations: Bytes for each image on a rank; None where such images do not fit.
    """

    name: str
    facts: BackboneFacts
    image_size: int
    ranks: int
    activations: float | None

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        facts = {key: value for key, value in dataclasses.asdict(self.facts).items() if key != "activations"}
        held = rank_memory_by_engine(self.facts.weights, self.ranks)
        return {
            "name": self.name,
            **facts,
            "image_size": self.image_size,
            "ranks": self.ranks,
            "activation_bytes": None if self.activations is None else round(self.activations),
            "rank_bytes": {engine: round(memory.total) for engine, memory in held.items()},
        }


def models(
    name: str | None = None,
    /,
    *,
    image_size: int = REFERENCE_SIZE,
    ranks: int = 8,
    batch: int = 1,
    json_: AsJson = False,
) -> None:
    """List the backbones that model.name takes, or tell of one what training it takes.

    Args:
        name: A backbone; timm/NAME too, where timm is installed.
        image_size: Pixels a side.
        ranks: Among how many ranks ZeRO cuts up what they hold.
        batch: Images that a rank computes at once.
        json_: For programs.
    """
    for option, value in (("--image-size", image_size), ("--ranks", ranks), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    if name is not None:
        row = _one(name, image_size, ranks)
        print(json.dumps(row.as_json() | {"batch": batch}) if json_ else "\n".join(_detail(row, batch)))
        return
    rows = [_row(known, facts, image_size, ranks) for known, facts in BACKBONE_FACTS.items()]
    if json_:
        print(json.dumps([row.as_json() for row in rows]))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
    print("\n".join(_table(rows, width)))
    print("\n" + "\n".join(textwrap.wrap(_legend(image_size, ranks), width)), file=sys.stderr)


def _row(name: str, facts: BackboneFacts, image_size: int, ranks: int) -> BackboneRow:
    fits = not any(model_problems(name, image_size))
    activations = facts.activations_at(image_size) if fits else None
    return BackboneRow(name=name, facts=facts, image_size=image_size, ranks=ranks, activations=activations)


def _one(name: str, image_size: int, ranks: int) -> BackboneRow:
    faults = [Fault(where="command line", key=key, problem=text) for key, text in model_problems(name, image_size)]
    if faults:
        raise ConfigError(faults)
    if not name.startswith(TIMM_PREFIX):
        return _row(name, BACKBONE_FACTS[name], image_size, ranks)
    # By its name, so that the list of what a login node runs holds no torch.
    facts = importlib.import_module("hsadml_dist.models.activations").measure_backbone(name, image_size)
    return BackboneRow(name=name, facts=facts, image_size=image_size, ranks=ranks, activations=facts.activations)


def _table(rows: Sequence[BackboneRow], width: int) -> list[str]:
    for titles in (TITLES + WIDE_TITLES, TITLES):
        cells = [titles, *(_cells(row)[: len(titles)] for row in rows)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(titles))]
        lines = [_aligned(line, widths) for line in cells]
        if max(map(len, lines)) <= width:
            break
    return lines


def _cells(row: BackboneRow) -> tuple[str, ...]:
    held = rank_memory_by_engine(row.facts.weights, row.ranks).values()
    image = "-" if row.activations is None else f"{row.activations / MIB:,.0f}"
    numbers = (_millions(row.facts.weights), str(row.facts.features), *(f"{m.total / GIB:.2f}" for m in held), image)
    return (row.name, *numbers, row.facts.norm, size_rule(row.facts))


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line with its numbers to the right, its texts to the left."""
    padded = [
        cell.rjust(width) if 0 < place < len(TITLES) else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _millions(weights: int) -> str:
    return f"{weights / MILLION:.2f}M" if weights < MILLION else f"{weights / MILLION:.1f}M"


def _legend(image_size: int, ranks: int) -> str:
    return (
        f"ddp, zero-1 to zero-3: GiB that each of {ranks} ranks holds for weights, gradients and AdamW's moments, "
        f"fp32, without the libraries' buffers. image: MiB more for each image of {image_size} x {image_size} pixels "
        f"that a rank computes at once: {_how(image_size)}. Any net of the timm library: model.name={TIMM_PREFIX}NAME."
    )


def _how(image_size: int) -> str:
    counted = "what autograd keeps of it"
    return counted if image_size == REFERENCE_SIZE else f"{counted} at {REFERENCE_SIZE} pixels a side, scaled by area"


def _detail(row: BackboneRow, batch: int) -> list[str]:
    facts, images = row.facts, batch * (row.activations or 0.0)
    volumes = f"; for volumes {_millions(facts.weights_3d)}" if facts.weights_3d else ""
    timm = row.name.startswith(TIMM_PREFIX)
    lines = [
        f"{row.name}, {facts.source}",
        f"  weights   {_millions(facts.weights)}{volumes}",
        f"  features  {facts.features}",
        f"  norm      {facts.norm}",
        f"  images    {'checked at this size only' if timm else size_rule(facts) + ' pixels a side'}",
        "",
        f"GiB of each of {row.ranks} ranks, fp32, AdamW; {batch} image{'s' * (batch > 1)} of {row.image_size} x "
        f"{row.image_size} pixels at once",
        f"{'':8}{'weights':>9}{'gradients':>11}{'moments':>9}{'images':>8}{'together':>10}",
    ]
    for engine, held in rank_memory_by_engine(facts.weights, row.ranks).items():
        parts = (held.weights, held.gradients, held.moments, images, held.total + images)
        numbers = (f"{part / GIB:>{width}.2f}" for part, width in zip(parts, (9, 11, 9, 8, 10), strict=True))
        lines.append(f"{engine:<8}" + "".join(numbers))
    how = "counted on this net" if timm else _how(row.image_size).removeprefix(", ")
    return [
        *lines,
        "",
        f"images: {how}. The libraries' buffers, and what a layer needs while it computes, come on top.",
    ]
