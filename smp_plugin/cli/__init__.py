"""The commands: each parses, checks what can be checked without loading anything, and makes one library call."""
