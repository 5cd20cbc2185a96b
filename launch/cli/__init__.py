"""The ``hsadml`` command line. The modules of the commands are imported only when a command is called."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from hsadml_dist.errors import UsageError, did_you_mean
from hsadml_dist.launch.exit_codes import run_with_exit_code
from hsadml_dist.printable import escape_early_warnings

COMMANDS = (
    ("shards", "cmd_shards:app", "Convert images to shards for training; verify and list them."),
    ("train", "cmd_train:train", "Train on this machine; resume if there is a checkpoint."),
    ("submit", "cmd_train:submit", "Train as a Slurm job on one or many nodes."),
    ("evaluate", "cmd_evaluate:evaluate", "Evaluate a run's embeddings on its held-out fold; compare runs."),
    ("predict", "cmd_predict:app", "Classify image files and show the nearest training cases."),
    ("embed", "cmd_export:embed_app", "Write the embeddings of all slices of a run's shards."),
    ("export", "cmd_export:export_app", "Export a run's network with torch.export or as ONNX."),
    ("status", "cmd_status:status", "Show the progress of runs over all restarts and jobs."),
    ("watch", "cmd_status:watch", "Show the progress of runs repeatedly until they have ended."),
    ("logs", "cmd_logs:logs", "Print or follow the log of a rank over all restarts."),
    ("cancel", "cmd_cancel:cancel", "Cancel all jobs of runs."),
    ("metrics", "cmd_logs:metrics", "Print the steps or the events of a run over all its attempts."),
    ("checkpoint", "cmd_logs:checkpoint_app", "Inspect the checkpoints of a run."),
    ("models", "cmd_models:models", "List the backbones and the memory that training them takes."),
    ("recipes", "cmd_train:recipes_app", "List, show and copy the shipped recipes."),
    ("profile", "cmd_profile:app", "Save the options that every job on your cluster needs."),
    ("doctor", "cmd_doctor:doctor", "Check whether this machine and its cluster can run a training."),
    ("cluster", "cmd_cluster:app", "Start and stop a private Slurm cluster on this machine."),
)
"""Name, ``module:object`` in this package, and the line in ``hsadml --help``, which imports none of the modules."""


def version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("hsadml-dist")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (running from a clone)"


def build_app(command: str = "") -> App:
    """Return the command-line application.

    Args:
        command: The command to be called. Its help is its docstring, the others' is their line in :data:`COMMANDS`.
    """
    app = App(
        name="hsadml",
        help="Hyperspherical deep metric learning for brain MRI, on any number of nodes.",
        version=version,
        # None hides the default of flags and of empty values. Without json_list a file named [1].png is read as JSON.
        default_parameter=Parameter(
            negative="",
            show_default=lambda value: None if value is False or value in ("", ()) else value,
            json_list=False,
            json_dict=False,
        ),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    for name, target, text in COMMANDS:
        app.command(f"{__name__}.{target}", name=name, help=None if name == command else text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code. Errors are reported on stderr, defects with a traceback."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    escape_early_warnings()
    return run_with_exit_code(lambda: _run(words))


def _run(words: Sequence[str]) -> int | None:
    try:
        return build_app(*words[:1])(words)
    except CycloptsError as fault:
        raise UsageError(describe_usage_error(fault)) from fault
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. Python flushes stdout once more at exit and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None


def describe_usage_error(fault: CycloptsError) -> str:
    """Return a usage error as one line."""
    if isinstance(fault, UnknownCommandError) and fault.unused_tokens and fault.app is not None:
        # The text of cyclopts would import every command.
        names = [name for name in fault.app if not name.startswith("-")]
        word = fault.unused_tokens[0]
        return f"no command {word!r}; commands: {', '.join(names)}" + did_you_mean(word, names)
    return f"{' '.join(str(fault).split())} (see --help)"
