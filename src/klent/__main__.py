"""``python -m klent``: the command line, for launchers that take a module."""

from klent.cli import main

if __name__ == "__main__":
    main()
