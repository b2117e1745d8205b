"""A program for a launcher of several processes: runs tether commands, given as JSON, in turn."""

import json
import sys

from tether import cli
from tether.language.runtime import processes

for command in json.loads(sys.argv[1]):
    if code := cli.main(command):
        sys.exit(code)
processes.end(0)
