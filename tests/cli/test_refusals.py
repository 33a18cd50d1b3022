"""What can be known without torch is refused without it: torch takes seconds to import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import udaseg
from tests.support import files
from udaseg.cli.main import main
from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, index_document
from udaseg.recipe.library import recipes_folder
from udaseg.recipe.load import dump, load
from udaseg.recipe.request import Overrides, requested_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = ["--source", "city.yaml", "--target", "photos"]
TOY = ["toyland/rccr", "--source", "toyland", "--target", "photos"]

REFUSED = [
    (["info", "nope"], 3, "nope: no such run or checkpoint"),
    (["verify", "nope"], 3, "nope: no such run or checkpoint"),
    (["eval", "nope"], 3, "nope: no such run or checkpoint"),
    (["eval", "empty"], 3, "empty: holds no readable checkpoint"),
    (["eval", "."], 3, "name one of its runs: run"),
    (["report", "nope"], 3, "nope: no such run or checkpoint"),
    (["report", "photos"], 3, "photos: is not a run folder (no recipe.yaml)"),
    (["report", "."], 3, ".: is not a run folder (no recipe.yaml); name one of its runs: run"),
    (["report", "run", "-o", "city.yaml"], 2, "city.yaml: the report is a page; give a file named"),
    (["report", "run", "-o", "photos"], 2, "--out photos: is a folder; name a file"),
    (["report", "run", "--baseline", "nope"], 3, "nope: no such run or checkpoint"),
    (["table", "run", "nope"], 3, "nope: no such run or checkpoint"),
    (["table", "photos"], 3, "photos: is not a run folder, nor one of seeds or of a sweep"),
    (["verify", "photos"], 3, "photos: is not a run folder, nor one of seeds or of a sweep"),
    (["info", "photos/0.png"], 3, "photos/0.png: is not a checkpoint; name a run folder"),
    (["eval", "city.yaml"], 3, "city.yaml: is not a checkpoint; name a run folder"),
    (["eval", "run", "--save", "city.yaml"], 2, "--save city.yaml: is a file; name a folder"),
    (["eval", "run", "--root", "city.yaml"], 2, "--root city.yaml: is a file; name a folder"),
    (["select", "run", "--baseline", "run"], 2, "--baseline needs --worth-it"),
    (["select", "run", "--worth-it", "--baseline", "nope"], 3, "nope: no such run or checkpoint"),
    (["select", "run", "--worth-it", "--every"], 2, "leave out --every"),
    (["grid", "run", "-o", "photos/0.jpg"], 2, "0.jpg: the picture is a PNG; give a file named"),
    (["grid", "run", "--titles", "A,B"], 2, "1 runs need as many titles, got 2"),
    (["export", "run", "-o", "city.yaml", "--overwrite"], 2, "give a file named *.onnx"),
    (["export", "run", "-o", "done.onnx"], 2, "done.onnx: exists; use --overwrite"),
    (["export", "run", "--format", "state-dict", "--argmax"], 2, "leave out --argmax"),
    (["import", "nope.pth"], 3, "nope.pth: no such"),
    (["import", "city.yaml", "--dilations", "6;12"], 2, "--dilations must be whole numbers"),
    (["demo", "--seed", "-1"], 2, "--seed must be at least 0, got -1"),
    (["demo", "-o", "city.yaml"], 2, "--out city.yaml: is a file; name a folder"),
    (["select", "nope"], 3, "nope: no such run or checkpoint"),
    (["calibrate", "nope"], 3, "nope: no such run or checkpoint"),
    (["export", "nope"], 3, "nope: no such run or checkpoint"),
    (["features", "nope"], 3, "nope: no such run or checkpoint"),
    (["grid", "nope"], 3, "nope: no such run or checkpoint"),
    (["grid", "photos", "--device", "gpu"], 2, "--device must be auto, cpu, cuda or cuda:N"),
    (["adapt", "--steps", "1e3"], 2, "error: --steps must be a whole number, got 1e3;"),
    (["adapt", "--precision", "fp16"], 2, "error: --precision: 'fp16' is not one of 'fp32', "),
    (["eval", "run", "--fail-under", "x"], 2, "error: --fail-under must be a number, got x;"),
    (["predict", "photos", "--batch", "0"], 2, "--batch-size must be at least 1, got 0;"),
    (["report", "run", "--images", "99"], 2, "error: --images must be at most 40, got 99;"),
    (["predict", "part.yaml", "--model", "run"], 3, "part.yaml: is not an image or a video"),
    (["predict", "nope.png"], 3, "nope.png: does not exist"),
    (["predict", "empty"], 3, "empty"),
    (["predict", "photos"], 2, "no finished run found"),
    (["predict", "photos", "--model", "nope"], 3, "nope: no such run or checkpoint"),
    (["predict", "photos", "-o", "done", "--model", "nope"], 3, "nope: no such run or checkpoint"),
    (["predict", "photos", "--device", "gpu"], 2, "--device must be auto, cpu, cuda or cuda:N"),
    (["predict", "photos", "--model", "run", "-o", "done"], 2, "--overwrite"),
    (["predict", "photos", "--model", "run", "-o", "city.yaml"], 2, "--out city.yaml: is a file"),
    (["predict", "photos", "--model", "run", "--abstain", "2"], 2, "--abstain"),
    (["predict", "photos", "--model", "run", "--bits", "3"], 2, "--bits must be 8 to 16"),
    (["predict", "photos", "--model", "run", "--bands", "1,2"], 2, "--bands must be three"),
    (["predict", "photos", "--model", "run", "--shard", "5/4"], 2, "from 1/4 to 4/4"),
    (["eval"], 2, "Missing argument"),
    (["eval", "run", "--protocol", "12"], 2, "--protocol must be 19, 16 or 13, got 12"),
    (["eval", "run", "--convention", "5"], 2, "--convention must be 19 or 16, got 5"),
    (["eval", "run", "--submit", "acdc", "--protocol", "19"], 2, "leave out --protocol"),
    (["eval", "--predictions", "photos", "--batch", "2"], 2, "leave out --batch"),
    (["adapt"], 3, "gta5: not prepared below data; run `udaseg prepare gta5`"),
    (["adapt", "--device", "gpu"], 2, "must be auto, cpu, cuda or cuda:N, got gpu"),
    (["adapt", "--method", "rccl"], 2, "did you mean 'rccr'?"),
    (["adapt", "--gpus", "2"], 2, "did you mean torchrun --nproc-per-node=N -m udaseg?"),
    (["predict", "photos", "--gpus", "2"], 2, "did you mean --device?"),
    (["adapt", "--lr", "0.01"], 2, "did you mean optimizer.lr=VALUE?"),
    (["adapt", "imgsz=640"], 2, "imgsz: unknown key; did you mean 'source.resize'?"),
    (["adapt", "target.resize={short_side:64}"], 2, "did you mean 'short_side: 64'?"),
    (["adapt", "--seed", "1", "--seeds", "0,1"], 2, "--seeds cannot be combined with --seed"),
    (["adapt", "--seeds", "0,x"], 2, "--seeds must be different whole numbers"),
    (["adapt", *OWN, "--out", "run"], 2, "run: exists already"),
    (["adapt", *OWN, "--init", "nope"], 3, "nope: no such run or checkpoint"),
    (["adapt", "--network", "lite"], 2, "light"),
    (["adapt", "model.backbone=resnet500"], 2, "resnet50"),
    (["adapt", *TOY, "--out", "run"], 2, "run: exists already"),
    (["adapt", *TOY, "--out", "photos"], 2, "photos: is not a run folder"),
    (["adapt", *TOY, "--init", "nope"], 3, "nope: no such run or checkpoint"),
    (["adapt", *TOY, "model.weights=nope.pth"], 3, "nope.pth: no such weights file"),
    (["adapt", "toyland/rccr", "--target", "nope"], 3, "nope: no prepared dataset"),
    (["adapt", *OWN[:2], "--target", "nope"], 3, "nope: no prepared dataset"),
    (["adapt", *OWN[:2], "--target", "empty"], 3, "empty: contains no images (.png"),
    (["adapt", *OWN[:2], "--target", "photos/0.png"], 3, "0.png: is a file; name a folder"),
    (["adapt", "--source", "nope.yaml", *OWN[2:]], 3, "nope.yaml: no such file"),
    (["adapt", "--source", "photos", *OWN[2:]], 3, "photos: has no labels, so it cannot be a"),
    (["adapt", *OWN, "--steps", "-5"], 2, "override steps=-5: steps: must be at least 1, got -5"),
    (["train", *OWN, "optimizer.lr=fast"], 2, "optimizer.lr: must be a number, got fast"),
    (["adapt", *OWN, "optimizer.lr", "=", "0.1"], 2, "write KEY=VALUE without spaces around"),
    (["adapt", "city.yaml"], 2, "city.yaml: describes data, not a recipe; use --source city.yaml"),
    (["adapt", "photos"], 2, "photos: is a folder, not a recipe; use --target photos"),
    (["adapt", "run"], 2, "run: is a folder, not a recipe; use --resume run"),
    (["sweep", "rccr", "--target", "empty"], 3, "empty: contains no images (.png"),
    (["adapt", "--resume", "nope"], 3, "nope: not a run folder"),
    (["adapt", "--resume", "several"], 2, "several: holds several runs; repeat the command that"),
    (["adapt", "--resume", "run", "--seeds", "0"], 2, "leave out --seeds, whose command continues"),
    (["adapt", *TOY, "--seeds", "0,1", "-o", "several"], 2, "several/s1: is not a run folder"),
    (
        ["adapt", *TOY, "target.split=val"],
        3,
        "photos: no split 'val'; a folder of images has train",
    ),
    (["adapt", *TOY, "validation.data=photos"], 3, "photos: has no labels, so it cannot be used"),
    (["adapt", *TOY, "--out", "city.yaml/x"], 2, "city.yaml: is a file; choose another --out"),
    (["info", "run/checkpoints/step-000002.json"], 3, "describes a checkpoint; name run/check"),
    (["select", "swept"], 3, "holds no readable checkpoint; name one of its runs: swept/a/s0"),
    (["adapt", "--resume", "run", "--steps", "3"], 2, "steps was 500 and is now 3"),
    (["sweep", "toyland/rccr", "--init", "nope"], 3, "nope: no such run or checkpoint"),
    (["sweep", "toyland/rccr", "optimizer.lr=fast,1"], 2, "must be a number, got fast"),
    (["sweep", "toyland/rccr", "steps=1,2", "--steps", "1"], 2, "steps=1,2 contradicts the option"),
    (["adapt", *TOY, "--target", "toyland-target"], 2, "--target is given 2 times and takes one"),
    (["predict", "photos", "-o", "a", "--output=b"], 2, "--out is given 2 times and takes one"),
    (
        ["prepare", "plain"],
        3,
        "plain: is prepared already; to prepare it again, name a dataset YAML",
    ),
    (["prepare", "whole.yaml"], 3, "whole.yaml: is a recipe, not a dataset YAML; `udaseg adapt"),
    (["sweep", "toyland/rccr", "-o", "photos"], 2, "photos: holds other files, such as 0.png"),
    (["adapt", *TOY, "--seeds", "0,1", "-o", "photos"], 2, "photos: holds other files"),
    (["adapt", *OWN, "model.weights=nope.pth"], 3, "nope.pth: no such weights file"),
    (["adapt", *OWN, "--device", "cuda"], 5, "cuda is not available: no driver of a GPU"),
    (["adapt", "part.yaml"], 2, "has no name, seed, target, validation, model, optimizer, batch;"),
    (["adapt", "part.yaml"], 2, "part.yaml:1:1: stps: unknown key; did you mean 'steps'?"),
    (["adapt", *OWN[:2], "--target", "run"], 3, "run: is a run, not a folder of images"),
    (["doctor", "run"], 3, "run: is a run, not a folder of images"),
    (["predict", "run", "--model", "run"], 3, "run: is a run, not a folder of images"),
    (["predict", "--source", "photos"], 2, "no option --source; did you mean IMAGES?"),
    (["predict", "photos", "--weights", "run"], 2, "'teacher'; did you mean --checkpoint?"),
    (["eval", "run", "--device", "cuda:0"], 5, "cuda:0 is not available: no driver of a GPU"),
    (["eval", "run", "--device", "mps"], 5, "mps is not available"),
    (["eval", "run", "--data", "photos"], 3, "photos: has no labels, so it cannot be used for"),
    (["eval", "run", "--data", "plain"], 3, "plain: has no labels, so it cannot be used for"),
    (["features", "run", "--data", "plain", "--split", "x"], 3, "no split 'x'; it has train"),
    (["select", "run", "--data", "plain", "--oracle"], 3, "plain: has no labels, so it cannot"),
    (["select", "first"], 3, "first: no such run or checkpoint; did you mean runs/first?"),
    (["doctor", "nope"], 3, "nope: no prepared dataset"),
    (["tile", "nope", "tiles"], 3, "nope: no prepared dataset"),
    (["tile", "photos", "photos"], 2, "photos: holds something; name an empty or a new folder"),
    (["prepare", "photos"], 3, "photos: is a folder; name a built-in data set, with --root"),
    (["prepare", "GTA"], 3, "did you mean 'gta5'?"),
]

_RUN = """
import contextlib, io, json, sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
from udaseg.cli.main import main
from udaseg.recipe import requirements
requirements._DRIVERS, requirements._AMD_DEVICE = (), requirements.Path("nowhere")
results = []
for words in json.loads(sys.argv[1]):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            main(words)
        except SystemExit as stop:
            results.append([stop.code, stderr.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return code and stderr of each command, in a process that has no torch."""
    home = tmp_path_factory.mktemp("home")
    (home / "empty").mkdir()
    files.put(home / "photos/0.png", files.image_png(32, 32, 0))
    (home / "city.yaml").write_text("name: city\nimages: photos/*.png\n")
    (home / "run/checkpoints").mkdir(parents=True)
    (home / "run/checkpoints/step-000001.json").touch()
    recipe = load(recipes_folder() / "toyland/rccr.yaml", overrides=["target.data=photos"])
    files.put(home / "runs/first/recipe.yaml", b"")
    files.put(home / "swept/a/s0/recipe.yaml", b"")
    files.put(home / "several/seeds.json", b"{}")
    files.put(home / "several/s1/notes.txt", b"")
    for suffix in ("json", "pt"):
        files.put(home / f"run/checkpoints/step-000002.{suffix}", b"")
    (home / "part.yaml").write_text("stps: 100\nsource: {data: city}\nmethod: {kind: dacs}\n")
    plain = PreparedDataset(
        "plain", home / "data/prepared/plain", home, None, {"train": ()}, bits=0
    )
    files.put(plain.folder / INDEX_NAME, json.dumps(index_document(plain)).encode())
    (home / "whole.yaml").write_text(dump(recipe))
    (home / "done.onnx").touch()
    (home / "run/recipe.yaml").write_text(dump(recipe))
    files.put(home / "done/ids/0.png", files.gray_png(np.zeros((32, 32), int)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("UDASEG_DATA", None)
    commands = json.dumps([words for words, _, _ in REFUSED])
    result = subprocess.run(
        [sys.executable, "-c", _RUN, commands],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda n: " ".join(REFUSED[n][0]))
def test_what_can_be_known_without_torch_is_refused_without_it(refusals, number):
    _, code, message = REFUSED[number]
    given, stderr = refusals[number]
    assert (given, message in stderr) == (code, True), stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "gta5", "--target", "gta5"], "source and target are both gta5"),
        (["--source", "cityscapes", "--target", "gta5"], "are --source and --target swapped?"),
        (["toyland/dacs", "--source", "toyland-target", "--target", "toyland"], "swapped?"),
        (["--source", "gta5", "--target", "cityscapes"], ""),
        (["--source", "acdc", "--target", "bdd100k"], ""),
    ],
)
def test_domains_that_are_swapped_or_the_same_are_warned_of(words, message, caplog):
    named, options = ([words[0]], words[1:]) if "/" in words[0] else ([], words)
    requested_recipe(named, Overrides(source=options[1], target=options[3]), "rccr")
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == bool(message)
    assert message in "".join(warnings)


def test_an_oracle_is_not_warned_of(caplog):
    requested_recipe([], Overrides(source="cityscapes", target="cityscapes"), "source_only")
    assert not caplog.records


def test_resume_without_a_run_takes_the_newest_that_is_not_done(tmp_path, monkeypatch, capsys):
    recipe = dump(load(recipes_folder() / "toyland/rccr.yaml"))
    for name, state, time in (("a", "interrupted", 3.0), ("b", "failed", 5.0), ("c", "done", 9.0)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text(recipe)
        status = {"state": state, "unix_time": time}
        (tmp_path / "runs" / name / "status.json").write_text(json.dumps(status))
    monkeypatch.chdir(tmp_path)
    resumed = []
    monkeypatch.setattr(udaseg, "adapt", lambda **given: resumed.append(given["options"].resume))
    for words in (["--resume"], ["--resume", "-v"], ["--resume", "machine.workers=0"]):
        with pytest.raises(SystemExit) as stop:
            main(["adapt", "--root", str(tmp_path), *words])
        assert stop.value.code == 0, capsys.readouterr().err
    assert resumed == [Path("runs/b")] * 3
    assert "resuming runs/b" in capsys.readouterr().err
    (tmp_path / "runs/a/status.json").unlink()
    (tmp_path / "runs/b/status.json").unlink()
    for name in "ab":
        (tmp_path / "runs" / name / "recipe.yaml").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["adapt", "--resume"])
    assert stop.value.code == 2
    assert "no run to resume" in capsys.readouterr().err
