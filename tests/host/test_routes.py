"""What the server tells the page of concept files, and what the page makes of answers that are late, wrong or none."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import MAX_BYTES, concept_bytes, save_concept
from infusion_core.residuals import ConceptResidual

from .conftest import residual
from .page import find_browser, open_page, set_widget
from .test_notices import build

ROUTE = "/infusion/concept"
PANEL = "() => app.graph._nodes[0].widgets.find((w) => w.name === 'facts').element.textContent"


def ask(server: Server, name: str) -> tuple[int, str]:
    """Status and text of the route's answer."""
    address = f"{server.address}{ROUTE}?{urllib.parse.urlencode({'name': name})}"
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def broken(server: Server) -> list[str]:
    """Names of listed files that are no concepts."""
    folder = server.base / "models" / "infusion"
    whole = concept_bytes(residual("circle", 1))
    files = {"torn": whole[:-1], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "junk": b"junk", "empty": b""}
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    with (folder / "huge.safetensors").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    return [f"{name}.safetensors" for name in (*files, "huge")]


def test_the_route_tells_what_a_listed_file_holds(server: Server, concepts: dict[str, ConceptResidual]) -> None:
    status, text = ask(server, "round.safetensors")
    told = {"word": "circle", "base": "tinyworld2", "layout": "block", "steps": "?", "thumbnail": None}
    assert (status, json.loads(text)) == (200, told)


def test_a_broken_file_is_called_by_its_name_in_the_list(server: Server, broken: list[str]) -> None:
    for name in broken:
        status, text = ask(server, name)
        assert status == 422
        assert json.loads(text)["error"].startswith(f"{name} is ")
        assert str(server.base) not in text
        graph = Graph()
        loader = graph.add("InfusionLoadConcept", concept_name=name, strength=1.0)
        graph.add("PreviewAny", source=loader[1])
        with pytest.raises(PromptError) as refused:
            server.run(graph)
        assert f"{name} is " in str(refused.value)
        assert str(server.base) not in str(refused.value)


def test_a_broken_snapshot_is_called_by_its_name_in_the_list(server: Server) -> None:
    folder = server.output / "infusion" / "snapshots" / "mine"
    folder.mkdir(parents=True)
    (folder / "step-00001.safetensors").write_bytes(b"junk")
    graph = Graph()
    loader = graph.add("InfusionLoadSnapshot", snapshot="mine/step-00001", strength=1.0)
    graph.add("PreviewAny", source=loader[1])
    with pytest.raises(PromptError, match=r"mine/step-00001 is damaged") as refused:
        server.run(graph)
    assert str(server.base) not in str(refused.value)


def test_what_is_not_listed_is_not_read(server: Server) -> None:
    kept = server.output / "infusion" / "snapshots" / "kept"
    save_concept(kept / "step-00001.safetensors", residual("circle", 1))
    save_concept(server.base / "models" / "outside.safetensors", residual("circle", 1))
    inside = server.base / "models" / "infusion"
    for name in (
        "gone.safetensors", "", ".", "../outside.safetensors", str(inside / "round.safetensors"), "a\0b", "a\n" * 500,
        "snapshots/kept/step-00001.safetensors", "./round.safetensors",
    ):  # fmt: skip
        status, text = ask(server, name)
        assert status == 404
        assert len(json.loads(text)["error"]) < 300
        assert str(server.base) not in text or name.startswith(str(server.base))


def threads(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/task").iterdir()))


def test_a_flood_of_questions_is_answered_by_two_readers(server: Server, concepts: dict[str, ConceptResidual]) -> None:
    before = threads(server)
    with ThreadPoolExecutor(32) as askers:
        answers = list(askers.map(lambda _: ask(server, "layered.safetensors")[0], range(200)))
    assert answers == [200] * 200
    assert threads(server) - before <= 2


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    if find_browser() is None:
        pytest.skip("no Chromium found")
    for name, word in (("first", "circle"), ("second", "square")):
        save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", residual(word, 1))
    with open_page(server) as opened:
        build(opened, "add('InfusionLoadConcept', 100, 100)")
        yield opened


def choose(page: Any, name: str) -> None:
    set_widget(page, "InfusionLoadConcept", "concept_name", f"{name}.safetensors")


def shown(page: Any, text: str) -> None:
    page.wait_for_function(f"(text) => ({PANEL})().includes(text)", arg=text)


def test_a_late_answer_never_replaces_a_newer_one(page: Any) -> None:
    held: list[Any] = []
    page.route(f"**{ROUTE}?name=first*", lambda route: held.append(route))
    try:
        choose(page, "first")
        choose(page, "second")
        shown(page, '"square"')
        with page.expect_response(f"**{ROUTE}?name=first*") as answer:
            held[0].continue_()
        assert "circle" in answer.value.text()
        page.wait_for_timeout(300)
        assert '"square"' in page.evaluate(PANEL)
    finally:
        page.unroute(f"**{ROUTE}?name=first*")
    choose(page, "first")
    shown(page, '"circle"')


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ({"status": 500, "body": "<h1>Oops</h1>"}, "The server could not read second.safetensors (HTTP 500)"),
        ({"status": 200, "body": "<h1>Login</h1>"}, "The server could not read second.safetensors (HTTP 200)"),
        ({"status": 200, "body": "null"}, "The server could not read second.safetensors (HTTP 200)"),
        ({"status": 500, "body": '{"word": "cat"}'}, "The server could not read second.safetensors (HTTP 500)"),
        (None, "The server does not answer about second.safetensors"),
        ({"status": 422, "body": '{"error": "it is <b>broken</b>"}'}, "it is <b>broken</b>"),
    ],
)
def test_an_answer_that_is_no_answer_is_an_error_on_the_node(page: Any, answer: Any, line: str) -> None:
    choose(page, "first")
    shown(page, '"circle"')
    page.route(f"**{ROUTE}?*", lambda route: route.fulfill(**answer) if answer else route.abort())
    try:
        choose(page, "second")
        shown(page, line)
    finally:
        page.unroute(f"**{ROUTE}?*")
