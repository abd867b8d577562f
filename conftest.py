"""Strictness for every test and doctest: no silent promotion of dtypes or ranks.

Tests compile hundreds of small programs and run each for an instant, so the compiler's backend optimises less here,
which halves the suite; set `XLA_FLAGS` yourself (empty, for example) to test with full optimisation.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
