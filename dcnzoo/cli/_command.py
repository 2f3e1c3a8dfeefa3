"""Classes of commands: options with several values, as MMDetection has them, and errors that name options."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import click

from dcnzoo.utils.errors import JointError, UserError, one_line
from dcnzoo.utils.text import nearest


class Several(click.Option):
    """An option with several values, as MMDetection writes them: ``--cfg-options a=1 b=2``.

    Args:
        accepts: whether a word is another value of the option, not the next argument.
    """

    def __init__(self, names: Sequence[str], accepts: Callable[[str], bool], **extra: Any) -> None:
        super().__init__(names, multiple=True, **extra)
        self.accepts = accepts


class Command(click.Command):
    """A command with options of :class:`Several` values.

    The functions that commands call name their own arguments in errors: ``work_dir: expected …``. Here, and
    only here, errors get the words of the command line: :meth:`with_flags`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat an option of several values before each of them, as click expects, and parse the words."""
        options = [param for param in self.params if isinstance(param, Several)]
        several = {flag: option.accepts for option in options for flag in option.opts}
        words: list[str] = []
        last = ""  # the last option, if the next word may be another value of it
        for word in args:
            if word.startswith("-"):
                last = word.partition("=")[0]
            elif words[-1:] != [last]:  # not the option's first value
                if last in several and several[last](word):
                    words.append(last)
                else:
                    last = ""
            words.append(word)
        return super().parse_args(ctx, words)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with self._flags():  # for errors of callbacks
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with self._flags():
            return super().invoke(ctx)

    @contextmanager
    def _flags(self) -> Iterator[None]:
        """Context in which the texts of errors pass through :meth:`with_flags`."""
        try:
            yield
        except (UserError, ValueError) as error:
            texts = error.args if isinstance(error, UserError) else [one_line(error)]
            kind = JointError if isinstance(error, JointError) else UserError
            raise kind(*(self.with_flags(str(text)) for text in texts)) from error
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self.with_flags(str(error))) from error

    @cached_property
    def _typed(self) -> dict[str, tuple[str, str]]:
        """The name of each parameter → what the user types to switch it on, and off."""
        typed = dict[str, tuple[str, str]]()
        for param in self.params:
            on, off = param.opts[0], (param.secondary_opts or param.opts)[0]
            if isinstance(param, click.Argument):
                on = off = (param.metavar or on).strip("[].").upper()
                typed[on.lower()] = on, off  # also by what is typed: IMAGE for ``images`` and ``image``
            typed.setdefault(str(param.name), (on, off))  # a hidden option comes after the one it repeats
        return typed

    @cached_property
    def _names(self) -> re.Pattern[str]:
        """A parameter's name, perhaps with a value, but not in a path or in the name of a setting."""
        names = "|".join(map(re.escape, sorted(self._typed, key=len, reverse=True)))
        before = r"(?<![\w./=-])"
        value = r"""=[\['"]*(?P<value>\S*?)[]'"]*(?=[,;:.]?(?:\s|$))"""  # without brackets and quotes
        after = r"(?![\w=/]|\.\w)"  # no more of a word, a setting or a path
        return re.compile(rf"{before}(?P<name>{names})(?:{value}|{after})")

    def with_flags(self, text: str) -> str:
        """Write the names of a function's arguments as this command's user types them.

        ==========================================  ===========================================
        error of the function                       error of the command
        ==========================================  ===========================================
        ``data: expected a folder, got x``          ``--data: expected a folder, got x``
        ``model: expected a name``                  ``MODEL: expected a name``
        ``…; force=True replaces it``               ``…; --force replaces it``
        ``…; use data='x'``, ``sanity=False``       ``…; use --data x``, ``--no-sanity``
        ``use another work_dir``                    ``use another --work-dir``
        ``the data is in a/data, model.data=3``     unchanged: a word, a path, a setting
        ==========================================  ===========================================

        A name with an underscore is no English word, so it is replaced anywhere in a sentence.
        """

        def typed(match: re.Match[str]) -> str:
            name, value = match["name"], match["value"]
            on, off = self._typed[name]
            if value is None:
                is_subject = match.start() == 0 and text.startswith(": ", match.end())
                return on if is_subject or "_" in name else name
            return {"True": on, "False": off}.get(value, f"{on} {value}")

        return self._names.sub(typed, text)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        similar = nearest(args[0], self.list_commands(ctx))
        if similar and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no such command {args[0]!r}; did you mean {similar!r}?", ctx)
        return super().resolve_command(ctx, args)
