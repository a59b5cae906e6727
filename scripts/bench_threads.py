"""Measure notebooks/results/bench/threads.csv: how threads that wait should wait.

    python scripts/bench_threads.py

Two minutes or so on two quiet cores. Each row is the median of 30 training steps of SRResNet, in a
process of its own, with or without a second process that keeps a core busy. GNU OpenMP reads its
settings when torch is loaded, hence the processes.
"""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

FILE = Path(__file__).parents[1] / "notebooks/results/bench/threads.csv"
WAITING = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "5000 spins": {"GOMP_SPINCOUNT": "5000"},
    "20000 spins": {"GOMP_SPINCOUNT": "20000"},
}
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def main() -> None:
    rows = []
    for busy in (0, 1):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for features in (16, 64):
                for waiting, settings in WAITING.items():
                    rows.append([features, 2, waiting, busy, measure(features, 2, settings)])
                    print(rows[-1], flush=True)
                rows.append([features, 1, "none", busy, measure(features, 1, {})])
                print(rows[-1], flush=True)
        finally:
            for other in others:
                other.kill()
    with open(FILE, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["features", "threads", "waiting", "busy_processes", "ms_per_step"])
        writer.writerows(rows)


def measure(features: int, threads: int, settings: dict[str, str]) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, __file__, "--one", str(features), str(threads)]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def one(features: int, threads: int) -> None:
    """Print the median time of a step in ms."""
    import torch  # first: srlab sets what is measured here, and torch reads it when it is loaded

    from srlab.models.generators import SRResNet, polyphase

    torch.set_num_threads(threads)
    network = SRResNet(n_features=features).to(memory_format=torch.channels_last)
    fast, optimizer = polyphase(network), torch.optim.Adam(network.parameters(), fused=True)
    lr, hr = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 64, 64)
    times = []
    for _ in range(38):
        begin = time.perf_counter()
        loss = (fast(lr) - hr).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    print(f"{1e3 * sorted(times[8:])[15]:.1f}")


if __name__ == "__main__":
    one(*map(int, sys.argv[2:])) if "--one" in sys.argv else main()
