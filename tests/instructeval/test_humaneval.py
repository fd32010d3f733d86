"""What of an output is run, and the program that is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instruct_fakes import benchmark, write_original

from melora_bench.instructeval.humaneval import completion, program

CASES = {
    "nothing": ("", ""),
    "newlines only": ("\n\n\n", ""),
    "a function body": ("    return 1", "    return 1"),
    "an odd indent grows": ("   return 1", "    return 1"),
    "every line is padded by itself": ("   if x:\n     y\n  z", "    if x:\n      y\n  z"),
    "leading newlines go": ("\n\n  a", "  a"),
    "one newline at the end stays": ("  a\n", "  a\n"),
    "cut at the first blank line": ("  a\n\n  b\n\n  c", "  a"),
    "three newlines cut at the first two": ("  a\n\n\n  b", "  a"),
    "a line of spaces does not cut": ("  a\n  \n  b", "  a\n  \n  b"),
    "a line of odd spaces is padded and does not cut": ("  a\n   \n  b", "  a\n    \n  b"),
    "padding comes before the cut": ("  a\n \n\n  b", "  a\n  "),
    "a first line of spaces keeps what follows": (" \n\n  a", "  "),
    "tabs are no indent": ("\treturn 1\n \treturn 2", "\treturn 1\n  \treturn 2"),
    "windows line ends do not cut": ("  a\r\n\r\n  b", "  a\r\n\r\n  b"),
    "carriage returns are no newlines": ("\r\n  a", "\r\n  a"),
    "code fences stay": ("```python\n  a\n```\n\nDone", "```python\n  a\n```"),
    "indents of other characters stay": ("\u00a0a", "\u00a0a"),
}


@pytest.mark.parametrize(("output", "run"), CASES.values(), ids=CASES)
def test_what_is_run_of(output, run):
    assert completion(output) == run


TEXTS = st.text(alphabet="a \n\t\r`", max_size=60)


@given(TEXTS)
def test_every_indent_is_even_and_no_blank_line_is_left(output):
    cut = completion(output)
    assert "\n\n" not in cut
    assert not cut.startswith("\n")
    assert all(len(re.match(" *", line).group()) % 2 == 0 for line in cut.split("\n"))


@given(TEXTS)
def test_cutting_twice_is_cutting_once(output):
    assert completion(completion(output)) == completion(output)


@given(TEXTS)
def test_only_spaces_are_added_and_only_an_end_is_lost(output):
    assert output.lstrip("\n").replace(" ", "").startswith(completion(output).replace(" ", ""))


def test_the_program_is_the_bare_prompt_the_body_and_the_call_of_the_tests(tmp_path):
    question = benchmark("humaneval").read(write_original(tmp_path)).subjects[0].questions[0]
    assert program(question, "    return x + 1") == (
        'def more(x):\n    """Return x plus 1."""\n'
        "    return x + 1\n"
        "def check(candidate):\n    assert candidate(3) == 4\n\n"
        "check(more)\n"
    )
