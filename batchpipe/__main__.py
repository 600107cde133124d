"""``python -m batchpipe``: the same as the ``batchpipe`` command."""

from batchpipe.cli import main

if __name__ == "__main__":
    main()
