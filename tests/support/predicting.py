"""Call the function of `udaseg predict`, with values instead of words."""

from pathlib import Path

from udaseg.cli.commands.predict import predict as predict_command


def predict(
    *words,
    checkpoint=Path("runs/colors"),
    out=Path("masks"),
    save=("ids",),
    video="mp4",
    weights="student",
    window=None,
    calibrated=True,
    **options,
):
    """Predict the inputs `words` with the network that `load` is patched to return."""
    predict_command(
        [str(word) for word in words],
        checkpoint,
        out,
        ",".join(save),
        video,
        uncalibrated=not calibrated,
        weights=weights,
        window=None if window is None else f"{window[0]}x{window[1]}",
        **{"device": "cpu", **options},
    )
