"""Runs an ASGI application under uvicorn with what makes it fast: uvloop and httptools."""

import socket
from typing import Any

import uvicorn


def run(application: Any) -> None:
    """Serve on a free port until killed; say which when clients may come."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        config = uvicorn.Config(
            application,
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            # No client of the load answers pings.
            ws_ping_interval=None,
            timeout_keep_alive=600,
            lifespan="off",
            access_log=False,
            log_level="warning",
        )
        # The socket listens already: who comes before the server reads waits in its backlog.
        print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
