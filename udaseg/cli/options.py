"""Options that several commands share, and parsers of their values."""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal

import typer

from udaseg.errors import UsageError
from udaseg.recipe.choices import Criterion, Precision
from udaseg.sizes import Resize, ShortSide
from udaseg.text import shortened

log = logging.getLogger(__name__)

OnMismatch = Literal["exclude", "resize", "fail"]
CacheFormat = Literal["png", "raw"]
Resampling = Literal["area", "bicubic"]
Weights = Literal["student", "teacher"]
TableFormat = Literal["table", "json"]
ScoreFormat = Literal["table", "json", "csv", "md"]

Root = Annotated[
    Path,
    typer.Option(
        "--root",
        envvar="UDASEG_DATA",
        file_okay=False,
        help="Folder of the prepared data sets.",
    ),
]
RecipeArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="Recipe file or name of a shipped recipe (`udaseg recipes ls`); KEY=VALUE changes a "
        "value of it, for example optimizer.lr=1e-4.",
        show_default=False,
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(help="Name of a prepared data set, or dataset YAML; repeat it for several."),
]
Target = Annotated[
    str | None, typer.Option(help="Name of a prepared data set, dataset YAML, or image folder.")
]
_NETWORK_HELP = "Network of recipes/networks/, or a file like them, to put over the recipe"
Network = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="NAME", help=f"{_NETWORK_HELP} (`udaseg recipes ls`)."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="NAME", help=f"{_NETWORK_HELP}; repeat it for several."),
]
Out = Annotated[
    Path | None, typer.Option(file_okay=False, help="Run folder. Default: a new one in runs/.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Seeds = Annotated[
    str | None,
    typer.Option(metavar="0,1,2", help="Train several seeds in turn; rerun to continue."),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the networks with torch.compile."),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Use deterministic kernels; warn where none exist.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Numeric precision of the network.")
]
Steps = Annotated[int | None, typer.Option(help="Number of optimizer steps.")]
Batch = Annotated[int | None, typer.Option(help="Batch size per domain.")]
Workers = Annotated[int | None, typer.Option(help="Data loader processes (-1: automatic).")]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="[RUN]",
        help="Continue this run from its last checkpoint. Without RUN: the newest in runs/ that is "
        "not done.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(metavar="CHECKPOINT", help="Start a new run from the weights of this checkpoint."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing output.")]
FitMemory = Annotated[
    bool, typer.Option("--fit", help="Split steps into micro-batches until they fit in memory.")
]
Loggers = Annotated[
    list[str] | None,
    typer.Option(
        "--logger",
        metavar="NAME",
        help="Write metrics and previews for tensorboard, wandb or mlflow; repeat it for several; "
        "none for none. Default: tensorboard, if it is installed.",
        show_default=False,
    ),
]
TensorBoard = Annotated[bool | None, typer.Option("--tensorboard/--no-tensorboard", hidden=True)]
KeepBest = Annotated[
    Criterion | None,
    typer.Option(help="Also keep the best checkpoint by this criterion (needs no target labels)."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the recipe and the plan, then exit. Needs no prepared data, writes nothing.",
    ),
]
Timed = Annotated[
    bool, typer.Option("--time", help="With --dry-run: time a few steps and estimate the run.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Verbose output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only print warnings and errors.")]
WeightsOption = Annotated[
    Weights, typer.Option(help="Use the weights of the student or the teacher.")
]
AnyDevice = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]
OutputFormat = Annotated[TableFormat, typer.Option("--format", help="Output format.")]
Flip = Annotated[
    bool, typer.Option("--flip", help="Average the predictions of the image and its mirror image.")
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="[H,W]", help="Predict in sliding windows of this height and width in pixels."
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Base weights of runs with adapters, if the file is no longer where it was.",
    ),
]
_RUN = typer.Argument(
    metavar="CHECKPOINT|RUN", help="Checkpoint file or run folder.", show_default=False
)
Run = Annotated[Path, _RUN]
OptionalRun = Annotated[Path | None, _RUN]


_idle_base: ContextVar[Path | None] = ContextVar("idle_base", default=None)
"""The file of `--base`, unless a run that the command names has adapters."""


def with_base(command: Callable[..., None], *, trains: bool = False) -> Callable[..., None]:
    """Return a command with the option `--base`, for runs whose checkpoints hold adapters alone.

    It is refused if no run that the command names has adapters. A command that trains calls
    `refuse_idle_base` when it knows what it trains.
    """

    @functools.wraps(command)
    def whole(*words: object, base: Path | None = None, **others: object) -> None:
        if base is None:
            return command(*words, **others)
        import udaseg

        with udaseg.base_weights(base):
            paths = [each for value in others.values() for each in _paths(value)]
            token = _idle_base.set(None if any(map(_has_adapters, paths)) else base)
            try:
                if not trains:
                    refuse_idle_base()
                return command(*words, **others)
            finally:
                _idle_base.reset(token)

    own = inspect.signature(command)
    added = inspect.Parameter("base", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Base)
    vars(whole)["__signature__"] = own.replace(parameters=[*own.parameters.values(), added])
    whole.__annotations__ = {**command.__annotations__, "base": Base}
    return whole


def refuse_idle_base(*, has_adapters: bool = False) -> None:
    """Raise a `UsageError` if `--base` is given and neither a run nor what is trained has adapters.

    Args:
        has_adapters: What is trained has some.
    """
    base = _idle_base.get()
    if base is not None and not has_adapters:
        raise UsageError(
            f"--base {shortened(str(base), 300)}: only runs with adapters (model.adapters) have "
            "base weights, and there is none here; leave out --base"
        )


def _paths(value: object) -> list[Path]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, Path)]


def _has_adapters(path: Path) -> bool:
    """Return whether a path is a run with adapters, or in one."""
    import udaseg

    around = (path, *path.absolute().parents)
    run = next((folder for folder in around if (folder / "recipe.yaml").is_file()), None)
    return run is not None and udaseg.Run(run).recipe.model.adapters is not None


def refuse_options(reason: str, given: Mapping[str, bool]) -> None:
    """Raise a `UsageError` that names the options that are given, if any is."""
    others = [name for name, is_given in given.items() if is_given]
    if others:
        raise UsageError(f"{reason}; leave out {', '.join(others)}")


def one_network(given: list[str] | None) -> str | None:
    """Return the only value of `--network`, if any."""
    if given and len(given) > 1:
        raise UsageError(
            f"--network is given {len(given)} times ({', '.join(map(shortened, given))}); "
            "a run has one network, and `udaseg sweep` compares several"
        )
    return given[0] if given else None


def chosen_loggers(names: Sequence[str] | None, tensorboard: bool | None) -> list[str] | None:
    """Return `machine.loggers` by the values of `--logger` and the old `--tensorboard`."""
    if tensorboard is not None:
        old, new = ("--tensorboard", "tensorboard") if tensorboard else ("--no-tensorboard", "none")
        log.warning("%s is now --logger %s; the old option will be removed", old, new)
        names = [*(names or []), new]
    if not names:
        return None
    if "none" not in names:
        return list(dict.fromkeys(names))
    if len(set(names)) > 1:
        raise UsageError("--logger none cannot be combined with another --logger")
    return []


_SIDE = "([1-9][0-9]{0,5})"
_LIST = re.compile(rf"\[ *{_SIDE} *, *{_SIDE} *\]")
_WORD = re.compile(rf"{_SIDE}[xX]{_SIDE}")


def parse_height_width(option: str, text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of an option written as a list; a square may be written `512x512`.

    Another word is refused for one release: it was HEIGHTxWIDTH, and will be WIDTHxHEIGHT, as in
    all other options.
    """
    if text is None:
        return None
    if pair := _LIST.fullmatch(text):
        return int(pair[1]), int(pair[2])
    if pair := _WORD.fullmatch(text):
        first, second = pair.groups()
        if first == second:
            return int(first), int(first)
        raise UsageError(
            f"{option} {text} was {first} high and {second} wide, and will be {first} wide and "
            f"{second} high in the next release; write '[{first}, {second}]' or "
            f"'[{second}, {first}]', which is [HEIGHT, WIDTH]"
        )
    raise UsageError(
        f"{option} must be [HEIGHT, WIDTH] in pixels, for example '[512, 1024]', got {text}"
    )


def parse_resize(option: str, text: str | None) -> Resize | None:
    """Return the size of an option written `WxH` or as a list, or its short side."""
    if text is None:
        return None
    if re.fullmatch(_SIDE, text):
        return ShortSide(int(text))
    if pair := _LIST.fullmatch(text):
        return int(pair[1]), int(pair[2])
    if pair := _WORD.fullmatch(text):
        return int(pair[2]), int(pair[1])
    raise UsageError(
        f"{option} must be WIDTHxHEIGHT, [HEIGHT, WIDTH] or the short side in pixels, for example "
        f"1280x720 or 720, got {text}"
    )


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return (I, N) of an option written `I/N`."""
    if text is None:
        return None
    pair = re.fullmatch(r"([0-9]{1,6})/([1-9][0-9]{0,5})", text)
    if pair is None:
        raise UsageError(f"--shard must be I/N, for example 1/4, got {shortened(text)}")
    return int(pair[1]), int(pair[2])


def parse_bands(text: str | None) -> tuple[int, int, int] | None:
    """Return the bands of an option written `0,1,2`."""
    if text is None:
        return None
    three = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4}),([0-9]{1,4})", text)
    if three is None:
        raise UsageError(
            f"--bands must be three of the bands, the first is 0, as 0,1,2, got {shortened(text)}"
        )
    return int(three[1]), int(three[2]), int(three[3])


def parse_scales(text: str) -> tuple[float, ...]:
    """Return the scales of a comma-separated list."""
    words = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", factor) for factor in words):
        raise UsageError(
            f"--scales must be numbers separated by commas, as 0.75,1.0,1.25, got {text}"
        )
    if not all(0.1 <= float(factor) <= 10 for factor in words):
        raise UsageError(f"--scales must be between 0.1 and 10, got {text}")
    return tuple(map(float, words))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a comma-separated list; repeated ones are refused."""
    words = text.split(",")
    if not all(re.fullmatch("[0-9]{1,10}", word) for word in words) or len(set(words)) < len(words):
        raise UsageError(
            "--seeds must be different whole numbers of up to 10 digits, separated by commas, as "
            f"0,1,2, got {text}"
        )
    return tuple(map(int, words))


def parse_names(option: str, text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list; empty ones are refused."""
    names = tuple(text.split(","))
    if not all(name.strip() for name in names):
        raise UsageError(f"{option} must be names separated by commas, as A,B, got {text}")
    return names


def parse_dilations(text: str) -> tuple[int, ...]:
    """Return the dilations of a comma-separated list."""
    words = text.split(",")
    if not all(re.fullmatch("[1-9][0-9]{0,3}", word) for word in words):
        raise UsageError(
            f"--dilations must be whole numbers from 1, separated by commas, as 6,12, got {text}"
        )
    return tuple(map(int, words))
