"""``hsadml embed`` and ``hsadml export``: write a run's embeddings or its network for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.launch.cli.terminal import echo, progress

Format = Literal["torch", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}

EMBED_HELP = """Arrays with one row per slice: keys, persons (keyed hashes, empty if unknown), labels, folds, emb
(fp32, not normalised). Further arrays: classes, checkpoint, data_digest."""

EXPORT_HELP = """The exported model maps prepared images (batch, 1, S, S), fp32, to the embedding, the unit embedding
and the cosine with each class centre. FILE.json describes classes and image preparation. The exported model is compared
with the original on random images and on slices of the run's shards; if they differ by more than 1e-5, it is deleted.

Research use only; not a medical device."""

embed_app = App(name="embed", help_epilogue=EMBED_HELP, usage="Usage: hsadml embed RUN --out FILE.npz [OPTIONS]")
export_app = App(name="export", help_epilogue=EXPORT_HELP, usage="Usage: hsadml export RUN [OPTIONS]")


@embed_app.default
def embed(run: Path, /, *, out: Path, fold: int | None = None, shards: str | None = None) -> None:
    """Write the embeddings of all slices of a run's shards, of training and held-out folds, to an .npz file.

    Args:
        run: The run folder.
        out: The file to write, FILE.npz.
        fold: Only this fold; by default all.
        shards: Other shards with the same classes, or the run's shards if they were moved.
    """
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: must end in .npz")
    _require_parent(out)
    folder = require_run_folder(run)
    from hsadml_dist.evaluation.model_loading import embed_slices, open_inference, open_shards, save_columns
    from hsadml_dist.evaluation.trained_overlap import find_overlap
    from hsadml_dist.evaluation.training_lineage import OpenedShards
    from hsadml_dist.report.trained_facts import trained_counts

    inference = open_inference(folder)
    where, index = open_shards(inference, shards)
    positions = range(len(index)) if fold is None else index.in_folds([fold])
    with progress("slices") as show:
        table, _ = embed_slices(inference, where, index, positions, show)
    try:
        save_columns(out, table.columns())
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written: {error.strerror}") from error
    unseen = sum(fold in inference.held_out_folds for fold in table.fold_N.tolist())
    origin = f"{unseen} of them from held-out folds"
    if index.digest != inference.trained_on:
        opened = OpenedShards(where=str(shards or inference.recipe.data.shards), index=index)
        with progress("images compared with the training") as show:
            overlap = find_overlap(inference.run, inference.recipe, inference.trained_on, opened, positions, show)
        counts = trained_counts({"slices": len(table), "persons": None, **overlap.to_dict()})
        origin = f"from other shards than the run was trained on (read in training: {counts})"
    step = inference.weights.checkpoint.step
    echo(f"{out}: {len(table)} embeddings of dimension {table.emb_ND.shape[1]}, {origin}; weights of step {step}")


@export_app.default
def export(
    run: Path,
    /,
    *,
    out: Path | None = None,
    format_: Annotated[Format | None, Parameter(name="--format")] = None,
    shards: str | None = None,
) -> None:
    """Export a run's network with torch.export or as ONNX, and compare the result with the original.

    Args:
        run: The run folder.
        out: The file; by default model.pt2 or model.onnx in the run folder.
        format_: torch (torch.export, .pt2) or onnx (needs the extra export); by default from the suffix of --out, or
            torch.
        shards: The run's shards if they were moved after training.
    """
    folder = require_run_folder(run)
    chosen, path = _target(folder, out, format_)
    from hsadml_dist.evaluation.export import check_export_packages, export_run, sidecar
    from hsadml_dist.evaluation.model_loading import open_inference

    check_export_packages(chosen)
    inference = open_inference(folder)
    done = export_run(inference, path, chosen, shards)
    echo(
        f"{path}: weights of step {inference.weights.checkpoint.step}; largest difference from the original "
        f"{done.difference:.1e} on {done.random_images} random images and {done.real_slices} slices"
    )
    echo(f"{sidecar(path)}: description of inputs and outputs")


def _target(run: Path, out: Path | None, chosen: Format | None) -> tuple[Format, Path]:
    if out is None:
        chosen = chosen or "torch"
        return chosen, run / f"model{SUFFIXES[chosen]}"
    by_suffix = next((name for name, suffix in SUFFIXES.items() if out.suffix == suffix), None)
    if by_suffix is None or chosen not in (None, by_suffix):
        wanted = SUFFIXES[chosen] if chosen else " or ".join(SUFFIXES.values())
        raise UsageError(f"--out {out}: must end in {wanted}")
    _require_parent(out)
    return by_suffix, out


def _require_parent(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
