"""What is set for the whole process before JAX computes: a flag of the compiler, and where programs are kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Callable

from cljax.cli.options import UsageError
from cljax.files import user_cache

CONVOLUTION_THREADS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def set_up(*, cache: bool, distributed: bool = False) -> None:
    """Sets the process up; to be called before JAX is imported.

    Args:
      cache: whether compiled programs are kept.
      distributed: whether it is one of several processes, which then know of each other.

    Raises:
      UsageError: JAX finds no device, or no other process.
    """
    set_xla_flags()
    if cache:
        use_compilation_cache()
    if distributed:
        join_processes()
    find_devices()


def set_xla_flags() -> None:
    """Lets convolutions use all threads, unless JAX has been imported, and may have computed."""
    if "jax" not in sys.modules:
        use_threads()


def use_threads() -> None:
    """Lets convolutions use all threads on CPU, where jaxlib is of the one version that knows the flag as needed.

    For programs, before JAX computes: a flag that a jaxlib does not know ends the process, so a library must set none.
    Nothing is done where the user has set flags.
    """
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", CONVOLUTION_THREADS)


def join_processes() -> None:
    """Joins the processes that were started with this one, as JAX finds them in the environment.

    Raises:
      UsageError: it finds none.
    """
    import jax

    try:
        if not jax.distributed.is_initialized():
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"--distributed: JAX cannot join the processes of this job ({' '.join(str(error).split())}). Start the "
            f"command by SLURM (srun), Open MPI (mpirun), on GKE or on a TPU pod; on one host leave it out."
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints, where there are several."""
    import jax

    return jax.process_index() == 0


def first_alone(begin: Callable[[], None]) -> None:
    """Has the first of several processes do something, and then the others."""
    import jax

    for turn in (True, False):
        if is_first() == turn:
            begin()
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("cljax began")


def find_devices() -> None:
    """Looks for the devices that JAX is to use, before anything is built for them.

    Raises:
      UsageError: there are none, such as for `JAX_PLATFORMS=cuda` on a machine without a GPU; or a variable of JAX has
        a value that JAX does not know.
    """
    try:
        import jax
    except ValueError as error:
        raise UsageError(f"JAX refuses a JAX_... variable of the environment: {error}. Unset or mend it.") from error

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a plug-in that finds no device; none for the platform
        asked = os.environ.get("JAX_PLATFORMS")
        named = f"JAX_PLATFORMS is {asked!r}, but " if asked else ""
        raise UsageError(
            f"{named}JAX finds no such device here. Unset JAX_PLATFORMS, or set it to cpu, to go on without it; or "
            f"install JAX for the device you have."
        ) from error


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache, unless the user has chosen a place already."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        with contextlib.suppress(ValueError):  # there is no home: nothing is kept
            keep_programs(user_cache() / "compiled")


def keep_programs(folder: pathlib.Path) -> None:
    """Keeps every compiled program, however small, in a folder.

    Programs compiled for one processor may not run on another, so each kind of processor has a sub-folder of its own
    (home folders are often shared between machines).
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder / processor()))
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
