"""CUDA C++ to C++: what macros cannot do. `__shared__` declarations become references to memory of the block,
launches become calls, and every local header is translated along, so that includes keep working.

Line numbers stay those of the source."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
SHARED = re.compile(r"\b(?:static\s+)?(extern\s+)?__shared__\s+([^;]+);")
ALIGN = re.compile(r"(?:__align__|\balignas)\s*\(((?:[^()]|\([^()]*\))*)\)")
GRID_CONSTANT = re.compile(r"\bconst\s+__grid_constant__\s+|\b__grid_constant__\s+const\s+")
OPENING, CLOSING = "([{<", ")]}>"


def without_comments(text: str) -> str:
    """Comments become spaces. Strings stay: they have quotes, which no pattern here matches across."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        return re.sub(r"[^\n]", " ", found) if found.startswith("/") else found

    return NOT_CODE.sub(blank, text)


def translate(text: str) -> str:
    text = without_comments(text)
    text = re.sub(r"\b__noinline__\b", "__attribute__((noinline))", text)
    text = _grid_constants(text)
    text = SHARED.sub(_shared, text)
    return _launches(text)


def split(text: str) -> list[str]:
    """At commas outside all brackets. Inside () and [] a < is a comparison."""
    parts, start, depth = [], 0, [0, 0]
    for i, c in enumerate(text):
        if c in "([{":
            depth[0] += 1
        elif c in ")]}":
            depth[0] -= 1
        elif c in "<>" and depth[0] == 0:
            depth[1] += 1 if c == "<" else -1
        elif c == "," and depth == [0, 0]:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _parts(pattern: str, declaration: str) -> tuple[str, ...]:
    if match := re.fullmatch(pattern, declaration, re.DOTALL):
        return match.groups()
    raise ValueError(f"cannot read this declaration: {declaration}")


def _grid_constants(text: str) -> str:
    """A kernel argument that all threads read in place: a reference to the one copy that the launch made."""
    while match := GRID_CONSTANT.search(text):
        end = match.end()
        depth = 0
        while depth > 0 or text[end] not in ",)":
            depth += (text[end] == "<") - (text[end] == ">")
            end += 1
        kind, name = _parts(r"(.*?)(\w+)\s*", text[match.end() : end])
        text = f"{text[: match.start()]}const {kind.rstrip()}& {name}{text[end:]}"
    return text


def _shared(match: re.Match[str]) -> str:
    newlines = "\n" * match[0].count("\n")
    declaration = match[2]
    align = ALIGN.search(declaration)
    declaration = ALIGN.sub("", declaration)
    first, *others = split(declaration)
    kind, name, sizes = _parts(r"\s*(.+?[\s*>])(\w+)\s*((?:\[.*\])?)\s*", first)
    kind = " ".join(kind.split())
    if match[1]:
        return f"auto* {name} = static_cast<{kind}*>(::emulator::dynamic_shared_memory());{newlines}"
    variables = [(name, sizes), *(_parts(r"\s*(\w+)\s*((?:\[.*\])?)\s*", other) for other in others)]
    declarations = (
        f'auto& {name} = ::emulator::shared<{kind}{sizes}, {align[1] if align else 0}>("{name}", [] {{}});'
        for name, sizes in variables
    )
    return " ".join(" ".join(declarations).split()) + newlines


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"no closing bracket: {text[opening : opening + 80]}")


def _callee_start(text: str, end: int) -> int:
    """Where the name before <<< begins, with its namespaces and template arguments."""
    i = end
    while i and text[i - 1].isspace():
        i -= 1
    if text[i - 1] == ">":
        depth = 0
        while True:
            i -= 1
            depth += (text[i] == ">") - (text[i] == "<")
            if depth == 0:
                break
    while i and (text[i - 1].isalnum() or text[i - 1] in "_:"):
        i -= 1
    return i


def _launches(text: str) -> str:
    while (at := text.find("<<<")) >= 0:
        start = _callee_start(text, at)
        match = re.compile(r">>>\s*\(").search(text, at)
        if not match:
            raise ValueError(f"a launch without arguments: {text[start : at + 80]}")
        opening = match.end() - 1
        closing = _closing(text, opening)
        callee = text[start:at].strip()
        name = " ".join(callee.split())
        arguments = text[opening + 1 : closing]
        if arguments.strip():
            arguments = "," + arguments
        call = (
            f'::emulator::launch(::emulator::config({text[at + 3 : match.start()]}), "{name}", '
            f"[=](auto&... emulator_args) {{ {callee}(emulator_args...); }}{arguments})"
        )
        text = text[:start] + call + text[closing + 1 :]
    return text


def local_includes(path: Path, text: str, folders: Iterable[Path]) -> Iterator[Path]:
    """The files that its #include "..." lines find: beside the file, or in one of the folders."""
    for name in INCLUDE.findall(without_comments(text)):
        for folder in (path.parent, *folders):
            if (found := folder / name).is_file():
                yield found.resolve()
                break


def closure(source: Path, folders: Iterable[Path]) -> dict[Path, str]:
    """The source and all local headers it needs, translated."""
    folders = list(folders)
    done: dict[Path, str] = {}
    to_do = [source.resolve()]
    while to_do:
        path = to_do.pop()
        if path in done:
            continue
        text = path.read_text()
        done[path] = translate(text)
        to_do += local_includes(path, text, folders)
    return done
