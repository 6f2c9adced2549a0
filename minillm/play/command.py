"""`minillm play`: serves the page on this machine until Ctrl-C."""

import os
import secrets
import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from minillm.adapters.load import load_named
from minillm.errors import InputError
from minillm.hub.options import BaseOptions
from minillm.play.page import Page
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.interrupts import INTERRUPTED
from minillm.runtime.options import Directories, RunOptions

LOOPBACK = "127.0.0.1"


@dataclass(kw_only=True)
class Play(RunOptions, BaseOptions):
    """Look inside a model and its adapters on a page in the browser, which is served on this machine only.

    Example: minillm play --base tiny --adapter my.adapter
    """

    adapter: Directories = ()
    """Adapters of this base, to compare on the page."""
    port: int = 8765
    """The port on 127.0.0.1; 0 for any free one."""
    no_browser: bool = False
    """Print the address, and open no browser."""

    def run(self) -> None:
        try:
            import uvicorn

            from minillm.play.server import application
        except ImportError as missing:
            raise InputError(f"minillm play needs {missing.name}: pip install 'minillm[play]'") from None
        with _listening(self.port) as listening:
            page, token, host = self.page(), secrets.token_urlsafe(16), f"{LOOPBACK}:{listening.getsockname()[1]}"
            app = application(page, token, {host, host.replace(LOOPBACK, "localhost")})
            self.show(f"http://{host}/#{token}\nCtrl-C ends it.", {"address": f"http://{host}/#{token}"})
            sys.stdout.flush()
            # Without a display a browser would open in the terminal.
            if not self.no_browser and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
                webbrowser.open(f"http://{host}/#{token}")
            config = uvicorn.Config(app, log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1)
            try:
                uvicorn.Server(config).run([listening])
            except KeyboardInterrupt:
                sys.exit(INTERRUPTED)

    def page(self) -> Page:
        """The base and its adapters. Raises InputError for a base without a tokenizer."""
        keep_freed_memory()
        use_threads(self.threads)
        decoder, tokenizer = self.load_base()
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which is needed to show its tokens")
        decoder.to(pick_device(self.device))
        return Page(Path(self.base).name, decoder, tokenizer, load_named(decoder, self.adapter, tokenizer))


def _listening(port: int) -> socket.socket:
    """A socket on loopback. Raises InputError for a port that is taken, not allowed or no port."""
    try:
        return socket.create_server((LOOPBACK, port))
    except (OSError, OverflowError) as problem:
        raise InputError(f"cannot listen on port {port} ({problem}); give another one with --port") from None
