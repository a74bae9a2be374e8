"""Where the page is served, and what is said where it cannot be."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

import scripts.app
from app.server import listen, require_gradio
from tests.integration.tiny_world import TinyWorld
from util.errors import UserError


def test_a_port_that_is_taken_is_told() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--host, --port: found 127.0.0.1:{port}, which .*"):
            listen("127.0.0.1", port)


def test_the_page_is_for_this_machine_alone_unless_told() -> None:
    args = scripts.app.build_parser().parse_args([])
    assert args.host == "127.0.0.1"
    with listen(args.host, 0) as server_socket:
        assert server_socket.getsockname()[0] == "127.0.0.1"
        assert server_socket.family == socket.AF_INET


def test_without_gradio_one_line_says_how_to_install_it(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "gradio" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    flags = ["--pretrained_ckpt", str(world.checkpoint), "--vqgan_path", str(world.tokenizer)]
    with pytest.raises(UserError) as error:
        scripts.app.main([*flags, "--port", "0", "--device", "cpu"])
    assert str(error.value) == (
        "gradio is not installed, expected it for this page: pip install -r requirements-app.txt"
    )
    with pytest.raises(UserError):
        require_gradio()


def test_requirements_are_pinned() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("requirements-app.txt", "tests/app/requirements.txt"):
        lines = [line for line in (root / name).read_text().splitlines() if line[:1] != "#"]
        assert lines
        assert all("==" in line for line in lines)
