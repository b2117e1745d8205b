"""The language commands: each parses its options and calls the library."""
