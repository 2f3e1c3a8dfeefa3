"""A process that answers a line of JSON on standard input with a line of JSON on standard output."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence


class JsonServer:
    def __init__(self, command: Sequence[str | os.PathLike]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> JsonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: object) -> dict:
        """Return the answer.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))}: ended with {self._process.wait()}")
        return json.loads(line)
