"""`python -m controller.console`: the table of commands, as docs/console.md holds it."""

from controller.console.commands import markdown
from controller.console.session import table

print(markdown(table()), end="")
