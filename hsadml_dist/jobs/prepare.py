"""Turn a recipe and its overrides into a run folder that ranks can start from."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hsadml_dist.addresses import display_address, is_url
from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.config.deepspeed_options import build_deepspeed_options
from hsadml_dist.config.recipe import DataConfig, Recipe
from hsadml_dist.config.yaml_loader import COMMAND_LINE, LoadedRecipe, dump_recipe, load_recipe
from hsadml_dist.data.index import ShardIndex, apply_label_setting, label_problem
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.shard_cache import stage_path_problem
from hsadml_dist.distributed.topology import allowed_world_sizes
from hsadml_dist.errors import ConfigError, DataError, Fault, RunError, UsageError, did_you_mean, os_error_reason
from hsadml_dist.loss_rules import sample_rate_problem
from hsadml_dist.models.registry import model_problems
from hsadml_dist.run.attempts import current_holder, refuse_if_held
from hsadml_dist.run.folder import RunFolder

RECIPES = Path(__file__).parents[1] / "launch" / "recipes"
RUNS = Path("runs")
SMOKE_OVERRIDES = ("train.steps=2", "checkpoint.every=1", "evaluation.at_end=true")
LENGTH_KEYS = ("train.steps", "train.epochs")


def shipped_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the path of a recipe, given the name of a shipped one or a path.

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
    """Load a recipe with its overrides and check it for ``world_size`` ranks. Reads nothing but the recipe.

    Args:
        recipe: Path or shipped name.
        overrides: ``key=value`` strings.
        smoke: True shortens the run to two steps, a checkpoint after each and an evaluation.
        world_size: Number of ranks.

    Raises:
        ConfigError: The recipe or an override is invalid, or the global batch cannot be divided by the ranks.
    """
    if smoke:
        lengths = tuple(f"{key}=" for key in LENGTH_KEYS)
        overrides = [*(text for text in overrides if not text.startswith(lengths)), *SMOKE_OVERRIDES]
    loaded = load_recipe(find_recipe(recipe), overrides, find=find_recipe)
    batch = loaded.recipe.train.global_batch
    if world_size < 1 or batch % world_size:
        allowed = ", ".join(map(str, allowed_world_sizes(batch)))
        problem = f"{batch} is not divisible by {world_size} ranks; numbers of ranks that divide it: {allowed}"
        raise ConfigError([_fault(loaded, "train.global_batch", problem)])
    return loaded


def resolve_run_folder(recipe: str, overrides: Sequence[str], run: Path | None, smoke: bool, world_size: int) -> Path:
    """Return the run folder that :func:`prepare_run` would use, without writing it or reading shards.

    Raises:
        ConfigError: See :func:`resolve_recipe`.
    """
    loaded = resolve_recipe(recipe, overrides, smoke and run is not None, world_size)
    if run is None:
        run = RUNS / f"{find_recipe(recipe).stem}-{loaded.recipe.fingerprint()}"
    if not smoke:
        return run
    named = run if run.name else run.absolute()
    if not named.name:
        raise UsageError(f"run folder {run}: has no name to which -smoke could be added; name another folder")
    return named.with_name(f"{named.name}-smoke")


def prepare_run(recipe: str, overrides: Sequence[str], run: Path | None, smoke: bool, world_size: int) -> Path:
    """Check a recipe against its shards and the run folder, write ``RUN/config.yaml`` and return RUN.

    Without ``run`` the folder is ``runs/RECIPE-FINGERPRINT``, so the same settings resume in the same folder. A smoke
    run gets the folder ``RUN-smoke``, which is deleted before each start.

    Args:
        recipe: Path or shipped name.
        overrides: ``key=value`` strings.
        run: The run folder, new or existing.
        smoke: See :func:`resolve_recipe`.
        world_size: Number of ranks.

    Raises:
        ConfigError: The recipe is invalid, does not fit its shards, or changes the identity of an existing run.
        DataError: The shards are missing or damaged.
        UsageError: ``run`` exists and is not a run folder.
        RunError: The run folder cannot be written.
        RunLockedError: Another process is training the run.
    """
    loaded, folder = check_run(recipe, overrides, run, smoke, world_size)
    refuse_if_held(folder, current_holder("prepare"))
    try:
        if smoke and folder.path.exists():
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True, exist_ok=True)
        dump_recipe(_with_absolute_paths(loaded.recipe), folder.config)
    except OSError as fault:
        raise RunError(f"run folder {folder.path}: cannot be written: {os_error_reason(fault)}") from fault
    return folder.path


def check_run(
    recipe: str, overrides: Sequence[str], run: Path | None, smoke: bool, world_size: int, *, need_shards: bool = True
) -> tuple[LoadedRecipe, RunFolder]:
    """Check what :func:`prepare_run` checks, without writing anything, and return the recipe and its run folder.

    Args:
        recipe: See :func:`prepare_run`, as for the further arguments.
        need_shards: False omits the checks of the shards if they cannot be read here.

    Raises:
        HsadmlError: See :func:`prepare_run`.
    """
    loaded = resolve_recipe(recipe, overrides, smoke, world_size)
    folder = RunFolder(resolve_run_folder(recipe, overrides, run, smoke, world_size))
    _require_new_or_run_folder(folder)
    index = _open_index(loaded.recipe.data.shards, need_shards)
    problems = _data_problems(loaded.recipe, index)
    faults = [_fault(loaded, key, problem) for key, problem in problems if problem is not None]
    faults += _engine_faults(loaded.recipe, world_size)
    # Before the first checkpoint there is nothing to resume, so every setting may change.
    if index is not None and not smoke and folder.config.is_file() and list_checkpoints(folder):
        faults += _identity_faults(loaded, folder, index)
    if faults:
        raise ConfigError(faults)
    return loaded, folder


def _open_index(shards: str, needed: bool) -> ShardIndex | None:
    if not needed and is_url(shards):
        return None
    try:
        return open_shard_index(shards, fresh=True)
    except DataError:
        if needed:
            raise
        return None


def require_run_folder(run: Path) -> Path:
    """Return ``run`` if it is a run folder.

    Raises:
        UsageError: It is missing or has no config.yaml.
    """
    if not RunFolder(run).config.is_file():
        raise UsageError(f"run folder {run}: " + ("has no config.yaml" if run.is_dir() else "does not exist"))
    return run


def _require_new_or_run_folder(folder: RunFolder) -> None:
    if folder.path.is_symlink() and not folder.path.exists():
        raise UsageError(f"run folder {folder.path}: is a link to nothing; name a new folder or an existing run")
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"run folder {folder.path}: is a file; name a new folder or an existing run")
    if not folder.path.is_dir() or folder.config.is_file():
        return
    if any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise UsageError(f"run folder {folder.path}: contains other files; name a new folder or a run")


def _data_problems(recipe: Recipe, index: ShardIndex | None) -> Iterator[tuple[str, str | None]]:
    """Yield each setting that depends on the shards or the images, with its problem or None."""
    data = recipe.data
    yield from model_problems(recipe.model.name, data.image_size)
    if data.stage is not None:
        yield "data.stage", stage_path_problem(data.stage)
    if index is None:
        return
    for key, fold in (("data.fold", data.fold), ("data.val_fold", data.val_fold)):
        if fold is not None and fold not in index.fold_numbers:
            allowed = ", ".join(map(str, index.fold_numbers))
            yield key, f"{fold} is not a fold of {display_address(data.shards)}; its folds: {allowed}"
    problem = label_problem(index, data)
    yield "data.label", problem
    if problem is None:
        yield "loss.sample_rate", sample_rate_problem(recipe.loss.sample_rate, _class_count(index, data))


def _class_count(index: ShardIndex, data: DataConfig) -> int:
    return len(apply_label_setting(index, data).classes)


def _engine_faults(recipe: Recipe, world_size: int) -> Iterator[Fault]:
    """Yield invalid DeepSpeed settings, and a missing DeepSpeed where torch is installed."""
    if recipe.engine.name != "deepspeed":
        return
    # A login node needs neither package. Where torch is installed, DeepSpeed was probably forgotten.
    if find_spec("torch") is not None and find_spec("deepspeed") is None:
        problem = "'deepspeed' needs the package deepspeed: pip install 'hsadml-dist[deepspeed]'"
        yield Fault(where="recipe", key="engine.name", problem=problem)
    try:
        build_deepspeed_options(recipe.engine, recipe.train.global_batch, world_size)
    except ConfigError as refused:
        yield from refused.faults


def _identity_faults(loaded: LoadedRecipe, folder: RunFolder, index: ShardIndex) -> Iterator[Fault]:
    """Yield the settings that would change the identity of an existing run."""
    stored = load_recipe(folder.config, stored=True).recipe
    before, now = stored.identity(), loaded.recipe.identity()
    schedule = "the cosine schedule ends there, so another length changes the learning rate from the first step on"
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            why = schedule if key in LENGTH_KEYS else "it is part of a run's identity"
            yield _changed_setting(loaded, folder, key, before[key], now[key], why)
    if not now.keys() & set(LENGTH_KEYS):
        yield from _length_faults(loaded, folder, stored, index)
    was, wanted = stored.data.shards, loaded.recipe.data.shards
    # The original shards may have been moved or deleted. The checkpoint's own record is compared at start then.
    with contextlib.suppress(DataError):
        if open_shard_index(was, fresh=False).digest != index.digest:
            why = "its samples differ, and they are part of a run's identity"
            shown_was, shown_wanted = display_address(was), display_address(wanted)
            yield _changed_setting(loaded, folder, "data.shards", shown_was, shown_wanted, why)


def _length_faults(loaded: LoadedRecipe, folder: RunFolder, stored: Recipe, index: ShardIndex) -> Iterator[Fault]:
    """Yield the fault of a run that would end earlier than before, whether its length is given in steps or epochs."""
    samples = len(index.outside_folds(loaded.recipe.data.held_out_folds))
    was, wanted = (recipe.train.total_steps(samples) for recipe in (stored, loaded.recipe))
    if wanted < was:
        (key, value), (old_key, old_value) = loaded.recipe.train.given_length, stored.train.given_length
        why = f"{wanted} steps instead of {was}: a run may be extended but not shortened"
        old = old_value if key == old_key else f"{old_key}={old_value}"
        yield _changed_setting(loaded, folder, key, old, value, why)


def _changed_setting(loaded: LoadedRecipe, folder: RunFolder, key: str, was: Any, wanted: Any, why: str) -> Fault:
    problem = f"{wanted!r}, but {folder.path} was started with {was!r}: {why}; for a new run choose another --run"
    return _fault(loaded, key, problem)


def _fault(loaded: LoadedRecipe, key: str, problem: str) -> Fault:
    return Fault(where=loaded.provenance[key], key=key, problem=problem)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make paths absolute, since a run folder is also read from other working directories."""
    data, engine = recipe.data, recipe.engine
    if not is_url(data.shards):
        data = dataclasses.replace(data, shards=str(Path(data.shards).absolute()))
    if engine.deepspeed_config is not None:
        engine = dataclasses.replace(engine, deepspeed_config=str(Path(engine.deepspeed_config).absolute()))
    return dataclasses.replace(recipe, data=data, engine=engine)
