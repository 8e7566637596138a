"""`python -m steerheal`."""

from steerheal.cli import main

main()
