"""The rules of the house: who imports whom, sizes of files and functions, lazy imports, public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llava import _compat

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "llava").rglob("*.py"))
SOURCES = [
    path for folder in ("llava", "playground", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")
]

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70

# A room may import rooms of a lower number, and itself.
FLOORS = {
    "_compat": 0,
    "constants": 0,
    "protocols": 0,
    "utils": 1,
    "atomic": 2,
    "arguments": 2,
    "lines": 3,
    "images": 3,
    "video": 4,
    "conversation": 4,
    "mm_utils": 4,
    "model": 5,
    "inference": 6,
    "serve": 7,
    "eval": 7,
    "train": 8,  # a run may ask benchmarks
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _modules_imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of llava's modules that a file imports, also inside functions."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            if module == "llava":
                yield from (f"llava.{alias.name}" for alias in node.names)


def _room(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_to_lower_floors_only() -> None:
    faults = []
    for path in PACKAGE:
        own = path.relative_to(ROOT / "llava").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in FLOORS, f"{_name(path)} is in no known room; add the room to FLOORS"
        for module in _modules_imported(path):
            room = _room(module) if module.startswith("llava.") else own
            if room != own and room in FLOORS and FLOORS[room] >= FLOORS[own]:
                faults.append(f"{_name(path)} imports {module}, which is not below it")
    assert not faults


# The floors inside the two large rooms, lowest first: a folder or file may import those of earlier rows.
INNER_FLOORS = {
    "model": (
        "checkpoints",
        "multimodal",
        "multimodal_encoder multimodal_projector tokenizer utils",
        "settings llava_arch",
        "language_model",
        "plan",
        "builder",
        "conversion tools",
        "apply_delta consolidate convert_hf inspect make_delta",
    ),
    "train": (
        "records plan llama_xformers_attn_monkey_patch",
        "labels setup",
        "data callbacks",
        "inherited old_flags tunable",
        "checks",
        "data_args",
        "args",
        "checkpointing",
        "build dry_run llava_trainer help",
        "train",
        "check_data train_mem train_xformers llama_flash_attn_monkey_patch",
    ),
}


@pytest.mark.parametrize("room", INNER_FLOORS)
def test_imports_inside_a_room_point_to_lower_floors_only(room: str) -> None:
    floors = {name: floor for floor, row in enumerate(INNER_FLOORS[room]) for name in row.split()}
    faults = []
    for path in PACKAGE:
        parts = path.relative_to(ROOT / "llava").with_suffix("").parts
        if parts[0] != room or parts[1] == "__init__":
            continue
        assert parts[1] in floors, f"{_name(path)} is on no floor of {room}; add it to INNER_FLOORS"
        for module in _modules_imported(path):
            names = module.split(".")
            other = names[2] if names[:2] == ["llava", room] and len(names) > 2 else parts[1]
            if other in floors and other != parts[1] and floors[other] >= floors[parts[1]]:
                faults.append(f"{_name(path)} imports {module}, which is not below it")
    assert not faults


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _graph() -> dict[str, set[str]]:
    """Map each module of the package to those that it imports, whatever the place of the import."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE
    }
    graph: dict[str, set[str]] = {}
    for path in PACKAGE:
        name = _dotted(path)
        found = set()
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        graph[name] = {one for one in found & modules if one != name and not name.startswith(f"{one}.")}
    return graph


def test_no_imports_go_in_a_circle() -> None:
    graph = _graph()
    left = set(graph)
    while free := {name for name in left if not graph[name] & left}:
        left -= free
    # "llava" looks its names up when they are asked for
    assert not {name for name in left if name != "llava"}


# Programs import what is heavy behind their command line; llava's own modules are never hidden elsewhere.
MAY_IMPORT_INSIDE = re.compile(r"^(main|__getattr__|_lazy\w*)$")
PROGRAMS = {
    "llava/eval/run/command.py",
    "llava/eval/run_llava.py",
    "llava/model/apply_delta.py",
    "llava/model/consolidate.py",
    "llava/model/convert_hf.py",
    "llava/model/inspect/__main__.py",
    "llava/model/make_delta.py",
    "llava/model/utils.py",
    "llava/serve/__main__.py",
    "llava/serve/cli.py",
    "llava/serve/openai_api.py",
}


def test_imports_of_the_package_stand_at_the_top() -> None:
    faults = []
    for path in PACKAGE:
        for function in _functions(path) if _name(path) not in PROGRAMS else ():
            for node in ast.walk(function):
                is_own = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llava")
                if is_own and not MAY_IMPORT_INSIDE.match(function.name):
                    faults.append(f"{_name(path)}:{node.lineno}: {function.name} imports {node.module}")
    assert not faults


def test_no_folder_is_a_long_list() -> None:
    """What Python itself asks for, __init__ and __main__, does not count."""
    listed = [path for path in PACKAGE if path.stem not in ("__init__", "__main__")]
    counts = Counter(path.parent for path in listed)
    assert not {str(folder): count for folder, count in counts.items() if count > 20}


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone, and would refuse the second."""
    names = Counter(one.name for one in (ROOT / "tests").rglob("*.py") if one.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_an_upward_import_would_be_found() -> None:
    path = ROOT / "llava" / "train" / "train.py"
    assert {"model", "train"} <= {_room(one) for one in _modules_imported(path) if one.startswith("llava.")}


def test_no_star_imports_and_no_bare_excepts() -> None:
    faults = []
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                faults.append(f"{_name(path)}:{node.lineno}: star import")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                faults.append(f"{_name(path)}:{node.lineno}: bare except")
    assert not faults


def test_files_and_functions_are_short() -> None:
    faults = []
    for path in SOURCES:
        lines = path.read_text().count("\n")
        if lines > MAX_FILE_LINES:
            faults.append(f"{_name(path)} has {lines} lines, {MAX_FILE_LINES} are allowed")
        for node in _functions(path):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{_name(path)}:{node.lineno}: {node.name} has {length} lines")
    assert not faults


def test_files_say_what_lives_in_them() -> None:
    assert not [_name(path) for path in PACKAGE if not ast.get_docstring(_tree(path))]


def test_public_functions_are_annotated() -> None:
    assert not [
        f"{_name(path)}: {node.name} has no return type"
        for path in PACKAGE
        for node in _functions(path)
        if not node.name.startswith("_") and node.returns is None
    ]


# A parameter or field may be of any type where it truly is; each new one lowers what mypy sees.
MAX_ANY = 45


def _typed_any(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of parameters and annotated names whose type is plain `Any`."""
    for node in ast.walk(tree):
        annotation = node.annotation if isinstance(node, ast.arg | ast.AnnAssign) else None
        if isinstance(annotation, ast.Name) and annotation.id == "Any":
            yield node.lineno


def test_few_parameters_and_fields_are_of_any_type() -> None:
    found = [f"{_name(path)}:{line}" for path in PACKAGE for line in _typed_any(_tree(path))]
    assert len(found) <= MAX_ANY, f"{len(found)} are typed Any, {MAX_ANY} are allowed: {found}"


@pytest.mark.parametrize("line", ["def f(a: Any): ...", "def f(**a: Any): ...", "class A:\n    a: Any = 1"])
def test_a_parameter_of_any_type_would_be_found(line: str) -> None:
    assert len(list(_typed_any(ast.parse(line)))) == 1


def test_only_checkpoint_unpickles() -> None:
    offenders = {
        _name(path)
        for path in PACKAGE
        if re.search(r"\btorch\.load\(|\bpickle\.loads?\(|weights_only=False", path.read_text())
    }
    assert offenders <= {"llava/model/checkpoints/files.py"}
    assert "weights_only=True" in (ROOT / "llava/model/checkpoints/files.py").read_text()


# ---- private names of others ----


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def _own_private_names() -> set[str]:
    """Names with an underscore that llava itself gives: functions, classes, fields, attributes of self."""
    own = {"_replace", "_asdict", "_fields"}  # the documented names of a namedtuple
    for path in PACKAGE:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self."):
                own |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return own - {name for names in _compat.OVERRIDDEN.values() for name in names}


def _private_names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of private names that are read, set, imported or passed, but for `super()._own`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            called = node.value.func if isinstance(node.value, ast.Call) else None
            of_super = isinstance(called, ast.Name) and called.id == "super"
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            overridden = {one for names in _compat.OVERRIDDEN.values() for one in names}
            if not ((of_super or of_self) and node.attr in overridden):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if _is_private(part) and part != "_compat")
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, key.arg) for key in node.keywords if key.arg and _is_private(key.arg))
            if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr"):
                for value in node.args[1:2]:
                    if isinstance(value, ast.Constant) and _is_private(str(value.value)):
                        yield node.lineno, str(value.value)
        yield from _private_names_used(node)


def test_private_names_of_dependencies_are_used_in_compat_only() -> None:
    faults = [
        f"{_name(path)}:{line}: {name}; put it behind a function of llava/_compat.py"
        for path in PACKAGE
        if path.name != "_compat.py"
        for line, name in _private_names_used(_tree(path))
        if name not in _own_private_names()
    ]
    assert not faults


@pytest.mark.parametrize(
    "statement",
    [
        "model._tp_plan",
        "self._hf_peft_config_loaded",
        "from torch._dynamo import config",
        "from transformers.trainer import _is_peft_model",
        "getattr(model, '_hf_hook', None)",
        "cached_file(name, _commit_hash=None)",
        "model._no_split_modules",
    ],
)
def test_a_private_name_of_a_dependency_would_be_found(statement: str) -> None:
    found = [name for _, name in _private_names_used(ast.parse(statement))]
    assert found and not set(found) & _own_private_names()


# a model_type that is compared with a word; the formats of llava-hf and CLIP are no families
_ASKS = re.compile(r"""(?:family|base_type|model_type)["')\]]*\s*(?:==|!=|not in|in)\s*[("\[]+(\w+)""")
_FORMATS = {"llava", "clip_vision_model"}


def test_nothing_outside_the_registry_asks_for_a_family_by_name() -> None:
    faults = []
    for path in PACKAGE:
        if path.parent.name == "language_model" or path == ROOT / "llava/model/utils.py":
            continue  # utils.py upgrades the config of the first release, which was Llama only
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if any(word not in _FORMATS for word in _ASKS.findall(line)):
                faults.append(f"{_name(path)}:{number}: {line.strip()}")
    assert not faults


@pytest.mark.parametrize(
    "line",
    [
        'if family.base_type == "mpt":',
        'if config.get("model_type") not in ("mpt", "llava_mpt"):',
        'if family != "llama":',
    ],
)
def test_a_question_for_a_family_would_be_found(line: str) -> None:
    assert _ASKS.findall(line)


def test_a_family_is_one_short_file() -> None:
    files = list((ROOT / "llava/model/language_model").glob("llava_*.py"))
    assert len(files) >= 3
    assert not [_name(path) for path in files if path.read_text().count("\n") > 45]


# ---- what an import loads ----


def _loaded_by(statement: str) -> set[str]:
    """Run a statement in a new interpreter; returns the top-level modules that are loaded then."""
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("statement", ["import llava", "import llava.constants", "import llava.conversation"])
def test_light_imports_load_no_torch(statement: str) -> None:
    assert not {"torch", "transformers"} & _loaded_by(statement)


OPTIONAL = {
    "deepspeed",
    "bitsandbytes",
    "flash_attn",
    "xformers",
    "gradio",
    "fastapi",
    "uvicorn",
    "openai",
    "wandb",
}


# What stands behind a program's command line, which looks for the packages before it imports these.
BEHIND_PROGRAMS = ("llava/serve/openai/", "llava/serve/web/", "llava/serve/web_server.py")


def test_what_stands_behind_programs_is_imported_by_them_alone() -> None:
    others = [path for path in PACKAGE if not _name(path).startswith("llava/serve/")]
    modules = {module for path in others for module in _modules_imported(path)}
    assert not {one for one in modules if one.startswith(("llava.serve.openai", "llava.serve.web"))}


def test_no_optional_package_is_imported_before_it_is_asked_for() -> None:
    faults = []
    for path in PACKAGE:
        if _name(path).startswith(BEHIND_PROGRAMS):
            continue
        for node in _tree(path).body:  # what stands at the left margin runs when the file is imported
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {name.partition(".")[0] for name in names} & OPTIONAL:
                faults.append(f"{_name(path)}:{node.lineno} imports {names}")
    assert not faults
