"""Time and memory of `srlab upscale` for results of 0.1 to 25 megapixels, on one core.

    OMP_NUM_THREADS=1 python scripts/make_upscale_cost.py

writes ``bench/upscale_cost.csv``. Each size runs in a process of its own, as the command does. The
time is the processor's, so that other programs do not count; the peak of memory is that of the
whole process (Linux only: it is read from /proc).
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from srlab.data.datasets import find

SIDES = (80, 160, 320, 640, 1250)  # of the LR picture; the result has 16 times its pixels
ONE = """
import re, sys, time
from pathlib import Path
from srlab.data.writing import FORMATS
from srlab.pictures.jobs import Job, run
from srlab.pictures.upscaling import prepare

network = prepare("srresnet", "cpu")
started = time.process_time()
(outcome,) = run([Job(Path(sys.argv[1]), Path(sys.argv[2]), FORMATS[".png"])], network)
seconds = time.process_time() - started
assert outcome.error is None, outcome
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print(outcome.width * outcome.height / 1e6, seconds, int(peak) / 1000)
"""


def main() -> None:
    photo = Image.open(next(f for f in find("photos-valid") if "coffee" in f.stem)).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for side in SIDES:
            small, large = Path(folder) / f"{side}.png", Path(folder) / f"{side}_x4.png"
            photo.resize((side, side)).save(small)
            command = [sys.executable, "-c", ONE, small, large]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            megapixels, seconds, memory = map(float, done.stdout.split()[-3:])
            lines.append([f"{megapixels:.2f}", f"{seconds:.2f}", f"{memory:.0f}"])
            print(*lines[-1], flush=True)
    target = Path(__file__).parents[1] / "notebooks" / "results" / "bench" / "upscale_cost.csv"
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["megapixels", "cpu_seconds", "peak_memory_mb"])
        writer.writerows(lines)


if __name__ == "__main__":
    main()
