"""A neuron's page, in a real browser: what it shows is what the API says, and what can be done from there."""

from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.served import MODEL_ID, Served, build_tiny_catalogues, save_tiny_model, serve_app
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.neuron_pages import (
    ask,
    expect_list,
    listed,
    name_of,
    percent,
    rows,
    strongest,
    until,
    visible,
    written,
)
from topk_model.modeling import TopKLMForCausalLM

#: How often each colour stands in the page's first chart, read from a copy: Chromium warns of reading a canvas twice.
COLOURS = """() => {
    const { width, height } = document.querySelector(".plot canvas");
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(document.querySelector(".plot canvas"), 0, 0);
    const counts = {};
    for (const pixel of new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer)) {
        counts[pixel] = (counts[pixel] ?? 0) + 1;
    }
    return counts;
}"""


def figure(page: Page, name: str) -> Locator:
    """What stands beside a term of a list of figures."""
    return page.locator("dl > div").filter(has=page.get_by_text(name, exact=True)).get_by_role("definition").first


def shown(page: Page, wanted: str) -> None:
    """Wait until a neuron's page is that of this neuron."""
    expect(page.get_by_role("heading", level=1)).to_contain_text(wanted)
    expect(page.get_by_role("heading", name="Where it fires most strongly")).to_be_visible()


def test_a_neurons_figures_and_tokens_are_those_of_the_api(tab: Tab, served: Served) -> None:
    known = strongest(served)
    page = tab.go(f"#/neuron/{name_of(known)}")
    shown(page, name_of(known))
    expect(figure(page, "Density")).to_have_text(percent(known["density"]))
    expect(figure(page, "Maximum")).to_have_text(written(known["max"]))
    expect(figure(page, "Mean")).to_have_text(written(known["mean"]))
    expect(figure(page, "Token entropy")).to_have_text(f"{written(known['token_entropy'])} bits")
    expect(figure(page, "Semantic entropy")).to_have_text(f"{written(known['semantic_entropy'])} bits")
    expect(figure(page, "Median")).to_have_text(written(known["quantiles"]["0.5"]))
    assert rows(page, "Tokens that it fires on") == [
        [visible(top["token"]), str(top["count"]), percent(top["share"]), written(top["mean"])]
        for top in known["top_tokens"]
    ]
    for name, unit, sign in (("Made likelier", "positive", "+"), ("Made less likely", "negative", "−")):
        cells = page.get_by_role("table", name=name).locator("tbody tr").first.locator("td")
        strongest_effect = known["logit_effect"][unit][0]
        assert cells.all_inner_texts() == [
            visible(strongest_effect["token"]),
            f"{sign}{written(abs(strongest_effect['value']))}",
        ]
    ablation = known["ablation_effect"]
    lost = ("−" if ablation["loss_change"] < 0 else "+") + written(abs(ablation["loss_change"]))
    expect(page.get_by_text(f"Without it the loss changes by {lost} nats")).to_be_visible()
    if held_up := ablation["negative"]:
        cells = page.get_by_role("table", name="Less likely without it").locator("tbody tr").first
        expect(cells).to_contain_text(f"−{written(-held_up[0]['value'])}")


def test_a_label_comes_with_its_score_and_evidence(tab: Tab, served: Served) -> None:
    best = ask(served, order="-score", limit=1)["data"][0]
    known = ask(served, f"/{name_of(best)}")
    assert known["label"] is not None, "the tiny model has no labelled neuron"
    page = tab.go(f"#/neuron/{name_of(best)}")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{name_of(best)} {known['label']['text']}")
    page.get_by_text(f"Label: automatic, score {written(known['label']['score'])}").click()
    expect(page.get_by_text(known["label"]["evidence"][0])).to_be_visible()


def test_examples_are_shaded_where_the_neuron_fires(tab: Tab, served: Served) -> None:
    known = strongest(served)
    page = tab.go(f"#/neuron/{name_of(known)}")
    shown(page, name_of(known))
    for heading, known_examples in (
        ("Where it fires most", known["top_examples"]),
        ("Where it fires most strongly", known["strongest_firings"]),
    ):
        examples = page.get_by_role("region", name=heading, exact=True).locator("ol.examples > li")
        assert examples.count() == len(known_examples) > 0
        for item, example in zip(examples.all(), known_examples, strict=True):
            tokens = item.locator(".token")
            assert tokens.all_text_contents() == [token.replace("\n", "↵") for token in example["tokens"]]
            grounds = tokens.evaluate_all("all => all.map((token) => getComputedStyle(token).backgroundColor)")
            clear = "rgba(0, 0, 0, 0)"
            assert [ground != clear for ground in grounds] == [value > 0 for value in example["activations"]]
            underlined = tokens.evaluate_all(
                "all => all.map((token) => getComputedStyle(token).textDecorationLine === 'underline')"
            )
            assert [i for i, is_peak in enumerate(underlined) if is_peak] == [example["peak"]]
            expect(item).to_contain_text(f"{written(example['max'])} at {visible(example['tokens'][example['peak']])}")


def test_a_chart_is_drawn_in_the_schemes_colours_and_has_its_numbers_in_a_table(tab: Tab, served: Served) -> None:
    known = strongest(served)
    page = tab.go(f"#/neuron/{name_of(known)}")
    shown(page, name_of(known))
    page.locator(".plot canvas").first.wait_for()
    light = page.evaluate(COLOURS)
    assert len(light) > 2
    page.get_by_role("figure").filter(has_text="Firings by activation").get_by_text("As a table").click()
    edges, counts = known["histogram"]["edges"], known["histogram"]["counts"]
    assert rows(page, "Firings by activation, as a table") == [
        [f"{written(edges[i])} to {written(edges[i + 1])}", f"{counts[i]:,}"] for i in range(len(counts))
    ]
    page.emulate_media(color_scheme="dark")
    until(lambda: commonest(page.evaluate(COLOURS)) != commonest(light), page)
    width = "() => document.querySelector('.plot canvas').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    until(lambda: page.evaluate(width) < before, page)
    assert len(page.evaluate(COLOURS)) > 2


def commonest(colours: dict[str, int]) -> str:
    """The colour that most of what is drawn has; 0 is the canvas itself."""
    return max((colour for colour in colours if colour != "0"), key=lambda colour: colours[colour])


def test_the_history_leads_to_the_neuron_at_a_checkpoint_and_in_other_layers(tab: Tab, served: Served) -> None:
    known = strongest(served)
    name = name_of(known)
    past = ask(served, f"/{name}/history")
    page = tab.go(f"#/neuron/{name}")
    shown(page, name)
    expect(page.get_by_role("img", name="Line chart: Density")).to_be_visible()
    at_steps = rows(page, "The neuron at each checkpoint")
    assert [row[0] for row in at_steps] == ["64", "final"]
    for row, stage in zip(at_steps, past["checkpoints"], strict=True):
        assert row[1:4] == [percent(stage["density"]), written(stage["token_entropy"]), percent(stage["token_overlap"])]
    in_layers = rows(page, "The neuron of this index in each layer")
    assert [row[1] for row in in_layers] == [percent(stage["density"]) for stage in past["layers"]]
    page.get_by_role("link", name="64", exact=True).click()
    expect(page.get_by_text("This is its state at step 64 of training.")).to_be_visible()
    then = ask(served, f"/{name}", model=f"{MODEL_ID}@step-64")
    expect(figure(page, "Maximum")).to_have_text(written(then["max"]))
    assert written(then["max"]) != written(known["max"])
    page.get_by_role("combobox", name="Checkpoint").select_option("final")
    expect(figure(page, "Maximum")).to_have_text(written(known["max"]))
    other = 1 - known["layer"]
    page.get_by_role("region", name="The neuron of this index in each layer").get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{other}/{known['neuron']}")


def test_neighbours_and_related_neurons_are_a_click_away(tab: Tab, served: Served) -> None:
    known = next(
        page for row in ask(served, order="-density")["data"] if (page := ask(served, f"/{name_of(row)}"))["related"]
    )
    page = tab.go(f"#/neuron/{name_of(known)}")
    shown(page, name_of(known))
    related = rows(page, "Neurons that fire at the same positions")
    assert [row[1] for row in related] == [written(near["pmi"]) for near in known["related"]]
    near = known["related"][0]
    page.get_by_role("region", name="Neurons that fire at the same positions").get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(name_of(near))
    page.go_back()
    shown(page, name_of(known))
    which, step = ("Next", 1) if known["neuron"] < 63 else ("Previous", -1)
    page.get_by_role("link", name=f"{which} neuron").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{known['layer']}/{known['neuron'] + step}")


def test_a_neuron_can_be_taken_to_steer_and_to_read(tab: Tab, served: Served) -> None:
    known = strongest(served)
    name = name_of(known)
    page = tab.go(f"#/neuron/{name}?model={MODEL_ID}")
    page.get_by_role("link", name="Steer with it").click()
    expect(page.get_by_role("link", name="Write and steer")).to_have_attribute("aria-current", "page")
    expect(page.get_by_role("main")).to_contain_text(name)
    page.go_back()
    page.get_by_role("link", name="See it in a text").click()
    expect(page.get_by_role("link", name="Read", exact=True)).to_have_attribute("aria-current", "page")
    assert f"neuron={known['layer']}%2F{known['neuron']}" in page.url


def test_a_dead_neuron_is_said_to_be_dead(browser: Browser, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "dead")
    model = TopKLMForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data[:, 5] -= 50  # so that TopK never keeps it
    model.save_pretrained(folder)
    build_tiny_catalogues(folder)
    with serve_app(folder) as service, open_tab(browser, service.url) as tab:
        assert ask(service, "/0/5")["is_dead"]
        page = tab.go("#/neuron/0/5")
        expect(page.get_by_text("This neuron is dead")).to_be_visible()
        expect(page.get_by_role("heading", name="Where it fires most strongly")).to_be_hidden()
        expect(page.get_by_role("table", name="Made likelier")).to_be_visible()
        page = tab.go("#/explore?dead=true")
        expect_list(page, service, is_dead="true", order="-score")
        assert "0/5" in listed(page)


def test_a_neuron_that_is_not_there_is_refused_in_the_services_words(tab: Tab) -> None:
    expect(tab.go("#/neuron/0/64").get_by_role("alert")).to_contain_text("neuron 64 is out of range")
    expect(tab.go("#/neuron/3/1").get_by_role("alert")).to_contain_text("layer 3 is not a TopK layer")
    expect(tab.go("#/neuron/0/1?step=128").get_by_role("alert")).to_contain_text("no neuron catalogue")
    for address in ("#/neuron/0/x", "#/neuron/0", "#/neuron/../models"):
        expect(tab.go(address).get_by_role("heading", name="No such neuron")).to_be_visible()


def test_a_model_without_a_catalogue_says_how_to_make_one(browser: Browser, tmp_path: Path) -> None:
    with serve_app(save_tiny_model(tmp_path / "bare")) as service, open_tab(browser, service.url) as tab:
        for address in ("#/neuron/0/1", "#/explore", "#/explore/text?text=war"):
            page = tab.go(address)
            expect(page.get_by_text("has no neuron catalogue")).to_be_visible()
            expect(page.get_by_text("topk catalogue --model")).to_be_visible()
            expect(page.get_by_role("alert")).to_be_hidden()
