"""What the container runs: `python -m serving.container`, or with `compile FOLDER`, or with `alive`.

numba does not use compiled code that lies where it cannot write, and the image is read-only. So the kernels that were
compiled when the image was built are copied to NUMBA_CACHE_DIR when a container starts. They are marked with the
processor that they were made for: on one of another kind numba compiles them again, in the seconds that the copy saves.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
from pathlib import Path

HOME = Path("/home/bentoml")
BENTO, KERNELS = HOME / "bento", HOME / "kernels"
# Seconds that requests in flight are given after SIGTERM. Longer than the longest that one may take.
GRACE = 20


def serve() -> None:
    """Become the server, so that SIGTERM reaches it."""
    cache = Path(os.environ["NUMBA_CACHE_DIR"])
    if not cache.exists():  # else they are there from an earlier start, with what this processor needed besides
        shutil.copytree(KERNELS, cache)
    os.execvp("bentoml", ["bentoml", "serve", str(BENTO), "--timeout-graceful-shutdown", str(GRACE)])  # noqa: S606, S607


def compile_kernels(folder: Path) -> None:
    """Compile what the endpoint calls of numba's into a folder."""
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # numba reads it when it is imported
    from churn_platform.ml import compiled

    compiled.compile_kernels()


def alive() -> bool:
    """Whether the server answers. It may not be ready yet."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["BENTOML_PORT"]), timeout=4)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main(arguments: list[str]) -> None:
    """Do what the words say."""
    match arguments:
        case []:
            serve()
        case ["compile", folder]:
            compile_kernels(Path(folder))
        case ["alive"]:
            sys.exit(0 if alive() else 1)
        case _:
            sys.exit(f"unknown words: {' '.join(arguments)}. Say nothing, `compile FOLDER` or `alive`.")


if __name__ == "__main__":
    main(sys.argv[1:])
