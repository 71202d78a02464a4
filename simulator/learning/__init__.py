"""Real learning on simulated devices: data sets, their partitions, local training, models."""
