"""Clients that ask for too much, or leave in a storm: refused or forgotten, and nothing is left of them."""

import json
import random
import socket
import time
from pathlib import Path

import grpc

from service.http_api.shapes import ErrorResponse
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc
from tests.support.running import Running
from tests.support.served import MODEL_ID, serve_app, wait_until

NUM_CLIENTS = 120
PROMPT = "the king and the war " * 12  # some stretches of prefill


def test_a_storm_of_cancels_over_http_and_grpc_leaves_nothing(running: Running) -> None:
    """At all stages: waiting, within a long prompt, decoding several choices."""
    rng = random.Random(0)
    fields = {"model": MODEL_ID, "max_tokens": 100, "n": 4, "ignore_eos": True}
    data = json.dumps(fields | {"prompt": PROMPT, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    with grpc.insecure_channel(running.target) as channel:
        stub = topk_pb2_grpc.TopKServiceStub(channel)
        call = pb.GenerateRequest(prompt=pb.Prompt(text=PROMPT), **fields)
        clients: list[socket.socket | grpc.Future] = []
        for number in range(NUM_CLIENTS):
            if number % 2:
                clients.append(stub.GenerateStream(pb.GenerateStreamRequest(request=call)))
            else:
                clients.append(socket.create_connection(("127.0.0.1", running.port)))
                clients[-1].sendall(request)
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.02)
                leaving = clients.pop(rng.randrange(len(clients)))
                leaving.close() if isinstance(leaving, socket.socket) else leaving.cancel()
        for client in clients:
            client.close() if isinstance(client, socket.socket) else client.cancel()
    assert wait_until(running.is_idle, 10)
    assert wait_until(lambda: running.metric("topk_requests_in_progress", 'transport="http"') <= 1, 5)
    assert running.openai.completions.create(model=MODEL_ID, prompt="Once", max_tokens=2).choices[0].text


def test_a_request_that_memory_never_holds_is_refused_at_once(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, num_blocks=8, block_size=16) as small:
        reply = small.post("/v1/completions", prompt="Once", max_tokens=200)
        assert reply.status_code == 400
        error = ErrorResponse.model_validate_json(reply.content).error
        assert error.param == "max_tokens"
        assert "8" in error.message
        assert small.complete(max_tokens=20)["choices"]
        assert small.wait_idle()
