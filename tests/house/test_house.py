"""What the house promises of its own files."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "otfuse"
FILES = sorted(PACKAGE.rglob("*.py"))
# A name counts where it stands as a word or as a part of one: `BertLayer`, "gpt2", load_vit.
FAMILIES = (
    "vit|deit|bert|roberta|distilbert|electra|llama|gpt|gptj|t5|bart|qwen|mistral|mixtral|gemma|swin|dinov"
    "|siglip|resnet|convnext|whisper|hubert|albert|mpt|olmo|starcoder"
)
WORD = re.compile(rf"(?:{FAMILIES})\d*", re.IGNORECASE)
PART = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")


def code_words(source: str) -> list[tuple[int, str]]:
    """Identifiers and strings with their lines; comments and docstrings are prose and left out."""
    prose = {
        (node.body[0].lineno, node.body[0].end_lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node)
    }
    words = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        is_string = token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE"
        if is_string and any(first <= line <= (last or first) for first, last in prose):
            continue
        if is_string or token.type == tokenize.NAME:
            words += [(line, part) for part in PART.findall(token.string)]
    return words


def families(source: str) -> list[tuple[int, str]]:
    return [(line, word) for line, word in code_words(source) if WORD.fullmatch(word)]


@pytest.mark.parametrize(
    "path", [p for p in FILES if "testing" not in p.parts], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_model_family_is_named_in_code(path):
    assert families(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code", ["class BertLayer: ...", "x = 'gpt2'", "load_vit()", "y = f'{x} T5'", "kind = 'Llama'"]
)
def test_a_named_family_is_found(code):
    assert families(code)


@pytest.mark.parametrize("code", ["# like BERT\nx = 1", '"""As in ViT."""\n', "adopt = optimal = private = 'option'"])
def test_prose_and_other_words_are_allowed(code):
    assert families(code) == []


def test_files_have_at_most_400_lines():
    files = [
        p for folder in ("src", "tests", "benchmarks", "examples", "experiments") for p in (ROOT / folder).rglob("*.py")
    ]
    assert {
        str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    } == {}


def long_functions(source: str) -> dict[str, int]:
    return {
        node.name: lines
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := node.end_lineno - node.lineno + 1) > 40
    }


@pytest.mark.parametrize(
    "path", [p for p in FILES if "testing" not in p.parts], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_functions_have_at_most_40_lines(path):
    allowed = {"command"} if path.parent.name == "cli" else set()  # a command's options are its parameters
    assert {
        name: n for name, n in long_functions(path.read_text(encoding="utf-8")).items() if name not in allowed
    } == {}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_the_command_line_loads_nothing_heavy():
    heavy = run(
        "-c", "import sys, otfuse.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    ).stdout.split()
    assert set(heavy) & {"torch", "transformers", "numpy", "scipy", "datasets", "rich", "pydantic", "ot"} == set()


def clocks(source: str) -> list[int]:
    """Lines that read a clock: what such a test says depends on what else the machine does. Waiting is no reading."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read = node.value.id == "time" and node.attr != "sleep"
            read |= node.value.id in ("datetime", "date") and node.attr in ("now", "utcnow", "today")
        elif isinstance(node, ast.ImportFrom):
            read = node.module == "timeit" or (node.module == "time" and {a.name for a in node.names} != {"sleep"})
        else:
            read = isinstance(node, ast.Import) and any(alias.name == "timeit" for alias in node.names)
        if read:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_reads_a_clock(path):
    assert clocks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import time\nt = time.perf_counter()",
        "from time import monotonic",
        "import timeit",
        "datetime.now()",
        "time.time()",
    ],
)
def test_a_clock_is_found(code):
    assert clocks(code)


@pytest.mark.parametrize("code", ["import time\ntime.sleep(1)", "from time import sleep", "stage.time", "now = 1"])
def test_waiting_and_other_words_are_no_clocks(code):
    assert clocks(code) == []


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_and_places_in_documents_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    places = [path.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    places += [ROOT / place for place in re.findall(r"`((?:src|tests|docs|examples)/[\w./-]+)`", text)]
    assert [str(place) for place in places if not place.exists()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_source_quotes_sections_that_exist(path):
    headings = re.findall(r"^#+ ([\d.]+) ", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = {number.rstrip(".") for number in headings}
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"docs/method\.md, (?:section )?([\d.]*\d)", text)) <= known
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for name in re.findall(r"[\w/-]+\.md\b", text) if not name.endswith("README.md")}
    ours = {str(p.relative_to(ROOT)) for p in documents}
    assert {name for name in named if name.startswith("docs/") or "/" not in name} <= ours | {"results.md"}


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if names.returncode != 0:
        pytest.skip("not a git checkout")
    return [p for name in names.stdout.split("\0") if name and (p := ROOT / name).is_file()]


def test_no_tracked_file_names_this_machine_or_a_registry():
    places = ["/" + "work/", "/" + "root/", "/" + "opt/py", str(Path.home()) + "/"]
    hosts = ["py" + "pi.org", "files.python" + "hosted.org", "download.py" + "torch.org", "index" + "-url"]
    bad = re.compile("|".join(re.escape(word) for word in [*places, *hosts] if word != "//"))
    found = {}
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = [n for n, line in enumerate(text.splitlines(), 1) if bad.search(line)]
        if lines:
            found[str(path.relative_to(ROOT))] = lines
    assert found == {}


def test_every_requirement_is_pinned():
    import tomllib
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    todo = [Requirement(text) for text in [*wanted, *project["build-system"]["requires"]]]
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line[:1] not in ("#", "")
    ]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in pins}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError:
            continue  # needed to build only, and not installed
        extras = requirement.extras or {""}
        if (
            name == "torch"
        ):  # its build for GPUs, which PyPI gives on Linux, brings libraries that the build for processors lacks
            needs = [r for r in needs if not re.match("nvidia-|cuda-|triton", canonicalize_name(r.name))]
        todo += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    assert seen - pinned == set()


@pytest.mark.skipif(os.name == "nt", reason="a POSIX script")
def test_ci_calls_make_check():
    assert "make --no-print-directory check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
