"""`python -m example_app` serves the chat page on this machine and opens it in the browser."""

from __future__ import annotations

import socket
import threading
import webbrowser

import click
from flask import Flask
from redis.exceptions import RedisError
from werkzeug.serving import make_server

from flask_llmstream.errors import ConfigurationError

from . import create_app

HOST = "127.0.0.1"
PORTS_TO_TRY = 20


@click.command()
@click.option("--port", default=5000, show_default=True, help="Port to begin at; 0 takes any free one.")
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser.")
def main(port: int, browser: bool) -> None:
    """Serve the example's chat page on this machine."""
    with listen(port) as listener:
        app = application()
        server = make_server(HOST, 0, app, threaded=True, fd=listener.fileno())
        url = f"http://{HOST}:{server.port}/"
        click.echo(f"The chat page is at {url} (Ctrl+C ends it)")
        if browser:
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        try:
            server.serve_forever()
        finally:
            for record in app.extensions["llmstream"].values():
                record.close()  # or Python would wait for the threads of a document that is being analysed


def application() -> Flask:
    """The application; it needs a usable configuration and its Redis, if it has one, from the start."""
    try:
        return create_app()
    except RedisError as error:
        raise click.ClickException(f"FLASK_LLMSTREAM_REDIS_URL: {error}") from None
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None


def listen(port: int) -> socket.socket:
    """A socket on this port, or on the next that is free."""
    for candidate in range(port, port + PORTS_TO_TRY):
        try:
            return socket.create_server((HOST, candidate), backlog=128)
        except OSError as error:
            refusal = error
    raise click.ClickException(f"No port from {port} to {candidate} can be used: {refusal.strerror}.")


if __name__ == "__main__":
    main(prog_name="python -m example_app")
