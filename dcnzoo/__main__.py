import sys

try:
    from dcnzoo.cli import main
except ModuleNotFoundError as error:  # of a clone that is not installed
    sys.exit(f"error: {error}; in the clone, pip install --no-build-isolation . installs dcnzoo")

main()
