"""Bad inputs to every reader of files, every command and every config, and how clear the answers are.

``python -m tests.bad_inputs`` tries them at full count and prints the table; the test of the same
name tries a few of each.
"""
