"""A continuous-batching replica written the plain way: one iteration at a time, one request at a time.

It shares no code with `models.replica`; its cost is proportional to the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Request:
    arrival: float
    inputs: int
    outputs: int
    computed: int = 0  # tokens in the KV cache
    generated: int = 0
    decoding: bool = False
    admitted: float | None = None
    first: float | None = None
    completion: float | None = None
    preemptions: int = 0

    @property
    def to_compute(self):
        return self.inputs + self.generated - self.computed


def blocks(tokens, block_tokens):
    return (tokens + block_tokens - 1) // block_tokens


def used_blocks(running, tokens, block_tokens):
    return sum(blocks(r.computed + tokens.get(id(r), 0), block_tokens) for r in running)


def naive_replica(law, limits, arrivals, inputs, outputs):
    """Simulate one replica; `law` and `limits` are only read for their parameters."""
    requests = [Request(*row) for row in zip(arrivals, inputs, outputs, strict=True)]
    future, waiting, running = list(requests), [], []
    size, total = limits.block_tokens, limits.kv_blocks
    clock = 0.0
    while future or waiting or running:
        if not waiting and not running:
            clock = max(clock, future[0].arrival)
        while future and future[0].arrival <= clock:
            waiting.append(future.pop(0))

        budget = limits.token_budget
        tokens = {}
        preempted = False
        position = 0
        while position < len(running):
            request = running[position]
            share = min(request.to_compute, budget)
            tokens[id(request)] = share
            while total is not None and used_blocks(running, tokens, size) > total:
                victim = running.pop()
                tokens.pop(id(victim), None)
                victim.computed = 0
                victim.decoding = False
                victim.preemptions += 1
                waiting.insert(0, victim)
                preempted = True
                if victim is request:
                    break
            else:
                budget -= share
                position += 1
        while waiting and not preempted and budget > 0 and len(running) < limits.max_batch:
            request = waiting[0]
            share = min(request.to_compute, budget)
            if total is not None and used_blocks(running, tokens, size) + blocks(share, size) > total:
                break
            running.append(waiting.pop(0))
            if request.admitted is None:
                request.admitted = clock
            tokens[id(request)] = share
            budget -= share

        decode_read = decode = prompt_read = prompt = 0
        for request in running:
            share = tokens[id(request)]
            if request.decoding:
                decode += share
                decode_read += request.computed + share
            elif share:
                prompt += share
                prompt_read += request.computed + share
        beta_prefill = law.beta_s if law.beta_prefill_s is None else law.beta_prefill_s
        clock += law.alpha_s + law.beta_s * decode + law.gamma_s * decode_read
        if prompt:
            clock += max(beta_prefill * prompt + law.gamma_s * prompt_read, law.prefill_floor_s)
        clock += law.epsilon_s * (1.0 - (1.0 - law.expert_fraction) ** (decode + prompt))

        for request in list(running):
            request.computed += tokens[id(request)]
            if request.to_compute == 0:
                request.generated += 1
                request.decoding = True
                if request.first is None:
                    request.first = clock
                if request.generated == request.outputs:
                    request.completion = clock
                    running.remove(request)
    return requests
