"""``dcnzoo report``: ``tools/report.py``."""

from dcnzoo.cli import door

command = door("report", "report", "Make a page about trainings: WORK_DIR....")
