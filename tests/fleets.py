"""Fleets for tests: servers on six accelerators of four GPU types."""

import numpy as np

from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy


def fleet(
    servers: int, seed: int, *, mix: bool = False, stock: float = 1.0, spread: float = 1.0
) -> AllocationProblem:
    """Servers on six accelerators of four GPU types; `stock` cards of each type for each server.

    `spread` is the standard deviation of the logarithm of costs and capacities.
    """
    rng = np.random.default_rng(seed)
    gpu_type, gpus = np.array([0, 0, 1, 2, 2, 3]), np.array([1, 2, 1, 1, 4, 1])
    count = len(gpu_type)
    server, accelerator = np.divmod(np.arange(servers * count), count)
    price = np.exp(rng.normal(0.0, spread, 4))[gpu_type] * gpus
    speed = np.exp(rng.normal(0.0, spread, count)) * gpus
    return AllocationProblem(
        servers=tuple(f"s{i:05d}" for i in range(servers)),
        accelerators=tuple(f"a{i}" for i in range(count)),
        gpu_types=tuple(f"t{i}" for i in range(4)),
        arrival_rps=np.exp(rng.normal(1.5, 0.8, servers)) * np.median(speed),
        min_replicas=np.zeros(servers, dtype=np.int64),
        max_replicas=np.full(servers, NO_LIMIT),
        priority=rng.integers(1, 4, servers),
        weight=np.ones(servers),
        option_server=server,
        option_accelerator=accelerator,
        option_batch=np.ones(len(server), dtype=np.int64),
        capacity_rps=speed[accelerator] * np.exp(rng.normal(0.0, 0.3, len(server))),
        gpu_type=gpu_type[accelerator],
        gpus=gpus[accelerator],
        cost_per_h=price[accelerator],
        current_server=np.zeros(0, dtype=np.int64),
        current_accelerator=np.zeros(0, dtype=np.int64),
        current_cost_per_h=np.zeros(0),
        inventory=Inventory(np.full(4, int(stock * servers), dtype=np.int64), (None,) * 4),
        policy=Policy(max_types=None if mix else 1),
    )
