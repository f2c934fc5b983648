"""A module for each command: its flags. A command is parse → call → render; torch is imported by the call."""
