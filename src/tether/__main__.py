"""`python -m tether` is the `tether` command."""

from tether.cli import program

if __name__ == "__main__":
    program()
