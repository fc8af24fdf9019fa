"""What a job costs on a TPU slice, by the real compiler's account and without a TPU: bytes, FLOPs, traffic, time."""
