"""Where the page is served, and what is said where it cannot be."""

import importlib.util
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
