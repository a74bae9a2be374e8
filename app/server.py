"""Serving the page to browsers: on one address, in one process, with nothing from elsewhere."""

import importlib.util
import logging
import os
import signal
import socket
import tempfile
from types import FrameType

from app.studio import Studio
from util.errors import UserError

logger = logging.getLogger("lpd")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket on an address of this machine; port 0 takes any free one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host, --port: found {host}:{port}: {reason}, expected an address of this machine "
            "and a free port"
        ) from error


def serve(studio: Studio, about: str, server_socket: socket.socket) -> None:
    """Show the page until the program is interrupted or told to end (`SystemExit`)."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "gradio is not installed, expected it for this page: "
            "pip install -r requirements-app.txt"
        )

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # by an exception, so that the program tidies up

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is what nohup asks for
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    studio.warm_up()
    with tempfile.TemporaryDirectory(prefix="lpd-app-") as folder:
        # Read by Gradio when it is imported or makes a component: no telemetry, and files in a
        # folder that goes when the program does, instead of one that all users share.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from app.page import STYLE, THEME, build_page

        page = build_page(studio, about).queue(max_size=32, api_open=False)
        off = ("run_history", "ssr_mode", "pwa", "mcp_server", "enable_monitoring")
        web = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            page,
            path="/",
            footer_links=[],
            show_error=True,
            max_file_size="64mb",
            theme=THEME,
            css_paths=STYLE,
            **dict.fromkeys(off, False),
        )
        # Without it Gradio opens any file of this machine that a visitor names as an upload.
        page.has_launched = True
        # The last: seconds that a browser's open connections may hold up the end.
        options = {"log_level": "warning", "log_config": None, "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(web, **options))
        # At the end it cuts off the streams to open pages, and calls each an error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        host, port = server_socket.getsockname()[:2]
        logger.info("the page is at http://%s:%d (Ctrl-C ends it)", host, port)
        server.run(sockets=[server_socket])
