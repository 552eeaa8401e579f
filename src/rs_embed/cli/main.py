"""The entry of the program `rs-embed`: the text and exit code of each error.

It imports nothing that may be missing: also a missing command-line library is one line.
"""

from __future__ import annotations

import atexit
import gc
import sys

from rs_embed.errors import RSEmbedError, SpecError, UnknownModelError, missing_core, visible


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a failed request, 2 for bad usage, 130 on Ctrl-C."""
    if arguments is None:
        arguments = sys.argv[1:]
        atexit.register(gc.freeze)  # a last garbage collection takes a quarter of a second once torch is loaded
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        from rs_embed.cli.app import run

        code = run(arguments)
    except RSEmbedError as error:
        if debug:
            raise
        code = _fail(str(error), 2 if isinstance(error, (SpecError, UnknownModelError)) else 1)
    except KeyboardInterrupt as error:  # its text says what is kept
        code = _fail(f"interrupted: {error}" if str(error) else "interrupted", 130)
    except (OSError, ModuleNotFoundError) as error:
        ours = missing_core(error) if isinstance(error, ModuleNotFoundError) else error
        if debug or ours is None:
            raise
        code = _fail(str(ours), 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"error: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code
