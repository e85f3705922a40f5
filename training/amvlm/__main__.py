"""``python -m amvlm``."""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # ``-m`` puts the working directory there: a folder of scans may hold a typer.py

from amvlm.start import main

if __name__ == "__main__":
    main()
