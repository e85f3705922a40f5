"""``python -m amvlm``."""

from amvlm.cli import main

if __name__ == "__main__":
    main()
