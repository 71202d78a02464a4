"""What runs on the device: session machine, durable store, trainers, local data.

Invariant: imports `fedtide` and nothing else of the project; never torch.
"""
