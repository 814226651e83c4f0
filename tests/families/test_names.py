"""What an architecture is called stands in the file of its family alone, so nothing else can depend on it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import foveate
from foveate.families import families

PACKAGE = Path(foveate.__file__).parent
FILES = {each: PACKAGE / (each.__module__.removeprefix("foveate.").replace(".", "/") + ".py") for each in families()}
APART = {
    "embedded": "the embedded model is of one architecture",
    "families/generic_mrope.py": "position ids of three axes are called by the model that had them first",
    "costmodel/papers.py": "figures of papers are of the models that they were measured on",
    "train/recipe.py": "a published list of conversations is called by the model that it was made for",
    "train/sources.py": "a published list of conversations is called by the model that it was made for",
    "vllm_plugin": "vLLM has classes for each architecture, and a class of the plugin extends one of them",
}
"""Files and folders that name architectures for another reason."""


def code(path: Path) -> Iterator[str]:
    """Names and texts of a module, without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value
        for name in ("id", "attr", "name", "module", "arg"):
            if isinstance(value := getattr(node, name, None), str):
                yield value


def words(family: type[foveate.families.Family]) -> re.Pattern[str]:
    names = {family.name, family.kind(), family.core_class, family.title, family.__name__}
    return re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in names))


def test_no_file_names_the_family_of_another() -> None:
    found: list[str] = []
    any_family = re.compile("|".join(words(family).pattern for family in FILES))
    own = {path: family for family, path in FILES.items()}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).as_posix()
        if relative in APART or relative.split("/")[0] in APART:
            continue
        # A family may be built on another one, which its file imports; the type that both take is of both.
        bases = own[path].__mro__ if path in own else ()
        # What its encoder or a checkpoint is called may be what another family is called.
        texts = set(code(path)) - set((*own[path].encoders, *own[path].checkpoints) if path in own else ())
        if not any_family.search("\n".join(texts)):
            continue
        for family, home in FILES.items():
            kin = home == path or family in bases or (path in own and own[path].kind() == family.kind())
            if kin or f"foveate.families.{home.stem}" in texts:
                continue
            found += [f"{relative}: {text!r} names {family.title}" for text in texts if words(family).search(text)]
    assert not found


def test_the_search_finds_names(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    lines = ('"""Of qwen2_vl."""', "# llava", 'if kind == "llava":', '    model.Qwen3VLModel = LlavaNext("llava_n")')
    module.write_text("\n".join(lines))
    texts = set(code(module))
    named = {family.name for family in families() if any(words(family).search(text) for text in texts)}
    assert named >= {"llava", "qwen3_vl", "llava_next"}
    assert "qwen2_vl" not in named
