"""Strictness for every test and doctest, two tiers of them, and little memory.

No dtype and no rank is promoted in silence, and in a test a warning is an error. Elsewhere one is not, for a plug-in of
pytest that is none of ours may warn as well.

`pytest -m quick` leaves out what is named in `SLOW`: a new test is quick until it is named there.

Tests compile hundreds of small programs and run each for an instant, so the compiler's backend optimises less here,
which halves the suite, and has no fusion emitters where that can be chosen, which saves a third of the rest; set
`XLA_FLAGS` yourself (empty, for example) to test with full optimisation. With both flags a compiled `jnp.maximum` may
lose its gradient, and in another way without them: `docs/compiled_maximum.md`; `tests/networks/test_gradients.py` keeps
watch. Compiled programs are kept in `.pytest_cache`, for the other workers and the next time.
"""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"  # and what later versions stop at, for they do not know it
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""),
)

import jax
import pytest

from cljax.cli.process import keep_programs

HERE = pathlib.Path(__file__).parent
SLOW = (  # starts of names, as `pytest -v` prints them: whole runs, other processes, pictures
    "experiments/",
    "tests/networks/test_export.py",
    "tests/networks/test_gradients.py",
    "tests/test_augmentation.py::test_each_step_sees",
    "tests/test_both_kinds.py",
    "tests/test_checkpoints.py",
    "tests/test_cli.py",
    "tests/test_clnp.py",
    "tests/test_combine.py",
    "tests/test_conformance.py::test_fine_tuning",
    "tests/test_data.py",
    "tests/test_df_cnn.py",
    "tests/test_experiments.py",
    "tests/test_hard_cases.py",
    "tests/test_host.py",
    "tests/test_keys.py::test_a_run_and_its_stream",
    "tests/test_lwf.py",
    "tests/test_lwf_baselines.py",
    "tests/test_lwf_variants.py",
    "tests/test_lwm.py",
    "tests/test_methods.py",
    "tests/test_pictures.py",
    "tests/test_plots.py",
    "tests/test_prepared.py",
    "tests/test_readme.py",
    "tests/test_replay.py",
    "tests/test_report.py",
    "tests/test_report_files.py",
    "tests/test_storage.py",
    "tests/test_sweep.py",
    "tests/test_tfm.py",
    "tests/test_training.py",
    "tests/test_voc.py",
)
QUICK_ROWS = ("finetune", "freezing")
"""The rows of the conformance table that are quick."""

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

keep_programs(HERE / ".pytest_cache" / "compiled")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """In a test a warning is an error; what is not slow is quick."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)  # a test's own filters come after it
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        row = parameters.get("name") if "test_conformance.py" in item.nodeid else None
        if not item.nodeid.startswith(SLOW) and (row is None or row in QUICK_ROWS):
            item.add_marker("quick")


@pytest.fixture(scope="module", autouse=True)
def _forget(request):
    """What a module has compiled and kept goes with it, and its memory back to the system."""
    yield
    for value in vars(request.module).values():
        if callable(getattr(value, "cache_clear", None)):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # glibc keeps what is freed, here most of a gigabyte
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
