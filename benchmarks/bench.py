"""Speeds side by side in one run (`make bench`): harvest, the real model's passes, feature scan, SAE training steps."""

import bench_harvest
import bench_passes
import bench_training

if __name__ == "__main__":
    bench_harvest.main()
    bench_passes.main()
    bench_training.main()
