"""The house rules of docs/architecture.md, read from the sources: nothing of the project is imported here.

A rule takes the tree (path -> text of every file that git does not ignore) and yields `file:line: what is wrong`. Below
the rules each one is seen firing on a few synthetic lines, and staying quiet on their lawful neighbours.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
THIS_FILE = "tests/test_house.py"  # it holds every word that it forbids
LAB = "tests/lab.py"  # needs root and namespaces: the one reason to leave a test out

HEIGHT = {"tokenizer_tools": 0, "data_tools": 1, "colossal_llama": 2, "train": 3}
OUTSIDE = ("tests", "examples", "benchmarks", "scripts")
TORCH_ROOMS = tuple(
    f"tokenizer_tools/{room}.py"
    for room in ("init_model", "grow_model", "growth", "initialisers", "shards", "weight_files")
)
DATA_TOOLS_READS = ("command", "outputs", "spelling", "tokenizer", "freed_memory", "parent", "lineage")
DEVICE_ROOMS = ("colossal_llama/host.py", "colossal_llama/plugins.py")
LAYERS = {
    "facts": (
        *("config", "checks", "schedule", "stages", "progress", "run_plan", "architectures", "flops"),  # plain values
        *("changes", "stopping", "gpus", "division"),
        *("hosts", "planning"),  # folders
        *("cluster", "watch", "host", "host_kernels", "mends", "upstream", "journal", "trackers"),  # machine, upstream
        *("batch", "document_mask", "loss", "head", "guard", "text_bytes", "lora"),  # tensors
        *("optimizer_state", "saved_parts"),
        *("loss_scale", "randomness", "row_chain", "background", "control", "run_lock", "probe", "input_hashes"),
    ),
    "parts": (
        *(
            "plugins",
            "model",
            "optim",
            "batches",
            "prefetch",
            "step",
            "checkpoint",
            "checkpoint_files",
            "weights",
            "metrics",
        ),
        *("row_health", "plan_table", "eval_rows"),
    ),
    "joins": (
        *("start", "shared_dir", "build", "engine", "forecast", "anomalies", "held_out", "loop"),
        *("checkpoint_writer", "saving", "made_from", "lineage"),
        *("evaluate", "scoring", "gate", "generate", "plan", "launch"),
        *("export", "trainer_probe", "reread", "second_reader", "model_card", "preflight"),
        *("rehearse", "rehearsal"),
    ),
}
LAYER_READS = {"facts": ("facts",), "parts": ("facts",), "joins": ("facts", "parts", "joins")}
CATCH_ALLS = ("utils.py", "common.py", "helpers.py")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60
SHIPPED = ("README.md", "docs/architecture.md", "train.example.sh", "hostfile.example")

LAUNCHER_FLAGS = {
    *("--hostfile", "--host", "--master_addr", "--master_port", "--nnodes", "--nproc_per_node", "--node_rank"),  # both
    *("--standalone", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--max_restarts"),  # torchrun
    *("--nodes", "--ntasks", "--ntasks-per-node", "--gres", "--gpus-per-node", "--cpus-per-task"),  # srun
    *("--time", "--signal", "--requeue", "--kill-on-bad-exit", "--full"),  # sbatch, srun, scancel
    *("--network", "--ipc", "--shm-size", "--ulimit", "--gpus", "--device", "--init"),  # docker
    *("--nv", "--bind", "--container-image", "--container-mounts", "--container-workdir"),  # apptainer, pyxis
    *("--no-build-isolation", "--no-deps", "--delete"),  # pip, rsync
    "--help",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, with slashes, and its text ("" where it is no UTF-8)."""

    path: str
    text: str

    @property
    def package(self) -> str:
        """The first folder; `train` for train.py."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """data_tools/bins.py -> data_tools.bins"""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def is_test(self) -> bool:
        return self.package == "tests"

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree by line, the module first."""
        return sorted(ast.walk(ast.parse(self.text)), key=lambda node: getattr(node, "lineno", 0))

    def at(self, place: ast.AST | int, message: str) -> str:
        """A finding, as an editor jumps to it."""
        return f"{self.path}:{place if isinstance(place, int) else getattr(place, 'lineno', 1)}: {message}"


class Tree:
    """The files of the house by their paths."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.sources = [Source(path, text) for path, text in sorted(texts.items())]
        self.folders = {str(parent) for path in texts for parent in PurePosixPath(path).parents}
        self.paths = set(texts) | self.folders

    @property
    def python(self) -> list[Source]:
        return [source for source in self.sources if source.is_python]

    @property
    def code(self) -> list[Source]:
        """Python outside tests."""
        return [source for source in self.python if not source.is_test]

    @property
    def packages(self) -> list[Source]:
        """Python of the three packages and train.py."""
        return [source for source in self.python if source.package in HEIGHT]


Rule = Callable[[Tree], Iterator[str]]


@lru_cache(maxsize=1)
def read_house() -> Tree:
    """Every file that is not ignored. An empty repository lists them, so that a copy without .git will do as well."""
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run(["git", "init", "--quiet", "--bare", empty], check=True, capture_output=True)
        command = ["git", f"--git-dir={empty}", f"--work-tree={ROOT}", "ls-files", "-z", "--others"]
        names = subprocess.run(
            [*command, "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
    return Tree({name: _text(ROOT / name) for name in names.split("\0") if name and (ROOT / name).is_file()})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


# --- (a) imports between packages -------------------------------------------------------------------------------------


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import wherever it stands: `from a.b import c` -> a.b.c"""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = source.path.split("/")[: -node.level] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def dotted(node: ast.AST) -> str:
    """The expression a.b.c as text; "" for anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def imports_never_point_upward(tree: Tree) -> Iterator[str]:
    for source in tree.packages:
        for line, name in imports(source):
            top = name.split(".")[0]
            if top in OUTSIDE or HEIGHT.get(top, -1) > HEIGHT[source.package]:
                yield source.at(line, f"{source.package} imports {name}, upward")


def torch_stays_in_its_rooms(tree: Tree) -> Iterator[str]:
    for source in tree.packages:
        if source.package in ("colossal_llama", "train") or source.path in TORCH_ROOMS:
            continue
        for line, name in imports(source):
            if name.split(".")[0] == "torch" or name.startswith("safetensors.torch"):
                yield source.at(line, f"imports {name}; below colossal_llama torch is only in {', '.join(TORCH_ROOMS)}")


def only_colossal_llama_imports_colossalai(tree: Tree) -> Iterator[str]:
    for source in tree.code:
        for line, name in imports(source):
            if name.split(".")[0] == "colossalai" and source.package != "colossal_llama":
                yield source.at(line, f"imports {name}; only colossal_llama imports colossalai")


def data_tools_reads_few_rooms_of_tokenizer_tools(tree: Tree) -> Iterator[str]:
    for source in tree.packages:
        for line, name in imports(source):
            top, room = [*name.split("."), ""][:2]
            if (source.package, top) == ("data_tools", "tokenizer_tools") and room not in DATA_TOOLS_READS:
                yield source.at(line, f"imports {name}; data_tools reads only {', '.join(DATA_TOOLS_READS)}")


# --- (b) layers inside colossal_llama, and cycles anywhere ------------------------------------------------------------


def layer_of(room: str) -> str | None:
    """Of a room or, for `hosts.agent`, of its folder."""
    room = room.partition(".")[0]
    return next((layer for layer, rooms in LAYERS.items() if room in rooms), None)


def facts_carry_parts_and_parts_carry_joins(tree: Tree) -> Iterator[str]:
    for source in tree.packages:
        own = source.module.partition(".")[2]
        if source.package != "colossal_llama" or not own:
            continue
        layer = layer_of(own)
        if layer is None:
            yield source.at(1, f"{own} has no layer; place it in LAYERS of {THIS_FILE}")
            continue
        for line, name in imports(source):
            top, room = [*name.split("."), ""][:2]
            other = layer_of(room)
            if top == "colossal_llama" and room != own.partition(".")[0] and other and other not in LAYER_READS[layer]:
                yield source.at(line, f"{own} ({layer}) imports {room} ({other}); {layer} read {LAYER_READS[layer]}")


def every_placed_room_exists(tree: Tree) -> Iterator[str]:
    for layer, rooms in LAYERS.items():
        for room in rooms:
            if not {f"colossal_llama/{room}.py", f"colossal_llama/{room}"} & tree.paths:
                yield f"{THIS_FILE}:1: LAYERS places {room} among {layer}, but colossal_llama/{room}.py is gone"


def imports_form_no_cycle(tree: Tree) -> Iterator[str]:
    modules = {source.module: source for source in tree.packages}
    edges = {
        (source.module, target, line)
        for source in tree.packages
        for line, name in imports(source)
        for target in (name, name.rpartition(".")[0])
        if target in modules and target != source.module
    }
    while True:  # what imports nothing or is imported by nothing is in no cycle
        inner = {edge[0] for edge in edges} & {edge[1] for edge in edges}
        kept = {edge for edge in edges if edge[0] in inner and edge[1] in inner}
        if kept == edges:
            break
        edges = kept
    for module, target, line in sorted(edges):
        yield modules[module].at(line, f"imports {target}, which leads back here")


# --- (c) names, (d) sizes ---------------------------------------------------------------------------------------------


def init_files_are_empty(tree: Tree) -> Iterator[str]:
    for source in tree.python:
        if PurePosixPath(source.path).name == "__init__.py" and source.text.strip():
            yield source.at(1, "an __init__.py is empty")


def no_file_is_a_catch_all(tree: Tree) -> Iterator[str]:
    for source in tree.python:
        if PurePosixPath(source.path).name in CATCH_ALLS:
            yield source.at(1, "the name says nothing; name the file after the question it answers")


def files_are_short(tree: Tree) -> Iterator[str]:
    for source in tree.code:
        num_lines = len(source.text.splitlines())
        if num_lines > MAX_FILE_LINES:
            yield source.at(MAX_FILE_LINES + 1, f"{num_lines} lines, more than {MAX_FILE_LINES}; split it")


def functions_are_short(tree: Tree) -> Iterator[str]:
    for source in tree.code:
        for node in functions(source):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield source.at(node, f"{node.name} has {num_lines} lines, more than {MAX_FUNCTION_LINES}; split it")


def functions(source: Source) -> Iterator[Function]:
    yield from (node for node in source.nodes if isinstance(node, Function))


# --- (e) docstrings and signatures ------------------------------------------------------------------------------------


def modules_have_a_docstring(tree: Tree) -> Iterator[str]:
    for source in tree.python:
        if source.text.strip() and ast.get_docstring(source.nodes[0]) is None:
            yield source.at(1, "the module has no docstring")


def public_names_have_a_docstring(tree: Tree) -> Iterator[str]:
    for source in tree.packages:
        for node in public_definitions(source.nodes[0]):
            if ast.get_docstring(node) is None:
                yield source.at(node, f"{node.name} has no docstring")


def public_definitions(parent: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the methods of these classes; not what lives inside a function."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.If | ast.Try):
            yield from public_definitions(node)
        elif isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def flags_have_a_help_text(tree: Tree) -> Iterator[str]:
    for source, config in config_classes(tree):
        below = [*config.body[1:], None]
        for node, after in zip(config.body, below, strict=True):
            if isinstance(node, ast.AnnAssign) and not (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            ):
                yield source.at(node, f"the flag --{dotted(node.target)} has no text below it, so --help is silent")


def signatures_are_annotated(tree: Tree) -> Iterator[str]:
    for source in tree.code:
        bound = {id(node) for owner in source.nodes if isinstance(owner, ast.ClassDef) for node in owner.body}
        for node in functions(source):
            is_static = any(dotted(decorator) == "staticmethod" for decorator in node.decorator_list)
            own = [*node.args.posonlyargs, *node.args.args][1 if id(node) in bound and not is_static else 0 :]
            star = [arg for arg in (node.args.vararg, node.args.kwarg) if arg is not None]
            bare = [arg.arg for arg in [*own, *node.args.kwonlyargs, *star] if arg.annotation is None]
            if bare or node.returns is None:
                missing = [*bare, *(["the return value"] if node.returns is None else [])]
                yield source.at(node, f"{node.name} has no annotation for {', '.join(missing)}")


# --- (f) what is not written here -------------------------------------------------------------------------------------

LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~$}*-])(?<![\w}][\"'])/(?:home|root|work|tmp|Users)(?![\w-])")
REGISTRY = re.compile(
    r"https?://[^\s\"'`)>]*(?:pypi|pythonhosted|download\.pytorch|anaconda\.|npmjs|crates\.io|rubygems|goproxy|"
    r"proxy\.golang|artifactory|nexus|mirror|/simple\b|/whl\b)",
    re.IGNORECASE,
)


def lines_matching(source: Source, pattern: re.Pattern[str], message: str) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if match := pattern.search(line):
            yield source.at(number, f"{match[0]}: {message}")


def nothing_is_left_for_later(tree: Tree) -> Iterator[str]:
    for source in tree.sources:
        if source.path != THIS_FILE:
            yield from lines_matching(source, LEFTOVERS, "do it or drop it")


def no_path_of_one_machine(tree: Tree) -> Iterator[str]:
    for source in tree.sources:
        if not source.is_test:
            yield from lines_matching(source, MACHINE_PATH, "a path of one machine")


def no_address_of_a_package_registry(tree: Tree) -> Iterator[str]:
    for source in tree.sources:
        if source.path != THIS_FILE:
            yield from lines_matching(source, REGISTRY, "the address of a package registry; it is the user's to choose")


def tensors_move_by_to_device(tree: Tree) -> Iterator[str]:
    for source, call in calls(tree):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "cuda":
            yield source.at(call, ".cuda() call; use .to(device), so that the CPU runs the same code")


def nothing_runs_code_from_data(tree: Tree) -> Iterator[str]:
    for source, call in calls(tree):
        name = dotted(call.func)
        keywords = {word.arg: word.value for word in call.keywords}
        for risky in ("trust_remote_code", "allow_pickle"):
            if risky in keywords and not is_constant(keywords[risky], False):
                yield source.at(call, f"{risky} is not False")
        if name.rpartition(".")[0] in ("pickle", "dill", "cloudpickle", "joblib") and "dump" not in name:
            yield source.at(call, f"{name} runs code from a file")
        if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            yield source.at(call, "torch.load without weights_only=True runs code from a file")
    for source in tree.python:
        for line, imported in imports(source):
            if imported in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
                yield source.at(line, f"{imported} under a bare name escapes this rule")


def no_test_is_left_out(tree: Tree) -> Iterator[str]:
    skipping = {f"{owner}.{word}" for owner in ("pytest", "pytest.mark") for word in ("skip", "skipif", "xfail")}
    skipping |= {"pytest.importorskip", "unittest.skip", "unittest.skipIf", "unittest.skipUnless", "pytest.exit"}
    for source in tree.python:
        if source.path == LAB:
            continue
        for node in source.nodes:
            if isinstance(node, ast.Attribute) and dotted(node) in skipping:
                yield source.at(node, f"{dotted(node)}: a test runs, or it is no test")
        for line, imported in imports(source):
            if imported in skipping:
                yield source.at(line, f"{imported}: a test runs, or it is no test")


def devices_are_told_apart_in_two_rooms(tree: Tree) -> Iterator[str]:
    for source in tree.code:
        if source.path in DEVICE_ROOMS:
            continue
        for node in source.nodes:
            if dotted(node) in ("torch.cuda", "torch.npu"):
                yield source.at(node, f"{dotted(node)}; only {' and '.join(DEVICE_ROOMS)} know which device it is")
            elif isinstance(node, ast.Constant) and re.fullmatch(r"(cuda|npu)(:\d+)?", str(node.value)):
                yield source.at(node, f"{node.value!r}; only {' and '.join(DEVICE_ROOMS)} know which device it is")
        for line, imported in imports(source):
            if imported.startswith(("torch.cuda", "torch.npu")):
                yield source.at(line, f"imports {imported}; only {' and '.join(DEVICE_ROOMS)} may")


def calls(tree: Tree) -> Iterator[tuple[Source, ast.Call]]:
    for source in tree.python:
        yield from ((source, node) for node in source.nodes if isinstance(node, ast.Call))


def is_constant(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


# --- (g) documents ----------------------------------------------------------------------------------------------------

LINK = re.compile(r"\]\(<?([^)>\s]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
NAMED_FILE = re.compile(rf"(?<![\w/.-])(?:{'|'.join([*HEIGHT, 'docs', *OUTSIDE])})/[\w./-]+\.(?:py|md|sh)\b")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w*(?:-\w+)*(?![\w(-])")
INVOKED = re.compile(r"([\w.]+)\.py$|^(?:colossal_llama|tokenizer_tools|data_tools)\.(\w+)$")


def documents(tree: Tree) -> list[Source]:
    return [source for source in tree.sources if source.path.endswith(".md")]


def what_is_promised_is_shipped(tree: Tree) -> Iterator[str]:
    for path in SHIPPED:
        if path not in tree.paths:
            yield f"{path}:1: there is no such file"
    linked = {target for source in documents(tree) for _, target, _ in links(source)}
    for source in documents(tree):
        if source.path.startswith("docs/") and source.path not in linked:
            yield source.at(1, "no document links here")


def links(source: Source) -> Iterator[tuple[int, str, str]]:
    """(line, path from the root, anchor) of each link that stays in the house."""
    for number, line in enumerate(source.text.splitlines(), start=1):
        for match in LINK.finditer(line):
            path, _, anchor = (match[1] or match[2]).partition("#")
            if not re.match(r"[a-z]+:", path):
                target = os.path.normpath(PurePosixPath(source.path).parent / path) if path else source.path
                yield number, target, anchor


def links_lead_somewhere(tree: Tree) -> Iterator[str]:
    texts = {source.path: source.text for source in tree.sources}
    for source in documents(tree):
        for line, target, anchor in links(source):
            if target not in tree.paths:
                yield source.at(line, f"links to {target}, which does not exist")
            elif anchor and anchor not in anchors(texts.get(target, "")):
                yield source.at(line, f"links to {target}#{anchor}, but no heading there has that name")


def anchors(text: str) -> set[str]:
    """The headings of a document as GitHub names them."""
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_files_exist(tree: Tree) -> Iterator[str]:
    for source in [*documents(tree), *(source for source in tree.sources if source.path.endswith((".sh", "Makefile")))]:
        for number, line in enumerate(source.text.splitlines(), start=1):
            for match in NAMED_FILE.finditer(line):
                if match[0] not in tree.paths:
                    yield source.at(number, f"names {match[0]}, which does not exist")


def config_classes(tree: Tree) -> Iterator[tuple[Source, ast.ClassDef]]:
    """Dataclasses of flags: by our custom their names end in Config."""
    for source in tree.code:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list:
                yield source, node


def flags_of_commands(tree: Tree) -> dict[str, set[str]]:
    """{"init_model": {"--seed", ...}, "train": ...}: the fields and aliases of the config of each @command."""
    by_class: dict[tuple[str, str], set[str]] = {}
    inner: dict[tuple[str, str], set[str]] = {}
    for source, config in config_classes(tree):
        fields = [node for node in config.body if isinstance(node, ast.AnnAssign)]
        aliases = {
            item.value
            for field in fields
            for node in ast.walk(field)
            if isinstance(node, ast.keyword) and node.arg == "alias"
            for item in ast.walk(node.value)
            if isinstance(item, ast.Constant) and isinstance(item.value, str)
        }
        by_class[source.path, config.name] = {f"--{dotted(field.target)}" for field in fields} | aliases
        inner[source.path, config.name] = {dotted(node) for node in [*(f.annotation for f in fields), *config.bases]}
    for place, names in inner.items():  # the flags of a config inside or below a config are flags of the command
        by_class[place] |= set().union(*(found for (_, other), found in by_class.items() if other in names))
    flags: dict[str, set[str]] = {}
    for source, call in calls(tree):
        if dotted(call.func) == "command" and not source.is_test:
            name = dotted(call.args[0])
            elsewhere = next((found for (_, other), found in by_class.items() if other == name), set())
            flags[PurePosixPath(source.path).stem] = by_class.get((source.path, name), elsewhere) | {"--help"}
    return flags


def said_flags_exist(tree: Tree) -> Iterator[str]:
    """A flag after a command is one of its own; one that stands alone is a flag of some command or of a launcher."""
    known = flags_of_commands(tree)
    anything = set().union(*known.values())
    for source in tree.sources:
        if not source.path.endswith((".md", "example.sh", "demo.sh")):
            continue
        alone = known.get("train", set()) if source.path == "train.example.sh" else anything
        for line, invoked, flag in spoken_flags(source, known):
            if flag not in (known[invoked] if invoked else alone | LAUNCHER_FLAGS):
                yield source.at(line, f"{flag} is no flag of {invoked or 'any command'}")


def spoken_flags(source: Source, commands: Iterable[str]) -> Iterator[tuple[int, str | None, str]]:
    """(line, the command before it, flag). A command line goes on over backslashes and ends at | ; && or a backtick."""
    invoked: str | None = None
    continues = False
    for number, line in enumerate(source.text.splitlines(), start=1):
        if "-->" in line:  # an arrow of a drawing
            continue
        invoked = invoked if continues else None
        continues = line.rstrip().endswith("\\")
        for word in re.findall(r"[^\s`'\"]+|`", line):
            if word in ("|", ";", "&&", "`", "#", "||"):
                invoked = None
            match = INVOKED.search(PurePosixPath(word).name)
            called = (match[1] or match[2]) if match else word if source.path.endswith(".sh") or "_" in word else ""
            invoked = called if called in commands else invoked
            yield from ((number, invoked, flag) for flag in FLAG.findall(word.split("=")[0]))


# --- the house keeps its rules ----------------------------------------------------------------------------------------

RULES: list[Rule] = [
    imports_never_point_upward,
    torch_stays_in_its_rooms,
    only_colossal_llama_imports_colossalai,
    data_tools_reads_few_rooms_of_tokenizer_tools,
    facts_carry_parts_and_parts_carry_joins,
    every_placed_room_exists,
    imports_form_no_cycle,
    init_files_are_empty,
    no_file_is_a_catch_all,
    files_are_short,
    functions_are_short,
    modules_have_a_docstring,
    public_names_have_a_docstring,
    flags_have_a_help_text,
    signatures_are_annotated,
    nothing_is_left_for_later,
    no_path_of_one_machine,
    no_address_of_a_package_registry,
    tensors_move_by_to_device,
    nothing_runs_code_from_data,
    no_test_is_left_out,
    devices_are_told_apart_in_two_rooms,
    what_is_promised_is_shipped,
    links_lead_somewhere,
    named_files_exist,
    said_flags_exist,
]


def name_of(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    findings = list(rule(read_house()))
    assert not findings, f"{len(findings)} findings\n" + "\n".join(findings)


def test_the_house_is_read_whole() -> None:
    paths = {source.path for source in read_house().sources if source.text}
    assert paths >= {"train.py", "pyproject.toml", "tokenizer_tools/command.py", "data_tools/bins.py", THIS_FILE}
    assert not [path for path in paths if path.startswith((".venv/", "runs/", ".git/"))]


# --- each rule is seen firing -----------------------------------------------------------------------------------------

CONFIG = "@dataclass\nclass RunConfig:\n    '''R'''\n    lr: float = field(alias=['--rate'])\n    '''L'''\n"
TRAIN = {"train.py": f"{CONFIG}@command(RunConfig)\ndef main(c): ...\n"}
LONG = "x = 1\n"

FIRES: Sequence[tuple[Rule, str | dict[str, str], str, list[str]]] = [
    (imports_never_point_upward, "tokenizer_tools/a.py", "import data_tools.bins", ["tokenizer_tools/a.py:1"]),
    (imports_never_point_upward, "data_tools/a.py", "def f():\n    import colossal_llama", ["data_tools/a.py:2"]),
    (imports_never_point_upward, "colossal_llama/a.py", "from train import main", ["colossal_llama/a.py:1"]),
    (imports_never_point_upward, "data_tools/a.py", "importlib.import_module('train')", ["data_tools/a.py:1"]),
    (imports_never_point_upward, "data_tools/a.py", "from tests.conftest import x", ["data_tools/a.py:1"]),
    (torch_stays_in_its_rooms, "tokenizer_tools/pieces.py", "import torch.nn as nn", ["tokenizer_tools/pieces.py:1"]),
    (torch_stays_in_its_rooms, "data_tools/a.py", "def f():\n  from torch import nn", ["data_tools/a.py:2"]),
    (torch_stays_in_its_rooms, "data_tools/a.py", "from safetensors.torch import save_file", ["data_tools/a.py:1"]),
    (only_colossal_llama_imports_colossalai, "train.py", "import colossalai", ["train.py:1"]),
    (only_colossal_llama_imports_colossalai, "examples/a.py", "\nfrom colossalai import nn", ["examples/a.py:2"]),
    (
        data_tools_reads_few_rooms_of_tokenizer_tools,
        "data_tools/a.py",
        "import tokenizer_tools",
        ["data_tools/a.py:1"],
    ),
    (
        data_tools_reads_few_rooms_of_tokenizer_tools,
        "data_tools/a.py",
        "from tokenizer_tools import command, pieces",
        ["data_tools/a.py:1"],
    ),
    (
        facts_carry_parts_and_parts_carry_joins,
        "colossal_llama/host.py",
        "from colossal_llama import upstream, optim",
        ["colossal_llama/host.py:1"],
    ),
    (
        facts_carry_parts_and_parts_carry_joins,
        "colossal_llama/optim.py",
        "def f():\n    from colossal_llama.model import g",
        ["colossal_llama/optim.py:2"],
    ),
    (
        facts_carry_parts_and_parts_carry_joins,
        "colossal_llama/step.py",
        "from .loop import g",
        ["colossal_llama/step.py:1"],
    ),
    (facts_carry_parts_and_parts_carry_joins, "colossal_llama/newcomer.py", "", ["colossal_llama/newcomer.py:1"]),
    (
        every_placed_room_exists,
        {f"colossal_llama/{room}.py": "" for rooms in LAYERS.values() for room in rooms if room != "loss"},
        "",
        ["tests/test_house.py:1"],
    ),
    (
        imports_form_no_cycle,
        {
            "data_tools/a.py": "import data_tools.b",
            "data_tools/b.py": "def f():\n    from data_tools.c import g",
            "data_tools/c.py": "from data_tools import a",
            "data_tools/d.py": "from data_tools import a, e",
            "data_tools/e.py": "",
        },
        "",
        ["data_tools/a.py:1", "data_tools/b.py:2", "data_tools/c.py:1"],
    ),
    (init_files_are_empty, "data_tools/__init__.py", "import json", ["data_tools/__init__.py:1"]),
    (no_file_is_a_catch_all, "tests/data_tools/utils.py", "", ["tests/data_tools/utils.py:1"]),
    (files_are_short, "data_tools/a.py", LONG * 301, ["data_tools/a.py:301"]),
    (
        functions_are_short,
        "data_tools/a.py",
        "class A:\n  def f():\n" + "    x = 1\n" * 60,
        ["data_tools/a.py:2"],
    ),
    (modules_have_a_docstring, "tests/test_a.py", "import json", ["tests/test_a.py:1"]),
    (public_names_have_a_docstring, "train.py", "def f(): ...", ["train.py:1"]),
    (
        public_names_have_a_docstring,
        "data_tools/a.py",
        "class A:\n  'A'\n  @property\n  def f(self): ...\nif 1:\n  class B: ...",
        ["data_tools/a.py:4", "data_tools/a.py:6"],
    ),
    (
        flags_have_a_help_text,
        "examples/a.py",
        CONFIG + "    seed: int = 0\n    n: int = 0\n",
        ["examples/a.py:6", "examples/a.py:7"],
    ),
    (
        signatures_are_annotated,
        "data_tools/a.py",
        "class A:\n  def f(self, x) -> int: ...\n  @staticmethod\n  def g(x) -> int: ...\n  def h(self): ...\n"
        "def i(*args, **kw) -> int:\n  def j(*, k) -> int: ...",
        [f"data_tools/a.py:{line}" for line in (2, 4, 5, 6, 7)],
    ),
    (nothing_is_left_for_later, "Makefile", "all:\n\t# TODO: more", ["Makefile:2"]),
    (nothing_is_left_for_later, "tests/test_a.py", "x = 1  # HACK", ["tests/test_a.py:1"]),
    (no_path_of_one_machine, "data_tools/a.py", "open('/tmp/x')", ["data_tools/a.py:1"]),
    (no_path_of_one_machine, "run.sh", "OUT=/home/me\ncd /root", ["run.sh:1", "run.sh:2"]),
    (no_address_of_a_package_registry, "uv.lock", "url = 'https://pypi.org/simple'", ["uv.lock:1"]),
    (no_address_of_a_package_registry, "a.txt", "-i http://127.0.0.1:3141/root/simple/", ["a.txt:1"]),
    (no_address_of_a_package_registry, "a.txt", "https://download.pytorch.org/whl/cpu", ["a.txt:1"]),
    (tensors_move_by_to_device, "tests/test_a.py", "x = f(y).cuda()", ["tests/test_a.py:1"]),
    (nothing_runs_code_from_data, "a.py", "f(d, trust_remote_code=True)", ["a.py:1"]),
    (nothing_runs_code_from_data, "a.py", "f(d, trust_remote_code=config.trust)", ["a.py:1"]),
    (nothing_runs_code_from_data, "a.py", "np.load(d, allow_pickle=True)", ["a.py:1"]),
    (nothing_runs_code_from_data, "a.py", "pickle.load(f)\npickle.Unpickler(f)\npickle.dumps(f)", ["a.py:1", "a.py:2"]),
    (nothing_runs_code_from_data, "a.py", "torch.load(f)\ntorch.load(f, weights_only=False)", ["a.py:1", "a.py:2"]),
    (nothing_runs_code_from_data, "a.py", "from pickle import load", ["a.py:1"]),
    (no_test_is_left_out, "tests/test_a.py", "def test_a():\n    pytest.skip('x')", ["tests/test_a.py:2"]),
    (no_test_is_left_out, "tests/test_a.py", "@pytest.mark.xfail\ndef test_a(): ...", ["tests/test_a.py:1"]),
    (no_test_is_left_out, "tests/test_a.py", "m = pytest.mark.skipif(x, reason='')", ["tests/test_a.py:1"]),
    (no_test_is_left_out, "tests/test_a.py", "from pytest import skip", ["tests/test_a.py:1"]),
    (devices_are_told_apart_in_two_rooms, "colossal_llama/step.py", "torch.cuda.sync()", ["colossal_llama/step.py:1"]),
    (
        devices_are_told_apart_in_two_rooms,
        "train.py",
        "from torch import cuda\nx = 'cuda:0'",
        ["train.py:2", "train.py:1"],
    ),
    (
        what_is_promised_is_shipped,
        {
            "README.md": "[map](docs/architecture.md)",
            "docs/architecture.md": "",
            "docs/lost.md": "",
            "hostfile.example": "",
        },
        "",
        ["train.example.sh:1", "docs/lost.md:1"],
    ),
    (links_lead_somewhere, "docs/a.md", "# A B, c\n[x](b.md)\n[y](#a-b-c) [z](#other)", ["docs/a.md:2", "docs/a.md:3"]),
    (links_lead_somewhere, "README.md", '![x](docs/x.png "t") <img src="y.png">', ["README.md:1", "README.md:1"]),
    (named_files_exist, "README.md", "`data_tools/gone.py`", ["README.md:1"]),
    (named_files_exist, "Makefile", "bench:\n\tpython benchmarks/gone.py", ["Makefile:2"]),
    (said_flags_exist, TRAIN | {"README.md": "torchrun --standalone train.py \\\n --lr 1 --gone"}, "", ["README.md:2"]),
    (said_flags_exist, TRAIN | {"docs/a.md": "as `--nix` says"}, "", ["docs/a.md:1"]),
    (said_flags_exist, TRAIN | {"train.example.sh": "A=(\n --lr 1 # peak\n --nix 2\n)"}, "", ["train.example.sh:3"]),
    (said_flags_exist, TRAIN | {"README.md": "`python train.py --nproc_per_node 2`"}, "", ["README.md:1"]),
]


@pytest.mark.parametrize(("rule", "path", "text", "places"), FIRES, ids=name_of)
def test_each_rule_is_seen_firing(rule: Rule, path: str | dict[str, str], text: str, places: list[str]) -> None:
    tree = Tree({path: text} if isinstance(path, str) else path)
    assert [finding.split(": ")[0] for finding in rule(tree)] == places


def test_no_rule_goes_unproved() -> None:
    assert {rule for rule, *_ in FIRES} == set(RULES)


QUIET: Sequence[tuple[Rule, str | dict[str, str], str]] = [
    (imports_never_point_upward, "colossal_llama/a.py", "from data_tools.bins import x\nimport train_pieces"),
    (torch_stays_in_its_rooms, "tokenizer_tools/shards.py", "import torch"),
    (only_colossal_llama_imports_colossalai, "tests/preload.py", "import colossalai"),
    (data_tools_reads_few_rooms_of_tokenizer_tools, "data_tools/a.py", "from tokenizer_tools.outputs import x"),
    (facts_carry_parts_and_parts_carry_joins, "colossal_llama/optim.py", "from colossal_llama.mends import x"),
    (facts_carry_parts_and_parts_carry_joins, "colossal_llama/loop.py", "from colossal_llama.build import x"),
    (imports_form_no_cycle, {"data_tools/a.py": "import data_tools.b", "data_tools/b.py": "import json"}, ""),
    (files_are_short, "data_tools/a.py", LONG * 300),
    (functions_are_short, "data_tools/a.py", "def f():\n" + "    x = 1\n" * 59),
    (public_names_have_a_docstring, "data_tools/a.py", "def f():\n  'F'\n  def g(): ...\ndef _h(): ...\nclass _A: ..."),
    (signatures_are_annotated, "data_tools/a.py", "class A:\n  def f(self) -> int: ...\n  def g(self) -> int: ..."),
    (nothing_is_left_for_later, "run.sh", "mktemp -d runs.XXXXXX"),
    (no_path_of_one_machine, "run.sh", '"$HOME"/work ~/tmp runs/tmp "$HERE/work" /workspace .work/tmp'),
    (no_address_of_a_package_registry, "README.md", "https://github.com/hpcaitech/ColossalAI pip install pypi"),
    (nothing_runs_code_from_data, "a.py", "torch.load(f, weights_only=True)\nf(trust_remote_code=False)\njson.load(f)"),
    (no_test_is_left_out, "tests/test_a.py", "@pytest.mark.parametrize('skip', [1])\ndef test_skip(skip): ..."),
    (no_test_is_left_out, LAB, "pytest.skip('no namespaces')"),
    (devices_are_told_apart_in_two_rooms, "colossal_llama/host.py", "torch.cuda.is_available()"),
    (devices_are_told_apart_in_two_rooms, "colossal_llama/a.py", "require_line(f, 'torch.cuda.x()')"),
    (links_lead_somewhere, "docs/a.md", "[x](https://a.b/c) [y](../docs/a.md) [z](mailto:a@b.c) [d](../docs)"),
    (said_flags_exist, TRAIN | {"README.md": "torchrun --standalone train.py --rate=1 | head --lr\na --b--> c"}, ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), QUIET, ids=name_of)
def test_each_rule_leaves_the_lawful_neighbour_alone(rule: Rule, path: str | dict[str, str], text: str) -> None:
    assert not list(rule(Tree({path: text} if isinstance(path, str) else path)))


def test_a_copy_without_git_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitignore").write_text("runs/\n")
    for name in ("runs/x.py", "a/b.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x = 1\n")
    (tmp_path / "figure.png").write_bytes(b"\x89PNG\xff")
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    tree = read_house.__wrapped__()
    assert {source.path: source.text for source in tree.sources} == {
        ".gitignore": "runs/\n",
        "a/b.py": "x = 1\n",
        "figure.png": "",
    }
