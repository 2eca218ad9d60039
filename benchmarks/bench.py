"""Speeds side by side in one run (`make bench`): harvest, feature scan, evaluation, the real model's passes, SAE
training steps and what their screen looks at. `bench_busy.py`, beside a busy neighbour, is run by itself.
"""

import bench_harvest
import bench_passes
import bench_screening
import bench_training

if __name__ == "__main__":
    bench_harvest.main()
    bench_passes.main()
    bench_screening.main()
    bench_training.main()
