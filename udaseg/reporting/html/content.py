"""What a report page shows, as plain values; everything is optional but a run's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udaseg.reporting.tables import Scores

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Reliability:
    """Pixels by the confidence of their label, in equal steps from 0 to 1.

    Attributes:
        pixels: All pixels of each bin.
        labelled: Those with truth.
        correct: Those of them that are right.
        confidence: Sum of the confidence of the labelled ones.
        error: Expected calibration error; NaN without truth.
    """

    pixels: Sequence[int]
    labelled: Sequence[int]
    correct: Sequence[int]
    confidence: Sequence[float]
    error: float


@dataclass(frozen=True)
class RunContent:
    """One run.

    Attributes:
        name: Heads its column everywhere.
        facts: What was run, in order of showing.
        command: The command line.
        recipe: The recipe as YAML.
        settings: The recipe flattened to dotted keys, for telling runs apart.
        scores: The evaluation that is compared; None without any.
        evaluations: Means of every evaluation in the run, by its name.
        metrics: Lines of `metrics.jsonl`, by rising step.
        cost: Time, rate, memory.
        environment: Machine and packages.
        warnings: What a reader must know before believing a number.
        reliability: Of the images that were looked at; None when none were.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    recipe: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    scores: Scores | None = None
    evaluations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    reliability: Reliability | None = None


@dataclass(frozen=True)
class Layer:
    """One picture of a shot.

    Attributes:
        title: What it is, such as `image`, a run's name, `truth`.
        uri: `data:` address with the picture.
        mask: It shows class colours, so that a class can be lifted out.
    """

    title: str
    uri: str
    mask: bool


@dataclass(frozen=True)
class Shot:
    """One image with what each run makes of it.

    Attributes:
        name: Its file.
        why: Why it is shown, such as `lowest mIoU of rccr: 23.4 %`.
        layers: Pictures of one size.
    """

    name: str
    why: str
    layers: Sequence[Layer]


@dataclass(frozen=True)
class PageContent:
    """One page.

    Attributes:
        title: Heads it.
        runs: In order of columns; the baseline, if any, first.
        baseline: The first run is what the others are compared with.
        colors: RGB of each class by name.
        shots: Images to look at.
        looked: What the shots were chosen from, a sentence.
        warnings: Of the page as a whole.
        made: When and by what.
    """

    title: str
    runs: Sequence[RunContent]
    baseline: bool = False
    colors: Mapping[str, Color] = field(default_factory=dict)
    shots: Sequence[Shot] = ()
    looked: str = ""
    warnings: Sequence[str] = ()
    made: str = ""
