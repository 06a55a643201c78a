"""The serial console: what an engineer with a laptop and a cable meets.

serve     ports and terminals: a session begins, ends, begins again
session   log-in, prompt, one command after the other
line      bytes in and out: bounded, hostile, slow, gone
prompt    the prompt with editing, history and completion (prompt_toolkit)
accounts  who may log in, as what
presence  who is logged in now, and what they hold
commands  one table: name, role, words, what it does;   look, act, change: what the rows do
screen    a picture as cells; only what changed is sent
"""
