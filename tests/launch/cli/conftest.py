import pytest

from tests.jobs.conftest import recipe, shards  # noqa: F401  fixtures

STEP = 4


@pytest.fixture(scope="session")
def opened_run(tiny_shards, tmp_path_factory):
    """A run on generated patients with a checkpoint of untrained weights; fold 0 is held out. Do not write to it."""
    from hsadml_dist.checkpoint.layout import TrainingProgress
    from hsadml_dist.checkpoint.save import save_checkpoint
    from hsadml_dist.checkpoint.tensor_files import TrainingState
    from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe
    from hsadml_dist.data.index import load_index
    from hsadml_dist.losses.centres import initial_rows
    from hsadml_dist.model_factory import build_network
    from hsadml_dist.run.folder import RunFolder

    settings = {"data.shards": str(tiny_shards), "data.image_size": 32, "train.steps": STEP, "evaluation.batch": 4}
    built = build_recipe(settings | {"model.name": "resnet_gn_tiny", "model.embedding_dim": 8})
    folder, index = RunFolder(tmp_path_factory.mktemp("opened") / "run"), load_index(tiny_shards)
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True)
    dump_recipe(built, folder.config)
    centres = initial_rows(range(len(index.classes)), 8, 0)
    groups = {"model": dict(build_network(built).state_dict()), "centres": {"weight": centres}}
    progress = TrainingProgress(step=STEP, consumed=0, seed=0, fingerprint="", data_digest=index.digest, world_size=1)
    save_checkpoint(folder, attempt, TrainingState(groups=groups, progress=progress))
    return folder.path
