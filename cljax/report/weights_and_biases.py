"""The same numbers as TensorBoard's, sent to Weights & Biases as a run goes on."""

from __future__ import annotations

import os
from typing import Any

from cljax.report import tensorboard
from cljax.types import Method, Schedule


def check() -> None:
    """Says what is missing, before a run begins: the package, or a key where it is to send at once.

    Raises:
      ValueError: naming it.
    """
    tensorboard.check("wandb")
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online":
        try:
            wandb.login()
        except wandb.errors.Error as error:
            raise ValueError(
                f"--wandb cannot log in: {error} Or give the key as WANDB_API_KEY, or keep the run's numbers on disk "
                f"with WANDB_MODE=offline."
            ) from None


class Sink(tensorboard.Sink):
    """Logs each visit of a method's run when it has ended; as `tensorboard.Sink`, with the same names.

    A seed is a run of its own, `METHOD seed N`, in the group of the run folder; its horizontal axis is `epochs`, those
    of the whole stream. W&B's variables say the rest: WANDB_PROJECT (cljax, where it is not set), WANDB_MODE=offline.
    A run that is taken up writes on in new runs of the same names.

    Args:
      folder: the run folder, whose name the group has.
      method: the method.
      schedule: the stream's.
      config: by which W&B finds and groups runs.
    """

    option = "wandb"

    def __init__(self, folder: str | os.PathLike, method: Method, schedule: Schedule, config: dict[str, Any]) -> None:
        super().__init__(folder, method, schedule)
        self._config = config

    def _open(self, seed: int) -> Any:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cljax"),
            group=self._folder.name,
            name=f"{self._method} seed {seed}",
            config={**self._config, "method": self._method, "seed": seed},
            reinit="create_new",
        )
        run.define_metric("*", step_metric="epochs")
        return Writer(run)


class Writer:
    """A run of W&B as a writer of event files."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Logs a value; W&B's own steps must not go back, as epochs do from one name to the next."""
        self._run.log({name: value, "epochs": step})

    def flush(self) -> None:
        """Nothing: W&B sends by itself."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
