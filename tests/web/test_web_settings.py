"""Messages that may hold anything become settings, or errors that say what is wrong."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condiff.errors import BadType, BadValue, CondiffError
from condiff.web import Limits, Settings, read_settings
from condiff.web.settings import READERS, read_json

LIMITS = Limits()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def test_a_whole_form():
    said = {
        "labels": ["3", "7"], "prompt": "a fox", "conditions": {"height": 2, "image": {"picture": "ab"}, "none": None},
        "steps": 8.0, "guidance": 2, "seed": 5, "num": 4, "solver": None, "top_k": 10, "top_p": 0.9, "temperature": 0.5,
    }  # fmt: skip
    read = read_settings(said, LIMITS)
    assert read.labels == ("3", "7") and read.steps == 8 and isinstance(read.steps, int) and read.guidance == 2.0
    assert read.conditions == {"height": 2.0, "image": {"picture": "ab"}} and read.solver is None
    assert read_settings(json.loads(json.dumps(read.as_json())), LIMITS) == read


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ([], BadType, "are an object"),
        ({"step": 3}, BadValue, "Did you mean 'steps'"),
        ({"steps": 0}, BadValue, "steps must be from 1 to 1000 here, got 0"),
        ({"steps": 1001}, BadValue, "steps must be from 1 to 1000"),
        ({"steps": 2.5}, BadType, "steps is a whole number"),
        ({"steps": True}, BadType, "steps is a whole number"),
        ({"num": 65}, BadValue, "num must be from 1 to 64"),
        ({"seed": -1}, BadValue, "seed must be from 0"),
        ({"seed": 2**53}, BadValue, "seed must be from 0"),
        ({"guidance": "not a number"}, BadType, "guidance is a number, got 'not a number'"),
        ({"guidance": 1e31}, BadValue, "guidance must be a finite number"),
        ({"guidance": math.nan}, BadValue, "guidance must be a finite number"),
        ({"prompt": "x" * 4001}, BadValue, "prompt may have 4000 characters here, got 4001"),
        ({"prompt": "\ud800"}, BadValue, "surrogate"),
        ({"labels": "3"}, BadType, "labels is a list"),
        ({"labels": ["a"] * 65}, BadValue, "may hold 64 classes"),
        ({"labels": [3]}, BadType, "a class is text"),
        ({"conditions": 3}, BadType, "conditions is an object"),
        ({"conditions": {"a": {"path": "/etc/passwd"}}}, BadValue, "condition 'a' is a number"),
        ({"conditions": {"a": []}}, BadValue, "list of 1 to 4096"),
        ({"conditions": {"a": [[1]]}}, BadType, "condition 'a' is a number"),
    ],
)
def test_what_is_refused(said, error, words):
    with pytest.raises(error, match=words):
        read_settings(said, LIMITS)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*READERS, "other"]), ANYTHING, max_size=5) | ANYTHING)
def test_anything_is_settings_or_an_error_of_ours(said):
    try:
        read = read_settings(said, LIMITS)
    except CondiffError as error:
        assert len(str(error)) < 1000
        return
    assert isinstance(read, Settings)
    assert read_settings(json.loads(json.dumps(read.as_json(), allow_nan=False)), LIMITS) == read


@given(st.text(max_size=40) | st.sampled_from(["[" * 100_000, "NaN", '{"a": Infinity}', "1" * 5000, '"\\ud800"']))
def test_any_text_is_json_or_an_error_of_ours(text):
    try:
        read_json(text)
    except BadValue as error:
        assert "can't be read" in str(error)
