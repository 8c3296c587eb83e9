"""``neurocoder watch``."""

import contextlib
import socket
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from cyclopts import Parameter

PORT = 8400


def watch(
    where: Path = Path("logs"),
    /,
    *,
    port: int = PORT,
    browser: Annotated[bool, Parameter(negative="--no-browser")] = True,
    demo: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Watch recorded episodes in the browser; new ones appear as they are recorded. Ctrl-C ends it.

    The page is for this machine only: nobody else can reach it, and it loads nothing from elsewhere.

    Parameters
    ----------
    where
        The logs folder, a run, or one episode.
    port
        Port on 127.0.0.1; 0 takes any that is free.
    browser
        Open the page in the browser.
    demo
        Let the trained agent that comes with the package play a game, and watch that; `where` is the logs folder
        that keeps it.
    """
    import uvicorn

    from neurocoder.errors import ConfigError, require
    from neurocoder.runs.viewer.server import create_app

    require(0 <= port < 65536, "--port", port, "in [0, 65535]")
    if demo:
        from neurocoder.runs.replay.demo import record_demo

        where = record_demo(where)
    if not where.is_dir():
        raise ConfigError(
            f"{where}: no such folder; expected logs, a run or an episode (neurocoder record RUN)"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for any") from None
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        if (where / "episode.json").is_file():
            url += f"?ep={quote(where.resolve().name)}"
        print(f"{url}\nCtrl-C ends it", flush=True)
        if browser:
            webbrowser.open(url)
        config = uvicorn.Config(create_app(where), log_level="warning", timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt):  # it has shut down; uvicorn passes the signal on
            uvicorn.Server(config).run(sockets=[listener])
    return 0
