"""The list of deliberate faults (``make mutants``) fits the code: each can be put in, and its tests are there."""

from __future__ import annotations

import ast
from functools import cache

import mutants
import pytest


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((mutants.ROOT / file).read_text())


@pytest.mark.parametrize("fault", mutants.FAULTS_OF_ALL, ids=lambda fault: fault.name)
def test_each_fault_can_be_put_in_and_has_its_tests(fault: mutants.Fault) -> None:
    ast.parse(mutants.changed((mutants.ROOT / fault.file).read_text(), fault))
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert name in {node.name for node in parsed(file).body if isinstance(node, ast.FunctionDef)}, test


def test_names_are_told_apart() -> None:
    names = [fault.name for fault in mutants.FAULTS_OF_ALL]
    assert len(set(names)) == len(names)


def test_a_text_that_does_not_occur_once_is_an_error() -> None:
    fault = mutants.Fault("name", "file.py", "a", "b", ())
    assert mutants.changed("xay", fault) == "xby"
    for text in ("xy", "xaya"):
        with pytest.raises(ValueError, match="name: its text occurs"):
            mutants.changed(text, fault)
