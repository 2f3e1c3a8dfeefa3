"""``dcnzoo completion``: shell completion of commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script for shell completion.

    \b
    examples:
      eval "$(dcnzoo completion bash)"       # in ~/.bashrc; for zsh likewise in ~/.zshrc
      dcnzoo completion fish > ~/.config/fish/completions/dcnzoo.fish
    """
    from dcnzoo.cli import commands

    print(get_completion_class(shell)(commands, {}, "dcnzoo", "_DCNZOO_COMPLETE").source())
