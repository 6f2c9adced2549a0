"""The page in headless Chromium: it shows what was typed and chosen, for several clients, without errors."""

import json
import threading
import time
import urllib.request

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.processes import wait

IS_PAINTED = """
    const canvas = document.getElementById("attention");
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0);
"""


def write(browser, text):
    area = browser.find_element(By.ID, "text")
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys(text)


def tokens(browser):
    return browser.execute_script("return [...document.getElementById('tokens').children].map(one => one.textContent)")


def shows(browser, text):
    wait(lambda: "".join(tokens(browser)).replace("·", " ") == text)


def choose(browser, adapter):
    Select(browser.find_element(By.ID, "adapter")).select_by_visible_text(adapter)


def table(browser, name):
    return browser.find_element(By.ID, name).text


@pytest.mark.slow
def test_the_page_follows_the_text_the_adapter_and_the_keyboard(served, browser):
    browser.get(served)
    write(browser, "Tom has <b>3</b> apples.")
    shows(browser, "Tom has <b>3</b> apples.")
    assert not browser.find_elements(By.CSS_SELECTOR, "#look b, .card script"), "a text is no markup"
    assert browser.execute_script(IS_PAINTED)
    assert "difference" not in table(browser, "scores")
    choose(browser, "lora (LoRA)")
    wait(lambda: "difference" in table(browser, "scores"))
    before = table(browser, "next")
    browser.find_element(By.ID, "scale").send_keys(Keys.HOME)
    wait(lambda: "+0.00" in table(browser, "scores") and table(browser, "next") != before)
    browser.find_element(By.ID, "scale").send_keys(Keys.END)
    choose(browser, "prefix (PrefixTuning)")
    wait(lambda: "after a prefix of 5" in browser.find_element(By.ID, "count").text)
    browser.find_element(By.CSS_SELECTOR, "#tokens [aria-selected=true]").send_keys(Keys.HOME)
    wait(lambda: browser.find_element(By.ID, "after").text == tokens(browser)[0])
    assert browser.switch_to.active_element.text == tokens(browser)[0]
    choose(browser, "none: the base alone")
    write(browser, "1 " * 150)
    wait(lambda: "may have 256 tokens" in browser.find_element(By.ID, "problem").text)
    errors = [entry for entry in browser.get_log("browser") if "422" not in entry["message"]]
    assert not errors


@pytest.mark.slow
def test_the_chat_tab_shows_an_answer_and_stops_it(served, browser):
    browser.get(served)
    wait(lambda: len(tokens(browser)) > 1)
    browser.find_element(By.ID, "tab-look").send_keys(Keys.ARROW_RIGHT)
    browser.find_element(By.ID, "message").send_keys("Tom <i>has</i> 3", Keys.ENTER)
    wait(lambda: len(browser.find_element(By.CSS_SELECTOR, "#messages .assistant").text) > 1)
    browser.find_element(By.ID, "stop").click()
    wait(lambda: browser.find_element(By.ID, "send").is_enabled())
    said = [(one.get_attribute("class"), one.text) for one in browser.find_elements(By.CSS_SELECTOR, "#messages p")]
    assert [role for role, _ in said] == ["user", "assistant"]
    assert said[0][1] == "Tom <i>has</i> 3"
    browser.find_element(By.ID, "clear").click()
    assert not browser.find_elements(By.CSS_SELECTOR, "#messages p")
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_a_narrow_page_and_a_dark_one(served, browser):
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(served)
        wait(lambda: len(tokens(browser)) > 1)
        choose(browser, "prefix (PrefixTuning)")
        wait(lambda: "difference" in table(browser, "scores"))
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
        backgrounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds[0] != backgrounds[1]


@pytest.mark.slow
def test_a_page_without_the_token_says_so(served, browser):
    browser.get(served.replace("right", "wrong"))
    wait(lambda: "token of the address is wrong" in browser.find_element(By.ID, "problem").text)


def look(address, **view):
    address, _, token = address.partition("#")
    request = urllib.request.Request(f"{address}api/look", json.dumps(view).encode(), headers={"x-token": token})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 30])
def test_clients_at_once_get_their_own_answers(served, browser, seconds):
    """The page, and three clients that each ask for another adapter and scale as fast as they can."""
    views = [{"adapter": None}, {"adapter": 0, "scale": 0.5}, {"adapter": 1, "scale": 1.5}]
    alone = [look(served, text="Tom has 3 apples.", **view) for view in views]
    browser.get(served)
    end, answers = time.monotonic() + seconds, []

    def ask(view, expected):
        while time.monotonic() < end:
            found = look(served, text="Tom has 3 apples.", **view)
            answers.append(found["adapted"] == pytest.approx(expected["adapted"], rel=1e-3))

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(views, alone, strict=True)]
    for thread in threads:
        thread.start()
    count = 0
    while time.monotonic() < end:
        count += 1
        write(browser, f"{count} apples")
        shows(browser, f"{count} apples")
    for thread in threads:
        thread.join()
    assert len(answers) >= len(views)
    assert all(answers)
    assert not browser.get_log("browser")
