"""Where ``amvlm`` and ``amvlm-train`` begin: a Ctrl-C while the libraries are loaded is answered in a sentence, too."""

from __future__ import annotations

import sys

_ENDED = "amvlm: ended by Ctrl-C. What was saved before is kept; run the command again.\n"


def main() -> None:
    """Entry point of ``amvlm``."""
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
