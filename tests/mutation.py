"""Mutation testing: do the tests see a fault of one place in the code that they are about?

`python -m tests.mutation --sample 200 --seed 0` changes one place of one module at a time (`<` to `<=`, `+` to `-`, 0
to 1, an axis, the arms of a `where`, a keyword left out, a statement deleted, ...), runs the tests of `TESTS` that are
about that module, and lists the mutants that no test noticed. It is no test and no part of CI; `README.md` beside it
has the last figure. It needs a system that can fork: what is heavy to import is imported once, and each mutant is a
child, which imports cljax anew. No file is changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.machinery
import importlib.util
import math
import os
import pathlib
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Iterator

import pytest

METRICS = ("curves", "intervals", "matrix", "ranking", "predictions", "resources")
TESTS = {
    ("losses",): ("test_losses.py",),
    ("attention",): ("test_attention.py",),
    ("ownership.masks",): ("test_masks.py",),
    ("ownership.gates",): ("test_ownership.py",),
    ("transforms",): ("test_transforms.py",),
    ("filters",): ("test_filters.py",),
    tuple(f"metrics.{name}" for name in METRICS): ("test_metrics.py", "test_precision.py"),
    ("task_params",): ("test_task_params.py",),
    ("memory",): ("test_memory.py",),
    ("training.step",): ("test_train_step.py",),
    ("training.evaluation",): ("test_evaluation.py",),
    ("streams.sampling",): ("test_streams.py",),
}
"""The modules of each group, and the files of tests about them; the modules' own doctests are run as well."""

HEAVY = ("chex", "flax.linen", "flax.nnx", "hypothesis", "jax.numpy", "numpy", "optax", "scipy.special")
OPTIONS = "-x -n0 --tb=line --assert=plain -p no:benchmark -p no:cacheprovider --hypothesis-seed=0"
LIBRARY = ("jax", "jnp", "lax", "np", "math", "max", "min", "abs")
SWAPS = (
    "Pow Mult, Mod Mult, FloorDiv Mult, Mult Div, Add Sub, BitAnd BitOr, LShift RShift, And Or, Lt LtE, Gt GtE, "
    "Eq NotEq, Is IsNot, In NotIn, min max, minimum maximum, argmin argmax, any all, round floor, floor ceil"
)
OTHER = {old: new for pair in SWAPS.split(", ") for old, new in (pair.split()[::-1], pair.split())}


def replacements(node: ast.AST, function: ast.FunctionDef | None) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(ops=[op, *rest]) if type(op).__name__ in OTHER:
            yield _with(node, ops=[_other(op), *rest])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op).__name__ in OTHER:
            yield _with(node, op=_other(op))
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value * 10 if 0 < node.value < 0.01 else node.value + 1)
            if node.value:
                yield ast.UnaryOp(ast.USub(), node)
        case ast.Return(value=ast.AST()) if function and function.args.args:
            first = function.args.args[0].arg
            if ast.unparse(node.value) != first:
                yield ast.Return(ast.Name(first, ast.Load()))
        case ast.Expr() | ast.AugAssign() | ast.If():
            yield ast.Pass()
        case ast.Assign() if _names(node.value) & {name for target in node.targets for name in _names(target)}:
            yield ast.Pass()  # it replaces a value: without any other assignment a name would be missing
        case ast.keyword(arg="axis", value=ast.Constant() | ast.UnaryOp() as axis):
            yield _with(node, value=ast.Constant(-1 if ast.unparse(axis) == "0" else 0))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            if name == "where" and len(node.args) == 3:
                yield _with(node, args=[node.args[0], node.args[2], node.args[1]])
            if name in OTHER:
                field = "attr" if isinstance(node.func, ast.Attribute) else "id"
                yield _with(node, func=_with(node.func, **{field: OTHER[name]}))
            library = ast.unparse(node.func).split(".")[0] in LIBRARY
            if library and node.args and not isinstance(node.args[0], ast.Starred):
                yield node.args[0]
            for keyword in (each for each in node.keywords if each.arg != "strict"):
                yield _with(node, keywords=[each for each in node.keywords if each is not keyword])


def _other(op: ast.AST) -> ast.AST:
    return getattr(ast, OTHER[type(op).__name__])()


def _with(node: ast.AST, **fields) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def mutants(tree: ast.AST, function: ast.FunctionDef | None = None) -> Iterator[tuple[ast.AST, str, object, ast.AST]]:
    """All `(parent, field, index or None, replacement)` of a module, but in annotations, messages and docstrings.

    An axis becomes the first one (the first one the last), for -1 and 1 are the same axis of two; and `strict` of
    `zip`, a check of our own lengths, stays.
    """
    if isinstance(tree, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(tree, ast.FunctionDef):
        function = tree
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                continue  # a docstring
            for new in replacements(node, function):
                if not (isinstance(tree, ast.UnaryOp) and isinstance(new, ast.UnaryOp)):  # --1 is 1
                    yield tree, field, index, new
            if not (isinstance(node, ast.keyword) and node.arg in ("axis", "strict")):
                yield from mutants(node, function)


def mutate(module: str, number: int | None) -> tuple[ast.Module, str]:
    """The syntax tree of a module's mutant of this number (None: of the module itself), and what it changes."""
    tree = ast.parse(_path(module).read_text())
    if number is None:
        return tree, f"{module}, unchanged"
    parent, field, index, new = list(mutants(tree))[number]
    place = getattr(parent, field)
    old = place if index is None else place[index]
    text = f"{module}:{getattr(old, 'lineno', getattr(parent, 'lineno', '?'))}: {_short(old)} -> {_short(new)}"
    if index is None:
        setattr(parent, field, ast.copy_location(new, old))
    else:
        place[index] = ast.copy_location(new, old)
    return ast.fix_missing_locations(tree), text


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 90 else text[:87] + "..."


def _path(module: str) -> pathlib.Path:
    return pathlib.Path("cljax", *module.split(".")).with_suffix(".py")


class Mutated(importlib.machinery.SourceFileLoader):
    """Finds and loads one module, from a syntax tree instead of its file."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        super().__init__(f"cljax.{module}", str(_path(module).resolve()))
        self.tree = tree

    def find_spec(self, name: str, *_):
        """The module's; None of any other."""
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str):
        """Of the tree, under the file's name."""
        return compile(self.tree, self.path, "exec")


def run(module: str, number: int | None, tests: tuple[str, ...], seconds: int) -> tuple[bool, str, str]:
    """Whether the tests fail for a mutant; what it is; and the first test that did, or the end of what they printed."""
    tree, text = mutate(module, number)
    with tempfile.TemporaryFile("w+") as log:
        if not (process := os.fork()):
            code = 70
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # what hangs is ended: it was noticed
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
                sys.meta_path.insert(0, Mutated(module, tree))
                code = int(pytest.main([*OPTIONS.split(), str(_path(module)), *(f"tests/{name}" for name in tests)]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        status = os.waitpid(process, 0)[1]
        log.seek(0)
        lines = log.read().splitlines()
    named = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return bool(status), text, named[0] if named else "\n".join(lines[-20:])


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion."""
    z, p = 1.96, hits / count
    middle, half = p + z * z / 2 / count, z * math.sqrt(p * (1 - p) / count + (z / 2 / count) ** 2)
    return tuple(max(0.0, min(1.0, (middle + sign * half) / (1 + z * z / count))) for sign in (-1, 1))


def main() -> None:
    """Draws as many mutants of each group, and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="mutants, in equal parts of each group of modules")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="a module, such as losses: its group alone")
    parser.add_argument("--list", action="store_true", help="list the mutants of the sample, and run nothing")
    options = parser.parse_args()
    groups = {modules: tests for modules, tests in TESTS.items() if not options.only or options.only in modules}
    survivors, died, total = [], 0, 0
    for modules, tests in groups.items():
        numbers = {module: len(list(mutants(ast.parse(_path(module).read_text())))) for module in modules}
        every = [(module, number) for module in modules for number in range(numbers[module])]
        drawn = random.Random(f"{options.seed} {modules}").sample(every, min(len(every), options.sample // len(groups)))
        if options.list:
            print(*(mutate(*mutant)[1] for mutant in drawn), sep="\n")
            continue
        began = os.times().children_user
        for module in {module for module, _ in drawn}:
            noticed, _, what = run(module, None, tests, 600)
            if noticed:
                raise SystemExit(f"The tests of {module} fail without any change:\n{what}")
        seconds = 60 + 5 * int(os.times().children_user - began)
        lived = []
        for module, number in drawn:
            noticed, text, what = run(module, number, tests, seconds)
            print(f"{'died' if noticed else 'LIVED'}  {text}  {what.splitlines()[-1] if noticed else ''}", flush=True)
            lived += [] if noticed else [text]
        print(
            f"== {', '.join(modules)}: {len(drawn) - len(lived)} of {len(drawn)} died, of {len(every)} that there are"
        )
        survivors, died, total = survivors + lived, died + len(drawn) - len(lived), total + len(drawn)
    if total:
        low, high = interval(died, total)
        print(*survivors, sep="\n")
        print(f"{died} of {total} died: {died / total:.1%}, 95% interval {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    for name in HEAVY:  # nothing of them may compute before the fork: JAX's threads would not be there after it
        importlib.import_module(name)
    main()
