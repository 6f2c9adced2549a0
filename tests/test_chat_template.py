"""A chat template is untrusted code: it runs in a worker process, within limits of time, memory and output."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minillm import InputError, chat_template
from minillm.chat_template import render
from tests.processes import running, wait

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork are of Unix")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")

DOUBLED = "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
NESTED = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}"
LOOP = "{% for i in range(99999) %}"
MEMORY = {
    "ljust": "{{ 'x'.ljust(10 ** 10) }}",
    "center": "{{ 'x' | center(10 ** 10) }}",
    "zfill": "{{ '1'.zfill(10 ** 10) }}",
    "a width of format": "{{ '{:>9999999999}'.format(1) }}",
    "a precision of format": "{{ '{:.2147483647f}'.format(1.0) }}",
    "a width of %": "{{ '%9999999999d' % 1 }}",
    "a width of the filter format": "{{ '%0*d' | format(10 ** 10, 1) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "a repeated text": "{{ 'x' * 10 ** 10 }}",
    "a repeated list": "{{ [0] * 10 ** 10 }}",
    "a doubled text": DOUBLED,
    "a doubled list": DOUBLED.replace("'x'", "[1]").replace("~", "+"),
    "replace": "{% set x = 'x' * 99999 %}{{ x.replace('x', x) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2 ** 30) }}",
    "tabs in a list": "{{ ('\\t' * 9999).expandtabs(99999) | list }}",
    "batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
}
TIME = {
    "lipsum": "{{ lipsum(n=99999, min=9999, max=99999) }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "a block that is set": LOOP * 2 + "{% set x %}" + LOOP + "xxxx{% endfor %}{% endset %}" + "{% endfor %}" * 2,
    "a template of loops in loops": LOOP * 15 + "{% endfor %}" * 15,
    "tojson of a nested list": NESTED + "{{ ns.x | tojson }}",
    "a nested list as text": NESTED + "{{ ns.x }}",
    "a long sum": "{{ 1" + "+1" * 90000 + " }}",
    "attributes": "{{ x" + ".a" * 90000 + " }}",
    "empty pieces": LOOP + LOOP + "{{ '' }}{% endfor %}{% endfor %}",
    "urlize": "{{ ('((((http://x.y' * 999999) | urlize }}",
    "loops in loops": LOOP * 4 + "{% endfor %}" * 4,
    "a power": "{{ 7 ** 7 ** 9 }}{{ (7 ** (7 ** 9)) % 3 }}",
    "a shifted integer": "{% set ns = namespace(x=7) %}" + LOOP + "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "two macros": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(99) }}",
    "wordwrap": "{{ ('x ' * 999999) | wordwrap(1, true, 'y' * 999) }}",
    "sort": LOOP + "{% set x = range(99999) | sort(reverse=true) %}{% endfor %}",
}
REFUSED = {
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "striptags": "{{ ('<!--' * 999999) | striptags }}",
    "small pieces": LOOP + LOOP + "{{ i }}{% endfor %}{% endfor %}",
    "a large text": "{{ 'x' * 9999999 }}",
    # Python's stack and its compiler.
    "a macro that calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a caller that calls itself": "{% macro a() %}{% call a() %}{{ caller() }}{% endcall %}{% endmacro %}{{ a() }}",
    "a loop that calls itself": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "brackets": "{{ " + "(" * 90000 + ")" * 90000 + " }}",
    "lists in lists": "{{ " + "[" * 90000 + "]" * 90000 + " }}",
    "not not": "{{ " + "not " * 49000 + "1 }}",
    "blocks in blocks": "{% if 1 %}" * 9000 + "{% endif %}" * 9000,
    "digits": "{{ " + "9" * 190000 + " }}",
    "an integer as text": "{{ 10 ** 99999 }}",
    "a long template": "x" * 200_001,
    # Python's internals.
    "the class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr": "{{ ('' | attr('__class__')).__mro__ }}",
    "an item": "{{ ''['__class__']['__mro__'] }}",
    "map": "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list | tojson }}",
    "a format string": "{{ '{0.__class__.__mro__}'.format('') ~ ''.__class__.x }}",
    "self": "{{ self.__init__.__globals__.os }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "joiner": "{{ joiner.__call__.__globals__.x }}",
    "namespace": "{% set namespace.x = 1 %}",
    "an attribute of a message": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.x }}",
    "a changed message": "{{ messages.clear() }}",
    "a file": "{% include '/etc/passwd' %}",
}  # fmt: skip
ATTACKS = MEMORY | TIME | REFUSED
ALWAYS = {
    "ljust", "a width of format", "a repeated list", "a doubled text", "lipsum", "loops in loops", "two macros",
    *REFUSED,
}  # fmt: skip
"""The others are slow tests: after a limit there is a new worker."""


@pytest.fixture
def within(monkeypatch):
    """Set limits for this test."""

    def change(**limits):
        chat_template.stop()
        for name, value in limits.items():
            monkeypatch.setattr(chat_template, name, value)

    yield change
    chat_template.stop()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[*[linux] * (name in MEMORY), *[pytest.mark.slow] * (name not in ALWAYS)])
        for name in ATTACKS
    ],
)
def test_an_attack_is_refused_in_one_line_and_the_next_conversation_renders(within, name):
    within(SECONDS=0.2)
    with pytest.raises(InputError) as refusal:
        render(ATTACKS[name], {"messages": [{"role": "user", "content": "hi"}]})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 700
    if name not in REFUSED:
        assert "exceeds 0.2 s or 256 MB" in str(refusal.value)
    assert render("{{ x }}", {"x": "hi"}) == "hi"


def _run(program, *more):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@linux
@pytest.mark.slow
def test_all_attacks_end_within_two_seconds_and_256_megabytes():
    done = _run(
        """
import json, resource, sys, time
from minillm.chat_template import InputError, render, stop
slowest = 0
for template in json.loads(sys.argv[1]):
    start = time.thread_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        render(template, {"messages": []})
        raise SystemExit(template)
    except InputError:
        stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - start[1].ru_utime - start[1].ru_stime + time.thread_time() - start[0]
    slowest = max(slowest, seconds)
# ru_maxrss of a process begins with that of its parent, pytest.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([slowest, used.ru_maxrss / 1e3, int(peak) / 1e3]))
""",
        json.dumps([template for template in ATTACKS.values() if len(template) < 60_000]),
    )
    assert done.returncode == 0, done.stderr
    seconds, worker, parent = json.loads(done.stdout)
    assert seconds < 2
    assert max(worker, parent) < 256


@pytest.mark.parametrize("text", ["", "\n\r\u2028\x00", "\ud800 \U0001f600 \U000f0000", "x" * 300_000, "é" * 300_000])
def test_any_text_comes_back_unchanged(text):
    assert render("{{ x[0] }}", {"x": [text]}) == text


def test_renderings_share_one_worker_and_no_state(within):
    within()
    counting = (
        "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ x }}"
    )
    texts, workers = [], set()
    for x in range(30):
        texts.append(render(counting, {"x": x}))
        workers.add(chat_template._workers[os.getpid()].process.pid)
    assert texts == [f"3{x}" for x in range(30)]
    assert len(workers) == 1


def test_threads_take_turns():
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda x: render("{{ x }}", {"x": x}), range(100))) == [str(x) for x in range(100)]


def test_a_worker_that_was_killed_is_replaced():
    render("a", {})
    process = chat_template._workers[os.getpid()].process
    process.kill()
    process.wait()
    assert render("b", {}) == "b"


@unix
def test_a_worker_that_does_not_answer_is_ended_by_the_clock(monkeypatch):
    render("a", {})
    os.kill(chat_template._workers[os.getpid()].process.pid, signal.SIGSTOP)
    with monkeypatch.context() as changed:
        changed.setattr(chat_template, "CLOCK_SECONDS", 0.2)
        with pytest.raises(InputError, match="exceeds"):
            render("a", {})
    assert render("a", {}) == "a"


def test_without_a_python_to_run_chat_templates_are_refused(within, monkeypatch):
    within()
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(InputError, match="cannot be started"):
        render("a", {})


@unix
def test_forked_processes_have_their_own_workers():
    done = _run("""
import os
from minillm.chat_template import render, stop
assert render("{{ x }}", {"x": 1}) == "1"
if (child := os.fork()) == 0:
    for x in range(50):
        assert render("{{ x }}", {"x": -x}) == str(-x)
    stop()
    os._exit(0)
for x in range(50):
    assert render("{{ x }}", {"x": x}) == str(x)
assert os.waitpid(child, 0)[1] == 0
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LOOPING = """
from minillm.chat_template import _workers, render
import os, sys, threading
render("", {})
print(_workers[os.getpid()].process.pid, flush=True)
try:
    render(sys.argv[1], {})
except KeyboardInterrupt:
    print("interrupted", render("and renders", {}))
"""


@unix
@pytest.mark.parametrize("number", [2, 9], ids=["Ctrl-C", "killed"])
def test_the_worker_ends_with_its_rendering_and_its_parent(number):
    command = [sys.executable, "-c", LOOPING, TIME["loops in loops"]]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.1)
    os.killpg(parent.pid, number)
    out, err = parent.communicate(timeout=60)
    assert (out, err) == ("interrupted and renders\n" if number == signal.SIGINT else "", "")
    wait(lambda: not running(worker))
