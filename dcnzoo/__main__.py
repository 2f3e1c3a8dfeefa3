import sys

try:
    from dcnzoo.cli import main
except ModuleNotFoundError as error:  # a dependency is missing: the clone is not installed
    sys.exit(f"error: {error}; in the clone, pip install --no-build-isolation . installs dcnzoo")

main()
