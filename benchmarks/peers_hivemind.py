"""MiniLM's upper layers as an expert of hivemind, and clients that call it.

    PYTHON_OF_ITS_VENV benchmarks/peers_hivemind.py server MODEL_FOLDER
    PYTHON_OF_ITS_VENV benchmarks/peers_hivemind.py clients ADDRESS

Runs in a virtual environment of its own and knows nothing of Preceptor. Each role prints one JSON line once
it is ready. The clients then answer each line of standard input, {"num_clients", "seconds"}, by one line,
{"num_pairs", "elapsed_s"}. Both end when their standard input is closed; `peers` ends what they leave behind.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING

import torch
from hivemind.dht import DHT  # type: ignore[import-not-found]
from hivemind.moe.server import ModuleBackend, Server, get_experts  # type: ignore[import-not-found]
from hivemind.utils.tensor_descr import BatchTensorDescriptor  # type: ignore[import-not-found]
from torch import Tensor, nn
from transformers import AutoModel

if TYPE_CHECKING:
    from hivemind.moe.client.expert import RemoteExpert  # type: ignore[import-not-found]

_UID = "minilm.0"
_SPLIT_LAYER = 3
_NUM_ROWS = 8
_MESSAGE_LEN = 1
_WIDTH = 384
_MAX_BATCH_ROWS = 1024
# As its documentation advises; on two cores 1, 2 and 8 are slower.
_NUM_HANDLERS = 4
_HOST = "/ip4/127.0.0.1/tcp/0"


class UpperLayers(nn.Module):
    """The layers above the talking layer; keeps [B, L, D]."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")
        self.layers = model.encoder.layer[_SPLIT_LAYER:]
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps [B, L, D] to [B, L, D], float32; all positions are valid."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=None)
        return hidden_states


def serve(folder: str) -> None:
    """Serves the layers until standard input is closed."""
    dht = DHT(host_maddrs=[_HOST], start=True)
    backend = ModuleBackend(
        _UID,
        UpperLayers(folder),
        args_schema=(BatchTensorDescriptor(_MESSAGE_LEN, _WIDTH),),
        max_batch_size=_MAX_BATCH_ROWS,
    )
    server = Server(dht, {_UID: backend}, num_connection_handlers=_NUM_HANDLERS, start=True)
    addresses = [str(address) for address in dht.get_visible_maddrs()]
    print(json.dumps({"address": addresses[0]}), flush=True)
    sys.stdin.read()
    server.shutdown()


def call(address: str) -> None:
    """Measures pairs of passes as often as standard input asks for it."""
    dht = DHT(initial_peers=[address], host_maddrs=[_HOST], client_mode=True, start=True)
    expert = _find_expert(dht)
    print(json.dumps({"found": expert.uid}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        num_pairs, elapsed_s = _measure(expert, wanted["num_clients"], wanted["seconds"])
        print(json.dumps({"num_pairs": num_pairs, "elapsed_s": elapsed_s}), flush=True)
    dht.shutdown()


def _find_expert(dht: DHT) -> RemoteExpert:
    """Asks until the server has declared the expert, at most a minute."""
    deadline_s = time.monotonic() + 60
    while (expert := get_experts(dht, [_UID])[0]) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"expert {_UID}: got none within 60 s")
        time.sleep(0.2)
    return expert


def _measure(expert: RemoteExpert, num_clients: int, seconds: float) -> tuple[int, float]:
    """Returns how many pairs clients, one thread each, finished, and the seconds it took."""
    counts = [0] * num_clients
    start_s = time.perf_counter()

    def talk(client: int) -> None:
        generator = torch.Generator().manual_seed(client)
        shape = (_NUM_ROWS, _MESSAGE_LEN, _WIDTH)
        hidden_states = torch.randn(shape, generator=generator).requires_grad_()
        grad = torch.randn(shape, generator=generator)
        while time.perf_counter() < start_s + seconds:
            torch.autograd.grad(expert(hidden_states), hidden_states, grad)
            counts[client] += 1

    threads = [threading.Thread(target=talk, args=(client,)) for client in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts), time.perf_counter() - start_s


if __name__ == "__main__":
    torch.set_num_threads(1)
    role, argument = sys.argv[1:]
    {"server": serve, "clients": call}[role](argument)
