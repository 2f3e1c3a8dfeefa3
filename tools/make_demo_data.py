"""Generate the demo's data set: ``python tools/make_demo_data.py [FOLDER] [options]``."""

import argparse
import dataclasses

from dcnzoo.cli import one_line_errors
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.utils.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=ShapesSpec.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default="data/demo", help="default: data/demo")
    for field in dataclasses.fields(ShapesSpec):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            help=f"default: {field.default}",
        )
    return parser.parse_args()


@one_line_errors()
def main() -> None:
    options = vars(parse_args())
    folder = options.pop("folder")
    try:
        made = make_shapes(folder, ShapesSpec(**options))
    except (ValueError, FileExistsError) as error:
        raise UserError(str(error)) from error
    print(f"{folder}: {'written' if made else 'already exists'}")


if __name__ == "__main__":
    main()
