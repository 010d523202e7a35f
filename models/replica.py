"""Iteration-level simulator of replicas with continuous batching: the referee of the analytic models.

A replica works in iterations. Each one advances every request that decodes by one token and spends what is
left of its token budget on prompts, in chunks and in order of arrival; a prompt's last chunk yields the first
output token. At most N requests are in service. The KV cache is a pool of blocks; where it runs out, the
request admitted last is preempted: it loses its blocks, goes back to the head of the queue, and its prompt
and the tokens generated so far are computed again. These are the rules of vLLM's scheduler
(https://docs.vllm.ai/en/v0.22.1/api/vllm/v1/core/sched/scheduler/), without prefix caching.

Between two events (an arrival that can be admitted, a completion, a full cache) a batch that only decodes
stays the same, and the time of m iterations is a quadratic in m, since every context grows by one token each.
So the simulator jumps from event to event: its work is a few events per request, whatever the number of
tokens.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, inf, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.laws import TOKEN_BUDGET

if TYPE_CHECKING:
    from models.arrivals import Requests
    from models.laws import FloatArray, IntArray

# Parts of a simulation whose means give the standard error.
BATCHES = 20

Policy = Literal["round_robin", "least_outstanding"]


@dataclass(frozen=True)
class IterationLaw:
    """Law 3 for one iteration, in seconds.

    An iteration that decodes n requests and prefills P prompt tokens takes

        alpha + beta n + gamma (KV tokens read by decode)
              + max(beta_prefill P + gamma (KV tokens read by prefill), floor if P > 0)
              + epsilon (1 - (1 - f)^(n + P)).

    A decode step or a chunk reads the context of its request including its own tokens. The last term is the
    weights of the experts that n + P tokens touch, each an expert with probability f.

    Attributes
    ----------
    alpha_s, beta_s, gamma_s : float
        >= 0, alpha + beta > 0: per iteration, per token, per KV token.
    beta_prefill_s : float, optional
        Per prompt token; None = beta_s, which is law 3.
    prefill_floor_s, epsilon_s : float
        >= 0; 0 = law 3.
    expert_fraction : float
        f in [0, 1]: experts active per token over all experts.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    alpha_s: float
    beta_s: float
    gamma_s: float
    beta_prefill_s: float | None = None
    prefill_floor_s: float = 0.0
    epsilon_s: float = 0.0
    expert_fraction: float = 0.0

    def __post_init__(self) -> None:
        times = (self.alpha_s, self.beta_s, self.gamma_s, self.prefill_floor_s, self.epsilon_s)
        if not all(0.0 <= time < inf for time in (*times, self.beta_prefill_s or 0.0)):
            raise ValueError("the times of an iteration must be finite and at least 0")
        if not self.alpha_s + self.beta_s > 0:
            raise ValueError("alpha_s + beta_s must be above 0")
        if not 0.0 <= self.expert_fraction <= 1.0:
            raise ValueError("expert_fraction must be in [0, 1]")

    def fixed_s(self, decoding: int, prompt_tokens: int) -> float:
        """Return the part of an iteration's time that does not depend on the contexts."""
        touched = 1.0 - (1.0 - self.expert_fraction) ** (decoding + prompt_tokens) if self.epsilon_s else 0.0
        return self.alpha_s + self.beta_s * decoding + self.epsilon_s * touched

    def prefill_s(self, prompt_tokens: int, kv_read_tokens: int) -> float:
        """Return the time that prompts add to an iteration."""
        beta_s = self.beta_s if self.beta_prefill_s is None else self.beta_prefill_s
        return max(beta_s * prompt_tokens + self.gamma_s * kv_read_tokens, self.prefill_floor_s)


@dataclass(frozen=True)
class Limits:
    """What one replica holds.

    Attributes
    ----------
    max_batch : int
        N, 1..token_budget: requests in service at once.
    token_budget : int
        Tokens of one iteration, prompts and decode together.
    kv_blocks : int, optional
        Blocks of the KV cache, >= 1; None = never short of memory.
    block_tokens : int
        Tokens that a block holds, >= 1.

    Raises
    ------
    ValueError
        If a limit is out of its range.
    """

    max_batch: int
    token_budget: int = TOKEN_BUDGET
    kv_blocks: int | None = None
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= self.token_budget:
            raise ValueError("max_batch must be in 1..token_budget")
        if self.block_tokens < 1 or (self.kv_blocks is not None and self.kv_blocks < 1):
            raise ValueError("kv_blocks and block_tokens must be at least 1")


@dataclass(frozen=True)
class Outcome:
    """What became of every request, in order of arrival; every array of shape (n,).

    Attributes
    ----------
    requests : Requests
    admitted_s : float
        Start of the first iteration that works on the request.
    first_token_s, completion_s : float
    preemptions : int
        How often it lost its KV blocks.
    replica : int
        The replica that served it, from 0.
    """

    requests: Requests
    admitted_s: FloatArray
    first_token_s: FloatArray
    completion_s: FloatArray
    preemptions: IntArray
    replica: IntArray

    @property
    def wait_s(self) -> FloatArray:
        """Return the times from arrival to admission, which include the rest of a running iteration."""
        return self.admitted_s - self.requests.arrival_s

    @property
    def ttft_s(self) -> FloatArray:
        """Return the times from arrival to the first token."""
        return self.first_token_s - self.requests.arrival_s

    @property
    def itl_s(self) -> FloatArray:
        """Return each request's mean time between two tokens; NaN for a single token."""
        gaps = self.requests.out_tokens - 1
        return np.where(gaps > 0, (self.completion_s - self.first_token_s) / np.maximum(gaps, 1), np.nan)

    def summary(self, warmup: int = 0) -> Summary:
        """Aggregate the requests from index `warmup` on.

        Throughput and occupancy are those of the window from that request's arrival to the last arrival, so
        that neither the filling nor the draining of the replicas counts.

        Raises
        ------
        ValueError
            If `warmup` leaves fewer than two requests.
        """
        r = self.requests
        if not 0 <= warmup <= len(r) - 2:
            raise ValueError(f"warmup {warmup} must leave at least two of {len(r)} requests")
        start_s, end_s = float(r.arrival_s[warmup]), float(r.arrival_s[-1])
        window_s = end_s - start_s
        ttft_s, itl_s = self.ttft_s[warmup:], self.itl_s[warmup:]
        decode_s = (self.completion_s - self.first_token_s)[warmup:].sum()
        gaps = int((r.out_tokens[warmup:] - 1).sum())
        in_service_s = np.clip(self.completion_s, start_s, end_s) - np.clip(self.admitted_s, start_s, end_s)
        done = (self.completion_s > start_s) & (self.completion_s <= end_s)
        itl_known = gaps > 0
        return Summary(
            ttft_mean_s=float(ttft_s.mean()),
            ttft_standard_error_s=_standard_error(ttft_s),
            ttft_p50_s=float(np.percentile(ttft_s, 50)),
            ttft_p95_s=float(np.percentile(ttft_s, 95)),
            ttft_p99_s=float(np.percentile(ttft_s, 99)),
            itl_mean_s=float(decode_s / gaps) if itl_known else np.nan,
            itl_p95_s=float(np.nanpercentile(itl_s, 95)) if itl_known else np.nan,
            wait_mean_s=float(self.wait_s[warmup:].mean()),
            throughput_rps=float(done.sum() / window_s) if window_s > 0 else np.nan,
            token_throughput_per_s=float(r.out_tokens[done].sum() / window_s) if window_s > 0 else np.nan,
            occupancy=float(in_service_s.sum() / window_s) if window_s > 0 else np.nan,
            preemptions=int(self.preemptions[warmup:].sum()),
        )


@dataclass(frozen=True)
class Summary:
    """Aggregates over requests; times in seconds.

    Attributes
    ----------
    ttft_mean_s, ttft_p50_s, ttft_p95_s, ttft_p99_s : float
    ttft_standard_error_s : float
        Of the mean, from the means of `BATCHES` consecutive parts, since neighbours share a queue; NaN for
        fewer requests than that. It is too small where a part is not much longer than the busy periods.
    itl_mean_s : float
        Over all gaps between two tokens, as the sum over the count of a server's histogram; NaN without gaps.
    itl_p95_s : float
        95th percentile of the requests' own means.
    wait_mean_s : float
        From arrival to admission.
    throughput_rps, token_throughput_per_s : float
        Completed requests, and their output tokens; NaN for a window of no length.
    occupancy : float
        Mean number of requests between admission and completion, over all replicas.
    preemptions : int
    """

    ttft_mean_s: float
    ttft_standard_error_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    itl_mean_s: float
    itl_p95_s: float
    wait_mean_s: float
    throughput_rps: float
    token_throughput_per_s: float
    occupancy: float
    preemptions: int


def simulate(
    law: IterationLaw,
    limits: Limits,
    requests: Requests,
    replicas: int = 1,
    policy: Policy = "round_robin",
) -> Outcome:
    """Simulate equal replicas until the last request is done.

    Parameters
    ----------
    law : IterationLaw
    limits : Limits
        Of each replica. Queues are unbounded.
    requests : Requests
        A request that arrives at the very end of an iteration takes part in the next one.
    replicas : int
        >= 1.
    policy : {"round_robin", "least_outstanding"}
        Which replica an arrival goes to: the next in turn, or the first with the fewest requests not
        completed.

    Raises
    ------
    ValueError
        If `replicas` < 1, or a request does not fit the KV cache even alone.
    """
    if replicas < 1:
        raise ValueError(f"replicas must be at least 1, not {replicas}")
    longest = int((requests.in_tokens + requests.out_tokens - 1).max(initial=0))
    if limits.kv_blocks is not None and longest > limits.kv_blocks * limits.block_tokens:
        raise ValueError(
            f"a request of {longest} KV tokens does not fit a cache of {limits.kv_blocks} blocks"
        )
    log = _Log(len(requests))
    tokens = requests.in_tokens.tolist(), requests.out_tokens.tolist()
    fleet = [_Replica(law, limits, *tokens, log) for _ in range(replicas)]
    chosen = [0] * len(requests)
    for request, arrival_s in enumerate(requests.arrival_s.tolist()):
        if policy == "round_robin":
            target = request % replicas
            fleet[target].advance(arrival_s)
        else:
            for replica in fleet:
                replica.advance(arrival_s)
            target = min(range(replicas), key=lambda index: fleet[index].outstanding)
        fleet[target].submit(request, arrival_s)
        chosen[request] = target
    for replica in fleet:
        replica.advance(inf)
    return Outcome(
        requests=requests,
        admitted_s=np.array(log.admitted_s),
        first_token_s=np.array(log.first_token_s),
        completion_s=np.array(log.completion_s),
        preemptions=np.array(log.preemptions, dtype=np.int64),
        replica=np.array(chosen, dtype=np.int64),
    )


def _standard_error(values: FloatArray) -> float:
    if len(values) < BATCHES:
        return np.nan
    means = [part.mean() for part in np.array_split(values, BATCHES)]
    return float(np.std(means, ddof=1) / sqrt(BATCHES))


class _Log:
    """Events of all requests; lists, since single elements of arrays are slow to write."""

    __slots__ = ("admitted_s", "completion_s", "first_token_s", "preemptions")

    def __init__(self, count: int) -> None:
        self.admitted_s = [inf] * count
        self.first_token_s = [inf] * count
        self.completion_s = [inf] * count
        self.preemptions = [0] * count


class _Replica:
    """One replica inside a block of `count` equal iterations from `start_s` to `end_s`.

    `step` counts iterations, as of `start_s`. A request that decodes has `offset + step` tokens in the KV
    cache, where the offset is constant; so the tokens of all are known from the sum of the offsets, the
    iteration in which each one completes from its offset alone, and nothing has to be updated per iteration.
    """

    def __init__(
        self, law: IterationLaw, limits: Limits, in_tokens: list[int], out_tokens: list[int], log: _Log
    ) -> None:
        self.law = law
        self.limits = limits
        self.in_tokens = in_tokens
        self.out_tokens = out_tokens
        self.log = log
        self.outstanding = 0
        # Requests that wait, and the tokens that the preempted ones have to compute again.
        self.waiting: deque[int] = deque()
        self.recompute: dict[int, int] = {}
        # Requests that decode, in order of admission, with their offsets; those by the step in which they
        # complete (with stale entries of preempted ones); and how many have each offset modulo the tokens of
        # a block.
        self.decoding: dict[int, int] = {}
        self.offset_sum = 0
        self.completing: list[tuple[int, int]] = []
        self.residues = [0] * limits.block_tokens
        # The one request whose prompt is not finished by the iteration under way, and its tokens done after
        # it.
        self.partial: int | None = None
        self.partial_done = 0
        # Without a limit no blocks are counted at all.
        self.unlimited = limits.kv_blocks is None
        self.free_blocks = limits.kv_blocks or 0
        # The block of iterations under way; `end_s` is infinite while there is nothing to do.
        self.start_s = 0.0
        self.end_s = inf
        self.step = 0
        self.count = 0
        self.prefilled: list[int] = []
        self.linear_s = 0.0  # time of m iterations: linear_s m + square_s m^2
        self.square_s = 0.0
        self.can_admit = False

    def submit(self, request: int, now_s: float) -> None:
        """Take a request that arrives now; the replica must have been advanced to now."""
        self.waiting.append(request)
        self.outstanding += 1
        if self.end_s == inf:
            # An empty block: the next iteration starts now, with all that arrives now.
            self.start_s = self.end_s = now_s
            self.count = 0
            self.can_admit = False
        elif self.can_admit:
            self._cut(now_s - self.start_s)

    def advance(self, until_s: float) -> None:
        """Work until just before a time: iterations that end earlier are done, one that ends then is not."""
        while self.end_s < until_s:
            self._finish()
            self._begin()

    def _begin(self) -> None:
        """Compose the next iteration, and take as many equal ones with it as possible."""
        self.start_s = self.end_s
        preempted = not self.unlimited and self._make_room()
        prompt_tokens = kv_read_tokens = 0
        if self.waiting or self.partial is not None:
            prompt_tokens, kv_read_tokens = self._prefill(admit=not preempted)
        decoding = len(self.decoding)
        if decoding == 0 and prompt_tokens == 0:
            self.end_s, self.count, self.can_admit = inf, 0, False
            return
        law = self.law
        kv_tokens = self.offset_sum + decoding * self.step
        self.square_s = law.gamma_s * decoding / 2.0
        self.linear_s = law.fixed_s(decoding, prompt_tokens) + law.gamma_s * kv_tokens + self.square_s
        self.can_admit = False
        if prompt_tokens:
            self.linear_s += law.prefill_s(prompt_tokens, kv_read_tokens)
            self.count = 1
        elif preempted:
            self.count = 1
        else:
            self.count = min(self._next_completion() - self.step, self._steps_in_cache())
            # Who waits now waits for a completion; who comes later may be admitted after any iteration.
            self.can_admit = not self.waiting and decoding < self.limits.max_batch
        self.end_s = self.start_s + self.count * (self.linear_s + self.square_s * self.count)

    def _finish(self) -> None:
        """Do what happens at the end of the block of iterations."""
        if self.count == 0:
            return
        if not self.unlimited:
            self.free_blocks -= self._blocks_for(self.count)
        self.step += self.count
        step, now_s, log = self.step, self.end_s, self.log
        completing = self.completing
        while completing and completing[0][0] <= step:
            due, request = heappop(completing)
            if self._is_due(due, request):
                self._release(request)
                self._complete(request, self.in_tokens[request] + self.out_tokens[request] - 1)
        for request in self.prefilled:
            in_tokens = self.in_tokens[request]
            kv_tokens = self.recompute.pop(request, in_tokens)
            if kv_tokens == in_tokens:
                log.first_token_s[request] = now_s
            remaining = in_tokens + self.out_tokens[request] - 1 - kv_tokens
            if remaining == 0:
                self._complete(request, kv_tokens)
                continue
            offset = kv_tokens - step
            self.decoding[request] = offset
            self.offset_sum += offset
            self.residues[offset % len(self.residues)] += 1
            heappush(completing, (step + remaining, request))
        self.prefilled.clear()

    def _make_room(self) -> bool:
        """Preempt from the back until the next decode step and the next chunk of a prompt fit the cache."""
        preempted = False
        while (needed := self._blocks_for(1)) > self.free_blocks:
            preempted = True
            if self.partial is not None:
                self._preempt_partial()
            else:
                request = next(reversed(self.decoding))
                kv_tokens = self._release(request)
                self._requeue(request, kv_tokens + 1, self._blocks(kv_tokens))
        if self.partial is not None:
            chunk = min(self._prompt_tokens(self.partial) - self.partial_done, self._budget())
            more = self._blocks(self.partial_done + chunk) - self._blocks(self.partial_done)
            if more > self.free_blocks - needed:
                preempted = True
                self._preempt_partial()
        return preempted

    def _prefill(self, admit: bool) -> tuple[int, int]:
        """Spend the token budget on prompts: their tokens in this iteration, and the KV tokens they read."""
        budget = whole_budget = self._budget()
        room = self.limits.max_batch - len(self.decoding)
        free_blocks = self.free_blocks - self._blocks_for(1)
        kv_read_tokens = 0
        request = self.partial
        done = self.partial_done
        while budget and room:
            if request is None:
                if not (admit and self.waiting):
                    break
                request, done = self.waiting[0], 0
            tokens = self._prompt_tokens(request)
            chunk = min(tokens - done, budget)
            blocks = self._blocks(done + chunk) - self._blocks(done)
            if blocks > free_blocks:
                break
            if done == 0:
                self.waiting.popleft()
                if self.log.admitted_s[request] == inf:
                    self.log.admitted_s[request] = self.start_s
            self.free_blocks -= blocks
            free_blocks -= blocks
            budget -= chunk
            room -= 1
            done += chunk
            kv_read_tokens += done
            if done == tokens:
                self.prefilled.append(request)
                self.partial = None
            else:
                self.partial, self.partial_done = request, done
            request = None
        return whole_budget - budget, kv_read_tokens

    def _cut(self, gap_s: float) -> None:
        """Shorten the block to the first iteration that ends no earlier than a time after its start."""
        linear_s, square_s = self.linear_s, self.square_s
        count = ceil(2.0 * gap_s / (linear_s + sqrt(linear_s * linear_s + 4.0 * square_s * gap_s)))
        # The root is rounded; the count must agree with the sums that the end of the block is made of.
        while count * (linear_s + square_s * count) < gap_s:
            count += 1
        while count > 1 and (count - 1) * (linear_s + square_s * (count - 1)) >= gap_s:
            count -= 1
        if count < self.count:
            self.count = count
            self.end_s = self.start_s + count * (linear_s + square_s * count)
        self.can_admit = False

    def _complete(self, request: int, kv_tokens: int) -> None:
        self.log.completion_s[request] = self.end_s
        self.free_blocks += self._blocks(kv_tokens)
        self.outstanding -= 1

    def _release(self, request: int) -> int:
        """Stop decoding a request and return its KV tokens."""
        offset = self.decoding.pop(request)
        self.offset_sum -= offset
        self.residues[offset % len(self.residues)] -= 1
        return offset + self.step

    def _preempt_partial(self) -> None:
        assert self.partial is not None
        self._requeue(self.partial, self._prompt_tokens(self.partial), self._blocks(self.partial_done))
        self.partial = None

    def _requeue(self, request: int, prompt_tokens: int, blocks: int) -> None:
        self.free_blocks += blocks
        self.recompute[request] = prompt_tokens
        self.log.preemptions[request] += 1
        self.waiting.appendleft(request)

    def _next_completion(self) -> int:
        """Return the step in which the first of the requests that decode completes."""
        while not self._is_due(*self.completing[0]):
            heappop(self.completing)
        return self.completing[0][0]

    def _is_due(self, step: int, request: int) -> bool:
        """Whether a request decodes and completes in a step; not so for an entry from before a preemption."""
        offset = self.decoding.get(request)
        return offset is not None and offset + step == self.in_tokens[request] + self.out_tokens[request] - 1

    def _steps_in_cache(self) -> int:
        """Return how many iterations of decode the free blocks allow; at least 1 after `_make_room`."""
        if self.unlimited:
            return sys.maxsize
        size = len(self.residues)
        rounds = self.free_blocks // len(self.decoding)
        steps, left = rounds * size, self.free_blocks % len(self.decoding)
        while (needed := self.residues[-(self.step + steps) % size]) <= left:
            left -= needed
            steps += 1
        return steps

    def _blocks_for(self, steps: int) -> int:
        """Return the blocks that so many iterations of decode take from the pool."""
        if self.unlimited:
            return 0
        # A request takes a block in the step that finds its last one full.
        size = len(self.residues)
        rounds, rest = divmod(steps, size)
        last = self.step + rest
        return rounds * len(self.decoding) + sum(self.residues[-s % size] for s in range(self.step, last))

    def _blocks(self, kv_tokens: int) -> int:
        return 0 if self.unlimited else -(-kv_tokens // len(self.residues))

    def _budget(self) -> int:
        return self.limits.token_budget - len(self.decoding)

    def _prompt_tokens(self, request: int) -> int:
        return self.recompute.get(request, self.in_tokens[request])
