"""Speeds side by side in one run (`make bench`): harvest, feature scan, and SAE training steps."""

import bench_harvest
import bench_training

if __name__ == "__main__":
    bench_harvest.main()
    bench_training.main()
