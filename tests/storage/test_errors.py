"""Messages of Floodlit's errors: long values are quoted in part, and all else stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.characters import shown
from storage.credentials import without_credentials
from storage.errors import FloodlitError

WORDS = "is no such layer; close are layer1, layer2"


VALUES = ["a" * 5000, "/".join(["folder"] * 700), "'" * 5000, "s3://" + "x" * 5000]


@pytest.mark.parametrize(
    ("value", "quoted"),
    # Words without quotes are a text as any other.
    [*((value, how) for value in VALUES for how in (repr, str)), ("a b " * 1250, repr)],
)
def test_a_long_value_is_quoted_in_part_and_the_rest_of_the_line_stays(value, quoted):
    told = str(FloodlitError(f"model.layer: {quoted(value)} {WORDS}"))
    assert told.startswith("model.layer: ")
    assert told.endswith(f" {WORDS}")
    assert len(told) == len(f"model.layer:  {WORDS}") + 200


def test_the_beginning_and_the_end_of_a_value_are_there():
    path = f"/data/{'x' * 400}/weights.pth"
    told = str(FloodlitError(f"model.weights: there is no file {path}"))
    assert told.startswith("model.weights: there is no file /data/xxx")
    assert told.endswith("xxx/weights.pth")
    assert len(told) == len("model.weights: there is no file ") + 200


def test_paths_of_usual_length_and_long_texts_stay_as_they_are():
    for told in (f"there is no file /{'x' * 299}", "the model's classes and the dataset's differ " * 40):
        assert str(FloodlitError(told)) == told


@given(st.lists(st.text(st.characters(exclude_characters="'\"", codec="utf-8"), max_size=40), max_size=20))
def test_a_line_without_quotes_of_words_that_are_short_is_only_freed_of_control_characters(words):
    line = " ".join(words)
    told = shown(without_credentials(line))
    if max(map(len, told.split() or [""])) <= 300:  # an escape takes more characters than what it stands for
        assert str(FloodlitError(line)) == told[:4000]
