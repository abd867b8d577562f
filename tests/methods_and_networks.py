"""Which methods work with which networks, as docs/methods_and_networks.md has it; nothing is compiled.

python -m tests.methods_and_networks    # writes the page's table anew, after a new method
"""

from __future__ import annotations

import pathlib

import flax.linen as nn
import jax

from cljax import methods, networks
from cljax.types import Sizes

PAGE = pathlib.Path(__file__).parents[1] / "docs/methods_and_networks.md"
MARK = "<!-- the table: python -m tests.methods_and_networks -->\n"


class _Own(nn.Module):
    """A user's module of which no gates are named."""

    @nn.compact
    def __call__(self, images):
        values = nn.relu(nn.Conv(4, (3, 3))(images))
        return nn.Dense(2)(nn.relu(nn.Dense(5)(values.reshape(values.shape[0], -1))))


IMAGES = (8, 8, 1)
NETWORKS = {
    "mlp": lambda: networks.mlp(IMAGES, 2, hidden=(5, 4)),
    "cnn": lambda: networks.cnn(IMAGES, 2, channels=((3,), (4,)), dense=(5,)),
    "cnn, batch norm": lambda: networks.cnn(IMAGES, 2, channels=((3,), (4,)), dense=(5,), normalization="batch"),
    "resnet, batch norm": lambda: networks.resnet(IMAGES, 2, blocks=(1, 1), channels=(3, 4)),
    "resnet, feature norm": lambda: networks.resnet(IMAGES, 2, blocks=(1, 1), channels=(3, 4), normalization="feature"),
    "one's own, no gates": lambda: networks.from_linen(_Own(), IMAGES, outputs=2, train_argument=None),
    "shared head": lambda: networks.mlp(IMAGES, 2, hidden=(5, 4), per_task=()),
}


def reason(build, network) -> str | None:
    """Why a method refuses a network, or None where it takes it and its learner can be made."""
    try:
        method = build(network)
    except ValueError as error:
        return " ".join(str(error).split())
    jax.eval_shape(lambda key: method.init(key, Sizes(3, 2, {"train": 8, "validation": 4})), jax.random.key(0))
    return None


def table() -> str:
    """The table and the reasons below it, as Markdown."""
    made = {name: make() for name, make in NETWORKS.items()}
    made = {name: network._replace(init=jax.jit(network.init)) for name, network in made.items()}  # traced once each
    rows, reasons = [], []
    for name in sorted(methods.__all__):
        cells = []
        for network in made.values():
            said = reason(getattr(methods, name), network)
            if said is not None and said not in reasons:
                reasons.append(said)
            cells.append("yes" if said is None else f"no ({reasons.index(said) + 1})")
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    head = f"| | {' | '.join(made)} |\n|---|{'---|' * len(made)}"
    notes = "\n".join(f"{number}. {text}" for number, text in enumerate(reasons, 1))
    return f"{head}\n" + "\n".join(rows) + f"\n\nWhy not, as the methods say it:\n\n{notes}\n"


if __name__ == "__main__":
    before, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(before + MARK + "\n" + table())
