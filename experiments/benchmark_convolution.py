"""Gradients of convolution and pooling: cljax's own beside XLA's native ones, outside and inside `lax.scan`.

    python -m experiments.benchmark_convolution

Half a minute on two cores. Expected on CPU: inside a scan the native gradients are tens of times slower, cljax's cost
there what the native ones cost outside (ratio about 1); pooling's gradient is 7 to 16 times faster. Times are medians,
in milliseconds a step. Writes `experiments/results/convolution_benchmark_cpu.json` (or `_gpu`).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from cljax.networks import convolve, max_pool
from experiments.saving import command_line, write_result


@dataclasses.dataclass(frozen=True)
class Config:
    """The benchmark: shape of the maps and kernels, steps of a scan, and timed repetitions."""

    batch: int = 16
    size: int = 32
    channels: int = 32
    kernel: int = 3
    steps: int = 4
    repeats: int = 7
    seed: int = 0
    out: str = "experiments"


def native_convolution(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def native_pool(inputs: jax.Array, window: int, pad: int) -> jax.Array:
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return lax.reduce_window(inputs, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), pads)


def gradients(convolution: Callable) -> Callable:
    """Both gradients of two stacked convolutions, so that the inputs' gradient is needed."""
    return jax.grad(lambda kernel, inputs: jnp.sum(convolution(convolution(inputs, kernel), kernel) ** 2), (0, 1))


def scanned(convolution: Callable) -> Callable:
    def step(kernel, inputs):
        kernel_gradient, input_gradient = gradients(convolution)(kernel, inputs)
        return kernel - 1e-6 * kernel_gradient, input_gradient.sum()

    return lambda kernel, stack: lax.scan(step, kernel, stack)


def milliseconds(function: Callable, *arguments: jax.Array, repeats: int, steps: int = 1) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times) / steps


def main(config: Config) -> None:
    generator = np.random.default_rng(config.seed)
    shape = (config.batch, config.size, config.size, config.channels)
    inputs = jnp.asarray(generator.normal(size=shape).astype(np.float32))
    kernel_shape = (config.kernel, config.kernel, config.channels, config.channels)
    kernel = jnp.asarray(0.05 * generator.normal(size=kernel_shape).astype(np.float32))
    stack = jnp.stack([inputs] * config.steps)

    outside = {
        name: milliseconds(gradients(function), kernel, inputs, repeats=config.repeats)
        for name, function in (("cljax", convolve), ("native", native_convolution))
    }
    inside = {
        name: milliseconds(scanned(function), kernel, stack, repeats=repeats, steps=config.steps)
        for name, function, repeats in (("cljax", convolve, config.repeats), ("native", native_convolution, 3))
    }
    timings = [
        ("convolution gradients, outside a scan, against native outside", outside["cljax"], outside["native"]),
        ("convolution gradients, inside a scan, against native inside", inside["cljax"], inside["native"]),
        ("convolution gradients, inside a scan, against native outside", inside["cljax"], outside["native"]),
    ]
    for window, pad in ((2, 0), (3, 1)):
        padding = ((pad, pad), (pad, pad))
        ours = jax.grad(lambda x, w=window, p=padding: jnp.sum(max_pool(x, window=w, stride=2, padding=p) ** 2))
        theirs = jax.grad(lambda x, w=window, p=pad: jnp.sum(native_pool(x, w, p) ** 2))
        times = [milliseconds(function, inputs, repeats=config.repeats) for function in (ours, theirs)]
        timings.append((f"max-pooling gradient, {window}x{window}, stride 2, padding {pad}", times[0], times[1]))

    rows = [
        {"case": case, "cljax": round(ours, 3), "reference": round(theirs, 3), "ratio": round(ours / theirs, 4)}
        for case, ours, theirs in timings
    ]
    record = {
        "rows": rows,
        "unit": "milliseconds a step",
        "reference": "lax.conv_general_dilated and lax.reduce_window with their native gradients",
    }
    for row in rows:
        print(f"{row['case']}: {row['cljax']:.1f} against {row['reference']:.1f} ms, ratio {row['ratio']:.3f}")
    write_result(config, "convolution_benchmark", record, command_line("experiments.benchmark_convolution"))


if __name__ == "__main__":
    main(tyro.cli(Config))
