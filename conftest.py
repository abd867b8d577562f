"""Strictness for every test and doctest, two tiers of them, and little memory.

No dtype and no rank is promoted in silence, and in a test a warning is an error. Elsewhere one is not, for a plug-in of
pytest that is none of ours may warn as well.

`pytest -m quick` leaves out what is named in `SLOW`: a new test is quick until it is named there.

Tests compile hundreds of small programs and run each for an instant, so the compiler's backend optimises less here,
which halves the suite; has no fusion emitters where that can be chosen, which saves a third of the rest; and generates
the code of each program in one piece and for one thread, which saves a quarter of the compilation. Set `XLA_FLAGS`
yourself (empty, for example) to test with full optimisation. With the first two a compiled `jnp.maximum` may lose its
gradient, and in another way without them: `docs/compiled_maximum.md`; `tests/networks/test_gradients.py` keeps watch.
Compiled programs are kept in `.pytest_cache`, for the other workers and the next time. The collector of cycles is off:
it looked through programs and traces, many objects and few cycles, for a tenth of the time. See `give_back`. A context
of the compiler's is kept for the next program, where JAX has the place: a new one is a fifth of a small program.
"""

import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    " --xla_disable_hlo_passes=cpu-parallel-task-assigner"
    # and one that later versions stop at, for they do not know it
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""),
)

import jax
import pytest
from jax._src.interpreters import mlir

from cljax.cli.process import keep_programs

HERE = pathlib.Path(__file__).parent
collect_ignore = [] if importlib.util.find_spec("torch") else ["experiments/benchmark"]  # of the extra `benchmark`
SLOW = (  # starts of names, as `pytest -v` prints them: whole runs, other processes, pictures; of doctests, what is
    # built of primitives
    "cljax/cli/",
    "cljax/data/",
    "cljax/methods/",
    "cljax/networks/",
    "cljax/report/",
    "cljax/storage/",
    "cljax/training/",
    "experiments/",
    "tests/networks/test_adaptors.py",
    "tests/networks/test_alexnet_vgg.py",
    "tests/networks/test_convolution.py",
    "tests/networks/test_export.py",
    "tests/networks/test_gates.py",
    "tests/networks/test_gradients.py",
    "tests/networks/test_layers.py",
    "tests/networks/test_mixed_precision.py",
    "tests/networks/test_networks.py",
    "tests/networks/test_own_networks.py",
    "tests/networks/test_resnet.py",
    "tests/test_attention.py::test_the_gradient",
    "tests/test_augmentation.py::test_each_step_sees",
    "tests/test_bad_input.py",
    "tests/test_both_kinds.py",
    "tests/test_checkpoints.py",
    "tests/test_cli.py",
    "tests/test_clnp.py",
    "tests/test_combine.py",
    "tests/test_conformance.py::test_steps_in_float64",
    "tests/test_data.py",
    "tests/test_den.py",
    "tests/test_df_cnn.py",
    "tests/test_ewc_lfl.py",
    "tests/test_experiments.py",
    "tests/test_filters.py::test_adjoint",
    "tests/test_growing.py",
    "tests/test_hard_cases.py",
    "tests/test_hat.py",
    "tests/test_host.py",
    "tests/test_icarl.py",
    "tests/test_imm.py",
    "tests/test_keys.py::test_a_run_and_its_stream",
    "tests/test_learned.py",
    "tests/test_loop.py::test_a_run_is_its_visits",
    "tests/test_losses.py::test_an_l1_loss",
    "tests/test_losses.py::test_sums_of_half",
    "tests/test_lwf.py",
    "tests/test_lwf_baselines.py",
    "tests/test_lwf_variants.py",
    "tests/test_lwm.py",
    "tests/test_many_devices.py::test_two_processes",
    "tests/test_many_devices.py::test_what_holds",
    "tests/test_memory.py::test_long_features",
    "tests/test_methods.py",
    "tests/test_methods_and_networks.py",
    "tests/test_network_expansion.py",
    "tests/test_packnet.py",
    "tests/test_pictures.py",
    "tests/test_plots.py",
    "tests/test_precision.py",
    "tests/test_prepared.py",
    "tests/test_printing.py",
    "tests/test_progressive.py",
    "tests/test_readme.py",
    "tests/test_references.py::test_networks_by_name",
    "tests/test_references.py::test_one_s_own",
    "tests/test_renaming.py::test_a_torch",
    "tests/test_replay.py",
    "tests/test_report.py",
    "tests/test_report_files.py",
    "tests/test_results.py",
    "tests/test_sequences.py::test_multi_label_tasks",
    "tests/test_si_mas.py",
    "tests/test_storage.py",
    "tests/test_streams.py::test_bits_are_equal_across",
    "tests/test_streams.py::test_stacked_seeds",
    "tests/test_superposition.py",
    "tests/test_sweep.py",
    "tests/test_tensor_factorization.py",
    "tests/test_tfm.py",
    "tests/test_training.py",
    "tests/test_tuning.py",
    "tests/test_voc.py",
    "tests/test_website.py::test_every_public",
)
QUICK_ROWS = ("finetune",)
"""The rows of the conformance table that are quick."""

MUCH, MUCH_IN_TABLE, MORE = 2**30, 1.4 * 2**30, 2**28
"""Bytes of a worker beyond which it gives its compiled programs up; rows of the table share many with one another.

Where as many are left then, it does so again when it has taken `MORE`: to look for what is free takes half a second.
"""
LEFT = pytest.StashKey[int]()

gc.disable()
mlir.make_ir_context = functools.cache(getattr(mlir, "make_ir_context", int))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

keep_programs(HERE / ".pytest_cache" / "compiled")
os.environ |= {  # for the processes that tests start, and the commands that they call
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def row_of(item):
    """The row of the conformance table that a test is about, or ''."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("name", "") if "test_conformance.py" in item.nodeid else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """In a test a warning is an error; what is not slow is quick; a row's tests come one after the other.

    A module's tests go to one worker (`--dist loadfile`): what one has compiled the next one uses.
    """
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)  # a test's own filters come after it
        if not item.nodeid.startswith(SLOW) and row_of(item) in ("", *QUICK_ROWS):
            item.add_marker("quick")
    table = sorted((item for item in items if row_of(item)), key=row_of)
    if table:
        first = next(place for place, item in enumerate(items) if row_of(item))
        rest = [item for item in items if not row_of(item)]
        before = sum(not row_of(item) for item in items[:first])
        items[:] = [*rest[:before], *table, *rest[before:]]


def pytest_collection_finish():
    """What is imported by now stays: `give_back` need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What a module, or a row of the table, keeps goes with it; compiled programs, where they take much memory."""
    if nextitem is not None and (nextitem.path, row_of(nextitem)) == (item.path, row_of(item)):
        return
    for value in vars(getattr(item, "module", item)).values():
        if callable(getattr(value, "cache_clear", None)):
            value.cache_clear()
    much = MUCH_IN_TABLE if nextitem is not None and row_of(nextitem) else MUCH
    if resident() > max(much, item.config.stash.get(LEFT, 0) + MORE):
        give_back()
        if resident() > much:
            jax.clear_caches()
            mlir.make_ir_context.cache_clear()
            give_back()
        item.config.stash[LEFT] = resident()


@pytest.fixture(scope="module")
def private_cache(tmp_path_factory):
    """The user's cache and data folder are none of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TFDS_DATA_DIR", raising=False)
        yield


def give_back():
    """Gives freed memory back to the system: glibc keeps it, here most of a gigabyte."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


def resident():
    """Bytes of this process in memory; where the system does not tell, too many."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 2 * MUCH
