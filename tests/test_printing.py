"""What the command prints: names that are markup, bytes, controls; to terminals of ASCII, full and closed outputs."""

import io
import json
import os
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from cljax import cli
from cljax.cli import opening, printing, process, progress
from cljax.cli.options import RunError
from cljax.training.outcome import Event
from tests.records import FIRST, SECOND, make_run

HARD = "[bold]a[/] :smile: \x1b[31m\\[x] \udcff"
SHOWN = "[bold]a[/] :smile: \\x1b[31m\\[x] \\udcff"


def test_errors_and_lines_show_names_as_they_are(capsys):
    with printing.any_terminal():
        assert cli.complain(printing.errors_console(), HARD, 2) == 2
        printing.show(f"Record: {HARD}")
    found = capsys.readouterr()
    assert found.err == f"cljax: {SHOWN}\n"
    assert found.out == f"Record: {SHOWN}\n"


def test_tables_show_names_as_they_are():
    from cljax import report

    run = make_run("finetune", FIRST, data=HARD)
    swept = [
        {**make_run("finetune", accuracy, data=HARD), "sweep": {"curve": HARD, "parameter": None, "value": value}}
        for accuracy, value in ((FIRST, 1.0), (SECOND, 1.0000001))
    ]
    for table in (report.table({"runs": [run]}), report.sweep_table(swept)):
        stream = io.StringIO()
        Console(file=stream, width=200).print(table)
        assert f"{SHOWN}, 2 tasks, task-incremental" in stream.getvalue()
    assert [row[:2] for row in report.sweep.sweep_rows(swept)] == [[HARD, "1"], [HARD, "1.0000001"]]
    assert stream.getvalue().count(SHOWN) == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_names_as_they_are(terminal, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", -1.0)
    stream = io.StringIO()
    console = Console(file=stream, width=150, force_terminal=terminal, markup=False, emoji=False, highlight=False)
    event = Event("[bold]lwf[/x]", 0, 1, 0, "[train]", 1, 2, 0.5, float("nan"), 0.1, 0.5)
    with progress.Reporter(console, 1, [0, 1]) as reporter:
        reporter.method("[bold]lwf[/x]")
        reporter.event(event)
    assert "[bold]lwf[/x]" in stream.getvalue()
    assert "[train] 1/2" in stream.getvalue()


CODE = """
    import sys
    from cljax.cli import printing
    from cljax import cli
    cli.list_methods = lambda: printing.show("80 \\u00b11.5 caf\\u00e9", *map(str, range(30000))) or 0
    sys.exit(cli.main(["methods"]))
"""


def ran(code, **options):
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False, **options)


def test_a_terminal_of_ascii_has_plus_minus():
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    found = ran(CODE, stdout=subprocess.PIPE, env=plain)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.splitlines()[0] == b"80 +-1.5 caf\\xe9"


def test_a_full_output_is_one_paragraph_and_a_closed_one_an_end():
    with open("/dev/full", "w") as full:
        found = ran(CODE, stdout=full)
    words = " ".join(found.stderr.decode().split())
    assert words == "cljax: The standard output cannot be written (No space left on device)."
    assert found.returncode == 1
    read, write = os.pipe()
    os.close(read)
    found = ran(CODE, stdout=write)
    os.close(write)
    assert (found.returncode, found.stderr) == (0, b"")


def test_streams_that_were_closed_go_nowhere_and_no_file_gets_their_numbers(tmp_path):
    code = """
        import os, sys
        from cljax import __main__ as command
        command.fill_standard_streams()
        print("out", file=sys.stderr)
        print("lost"), sys.stdin.read()
        os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b"kept")
        os.write(2, b"lost")
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "file")]
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], check=False)
    assert (closed.returncode, (tmp_path / "file").read_bytes()) == (0, b"kept")


@pytest.mark.parametrize("columns", ["1", "2", "-5"])
def test_a_narrow_terminal_gets_its_help(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    assert "Run one method" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == columns


def test_methods_have_their_lines_where_python_drops_docstrings(capsys):
    def described():
        pass

    def dropped(network):
        """Keeps
        all."""

    dropped.__doc__ = None
    assert (cli.docstring(dropped), cli.docstring(described), cli.docstring(len)[:6]) == ("Keeps\nall.", "", "Return")


def test_a_run_does_not_end_because_progress_cannot_be_shown(monkeypatch, tmp_path):
    class Full(io.TextIOBase):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    console = printing.errors_console()
    console.print("lost")
    assert cli.complain(console, "lost", 2) == 2


def test_only_what_prints_may_fail_to_print():
    with pytest.raises(RunError, match="standard output cannot be written"), printing.standard_output():
        raise OSError(5, "Input/output error")
    with pytest.raises(printing.Closed), printing.standard_output():
        raise BrokenPipeError


def test_without_a_home_folder_no_program_is_kept(monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(process.pathlib.Path, "expanduser", unknown)
    monkeypatch.setattr(process, "keep_programs", lambda folder: pytest.fail("kept"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    process.use_compilation_cache()


def test_a_device_without_the_memory_is_one_paragraph():
    import jax

    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")):
        with pytest.raises(RunError, match=r"needs more memory than there is.*--batch-size"), opening.enough_memory():
            raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), opening.enough_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault of XLA")


def test_a_variable_that_jax_refuses_is_one_paragraph():
    found = ran(
        "import sys; from cljax import cli; sys.exit(cli.main(['run', 'finetune', '--quiet']))",
        env={"JAX_DEFAULT_PRNG_IMPL": "foo"},
    )
    words = " ".join(found.stderr.decode().split())
    assert words.startswith('cljax: JAX refuses a JAX_... variable of the environment: Invalid value "foo" for')
    assert found.returncode == 2


@pytest.mark.parametrize("spoil", ["method", "seeds", "config", "half", "text"])
def test_a_record_of_something_else_is_refused_before_the_run(spoil, tmp_path, capsys, monkeypatch):
    from cljax.cli.asked import Curve, configuration
    from cljax.cli.options import Options, settle

    config = json.loads(json.dumps(configuration([Curve("finetune"), Curve("joint")], settle(Options()))))
    single = [[[0.5] * 5] * 5] * 5
    run = make_run("finetune", single, seconds=[1.0] * 5, config=config)
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(opening, "make_experiment", lambda *_, **__: pytest.fail("prepared"))
    changes = {
        "method": {"method": "lwf"},
        "seeds": {"seeds": [0, 1, 2, 3, 9]},
        "config": {"config": {**config, "methods": ["lwf"]}},
        "half": {"label": "other"},
        "text": {"accuracy": "0.5"},
    }
    runs = [{**run, **changes[spoil]}] + ([run] if spoil == "half" else [])
    text = json.dumps({"complete": False, "runs": runs})
    (place / "record.json").write_text(text)
    assert cli.main(["compare", "--methods", "finetune", "joint", "--out", str(place), "--no-cache"]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert ("runs[0].accuracy is '0.5', but must be" if spoil == "text" else "holds something else than whole") in words
    assert (place / "record.json").read_text() == text


def test_a_swept_value_that_its_method_refuses_is_refused(tmp_path, capsys):
    code = cli.main(["sweep", "lwf", "temperature", "0", "1", "--no-cache", "--out", str(tmp_path / "run")])
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert "temperature is 0.0, but must be a finite number above 0" in " ".join(capsys.readouterr().err.split())
