"""Mine new pieces: text and an old tokenizer come in, `{"piece": "...", "count": n}` lines go out, best first.

sentencepiece learns BPE merges on the runs of Han characters between all other text. A piece's `count` is how often it
is made when that text is encoded (as itself or as a step to a longer piece). A step is never rarer than what it leads
to, so any head of the file is closed: cutting it costs no reachability.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tokenizer_tools.command import UserError, command
from tokenizer_tools.outputs import refuse_existing_file, write_whole_file
from tokenizer_tools.texts import find_text_files, read_texts, split_paths
from tokenizer_tools.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
