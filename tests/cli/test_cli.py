"""The command line itself: help, failures, where options come from, what is printed where."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from defectgen import __version__, dataset, errors
from defectgen.__main__ import main
from defectgen.cli import app, options
from defectgen.cli import help as help_texts
from defectgen.cli.console import Console
from defectgen.cli.output import Format
from defectgen.cli.synthesize import PatchFormat
from defectgen.errors import ExitCode, UsageError
from defectgen.models import registry
from defectgen.models.registry import Entry

Requests = list[Any]
TRAIN = ["train", "--method", "dt-gan", "tiles/good", "tiles/defects"]


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["synthesize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from defectgen.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'cv2', 'numpy', 'PIL', 'scipy', 'skimage'} & sys.modules.keys(); "
        "sys.exit(f'{heavy} imported' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS = [
    "train", "synthesize", "transfer", "compose", "review", "check", "inspect", "evaluate", "models import",
]  # fmt: skip


def test_the_first_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 44
    assert "..." not in text.split("\n", 1)[1]
    for group in ("Models:", "Datasets:", "Measurements:", "Options:"):
        assert f"\n{group}\n" in text


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", ["", "models", *COMMANDS])
def test_help_fits_the_terminal(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    assert "Examples:\n" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_each_option_once_and_many_of_them_in_groups(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out.split("Examples:")[0]
    text = re.split(r"^(?=\w[\w ]*:$)", told, maxsplit=1, flags=re.MULTILINE)[1]
    groups = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    names = [max(parameter.opts, key=len) for parameter in app_commands()[command].params]
    for name in (name for name in names if name.startswith("--")):
        assert len(re.findall(rf"^  (?:-\w, )?{name}(?=\s|$)", text, re.MULTILINE)) == 1, name
    assert len(groups) >= (5 if len(names) > 12 else 2)


def test_groups_of_the_help_name_what_there_is() -> None:
    """Else an option or a command that is renamed lands among those that have no group."""
    commands = app_commands()
    options = {each.lstrip("-") for command in commands.values() for option in command.params for each in option.opts}
    grouped = " ".join(help_texts._GROUPS.values()).split()
    assert set(grouped) - options == {"help", "install-completion", "show-completion", "version"}
    assert len(grouped) == len(set(grouped))
    assert {name for name in commands if " " not in name} == {*" ".join(help_texts._COMMANDS.values()).split(), "help"}


def app_commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    below = group.commands["models"].commands
    return {**group.commands, **{f"models {name}": command for name, command in below.items()}}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_two_examples_of_real_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    options_part, examples_part = text.split("Examples:\n")
    examples = examples_part.replace("\\\n", " ").strip().splitlines()
    assert 2 <= len(examples) <= 3
    for example in examples:
        words = shlex.split(example)
        assert words[: 1 + len(command.split())] == ["defectgen", *command.split()]
        assert all(word in options_part for word in words if word.startswith("-"))


def test_help_explains_a_command_as_its_own_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["train"], ["models", "import"], ["help"]):
        assert main([*command, "--help"]) == 0
        told = capsys.readouterr().out
        assert main(["help", *command]) == 0
        assert capsys.readouterr().out == told
    assert main(["help", "trian"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trian" in line


# Completion


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("defectgen syn", {"synthesize"}),
        ("defectgen help ev", {"evaluate"}),
        ("defectgen compose --format ", {"plain", "mvtec", "coco", "yolo"}),
        ("defectgen train --method df", {"dfmgan"}),
        ("defectgen train --method dfmgan --preset ", {"paper", "compact", "tiny"}),
        ("defectgen synthesize --model ", {"one"}),
        ("defectgen inspect --weights other.toml --model ", {"two"}),
        ("defectgen transfer --weights broken.toml --model ", set()),
    ],
)
def test_shells_complete_commands_formats_and_models(
    words: str, proposed: set[str], model: Entry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.add(model.model_copy(update={"name": "two"}), Path("other.toml"))
    Path("broken.toml").write_text("[")
    for name, value in (
        ("_DEFECTGEN_COMPLETE", "complete_bash"),
        ("COMP_WORDS", words),
        ("COMP_CWORD", str(len(words.split()) - (not words.endswith(" ")))),
    ):
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert proposed <= set(captured.out.split())
    assert proposed or not captured.out.strip()


def test_bash_completes_by_its_script(model: Entry, tmp_path: Path) -> None:
    """The script that `--show-completion` prints, in a real shell."""
    program = tmp_path / "bin/defectgen"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m defectgen "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(defectgen --show-completion)"\n'
        'COMP_WORDS=(defectgen synthesize --model ""); COMP_CWORD=3\n'
        '_defectgen_completion defectgen; echo "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert "one" in done.stdout.split(), done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"defectgen {__version__}\n"


def test_without_a_command_the_help_is_shown_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "synthesize" in captured.err


def test_the_formats_are_those_of_the_datasets() -> None:
    assert [each.value for each in Format] == [each.value for each in dataset.Layout]
    assert [each.value for each in PatchFormat] == [*(each.value for each in Format), "patches"]


def test_the_module_is_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "defectgen", *TRAIN, "--time", "never"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


# Failures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["NORMALS", "--product"]),
        (["train", "--method", "gan"], ["--method", "gan", "dt-gan"]),
        (["train", "--method", "dt-gan"], ["NORMALS", "--product"]),
        ([*TRAIN, "--nope"], ["--nope"]),
        ([*TRAIN, "--steps", "0"], ["--steps"]),
        ([*TRAIN, "--steps", "many"], ["--steps"]),
        ([*TRAIN, "--time", "soon"], ["--time soon", "1h30m"]),
        ([*TRAIN, "--time", "0s"], ["--time 0s"]),
        ([*TRAIN, "--set", "lr"], ["--set lr", "KEY=VALUE"]),
        ([*TRAIN, "--set", "nope=1"], ["nope", "image_size"]),
        ([*TRAIN, "--preset", "huge"], ["huge", "compact", "tiny"]),
        ([*TRAIN, "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        ([*TRAIN, "--product", "a=b:c"], ["--product", "NORMALS"]),
        ([*TRAIN, "--mask-values", "2"], ["--mask-values 2", "VALUE=CATEGORY"]),
        ([*TRAIN, "--mask-threshold", "0"], ["--mask-threshold"]),
        ([*TRAIN, "--mask-values", "2=a", "--annotations", "x"], ["--annotations and --mask-values"]),
        ([*TRAIN, "--name", "a/b"], ["--name a/b", "a-b"]),
        ([*TRAIN, "--on-bad", "cry"], ["--on-bad", "skip", "fail"]),
        (["synthesize"], ["--num"]),
        (["synthesize", "-n", "0"], ["--num"]),
        (["synthesize", "-n", "1", "--format", "voc"], ["--format", "mvtec"]),
        (["synthesise"], ["synthesise"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_option(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("defectgen: error: ")
    for word in words:
        assert word in line


FAILURES: list[tuple[BaseException, int, str]] = [
    (errors.UsageError("--x: bad"), 2, "--x: bad"),
    (errors.BadInputError("a.png: cut\n  short"), 4, "a.png: cut short"),
    (errors.WeightsError("m: damaged"), 5, "m: damaged"),
    (errors.DiskFullError("out: no space"), 6, "out: no space"),
    (errors.OutOfMemoryError("cuda: try 4"), 7, "cuda: try 4"),
    (errors.NoDeviceError("no cuda"), 8, "no cuda"),
    (errors.StoppedError("saved", ExitCode.SIGTERM), 143, "saved"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/out/a.png"),
        6,
        "/out/a.png: No space left on device; free some space and run again with --resume",
    ),
    (MemoryError(), 7, "out of memory"),
    (RuntimeError("odd"), 1, "RuntimeError: odd (--debug shows the traceback)"),
    (PermissionError(errno.EACCES, "Permission denied", "/out"), 1, "'/out'"),
    (ImportError("libGL.so.1: cannot open shared object file: No such file"), 2, "libgl1"),
]


@pytest.mark.parametrize(("failure", "code", "text"), FAILURES, ids=lambda value: type(value).__name__)
def test_every_failure_is_one_line_and_its_code(
    failure: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_text: str) -> float:
        raise failure

    monkeypatch.setattr(options, "seconds", fail)
    assert main([*TRAIN, "--time", "1m"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("defectgen: error: ")
    assert text in line

    assert main([*TRAIN, "--time", "1m", "--json"]) == code
    line, record = capsys.readouterr().err.strip().splitlines()
    message = line.removeprefix("defectgen: error: ")
    assert json.loads(record) == {"message_type": "exit_error", "code": code, "message": message}

    assert main([*TRAIN, "--time", "1m", "--debug"]) == code
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.rstrip().endswith(line)


def test_json_can_be_set_in_the_environment_and_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEFECTGEN_JSON", "1")
    assert main([*TRAIN, "--time", "never"]) == 2
    assert json.loads(capsys.readouterr().err.splitlines()[1])["code"] == 2
    monkeypatch.delenv("DEFECTGEN_JSON")
    Path("my.toml").write_text("json = true")
    assert main([*TRAIN, "--time", "never", "--config", "my.toml"]) == 2
    assert json.loads(capsys.readouterr().err.splitlines()[1])["code"] == 2


def signalled(command: list[str], number: signal.Signals) -> str:
    """What a command prints as an error if it gets a signal once it has printed "ready"; it ends with its code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, message = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    return message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_code_and_no_traceback(number: signal.Signals) -> None:
    program = (
        "import sys, time; from defectgen.cli import options; from defectgen.__main__ import main\n"
        "def wait(_): print('ready', flush=True); time.sleep(60)\n"
        "options.seconds = wait; sys.exit(main())"
    )
    said = signalled([sys.executable, "-c", program, *TRAIN, "--time", "1m"], number)
    assert said == "defectgen: error: stopped; run the same command with --resume to continue\n"


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    main(["--version"])
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == before


@pytest.mark.parametrize(
    "program",
    [
        "from defectgen.__main__ import main; import sys; sys.exit(main(['--help']))",
        "from defectgen.cli.console import Console; c = Console(as_json=False, quiet=False)\n"
        "for _ in range(3): c.result({}, 'x' * 100_000)\n"
        "import sys; sys.stderr.write('worked on')",
    ],
)
def test_a_closed_pipe_gives_no_traceback(program: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr in ("", "worked on")
    if "worked on" in program:
        assert (done.returncode, done.stderr) == (0, "worked on")


# Options


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5H", 5400), ("1h1m1s", 3661)],
)
def test_times(text: str, expected: float) -> None:
    assert options.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "-5m", "1m1h", "0h0m", "infh", "1d"])
def test_invalid_times(text: str) -> None:
    with pytest.raises(UsageError, match="1h30m"):
        options.seconds(text)


def test_the_command_line_wins_over_the_environment_which_wins_over_the_file(
    photographs: Path, planned: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my.toml").write_text(
        "seed = 1\nworkers = 7\n"
        "[train]\nseed = 2\nbatch-size = 3\non_bad = 'fail'\nset = ['ema=0.5', 'image_size=32']\n"
        "preset = 'tiny'\ntime = '2m'\n"
        "[synthesize]\nnum = 5\n"
    )
    dry = [*TRAIN, "--dry-run", "--config", "my.toml"]
    assert main(dry) == 0
    monkeypatch.setenv("DEFECTGEN_SEED", "3")
    monkeypatch.setenv("DEFECTGEN_BATCH_SIZE", "5")
    assert main(dry) == 0
    assert main([*dry, "--seed", "4", "--set", "ema=0.25"]) == 0
    file, environment, line = planned
    assert [file.seed, environment.seed, line.seed] == [2, 3, 4]
    assert [file.config.batch_size, environment.config.batch_size, line.config.batch_size] == [3, 5, 5]
    assert [file.config.ema, line.config.ema] == [0.5, 0.25]
    assert (file.workers, file.seconds, file.config.image_size) == (7, 120, 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 1", ["my.toml", "train has no option colour", "batch-size", "method", "normals"]),
        ("[train]\nnum = 1", ["train has no option num"]),
        ("config = 'x'", ["train has no option config"]),
        ("seed = [1, 2]", ["seed takes one value"]),
        ("[seed]\na = 1", ["seed takes one value"]),
        ("train = 3", ["train must be a table"]),
        ("seed = ", ["my.toml", "not valid TOML", "line 1"]),
        ("seed = 'x'", ["--seed"]),
        ("steps = true", ["--steps"]),
    ],
)
def test_errors_in_the_file_are_named(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.toml").write_text(text)
    assert main([*TRAIN, "--config", "my.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--config", "none.toml"]) == 2
    assert "none.toml: No such file" in capsys.readouterr().err


def test_the_folders_can_stand_in_the_file(photographs: Path, planned: Requests) -> None:
    text = "method = 'dt-gan'\nnormals = 'tiles/good'\ndefects = 'tiles/defects'\ndry-run = true\n"
    Path("my.toml").write_text(text, encoding="utf-8-sig")  # as Notepad does
    assert main(["train", "--config", "my.toml"]) == 0
    assert planned[0].sources[0].normals == Path("tiles/good")
    assert planned[0].sources[0].defects == Path("tiles/defects")


def test_one_value_stands_for_a_list_of_one(model: Entry, synthesized: SimpleNamespace) -> None:
    Path("my.toml").write_text("category = 'crack'\nnum = 3\nquiet = true\n")
    assert main(["synthesize", "--config", "my.toml"]) == 0
    assert synthesized.requests[0].wanted.categories == ("crack",)


# Output


def test_plain_progress_is_printed_periodically(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 101.0, 109.9, 110.0, 111.0, 112.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Console(as_json=False, quiet=False).progress("reading") as report:
        for done in range(1, 7):
            report(done, 6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"defectgen: reading {done}/6" for done in (1, 4, 6)]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Console(as_json=False, quiet=False).progress("training") as report:
        report(3, 9, "[3.5] images/s")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3/9" in captured.err
    assert "[3.5] images/s" in captured.err


# Starting and standard error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_has_its_code_and_no_traceback(number: signal.Signals) -> None:
    """While the command line is imported, which the program below makes slow."""
    program = (
        "import sys, time\n"
        "class Slow:\n"
        "  def find_spec(self, name, *_):\n"
        "    if name == 'typer': print('ready', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from defectgen.__main__ import main; sys.exit(main(['--version']))"
    )
    said = signalled([sys.executable, "-c", program], number)
    assert said == "defectgen: error: stopped before it began\n"


def command(arguments: Sequence[str], shell: str) -> subprocess.CompletedProcess[str]:
    """Run the program with redirections of the shell."""
    line = shlex.join([sys.executable, "-m", "defectgen", *arguments])
    return subprocess.run(["bash", "-c", f"{line} {shell}"], capture_output=True, text=True, check=False)


SAMPLES = Path(__file__).parents[2] / "examples/samples/steel"
COMPOSE = ["compose", str(SAMPLES / "defects"), str(SAMPLES / "normals"), "-n", "1", "--out"]


class TestStandardError:
    def test_without_one_the_work_is_done(self, tmp_path: Path) -> None:
        for i, shell in enumerate(("2>&-", ">&- 2>&-", "2> >(exec 0<&-; sleep 0)")):
            assert command([*COMPOSE, str(tmp_path / f"{i}")], shell).returncode == 0, shell
            assert (tmp_path / f"{i}/dataset.json").is_file()
        assert command(["compose", "nothing"], "2>&-").returncode == 2

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_one_is_a_full_device(self, tmp_path: Path) -> None:
        done = command([*COMPOSE, str(tmp_path / "full")], "2>/dev/full")
        assert done.returncode == 6
        assert command([*COMPOSE, str(tmp_path / "full"), "--resume", "--quiet"], "").returncode == 0

    def test_names_of_files_cannot_forge_lines(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compose", f"{tmp_path}/a\n\x1b[2Kdefectgen: all is well\u202e", "b", "-n", "1"]) != 0
        shown = capsys.readouterr().err
        assert len(shown.splitlines()) == 1
        assert "\x1b" not in shown
        assert "\u202e" not in shown
