"""Weights & Biases: a record in the run folder, which `wandb sync` uploads."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udaseg.recipe.load import to_dict
from udaseg.training.callbacks.callback import TrainingState
from udaseg.training.callbacks.loggers.record import RecordLogger


class WandB(RecordLogger):
    """Writes for Weights & Biases, offline unless `WANDB_MODE` says otherwise.

    A kill loses what an offline record has not written yet, and offline records cannot be rewound.
    So one that was not uploaded is written anew, with its id, from the run folder.
    """

    name = "wandb"
    _run: Any = None

    def open(self, state: TrainingState) -> int:
        """Open the record of the run, or a new one; return its last step, or -1."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it uses the network
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "udaseg"),
            name=self.folder.name,
            dir=self.folder,
            id=_earlier_id(self.folder / "wandb", is_offline=mode != "online"),
            resume="allow",
            mode=mode,
            config=to_dict(state.recipe),
            reinit="create_new",  # leaves a run of the caller alone
            settings=wandb.Settings(console="off", silent=True),
        )
        return int(self._run.step) - 1

    def write(self, step: int, values: Mapping[str, float], preview: Path | None) -> None:
        """Write the numbers of a step, and its preview, if there is one."""
        import wandb

        picture = {} if preview is None else {"preview": wandb.Image(str(preview))}
        self._run.log({**values, **picture}, step=step, commit=True)

    def close(self, state: TrainingState, error: BaseException | None) -> None:
        """Close the record."""
        self._run.finish(exit_code=0 if error is None else 1)
        self._run = None


def _earlier_id(folder: Path, *, is_offline: bool) -> str | None:
    """Return the id of the record in a folder, if it can be continued; delete what is not uploaded.

    An offline run cannot continue a record that is on a server, since it cannot ask for its steps.
    """
    records = sorted(folder.glob("*run-*-*"), key=lambda path: path.name.removeprefix("offline-"))
    local = [path for path in records if _is_local(path)]
    for path in local:
        shutil.rmtree(path)
    if not records or (is_offline and local != records):
        return None
    return records[-1].name.rpartition("-")[2]


def _is_local(record: Path) -> bool:
    return record.name.startswith("offline-") and not any(record.glob("*.synced"))
