"""What visitors are told of what goes wrong."""

import logging

import pytest

gr = pytest.importorskip("gradio")

from app.events import one_sentence  # noqa: E402


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Seed: found <b>,\n  expected"), "Seed: found &lt;b&gt;, expected"),
        (MemoryError(), "The memory does not suffice: please ask for fewer images."),
        (KeyError("a secret"), "Something went wrong; the log of the program says what."),
    ],
)
def test_what_a_visitor_can_change_is_told_and_a_bug_logged(
    error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(gr.Error) as found, one_sentence():
        raise error
    assert found.value.message == sentence
    assert not found.value.print_exception
    logged = [(record.levelno, record.exc_info[1]) for record in caplog.records]
    assert logged == ([(logging.ERROR, error)] if isinstance(error, KeyError) else [])
