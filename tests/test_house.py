"""How the project's files are kept: short, in their rooms, formatted, and tests apart from each other."""

import ast
import re

import pytest
from helpers import calculated

from melora_bench.files import ROOT

PACKAGE = ROOT / "melora_bench"
SANDBOX = PACKAGE / "instructeval" / "sandbox"
FLAT = {"__init__.py", "cli.py", "files.py", "seeding.py"}


def sources(*folders: str) -> list:
    """All Python files below these folders of the project."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 5
    return paths


def lines_with(pattern: str, paths: list) -> list[str]:
    """The lines that `pattern` matches, as FILE:NUMBER: LINE."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_no_test_module_imports_another():
    """What several need is in helpers.py, method_helpers.py and others without tests."""
    assert lines_with(r"\b(from|import) test" + "_", sources("tests")) == []


def test_no_file_of_the_package_is_long():
    """180 lines, and 250 of the sandbox's."""
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources("melora_bench")}
    limits = {path: 250 if SANDBOX in path.parents else 180 for path in counts}
    assert {path: count for path, count in counts.items() if count > limits[path]} == {}


def test_every_module_is_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == FLAT


def test_the_formatter_is_never_turned_off():
    assert lines_with("# fmt" + ":", sources("melora_bench", "tests", "scripts")) == []


@pytest.mark.parametrize(
    ("formula", "value"),
    [("2 * r + n", 11), ("2 * (r + n)", 14), ("n // 2 - r / 2", -1), ("r ** 2", 16), ("min(r, n, 9) + max(1, n)", 6)],
)
def test_a_formula_is_calculated_as_python_does(formula, value):
    assert calculated(formula, {"r": 4, "n": 3}) == value


@pytest.mark.parametrize(
    "formula", ["r.real", "print(r)", "d_in", "'r'", "[r]", "min(r, key=r)", "r % 2", "-r", "r if r else 1"]
)
def test_what_is_no_arithmetic_is_refused(formula):
    with pytest.raises((KeyError, ValueError)):
        calculated(formula, {"r": 4})


# From low to high: a module imports lower floors and its own room.
FLOORS = "files seeding|external|methods|models|tasks|records|adapters|training|grids|results|instructeval|commands|cli"


def test_a_room_imports_lower_floors_alone():
    floor = {room: number for number, rooms in enumerate(FLOORS.split("|")) for room in rooms.split()}
    above, seen = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("melora_bench."):
                imported = node.module.split(".")[1]
                seen.add(imported)
                if imported != room and floor[imported] >= floor[room]:
                    above.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert above == []
    assert len(seen) == len(floor) - 1, "every floor but the highest is imported by another"
