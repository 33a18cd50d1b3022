"""Unsupervised domain adaptation for semantic segmentation.

    import udaseg

    run = udaseg.adapt("toyland/rccr", target="my_photos/")
    udaseg.load(run).predict("street.jpg").plot()

Each command of the command line is a function here. What a name needs is imported when it is first
used, so `import udaseg` does not import torch.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.data.doctor.doctor import Diagnosis as Diagnosis
    from udaseg.data.doctor.doctor import doctor as doctor
    from udaseg.data.doctor.findings import Finding as Finding
    from udaseg.data.doctor.statistics import SetStatistics as SetStatistics
    from udaseg.data.prepare.init import InitReport as InitReport
    from udaseg.data.prepare.init import init_dataset as init_dataset
    from udaseg.data.prepare.listing import DatasetEntry as DatasetEntry
    from udaseg.data.prepare.listing import list_datasets as list_datasets
    from udaseg.data.prepare.prepare import prepare as prepare
    from udaseg.data.prepare.report import PrepareReport as PrepareReport
    from udaseg.data.prepare.report import SomeDataFailed as SomeDataFailed
    from udaseg.data.prepare.rules import CacheOptions as CacheOptions
    from udaseg.data.prepare.rules import PrepareOptions as PrepareOptions
    from udaseg.data.prepare.verify import DataVerification as DataVerification
    from udaseg.data.prepare.verify import verify_data as verify_data
    from udaseg.data.tiles import Tiles as Tiles
    from udaseg.data.tiles import tile as tile
    from udaseg.evaluation.evaluate import EvaluationOptions as EvaluationOptions
    from udaseg.evaluation.evaluate import evaluate as evaluate
    from udaseg.evaluation.evaluate import evaluate_each as evaluate_each
    from udaseg.evaluation.score_predictions import score_predictions as score_predictions
    from udaseg.evaluation.scores import ScoringOptions as ScoringOptions
    from udaseg.evaluation.submission import Submission as Submission
    from udaseg.evaluation.submission import SubmissionOptions as SubmissionOptions
    from udaseg.evaluation.submission import submit as submit
    from udaseg.experiments.compare import compare_runs as compare_runs
    from udaseg.experiments.seeds import SeedRuns as SeedRuns
    from udaseg.experiments.seeds import run_seeds as run_seeds
    from udaseg.experiments.sweep import Sweep as Sweep
    from udaseg.experiments.sweep import sweep as sweep
    from udaseg.experiments.table import RunTable as RunTable
    from udaseg.figures.features import FeatureOptions as FeatureOptions
    from udaseg.figures.features import Features as Features
    from udaseg.figures.features import features as features
    from udaseg.figures.grid import GridOptions as GridOptions
    from udaseg.figures.grid import grid as grid
    from udaseg.inference.export import Exported as Exported
    from udaseg.inference.export import export as export
    from udaseg.inference.export import export_state_dict as export_state_dict
    from udaseg.inference.import_checkpoint import import_checkpoint as import_checkpoint
    from udaseg.inference.pipeline import InferenceOptions as InferenceOptions
    from udaseg.inference.prediction import Prediction as Prediction
    from udaseg.inference.trained_model import Model as Model
    from udaseg.inference.trained_model import load as load
    from udaseg.inspection.info import RunInfo as RunInfo
    from udaseg.inspection.info import info as info
    from udaseg.inspection.report import report as report
    from udaseg.inspection.verify import Verification as Verification
    from udaseg.inspection.verify import verify as verify
    from udaseg.prediction.options import PredictOptions as PredictOptions
    from udaseg.prediction.predict import PredictSummary as PredictSummary
    from udaseg.prediction.predict import predict as predict
    from udaseg.recipe.library import RecipeEntry as RecipeEntry
    from udaseg.recipe.library import find_recipe as find_recipe
    from udaseg.recipe.library import list_methods as list_methods
    from udaseg.recipe.library import list_recipes as list_recipes
    from udaseg.recipe.reference import recipe_reference as recipe_reference
    from udaseg.recipe.reference import recipe_schema as recipe_schema
    from udaseg.recipe.request import load_recipe as load_recipe
    from udaseg.recipe.schema import Recipe as Recipe
    from udaseg.runs.base import base_weights as base_weights
    from udaseg.runs.run import Run as Run
    from udaseg.runs.score_matrix import ScoreMatrix as ScoreMatrix
    from udaseg.runs.scores import Scores as Scores
    from udaseg.runs.worth import Worth as Worth
    from udaseg.selection.calibrate import Calibration as Calibration
    from udaseg.selection.calibrate import calibrate as calibrate
    from udaseg.selection.select import Selection as Selection
    from udaseg.selection.select import SelectOptions as SelectOptions
    from udaseg.selection.select import select as select
    from udaseg.selection.worth import WorthOptions as WorthOptions
    from udaseg.selection.worth import worth_it as worth_it
    from udaseg.sizes import ShortSide as ShortSide
    from udaseg.training.train import TrainOptions as TrainOptions
    from udaseg.training.train import adapt as adapt
    from udaseg.training.train import train as train

_NAMES = {
    "data.doctor.doctor": ["Diagnosis", "doctor"],
    "data.doctor.findings": ["Finding"],
    "data.doctor.statistics": ["SetStatistics"],
    "data.prepare.init": ["InitReport", "init_dataset"],
    "data.prepare.listing": ["DatasetEntry", "list_datasets"],
    "data.prepare.prepare": ["prepare"],
    "data.prepare.report": ["PrepareReport", "SomeDataFailed"],
    "data.prepare.rules": ["CacheOptions", "PrepareOptions"],
    "data.prepare.verify": ["DataVerification", "verify_data"],
    "data.tiles": ["Tiles", "tile"],
    "evaluation.evaluate": ["EvaluationOptions", "evaluate", "evaluate_each"],
    "evaluation.score_predictions": ["score_predictions"],
    "evaluation.scores": ["ScoringOptions"],
    "evaluation.submission": ["Submission", "SubmissionOptions", "submit"],
    "experiments.compare": ["compare_runs"],
    "experiments.seeds": ["SeedRuns", "run_seeds"],
    "experiments.sweep": ["Sweep", "sweep"],
    "experiments.table": ["RunTable"],
    "figures.features": ["FeatureOptions", "Features", "features"],
    "figures.grid": ["GridOptions", "grid"],
    "inference.export": ["Exported", "export", "export_state_dict"],
    "inference.import_checkpoint": ["import_checkpoint"],
    "inference.pipeline": ["InferenceOptions"],
    "inference.prediction": ["Prediction"],
    "inference.trained_model": ["Model", "load"],
    "inspection.info": ["RunInfo", "info"],
    "inspection.report": ["report"],
    "inspection.verify": ["Verification", "verify"],
    "prediction.options": ["PredictOptions"],
    "prediction.predict": ["PredictSummary", "predict"],
    "recipe.library": ["RecipeEntry", "find_recipe", "list_methods", "list_recipes"],
    "recipe.reference": ["recipe_reference", "recipe_schema"],
    "recipe.request": ["load_recipe"],
    "recipe.schema": ["Recipe"],
    "runs.base": ["base_weights"],
    "runs.run": ["Run"],
    "runs.score_matrix": ["ScoreMatrix"],
    "runs.scores": ["Scores"],
    "runs.worth": ["Worth"],
    "selection.calibrate": ["Calibration", "calibrate"],
    "selection.select": ["SelectOptions", "Selection", "select"],
    "selection.worth": ["WorthOptions", "worth_it"],
    "sizes": ["ShortSide"],
    "training.train": ["TrainOptions", "adapt", "train"],
}
_MODULES = {name: f"udaseg.{module}" for module, names in _NAMES.items() for name in names}
_RENAMED = {"verify_run": "verify"}
"""Old names, which warn for one release, and their new names."""

_COMMANDS = {
    "eval": "evaluate",
    "init": "init_dataset",
    "table": "compare_runs",
    "methods": "list_methods",
}
"""Commands whose functions have other names."""

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        import warnings

        new = _RENAMED[name]
        message = f"udaseg.{name} is now udaseg.{new}; the old name will be removed"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = new
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    hint = f"; `udaseg {name}` is udaseg.{_COMMANDS[name]}" if name in _COMMANDS else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
