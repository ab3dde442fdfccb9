"""``v2f serve`` as the command runs it; every address beyond this machine that the process wants is written down.

python tests/workers/serve.py FILE serve RUN --port 0 ...
"""

import sys
from typing import Any

_HERE = ("127.", "::1", "localhost", "0.0.0.0")


def watch(file: str) -> None:
    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = args[0]
        elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
            host = args[1][0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else str(host)
        if not host.startswith(_HERE):
            with open(file, "a") as log:
                log.write(f"{event} {host}\n")

    sys.addaudithook(heard)


if __name__ == "__main__":
    watch(sys.argv[1])
    from v2f.cli import main

    sys.exit(main(sys.argv[2:]))
