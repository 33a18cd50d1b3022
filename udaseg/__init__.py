"""udaseg: unsupervised domain adaptation for semantic segmentation."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.data.doctor.doctor import Diagnosis, doctor
    from udaseg.data.doctor.findings import Finding
    from udaseg.data.doctor.statistics import SetStatistics
    from udaseg.data.prepare.prepare import prepare
    from udaseg.data.prepare.report import PrepareReport
    from udaseg.data.prepare.rules import CacheOptions, PrepareOptions
    from udaseg.data.prepare.several import SomeDataFailed
    from udaseg.data.prepare.verify import DataVerification, verify_data
    from udaseg.evaluation.evaluate import EvaluationOptions, evaluate
    from udaseg.evaluation.score_predictions import score_predictions
    from udaseg.evaluation.scores import ScoringOptions
    from udaseg.evaluation.submission import Submission, SubmissionOptions, submit
    from udaseg.inference.export import Exported, export
    from udaseg.inference.pipeline import InferenceOptions
    from udaseg.inference.prediction import Prediction
    from udaseg.inference.trained_model import Model, load
    from udaseg.inspection.info import RunInfo, info
    from udaseg.inspection.report import report
    from udaseg.inspection.verify import Verification, verify
    from udaseg.prediction.options import PredictOptions
    from udaseg.prediction.predict import predict
    from udaseg.prediction.summary import PredictSummary
    from udaseg.runs.run import Run
    from udaseg.runs.scores import Scores
    from udaseg.selection.calibrate import Calibration, calibrate
    from udaseg.selection.choice import Selection
    from udaseg.selection.select import SelectOptions, select
    from udaseg.training.seeds import SeedRuns, run_seeds
    from udaseg.training.train import TrainOptions, adapt, train

_MODULES = {
    "TrainOptions": "udaseg.training.train",
    "EvaluationOptions": "udaseg.evaluation.evaluate",
    "InferenceOptions": "udaseg.inference.pipeline",
    "CacheOptions": "udaseg.data.prepare.rules",
    "Model": "udaseg.inference.trained_model",
    "PredictOptions": "udaseg.prediction.options",
    "PredictSummary": "udaseg.prediction.summary",
    "Prediction": "udaseg.inference.prediction",
    "PrepareOptions": "udaseg.data.prepare.rules",
    "Run": "udaseg.runs.run",
    "Scores": "udaseg.runs.scores",
    "ScoringOptions": "udaseg.evaluation.scores",
    "Submission": "udaseg.evaluation.submission",
    "SubmissionOptions": "udaseg.evaluation.submission",
    "SelectOptions": "udaseg.selection.select",
    "Selection": "udaseg.selection.choice",
    "adapt": "udaseg.training.train",
    "Calibration": "udaseg.selection.calibrate",
    "calibrate": "udaseg.selection.calibrate",
    "DataVerification": "udaseg.data.prepare.verify",
    "Diagnosis": "udaseg.data.doctor.doctor",
    "doctor": "udaseg.data.doctor.doctor",
    "Finding": "udaseg.data.doctor.findings",
    "SeedRuns": "udaseg.training.seeds",
    "SetStatistics": "udaseg.data.doctor.statistics",
    "SomeDataFailed": "udaseg.data.prepare.several",
    "evaluate": "udaseg.evaluation.evaluate",
    "score_predictions": "udaseg.evaluation.score_predictions",
    "Exported": "udaseg.inference.export",
    "export": "udaseg.inference.export",
    "RunInfo": "udaseg.inspection.info",
    "info": "udaseg.inspection.info",
    "load": "udaseg.inference.trained_model",
    "predict": "udaseg.prediction.predict",
    "prepare": "udaseg.data.prepare.prepare",
    "PrepareReport": "udaseg.data.prepare.report",
    "report": "udaseg.inspection.report",
    "run_seeds": "udaseg.training.seeds",
    "select": "udaseg.selection.select",
    "submit": "udaseg.evaluation.submission",
    "train": "udaseg.training.train",
    "verify": "udaseg.inspection.verify",
    "Verification": "udaseg.inspection.verify",
    "verify_data": "udaseg.data.prepare.verify",
}

__all__ = [
    "CacheOptions",
    "Calibration",
    "DataVerification",
    "Diagnosis",
    "EvaluationOptions",
    "Exported",
    "Finding",
    "InferenceOptions",
    "Model",
    "PredictOptions",
    "PredictSummary",
    "Prediction",
    "PrepareOptions",
    "PrepareReport",
    "Run",
    "RunInfo",
    "Scores",
    "ScoringOptions",
    "SeedRuns",
    "SelectOptions",
    "Selection",
    "SetStatistics",
    "SomeDataFailed",
    "Submission",
    "SubmissionOptions",
    "TrainOptions",
    "Verification",
    "__version__",
    "adapt",
    "calibrate",
    "doctor",
    "evaluate",
    "export",
    "info",
    "load",
    "predict",
    "prepare",
    "report",
    "run_seeds",
    "score_predictions",
    "select",
    "submit",
    "train",
    "verify",
    "verify_data",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
