"""MLflow: a record in its database."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from udaseg.files import write_text
from udaseg.recipe.load import to_dict
from udaseg.recipe.stages import leaves
from udaseg.training.callbacks.callback import TrainingState
from udaseg.training.callbacks.loggers.record import RecordLogger

_STEP, _PARAMS_PER_CALL = "udaseg.step", 100


class MLflow(RecordLogger):
    """Writes for MLflow, into the database that `MLFLOW_TRACKING_URI` names.

    Without one that is `mlflow.db` in the folder where udaseg was started. A tag of the record has
    its last step.
    """

    name = "mlflow"
    _client: Any = None
    _run = ""

    def open(self, state: TrainingState) -> int:
        """Open the record of the run, or a new one; return its last step, or -1."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it uses the network
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it tells of its tables
        self._client = mlflow.MlflowClient()
        id_file = self.folder / "mlflow.txt"
        try:
            run = self._client.get_run(id_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, mlflow.MlflowException):  # none yet, or not in this database
            run = self._create(state)
            write_text(id_file, run.info.run_id)
        self._run = run.info.run_id
        self._client.update_run(self._run, "RUNNING")
        return int(run.data.tags.get(_STEP, -1))

    def write(self, step: int, values: Mapping[str, float], preview: Path | None) -> None:
        """Write the numbers of a step, and its preview, if there is one."""
        from mlflow.entities import Metric, RunTag

        now = round(time.time() * 1000)
        metrics = [Metric(_allowed(tag), value, now, step) for tag, value in values.items()]
        self._client.log_batch(self._run, metrics, tags=[RunTag(_STEP, str(step))])
        if preview is not None:
            with Image.open(preview) as picture:
                self._client.log_image(self._run, picture, key="preview", step=step)

    def close(self, state: TrainingState, error: BaseException | None) -> None:
        """Close the record."""
        stopped = "FINISHED" if state.step == state.recipe.steps else "KILLED"
        self._client.set_terminated(self._run, stopped if error is None else "FAILED")

    def _create(self, state: TrainingState) -> Any:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment(), run_name=self.folder.name)
        settings = leaves(to_dict(state.recipe))
        params = [Param(_allowed(key), str(value)) for key, value in settings.items()]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            part = params[start : start + _PARAMS_PER_CALL]
            self._client.log_batch(run.info.run_id, params=part)
        return run

    def _experiment(self) -> str:
        """Return the id of the experiment that `MLFLOW_EXPERIMENT_NAME` names."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "udaseg")
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))


def _allowed(tag: str) -> str:
    """Return a tag without the characters that MLflow refuses."""
    return re.sub(r"[^\w./ :-]", "_", tag)
