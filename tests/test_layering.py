"""The layers of the house: which package may import which. Imports are read, not run."""

import ast
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ["kernels", "interventions", "server", "clients/python"]
OURS = ("saccade_client", "saccade_interventions", "saccade_kernels", "saccade_server")
LONGEST_FILE = 400
PARTS = ("plan", "edits", "rules", "needs", "phases")
PLANS = tuple(f"saccade_interventions.{name}" for name in PARTS)

ABOVE = ("saccade_server.api", "saccade_server.cli")

# layer -> the packages of ours it may import, besides itself
LAYERS = {
    "saccade_client": (),
    "saccade_kernels": (),
    "saccade_interventions": ("saccade_kernels",),
    "saccade_server.models": ("saccade_kernels", "saccade_server"),
    "saccade_server.engine": ("saccade_kernels", *PLANS, "saccade_server"),
    "saccade_server.detectors": ("saccade_interventions",),
    "saccade_server.grammars": (),
    "saccade_server.requests": ("saccade_kernels", "saccade_interventions", "saccade_server"),
}
# layer -> what it must not import, although it lies inside something it may
FORBIDDEN = {
    "saccade_server.models": (*ABOVE, "saccade_server.requests", "saccade_server.engine"),
    "saccade_server.engine": (*ABOVE, "saccade_server.requests"),
    "saccade_server.grammars": (*ABOVE, "saccade_server.models", "saccade_server.engine"),
    "saccade_server.requests": ABOVE,
}
KNOW_NO_HTTP = tuple(
    f"saccade_server.{room}" for room in ("detectors", "grammars", "requests", "engine", "models")
)
HTTP = ("fastapi", "starlette", "uvicorn", "httpx2", "h11", "httptools")
KNOWS_TRANSFORMERS = ("saccade_server.models", "saccade_server.demo")
TENSOR_FREE = [
    f"saccade_server.engine.{name}" for name in ("scheduler", "pages", "rows", "request")
]


def module_files() -> dict[str, Path]:
    """Every module on disk by its import name."""
    files = {}
    for root in SOURCE_ROOTS:
        for path in sorted((ROOT / root).glob("saccade_*/**/*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def within(module: str, packages: tuple[str, ...] | list[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports(
    module: str, path: Path, walk: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk
) -> Iterator[str]:
    """Yield the modules that a file names in import statements, anywhere that ``walk`` goes."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, source]).rstrip(".")
            for alias in node.names:
                # `from package import module` imports the module, not only the package.
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in MODULES else source


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no function's body, and nothing for type checkers."""
    yield node
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_once(child)


IMPORTS = {module: sorted(set(imports(module, path))) for module, path in MODULES.items()}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_the_layers_below_it(layer: str) -> None:
    allowed = (layer, *LAYERS[layer])
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        if within(module, [layer])
        for target in targets
        if within(target, OURS)
        and (not within(target, allowed) or within(target, FORBIDDEN.get(layer, ())))
    ]
    assert not wrong


def test_modules_import_one_another_in_no_circle() -> None:
    """A package's own module, which gathers what its others offer, is not one of them."""
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    needed = {
        module: set(imports(module, path, at_once)) & (MODULES.keys() - packages)
        for module, path in MODULES.items()
        if module not in packages
    }
    order = list(TopologicalSorter(needed).static_order())
    assert order.index("saccade_server.requests.limits") < order.index("saccade_server.api.app")


def test_only_models_and_the_demo_know_transformers() -> None:
    wrong = [
        module
        for module, targets in IMPORTS.items()
        if not within(module, KNOWS_TRANSFORMERS)
        and any(within(target, ["transformers"]) for target in targets)
    ]
    assert not wrong


def test_http_ends_at_the_api() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        if within(module, KNOW_NO_HTTP)
        for target in targets
        if within(target, HTTP)
    ]
    assert not wrong


def test_scheduling_and_detectors_are_free_of_tensors() -> None:
    wrong = [
        module
        for module in (
            *TENSOR_FREE,
            *(m for m in MODULES if within(m, ["saccade_server.detectors"])),
        )
        if any(within(target, ["torch"]) for target in IMPORTS.get(module, []))
    ]
    assert not wrong


def test_nothing_is_imported_from_a_top_level_called_kernels() -> None:
    """transformers imports a distribution of that name; ours must never stand in its place."""
    assert not [m for m, targets in IMPORTS.items() if any(within(t, ["kernels"]) for t in targets)]


def test_no_file_is_too_long() -> None:
    files = [*MODULES.values(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {str(path): n for path, n in lengths.items() if n > LONGEST_FILE} == {}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("saccade_server.engine.x", "from . import pages", "saccade_server.engine"),
        ("saccade_server.engine.x", "from ..api import chat", "saccade_server.api"),
        ("saccade_server.engine.x", "from .pages import Pages", "saccade_server.engine.pages"),
        ("saccade_kernels.x", "def f():\n    import transformers.utils", "transformers.utils"),
        ("saccade_kernels.x", "from saccade_server import engine", "saccade_server.engine"),
    ],
)
def test_imports_are_read_correctly(
    tmp_path: Path, module: str, source: str, expected: str
) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    assert all(within(found, [expected]) for found in imports(module, path))
