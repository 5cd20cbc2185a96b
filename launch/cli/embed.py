"""``hsadml embed``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.launch.cli.progress import progress
from hsadml_dist.launch.prepare import require_run_folder

EMBED_HELP = """Arrays, one row a slice: keys, persons (keyed hashes; empty where unknown), labels, folds, emb (fp32, not
normalised). Beside them: classes, checkpoint, data_digest."""

embed_app = App(name="embed", help_epilogue=EMBED_HELP, usage="Usage: hsadml embed RUN --out FILE.npz [OPTIONS]")


@embed_app.default
def embed(run: Path, /, *, out: Path, fold: int | None = None, shards: str | None = None) -> None:
    """Write the embeddings of all slices of a run's shards, training folds and held-out ones, to an .npz file.

    Args:
        run: The run folder.
        out: The file to write, FILE.npz.
        fold: Only this fold; by default all.
        shards: Other shards of the same classes, or the run's own, moved.
    """
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: must end in .npz")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist")
    folder = require_run_folder(run)
    from hsadml_dist.evaluation.inference import embed_slices, open_inference, open_shards, save_columns

    inference = open_inference(folder)
    where, index = open_shards(inference, shards)
    positions = range(len(index)) if fold is None else index.in_folds([fold])
    with progress("slices") as show:
        table, _ = embed_slices(inference, where, index, positions, show)
    try:
        save_columns(out, table.columns())
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written: {error.strerror}") from error
    unseen = sum(fold in inference.held_out for fold in table.fold_N.tolist())
    origin = f"{unseen} of them of folds that training never read"
    if index.digest != inference.trained_on:
        origin = "of other shards than the run was trained on"
    step = inference.weights.checkpoint.step
    print(f"{out}: {len(table)} embeddings of {table.emb_ND.shape[1]} components, {origin}; weights of step {step}")
