"""Commands of this program as one types them, for pages and logs."""

import shlex


def command_line(name: str, *arguments: object, **options: object) -> str:
    """A command of this program as one types it. Options that are None are left out; a list gives an option several times."""
    parts = ["lw-retinanet", name, *map(str, arguments)]
    for option, value in options.items():
        for one in value if isinstance(value, list) else [value] if value is not None else []:
            parts += [f"{'--'}{option.replace('_', '-')}", str(one)]
    return shlex.join(parts)
