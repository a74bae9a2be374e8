"""Where the page is served, and what is said of what goes wrong."""

import importlib.util
import logging
import socket

import pytest

import scripts.app
from app.server import listen
from tests.integration.tiny_world import TinyWorld
from util.errors import UserError


def test_the_page_is_for_this_machine_alone_on_a_free_port() -> None:
    with listen(scripts.app.build_parser().parse_args([]).host, 0) as first:
        address, port = first.getsockname()
        assert address == "127.0.0.1" and first.family == socket.AF_INET
        with pytest.raises(UserError) as error:
            listen(address, port)
    start = f"--host, --port: found 127.0.0.1:{port}: Address already in use"
    assert str(error.value).startswith(start)


def test_without_gradio_one_line_says_how_to_install_it(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = ["--pretrained_ckpt", str(world.checkpoint), "--vqgan_path", str(world.tokenizer)]
    with pytest.raises(UserError) as error:
        scripts.app.main([*flags, "--port", "0", "--device", "cpu"])
    assert str(error.value).startswith("gradio is not installed, expected it for this page: pip")


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
    gr = pytest.importorskip("gradio")
    events = importlib.import_module("app.events")
    with pytest.raises(gr.Error) as found, events.one_sentence():
        raise error
    assert found.value.message == sentence
    assert not found.value.print_exception
    logged = [(record.levelno, record.exc_info[1]) for record in caplog.records]
    assert logged == ([(logging.ERROR, error)] if isinstance(error, KeyError) else [])
