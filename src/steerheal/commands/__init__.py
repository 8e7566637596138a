"""The commands: a module each, named as the command, with its options and what it does."""
