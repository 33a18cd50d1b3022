"""The list of measurements: its jobs, its results and its tables."""

import itertools
import json

import pytest

from tests.bench import measure
from tests.support.toy import TINY, toy_root
from udaseg.recipe.request import Overrides, requested_recipe
from udaseg.recipe.stages import adapts


def result(name, miou, **more):
    words = {job.name: list(job.words) for job in measure.all_jobs()}[name]
    iou = {"road": miou + 10, "bicyclist": miou - 10}
    return {"name": name, "words": words, "miou": miou, "iou": iou, "cpu_minutes": 10.0, **more}


@pytest.fixture
def results(tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(measure, "RESULTS", file)

    def write(*lines):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def test_each_part_has_the_words_of_the_parts_before_it():
    rows = measure.GROUPS["parts"].rows
    assert len(rows) == 12
    assert rows["source_only"] == ("synstreet_camvid/source_only",)
    after_lost = {"regional_contrast": "larger_labels"}
    for earlier, name in itertools.pairwise([*rows][1:-2]):
        shorter, longer = rows[after_lost.get(name, earlier)], rows[name]
        assert longer[: len(shorter)] == shorter and len(longer) > len(shorter), name
    left_out = set(rows["larger_labels"]) - set(rows["without_masking"])
    assert left_out == set(measure.PARTS["masking"])
    changed = set(rows["larger_labels"]) ^ set(rows["labels_of_twice_the_size"])
    assert changed == {f"method.teacher.{word}" for word in ("mirror=true", "scale=1.5", "scale=2")}


def test_the_words_of_each_job_describe_a_recipe():
    for job in measure.all_jobs():
        if job.name.endswith("/0"):
            options = dict(word[2:].split("=") for word in job.words if word.startswith("--"))
            words = [word for word in job.words if not word.startswith("--")]
            changes = Overrides(network=options.get("network"), steps=int(options["steps"]))
            recipe, _ = requested_recipe(words, changes, job.name)
            assert recipe.steps == int(options["steps"])
            assert adapts(recipe) == ("source_only" not in job.name)


def test_a_result_counts_only_for_the_words_it_was_measured_with(results):
    same, other = result("light/dacs/0", 35.0), result("light/rccr/0", 36.0)
    other["words"] = [*other["words"], "optimizer.lr=1e-3"]
    results(same, other)
    assert measure.read_results() == [same]


def test_a_table_has_means_spreads_and_differences_over_shared_seeds():
    warm = {"teacher": {"miou": 51.0}, "warm": {"miou": 44.0}, "worth": {"verdict": "better"}}
    results = [
        result("parts/source_only/0", 40.0),
        result("parts/source_only/1", 42.0),
        result("parts/warm_self_training/0", 46.0, **warm),
        result("parts/warm_self_training/1", 50.0, **warm),
        result("parts/masking/1", 51.0, **warm),
        result("light/dacs/0", 99.0),
    ]
    lines = measure.table("parts", results).splitlines()
    assert "| source_only | 2 | 41.0 | 1.4 | 51.0 |  |  |  |  |  | 10.0 |" in lines
    warm_row = next(line for line in lines if line.startswith("| warm_self_training"))
    assert warm_row.split(" | ")[1:6] == ["2", "48.0", "2.8", "58.0", "+7.0"]
    assert warm_row.split(" | ")[6:] == ["+7.0", "51.0", "44.0", "better, better", "10.0 |"]
    assert "| masking | 1 | 51.0 |  | 61.0 | +9.0 | +1.0 | 51.0 | 44.0 | better | 10.0 |" in lines
    assert "| road | 51.0 | 58.0 | 61.0 |" in lines
    assert measure.table("toyland", results) == ""


@pytest.mark.slow
def test_jobs_are_trained_scored_written_down_and_not_repeated(
    results, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UDASEG_DATA", str(toy_root(tmp_path / "data")))
    monkeypatch.setattr(measure, "RUNS", tmp_path / "runs")
    names = ("source_only", "dacs", "missing")
    rows = {name: (f"toyland/{name}",) for name in names}
    group = measure.Group("tiny", ("--steps=2", *TINY), rows, (0,))
    monkeypatch.setattr(measure, "GROUPS", {"tiny": group})
    monkeypatch.setattr("sys.argv", ["measure"])
    measure.main()
    before, line = measure.read_results()
    assert not any("worth" in key for key in before) and "worth" not in line
    assert line["worth_source_only"]["verdict"] in ("better", "worse", "unclear")
    assert line["target"] == "toyland-target" and line["threads"] == 1
    assert len(line["iou"]) == 13 and len(line["teacher"]["iou"]) == 13
    assert {"entropy", "infomax", "flip", "source", "drift", "collapsed"} < line["criteria"].keys()
    assert "tiny/missing/0: failed with code 2" in capsys.readouterr().out
    measure.main()
    assert "tiny/dacs/0" not in capsys.readouterr().out
    assert measure.read_results() == [before, line]
