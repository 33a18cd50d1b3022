"""Call `udaseg predict` as a function, with defaults for all options."""

from pathlib import Path

from udaseg.prediction.predict import PredictOptions
from udaseg.prediction.predict import predict as predict_command


def predict(*words, checkpoint=Path("runs/colors"), out=Path("masks"), **options):
    """Predict the inputs `words` with the network that `load` is patched to return."""
    predict_command(
        inputs=[str(word) for word in words],
        checkpoint=checkpoint,
        out=out,
        options=PredictOptions(**{"save": ("ids",), "device": "cpu", **options}),
    )
