"""Content of a report page as plain values; only the name of a run is required."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udaseg.figures.table import NumberTable
from udaseg.runs.scores import Scores
from udaseg.runs.worth import Worth
from udaseg.selection.temperature import ConfidenceHistogram

Color = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureContent:
    """What `udaseg features` found.

    Attributes:
        facts: Network and images.
        picture: The features in the plane as a `data:` URI.
        tables: Distances of classes, and how right pseudo-labels are.
        notes: What to keep in mind, such as that target labels were looked at.
    """

    facts: Mapping[str, str]
    picture: str
    tables: Sequence[NumberTable]
    notes: Sequence[str]


@dataclass(frozen=True)
class RunContent:
    """Content about one run.

    Attributes:
        name: Column heading in all tables.
        facts: Main facts about the run, in display order.
        recipe: The recipe as YAML.
        settings: The recipe flattened to dotted keys, to show differences between runs.
        scores: The evaluation to compare.
        evaluations: Means of every evaluation of the run, by name.
        metrics: Lines of `metrics.jsonl`, by increasing step.
        cost: Time, throughput and memory.
        environment: Machine and packages.
        warnings: Problems that affect the reported numbers.
        reliability: Confidence on the evaluated images.
        features: What `udaseg features` found, where it was run.
        worth: Whether the adaptation was worth it; None if there was none.
        before: Scores of the network without the adaptation, on the images of the page.
        after: Scores of the run on the same images.
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
    reliability: ConfidenceHistogram | None = None
    features: FeatureContent | None = None
    worth: Worth | None = None
    before: Scores | None = None
    after: Scores | None = None


@dataclass(frozen=True)
class ImageLayer:
    """One layer of an example image: photo, prediction, ground truth or confidence.

    Attributes:
        title: `image`, a run's name, `truth`, or `confidence`.
        uri: The picture as a `data:` URI.
        is_mask: Whether it shows class colours, in which a class can be highlighted.
    """

    title: str
    uri: str
    is_mask: bool


@dataclass(frozen=True)
class ExampleImage:
    """One example image as layers of equal size; `reason` says why it is shown."""

    name: str
    reason: str
    layers: Sequence[ImageLayer]


@dataclass(frozen=True)
class PageContent:
    """Content of one page.

    Attributes:
        runs: The runs in column order.
        has_baseline: Whether the first run is the baseline for the others.
        colors: RGB colour of each class by name.
        examples_note: Sentence on the images that the examples were chosen from.
        warnings: Warnings about the page as a whole.
        created: When and by which version the page was created.
    """

    title: str
    runs: Sequence[RunContent]
    has_baseline: bool = False
    colors: Mapping[str, Color] = field(default_factory=dict)
    examples: Sequence[ExampleImage] = ()
    examples_note: str = ""
    warnings: Sequence[str] = ()
    created: str = ""
