"""`melora-bench`: help, version, slips with the nearest name, completion; no command runs here."""

import os
import re
import subprocess
import sys

import pytest

from melora_bench import __version__, cli


def test_help_names_every_command_with_its_first_line(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"(?m)^  {name} +[A-Z].*\.", out), name
    assert cli.main([]) == 2 and capsys.readouterr().out == out


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself_and_does_nothing(name, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([name, option]) == 0
    assert f"melora-bench {name}" in capsys.readouterr().out and not any(tmp_path.iterdir())


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"melora_bench {__version__}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stats", "stats is no command of melora-bench: did you mean status?"),
        ("zzz", "zzz is no command of melora-bench: there are train, sweep, "),
        ("train task=MRPC", "Could not find 'task/MRPC': did you mean mrpc? task has alpaca, cola, "),
        ("train recipe=melora/mrcp", "Could not find 'recipe/melora/mrcp': did you mean melora/mrpc? recipe has "),
        ("train hydra/launcher=processe", "Could not find 'hydra/launcher/processe': did you mean processes? "),
        ("train epoch=1", "Could not override 'epoch': did you mean epochs? "),
        ("train method.rnk=1", "Could not override 'method.rnk': "),
        ("train -m method=melora method.N=1", "Could not override 'method.N': did you mean method.n? "),
        ("train lr='1", "LexerNoViableAltException: lr='1"),
        ("train --multirunn", "--multirunn is no option of this command: did you mean --multirun?"),
        ("score limits=3", "Could not override 'limits': did you mean limit? "),
        ("sweep", "name a table: melora-bench sweep mplora_table2"),
        ("sweep mplora_tabel2", "table 'mplora_tabel2' is unknown: did you mean mplora_table2? there are audit, "),
        ("sweep audit task=MRPC", "Could not find 'task/MRPC': did you mean mrpc?"),
        ("sweep audit task=mrpc", "no point of this table has task=mrpc; it has task=movie"),
        ("status nonsense", "table 'nonsense' is unknown: there are audit, "),
        ("tables --results DIR", "--results is no option of this command: did you mean results_dir=?"),
        ("figures --nonsense", "--nonsense is no option of this command: settings are given as key=value"),
        ("plan", "name one table: "),
        (
            "report result_dir=x",
            "result_dir is no option of this command: did you mean results_dir? it has results_dir=",
        ),
        ("docs from=x", "from is no option of this command; it has to="),
        ("export run=x too=y", "too is no option of this command: did you mean to? it has run=, to="),
    ],
)
def test_a_slip_is_one_line_with_the_nearest_name(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code = cli.main(line.split())
    out, err = capsys.readouterr()
    assert code == (3 if "no point" in message else 2), err
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {message}"), err
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_hydra_gets_its_arguments_and_the_process_keeps_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setattr(sys, "argv", ["melora-bench", "train"])
    assert cli.main(["train", "--cfg", "job", "results_dir=~/x"]) == 0
    assert "results_dir: /me/x\n" in capsys.readouterr().out
    assert sys.argv == ["melora-bench", "train"]


def completed(line: str) -> list[str]:
    program = "import sys; sys.argv[0] = 'melora-bench'; from melora_bench.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "-sc", "query=bash"]
    done = subprocess.run(command, env=os.environ | {"COMP_LINE": line}, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("melora-bench ", "sweep"),
        ("melora-bench sw", "sweep"),
        ("melora-bench sweep mpl", "mplora_table2"),
        ("melora-bench train method=me", "method=melora"),
        ("melora-bench score benchmark=m", "benchmark=mmlu"),
    ],
)
def test_the_shell_completes(line, word):
    assert word in completed(line)


@pytest.mark.parametrize("command", [[], ["train"]])
def test_completion_is_installed_under_the_programs_name(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/melora-bench"])
    assert cli.main([*command, "--shell-completion", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion melora-bench")
