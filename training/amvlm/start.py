"""Where ``amvlm`` and ``amvlm-train`` begin: a Ctrl-C while the libraries are loaded is answered in a sentence, too."""

from __future__ import annotations

import signal
import sys

from amvlm.interrupts import remember

_ENDED = "amvlm: ended by Ctrl-C. What was saved before is kept; run the command again.\n"


def main() -> None:
    """Entry point of ``amvlm``."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, remember)
    try:
        from amvlm import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write(_ENDED)
        raise SystemExit(130) from None


def train_main() -> None:
    """Entry point of ``amvlm-train``, the same as ``amvlm train``."""
    sys.argv = [sys.argv[0], "train", *sys.argv[1:]]
    main()
