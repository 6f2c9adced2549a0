"""The page of a run: what it shows, that its texts are escaped and nothing is loaded, and how a browser shows it."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from minillm.errors import InputError
from minillm.lab import html_report
from minillm.lab.html_report import LARGEST, Report, confusions, mistakes, page
from minillm.lab.ladder import RUNGS
from tests.processes import wait

ATTACK = "</td></script><script>document.title='attacked'</script><img src=x onerror=alert(1)>"
RUNG = {
    "standard_error": 0.2, "majority_baseline": 0.5, "trainable_parameters": 0, "train_seconds": 0.0, "eval_seconds": 2,
    "stored_bytes": 4608, "peak_memory_bytes": None, "precision": "float32", "chosen": {}, "tokens_per_second": 16311.2,
    "predicted_classes": 2, "calibration_error": 0.1, "reliability": [{"confidence": 0.9, "accuracy": 0.8, "rows": 4}],
}  # fmt: skip
ROWS = {"answers": ["bad", "good"], "labels": [0, 1, 1, 0], "texts": ["dull", f"fun {ATTACK}", "great " * 400, "dire"]}
PHONE = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
PAIR = {"first": "lora", "second": "features", "difference": -0.25, "low": -0.5, "high": 0.1, "p": 0.5, "verdict": "?"}


def rung(name, accuracy, predicted, **more):
    given = {"predicted": predicted, "confidence": [0.9] * len(predicted)}
    return {"name": name, **RUNGS[name]._asdict(), **RUNG, "accuracy": accuracy, **given, **more}


def ladder(**more):
    """Three rungs; the names of nine are in `more`."""
    rungs = [
        rung("zero-shot", 0.5, [0, 0, 0, 0]),
        rung("features", 0.75, [0, 1, 0, 0], trainable_parameters=1154),
        rung("lora", 0.25, [1, 0, 0, 0], trainable_parameters=460800, chosen={"losses": [3, 2.5, 1, 1.5]}),
    ]
    settings = {"base": "tiny", "task": "word_problems", "data": None, "prompt": ATTACK, "versions": {"torch": "2.13"}}
    return {**settings, "rungs": rungs, "skipped": {"full": f"no memory {ATTACK}"}, "pairs": [PAIR], **more}


@pytest.fixture
def run(tmp_path):
    """Writes the files of a run; returns its directory."""

    def write(**files):
        directory = tmp_path / "run"
        directory.mkdir(exist_ok=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / f"{name}.json").write_text(text, encoding="utf-8")
        return directory

    return write


def test_texts_are_escaped_and_only_the_script_of_the_page_may_run(run):
    shown = page(run(ladder=ladder(), rows=ROWS))
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", shown, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}' in shown
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 3
    assert not re.findall(r'(?:src|href|action)\s*=\s*"?(?:https?:|//)', shown)


def test_a_confusion_matrix_and_the_wrong_rows():
    guessed = ladder()["rungs"]
    assert confusions(guessed, ROWS) == [[[2, 0], [2, 0]], [[2, 0], [1, 1]], [[1, 1], [2, 0]]]
    wrong = mistakes(guessed, ROWS)
    assert [(count, text[:5], label) for count, text, label, _ in wrong] == [
        (3, "great", "good"), (2, "fun <", "good"), (1, "dull", "bad"),
    ]  # fmt: skip
    assert wrong[2][3] == [("bad", 0.9, True), ("bad", 0.9, True), ("good", 0.9, False)]


def test_the_page_shows_measures_differences_losses_and_how_to_reproduce_them(run):
    directory = run(ladder=ladder(), rows=ROWS)
    shown = page(directory)
    for text in (
        "0.250 ± 0.200",
        "460,800",
        "4.6 kB",
        "-0.25",
        "4 values: first 3, lowest 1, last 1.5",
        "16,311",
        "torch 2.13",
    ):
        assert f"{text}<" in shown
    assert f"minillm ladder --config {directory}/run.json" in shown
    places = re.findall(r'circle cx="([\d.]+)%" cy="50%" r="5" fill="#\w+"', shown.partition("<h3>accuracy")[2])
    assert places[:3] == ["50.0", "75.56", "24.44"]  # of -0.2 + 0.25 to 0.75 + 0.2, in percent of the width


def test_an_experiment_shows_its_tables_its_conclusions_and_its_trials(run):
    measured = {
        "accuracy": 0.5,
        "right": [True, False, True],
        "losses": [1, 2, 3],
        "chosen": {"forgetting": {"8": 0, "16": 0.5, "24": 0.25}},
    }
    measured["spectra"] = {"blocks.0.attention.query.weight": [4, 2, 1, 0.5]}
    trial = {"settings": {"method": "lora", "r": 4}, "measured": measured, "seconds": 1.5}
    tables = [{"title": "By rank <b>", "columns": ["r", "who"], "rows": [[4, "x"], [1000, None]]}]
    experiment = {"experiment": "rank", "command": "minillm lab rank", "trials": [trial], "conclusions": ["r 4 & more"]}
    shown = page(run(rank={**experiment, "tables": tables}))
    for text in (
        "By rank &lt;b&gt;",
        ">1,000<",
        "r 4 &amp; more",
        "method lora, r 4: losses",
        ">1.5 s<",
        "minillm lab rank",
    ):
        assert text in shown
    assert "r 4: right" not in shown


def test_runs_of_adapt_and_juggler_are_shown_too(run):
    adapted = {"ladder": {"base": "tiny"}, "method": "prefix", "options": {"length": 7}, "samples": [{"prompt": "Q?"}]}
    way = {"way": "few-shot", "steps": 2, "strict": 0.125}
    shown = page(run(adapt=adapted, juggler={"samples": 5, "ways": [way], "chain_less_direct": []}))
    for text in ("Q?", "length: 7", "minillm attention", ">0.125<", "lab juggler --config"):
        assert text in shown
    assert "Measures" not in shown


def test_a_picture_is_an_image_and_an_svg_replaces_the_png_of_its_name(run):
    directory = run(ladder=ladder())
    (directory / "ladder.png").write_bytes(b"png")
    (directory / "ladder.svg").write_text("<svg><script>alert(1)</script></svg>")
    (directory / "map.png").write_bytes(b"png")
    found = re.findall(r'<img src="data:(image/[\w+]+);base64,[\w+/=]+" alt="(\w+)">', page(directory))
    assert found == [("image/svg+xml", "ladder"), ("image/png", "map")]
    (directory / "map.png").write_bytes(bytes(LARGEST + 1))
    with pytest.raises(InputError, match=r"map\.png must have at most 4194304 bytes"):
        page(directory)


WRONG = [
    ({}, "has no results of ladder, adapt or lab"),
    ({"tokenizer": "[", "other": {"a": 1}}, "has no results of ladder, adapt or lab"),
    ({"ladder": '{"rungs": ['}, "ladder.json cannot be read as JSON"),
    ({"ladder": '{"rungs": NaN}'}, "ladder.json cannot be read as JSON"),
    ({"ladder": {"rungs": 3}}, "ladder.json cannot be read as the results of a run"),
    ({"ladder": {"rungs": [{"name": []}]}}, "ladder.json cannot be read as the results of a run"),
    ({"ladder": ladder(), "rows": {**ROWS, "labels": [0, 1, 2, 7]}}, "ladder.json cannot be read as the results"),
    ({"rank": {"trials": [{"settings": {}}]}}, "rank.json cannot be read as the results of a run"),
    ({"ladder": ladder(skipped=[1])}, "cannot be read as the results of a run"),
]


@pytest.mark.parametrize(("files", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_or_damaged_run_is_one_sentence_and_nothing_is_written(files, message, run):
    directory = run(**files)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Report(directory=directory).run()
    assert "\n" not in str(caught.value)
    assert not (directory / "report.html").exists()


def test_a_file_is_no_directory_of_a_run(tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        page(tmp_path / "missing")


def test_the_figure_has_every_place_and_every_part_that_a_method_changes(run):
    names = [*RUNGS, "dora", "pissa"]
    rungs = [{"name": name, **RUNG, "accuracy": 0.5} for name in names]
    shown = page(run(ladder=ladder(rungs=rungs, skipped={})))
    buttons = re.findall(r'<button[^>]* data-place="([^"]*)" data-parts="([^"]*)">([\w-]+)<', shown)
    assert [name for *_, name in buttons] == names
    assert {name: place for place, _, name in buttons if name in RUNGS} == {n: r.place for n, r in RUNGS.items()}
    figure = (Path(html_report.__file__).parent / "figure_1.svg").read_text("utf-8")
    places = " ".join(re.findall(r'data-place="([^"]*)"', figure))
    assert all(place in places for place, *_ in buttons)
    assert {part for _, parts, _ in buttons for part in parts.split()} == set(
        re.findall(r'data-part="([\w-]*)"', figure)
    )


def column(browser, number):
    script = (
        "return [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[arguments[0]].textContent)"
    )
    return browser.execute_script(script, number)


@pytest.mark.slow
def test_a_browser_sorts_lights_and_prints_the_page_without_errors(run, browser):
    directory = run(ladder=ladder(), rows=ROWS)
    (directory / "ladder.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="9"></svg>')
    Report(directory=directory).run()
    browser.get((directory / "report.html").as_uri())
    assert browser.title == "ladder: tiny on word_problems"
    heads = [head.text for head in browser.find_elements("css selector", "table th")]
    parameters = heads.index("trainable parameters")
    assert column(browser, 0) == ["zero-shot", "features", "lora"]
    for order in (["0", "1,154", "460,800"], ["460,800", "1,154", "0"]):
        browser.find_elements("css selector", "table th button")[parameters].click()
        assert column(browser, parameters) == order
    lit = "return [...document.querySelectorAll('.lit')].map(one => one.dataset.part)"
    assert browser.execute_script(lit) == []
    next(one for one in browser.find_elements("css selector", ".methods button") if one.text == "lora").click()
    assert browser.execute_script(lit) == ["attention"]
    bright = "return [...document.querySelectorAll('svg [data-place]:not(.dim)')].map(one => one.dataset.place)"
    assert browser.execute_script(bright) == ["3 weights"]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": 718})  # A4 less its margins
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ends = "return [...document.querySelectorAll('table')].map(one => one.getBoundingClientRect().right)"
    assert max(browser.execute_script(ends)) <= 718
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert not browser.get_log("browser")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(run, browser, scheme):
    directory = run(ladder=ladder(), rows=ROWS)
    (directory / "ladder.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="9"></svg>')
    Report(directory=directory).run()
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get((directory / "report.html").as_uri())
    wait(lambda: browser.execute_script("return document.readyState") == "complete")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    background = {"light": "rgb(244, 245, 247)", "dark": "rgb(18, 21, 26)"}[scheme]
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == background
