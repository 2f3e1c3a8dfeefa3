"""The sections of a report. Each function returns a :class:`dcnzoo.report.page.Section`."""
