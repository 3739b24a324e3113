"""`python -m hardserve` is `hardserve`."""

from hardserve.cli import main

if __name__ == "__main__":
    main()
