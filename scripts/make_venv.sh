#!/bin/sh
# Make .venv and install this checkout with everything that the demo and the tests need. Run again, it goes on.
# Says in one line what is missing. PYTHON=/path/to/python chooses the interpreter.
set -eu

is_right() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

found=
for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if is_right "$candidate"; then found=$candidate; break; fi
done
if [ -z "$found" ]; then
    have=$(${PYTHON:-python3} --version 2>&1 || true)
    echo "error: need Python 3.10, 3.11 or 3.12, found '$have'; install one of them, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 2
fi
if ! "$found" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $found has no pip (module ensurepip); install it, on Debian: apt-get install python3-venv" >&2
    exit 2
fi

echo "installing into .venv with $("$found" --version): torch, colossalai and what they need, about 6 GB, some minutes" >&2
"$found" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=69,<81" wheel
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
touch .venv/installed
