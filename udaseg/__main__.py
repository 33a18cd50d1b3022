"""`python -m udaseg`, which is also what torchrun starts."""

from udaseg.cli import main

if __name__ == "__main__":
    main()
