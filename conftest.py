"""Strictness for every test and doctest: no silent promotion of dtypes or ranks.

Tests compile hundreds of small programs and run each for an instant, so the compiler's backend optimises less here,
which halves the suite, and has no fusion emitters where that can be chosen, which saves a third of the rest; set
`XLA_FLAGS` yourself (empty, for example) to test with full optimisation. With both flags a compiled `jnp.maximum` may
lose its gradient, and in another way without them: `docs/compiled_maximum.md`; `tests/networks/test_gradients.py` keeps
watch. Compiled programs are kept in `.pytest_cache`, for the other workers and the next time.
"""

import importlib.metadata
import os
import pathlib

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"  # and what later versions stop at, for they do not know it
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""),
)

import jax

from cljax.cli.process import keep_programs

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

keep_programs(pathlib.Path(__file__).parent / ".pytest_cache" / "compiled")
