"""Messages about words that the command line cannot parse, with the word that was meant."""

import re
from pathlib import Path
from typing import Any

from udaseg.text import did_you_mean, shortened

# Options of other tools -> what is written here; the first that the command has, or a KEY=VALUE.
_FOREIGN = {
    "--epochs": ("--steps",),
    "--iterations": ("--steps",),
    "--iters": ("--steps",),
    "--max-iters": ("--steps",),
    "--max-steps": ("--steps",),
    "--imgsz": ("source.resize=[HEIGHT,WIDTH]", "--window"),
    "--img-size": ("source.resize=[HEIGHT,WIDTH]", "--window"),
    "--image-size": ("source.resize=[HEIGHT,WIDTH]", "--window"),
    "--crop-size": ("source.crop=[HEIGHT,WIDTH]", "--window"),
    "--lr": ("optimizer.lr=VALUE",),
    "--learning-rate": ("optimizer.lr=VALUE",),
    "--backbone": ("model.backbone=NAME",),
    "--pretrained": ("model.weights=pretrained",),
    "--weights": ("model.weights=FILE", "--checkpoint"),
    "--ckpt": ("--checkpoint", "--init"),
    "--checkpoint": ("--init",),
    "--model": ("--network", "--checkpoint"),
    "--config": ("RECIPE",),
    "--cfg": ("RECIPE",),
    "--recipe": ("RECIPE",),
    "--data": ("--source", "IMAGES"),
    "--dataset": ("--source", "--data"),
    "--dataset-path": ("--root",),
    "--data-dir": ("--root",),
    "--input": ("IMAGES",),
    "--source": ("IMAGES",),
    "--images": ("IMAGES",),
    "--name": ("--out",),
    "--project": ("--out",),
    "--work-dir": ("--out",),
    "--output-dir": ("--out",),
    "--save-dir": ("--out",),
    "--num-workers": ("--workers",),
    "--gpu": ("--device",),
    "--gpus": ("torchrun --nproc-per-node=N -m udaseg", "--device"),
    "--cuda": ("--device",),
    "--amp": ("--precision",),
    "--half": ("--precision",),
    "--fp16": ("--precision",),
    "--bf16": ("--precision",),
    "--conf": ("--abstain",),
    "--threshold": ("--abstain",),
    "--tta": ("--flip",),
    "--augment": ("--flip",),
    "--stride": ("--window",),
    "--force": ("--overwrite",),
    "--exist-ok": ("--overwrite",),
    "--load-from": ("--init",),
}

_WRONG_KIND = re.compile(r"(?:dir|directory|file|path) '(?P<path>.*)' is a (?P<is>file|dir)", re.I)
"""What typer says of a file where a folder is needed, or the other way round."""

_MUST = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""What a value must be, by the kind of pydantic's error."""


def command_line_message(error: Any) -> str:
    """Return the message for words that typer cannot parse; what it says is kept, in one style."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        message = f"no option {shortened(error.option_name)}{_instead(error.option_name, context)}"
    elif (wrong := _wrong_value(error)) is not None:
        message = wrong
    else:
        message = error.format_message().rstrip(".")
    command = "udaseg" if context is None else context.command_path
    link = " " if message.endswith("?") else "; "
    return f"error: {message}{link}`{command} -h` shows what it takes"


def _wrong_value(error: Any) -> str | None:
    """Return what is wrong with the value of an option, in the words for values of recipes.

    typer has pydantic read the values, whose sentences do not show what was written.
    """
    kind = _WRONG_KIND.search(error.format_message())
    if kind is not None and error.param is not None:
        found, needed = ("file", "folder") if kind["is"] == "file" else ("folder", "file")
        return (
            f"{error.param.opts[0]} {shortened(kind['path'], 300)}: is a {found}; name a {needed}"
        )
    read = getattr(error.__cause__, "errors", None)
    if read is None or error.param is None:
        return None
    first = read()[0]
    context = first.get("ctx", {})
    if "error" in context:  # a word that is none of the choices
        wrong = f"{' / '.join(error.param.opts)}: {context['error']}".rstrip(".")
        is_run = "--weights" in error.param.opts and Path(str(first["input"])).exists()
        return f"{wrong}; did you mean --checkpoint?" if is_run else wrong
    must = _MUST.get(first["type"])
    if must is None:
        return None
    written = shortened(str(first["input"]))
    return f"{' / '.join(error.param.opts)} must be {must.format(**context)}, got {written}"


def _instead(name: str, context: Any) -> str:
    """Return "; did you mean …?" for an option that the command lacks; "" without a guess."""
    parameters = [] if context is None else context.command.params
    options = [option for each in parameters for option in (*each.opts, *each.secondary_opts)]
    words = [each.metavar or "" for each in parameters if each.param_type_name == "argument"]
    for meant in _FOREIGN.get(name.lower().replace("_", "-"), ()):
        word = "KEY=" if "=" in meant else meant
        if meant in options or any(word in metavar for metavar in words):
            return f"; did you mean {meant}?"
    near = did_you_mean(name.lstrip("-"), [option.lstrip("-") for option in options])
    return f"; did you mean --{near}?" if near else ""
