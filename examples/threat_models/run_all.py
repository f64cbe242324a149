"""Runs every threat-model program and writes a gallery.

One process per program and as many side by side as there are cores, each on one core; the program
that measures times runs last, alone. Prints one table, writes ``out/gallery.html`` with all
pictures in it and ``out/results.md`` with all figures, and exits with 1 if any program did: an
attack that should work did not, or one that should fail did not. A program whose extra is missing
exits with 2; it is listed as skipped, and ``--strict`` makes that a failure.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.report import is_judged, required, results_page
from kit.result import DEFAULT_SEEDS, FAILS, HOLDS, USAGE, read_json
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).parent
_WORDS = {HOLDS: "holds", FAILS: "FAILS", USAGE: "skipped"}
ALONE = ("t18_noise_timing",)
"""It measures times, and a neighbour would be in them; a quick run does not mind."""
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
"""Programs share the cores among them; threads on top would only wait for each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One program that was run.

    Attributes:
        name: of its file.
        code: its exit code.
        seconds: wall time, imports included.
        record: its ``result.json``; None if it wrote none.
        said: its last lines, for a failure.
    """

    name: str
    code: int
    seconds: float
    record: dict[str, Any] | None
    said: str


def programs() -> list[str]:
    """Names of all programs, in order."""
    return sorted(path.stem for path in HERE.glob("t[0-9][0-9]*_*.py"))


def run_one(name: str, *, seeds: Sequence[int], quick: bool, out: Path) -> Ran:
    """Runs one program in a process of its own."""
    result = out / name / "result.json"
    result.unlink(missing_ok=True)  # an old one must not speak for this run
    arguments = ["--out", str(out), "--seeds", *map(str, seeds), *(["--quick"] if quick else [])]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **_ONE_THREAD, "COLUMNS": "120"},
    )
    return Ran(
        name=name,
        code=done.returncode,
        seconds=time.perf_counter() - begin,
        record=read_json(result) if result.exists() else None,
        said="\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]),
    )


def run_many(
    names: Sequence[str], *, seeds: Sequence[int], quick: bool, out: Path, jobs: int
) -> Iterator[Ran]:
    """Runs them, ``jobs`` side by side, the longest first as far as an earlier run tells."""
    known = _earlier_seconds(out)
    alone = [name for name in names if name in ALONE and not quick]
    crowd = [name for name in names if name not in alone]
    crowd.sort(key=lambda name: -known.get(name, 0.0))
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_one, name, seeds=seeds, quick=quick, out=out) for name in crowd]
        for done in as_completed(waiting):
            yield done.result()
    for name in alone:
        yield run_one(name, seeds=seeds, quick=quick, out=out)


def _earlier_seconds(out: Path) -> dict[str, float]:
    """Seconds of each program in the last run into this folder; empty for a first one."""
    path = out / "summary.json"
    if not path.exists():
        return {}
    return {name: one["seconds"] for name, one in json.loads(path.read_text()).items()}


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def span(record: dict[str, Any], setting: str) -> str:
    """What the strongest and the weakest attack of this setting reached, for one line."""
    of = [r for r in record["results"] if r["setting"] == setting]
    if not of:
        return "-"
    return "; ".join(sorted({f"{r['metric']}: {_number(r['median'])}" for r in of}))


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def print_table(console: Console, ran: Sequence[Ran]) -> None:
    """One line per program."""
    table = Table(title="Threat models")
    for column in ("program", "what", "results", "undefended", "defended", "not defended", "s", ""):
        table.add_column(column, overflow="fold")
    for one in ran:
        r = one.record
        cells = (
            ["", "", "", "", ""]
            if r is None
            else [
                r["title"],
                str(len(r["results"])),
                span(r, "undefended"),
                span(r, "defended"),
                span(r, "not-defended"),
            ]
        )
        word = _WORDS.get(one.code, f"exit {one.code}")
        table.add_row(*map(escape, [one.name, *cells, f"{one.seconds:.0f}", word]))
    console.print(table)


# -- the gallery ----------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SecureFL: threat models</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
 color: #1b1b1b; background: #fff }}
section {{ border-top: 1px solid #ccc; padding: 1rem 0 }}
img {{ max-width: 100%; border: 1px solid #ddd }}
table {{ border-collapse: collapse; font-size: 13px; margin: .6rem 0 }}
td, th {{ border-bottom: 1px solid #ddd; padding: .15rem .6rem; text-align: left;
 vertical-align: top }}
.undefended {{ color: #b2182b }} .defended {{ color: #2166ac }} .not-defended {{ color: #8a5a00 }}
.no {{ background: #b2182b; color: #fff }} dt {{ font-weight: 600; float: left; width: 7rem }}
dd {{ margin-left: 7rem }} nav a {{ display: inline-block; margin-right: .8rem }}
</style></head><body>
<h1>Threat models</h1>
<p>Each attack is run twice: <b class="undefended">undefended</b>, with the named defence taken out,
where it must work, and <b class="defended">defended</b>, against the library as it is, where it
must fail as far as theory says. <b class="not-defended">Not defended</b>: it works against the
library.
That an attack fails here does not show that no attack works. {summary}</p>
<nav>{links}</nav>
{sections}
</body></html>
"""


def section(one: Ran, out: Path) -> str:
    """One program's part of the gallery."""
    name = html.escape(one.name)
    if one.record is None:
        word = _WORDS.get(one.code, f"exit {one.code}")
        return (
            f'<section id="{name}"><h2>{name}: {html.escape(word)}</h2>'
            f"<pre>{html.escape(one.said)}</pre></section>"
        )
    r = one.record
    picture = out / one.name / "picture.png"
    image = ""
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        alt = html.escape(r["title"], quote=True)
        image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    rows = "".join(_row(result) for result in r["results"])
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in r["notes"])
    who = "".join(
        f"<dt>{heading}</dt><dd>{html.escape(r[heading.lower()])}</dd>"
        for heading in ("Adversary", "Capability", "Knowledge")
    )
    return f"""<section id="{name}"><h2>{html.escape(r["title"])}</h2>
<dl>{who}</dl>{image}
<table><tr><th>setting</th><th>attack</th><th>metric</th><th>seeds</th><th>baseline</th><th>cap</th>
<th>expected</th><th>holds</th></tr>{rows}</table>{notes}
<p>{name}, {one.seconds:.0f} s</p></section>"""


def _row(result: dict[str, Any]) -> str:
    cells = [
        result["attack"],
        result["metric"],
        ", ".join(_number(v) for v in result["per_seed"]),
        "-" if result["baseline"] is None else _number(result["baseline"]),
        "-" if result["cap"] is None else f"{_number(result['cap'])} = {result['cap_formula']}",
        required(result),
    ]
    body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    setting = html.escape(result["setting"])
    verdict = "<td>-</td>"
    if is_judged(result):
        verdict = "<td>yes</td>" if result["passed"] else '<td class="no">NO</td>'
    return f'<tr><td class="{setting}">{setting}</td>{body}{verdict}</tr>'


def write_gallery(ran: Sequence[Ran], out: Path, seconds: float) -> Path:
    """One HTML file with everything in it: it opens from a folder and needs no network."""
    held = sum(one.code == HOLDS for one in ran)
    path = out / "gallery.html"
    path.write_text(
        _PAGE.format(
            summary=f"{held} of {len(ran)} programs hold; {seconds:.0f} s in all.",
            links="".join(
                f'<a href="#{html.escape(o.name)}">{html.escape(o.name)}</a>' for o in ran
            ),
            sections="\n".join(section(one, out) for one in ran),
        ),
        encoding="utf-8",
    )
    return path


def write_files(ran: Sequence[Ran], out: Path, seconds: float) -> Path:
    """The gallery, the page of results and the summary; the path of the gallery."""
    records = [one.record for one in ran if one.record is not None]
    (out / "results.md").write_text(results_page(records), encoding="utf-8")
    summary = {o.name: {"code": o.code, "seconds": round(o.seconds, 2)} for o in ran}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return write_gallery(ran, out, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them. 0 if all hold, 1 if one fails, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="run_all", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(DEFAULT_SEEDS))
    parser.add_argument("--quick", action="store_true", help="smaller parameters")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of names, e.g. t05")
    parser.add_argument("--jobs", type=int, default=cores(), help="programs side by side")
    parser.add_argument("--strict", action="store_true", help="a skipped program is a failure")
    given = parser.parse_args(argv)
    wanted = [
        name for name in programs() if given.only is None or name.startswith(tuple(given.only))
    ]
    if not wanted:
        print(f"no program begins with {given.only}; there are {programs()}", file=sys.stderr)
        return USAGE
    if given.jobs < 1:
        print(f"--jobs: expected at least 1, found {given.jobs}", file=sys.stderr)
        return USAGE
    given.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    begin, ran = time.perf_counter(), []
    for one in run_many(
        wanted, seeds=given.seeds, quick=given.quick, out=given.out, jobs=given.jobs
    ):
        ran.append(one)
        word = _WORDS.get(one.code, f"exit {one.code}")
        console.print(f"{one.name}: {word}, {one.seconds:.0f} s", markup=False, highlight=False)
        if one.code != HOLDS:
            console.print(one.said, markup=False, highlight=False)
    seconds = time.perf_counter() - begin
    ran.sort(key=lambda one: one.name)
    print_table(console, ran)
    path = write_files(ran, given.out, seconds)
    console.print(f"{seconds:.0f} s, {given.jobs} side by side", markup=False, highlight=False)
    console.print(f"gallery: {path}", markup=False, highlight=False)
    accepted = {HOLDS} if given.strict else {HOLDS, USAGE}
    return HOLDS if all(one.code in accepted for one in ran) else FAILS


if __name__ == "__main__":
    sys.exit(main())
