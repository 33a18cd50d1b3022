"""How the command line calls the commands, and how it reports the errors they raise."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import udaseg
from tests.runs.test_scores import SCORES
from tests.support import files
from udaseg import preflight
from udaseg.cli.main import main
from udaseg.errors import DataError, GateError, Interrupted, RecipeError, UsageError
from udaseg.evaluation.servers import SERVERS
from udaseg.inspection.verify import Verification
from udaseg.recipe.library import recipes_folder
from udaseg.recipe.load import dump, load

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = recipes_folder() / "gta5_cityscapes" / "rccr.yaml"
NAMES = (
    "prepare",
    "train",
    "adapt",
    "evaluate",
    "score_predictions",
    "submit",
    "predict",
    "calibrate",
    "info",
    "demo",
)


class Commands(ModuleType):
    """Replaces the functions of `udaseg`.

    Records each call, then raises `error` if it is set, or returns what `results` has for it.
    """

    def __init__(self) -> None:
        super().__init__("commands")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.results: dict[str, Any] = {}
        for name in NAMES:
            setattr(self, name, self._record(name))

    def _record(self, name: str) -> Callable[..., Any]:
        def command(**words: Any) -> Any:
            self.calls.append((name, words))
            if self.error is not None:
                raise self.error
            return self.results.get(name)

        return command


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    for name in NAMES:
        module = "udaseg.demo" if name == "demo" else "udaseg"
        monkeypatch.setattr(f"{module}.{name}", getattr(fake, name), raising=False)
    for name in ("check_runs", "check_run_groups", "check_networks", "check_training"):
        monkeypatch.setattr(preflight, name, lambda *_, **__: None)
    monkeypatch.delenv("UDASEG_DATA", raising=False)
    return fake


def called(commands: Commands, *words: str) -> dict[str, Any]:
    """Run the command line and return the arguments of its only call."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    ((_, given),) = commands.calls
    return given


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int | str | None, str]:
    """Run the command line and return the exit code and stderr; stdout must be empty."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    assert out == ""
    return stop.value.code, err


def test_prepare_needs_only_a_name(commands: Commands) -> None:
    commands.results["prepare"] = []
    assert called(commands, "prepare", "gta5", "cityscapes") == {
        "names": ["gta5", "cityscapes"],
        "root": Path("data"),
        "options": udaseg.PrepareOptions(
            max_bad=0,
            on_mismatch="exclude",
            exclude=(),
            check_only=False,
            seed=0,
            size=None,
            workers=-1,
            cache=None,
        ),
    }


def test_prepare_takes_its_options(commands: Commands) -> None:
    commands.results["prepare"] = []
    words = "prepare toyland --root d --check-only --max-bad 3 --on-mismatch resize --seed 4"
    more = "--size [64,128] --workers 2 --exclude a --exclude b"
    given = called(commands, *words.split(), *more.split())
    assert given["root"] == Path("d")
    assert given["options"] == udaseg.PrepareOptions(
        3, "resize", ("a", "b"), check_only=True, seed=4, size=(64, 128), workers=2, cache=None
    )
    commands.calls.clear()
    cached = called(commands, "prepare", "gta5", "--cache", "1280x720", "--cache-format", "raw")
    assert cached["options"].cache == udaseg.CacheOptions((720, 1280), "raw")


def test_the_root_comes_from_the_environment(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDASEG_DATA", "/elsewhere")
    assert called(commands, "demo")["root"] == Path("/elsewhere")


def test_adapt_needs_nothing(commands: Commands) -> None:
    given = called(commands, "adapt")
    options = dict(vars(given.pop("options")))
    assert given == {"recipe": load(SHIPPED), "out": None}
    assert options.pop("command")[0] == "udaseg"
    assert callable(options.pop("on_finish"))
    assert options == {
        "recipe_path": SHIPPED,
        "root": Path("data"),
        "resume": None,
        "init": None,
        "overwrite": False,
        "dry_run": False,
        "fit_memory": False,
        "source_only": False,
        "timed": False,
    }


def test_adapt_takes_words_and_options_in_any_order(commands: Commands) -> None:
    words = "adapt steps=5 --out r --seed 3 gta5_cityscapes/rccr --target photos --batch 1 -v"
    more = ["optimizer.lr=1e-5", "--dry-run", "--init", "c.pt"]
    given = called(commands, *words.split(), *more)
    recipe, options = given["recipe"], given["options"]
    assert (recipe.steps, recipe.seed, recipe.optimizer.lr) == (5, 3, 1e-5)
    assert (recipe.batch.source, recipe.batch.target) == (1, 1)
    assert (recipe.target.data, recipe.validation.data) == ("photos", None)
    assert (given["out"], options.init) == (Path("r"), Path("c.pt"))
    assert (options.dry_run, options.overwrite) == (True, False)


def test_a_network_is_put_over_the_recipe(commands: Commands) -> None:
    given = called(commands, "adapt", "toyland/dacs", "--network", "light", "steps=5")
    light = recipes_folder() / "networks" / "light.yaml"
    dacs = recipes_folder() / "toyland" / "dacs.yaml"
    assert given["recipe"] == load(dacs, overrides=["steps=5"], network=light)
    assert str(given["options"].recipe_path) == f"{dacs} with {light}"


@pytest.mark.parametrize("command", ["train", "adapt"])
def test_the_command_words_are_passed_on(
    commands: Commands, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/udaseg", command, "gta5_cityscapes/rccr", "steps=5"])
    with pytest.raises(SystemExit):
        main()
    assert commands.calls[0][0] == command
    expected = ["udaseg", command, "gta5_cityscapes/rccr", "steps=5"]
    assert commands.calls[0][1]["options"].command == expected


def test_resume_reads_the_recipe_of_the_run(commands: Commands, tmp_path: Path) -> None:
    written = load(SHIPPED, overrides=["steps=5"])
    (tmp_path / "recipe.yaml").write_text(dump(written))
    given = called(commands, "adapt", "--resume", str(tmp_path), "--workers", "1")
    assert given["recipe"].steps == 5
    assert given["recipe"].machine.workers == 1
    assert given["options"].resume == tmp_path
    assert given["options"].recipe_path == tmp_path / "recipe.yaml"


def test_eval_needs_only_a_run(commands: Commands) -> None:
    commands.results["evaluate"] = SCORES
    given = called(commands, "eval", "runs/x")
    assert asdict(given.pop("options")) == {
        "weights": "student",
        "inference": {
            "resize": None,
            "keep_shape": False,
            "flip": False,
            "scales": (1.0,),
            "window": None,
            "release": False,
            "batch": None,
            "resampling": "area",
        },
        "scoring": {"protocol": None, "convention": None, "out": None},
        "save": None,
        "ids": "train",
        "device": "auto",
        "root": Path("data"),
    }
    assert given == {"run": Path("runs/x"), "data": None, "split": "val"}


def test_eval_takes_its_options(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.results["evaluate"] = SCORES
    words = "eval r --data d --split s --weights teacher --flip --scales 0.5,1,1.25"
    more = "--window [512,1024] --protocol 16 --format json --fail-under 43.5 --out o --device cpu"
    given = called(commands, *words.split(), *more.split())
    options, inference, scoring = (
        given["options"],
        given["options"].inference,
        given["options"].scoring,
    )
    assert (given["data"], given["split"], options.weights) == ("d", "s", "teacher")
    assert (inference.scales, inference.window) == ((0.5, 1.0, 1.25), (512, 1024))
    assert (inference.flip, options.device) == (True, "cpu")
    assert (scoring.protocol, scoring.out) == (16, Path("o"))
    assert json.loads(capsys.readouterr().out) == SCORES.to_json()


def test_eval_of_files_needs_no_run(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.results["score_predictions"] = SCORES
    words = "eval --predictions p --data city --ids label --release --format md"
    given = called(commands, *words.split())
    assert given == {
        "predictions": Path("p"),
        "ids": "label",
        "data": "city",
        "split": "val",
        "release": True,
        "scoring": udaseg.ScoringOptions(),
        "root": Path("data"),
    }
    assert capsys.readouterr().out == SCORES.to_markdown() + "\n"


def test_eval_makes_a_package_for_a_server(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "o.zip").touch()
    commands.results["submit"] = udaseg.Submission(tmp_path / "o.zip", SERVERS["dark-zurich"], 151)
    words = "eval r --submit dark-zurich --flip --batch 2 --out o"
    given = called(commands, *words.split())
    assert commands.calls[0][0] == "submit"
    assert asdict(given.pop("options")) == {
        "weights": "student",
        "inference": {
            "resize": None,
            "keep_shape": False,
            "flip": True,
            "scales": (1.0,),
            "window": None,
            "release": False,
            "batch": 2,
            "resampling": "area",
        },
        "out": Path("o"),
        "device": "auto",
        "root": Path("data"),
    }
    assert given == {"run": Path("r"), "server": "dark-zurich", "data": None, "split": None}


NOTHING = udaseg.PredictSummary({}, 0, 0, 0, 0, 0, 0, {}, Path("failures.csv"), {}, 0)


def test_predict_needs_only_images(commands: Commands) -> None:
    commands.results["predict"] = NOTHING
    given = called(commands, "predict", "a.png", "images/")
    assert asdict(given.pop("options")) == {
        "save": "color,ids",
        "video": "mp4",
        "abstain": None,
        "calibrated": True,
        "batch": None,
        "bits": None,
        "bands": None,
        "shard": None,
        "weights": "better",
        "device": "auto",
        "overwrite": False,
        "resume": False,
        "flip": False,
        "window": None,
    }
    assert given == {"inputs": ["a.png", "images/"], "model": None, "out": Path("masks")}


def test_options_have_the_names_of_other_tools_too(commands: Commands) -> None:
    commands.results["predict"] = NOTHING
    given = called(commands, *["predict", "x", "--model", "r", "-o", "m", "--batch-size", "2"])
    assert (given["model"], given["out"], given["options"].batch) == (Path("r"), Path("m"), 2)
    commands.calls.clear()
    given = called(commands, *["adapt", "--output", "r", "--batch-size", "3"])
    assert (given["out"], given["recipe"].batch.target) == (Path("r"), 3)


def test_predict_takes_each_kind_of_output_once(commands: Commands) -> None:
    commands.results["predict"] = NOTHING
    given = called(commands, "predict", "x", "--save", "ids,overlay,ids", "--resume")
    assert given["options"].kinds == ("ids", "overlay")
    assert given["options"].resume is True


@pytest.mark.parametrize("word", ["0", "1", "-0.5", "nan", "70"])
def test_predict_abstains_below_a_confidence_only(commands: Commands, word: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "x", f"--abstain={word}"])
    assert stop.value.code == 2
    assert commands.calls == []


def test_calibrate_needs_only_a_run(commands: Commands) -> None:
    path = Path("runs/x/calibration.json")
    commands.results["calibrate"] = udaseg.Calibration(1.5, (), path, "source", "student", 7)
    assert called(commands, "calibrate", "runs/x") == {
        "run": Path("runs/x"),
        "on": "source",
        "images": 100,
        "weights": "student",
        "device": "auto",
        "root": Path("data"),
    }


def test_info_and_demo_are_called(commands: Commands) -> None:
    commands.results["info"] = SimpleNamespace(to_json=dict)
    assert called(commands, "info", "runs/x") == {"run": Path("runs/x")}
    commands.calls.clear()
    expected = {"seed": 0, "out": Path("runs/demo"), "root": Path("data")}
    assert called(commands, "demo") == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("nosuch", "No such command"),
        ("prepare", "Missing argument"),
        ("prepare x --on-mismatch maybe", "maybe"),
        ("prepare x --max-bad -1", "--max-bad"),
        ("prepare x --size 12", "--size must be [HEIGHT, WIDTH]"),
        ("prepare x --size 64x128", "was 64 high and 128 wide, and will be 64 wide and 128 high"),
        ("predict x --window 512x1024", "write '[512, 1024]' or '[1024, 512]'"),
        ("adapt source.resize=1280x720", "write [720, 1280], which is [HEIGHT, WIDTH]"),
        ("adapt source.crop=512x1024", "write [1024, 512], which is [HEIGHT, WIDTH]"),
        ("adapt source.resize=720", "write {short_side: 720}"),
        ("prepare x --size 0x5", "--size must be [HEIGHT, WIDTH]"),
        ("adapt --stepps 5", "no option --stepps; did you mean --steps?"),
        ("adapt --epochs 3", "did you mean --steps?"),
        ("adapt --imgsz 640", "did you mean source.resize=[HEIGHT,WIDTH]?"),
        ("predict x --imgsz 640", "did you mean --window?"),
        ("predict x --modle r", "did you mean --model?"),
        ("adapt --num_workers 4", "did you mean --workers?"),
        ("adapt rccr", "did you mean --method rccr, or a recipe such as gta5_cityscapes/rccr?"),
        ("adapt gta5_cityscapes", "did you mean gta5_cityscapes/METHOD, where METHOD is one of"),
        ("recipes ls gta5_cityscape", "did you mean 'gta5_cityscapes'?"),
        ("adapt --steps five", "--steps"),
        ("adapt --steps 0", "override steps=0: steps: must be at least 1"),
        ("adapt --precision fp8", "fp8"),
        ("adapt --method rccl", "did you mean 'rccr'?"),
        ("adapt gta5_cityscapes/rcr", "did you mean 'gta5_cityscapes/rccr'?"),
        ("adapt missing.yaml", "missing.yaml: no such file"),
        ("adapt a.yaml b.yaml", "at most one RECIPE"),
        ("adapt stepps=5", "did you mean 'steps'?"),
        ("adapt --steps 5 steps=6", "contradicts"),
        ("adapt --resume . --init c.pt --overwrite", "leave out --init, --overwrite"),
        ("adapt --time", "--time needs --dry-run"),
        ("adapt -v -q", "-v and -q contradict each other"),
        ("train --method nosuch", "no method 'nosuch'"),
        ("eval", "Missing argument"),
        ("eval a b", "unexpected extra argument"),
        ("eval a --protocol 12", "--protocol must be 19, 16 or 13"),
        ("eval a --convention 13", "--convention must be 19 or 16"),
        ("eval a --scales 1,x", "--scales"),
        ("eval a --scales 99", "--scales must be between"),
        ("eval a --window 5", "--window must be [HEIGHT, WIDTH]"),
        ("eval a --format xml", "xml"),
        ("eval a --weights best", "best"),
        ("eval a --ids color", "color"),
        ("eval a --submit kitti", "kitti"),
        ("eval --predictions p", "--predictions needs --data"),
        ("eval r --predictions p --data d --flip", "leave out CHECKPOINT|RUN, --flip"),
        ("eval r --submit acdc --release --fail-under 3", "leave out --release, --fail-under"),
        ("predict", "Missing argument"),
        ("predict x --save colour", "did you mean 'color'?"),
        ("predict x --save ids,", "got ''"),
        ("predict x --overwrite --resume", "give only one"),
        ("info", "Missing argument"),
        ("recipes cat nosuch", "no such file or shipped recipe"),
        ("recipes cp gta5_cityscapes/rccr no/such/folder/x.yaml", "no such folder"),
    ],
)
def test_wrong_words_are_refused_with_code_2_in_one_style(
    commands: Commands, capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    code, err = failed(capsys, *words.split())
    assert code == 2
    assert expected in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert "Traceback" not in err
    assert not commands.calls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predict", ""], "the word after predict is empty; is a shell variable not set?"),
        (["train", "--out", ""], "the word after --out is empty"),
        (["adapt", "--target="], "--target= is empty; is a shell variable not set?"),
        (["eval", "x", "--data", "a,"], "--data must be names separated by commas, as A,B, got a,"),
        (["grid", "x", "--pick", ","], "--pick must be names separated by commas"),
    ],
)
def test_an_empty_word_is_no_path(
    commands: Commands, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
    assert commands.calls == []


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UsageError("wrong [red]words[/]"), 2, "error: wrong [red]words[/]\n"),
        (
            RecipeError("a.yaml:1:2: no\na.yaml:2:1: no"),
            2,
            "error: a.yaml:1:2: no\nerror: a.yaml:2",
        ),
        (DataError("x\x1b[31m.png\n[/].png \u202e"), 3, "error: x\\x1b[31m.png\n[/].png \\u202e\n"),
        (GateError("too low"), 7, "error: too low\n"),
        (Interrupted("saved", signal.SIGTERM), 143, "saved\n"),
        (Interrupted("saved", signal.SIGINT), 130, "saved\n"),
        (OSError(errno.ENOSPC, "x", "runs/a"), 5, "error: runs/a: the disk is full; free some"),
        (OSError(errno.EACCES, "x", "runs/a"), 5, "error: runs/a: no permission"),
        (OSError(errno.EROFS, "x"), 5, "error: the file system is read-only"),
        (MemoryError(), 5, "error: out of memory"),
        (FileNotFoundError(errno.ENOENT, "gone", "x"), 1, "unexpected error: FileNotFoundError"),
        (
            ValueError("a\nb"),
            1,
            "unexpected error: ValueError: a b (run with --debug",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=repr,
)
def test_what_a_command_raises_becomes_a_message_and_a_code(
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    commands.error = error
    given, err = failed(capsys, "info", "x")
    assert given == code
    assert err.startswith(expected) or (code >= 128 and err == f"error: {expected}")
    assert "Traceback" not in err


def test_debug_anywhere_shows_the_traceback(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("--debug", "info", "x"), ("info", "x", "--debug")):
        commands.error = ValueError("broken")
        code, err = failed(capsys, *words)
        assert code == 1
        assert "Traceback" in err
        assert err.endswith("unexpected error: ValueError: broken\n")


@pytest.mark.parametrize(
    ("option", "shown"),
    [([], ["hello", "warning: careful"]), (["-q"], ["warning: careful"]),
     (["-v"], ["detail", "hello", "warning: careful"])],
)  # fmt: skip
def test_talk_goes_to_stderr_as_loud_as_asked(
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: list[str],
    shown: list[str],
) -> None:
    def speak(**words: object) -> Verification:
        log = logging.getLogger("udaseg.training.loop")
        log.debug("detail")
        log.info("hello")
        log.warning("careful")
        return Verification(())

    monkeypatch.setattr(udaseg, "verify", speak)
    _, err = failed(capsys, "verify", "x", *option)
    assert err.splitlines() == shown


def test_recipes_are_listed_shown_and_copied(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        return capsys.readouterr().out

    (listed,) = [row for row in shown("recipes", "ls").splitlines() if row.startswith("gta5_city")]
    folder, *methods = listed.replace(",", "").split()
    files = {path.stem for path in (recipes_folder() / "gta5_cityscapes").glob("*.yaml")}
    assert (folder, set(methods)) == ("gta5_cityscapes/", files)
    assert "\ngta5_cityscapes/rccr  " in f"\n{shown('recipes', 'ls', 'gta5_cityscapes')}"
    entries = {
        entry["name"]: entry["summary"] for entry in json.loads(shown("recipes", "ls", "--json"))
    }
    assert {f"gta5_cityscapes/{name}" for name in files} <= set(entries)
    assert entries["gta5_cityscapes/rccr"].startswith("RCCR")
    assert json.loads(shown("methods", "--format", "json"))["rccr"].startswith("RCCR")
    assert "rccr" in shown("methods")
    assert shown("recipes", "cat", "gta5_cityscapes/rccr") == SHIPPED.read_text()
    light = recipes_folder() / "networks" / "light.yaml"
    assert "\nnetworks/light  " in f"\n{shown('recipes', 'ls', 'networks')}".replace("   ", "  ")
    assert shown("recipes", "cat", "networks/light") == light.read_text()
    copy = tmp_path / "rccr.yaml"
    assert shown("recipes", "cp", "gta5_cityscapes/rccr", str(tmp_path)) == f"{copy}\n"
    assert copy.read_bytes() == SHIPPED.read_bytes()
    code, err = failed(capsys, "recipes", "cp", "gta5_cityscapes/rccr", str(copy))
    assert code == 2
    assert "exists" in err


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "udaseg", "recipes", "cat", "gta5_cityscapes/rccr"]
    result = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY
    )
    os.close(writer)
    assert result.stderr == ""


def test_a_terminal_that_knows_ascii_only_is_no_error() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "udaseg", "adapt", "é.yaml"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY
    )
    assert result.returncode == 2
    assert ".yaml: no such file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
@pytest.mark.parametrize(
    "words",
    [
        *("eval RUN", "predict photos --checkpoint RUN", "info RUN", "report RUN", "select RUN"),
        *("export RUN", "calibrate RUN", "features RUN", "grid RUN", "verify RUN", "table RUN"),
        *("adapt --resume RUN", "report RUN --baseline RUN"),
    ],
)
def test_a_missing_run_ends_every_command_with_code_3(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    missing: str,
) -> None:
    (tmp_path / "empty").mkdir()
    files.put(tmp_path / "photos/a.png", files.image_png())
    monkeypatch.chdir(tmp_path)
    code, err = failed(capsys, *words.replace("RUN", missing).split())
    assert (code, missing in err) == (3, True), err
