"""The page: complete, harmless, and readable without a network."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from securefl.errors import ConfigurationError
from securefl.report import write_report
from securefl.report.plots import PANELS, PNG_SIZE, plot_svgs
from securefl.report.tree import read_tree


class Page(HTMLParser):
    """Tags, attributes and visible text of a page, as a browser would find them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._data: list[str] = []
        self.css: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join("".join(self._data).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        (self.css if self.tags and self.tags[-1] == "style" else self._data).append(data)


def test_both_files_are_written_and_the_page_is_returned(sweep: Any) -> None:
    out = sweep.write()
    assert write_report(out) == out / "report.html"
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "plot.png",
        "report.html",
        "summary.json",
    ]


def test_the_page_shows_the_numbers_of_every_row_and_run(sweep: Any) -> None:
    text = Page(write_report(sweep.write())).text
    for words in (
        "94.9 %", "93.9 %", "7.988", "2.988", "17.3 kB", "below-threshold", "share keys: 7",
        "unmasking: 1", "9 of 10", "1437", "360", "9:" + "ab" * 32, "34 ms", "1.5 s",
        "torch", "2.13", "c0ffee", "secagg", "smallest sum that was opened had 9 clients",
        "7 of 10 clients alive", "semi-honest", "9 others (complete graph)",
        "shares that rebuild a secret", "honest updates in any sum", "at least 6",
    ):  # fmt: skip
        assert words in text


def test_the_page_loads_nothing_from_anywhere(sweep: Any) -> None:
    page = Page(write_report(sweep.write()))
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    loading = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
    for name, value in page.attributes:
        if name in loading:
            assert value.startswith("#"), (name, value)
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.startswith("#"), (name, value)
    for sheet in page.css:
        assert "url(" not in sheet
        assert "@import" not in sheet
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_every_reference_inside_the_page_has_one_target(sweep: Any) -> None:
    page = Page(write_report(sweep.write()))
    used = {value[1:] for name, value in page.attributes if name == "xlink:href"}
    used |= {t for _, value in page.attributes for t in re.findall(r"url\(#([^)]*)\)", value)}
    ids = [value for name, value in page.attributes if name == "id"]
    assert used
    assert used <= set(ids)
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text(sweep: Any) -> None:
    evil = "<script>alert(1)</script><img src=http://evil onerror=x>\"'&$\\frac{$"
    sweep.summary["dataset"] = evil
    sweep.summary["protocol"] = evil
    sweep.summary["fidelity"] = evil
    sweep.summary["config_digest"] = evil
    sweep.summary["versions"] = {evil: evil}
    for row in sweep.summary["rows"][1:]:
        row["mode"] = f"_{evil}\N{PILE OF POO}"
    for run in sweep.summary["runs"][3:]:
        run["mode"] = f"_{evil}\N{PILE OF POO}"
        run["status"] = evil
    for own in sweep.runs.values():
        own["adjacency"] = own["unit"] = evil
        for ledger in own["ledgers"]:
            ledger["path"] = ledger["head"] = evil
    for lines in sweep.metrics.values():
        lines[0]["status"] = evil
        lines[0]["dropped"] = {evil: 1}
        lines[0]["seconds"] = {evil: 1.0}
    page = Page(write_report(sweep.write()))
    assert not {"script", "img"} & set(page.tags)
    assert not any(name == "onerror" for name, _ in page.attributes)
    assert page.text.count("<script>alert(1)</script>") > 20


def test_the_warning_about_rows_without_noise_stands_where_there_are_such_rows(
    sweep: Any, tmp_path: Path
) -> None:
    sentence = (
        "secure aggregation hides single updates, not what the sum reveals"  # the issue's own words
    )
    assert sentence in Page(write_report(sweep.write())).text
    only_private = type(sweep)(tmp_path / "private")
    only_private.row("local-dp", 8.0, accuracy=0.9, epsilon=7.9)
    assert sentence not in Page(write_report(only_private.write())).text


def test_a_sweep_warns_that_publishing_it_composes(sweep: Any) -> None:
    text = Page(write_report(sweep.write())).text
    assert "Publish one run, not the sweep" in text
    # 3 x 7.98765 + 3 x 2.98765 = 32.9259
    assert "is only (32.926, 6e-5)-differentially private by basic composition" in text
    assert "leaves no bound at all" in text


def test_seeds_of_one_row_compose_too(tree: Any) -> None:
    tree.row("local-dp", 8.0, accuracy=0.9, epsilon=7.5, seeds=(0, 1))
    text = Page(write_report(tree.write())).text
    assert "is only (15.000, 2e-5)-differentially private" in text
    assert "no bound at all" not in text


def test_one_private_run_beside_an_open_one_leaves_no_bound(tree: Any) -> None:
    tree.row("none", None, accuracy=0.9, epsilon=None, seeds=(0,))
    tree.row("local-dp", 8.0, accuracy=0.9, epsilon=7.5, seeds=(0,))
    text = Page(write_report(tree.write())).text
    assert "leaves no bound at all" in text
    assert "basic composition" not in text


def test_a_sweep_with_an_unknown_epsilon_says_that_it_knows_no_bound(sweep: Any) -> None:
    sweep.summary["runs"][4]["epsilon"] = None
    assert "this page knows no bound for it" in Page(write_report(sweep.write())).text


@pytest.mark.parametrize(("mode", "target"), [("none", None), ("local-dp", 1.0)])
def test_one_run_needs_no_composition(tree: Any, mode: str, target: float | None) -> None:
    tree.row(mode, target, accuracy=0.9, epsilon=target, seeds=(5,))
    page = Page(write_report(tree.write()))
    assert "Publish one run" not in page.text
    assert "Test accuracy: 90.0 %" in page.text


def test_a_run_that_lost_every_round_is_reported(tree: Any) -> None:
    tree.row("none", None, accuracy=0.1, epsilon=None, seeds=(0,))
    for line in tree.metrics["none-inf-s0"]:
        line.update(status="below-threshold", survivors=0, accuracy=None, loss=None)
        line.update(update_norm=None, dropped={"share_keys": 10})
    tree.summary["runs"][0]["accuracy"] = None
    text = Page(write_report(tree.write())).text
    assert "no accuracy was recorded" in text
    assert "smallest sum" not in text
    assert text.count("below-threshold") == 4


def test_a_run_without_any_round_is_reported(tree: Any) -> None:
    tree.row("none", None, accuracy=0.1, epsilon=None, seeds=(0,))
    tree.metrics["none-inf-s0"] = []
    assert "0 rounds" in Page(write_report(tree.write())).text


def test_an_alarm_stands_above_the_table(tree: Any) -> None:
    tree.row("local-dp", 3.0, accuracy=0.9, epsilon=3.5)
    text = Page(write_report(tree.write())).text
    assert 0 < text.index("exceeds the target 3.0") < text.index("What each row protects")


def test_the_picture_is_a_png_of_the_stated_size(sweep: Any) -> None:
    out = sweep.write()
    write_report(out)
    png = (out / "plot.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == PNG_SIZE
    assert len(png) > 20_000


def test_each_panel_is_well_formed_and_follows_the_theme(sweep: Any) -> None:
    panels = plot_svgs(read_tree(sweep.write()))
    assert list(panels) == list(PANELS)
    for svg in panels.values():
        ElementTree.fromstring(svg)
        assert svg.startswith("<svg ")
        assert "currentColor" in svg
        assert not re.search("#010203|#d0d1d2", svg, re.IGNORECASE)
    assert "target 8" in panels["epsilon"]
    assert "local DP, ε ≤ 3" in panels["accuracy"]
    assert "round without a sum" in panels["accuracy"]


def test_epsilon_is_drawn_at_its_largest_and_the_crowd_at_its_smallest_over_seeds(
    sweep: Any,
) -> None:
    sweep.metrics["local-dp-8-s1"][0]["epsilon"] = 1.0
    sweep.metrics["local-dp-8-s1"][1]["epsilon"] = 5.0
    sweep.metrics["local-dp-8-s2"][1]["survivors"] = 7
    tree = read_tree(sweep.write())

    def drawn(panel: str) -> list[float]:
        axes = Figure().subplots()
        PANELS[panel](axes, tree)
        (line,) = [x for x in axes.get_lines() if x.get_label() == "local DP, ε ≤ 8"]
        return [float(value) for value in line.get_ydata()]

    assert drawn("epsilon") == [7.98765 / 4, 5.0, 7.98765 * 3 / 4, 7.98765]
    assert drawn("survivors") == [9, 7, 0, 9]


def test_without_noise_the_epsilon_panel_says_so(tree: Any) -> None:
    tree.row("none", None, accuracy=0.9, epsilon=None)
    panel = plot_svgs(read_tree(tree.write()))["epsilon"]
    assert "there is no finite epsilon" in panel
    assert "0.5" not in re.findall(r">([^<>]+)</text>", panel)
    assert "round" not in re.findall(r">([^<>]+)</text>", panel)


def test_without_a_protocol_the_bytes_panel_says_so_and_shows_no_numbers(sweep: Any) -> None:
    for lines in sweep.metrics.values():
        for line in lines:
            line.update(bytes_up=0, bytes_down=0, bytes_up_per_client=0, bytes_down_per_client=0)
    panel = plot_svgs(read_tree(sweep.write()))["bytes"]
    assert "no bytes were sent" in panel
    assert "0 B" not in panel


def test_the_same_files_give_the_same_page(sweep: Any) -> None:
    out = sweep.write()
    first = write_report(out).read_bytes(), (out / "plot.png").read_bytes()
    assert (write_report(out).read_bytes(), (out / "plot.png").read_bytes()) == first


def test_a_failed_report_leaves_the_old_one(sweep: Any) -> None:
    out = sweep.write()
    old = write_report(out).read_bytes()
    (out / "none-inf-s0" / "metrics.jsonl").unlink()
    with pytest.raises(ConfigurationError):
        write_report(out)
    assert (out / "report.html").read_bytes() == old
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_callers_matplotlib_settings_are_untouched(sweep: Any) -> None:
    before = dict(mpl.rcParams)
    write_report(sweep.write())
    assert dict(mpl.rcParams) == before


def test_a_report_loads_no_torch_no_simulation_and_no_pyplot(sweep: Any) -> None:
    program = (
        "import sys, pathlib, securefl.report\n"
        "securefl.report.write_report(pathlib.Path(sys.argv[1]))\n"
        "found = [m for m in sys.modules if m.split('.')[0] in {'torch', 'flwr', 'opacus'}"
        " or m.startswith(('securefl.simulation', 'securefl.flower', 'securefl.training'))"
        " or m == 'matplotlib.pyplot']\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program, str(sweep.write())], check=True)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_the_import_names_the_missing_package(package: str) -> None:
    program = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "try:\n"
        "    import securefl.report\n"
        "except ModuleNotFoundError as missing:\n"
        "    sys.exit(missing.name != sys.argv[1])\n"
        "sys.exit('imported without it')\n"
    )
    subprocess.run([sys.executable, "-c", program, package], check=True)
