"""``python -m accounting``; see :mod:`accounting.cli`."""

from accounting.cli import main

if __name__ == "__main__":
    main()
