"""The page of calibrate serve, in a real browser: the slider moves, and both replies stream."""

from __future__ import annotations

import re
import shutil

import pytest
from patience import PATIENCE
from serving_fixtures import saved, serving

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("page"), finished, "bright")
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(patch, [folder / "bright"], model=str(folder / "model")) as running,
    ):
        yield running


@pytest.fixture
def page(server):
    if CHROMIUM is None:
        pytest.skip("no chromium to look at the page with")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        playwright.expect.set_options(timeout=1000 * PATIENCE)
        page.faults, page.asked = [], []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(server.address)
        playwright.expect(page.locator("#alpha")).not_to_be_empty()
        yield page
        browser.close()


def shown(page, name):
    return page.locator(f"#{name}").inner_text()


def reply(page):
    page.locator("#go").click()
    playwright.expect(page.locator("#stop")).to_be_disabled()
    return shown(page, "plain"), shown(page, "steered")


def test_the_page_begins_at_the_calibrated_strength(page, server):
    config = server.catalogue.calibrations[0].config
    assert float(shown(page, "alpha")) == pytest.approx(config.intervention.strength, rel=5e-3)
    laws = float(config.laws.cross_entropy.predict(config.intervention.strength))
    assert float(shown(page, "cost")) == pytest.approx(laws, rel=0.01, abs=2e-3)
    assert f"{config.budget.limit:g} nat" in shown(page, "source")
    assert page.locator("#sweet").count() == page.locator("#budget").count() == 1


def test_moving_the_slider_changes_strength_laws_and_reply(page, server):
    config = server.catalogue.calibrations[0].config
    page.locator("#prompt").fill("the house")
    page.locator("#tokens").fill("8")
    first = reply(page)
    assert all(first)
    page.locator("#strength").press("End")
    end = server.catalogue.calibrations[0].facts()["end"]
    assert float(shown(page, "alpha")) == pytest.approx(end, rel=5e-3)
    laws = float(config.laws.cross_entropy.predict(end))
    assert float(shown(page, "cost")) == pytest.approx(laws, rel=0.01)
    at_end = reply(page)
    assert at_end[0] == first[0]
    page.locator("#strength").press("Home")
    assert float(shown(page, "alpha")) == 0
    at_zero = reply(page)
    assert at_zero[1] == at_zero[0] == first[0]
    assert len({first[1], at_end[1], at_zero[1]}) > 1


def test_what_the_page_shows_is_what_the_server_replies(page, server):
    page.locator("#prompt").fill("a stone walks")
    page.locator("#tokens").fill("7")
    page.locator("#seed").fill("5")
    plain, steered = reply(page)
    for strength, text in ((0.0, plain), (None, steered)):
        asked = {
            "messages": [{"role": "user", "content": "a stone walks"}],
            "seed": 5,
            "max_tokens": 7,
            **({} if strength is None else {"strength": strength}),
        }
        assert server.post(asked)[1]["choices"][0]["message"]["content"] == text


def test_a_refusal_is_shown(page):
    page.locator("#tokens").fill("2000")
    assert all("must fit the context" in text for text in reply(page))
    assert [fault for fault in page.faults if "400" not in fault] == []


def test_nothing_comes_from_elsewhere(page, server):
    reply(page)
    assert {re.match(r"https?://[^/]+", url)[0] for url in page.asked} == {server.address}
    assert page.faults == []
