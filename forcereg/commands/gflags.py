"""Options as Caffe's commands take them: -solver x, -solver=x, --solver x and --solver=x are one."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

GLOG = {
    **dict.fromkeys(("logtostderr", "alsologtostderr", "colorlogtostderr", "log_prefix"), False),
    **dict.fromkeys(("minloglevel", "stderrthreshold", "v", "vmodule", "logbufsecs", "max_log_size"), True),
}
"""glog's own flags, often seen in Caffe's scripts, and whether they take a value. Without effect here."""

_RAW, _OPEN = "forcereg.arguments", "forcereg.open option"


class CaffeCommand(click.Command):
    """A command whose options take one dash or two, and underscores for dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        plain = list(self._plain(ctx, args))
        # a copy: click empties the list as it reads it
        ctx.meta[_RAW] = list(plain)
        left = super().parse_args(ctx, plain)
        for param in self.get_params(ctx):
            if param.required and ctx.params.get(param.name or "") == "" and not ctx.resilient_parsing:
                raise click.BadParameter("it is empty", ctx, param)  # a shell variable that isn't set
        return left

    def _plain(self, ctx: click.Context, args: list[str]) -> Iterator[str]:
        """The arguments with each option's name as it was declared; values stay as they are."""
        known = {opt: param for param in self.get_params(ctx) for opt in param.opts}
        rest = iter(args)
        for arg in rest:
            name, equals, value = arg.lstrip("-").partition("=")
            option = "--" + name.replace("_", "-")
            if arg == "--" or not arg.startswith("-"):
                yield arg
            # glog's flags, which scripts for Caffe give: taken with their values, and ignored
            elif name in GLOG:
                if GLOG[name] and not equals:
                    next(rest, None)
            elif option in known:
                yield option + equals + value
                if not equals and not getattr(known[option], "is_flag", False):
                    following = next(rest, None)
                    if following is None:  # what shell completion sees while the value is being typed
                        ctx.meta[_OPEN] = known[option]
                    elif getattr(known[option], "_flag_needs_value", False) and following.startswith("-"):
                        # its value may be left out, and this is the next option
                        yield from self._plain(ctx, [following, *rest])
                    else:
                        yield following
            else:
                # -sovler as --sovler, or click would speak of an option -s
                yield f"-{arg}" if len(name) > 1 and not arg.startswith("--") else arg

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """click's completions, also behind `-solver` and of `-sol`."""
        if ctx.meta.get(_OPEN) is not None:
            return ctx.meta[_OPEN].shell_complete(ctx, incomplete)
        if incomplete.startswith("-") and not incomplete.startswith("--"):
            found = super().shell_complete(ctx, "-" + incomplete)
            return [CompletionItem(item.value[1:], item.type, item.help) for item in found]
        return super().shell_complete(ctx, incomplete)


def arguments(ctx: click.Context) -> list[str]:
    """What the command was called with, in the form that was declared."""
    return ctx.meta[_RAW]
