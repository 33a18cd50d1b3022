"""What a recipe file may contain, and the error for each kind of mistake."""

import contextlib
import random
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from tests.support.entry_points import Gram, GramSpec, install
from tests.support.own_recipes import own_data
from udaseg.errors import RecipeError
from udaseg.recipe.extensions import with_packages
from udaseg.recipe.library import list_recipes
from udaseg.recipe.load import dump, expand_path, from_dict, load, to_dict
from udaseg.recipe.schema import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
RCCR = REPOSITORY / "recipes" / "gta5_cityscapes" / "rccr.yaml"
BASE = dump(load(RCCR)).splitlines()


def line_of(key: str) -> int:
    """Return the index in BASE of the line with a dotted key."""
    index = -1
    for depth, name in enumerate(key.split(".")):
        pattern = re.compile(rf"{'  ' * depth}{re.escape(name)}:")
        index = next(n for n in range(index + 1, len(BASE)) if pattern.match(BASE[n]))
    return index


def section_end(index: int) -> int:
    """Return the index after the last line that belongs to the key at `index`."""
    indent = len(BASE[index]) - len(BASE[index].lstrip())
    end = index + 1
    while end < len(BASE) and len(BASE[end]) - len(BASE[end].lstrip()) > indent:
        end += 1
    return end


def with_value(key: str, raw: str) -> tuple[str, int]:
    """Return the base recipe with another value for `key`, and the line number."""
    at = line_of(key)
    name = BASE[at].partition(":")[0]
    return "\n".join([*BASE[:at], f"{name}: {raw}", *BASE[section_end(at) :]]), at + 1


def with_key(key: str, other: str) -> tuple[str, int]:
    """Return the base recipe with `key` renamed to `other`, and the line number."""
    at = line_of(key)
    changed = re.sub(r"\w+:", f"{other}:", BASE[at], count=1)
    return "\n".join([*BASE[:at], changed, *BASE[at + 1 :]]), at + 1


def without(key: str) -> str:
    at = line_of(key)
    return "\n".join([*BASE[:at], *BASE[section_end(at) :]])


def refused(text: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(Path("my.yaml"), text=text, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


MISSPELT = [
    ("optimizer.lr", "lerning_rate"),
    ("optimizer.lr", "learning_rate"),
    ("optimizer.momentum", "momentun"),
    ("optimizer.weight_decay", "weigth_decay"),
    ("optimizer.weight_decay", "weight-decay"),
    ("optimizer.head_lr_mult", "head_lr_multi"),
    ("model.backbone", "backbon"),
    ("model.backbone", "encoder"),
    ("model.output_stride", "outputstride"),
    ("model.aspp_dilations", "aspp_dilation"),
    ("model.batch_norm", "batchnorm"),
    ("steps", "step"),
    ("steps", "iterations"),
    ("source", "sourc"),
    ("validation", "validate"),
    ("source.crop", "crop_size"),
    ("source.flip", "Flip"),
    ("method.teacher.momentum", "ema_decay"),
    ("method.regional.temperature", "tau"),
    ("method.regional.min_confidence", "min_confidance"),
    ("method.regional.cells_per_view", "cell_per_view"),
    ("method.mixing.confidence", "threshold"),
]

MISPLACED = [
    ("lr: 1", "optimizer.lr"),
    ("min_confidence: 0.1", "method.regional.min_confidence"),
    ("backbone: resnet50", "model.backbone"),
    ("device: cpu", "machine.device"),
    ("optimizer.lr: 1", "optimizer.lr"),
]

WRONG_TYPE = [
    ("steps", "2.5e5", "write 250000"),
    ("steps", "true", "truth value"),
    ("steps", "'5'", "remove the quotes"),
    ("steps", "0512", "reads it as 330"),
    ("steps", "12:30", "base-60"),
    ("steps", "0x10", "decimal digits"),
    ("steps", "250_000", "decimal digits"),
    ("steps", "1" * 5000, "at most"),
    ("steps", "many", "whole number"),
    ("steps", "[1]", "got a list"),
    ("optimizer.lr", "nan", "finite"),
    ("optimizer.lr", ".inf", "finite"),
    ("optimizer.lr", "1e999", "too large"),
    ("optimizer.lr", "1e-999", "becomes 0"),
    ("optimizer.lr", "12:30:45.0", "base-60"),
    ("optimizer.lr", "2024-01-02", "date"),
    ("optimizer.lr", "no", "truth value"),
    ("optimizer.lr", "", "got nothing"),
    ("source.flip", "no", "only YAML 1.1 reads it as false"),
    ("source.flip", "on", "only YAML 1.1 reads it as true"),
    ("source.flip", "True", "lower case"),
    ("source.flip", "1", "true or false"),
    ("source.flip", "'true'", "remove the quotes"),
    ("source.data", "no", "truth value"),
    ("source.data", "off", "truth value"),
    ("source.data", "2024-01-02", "date"),
    ("source.data", "2024-13-01", "date"),
    ("source.data", "0512", "another base"),
    ("source.data", "12:30", "base-60"),
    ("source.data", "1e-4", "a number"),
    ("source.data", "nan", "a number"),
    ("source.data", "null", "null"),
    ("source.data", "''", "text"),
    ("model.batch_norm", "off", "truth value"),
    ("model.batch_norm", "frozn", "did you mean 'frozen'?"),
    ("model.output_stride", "12", "one of 8, 16, 32"),
    ("source.crop", "512", "write [512, 512]"),
    ("source.crop", "512x256", "write [256, 512], which is [HEIGHT, WIDTH]"),
    ("source.crop", "[512]", "a list of 2 whole numbers, got 1"),
    ("source.crop", "[512, 5.5]", "whole number"),
    ("source.crop", "{height: 1}", "got a section"),
    ("source", "gta5", "must be a section with data"),
]

OUT_OF_RANGE = [
    ("seed", "-1"),
    ("steps", "0"),
    ("source.resize", "[0, 5]"),
    ("source.crop", "[0, 5]"),
    ("target.resize", "[5, 0]"),
    ("target.crop", "[-1, 5]"),
    ("optimizer.lr", "0"),
    ("optimizer.lr", "-1e-4"),
    ("optimizer.head_lr_mult", "0"),
    ("optimizer.backbone_lr_mult", "-1"),
    ("optimizer.momentum", "1"),
    ("optimizer.momentum", "-0.1"),
    ("optimizer.weight_decay", "-1"),
    ("optimizer.power", "-0.5"),
    ("optimizer.warmup", "-1"),
    ("optimizer.clip_norm", "0"),
    ("model.aspp_dilations", "[]"),
    ("model.aspp_dilations", "[6, 0]"),
    ("model.head_channels", "0"),
    ("method.teacher.momentum", "1.5"),
    ("method.mixing.confidence", "1.1"),
    ("method.augmentation.jitter", "0.6"),
    ("method.augmentation.jitter_probability", "-0.1"),
    ("method.augmentation.blur_probability", "2"),
    ("method.augmentation.blur_sigma", "[2, 1]"),
    ("method.mix_weight", "-1"),
    ("method.regional.weight", "-1"),
    ("method.regional.temperature", "0"),
    ("method.regional.min_confidence", "2"),
    ("method.regional.bank_steps", "0"),
    ("method.regional.cells_per_view", "0"),
    ("method.regional.region_size", "0"),
    ("method.regional.projector.channels", "0"),
    ("machine.workers", "-2"),
    ("machine.log_every", "0"),
    ("machine.keep_checkpoints", "1"),
    ("machine.checkpoint_every", "-1"),
]

STRUCTURE = [
    ("", ":1:1: is empty"),
    ("# a comment\n", ":1:1: is empty"),
    ("---\n...\n---\nname: x\n", ":3:1: contains a second document"),
    ("name: x\n---\nname: y\n", ":2:1: contains a second document"),
    ("- name\n", ":1:1: must be a YAML mapping"),
    ("name\n", ":1:1: must be a YAML mapping"),
    ("name: x\nname: y\n", ":2:1: name: is written twice, first at my.yaml:1:1"),
    ("batch: {source: 1, source: 1}\n", ":1:20: batch.source: is written twice"),
    ("a: &a 1\n", ":1:4: a: the anchor &a"),
    ("a: &a 1\nb: *a\n", ":2:4: b: the alias *a"),
    ("a: 1\n<<: {b: 2}\n", ":2:1: the merge key"),
    ("batch:\n\tsource: 1\n", ":2:1: not YAML: indented with a tab"),
    ("? [a, b]\n: 1\n", ":1:3: a key must be a word"),
    ("name: a: b\n", ":1:8: not YAML"),
    ("name: [1\n", ":2:1: not YAML"),
    ("name: 'x\n", "not YAML"),
    ("%YAML 9.9\n---\nname: x\n", ":1:1: not YAML"),
]

PAYLOADS = [
    "!!python/object/apply:os.system ['touch PWNED']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/new:os.system ['touch PWNED']",
    "!!python/object:builtins.dict {}",
    "!ruby/object:Gem::Requirement {}",
    "!!timestamp x",
    "!!bool maybe",
    "!!int x",
    "!!str 5",
    "! x",
]

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(9)
)
HOSTILE = [
    ("[" * 50_000, "32 levels"),
    ("{a: " * 50_000, "32 levels"),
    ("- " * 50_000, "32 levels"),
    ("name: " + "[" * 500, "32 levels"),
    ("name: [" + "1," * 10_000 + "]", "5000 values"),
    (LAUGHS, "anchor"),
    (with_value("steps", "9" * 5000)[0], "at most 18 digits"),
    ("name: x" + "x" * 1_100_000, "longer than"),
    ("name: a\0b", ":1:8: contains the invisible character U+0000"),
    ("name: a\x1b[31m", ":1:8: contains the invisible character U+001B"),
    ("name: \u202eabc", ":1:7: contains the invisible character U+202E"),
    ("name: a\u2028b", ":1:8: contains the invisible character U+2028"),
    ("x: 1\nname: a\ufeffb", ":2:8: contains the invisible character U+FEFF"),
    ('name: "\\u202e"', "name: contains U+202E"),
    ('name: "\\ud800"', "name: contains U+D800"),
    ('name: "\\Uffffffff"', "not YAML"),
    ("%YAML " + "1" * 5000 + ".1\n---\na: 1", "not YAML"),
]

CROSS_FIELD = [
    (with_value("batch.target", "7")[0], "batch.target: must equal batch.source"),
    (with_value("method.kind", "source_only")[0], "method.teacher: unknown key of source_only"),
    (with_value("method.kind", "self_trainning")[0], "did you mean 'self_training'?"),
    (without("method.kind"), "method.kind: is missing: one of source_only"),
    (without("method.regional.projector"), "method.regional.projector: is missing"),
    (with_value("method.regional.projector", "null")[0], "must be a section, got null"),
    (with_value("method", "null")[0], "method: must be"),
    (with_value("method", "self_training")[0], "method: must be"),
    (with_value("machine", "[cpu]")[0], "machine: must be a section"),
    (without("source"), "source: is missing: a section"),
    (without("target.crop"), "target.crop: is missing: a list of 2 whole numbers"),
    (without("steps"), "steps: is missing: a whole number"),
]

REGIONAL = "method.regional"
MESSAGES = [
    ("name", "a/b", "name: must be letters, digits, '.', '_' and '-', got 'a/b'"),
    ("seed", "-1", "seed: must be in [0, 2147483647], got -1"),
    ("steps", "0", "steps: must be at least 1, got 0"),
    ("source.resize", "[512, 0]", "source.resize[1]: must be at least 1, got 0"),
    ("optimizer.lr", "0", "optimizer.lr: must be above 0, got 0"),
    ("optimizer.momentum", "1", "optimizer.momentum: must be in [0, 1), got 1"),
    ("optimizer.clip_norm", "-2", "optimizer.clip_norm: must be above 0, got -2"),
    ("model.aspp_dilations", "[]", "model.aspp_dilations: must have at least 1 item, got 0"),
    ("model.aspp_dilations", "[6, 0]", "model.aspp_dilations[1]: must be at least 1, got 0"),
    ("method.teacher.momentum", "2", "method.teacher.momentum: must be in [0, 1], got 2"),
    ("method.augmentation.jitter", "1", "method.augmentation.jitter: must be in [0, 0.5], got 1"),
    (f"{REGIONAL}.weight", "-1", f"{REGIONAL}.weight: must be at least 0, got -1"),
    (f"{REGIONAL}.start", "-1", f"{REGIONAL}.start: must be at least 0, got -1"),
    (f"{REGIONAL}.projector.channels", "0", "projector.channels: must be at least 1, got 0"),
    ("machine.workers", "-2", "machine.workers: must be at least -1, got -2"),
    (
        "method.augmentation.blur_sigma",
        "[0.5, 3]",
        "method.augmentation.blur_sigma[1]: must be in (0, 2], got 3",
    ),
    (
        "method.augmentation.blur_sigma",
        "[2, 1]",
        "method.augmentation.blur_sigma: must be [LOWEST, HIGHEST], got [2.0, 1.0]",
    ),
    (
        f"{REGIONAL}.square_share",
        "[0.5, 0.25]",
        f"{REGIONAL}.square_share: must be [LOWEST, HIGHEST], got [0.5, 0.25]",
    ),
    ("expected", "{miou: [-1, 5]}", "expected.miou[0]: must be in [0, 100], got -1"),
    ("expected", "{miou: [6, 5]}", "expected.miou: must be [LOWEST, HIGHEST], got [6.0, 5.0]"),
    ("packages", "[a b]", "packages[0]: must be the name of a package, got 'a b'"),
]

OVERRIDES = [
    (("optimzer.lr=1",), "optimzer: unknown key; did you mean 'optimizer'?"),
    (("method.mixing.quantile=1",), "method.mixing.quantile: unknown key; did you mean 'class_q"),
    (
        ("method.teacher.scale=0.5", "source.crop=[24, 64]", "target.crop=[24, 64]"),
        "method.teacher.scale: must be at least 0.67, so that the shorter side of a crop has two",
    ),
    (("optimizer.lerning_rate=1",), "did you mean 'lr'?"),
    (("steps=1.5",), "override steps=1.5: steps: must be a whole number"),
    (("source.flip=no",), "only YAML 1.1 reads it as false"),
    (("source.data=off",), "quote it"),
    (("source.data=0512",), "another base"),
    (("steps",), "must be KEY=VALUE"),
    (("=5",), "must be KEY=VALUE"),
    (("steps=",), "has no value"),
    (("steps=# 5",), "is empty"),
    (("steps.x=5",), "steps is a value, not a section"),
    (("steps=5", "steps=6"), "steps: contradicts `steps=5`"),
    (("method.regional=null", "method.regional.weight=1"), "contradicts"),
    (("method=null",), "method: must be"),
    (("name=*a",), "override name=*a"),
    (("name=!!python/name:os.system x",), "tags are not allowed"),
    (("source.crop=[1",), "not YAML"),
    (("optimizer.lr=-1",), "override optimizer.lr=-1: optimizer.lr: must be above 0"),
    (("name=a\x1b[31m",), "U+001B"),
    (
        ("method.target_crop.tries=10", "target.crop=[512, 500]"),
        "target.crop: must be at least [512, 512], source.crop, of which method.target_crop takes",
    ),
    (
        ("method.mixing.ignore_rows=[392, 120]",),
        "method.mixing.ignore_rows: must be fewer rows than the 512 of a crop, got [392, 120]",
    ),
    (("machine.device=" + "[" * 50_000,), "32 levels"),
]


@pytest.mark.parametrize(("key", "misspelt"), MISSPELT)
def test_a_misspelt_key_is_refused_with_its_line(key: str, misspelt: str) -> None:
    text, line = with_key(key, misspelt)
    assert re.search(rf"^my\.yaml:{line}:\d+: (\w+\.)*{misspelt}: unknown key", refused(text), re.M)


def test_nearly_every_misspelt_key_gets_the_right_suggestion() -> None:
    right = 0
    for key, misspelt in MISSPELT:
        meant = key.rpartition(".")[2]
        right += f"did you mean '{meant}'?" in refused(with_key(key, misspelt)[0])
    assert right / len(MISSPELT) >= 19 / 20, f"{right} of {len(MISSPELT)}"


def test_a_misspelt_key_is_not_called_missing_too() -> None:
    assert len(refused(with_key("optimizer.lr", "lerning_rate")[0]).splitlines()) == 1


@pytest.mark.parametrize(("line", "meant"), MISPLACED)
def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(line: str, meant: str) -> None:
    message = refused("\n".join([*BASE, line]))
    assert message.startswith(f"my.yaml:{len(BASE) + 1}:1: ")
    assert f"did you mean '{meant}'?" in message


@pytest.mark.parametrize(("key", "raw", "reason"), WRONG_TYPE)
def test_a_wrong_type_is_refused_with_line_and_reason(key: str, raw: str, reason: str) -> None:
    text, line = with_value(key, raw)
    message = refused(text)
    assert re.match(rf"my\.yaml:{line}:\d+: {key}", message)
    assert reason in message
    assert len(message) < 300


@pytest.mark.parametrize(("key", "raw"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_line_and_range(key: str, raw: str) -> None:
    text, line = with_value(key, raw)
    assert re.match(rf"my\.yaml:{line}:\d+: {key}(\[\d\])?: must ", refused(text))


@pytest.mark.parametrize(("key", "raw", "expected"), MESSAGES)
def test_a_bound_is_told_in_the_same_words_for_every_field(
    key: str, raw: str, expected: str
) -> None:
    message = refused("\n".join(BASE), (f"{key}={raw}",))
    assert message.endswith(expected)
    assert message.startswith("override ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("text", "expected"), STRUCTURE)
def test_a_file_of_another_structure_is_refused_with_its_place(text: str, expected: str) -> None:
    message = refused(text)
    assert re.match(r"my\.yaml:\d+:\d+: ", message)
    assert expected in message


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_tag_is_refused_and_never_acted_on(
    payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "tags are not allowed" in refused(f"name: {payload}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "expected"), HOSTILE)
def test_a_hostile_file_is_refused_with_its_place(text: str, expected: str) -> None:
    message = refused(text)
    assert re.match(r"my\.yaml:\d+:\d+: ", message)
    assert expected in message
    assert len(message) < 20_000
    assert "\x1b" not in message


@pytest.mark.parametrize(("text", "expected"), CROSS_FIELD)
def test_parts_that_do_not_fit_together_are_refused_with_a_place(text: str, expected: str) -> None:
    message = refused(text)
    assert re.match(r"my\.yaml:\d+:\d+: ", message)
    assert expected in message


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES)
def test_a_wrong_override_is_refused_and_quoted(overrides: tuple[str, ...], expected: str) -> None:
    message = refused("\n".join(BASE), overrides)
    assert message.startswith("override ")
    assert expected in message


def test_more_than_123_wrong_recipes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tables: list[list[Any]] = [MISSPELT, MISPLACED, WRONG_TYPE, OUT_OF_RANGE, STRUCTURE]
    tables += [PAYLOADS, HOSTILE, CROSS_FIELD, OVERRIDES, BAD_FILES, BAD_PATHS]
    count = sum(map(len, tables))
    with capsys.disabled():
        sys.stdout.write(f"\n{count} wrong recipes are refused\n")
    assert count >= 123


def make_large(path: Path) -> None:
    path.write_bytes(b"#" * 10_000_000)


BAD_FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "no such file"),
    (lambda path: path.mkdir(), "not a file"),
    (make_large, "larger than 1000000 bytes"),
    (lambda path: path.write_bytes("name: x\nb: é".encode("latin-1")), ":2:4: not UTF-8"),
    (lambda path: path.write_bytes("name: x".encode("utf-16")), ":1:1: not UTF-8"),
    (lambda path: path.write_bytes(b"name: \xc3"), ":1:7: not UTF-8"),
]


@pytest.mark.parametrize(("make", "expected"), BAD_FILES)
def test_a_file_that_cannot_be_read_is_named(
    make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a[b]\x1b.yaml"
    make(path)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert expected in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "a[b]" in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + RCCR.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path) == load(RCCR)


def test_all_faults_are_told_at_once() -> None:
    text = with_value("steps", "no")[0].replace("seed:", "sead:").replace("flip: false", "flip: 1")
    message = refused(text, ("optimizer.lr=fast",))
    for part in ("steps: must", "sead: unknown", "source.flip: must", "optimizer.lr: must"):
        assert part in message


def test_a_thousand_faults_are_cut_short() -> None:
    message = refused("\n".join(BASE) + "\n" + "".join(f"key{n}: 1\n" for n in range(1000)))
    assert "more" in message.splitlines()[-1]
    assert len(message.splitlines()) <= 101


@pytest.mark.parametrize("raw", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+1e-4", ".0001"])
def test_a_number_may_be_written_as_people_write_it(raw: str) -> None:
    assert load(text=with_value("optimizer.lr", raw)[0]).optimizer.lr == 1e-4
    assert load(RCCR, overrides=[f"optimizer.lr={raw}"]).optimizer.lr == 1e-4


def test_a_whole_number_is_a_number() -> None:
    assert load(RCCR, overrides=["optimizer.power=2"]).optimizer.power == 2.0
    assert isinstance(load(RCCR, overrides=["optimizer.power=2"]).optimizer.power, float)


def test_quoted_text_stays_text() -> None:
    assert load(RCCR, overrides=["source.data='no'"]).source.data == "no"
    assert load(RCCR, overrides=['name="0512"']).name == "0512"


def test_an_override_replaces_begins_and_switches_off() -> None:
    recipe = load(RCCR, overrides=["source.resize=null", "batch={source: 3, target: 3}"])
    assert recipe.source.resize is None
    assert recipe.batch.source == recipe.batch.target == 3
    assert load(RCCR, overrides=["machine.workers=2"]).machine.workers == 2
    dacs = load(RCCR, overrides=["method.regional=null"])
    assert to_dict(dacs)["method"]["regional"] is None


def test_an_override_may_begin_a_section_that_the_file_switched_off() -> None:
    text = with_value("method.regional", "null")[0]
    regional = to_dict(load(RCCR))["method"]["regional"]
    flow = dump_flow(regional)
    assert load(text=text, overrides=[f"method.regional={flow}"]) == load(RCCR)
    assert "method.regional.ramp: is missing" in refused(text, ("method.regional.weight=1",))


def dump_flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()


def test_the_same_override_twice_is_no_contradiction() -> None:
    assert load(RCCR, overrides=["steps=5", "steps=5"]).steps == 5


def test_other_yaml_readers_read_the_printed_recipe_alike() -> None:
    recipe = load(RCCR, overrides=["optimizer.lr=1e-5", "name='no'", "source.data='12:30'"])
    assert yaml.safe_load(dump(recipe)) == to_dict(recipe)


# fmt: off
TRICKY = [
    "no", "off", "on", "null", "~", "0512", "12:30", "2024-01-02", "1e-4", "nan", ".inf", "true",
    "<<", "=", "-", "?", "%", "@", "`", "|", ">", "a:b", "a#b", "it's", "[x", "{x", "*a", "&a",
    "!x", "\\x", "${A}/b", "é", "😀", "x,y", "0x1f", "1_0", "C:\\data", "-1", "---", '"q"', "a: b",
    "a #b", " lead", "trail ", "two words",
]
# fmt: on


def invented(annotation: Any, draw: random.Random) -> Any:
    """Return a random value of the annotated type within its bounds; it need not make sense."""
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        while True:
            with contextlib.suppress(ValidationError):
                return TypeAdapter(annotation).validate_python(invented(of[0], draw))
    if origin in (Union, types.UnionType):
        return invented(draw.choice(of), draw)
    if annotation is types.NoneType:
        return None
    if origin is Literal:
        return draw.choice(of)
    if origin is tuple:
        inner = [of[0]] * draw.randrange(4) if Ellipsis in of else of
        return tuple(invented(part, draw) for part in inner)
    if origin is Mapping:
        return {"gram.matrix no": invented(GramSpec, draw)} if draw.random() < 0.5 else {}
    if is_dataclass(annotation):
        assert isinstance(annotation, type)
        hints = typing.get_type_hints(annotation, include_extras=True)
        return annotation(**{p.name: invented(hints[p.name], draw) for p in fields(annotation)})
    values: dict[Any, Callable[[], Any]] = {
        bool: lambda: draw.random() < 0.5,
        int: lambda: draw.randrange(-10, 10 ** draw.randrange(1, 17)),
        float: lambda: draw.choice(
            [0.0, 1.0, draw.random(), draw.gauss(0, 1) * 10.0 ** draw.randrange(-300, 300)]
        ),
        str: lambda: draw.choice(
            ["plain", *TRICKY, "".join(draw.choices("aZ09_./:# '\"é", k=5)) + "x"]
        ),
    }
    return values[annotation]()


def test_every_recipe_survives_being_printed_and_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    # checks are off: every value of the right type must survive
    module = sys.modules["udaseg.recipe.load"]
    monkeypatch.setattr(module, "recipe_problems", lambda recipe: [])
    monkeypatch.setattr(module, "unknown_backbone", lambda name: None)
    install(monkeypatch, {("udaseg.regularizers", "gram.matrix no"): Gram})
    draw = random.Random(0)
    for _ in range(150):
        recipe = with_packages(replace(invented(Recipe, draw), packages=("torch",)))
        assert load(text=dump(recipe)) == recipe
        assert from_dict(to_dict(recipe)) == recipe


@pytest.mark.parametrize("path", [entry.path for entry in list_recipes()], ids=str)
def test_a_shipped_recipe_survives_being_printed_and_stored(path: Path) -> None:
    recipe = load(path, overrides=own_data(path))
    assert load(text=dump(recipe)) == recipe
    assert from_dict(to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("steps"),
        lambda values: values.update(steps="5"),
        lambda values: values.update(steps=5.0),
        lambda values: values.update(steps=True),
        lambda values: values.update(steps=10**5000),
        lambda values: values.update(steps=object()),
        lambda values: values.update(extra=1),
        lambda values: values.update({5: 1}),
        lambda values: values["optimizer"].update(lr=float("nan")),
        lambda values: values["optimizer"].update(lr=float("inf")),
        lambda values: values["optimizer"].update(lr=-1.0),
        lambda values: values.update(source=values),
        lambda values: values.update(method=None),
    ],
)
def test_a_damaged_stored_recipe_is_refused(damage: Callable[[dict[Any, Any]], object]) -> None:
    values = to_dict(load(RCCR))
    damage(values)
    with pytest.raises(RecipeError, match=r"^run/step\.pt"):
        from_dict(values, origin="run/step.pt")


def test_a_stored_recipe_that_is_no_dictionary_is_refused() -> None:
    with pytest.raises(RecipeError, match="must hold a recipe, got list"):
        from_dict([], origin="x")  # type: ignore[arg-type]


RETIRED = [("channels_last", "true", "false"), ("worker_timeout", "300", "60")]


@pytest.mark.parametrize(("name", "default", "other"), RETIRED)
def test_a_setting_that_is_gone_is_accepted_at_its_default_and_in_stored_recipes(
    name: str, default: str, other: str
) -> None:
    end = section_end(line_of("machine"))
    text = "\n".join([*BASE[:end], f"  {name}: {default}", *BASE[end:]])
    assert load(text=text) == load(RCCR)
    message = refused(text.replace(f"{name}: {default}", f"{name}: {other}"))
    assert message.startswith(f"my.yaml:{end + 1}:3: machine.{name}: the setting is gone: ")
    stored = to_dict(load(RCCR))
    stored["machine"][name] = yaml.safe_load(other)
    assert from_dict(stored) == load(RCCR)


def test_a_criterion_that_is_gone_is_refused_but_not_in_stored_recipes() -> None:
    message = refused(with_value("machine.keep_best", "snd")[0])
    assert "machine.keep_best: snd is gone: it ranks against the labels" in message
    stored = to_dict(load(RCCR))
    stored["machine"]["keep_best"] = "snd"
    assert from_dict(stored) == load(RCCR)


def test_the_recipe_of_a_run_is_read_without_settings_that_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(with_value("machine.keep_best", "snd")[0])
    assert load(path, stored=True) == load(RCCR)
    with pytest.raises(RecipeError, match="snd is gone"):
        load(path)


def test_rules_over_several_settings_and_unknown_keys_are_told_at_once() -> None:
    text = with_value("batch.target", "7")[0].replace("seed:", "sead: 1\nseed:")
    message = refused(text)
    assert "sead: unknown key" in message
    assert "batch.target: must equal batch.source" in message


def test_a_rule_stands_at_its_key_even_if_it_is_the_first_of_its_section() -> None:
    text = "\n".join([*BASE, "expected:", "  miou: [38, 28]"]).replace("expected: null\n", "")
    assert f"my.yaml:{len(BASE) + 1}:3: expected.miou: must be" in refused(text)


def test_a_choice_of_numbers_is_no_float_and_no_truth_value() -> None:
    for raw in ("16.0", "true"):
        assert "must be one of 8, 16, 32" in refused(with_value("model.output_stride", raw)[0])


BAD_PATHS = ["${UNSET_HERE}/x", "${EMPTY_HERE}/x", "${", "${}", "${A B}", "${A:-b}", "x\0y"]


@pytest.mark.parametrize("text", BAD_PATHS)
def test_a_path_that_cannot_be_expanded_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET_HERE", raising=False)
    monkeypatch.setenv("EMPTY_HERE", "")
    with pytest.raises(RecipeError):
        expand_path(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("a/~", "a/~"),
        ("~other/x", "~other/x"),
        ("$HOME/x", "$HOME/x"),
        ("${DATA}/x", "/big/x"),
        ("a${DATA}${DATA}", "a/big/big"),
        ("~/${NESTED}", "/home/me/${DATA}"),
        ("`id`$(id)", "`id`$(id)"),
        ("../x", "../x"),
    ],
)
def test_only_home_and_braced_variables_are_expanded(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/big")
    monkeypatch.setenv("NESTED", "${DATA}")
    assert expand_path(text) == expected


@pytest.mark.parametrize(
    ("old", "new"), [("auto", None), ("require", ("tensorboard",)), ("never", ())]
)
def test_the_old_key_of_tensorboard_says_which_loggers_there_are(
    old: str, new: tuple[str, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    end = section_end(line_of("machine"))
    lines = [line for line in BASE if line != "  loggers: null"]
    text = "\n".join([*lines[: end - 1], f"  tensorboard: {old}", *lines[end - 1 :]])
    assert load(text=text).machine.loggers == new
    assert ("is now machine.loggers=[" in caplog.text) == (new is not None)
    caplog.clear()
    stored = to_dict(load(RCCR))
    del stored["machine"]["loggers"]
    stored["machine"]["tensorboard"] = old
    assert from_dict(stored).machine.loggers == new
    assert caplog.text == ""
    assert "machine.tensorboard: unknown key" in refused(text.replace(f": {old}", ": maybe"))
