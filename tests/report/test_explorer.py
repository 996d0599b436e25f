"""The report's application in a real browser: linked views, choices, links, keyboard, themes, phone, accessibility."""

import re
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, fragment, opened
from fake_profiles import add_profiles
from fake_run import FakeSweep, write_fake_run

from sweeps.report import wording, write_report
from sweeps.report.cell_grid import WHOLE_LAYER

VIEWS = "#at=application"


@pytest.fixture(scope="module")
def cells(fake_run) -> pd.DataFrame:
    """Effects on the primary metric with their trials, in the order of the ranking."""
    effects = pd.read_parquet(fake_run / "effects.parquet").query("metric == 'noise_mse'")
    joined = effects.merge(pd.read_parquet(fake_run / "trials.parquet"), on="trial_id")
    order = joined.assign(called=joined["verdict"] == "degraded")
    return order.sort_values(["called", "mean_log_ratio"], ascending=False).set_index("trial_id")


def state(page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(fragment(page)).items()}


def count(page) -> tuple[int, int]:
    shown, every = page.locator("#application output").text_content().replace(",", "").split(" of ")
    return int(shown), int(every)


def rows(page) -> pd.DataFrame:
    """The table as it stands: what is written, and the values behind it."""
    return pd.DataFrame(
        page.evaluate("""() => {
          const keys = Array.from(document.querySelectorAll('#all-trials thead th'), (th) => th.dataset.key);
          return Array.from(document.querySelectorAll('#all-trials tbody tr'), (row) => ({
            trial: row.dataset.trial,
            ...Object.fromEntries(keys.map((key, i) => [key, row.cells[i].textContent])),
            ...Object.fromEntries(keys.map((key, i) => [`${key}_value`, Number(row.cells[i].dataset.value)])),
            high_value: Number(row.querySelector('[data-high]').dataset.high),
          }));
        }""")
    )


def test_the_table_shows_the_numbers_of_effects_parquet(browser, report, cells):
    with opened(browser, report, "#sort=q") as found:
        shown = pd.concat([rows(found.page), *(turned(found.page) for _ in range(3))], ignore_index=True)
        assert len(set(shown["trial"])) == 100
        expected = cells.loc[shown["trial"]]
        for key in ("percent", "ci_low", "p", "q", "n"):
            np.testing.assert_allclose(shown[f"{key}_value"], expected[key], rtol=1e-12)
        np.testing.assert_allclose(shown["high_value"], expected["ci_high"], rtol=1e-12)
        np.testing.assert_allclose(shown["d_z_value"], expected["d_z"], rtol=1e-6)
        assert expected["q"].is_monotonic_increasing
        assert expected["q"].iloc[-1] == np.sort(cells["q"])[99]
        for row, cell in zip(shown.itertuples(), expected.itertuples()):
            assert row.percent == wording.percent(cell.percent)
            assert row.ci_low == wording.interval(cell.ci_low, cell.ci_high)
            assert (row.p, row.q) == (wording.probability(cell.p), wording.probability(cell.q))
            assert row.verdict.startswith(cell.verdict)
        assert found.said == []
        assert found.asked == []


def turned(page) -> pd.DataFrame:
    page.get_by_role("button", name="Next").click()
    return rows(page)


def test_choices_narrow_the_table_and_mute_the_map(browser, report, cells):
    with opened(browser, report) as found:
        page = found.page
        assert count(page) == (1080, 1080)
        assert page.locator("rect.cell").count() == 1080
        page.select_option("select[name=dataset]", "lfw_faces")
        page.select_option("select[name=mode]", "mean")
        page.select_option("select[name=verdict]", "degraded")
        expected = cells.query("dataset == 'lfw_faces' and mode == 'mean' and verdict == 'degraded'")
        assert count(page) == (len(expected), 1080)
        shown = rows(page)
        assert set(shown["trial"]) <= set(expected.index)
        assert shown["trial"].tolist() == expected.index[: len(shown)].tolist()
        drawn = set(page.evaluate("Array.from(document.querySelectorAll('rect.cell'), (r) => r.dataset.cell)"))
        assert drawn == set(cells.query("dataset == 'lfw_faces' and mode == 'mean'").index)
        bright = page.evaluate("Array.from(document.querySelectorAll('rect.cell:not(.dim)'), (r) => r.dataset.cell)")
        assert set(bright) == set(expected.index)
        assert state(page) == {"dataset": "lfw_faces", "mode": "mean", "verdict": "degraded"}
        page.get_by_role("button", name="Reset").click()
        assert count(page) == (1080, 1080)
        page.keyboard.press("/")
        page.keyboard.type("L2H5 zero 199")
        expected = cells.query("layer_index == 2 and head == 5 and mode == 'zero' and t_start == 199")
        assert count(page) == (len(expected), 1080) == (2, 1080)
        assert set(rows(page)["trial"]) == set(expected.index)
        assert found.said == []


def test_another_metric_has_its_own_effects(browser, report, fake_run):
    effects = pd.read_parquet(fake_run / "effects.parquet").query("metric == 'edge'").set_index("trial_id")
    trial = effects["percent"].idxmax()
    with opened(browser, report, f"#metric=edge&pick={trial}&sort=-percent") as found:
        page = found.page
        assert rows(page)["percent_value"].tolist() == effects["percent"].nlargest(25).tolist()
        assert page.locator(".detail .big").get_attribute("data-value") == repr(float(effects.at[trial, "percent"]))
        assert "edge" in page.locator(".detail .where").last.text_content()
        page.select_option("select[name=metric]", "noise_mse")
        assert "metric" not in state(page)


def test_other_metrics_stopped_with_the_registered_one(browser, report, cells):
    decided = cells[cells["stopped"] == "decided"].index[0]
    with opened(browser, report, f"#pick={decided}") as found:
        stopped = found.page.locator(".detail [data-key=stopped] dd")
        assert stopped.text_content() == "early: its verdict was certain"
        found.page.select_option("select[name=metric]", "edge")
        assert stopped.text_content() == "early: its verdict on noise_mse was certain"


def test_the_table_begins_at_its_top_and_turns_to_what_is_picked(browser, report, cells):
    last = cells.index[-1]
    with opened(browser, report) as found:
        page = found.page
        assert rows(page)["trial"].tolist() == cells.index[:25].tolist()
        page.locator(f'rect[data-cell="{last}"]').click()
        assert rows(page)["trial"].iloc[-1] == last
        page.locator("#all-trials th[data-key=percent] button").click()
        page.locator("#all-trials th[data-key=percent] button").click()
        assert rows(page)["percent_value"].tolist() == cells["percent"].nlargest(25).tolist()
        page.get_by_role("button", name="Next").click()
        assert rows(page)["percent_value"].tolist() == cells["percent"].nlargest(50).tolist()[25:]
    with opened(browser, report, f"#pick={last}") as found:
        assert rows(found.page)["trial"].iloc[-1] == last


def test_the_way_back_from_a_section(browser, report, cells):
    with opened(browser, report) as found:
        page = found.page
        page.locator(f'rect[data-cell="{cells.index[9]}"]').click()
        page.get_by_role("button", name="Next").click()
        there = rows(page)["trial"].tolist()
        page.get_by_role("link", name="Method and limits").first.click()
        assert state(page) == {"pick": cells.index[9], "at": "method"}
        page.go_back()
        assert state(page) == {"pick": cells.index[9]}
        assert rows(page)["trial"].tolist() == there


def test_a_picked_cell_shows_what_is_known_of_it(browser, report, cells, fake_run):
    heads = cells.query("head >= 0 and verdict == 'degraded'")
    trial, cell = heads.index[3], heads.iloc[3]
    with opened(browser, report) as found:
        page = found.page
        page.locator(f'rect[data-cell="{trial}"]').click()
        assert state(page) == {"pick": trial}
        detail = page.locator(".detail")
        text = detail.text_content()
        assert detail.locator("h3").text_content() == f"L{cell.layer_index}H{cell['head']}"
        for said in (
            wording.percent(cell.percent), wording.interval(cell.ci_low, cell.ci_high), cell.verdict, cell["mode"],
            f"t {cell.t_start}–{cell.t_end}", cell.dataset, cell.layer,
        ):  # fmt: skip
            assert said in text
        numbers = dict(
            page.evaluate("""() => Array.from(document.querySelectorAll('.detail .numbers > div'),
              (row) => [row.dataset.key, row.querySelector('dd').textContent])""")
        )
        assert numbers["d_z"] == wording.decimal(cell.d_z)
        assert numbers["p"] == wording.probability(cell.p)
        assert numbers["q"] == wording.probability(cell.q)
        assert numbers["n"] == "64"
        # A dot an image, in the strip and beside its baseline; those above the diagonal are counted for the ear.
        records = pd.read_parquet(next((fake_run / "records").glob("*.parquet")))
        values = records[(records["trial_id"] == trial) & (records["metric"] == "noise_mse")]
        worse = int((values["ablated"] > values["baseline"]).sum())
        scatter = detail.get_by_role("img", name=re.compile("Baseline against ablated"))
        assert scatter.locator("circle").count() == 64
        assert f"{worse} lie above the diagonal" in scatter.get_attribute("aria-label")
        assert detail.get_by_role("img", name=re.compile("Change on each of 64 images")).locator("circle").count() == 64
        windows = detail.get_by_role("img", name=re.compile("Percent degradation over windows"))
        same = cells.query(f"layer_index == {cell.layer_index} and head == {cell['head']} and mode == '{cell['mode']}'")
        assert len(same) == 10
        for other in same.itertuples():
            t = (other.t_start + other.t_end) / 2
            assert f"{other.dataset}, t {t:g}: {wording.percent(other.percent)}" in windows.get_attribute("aria-label")
        assert page.locator("rect.picked").get_attribute("data-cell") == trial
        assert page.locator("rect.picked").get_attribute("aria-selected") == "true"
        assert page.locator("rect.alike").count() == 5  # the other modes and the other data set
        assert page.locator("#all-trials tr.picked").get_attribute("data-trial") == trial
        image = detail.locator("img.samples")
        assert image.get_attribute("src").startswith("data:image/webp")
        image.scroll_into_view_if_needed()
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 96
        # The other way: a row of the table, a link of the detail, a link of another section; then back again.
        page.locator("#all-trials tbody tr").nth(1).locator("td").last.click()
        second = state(page)["pick"]
        assert second != trial
        page.go_back()
        assert state(page)["pick"] == trial
        assert page.locator("rect.picked").get_attribute("data-cell") == trial
        top = page.locator("#ranking table a").nth(5)
        wanted = parse_qs(top.get_attribute("href")[1:])["pick"][0]
        top.click()
        assert state(page)["pick"] == wanted
        assert page.locator("rect.picked").get_attribute("data-cell") == wanted
        assert found.said == []


def test_a_link_brings_everything_back(browser, report, cells):
    trial = cells.query("dataset == 'lfw_faces' and mode == 'resample' and head == 3 and window_index == 4").index[0]
    address = f"#pick={trial}&dataset=lfw_faces&mode=resample&search=H3&sort=-p"
    with opened(browser, report, address) as found:
        page = found.page
        assert page.locator("select[name=dataset]").input_value() == "lfw_faces"
        assert page.locator("input[name=search]").input_value() == "H3"
        expected = cells.query("dataset == 'lfw_faces' and mode == 'resample' and head == 3")
        assert count(page) == (len(expected), 1080)
        assert rows(page)["p_value"].tolist() == expected["p"].sort_values(ascending=False).tolist()
        assert page.locator("#all-trials th[data-key=p]").get_attribute("aria-sort") == "descending"
        assert page.locator("rect.picked").get_attribute("data-cell") == trial
        page.locator("#all-trials th[data-key=percent] button").click()
        assert rows(page)["percent_value"].is_monotonic_increasing
        page.locator("#all-trials th[data-key=percent] button").click()
        assert rows(page)["percent_value"].is_monotonic_decreasing
        assert state(page)["sort"] == "-percent"
        page.reload()
        assert rows(page)["percent_value"].is_monotonic_decreasing
        page.get_by_role("link", name="Method and limits").first.click()
        assert state(page)["at"] == "method"
        assert state(page)["pick"] == trial
        assert page.evaluate("document.activeElement.id") == "method"


def test_a_link_to_nothing_known_does_no_harm(browser, report):
    with opened(browser, report, "#pick=nothing&metric=none&dataset=%E0%A4&sort=what&layers=-3&strange=1") as found:
        assert "No cell is picked" in found.page.locator(".detail").text_content()
        assert found.page.locator("select[name=metric]").input_value() == "noise_mse"
        assert count(found.page) == (1080, 1080)
        assert found.said == []


def test_the_keyboard_moves_over_the_map(browser, report, cells):
    def trial(**where) -> str:
        query = " and ".join(f"{name} == {value!r}" for name, value in where.items())
        (found,) = cells.query(query).index
        return found

    cell = {"dataset": "synthetic_faces", "mode": "zero", "layer_index": 3, "head": 7, "window_index": 1}
    with opened(browser, report, f"#pick={trial(**cell)}") as found:
        page = found.page
        page.locator(".map-view [tabindex='0'][data-cell]").focus()
        steps = {
            "ArrowRight": {"head": WHOLE_LAYER},
            "ArrowRight ": {"head": 0, "window_index": 2},
            "ArrowDown": {"mode": "mean", "layer_index": 0},
            "End": {"head": WHOLE_LAYER},
            "ArrowUp": {"mode": "zero", "layer_index": 3},
            "PageUp": {"window_index": 1},
            "ArrowLeft": {"head": 7},
        }
        for key, change in steps.items():
            cell |= change
            page.keyboard.press(key.strip())
            assert page.evaluate("document.activeElement.dataset.cell") == trial(**cell), key
            assert state(page)["pick"] == trial(**cell)
            assert page.locator(".map-view [tabindex='0'][data-cell]").count() == 1
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        effect = cells.loc[trial(**cell)]
        assert wording.percent(effect.percent) in label
        assert effect.verdict in label
        assert page.locator("[data-view=said]").text_content() == label
        page.keyboard.press("Escape")
        assert state(page)["pick"] == "none"
        assert page.locator("rect.picked").count() == 0
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "search"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.tagName") == "BODY"
        assert found.said == []


@pytest.mark.parametrize(
    ("size", "theme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["light", "dark", "phone", "dark phone"],
)  # fmt: skip
def test_it_is_accessible_and_fits(browser, report, size, theme):
    with opened(browser, report, VIEWS, size, theme) as found:
        # The whole page once; in the other themes and sizes, what its script makes.
        everything = (size, theme) == (DESKTOP, "light")
        assert found.violations("body" if everything else "#explore") == []
        root = "document.documentElement"
        assert found.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
        assert found.said == []
        assert found.asked == []


def test_the_theme_can_be_chosen(browser, report):
    with opened(browser, report, theme="dark") as found:
        page = found.page
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        button = page.locator("#theme")
        button.click()
        assert button.text_content() == "Theme: light"
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        button.click()
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ground) == dark
        button.click()
        assert page.evaluate(ground) == light


def test_names_cannot_run(browser, tmp_path):
    hostile = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script><!--"
    sweep = FakeSweep(layers=1, heads=2, windows=1, modes=(hostile,), datasets=(hostile,), model=hostile)
    page = write_report(write_fake_run(tmp_path / "run", sweep))
    with opened(browser, page) as found:
        assert found.said == []
        assert found.page.title() != "owned"
        assert found.page.locator("img[src=x]").count() == 0
        assert hostile in found.page.locator(".detail").text_content()
        assert found.page.locator("rect.cell").count() == 3


def test_a_head_has_its_type_entropy_and_attention(browser, small_run):
    add_profiles(small_run)
    trials = pd.read_parquet(small_run / "trials.parquet").query("protocol == 'denoise' and head == 0")
    trial = trials.query("layer_index == 0 and dataset == 'synthetic_faces'")["trial_id"].iloc[0]
    with opened(browser, write_report(small_run), f"#pick={trial}") as found:
        detail = found.page.locator(".detail")
        assert detail.locator(".head-type").text_content() == "Type: edge (probability 0.97)"
        entropy = detail.get_by_role("img", name=re.compile("Entropy of attention"))
        assert "from 3 nats at t 900 to 3 at t 100" in entropy.get_attribute("aria-label")
        assert detail.locator(".attention").count() == 3
        assert detail.locator(".attention svg").first.locator("rect").count() == 16
        assert found.violations(".detail") == []
        assert found.said == []
