"""Tables of runs: which runs are a row, differences to a baseline, and all formats."""

import csv
import io
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest

from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.evaluation.evaluate import write_scores
from udaseg.experiments.compare import compare_runs
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import dump, load
from udaseg.runs.image_counts import ImageCounts
from udaseg.runs.scores import Scores

CLASSES = ("road", "sky_|", "train")
IMAGES = 30
PROTOCOL = {"data": "city", "split": "val", "weights": "student at step 7"}


def write_run(folder, skill, seed=0, recipe="toyland/dacs", evaluation="city-val", **protocol):
    """Write a run whose share of right pixels in the first two classes is about `skill`."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = replace(load(find_recipe(recipe)), seed=seed)
    (folder / "recipe.yaml").write_text(dump(chosen))
    rng = np.random.default_rng(seed)
    truth = np.array([[100, 50, 0]] * IMAGES)
    right = rng.binomial(truth, skill)
    names = tuple(f"{n}.png" for n in range(IMAGES))
    counts = ImageCounts(names, CLASSES, right, truth + 10, truth)
    (iou,) = counts.iou(np.ones((1, IMAGES)))
    by_class = dict(zip(CLASSES, iou.tolist(), strict=True))
    means = {"mIoU": statistics.fmean(iou[:2])}
    scores = Scores(
        {**PROTOCOL, **protocol}, by_class, by_class, by_class, means, 0.5, [[0] * 3] * 3
    )
    write_scores(folder / "eval" / evaluation, replace(scores, images=counts))
    return folder


def seeds(folder, skill, numbers=(0, 1, 10), **how):
    for number in numbers:
        write_run(folder / f"s{number}", skill, number, **how)
    (folder / "seeds.json").write_text("{}")
    return folder


def miou(run, evaluation="city-val"):
    path = run / "eval" / evaluation / "scores.json"
    return json.loads(path.read_text())["means"]["mIoU"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with a baseline, a better method, and one that is as good as the baseline."""
    out = tmp_path_factory.mktemp("runs")
    seeds(out / "base", 0.5, recipe="toyland/source_only")
    seeds(out / "better", 0.7)
    seeds(out / "same", 0.5, (3, 4), recipe="toyland/rccr")
    return out


def test_a_row_has_mean_and_spread_over_the_seeds_and_its_difference(runs):
    table = compare_runs([runs / "better", runs / "same"], baseline=runs / "base")
    assert [method.name for method in table.methods] == ["source_only", "dacs", "rccr"]
    values = [
        [miou(run) for run in sorted((runs / name).glob("s*/"))] for name in ("base", "better")
    ]
    base, better, same = table.methods
    assert better.means["mIoU"].mean == pytest.approx(statistics.fmean(values[1]))
    assert better.means["mIoU"].spread == pytest.approx(statistics.stdev(values[1]))
    assert [run.path.name for run in better.runs] == ["s0", "s1", "s10"]
    assert base.differences == {}
    gain = better.differences["mIoU"]
    assert gain.mean == pytest.approx(statistics.fmean(values[1]) - statistics.fmean(values[0]))
    assert gain.interval[0] < gain.mean < gain.interval[1]
    assert gain.interval[0] > 0.1  # far from zero: 20 points
    low, high = same.differences["mIoU"].interval
    assert low < same.differences["mIoU"].mean < high
    assert set(better.differences) == {"road", "sky_|", "mIoU"}  # train was never measured
    assert compare_runs([runs / "better", runs / "same"], baseline=runs / "base") == table


def test_single_runs_that_differ_only_in_the_seed_are_a_row(tmp_path):
    for seed in (2, 1):
        write_run(tmp_path / f"a{seed}", 0.5, seed)
    write_run(tmp_path / "other", 0.5, 3, recipe="toyland/rccr")
    started = write_run(tmp_path / "started", 0.5, 4)
    (started / "init.json").write_text(json.dumps({"checkpoint": "x", "sha256": "1", "step": 3}))
    paths = [tmp_path / name for name in ("a2", "other", "a1", "started", "a2")]
    table = compare_runs(paths)
    rows = {method.name: [run.path.name for run in method.runs] for method in table.methods}
    assert rows == {"dacs (a2)": ["a1", "a2"], "rccr": ["other"], "dacs (started)": ["started"]}
    assert table.baseline is None


def test_a_copied_run_is_counted_once_and_named(tmp_path, caplog):
    def write(name, seed, digest):
        run = write_run(tmp_path / name, 0.5, seed)
        (run / "checkpoints").mkdir()
        for step, sha256 in ((3, "1"), (7, digest)):  # the newest counts
            facts = {"sha256": sha256}
            (run / f"checkpoints/step-{step:06d}.json").write_text(json.dumps(facts))
        return run

    runs = [write("a", 1, "x"), write("b", 2, "x"), write("again", 1, "y"), write("copy", 1, "x")]
    (row,) = compare_runs(runs).methods
    assert [run.path.name for run in row.runs] == ["a", "again", "b"]
    assert len(row.means["mIoU"].values) == 3
    left_out = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert left_out == [f"{tmp_path / 'copy'}: left out, it is a copy of {tmp_path / 'a'}"]


def test_a_sweep_is_a_row_for_each_setting_also_when_one_is_the_baseline(tmp_path):
    settings = [
        {"name": name, "folder": f"f{n}"} for n, name in enumerate(("lr=1", "lr=2", "lr=3"))
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": settings}))
    for number in range(2):  # the third has not run yet
        seeds(tmp_path / f"f{number}", 0.5 + 0.1 * number, (0, 1))
    table = compare_runs(tmp_path, baseline=tmp_path / "f1")
    assert [method.name for method in table.methods] == ["lr=2", "lr=1"]
    with pytest.raises(UsageError, match="the baseline must be one method; give one of"):
        compare_runs(tmp_path, baseline=tmp_path)


def test_rows_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("x/a", "x/b", "y/b"):
        seeds(tmp_path / name, 0.5, (0,))
    names = [
        each.name for each in compare_runs([tmp_path / n for n in ("x/a", "x/b", "y/b")]).methods
    ]
    assert names == ["dacs (a)", f"dacs ({tmp_path / 'x/b'})", f"dacs ({tmp_path / 'y/b'})"]


def test_every_format_has_the_same_numbers(runs):
    table = compare_runs([runs / "better"], baseline=runs / "base")
    better = table.methods[1]
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == 2 * 4
    row = next(row for row in rows if (row["method"], row["score"]) == ("dacs", "mIoU"))
    mean, spread = (100 * each for each in (better.means["mIoU"].mean, better.means["mIoU"].spread))
    assert (row["seeds"], row["mean_percent"], row["spread_percent"]) == (
        "3",
        f"{mean:.2f}",
        f"{spread:.2f}",
    )
    low, high = (100 * end for end in better.differences["mIoU"].interval)
    assert [row["low_points"], row["high_points"]] == [f"{low:.2f}", f"{high:.2f}"]
    unmeasured = next(row for row in rows if row["score"] == "train")
    assert (unmeasured["seeds"], unmeasured["mean_percent"]) == ("0", "")
    difference = f"{100 * better.differences['mIoU'].mean:+.2f} [{low:.2f}, {high:.2f}]"
    markdown = table.to_markdown().splitlines()
    assert markdown[0] == "| method | road | sky_\\| | train | mIoU | mIoU - source_only |"
    assert markdown[3].endswith(f" - | **{mean:.2f}** ± {spread:.2f} | {difference} |")
    assert markdown[2].endswith(" | - |")
    latex = table.to_latex()
    assert "source\\_only &" in latex
    assert "\\rotatebox{90}{sky\\_|}" in latex
    assert f"\\textbf{{{mean:.1f}}}{{\\scriptsize$\\pm${spread:.1f}}}" in latex
    lines = [line for line in latex.splitlines() if line.endswith("\\\\")]
    assert {line.count("&") for line in lines} == {5}


def test_rows_with_other_classes_are_compared_by_the_names_of_the_classes(runs, tmp_path):
    run = write_run(tmp_path / "run", 0.9, recipe="toyland/rccr")
    for name in ("scores.json", "images.csv"):
        path = run / "eval/city-val" / name
        path.write_text(path.read_text().replace("sky_|", "hill"))
    table = compare_runs([run], baseline=runs / "base")
    assert table.score_names == ("road", "sky_|", "train", "hill", "mIoU")
    row = table.methods[1]
    assert set(row.differences) == {"road"}  # the two means are over other classes
    assert row.differences["road"].interval[0] > 0.2
    cells = table.to_markdown().splitlines()[3].strip(" |").split(" | ")
    assert cells[2:4] == ["-", "-"]
    assert cells[4:] == [f"{100 * row.iou['hill'].mean:.2f}", f"{100 * miou(run):.2f}", "-"]
    assert (
        "rccr: scored on other classes than source_only, without sky_| and with hill. Pixels of a "
        "class that a network lacks are not scored, so the numbers of these rows are not comparable"
    ) in table.notes


def test_special_characters_of_latex_are_escaped(tmp_path):
    settings = [{"name": "a_b={x: 5 %}\\~^$#&", "folder": "f"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": settings}))
    seeds(tmp_path / "f", 0.5, (0,))
    assert (
        "a\\_b=\\{x: 5 \\%\\}\\textbackslash{}\\textasciitilde{}\\textasciicircum{}\\$\\#\\&"
        in compare_runs(tmp_path).to_latex()
    )


def test_what_cannot_be_compared_is_told(runs, tmp_path):
    lone = write_run(tmp_path / "lone", 0.6, 1, recipe="toyland/spcl", input="512x256")
    unscored = tmp_path / "unscored"
    unscored.mkdir()
    (unscored / "recipe.yaml").write_text((lone / "recipe.yaml").read_text())
    (lone / "eval/city-val/images.csv").unlink()
    table = compare_runs([lone, unscored, runs / "better"], baseline=runs / "base")
    notes = "\n".join(table.notes)
    assert "scored differently: input - and 512x256" in notes
    assert "no interval for spcl: not all runs have the counts of the same images" in notes
    assert f"{unscored}: left out, it has no scores of city-val" in notes
    assert table.methods[1].differences["mIoU"].interval is None
    assert "weights" not in notes.partition("\n")[2]


def test_counts_that_do_not_give_the_scores_are_not_used(runs, tmp_path):
    run = write_run(tmp_path / "run", 0.7)
    path = run / "eval/city-val/images.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    table = compare_runs([run], baseline=runs / "base")
    assert table.methods[1].differences["mIoU"].interval is None


def test_there_is_no_interval_between_scores_by_other_labels(runs, tmp_path):
    run = write_run(tmp_path / "run", 0.7)
    path = run / "eval/city-val/images.csv"
    lines = path.read_text().splitlines()
    for row, change in ((1, 1), (3, -1)):  # a pixel of truth moves to another image
        *rest, truth = lines[row].split(",")
        lines[row] = ",".join([*rest, str(int(truth) + change)])
    path.write_text("\n".join(lines) + "\n")
    table = compare_runs([run], baseline=runs / "base")
    assert table.methods[1].differences["mIoU"].interval is None
    assert "images with the same labels" in table.notes[-1]


def test_a_note_on_unreadable_scores_names_the_run(tmp_path):
    runs = [write_run(tmp_path / name, 0.5, recipe=f"toyland/{name}") for name in ("dacs", "rccr")]
    (runs[1] / "eval/city-val/scores.json").write_text("{")
    notes = compare_runs(runs).notes
    assert notes[-1].startswith(f"{runs[1]}: left out, city-val/scores.json cannot be read (")


def test_the_evaluation_is_one_that_all_have(tmp_path):
    a, b = (
        write_run(tmp_path / "a", 0.5, 0),
        write_run(tmp_path / "b", 0.5, 1, recipe="toyland/rccr"),
    )
    write_run(a, 0.6, evaluation="city-val+flip")
    write_run(b, 0.6, 1, "toyland/rccr", evaluation="city-val+flip")
    write_run(a, 0.9, evaluation="only-a")
    assert compare_runs([a, b]).evaluation == "city-val"
    assert compare_runs([a, b], evaluation="city-val+flip").evaluation == "city-val+flip"
    alone = compare_runs([a, b], evaluation="only-a")
    assert len(alone.methods) == 1
    for name in ("city-val", "city-val+flip"):
        (b / "eval" / name / "scores.json").unlink()
    write_run(b, 0.5, 1, "toyland/rccr", evaluation="only-b")
    with pytest.raises(DataError, match="no evaluation in common"):
        compare_runs([a, b])
    with pytest.raises(DataError, match="too few runs with scores of nothing"):
        compare_runs([a, b], evaluation="nothing")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a run folder, nor one of seeds"):
        compare_runs(tmp_path)
    (tmp_path / "sweep.json").write_text('{"settings": [{"name": 3}]}')
    with pytest.raises(CheckpointError, match="is not a run folder"):
        compare_runs(tmp_path)
