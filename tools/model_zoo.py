"""Write model_zoo.md and model-index.yml from the metafiles (``make zoo``)."""

from pathlib import Path

from dcnzoo.cli import one_line_errors
from dcnzoo.zoo.page import write


@one_line_errors()
def main() -> None:
    root = Path(__file__).resolve().parents[1]
    for path in write(root):
        print(f"written: {path.relative_to(root)}")


if __name__ == "__main__":
    main()
