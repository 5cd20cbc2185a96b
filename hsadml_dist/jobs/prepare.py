"""From a recipe on a command line to a run folder that its ranks can start from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hsadml_dist.config.deepspeed_options import build_deepspeed_options
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.config.yaml_loader import COMMAND_LINE, LoadedRecipe, dump_recipe, load_recipe
from hsadml_dist.data.index import ShardIndex, label_problem
from hsadml_dist.data.remote import is_url, open_shard_index
from hsadml_dist.data.shard_cache import stage_path_problem
from hsadml_dist.distributed.topology import allowed_world_sizes
from hsadml_dist.errors import ConfigError, DataError, Fault, RunError, UsageError, did_you_mean, os_error_reason
from hsadml_dist.models.registry import model_problems
from hsadml_dist.run.folder import RunFolder

RECIPES = Path(__file__).parents[1] / "launch" / "recipes"
RUNS = Path("runs")
SMOKE = ("train.steps=2", "checkpoint.every=1", "evaluation.at_end=true", "evaluation.resamples=100")
LENGTHS = ("train.steps=", "train.epochs=")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe: a shipped one by its name, any other by its path.

    Raises:
        ConfigError: There is no such recipe.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if "/" in name_or_path or path.suffix:
        problem = f"{name_or_path!r}: no such file"
    else:
        problem = f"no recipe {name_or_path!r}; shipped: {', '.join(shipped)}" + did_you_mean(name_or_path, shipped)
    raise ConfigError([Fault(where=COMMAND_LINE, key="recipe", problem=problem)])


def resolve_recipe(recipe: str, overrides: Sequence[str], smoke: bool, world_size: int) -> LoadedRecipe:
    """Return the settings that a run of ``world_size`` ranks would have; reads the recipe alone.

    Args:
        recipe: Path or shipped name.
        overrides: ``key=value`` texts.
        smoke: Whether to cut the run down to two steps, a checkpoint after each and a verdict.
        world_size: Number of ranks.

    Raises:
        ConfigError: The recipe or an override is wrong, or the ranks cannot share a batch evenly.
    """
    if smoke:
        overrides = [*(text for text in overrides if not text.startswith(LENGTHS)), *SMOKE]
    loaded = load_recipe(find_recipe(recipe), overrides, find=find_recipe)
    batch = loaded.recipe.train.global_batch
    if world_size < 1 or batch % world_size:
        allowed = ", ".join(map(str, allowed_world_sizes(batch, max(2 * world_size, 8))))
        problem = f"{batch} cannot be shared evenly by {world_size} ranks; numbers of ranks that can: {allowed}"
        where = loaded.provenance["train.global_batch"]
        raise ConfigError([Fault(where=where, key="train.global_batch", problem=problem)])
    return loaded


def resolve_run_folder(recipe: str, overrides: Sequence[str], run: Path | None, smoke: bool, world_size: int) -> Path:
    """Return the run folder that :func:`prepare_run` would use; writes nothing and looks at no shards.

    Raises:
        ConfigError: As :func:`resolve_recipe`.
    """
    if run is None:
        plain = resolve_recipe(recipe, overrides, False, world_size).recipe
        run = RUNS / f"{find_recipe(recipe).stem}-{plain.fingerprint()}"
    else:
        resolve_recipe(recipe, overrides, smoke, world_size)
    return run.with_name(f"{run.name}-smoke") if smoke else run


def prepare_run(recipe: str, overrides: Sequence[str], run: Path | None, smoke: bool, world_size: int) -> Path:
    """Check a recipe against its shards and the run folder, write ``RUN/config.yaml`` and return RUN.

    Without ``run`` the folder is ``runs/RECIPE-FINGERPRINT``: the same settings go on in the same folder. A smoke
    run has a folder of its own, ``RUN-smoke``, which starts anew each time.

    Args:
        recipe: Path or shipped name.
        overrides: ``key=value`` texts.
        run: The run folder, new or existing.
        smoke: See :func:`resolve_recipe`.
        world_size: Number of ranks.

    Raises:
        ConfigError: The recipe is wrong, does not fit its shards, or would change what an existing run is.
        DataError: The shards are missing or damaged.
        UsageError: ``run`` exists and is no run folder.
        RunError: The run folder cannot be written.
    """
    loaded = resolve_recipe(recipe, overrides, smoke, world_size)
    folder = RunFolder(resolve_run_folder(recipe, overrides, run, smoke, world_size))
    _refuse_foreign(folder)
    index = open_shard_index(loaded.recipe.data.shards, fresh=True)
    faults = [*_misfits(loaded, index), *_unfit_engine(loaded.recipe, world_size)]
    if not smoke and folder.config.is_file():
        faults += _changes(loaded, folder, index)
    if faults:
        raise ConfigError(faults)
    try:
        if smoke and folder.path.exists():
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True, exist_ok=True)
        dump_recipe(_with_absolute_paths(loaded.recipe), folder.config)
    except OSError as fault:
        raise RunError(f"run folder {folder.path}: cannot be written: {os_error_reason(fault)}") from fault
    return folder.path


def require_run_folder(run: Path) -> Path:
    """Return ``run`` if it is a run folder.

    Raises:
        UsageError: It is not.
    """
    if not RunFolder(run).config.is_file():
        raise UsageError(f"run folder {run}: " + ("holds no config.yaml" if run.is_dir() else "does not exist"))
    return run


def _refuse_foreign(folder: RunFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"run folder {folder.path}: is a file; name a new folder or an existing run")
    if not folder.path.is_dir() or folder.config.is_file():
        return
    if any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise UsageError(f"run folder {folder.path}: holds other files and no config.yaml; name a new folder or a run")


def _misfits(loaded: LoadedRecipe, index: ShardIndex) -> Iterator[Fault]:
    """Yield what the recipe asks of its shards that they do not have."""
    data = loaded.recipe.data
    for key, fold in (("data.fold", data.fold), ("data.val_fold", data.val_fold)):
        if fold is not None and fold not in index.fold_numbers:
            allowed = ", ".join(map(str, index.fold_numbers))
            problem = f"{fold} is no fold of {data.shards}; its folds: {allowed}"
            yield Fault(where=loaded.provenance[key], key=key, problem=problem)
    unusable = None if data.stage is None else stage_path_problem(data.stage)
    if unusable is not None:
        yield Fault(where=loaded.provenance["data.stage"], key="data.stage", problem=unusable)
    for key, text in model_problems(loaded.recipe.model.name, data.image_size):
        yield Fault(where=loaded.provenance[key], key=key, problem=text)
    unlearnable = label_problem(index, data)
    if unlearnable is not None:
        yield Fault(where=loaded.provenance["data.label"], key="data.label", problem=unlearnable)


def _unfit_engine(recipe: Recipe, world_size: int) -> Iterator[Fault]:
    """Yield what of DeepSpeed is wrong or missing, as far as it shows here."""
    if recipe.engine.name != "deepspeed":
        return
    # A login node need not have either of them; where only one is missing, it was forgotten.
    if find_spec("torch") is not None and find_spec("deepspeed") is None:
        problem = "'deepspeed' needs the package deepspeed: pip install 'hsadml-dist[deepspeed]'"
        yield Fault(where="recipe", key="engine.name", problem=problem)
    try:
        build_deepspeed_options(recipe.engine, recipe.train.global_batch, world_size)
    except ConfigError as refused:
        yield from refused.faults


def _changes(loaded: LoadedRecipe, folder: RunFolder, index: ShardIndex) -> Iterator[Fault]:
    """Yield the settings that would make an existing run another one."""
    stored = load_recipe(folder.config).recipe
    before, now = stored.identity(), loaded.recipe.identity()
    for key in sorted(before.keys() | now.keys()):
        if key in before and key in now and before[key] != now[key]:
            yield _change(loaded, folder, key, before[key], now[key], _why(key))
    for key in ("train.steps", "train.epochs"):
        was, wanted = _length(stored, key), _length(loaded.recipe, key)
        if key not in now and wanted is not None and was is not None and wanted < was:
            yield _change(loaded, folder, key, was, wanted, "a run may grow but not shrink")
    if _holds_other_samples(stored.data.shards, index):
        why = "its samples differ, and they are part of what a run is"
        yield _change(loaded, folder, "data.shards", stored.data.shards, loaded.recipe.data.shards, why)


def _change(loaded: LoadedRecipe, folder: RunFolder, key: str, was: Any, wanted: Any, why: str) -> Fault:
    problem = f"{wanted!r}, but {folder.path} was started with {was!r}: {why}; for a new run give another --run"
    return Fault(where=loaded.provenance[key], key=key, problem=problem)


def _why(key: str) -> str:
    if key in ("train.steps", "train.epochs"):
        return "the cosine schedule ends there, so another length is another curve from the first step on"
    return "it is part of what a run is"


def _length(recipe: Recipe, key: str) -> int | None:
    return recipe.train.steps if key == "train.steps" else recipe.train.epochs


def _holds_other_samples(shards: str, index: ShardIndex) -> bool:
    try:
        return open_shard_index(shards, fresh=False).digest != index.digest
    except DataError:
        # The run's first shards may have been moved or deleted; the checkpoint's own record is the judge then.
        return False


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """A run folder is also read from other directories than the one it was started in."""
    data, engine = recipe.data, recipe.engine
    if not is_url(data.shards):
        data = dataclasses.replace(data, shards=str(Path(data.shards).absolute()))
    if engine.deepspeed_config is not None:
        engine = dataclasses.replace(engine, deepspeed_config=str(Path(engine.deepspeed_config).absolute()))
    return dataclasses.replace(recipe, data=data, engine=engine)
