"""An experiment: all that a run drives, made of the options and checked, before anything is compiled.

Whatever is heavy to import is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cljax.cli.asked import Curve, constructors
from cljax.cli.learned import like_of, past_of, standardised
from cljax.cli.making import (
    add_tasks,
    amend,
    convolvable,
    data_options,
    describe,
    load_data,
    make_augment,
    make_network,
    make_optimizer,
    make_settings,
    make_stream,
)
from cljax.cli.options import DEFAULT_METHODS, Options, UsageError, seed_numbers
from cljax.cli.parameters import parameters_of
from cljax.cli.past import check_past
from cljax.references import is_reference

if TYPE_CHECKING:
    import optax

    from cljax import training
    from cljax.types import Method, Network, Stream


PAPER_NORMALIZATION = {"tfm": ("feature",)}
"""Of the methods of which normalisation is a part, those that their papers have."""


class Experiment(NamedTuple):
    """All that a run drives.

    Attributes:
      curves: what is driven, one after the other.
      options: settled.
      config: what decides the results, as JSON has it.
      parameters: those of `--set`, by method.
      methods: by name.
      networks: what a record says of each method's.
      left_out: why a method that was not asked for by name does not fit.
      seeds: pairs of a seed and its stream.
      settings: of the training loop.
      optimizer: at unit rate.
      vectorize: whether seeds run side by side.
      start: the parameters of `--init`, or None.
    """

    curves: list[Curve]
    options: Options
    config: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    networks: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    seeds: list[tuple[int, Stream]]
    settings: training.Settings
    optimizer: optax.GradientTransformation
    vectorize: bool
    start: dict[str, Any] | None

    @property
    def swept(self) -> bool:
        """Whether numbers are varied."""
        return "sweep" in self.config

    def differs(self, method: str) -> str:
        """What a method's run lacks of its paper's method, or has beside it, to follow its name; mostly empty."""
        from cljax.methods.build import makers, options_of

        first, normalization = method.split("+")[0], self.networks[method]["normalization"]
        whole = normalization in (*PAPER_NORMALIZATION.get(first, (normalization,)), "auto")
        whole &= self.parameters[method].get("feature_normalization") is not False
        size, own = self.methods[method].memory_size, map(options_of, makers(method).values())
        kept = f" with {size} exemplars" if size and not any("memory_size" in options for options in own) else ""
        tuned = "" if self.options.training.tune is None else " tuned"
        return ("" if whole else " without feature normalisation") + kept + tuned

    def past(self, method: str) -> list[training.Past] | None:
        """What each seed goes on from, where the run goes on from another.

        Raises:
          ValueError: it has kept no learner that this run can go on from.
        """
        import jax

        from cljax import streams, training

        if (folder := self.options.data.past) is None:
            return None
        pasts = [past_of(folder, method, seed, stream) for seed, stream in self.seeds]
        tables = self.seeds[0][1].tables
        like = like_of(self.methods[method], self.optimizer, tables, streams.max_examples(tables))
        jax.eval_shape(training.extend, like, pasts[0].learner)
        return pasts

    def shares(self, curve: Curve) -> tuple[int, int]:
        """Among how many devices a curve's seeds are shared, and each batch.

        Raises:
          ValueError: there are not so many devices as asked for, or they cannot share the work.
        """
        import jax

        from cljax.training import mesh

        asked, there = self.options.training.devices, jax.devices()
        all_of_them = asked is not None or jax.process_count() > 1
        if (asked or len(there)) == 1:
            return 1, 1
        if (asked or 1) > len(there):
            raise ValueError(
                f"--devices is {asked}, but JAX has {len(there)} here ({there[0].device_kind}). Give at most so many."
            )
        seeds = len(self.seeds) * max(1, len(curve.values)) if self.vectorize else 1
        batch_size = self.settings.batch_size
        return mesh.share_devices(asked or len(there), seeds, batch_size, fewer=not all_of_them)


def make_experiment(curves: Sequence[Curve], options: Options, config: dict[str, Any]) -> Experiment:
    """Builds methods, streams and settings, and checks them against each other. Nothing is compiled.

    A method that was named and does not fit is an error; of the default ones, and of all, it is left out.

    Args:
      curves: of `curves_of`.
      options: settled, their values checked.
      config: of `configuration`.

    Raises:
      UsageError: and other `ValueError`s, where something does not fit.
    """
    import jax

    from cljax import training
    from cljax.methods.build import build
    from cljax.storage import checkpoints

    names = tuple(config["methods"])
    check_past(options, names, swept="sweep" in config)
    by_name = "sweep" in config or names not in (DEFAULT_METHODS, tuple(constructors()))
    anew = options.training.init is not None and options.data.past is None
    given = checkpoints.load_params(options.training.init) if anew else None  # type: ignore[arg-type]
    parameters = parameters_of(names, options.training)
    driver = choose_driver(options)
    dataset = load_data(options, driver)
    augment = make_augment(options.training.augment, dataset.train_images)
    settings = make_settings(options.training)._replace(augment=augment)
    auto = jax.default_backend() != "cpu" and driver == "scan"
    side_by_side = {"yes": True, "no": False, "auto": auto}[options.training.vectorize]
    optimizer = make_optimizer(options.training)

    @functools.cache
    def streams_of(head: Literal["auto", "shared", "task"]) -> list[tuple[int, Stream]]:
        chosen = dataclasses.replace(options, data=dataclasses.replace(options.data, head=head))
        made = [(seed, make_stream(dataset, chosen, seed)) for seed in seed_numbers(options.training)]
        made = [(seed, add_tasks(stream, options, seed)) for seed, stream in made]
        return standardised(made, options, names[0])

    def fitted(kind: str, head: Literal["auto", "shared", "task"]) -> Experiment:
        seeds = streams_of(head)

        @functools.cache
        def network_of(normalization: Any) -> tuple[Network, dict[str, Any]]:
            network = dataclasses.replace(options.network, network=kind, normalization=normalization)
            made = make_network(network, seeds[0][1])
            return made, describe(network, made)

        methods: dict[str, Method] = {}
        networks: dict[str, dict[str, Any]] = {}
        left_out: dict[str, str] = {}
        for name in names:
            for normalization in normalizations(name.split("+")[0], kind, options.network.normalization):
                try:
                    network, facts = network_of(normalization)
                    method = build(name, network, parameters[name])
                    if given is not None:
                        training.given_params(method, given)
                    method = amend(method, options.training, seeds[0][1].schedule)
                    for _, stream in seeds:
                        training.check(method, stream, settings)
                except ValueError as error:
                    left_out.setdefault(name, str(error))
                else:
                    methods[name], networks[name] = method, facts
                    left_out.pop(name, None)
                    break
        stay = [curve for curve in curves if curve.method in methods]
        what = (stay, options, config, parameters, methods, networks, left_out)
        return Experiment(*what, seeds, settings, optimizer, side_by_side, given)

    first, *others = alternatives(options, dataset.images.shape[1:], by_name=by_name)
    experiment = fitted(*first)
    for choice in others:
        if not experiment.left_out:
            break
        other = fitted(*choice)
        experiment = other if len(other.methods) > len(experiment.methods) else experiment
    if experiment.left_out and (by_name or not experiment.methods):
        raise UsageError(next(iter(experiment.left_out.values())))
    for curve in experiment.curves:
        _check_values(curve, experiment)
        experiment.shares(curve)
        experiment.past(curve.method)
    return experiment


def _check_values(curve: Curve, experiment: Experiment) -> None:
    """Raises ValueError where a method has no such number, or refuses one of the values."""
    from cljax import training
    from cljax.methods.build import build, makers, options_of

    if curve.parameter:
        name, method = curve.method, experiment.methods[curve.method]
        grid = [{curve.parameter: value} for value in curve.values]
        training.check_hypers(method, grid, grid)
        part, _, parameter = curve.parameter.rpartition(".")
        made = makers(name)
        if parameter in options_of(made[part or next(iter(made))]):
            for one in grid:
                build(name, method.network, {**experiment.parameters[name], **one})


def normalizations(method: str, network: str, asked: str) -> tuple[str, ...]:
    """The normalisations of a method's network, the one to prefer first; 'auto' is that which one's own has by itself.

    Example:
      >>> normalizations('tfm', 'mlp', 'auto'), normalizations('lwf', 'mlp', 'auto'), normalizations('x', 'mlp', 'none')
      (('feature', 'none'), ('none',), ('none',))
      >>> normalizations('lwf', 'resnet32', 'auto'), normalizations('tfm', 'mine:make', 'auto')
      (('batch', 'none'), ('feature', 'auto'))
    """
    if asked != "auto":
        return (asked,)
    batch = network.startswith(("resnet", "clnp_wide"))
    usual = ("auto",) if is_reference(network) else ("batch", "none") if batch else ("none",)
    return (*PAPER_NORMALIZATION.get(method, ()), *usual)


def alternatives(options: Options, shape: tuple[int, ...], *, by_name: bool) -> list[tuple[Any, Any]]:
    """The kinds of network and of head that the options leave open, those to prefer first.

    Example:
      >>> from cljax.cli.options import Data
      >>> alternatives(Options(data=Data(scenario='permuted')), (8, 8, 1), by_name=True)
      [('mlp', 'shared'), ('mlp', 'task'), ('cnn', 'shared'), ('cnn', 'task')]
    """
    kind, head, permuted = options.network.network, options.data.head, options.data.scenario == "permuted"
    if head != "auto" and not permuted:
        raise UsageError(f"--head {head} is for --scenario permuted; --scenario task or domain says it otherwise.")
    kinds = ["mlp", *(["cnn"] if convolvable(options.network, shape) else [])] if kind == "auto" else [kind]
    heads = ["shared", *(["task"] if by_name else [])] if head == "auto" and permuted else [head]
    return [(kind, head) for kind in kinds for head in heads]


def choose_driver(options: Options) -> str:
    """The driver: where `--driver auto`, 'host' for data that as an array would take half of the memory or more.

    Of several processes, which call this together, the first one's memory decides.

    Raises:
      UsageError: the host driver with seeds side by side.
    """
    from cljax import data
    from cljax.training import mesh
    from cljax.training.bounds import available_memory

    chosen = options.training.driver
    if chosen == "auto":
        memory = available_memory()
        names = options.data.data if len(options.data.data) == 1 else ()  # several are made one array
        size = sum(data.decoded_bytes(name, **data_options(options)) for name in names)
        chosen = "host" if mesh.agreed(memory is not None and size >= memory / 2) else "scan"
    if chosen == "host" and options.data.past is not None:
        raise UsageError(
            f"With --from the examples of all tasks are joined on the device, but they are read from disk as the run "
            f"goes on (--driver {options.training.driver}). Give --driver scan; they must fit."
        )
    if chosen == "host" and options.training.vectorize == "yes":
        raise UsageError(
            f"--vectorize yes needs the data on the device, but they are read from disk as the run goes on "
            f"(--driver {options.training.driver}). Leave out --vectorize, or give --driver scan where they fit."
        )
    return chosen
