"""The code that the playground shows: run by a shell and by Python, it does what the page does."""

import json
import os
import re
import subprocess
import sys

from google.protobuf import json_format
from playwright.sync_api import Browser, expect

from service.grpc_api.conversion import generation_from_pb
from service.pb import topk_pb2 as pb
from service.requests.parsing import validate
from service.requests.schema import CompletionRequest
from tests.support.served import Served
from tests.support.web.browser import Tab, open_tab
from tests.support.web.write_page import ADD, KEY, NASTY, SET, code, opened, run, unlock, without_stream


def test_the_code_takes_the_key_from_the_environment(browser: Browser, with_presets: Served) -> None:
    with open_tab(browser, with_presets.url) as tab:
        unlock(tab)
        tab.page.get_by_label("Max tokens").fill("4")
        for language in ("curl", "Python", "gRPC"):
            text = code(tab.page, language)
            assert "TOPK_API_KEY" in text
            assert KEY not in text
        key = {"TOPK_API_KEY": KEY}
        assert json.loads(shell(code(tab.page, "curl"), **key))["choices"][0]["text"]
        assert python(code(tab.page, "Python"), **key).strip()


def shell(text: str, **environment: str) -> str:
    return output(["sh", "-c", text.replace("curl ", "curl -s ", 1)], environment)


def python(text: str, **environment: str) -> str:
    return output([sys.executable, "-c", text], environment)


def output(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        arguments, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_on_the_screen_does_what_run_does(tab: Tab, served: Served) -> None:
    every = ADD | {"include_special": True, "when": [{"layer": 0, "neuron": 2, "is": "above", "value": -0.5}]}
    ranged = SET | {"positions": {"start": 1, "end": None}, "unit": "raw"}
    everywhere = {
        "layer": "all",
        "neuron": 4,
        "op": "clamp",
        "min": -1,
        "max": 0.5,
        "unit": "kth",
        "positions": "prompt",
    }
    fields = {"max_tokens": 6, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "stop": "'it\"s'\n\\n\\n"}
    page = opened(tab, every, ranged, everywhere, prompt=NASTY, **fields)
    body = without_stream(run(page))
    assert body["stop"] == ["'it\"s'", "\n\n"]
    reply = served.post("/v1/completions", **body).json()
    texts = [choice["text"] for choice in reply["choices"]]

    by_curl = json.loads(shell(code(page, "curl")))
    assert [choice["text"] for choice in by_curl["choices"]] == texts
    assert by_curl["choices"][1]["interventions"] == reply["choices"][1]["interventions"]
    assert python(code(page, "Python")) == f"default: {texts[0]}\nsteered: {texts[1]}\n"

    command = code(page, "gRPC")
    assert f":{served.client.get('/version').json()['grpc_port']}/topk.v1.TopKService/Generate" in command
    (sent,) = re.findall(r"-d ('.*') \\\n", command, re.DOTALL)
    message = json_format.Parse(shell(f"printf %s {sent}"), pb.GenerateRequest())
    assert generation_from_pb(message) == validate(CompletionRequest, body)

    page.get_by_label("with the trace").check()
    assert '"trace": {}' in code(page, "curl")
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code(page, "curl")
