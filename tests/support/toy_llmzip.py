"""The command line with the toy codec, as a process: python -m tests.support.toy_llmzip ..."""

from __future__ import annotations

import cli
from tests.support import toy_codec

if __name__ == "__main__":
    toy_codec.install()
    cli.main()
