"""The `cljax` command.

Everything heavy is imported where it is used, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.markup import escape

from cljax.cli.options import (
    Command,
    Compare,
    DataSets,
    Methods,
    Options,
    PrepareData,
    Report,
    Run,
    Sweep,
    configuration,
    settle,
)

__all__ = ["main"]

DESCRIPTION = (
    "Continual learning as pure JAX functions: compare methods, or run one with everything settable. "
    "Start with `cljax compare`; each command has its own --help."
)
CONVOLUTION_THREADS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: reads the arguments (those of the process where None) and does what they say.

    Returns:
      The exit code: 0; 2 where something asked for cannot be; 1 where a loss turned non-finite; 130 on Ctrl-C.
    """
    errors = Console(stderr=True)
    from cljax.cli.setup import UsageError
    from cljax.folders import FolderError

    try:
        command = parse(arguments)
        if isinstance(command, Methods):
            return list_methods()
        if isinstance(command, DataSets):
            return prepare_data(command.action, command.data_dir) if command.action else list_data(command.data_dir)
        if isinstance(command, Sweep):
            from cljax.cli.sweep import sweep

            return sweep(command, errors)
        if isinstance(command, Report):
            return make_report(command.folders, command.out)
        if isinstance(command, Compare):
            return compare(command.methods, command.options, errors)
        if command.name and command.method:
            raise UsageError(f"Two methods are named, {command.name!r} and {command.method!r}; `run` does one.")
        name = command.name or command.method
        if not name:
            raise UsageError("Which method? For example: cljax run finetune. `cljax methods` lists them.")
        return compare((name,), command.options, errors)
    except (UsageError, FolderError) as error:
        return complain(errors, error, 2)
    except BrokenPipeError:  # such as `cljax methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return complain(errors, "Stopped. The same command with --resume goes on from the last checkpoint.", 130)


def parse(arguments: Sequence[str] | None = None) -> Compare | Run | Sweep | Report | Methods | DataSets:
    """The arguments, typed.

    Raises:
      SystemExit: with 2 where they cannot be read, with 0 after `--help`.

    Example:
      >>> parse(['run', 'finetune', '--rate', '0.1']).options.training.rate
      0.1
    """
    return tyro.cli(Command, prog="cljax", description=DESCRIPTION, args=arguments)


def compare(asked: tuple[str, ...], options: Options, errors: Console) -> int:
    """Drives the methods, writes the record after each, prints the table."""
    from cljax import folders
    from cljax.cli.setup import UsageError, check_values, choose_methods, prepare

    options = settle(options)
    check_values(options)
    set_xla_flags()
    if options.output.cache:
        use_compilation_cache()
    names = choose_methods(asked)
    if options.output.tensorboard:
        check_tensorboard()
    config = configuration(names, options)
    path = run_path(options, config)
    with folders.claim(path, config, overwrite=options.output.overwrite) as folder:
        try:
            job = prepare(names, options, by_name=bool(asked) and asked != ("all",))
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        from cljax.training import NonFiniteLoss

        if options.output.overwrite:
            shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
        folder.start()
        try:
            return drive_all(job, folder, options, config, errors)
        except NonFiniteLoss as error:
            return complain(errors, error, 1)


def run_path(options: Options, config: dict) -> str | os.PathLike:
    """The run folder: of `--out`, with `--resume` that of the interrupted run, otherwise a fresh one.

    Raises:
      UsageError: there is no run to take up.
    """
    from cljax import folders
    from cljax.cli.setup import UsageError

    out, resume = options.output.out, options.output.resume
    if resume and options.output.overwrite:
        raise UsageError("--resume takes up an interrupted run, --overwrite begins it anew: give one of the two.")
    if resume and out is None:
        if found := folders.interrupted("runs", config):
            return found
        raise UsageError(
            "There is no interrupted run of this configuration under runs/ that --resume could take up. Name its "
            "folder with --out, or begin one without --resume."
        )
    if resume and out and not (pathlib.Path(out).expanduser() / folders.CONFIG).exists():
        raise UsageError(f"There is no run in {out} that --resume could take up. Begin it without --resume.")
    return out or folders.fresh_path("runs", f"{data_name(options)}-{options.data.scenario}")


def data_name(options: Options) -> str:
    """The data sets' names, for a folder's."""
    return "+".join(pathlib.Path(name).expanduser().resolve().name for name in options.data.data)


def drive_all(job, folder, options: Options, config: dict, errors: Console) -> int:
    """Drives each method that the folder's record does not have yet, from its last checkpoint where there is one."""
    from cljax import checkpoints, report
    from cljax.cli.progress import Reporter
    from cljax.report.tensorboard import Sink
    from cljax.training.driver import drive

    for name, reason in job.left_out.items():
        errors.print(f"[yellow]{name} is left out:[/] {escape(reason)}", highlight=False)
    earlier = folder.record or {"runs": []}
    record = {"format": 1, "complete": False, "left_out": job.left_out, "runs": list(earlier["runs"])}
    finished = {run["method"] for run in record["runs"]}
    todo = {name: method for name, method in job.methods.items() if name not in finished}
    if finished and not options.output.quiet:
        errors.print(f"Taking up {folder.path}, which has {', '.join(sorted(finished))} already.", highlight=False)
    say = lambda line: errors.print(escape(line), highlight=False, soft_wrap=True)
    with Reporter(errors, len(todo), options.data.tasks or 0, quiet=options.output.quiet) as reporter:
        for name, method in todo.items():
            reporter.method(name)
            saving = checkpoints.Saving(folder.checkpoints(name), options.output.checkpoint_seconds, say=say)
            shown: dict = {"vectorize": job.vectorize, "report": reporter.event, "programs_of": job.programs_of}
            with contextlib.ExitStack() as stack:
                if options.output.tensorboard:
                    place, schedule = folder.path / "tensorboard", job.seeds[0][1].schedule
                    shown["visited"] = stack.enter_context(Sink(place, method, schedule)).visited
                outcome = drive(method, job.optimizer, job.seeds, job.settings, checkpoints=saving, **shown)
            run = report.run_record(method, job.seeds, outcome, network=job.network, config=config)
            run["parameters"] = report.plain(job.parameters[name])
            record["runs"].append(run)
            if options.output.keep_learners:
                for (seed, _), learner in zip(job.seeds, outcome.learners, strict=True):
                    checkpoints.save(folder.learner(name, seed), learner)
            folder.save(record)
            folder.forget(name)
            if method.forgets_nothing and not run["forgets_nothing"]:
                message = f"{name} promises to forget nothing, but the logits of an earlier task changed."
                errors.print(f"[red]{message}[/]", highlight=False)
    order = list(job.methods)
    record["runs"].sort(key=lambda run: order.index(run["method"]))
    folder.save({**record, "complete": True})
    output = Console() if sys.stdout.isatty() else Console(width=100)
    output.print(report.table(record))
    output.print(f"Record: {folder.path / 'record.json'}", highlight=False, soft_wrap=True)
    output.print(f"Report: cljax report {shlex.quote(str(folder.path))}", highlight=False, soft_wrap=True)
    return 0


def check_tensorboard() -> None:
    """Whether event files can be written.

    Raises:
      UsageError: a package is missing.
    """
    from cljax.cli.setup import UsageError
    from cljax.report import tensorboard

    try:
        tensorboard.check()
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_report(folders: tuple[str, ...], out: str | None) -> int:
    """Writes the report and prints where its page is."""
    from cljax import report
    from cljax.cli.setup import UsageError

    if not folders:
        raise UsageError("Of which run? Name its folder: cljax report runs/digits-task-20260101-120000.")
    try:
        print(f"Report: {report.write(folders, out)}")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0


def list_methods() -> int:
    """Prints a line for each method: the first of its docstring."""
    from cljax.cli.setup import constructors

    known = constructors()
    width = max(map(len, known))
    for name, method in known.items():
        print(f"{name:{width}}  {(method.__doc__ or '').partition(chr(10))[0]}")
    return 0


def list_data(data_dir: str | None) -> int:
    """Prints a line for each data set: name, whether it is prepared, description."""
    from cljax import data

    found = data.available(data_dir)
    width = max(len(name) for name, _, _ in found)
    for name, text, prepared in found:
        print(f"{name:{width}}  {'ready' if prepared else '-':5}  {text}")
    return 0


def prepare_data(asked: PrepareData, data_dir: str | None) -> int:
    """Prepares a data set and prints its folder; `--data-dir` may also stand before `prepare`."""
    from cljax import data
    from cljax.cli.setup import UsageError

    try:
        print(data.prepare(asked.name, asked.data_dir or data_dir, archives=asked.archives, verify=asked.verify))
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


def set_xla_flags() -> None:
    """Lets convolutions use all threads on CPU, where jaxlib is of the one version that knows the flag as needed.

    A flag that a jaxlib does not know ends the process, so a library must set none; this is the program. Nothing is
    done where the user has set flags or JAX has been imported.
    """
    if "XLA_FLAGS" in os.environ or "jax" in sys.modules:
        return
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = CONVOLUTION_THREADS


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless the user has chosen a place already.

    Programs compiled for one processor may not run on another, so each kind of processor has a folder of its own (home
    folders are often shared between machines).
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cljax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache / processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def processor() -> str:
    """A name for this kind of processor: what it is, and a digest of what it can do where the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(abilities.encode()).hexdigest()[:12]}"


def complain(console: Console, error: object, code: int) -> int:
    """Prints an error as one paragraph; returns the exit code."""
    console.print(f"[bold red]cljax:[/] {escape(str(error))}", highlight=False)
    return code
