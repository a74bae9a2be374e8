"""What visitors are told of what goes wrong."""

import logging

import pytest

gr = pytest.importorskip("gradio")

from app.events import one_sentence  # noqa: E402


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Seed: found <b>,\n  expected"), "Seed: found &lt;b&gt;, expected"),
        (FileNotFoundError(2, "No such file"), "The file cannot be read: No such file."),
        (MemoryError(), "The memory does not suffice: please ask for fewer images."),
    ],
)
def test_what_a_visitor_can_change_is_told(
    error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(gr.Error) as found, one_sentence():
        raise error
    assert found.value.message == sentence
    assert not found.value.print_exception
    assert not caplog.records


def test_a_bug_goes_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(gr.Error) as found, one_sentence():
        raise KeyError("a secret")
    assert "secret" not in found.value.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "a secret" in str(record.exc_info)
