"""The command line: one module for each command. A command is parse → call → render; the call imports torch."""
