"""``python -m gateway`` is ``imgen``."""

from gateway.cli import main

if __name__ == "__main__":
    main()
