"""``hsadml``: one command a line; what a command needs is imported when it is called."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from hsadml_dist.errors import UsageError, did_you_mean
from hsadml_dist.launch.exit_codes import run_with_exit_code

COMMANDS = (
    ("shards", "cmd_shards:app", "Turn images into shards that training reads; check and list them."),
    ("train", "cmd_train:train", "Train on this machine; goes on where the run folder stands."),
    ("submit", "cmd_submit:submit", "Train as a Slurm job on any number of nodes."),
    ("evaluate", "cmd_evaluate:evaluate", "Judge a run's embeddings on the fold that was held out."),
    ("predict", "cmd_predict:app", "Tell what a run makes of image files: class, nearest training cases, warnings."),
    ("embed", "cmd_export:embed_app", "Write the embeddings of all slices of a run's shards."),
    ("export", "cmd_export:export_app", "Write a run's network as torch.export or ONNX, checked against it."),
    ("status", "cmd_status:status", "Show how runs stand, over restarts and jobs."),
    ("watch", "cmd_status:watch", "Show how runs stand, again and again, until they are over."),
    ("logs", "cmd_logs:logs", "Print or follow a rank's log over restarts."),
    ("cancel", "cmd_cancel:cancel", "Cancel all jobs of runs."),
    ("metrics", "cmd_inspect:metrics", "Show a run's steps or events over all its attempts."),
    ("checkpoint", "cmd_inspect:checkpoint_app", "Look into a run's checkpoints."),
    ("models", "cmd_models:models", "List the backbones, with the memory that training them takes."),
    ("recipes", "cmd_recipes:app", "List, show and copy the recipes that come along."),
    ("profile", "cmd_profile:app", "Write down once what your cluster asks of every job."),
    ("doctor", "cmd_doctor:doctor", "Tell whether this machine and its cluster can carry a run."),
    ("cluster", "cmd_cluster:app", "A private Slurm cluster on this machine, for trying out."),
)
"""Name, module and object under this package, the line in ``hsadml --help``: the help imports none of the modules."""


def version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("hsadml-dist")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (running from a clone)"


def build_app() -> App:
    """Return the command line."""
    app = App(
        name="hsadml",
        help="Hyperspherical deep metric learning for brain MRI, on any number of nodes.",
        version=version,
        default_parameter=Parameter(negative=""),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    for name, target, text in COMMANDS:
        app.command(f"{__name__}.{target}", name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Errors become text on stderr, defects a traceback."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_with_exit_code(lambda: _run(words))


def _run(words: Sequence[str]) -> int | None:
    try:
        return build_app()(words)
    except CycloptsError as fault:
        raise UsageError(usage_problem(fault)) from fault
    except BrokenPipeError:
        # The reader (head, less) has seen enough; at its exit Python would write once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None


def usage_problem(fault: CycloptsError) -> str:
    """Return one line that says what is wrong with a command line."""
    if isinstance(fault, UnknownCommandError) and fault.unused_tokens and fault.app is not None:
        # cyclopts' own text imports every command first.
        names = [name for name in fault.app if not name.startswith("-")]
        word = fault.unused_tokens[0]
        return f"no command {word!r}; commands: {', '.join(names)}" + did_you_mean(word, names)
    return f"{' '.join(str(fault).split())} (see --help)"
